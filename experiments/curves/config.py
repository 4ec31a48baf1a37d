"""The configuration of one training: all that determines its numbers."""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any, Literal

import jax
import optax
import tyro

import rvsm_jax

# The layer that is made sparse, as a path in the params.
SPARSE_LAYER = "^dense/kernel$"

SPARSE = rvsm_jax.by_path(SPARSE_LAYER)

# Those of Tables 1 and 2, and, with the method "sgd", of Table 3.
PAPER_LAM, PAPER_BETA = 5e-4, 0.1

Data = Literal["planar_shapes", "alphabets", "images"]
PenaltyName = Literal["l0", "l1", "transformed_l1", "none"]


@dataclasses.dataclass(frozen=True)
class Config:
  """One training.

  Where a step is compiled for a whole path, `a`, `threshold` and `beta` are traced.
  With the lam schedule "ramp", lam is zero for the first `ramp[0]` of the training,
  then such that the threshold, below which a weight of u is zero, rises linearly to
  `threshold` at `ramp[1]`.

  Attributes:
    data: which set of images.
    penalty: of the dense layer's weights; "none" trains the dense network.
    a: the parameter of transformed l1; smaller is nearer to l0.
    method: "rvsm", or "sgd" on the loss with the penalty added to it.
    lam_schedule: a ramp of the threshold, or a constant lam as in the paper.
    lam: weight of the penalty if it is constant; the paper has 0.0005.
    beta: stiffness of the pull between w and u; the paper has 0.1.
    threshold: where the ramp ends.
    ramp: where it starts and ends, as shares of the training.
    overwrite: after each epoch replace w by u, as the authors' code does.
    epochs: passes over the training images.
    batch_size: images per step.
    learning_rate: its largest value.
    schedule: of the learning rate; constant after a rise over an eighth.
    momentum: of SGD.
    ink: value of a pixel with ink.
    dense_std: of the dense layer's initial weights; He's is 0.019.
    train_size: use only so many training images; 0 uses all.
    validation_size: hold out so many of them, and report on them.
    shift: in training, move images by up to so many pixels, at random.
    seed: of weights, order of images, and shifts.
    images: your own pictures: a folder with `train/<class>/*`, `test/<class>/*`.
    shaky_font: for alphabets, a font file for the shaky letters.
    classes: names of the classes of `images`; found there.
    digest: of the contents of `images` or `shaky_font`; found there.
  """

  data: Data = "planar_shapes"
  penalty: PenaltyName = "l0"
  a: float = 1.0
  method: Literal["rvsm", "sgd"] = "rvsm"
  lam_schedule: Literal["ramp", "constant"] = "ramp"
  lam: float | None = None
  beta: float = 4.0
  threshold: float = 0.045
  ramp: tuple[float, float] = (0.3, 0.6)
  overwrite: bool = False
  epochs: int = 10
  batch_size: int = 32
  learning_rate: float = 0.01
  schedule: Literal["one_cycle", "constant"] = "one_cycle"
  momentum: float = 0.9
  ink: float = 5.0
  dense_std: float | None = None
  train_size: int = 0
  validation_size: int = 0
  shift: int = 0
  seed: int = 0
  images: str | None = None
  shaky_font: str | None = None
  classes: tyro.conf.Suppress[tuple[str, str] | None] = None
  digest: tyro.conf.Suppress[str | None] = None

  def __post_init__(self) -> None:
    if self.images is not None:
      object.__setattr__(self, "data", "images")
    elif self.data == "images":
      raise ValueError("data images needs a folder: pass --images DIR.")
    if self.shaky_font is not None and self.data != "alphabets":
      raise ValueError(f"shaky_font is for alphabets, not for {self.data}.")
    for name in ("epochs", "batch_size", "learning_rate", "ink", "beta", "a"):
      self._require(name, "be positive", lambda value: value > 0)
    for name in ("threshold", "train_size", "validation_size", "shift", "seed"):
      self._require(name, "not be negative", lambda value: value >= 0)
    if not 0 <= self.ramp[0] < self.ramp[1] <= 1:
      raise ValueError(f"ramp must be two shares, 0 <= start < end <= 1: {self.ramp}.")
    if self.overwrite and not self.splits:
      raise ValueError("overwrite replaces w by u: it needs method rvsm and a penalty.")
    if (self.lam_schedule == "constant") != (self.lam is not None):
      raise ValueError(
        f"lam_schedule {self.lam_schedule} with lam {self.lam}: a constant lam needs a"
        f" value, such as the paper's {PAPER_LAM}, and a ramp takes none."
      )
    if self.method == "sgd" and (self.lam is None) != (self.penalty == "none"):
      raise ValueError(
        "method sgd adds lam times the penalty to the loss: pass --lam-schedule"
        f" constant --lam {PAPER_LAM} with a penalty, and neither without."
      )

  def _require(self, name: str, what: str, holds: Callable[[Any], bool]) -> None:
    value = getattr(self, name)
    if not isinstance(value, jax.core.Tracer) and not holds(value):
      raise ValueError(f"{name} must {what}, got {value!r}.")

  @property
  def name(self) -> str:
    """Names files; those who differ in it are different trainings."""
    penalty = f"{self.penalty}-a{self.a:g}" if self.has_a else self.penalty
    parts = [self.source, penalty]
    if self.penalty != "none":
      parts += [self.method, "ramped" if self.lam is None else f"lam{self.lam:g}"]
    parts += ["overwritten"] if self.overwrite else []
    parts += ["constant"] if self.schedule == "constant" else []
    parts += [f"shift{self.shift}"] if self.shift else []
    return "-".join([*parts, f"seed{self.seed}"])

  @property
  def source(self) -> str:
    """Names the images; the user's own by their folder."""
    if self.images is not None:
      return f"images-{pathlib.Path(self.images).name}"
    if self.shaky_font is not None:
      return f"{self.data}-font-{pathlib.Path(self.shaky_font).stem}"
    return self.data

  @property
  def class_names(self) -> tuple[str, str]:
    """What the labels 0 and 1 stand for."""
    return self.classes or ("steady hand", "shaky hand")

  @property
  def has_a(self) -> bool:
    """Whether the penalty has the parameter a."""
    return self.penalty == "transformed_l1"

  @property
  def splits(self) -> bool:
    """Whether there is a u."""
    return self.method == "rvsm" and self.penalty != "none"


