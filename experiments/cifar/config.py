"""The rows of the tables, their sizes, and their optimizers."""

import dataclasses
import functools
from typing import Literal

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from experiments.core import methods
from experiments.networks import cifar
import rvsm_jax
from rvsm_jax import compaction

# Dinh & Xin: divided by 10 at epochs 80, 120 and 160 of 200.
MILESTONES = (0.4, 0.6, 0.8)
TARGETS = (0.90, 0.95, 0.98)
# Beta times the learning rate of RVSM at a target sparsity: what the frontier's search
# on DIGITS and PENDIGITS likes best. The ramp is the same for all methods.
PULL = 0.3
SMOOTHING = 0.1

Network = Literal["vgg16", "resnet18"]
Method = Literal[
  "sgd", "rvsm", "admm", "pruning", "straight_through", "sparsify", "units"
]


@dataclasses.dataclass(frozen=True)
class Row:
  """What a row of a table is, besides its size.

  Attributes:
    name: names files.
    network: which.
    method: "sgd", the dense network; "rvsm"; "admm"; "pruning", gradual magnitude
      pruning; "straight_through"; "sparsify"; "units", of which whole channels die.
    penalty: of RVSM; the other methods cut by rank.
    lam: weight of the penalty, unless it is found by the sparsity.
    beta: stiffness of the pull of RVSM, likewise.
    rho: stiffness of ADMM.
    sparsity: target; for ADMM that of every kernel, for others of all together.
    value: what else a method has at a target sparsity: see `methods`.
  """

  name: str
  network: Network
  method: Method = "rvsm"
  penalty: Literal["l0", "l1", "transformed_l1"] = "l0"
  lam: float = 0.0
  beta: float = 0.0
  rho: float = 0.0
  sparsity: float = 0.0
  value: float = 0.0

  @property
  def splits(self) -> bool:
    """Whether there is a u."""
    return self.method in ("rvsm", "admm")

  @property
  def title(self) -> str:
    """How tables and figures call it."""
    match self.method:
      case "sgd":
        return "dense, SGD"
      case "admm":
        return f"ADMM, {self.sparsity:.0%}"
      case "rvsm" if not self.sparsity:
        return f"RVSM, {'TL1, a = 1' if self.penalty[0] == 't' else self.penalty}"
      case _:
        return f"{TITLES[self.method]}, {percent(self.sparsity)}"


TITLES = {
  "pruning": "magnitude pruning",
  "rvsm": "RVSM, l0",
  "straight_through": "straight-through, by rank",
  "sparsify": "sparsify",
}


def percent(share: float) -> str:
  """A share as titles have it."""
  return f"{100 * share:.4g}%"


def target_name(network: str, method: str, share: float) -> str:
  """Names the row of a method at a target sparsity."""
  return f"{network}-{method.replace('_', '-')}{100 * share:.0f}"


def _target(network: Network, method: Method, share: float) -> Row:
  value = {"rvsm": PULL, "sparsify": 0.0}.get(method, methods.END)
  name = target_name(network, method, share)
  return Row(name, network, method, sparsity=share, value=value)


def _beyond(network: Network) -> tuple[Row, ...]:
  return tuple(
    _target(network, method, share)
    for share in TARGETS
    for method in ("pruning", "rvsm", "straight_through", "sparsify")
  )


TABLES: dict[str, tuple[Row, ...]] = {
  "1": (
    Row("vgg16-base", "vgg16", "sgd"),
    Row("vgg16-l1", "vgg16", penalty="l1", lam=1e-5, beta=1e-2),
    Row("vgg16-tl1", "vgg16", penalty="transformed_l1", lam=1e-5, beta=1e-2),
    Row("vgg16-l0", "vgg16", penalty="l0", lam=1e-5, beta=1e-2),
    _target("vgg16", "rvsm", 0.8689),
  ),
  "2": (
    Row("resnet18-sgd", "resnet18", "sgd"),
    Row("resnet18-admm", "resnet18", "admm", rho=1e-2, sparsity=0.6),
    Row("resnet18-l0", "resnet18", penalty="l0", lam=1e-6, beta=8e-2),
    _target("resnet18", "rvsm", 0.9370),
  ),
  "beyond": (*_beyond("vgg16"), *_beyond("resnet18")),
  # For `experiments compaction trained`.
  "units": (_target("resnet18", "units", 0.5),),
}
ROWS = {row.name: row for rows in TABLES.values() for row in rows}
# By their worth: what a training that is cut short should have.
ORDER = (
  *("vgg16-base", "vgg16-sparsify95", "vgg16-pruning95", "vgg16-straight-through95"),
  *("vgg16-rvsm95", "vgg16-l0", "vgg16-rvsm87"),
  *(
    row.name
    for share in (0.98, 0.90)
    for row in _beyond("vgg16")
    if row.sparsity == share
  ),
  *("resnet18-sgd", "resnet18-l0", "resnet18-rvsm94", "resnet18-admm"),
  *("vgg16-tl1", "vgg16-l1"),
  *(row.name for row in _beyond("resnet18")),
  *(row.name for row in TABLES["units"]),
)

# Accuracy and sparsity as printed, in per cent.
PAPER = {
  "vgg16-base": (93.82, 0.0),
  "vgg16-l1": (93.7, 35.68),
  "vgg16-tl1": (93.07, 63.34),
  "vgg16-l0": (92.54, 86.89),
  "resnet18-sgd": (95.07, 0.0),
  "resnet18-admm": (94.84, 47.08),
  "resnet18-l0": (94.89, 93.70),
}


