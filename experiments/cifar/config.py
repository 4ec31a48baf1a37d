"""The rows of the tables, their sizes, and their optimizers."""

import dataclasses
import math
from typing import Literal

import jax
import optax

import rvsm_jax

# Dinh & Xin: divided by 10 at epochs 80, 120 and 160 of 200.
MILESTONES = (0.4, 0.6, 0.8)
# Where the target sparsity starts to rise and is reached, as shares of the training:
# while the learning rate is highest, and the network can recover.
RAMP = (0.05, 0.35)
# At most how often: at full size, it rises every 156 updates.
PRUNINGS = 500
TARGETS = (0.90, 0.95, 0.98)
# Beta times the learning rate: what is pruned decays in some ten updates, at any
# learning rate, so that w meets u in the end. With a constant beta of 1 or 5 it does
# not in short trainings (measured on held-out training images).
TARGET_PULL = 0.1

Network = Literal["vgg16", "resnet18"]


@dataclasses.dataclass(frozen=True)
class Row:
  """What a row of a table is, besides its size.

  Attributes:
    name: names files.
    network: which.
    method: "sgd", the dense network; "rvsm"; "admm"; or "pruning", gradual magnitude
      pruning.
    penalty: of RVSM; ADMM and pruning have the cardinality. With "cardinality" the
      sparsity is ramped, as for pruning, in place of a constant lam, and beta is
      `TARGET_PULL` over the learning rate.
    lam: weight of the penalty.
    beta: stiffness of the pull of RVSM.
    rho: stiffness of ADMM.
    sparsity: target of the cardinality, for every kernel alike.
  """

  name: str
  network: Network
  method: Literal["sgd", "rvsm", "admm", "pruning"] = "rvsm"
  penalty: Literal["l0", "l1", "transformed_l1", "cardinality"] = "l0"
  lam: float = 0.0
  beta: float = 0.0
  rho: float = 0.0
  sparsity: float = 0.0

  @property
  def splits(self) -> bool:
    """Whether there is a u."""
    return self.method in ("rvsm", "admm")

  @property
  def title(self) -> str:
    """How tables and figures call it."""
    target = f"{self.sparsity:.0%}"
    match self.method:
      case "sgd":
        return "dense, SGD"
      case "admm":
        return f"ADMM, {target}"
      case "pruning":
        return f"gradual magnitude pruning, {target}"
      case _:
        names = {"transformed_l1": "TL1, a = 1", "cardinality": f"cardinality {target}"}
        return f"RVSM, {names.get(self.penalty, self.penalty)}"


def _beyond(network: Network) -> tuple[Row, ...]:
  rows = []
  for target in TARGETS:
    percent = round(100 * target)
    rows += [
      Row(
        f"{network}-cardinality{percent}",
        network,
        penalty="cardinality",
        sparsity=target,
      ),
      Row(f"{network}-pruning{percent}", network, "pruning", sparsity=target),
    ]
  return tuple(rows)


TABLES: dict[str, tuple[Row, ...]] = {
  "1": (
    Row("vgg16-base", "vgg16", "sgd"),
    Row("vgg16-l1", "vgg16", penalty="l1", lam=1e-5, beta=1e-2),
    Row("vgg16-tl1", "vgg16", penalty="transformed_l1", lam=1e-5, beta=1e-2),
    Row("vgg16-l0", "vgg16", penalty="l0", lam=1e-5, beta=1e-2),
  ),
  "2": (
    Row("resnet18-sgd", "resnet18", "sgd"),
    Row("resnet18-admm", "resnet18", "admm", rho=1e-2, sparsity=0.6),
    Row("resnet18-l0", "resnet18", penalty="l0", lam=1e-6, beta=8e-2),
  ),
  "beyond": (*_beyond("vgg16"), *_beyond("resnet18")),
}
ROWS = {row.name: row for rows in TABLES.values() for row in rows}

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
    learning_rate: of batches of 128, and in proportion of others; divided by 10
      after 40%, 60% and 80% of the training.
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
  """The penalty of a row with a constant lam."""
  match row.penalty:
    case "l0":
      return rvsm_jax.l0()
    case "l1":
      return rvsm_jax.l1()
    case "transformed_l1":
      return rvsm_jax.transformed_l1(1.0)
    case "cardinality":
      raise ValueError(f"{row.name} has a target sparsity instead of a lam.")


def ramp(target: float, steps: int) -> optax.Schedule:
  """The sparsity of Zhu & Gupta (2017) over the shares `RAMP` of all steps."""
  start, end = (round(share * steps) for share in RAMP)
  return rvsm_jax.sparsity_schedule(target, max(1, end - start), begin=start)


def optimizer(config: Config, steps: int) -> optax.GradientTransformationExtraArgs:
  """SGD as in the authors' code, and what makes the kernels sparse."""
  row, settings = config.row, config.settings
  rate = optax.piecewise_constant_schedule(
    settings.learning_rate * settings.batch_size / 128,
    {round(share * steps): 0.1 for share in MILESTONES},
  )
  sgd = optax.chain(
    optax.add_decayed_weights(settings.weight_decay),
    optax.sgd(rate, settings.momentum, nesterov=True),
  )
  sparsity = ramp(row.sparsity, steps)
  mask = rvsm_jax.kernels
  match row:
    case Row(method="sgd"):
      return sgd
    case Row(method="admm"):
      target = rvsm_jax.cardinality(row.sparsity)
      return optax.chain(sgd, rvsm_jax.admm(rate, target, rho=row.rho, mask=mask))
    case Row(method="pruning"):
      every = math.ceil(steps / PRUNINGS)
      prune = rvsm_jax.magnitude_pruning(sparsity, scope="leaf", every=every)
      return optax.chain(sgd, prune)
    case Row(penalty="cardinality"):

      @optax.inject_hyperparams
      def split(sparsity: jax.Array) -> optax.GradientTransformationExtraArgs:
        return rvsm_jax.rvsm(
          rate,
          rvsm_jax.cardinality(sparsity),
          lam=1.0,  # Every lam > 0 gives the same.
          beta=lambda count: TARGET_PULL / rate(count),
          ordering="jacobi",
          mask=mask,
        )

      return optax.chain(sgd, split(sparsity))
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