def penalty(config: Config) -> rvsm_jax.Penalty:
  """The penalty of a configuration that has one."""
  if config.penalty == "none":
    raise ValueError("The configuration has no penalty.")
  if config.has_a:
    return rvsm_jax.transformed_l1(config.a)
  return rvsm_jax.l0() if config.penalty == "l0" else rvsm_jax.l1()


def lam_schedule(config: Config, steps: int) -> optax.ScalarOrSchedule:
  """lam, or the ramp that stands in for it, over `steps` updates."""
  if config.lam is not None:
    return config.lam
  start, end = config.ramp
  threshold = optax.linear_schedule(
    0.0, config.threshold, round((end - start) * steps), round(start * steps)
  )
  chosen = penalty(config)
  return lambda count: (
    config.beta * rvsm_jax.step_for_threshold(chosen, threshold(count))
  )


def learning_rate_schedule(config: Config, steps: int) -> optax.Schedule:
  """The learning rate over `steps` updates."""
  peak = config.learning_rate
  if config.schedule == "one_cycle":
    return optax.cosine_onecycle_schedule(steps, peak)
  return optax.warmup_constant_schedule(peak / 25, peak, steps // 8)


def optimizer(config: Config, steps: int) -> optax.GradientTransformationExtraArgs:
  """SGD with momentum, and what makes it sparse."""
  learning_rate = learning_rate_schedule(config, steps)
  sgd = optax.sgd(learning_rate, config.momentum)
  if config.penalty == "none":
    return optax.chain(sgd)
  if config.method == "sgd":
    return optax.chain(
      rvsm_jax.add_penalty_gradient(penalty(config), config.lam, mask=SPARSE), sgd
    )
  return optax.chain(
    sgd,
    rvsm_jax.rvsm(
      learning_rate,
      penalty(config),
      lam=lam_schedule(config, steps),
      beta=config.beta,
      mask=SPARSE,
    ),
  )