@dataclasses.dataclass(frozen=True)
class Settings:
  """How large a training is, and what all rows have in common.

  Attributes:
    epochs: passes over the training images.
    width: factor of the number of channels of the networks.
    batch_size: images per step; those left over at the end of an epoch are unused.
    train_size: use only so many training images; 0 uses all.
    test_size: use only so many test images; 0 uses all.
    recipe: "paper" divides the learning rate by 10 after 40%, 60% and 80% of the
      training; "fast" is one cycle up to it and down to zero, for few epochs, with
      labels smoothed by `SMOOTHING`.
    learning_rate: of batches of 128, and in proportion of others.
    momentum: Nesterov's.
    weight_decay: of all parameters, in the gradient, ahead of the momentum.
    precision: dtype of the computation; parameters are float32 either way.
    overwrite_w_each_epoch: at the end of every epoch replace w by u and restart the
      momentum, as the authors' released code does, and their Algorithm 1 does not.
    seed: of the initial weights, the order of the images, and their augmentation.
  """

  epochs: int = 200
  width: float = 1.0
  batch_size: int = 128
  train_size: int = 0
  test_size: int = 0
  recipe: Literal["paper", "fast"] = "paper"
  learning_rate: float = 0.1
  momentum: float = 0.9
  weight_decay: float = 5e-4
  precision: Literal["float32", "bfloat16"] = "float32"
  overwrite_w_each_epoch: bool = False
  seed: int = 0

  def __post_init__(self) -> None:
    for name in ("epochs", "width", "batch_size", "learning_rate"):
      if not getattr(self, name) > 0:
        raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}.")
    for name in ("train_size", "test_size", "momentum", "weight_decay", "seed"):
      if not getattr(self, name) >= 0:
        raise ValueError(f"{name} must not be negative, got {getattr(self, name)!r}.")

  @property
  def changes(self) -> dict[str, float | str | bool]:
    """What differs from the full size of the paper and this module's other defaults."""
    return {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
      if getattr(self, field.name) != field.default
    }

  @property
  def reduced(self) -> bool:
    """Whether the training is smaller than the paper's."""
    sizes = ("epochs", "width", "batch_size", "train_size", "test_size")
    return not self.changes.keys().isdisjoint(sizes)

  @property
  def command(self) -> str:
    """Trains all rows with these settings."""
    flags = (
      f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
      for name, value in self.changes.items()
    )
    return " ".join(["python -m experiments cifar", *flags])

  @property
  def name(self) -> str:
    """Names the directory of the results; different settings have different ones."""
    parts = [f"{name}={value}" for name, value in self.changes.items()]
    return ",".join(parts).replace("_", "-") if parts else "full"


@dataclasses.dataclass(frozen=True)
class Config:
  """One training: all that determines its numbers."""

  row: Row
  settings: Settings


def penalty(row: Row) -> rvsm_jax.Penalty:
  """The penalty of a row."""
  match row.penalty:
    case "l0":
      return rvsm_jax.l0()
    case "l1":
      return rvsm_jax.l1()
    case "transformed_l1":
      return rvsm_jax.transformed_l1(1.0)


@functools.cache
def groups_of(network: Network, width: float) -> tuple[compaction.Group, ...]:
  """Channels, those that a residual connection joins as one."""
  model = cifar.create(network, width=width, seed=0)
  model.eval()
  graph, state = nnx.split(model)
  images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  run = lambda state, x: nnx.merge(graph, state)(x)  # noqa: E731
  return compaction.plan(run, state, images).groups


def schedule(settings: Settings, steps: int) -> optax.Schedule:
  """The learning rate."""
  peak = settings.learning_rate * settings.batch_size / 128
  if settings.recipe == "fast":
    return optax.cosine_onecycle_schedule(steps, peak)
  return optax.piecewise_constant_schedule(
    peak, {round(share * steps): 0.1 for share in MILESTONES}
  )


def optimizer(config: Config, steps: int) -> optax.GradientTransformationExtraArgs:
  """SGD as in the authors' code, and what makes the kernels sparse."""
  row, settings = config.row, config.settings
  rate = schedule(settings, steps)
  setting = methods.Setting(
    *(rate, settings.momentum, steps, row.sparsity, row.value),
    weight_decay=settings.weight_decay,
  )
  sgd, mask = setting.optimizer, rvsm_jax.kernels
  match row:
    case Row(method="sgd"):
      return sgd
    case Row(method="admm"):
      target = rvsm_jax.cardinality(row.sparsity)
      return optax.chain(sgd, rvsm_jax.admm(rate, target, rho=row.rho, mask=mask))
    case Row(method="pruning"):
      return methods.pruning("all")(setting)
    case Row(method="straight_through"):
      return methods.straight_through(methods.by_rank("all"))(setting)
    case Row(method="sparsify"):
      return methods.sparsify(setting)
    case Row(method="units"):
      groups = groups_of(row.network, settings.width)
      dead = functools.partial(compaction.unit_cardinality, groups)
      return methods.straight_through(dead, mask=None)(setting)
    case _ if row.sparsity:
      return methods.rvsm(penalty(row))(setting)
    case _:
      # "jacobi" is the order of Dinh & Xin's Algorithm 1.
      splitting = rvsm_jax.rvsm(
        rate,
        penalty(row),
        lam=row.lam,
        beta=row.beta,
        ordering="jacobi",
        mask=mask,
      )
      return optax.chain(sgd, splitting)
