"""The tasks, the methods, and what of each is chosen on validation examples."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax.numpy as jnp
import optax

from experiments.core import methods
from experiments.core.methods import Make, Setting
from experiments.core.tasks import Task
import rvsm_jax

SHARES = (0.80, 0.90, 0.95, 0.98, 0.99)


TASKS = {
  task.name: task
  for task in (
    Task("digits", "DIGITS", (64, 300, 100, 10), 16.0, 60, 64, 0.1),
    Task("pendigits", "PENDIGITS", (16, 300, 100, 10), 100.0, 30, 64, 0.1),
    Task(
      *("fashion_mnist", "Fashion-MNIST", (16, 32, 64, 10), 255.0, 10, 64, 0.1),
      network="cnn",
      train_size=4000,
    ),
    Task(
      *("planar_shapes", "Planar shapes", (), 1.0, 6, 32, 0.01),
      network="curves",
      train_size=2000,
    ),
    Task(*("text", "Text", (160, 5, 640, 3), 1.0, 1, 8, 3e-3), network="transformer"),
  )
}


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to a sparse network.

  Attributes:
    name: names files.
    title: what tables call it.
    group: whose it is: "dense", "pruning", what others do, or "ours".
    hyper: what `values` are of.
    values: of the hyperparameter, of which one is chosen for each share of zeros; as
      many for every method that has one.
    make: from a setting to the optimizer.
  """

  name: str
  title: str
  group: str
  hyper: str
  values: tuple[float, ...]
  make: Make


_ENDS = (0.3, 0.5, 0.7, 0.85)
_PULLS = (0.03, 0.1, 0.3, 1.0)
_MASK: dict[str, Any] = {"mask": rvsm_jax.kernels}


def _cut_and_tuned(s: Setting) -> optax.GradientTransformation:
  """One cut in mid-training; then the support is trained on."""
  share = lambda count: jnp.where(count >= s.value * s.steps, s.share, 0.0)  # noqa: E731
  return optax.chain(s.optimizer, rvsm_jax.magnitude_pruning(share, every=1))


def _rvsm_by_share(scope: Any) -> Make:
  def make(s: Setting) -> optax.GradientTransformation:
    split = lambda penalty: rvsm_jax.rvsm(  # noqa: E731
      s.rate, penalty, lam=1.0, beta=s.pull, **_MASK
    )
    return optax.chain(
      s.optimizer, s.by_share(split, methods.by_rank(scope), methods.END)
    )

  return make


def _through_by_lam(penalty: rvsm_jax.Penalty) -> Make:
  return lambda s: s.by_lam(
    lambda lam: rvsm_jax.straight_through(s.optimizer, penalty, step=lam, **_MASK),
    s.value,
  )


def _proximal(s: Setting) -> optax.GradientTransformation:
  step = lambda lam: rvsm_jax.proximal(  # noqa: E731
    s.rate, rvsm_jax.transformed_l1(s.value), lam=lam, **_MASK
  )
  return optax.chain(s.optimizer, s.by_lam(step, methods.END))


def _admm(s: Setting) -> optax.GradientTransformation:
  split = lambda penalty: rvsm_jax.admm(  # noqa: E731
    s.rate, penalty, rho=s.value, **_MASK
  )
  return optax.chain(
    s.optimizer, s.by_share(split, methods.by_rank("all"), methods.END)
  )


METHODS = {
  method.name: method
  for method in (
    Method("cut", "dense, cut once", "dense", "–", (0.0,), lambda s: s.optimizer),
    Method("tuned", "cut once, fine-tuned", "pruning", "cut at", _ENDS, _cut_and_tuned),
    Method(
      *("pruning-leaf", "magnitude pruning, per layer", "pruning"),
      *("ramp until", _ENDS, methods.pruning("leaf")),
    ),
    Method(
      *("pruning-all", "magnitude pruning, one budget", "pruning"),
      *("ramp until", _ENDS, methods.pruning("all")),
    ),
    Method(
      *("rvsm-l0", "RVSM, l0", "ours", "pull", _PULLS),
      methods.rvsm(rvsm_jax.l0()),
    ),
    Method(
      *("rvsm-tl1", "RVSM, TL1", "ours", "pull", _PULLS),
      methods.rvsm(rvsm_jax.transformed_l1(0.1)),
    ),
    Method(
      *("rvsm-leaf", "RVSM, cardinality per layer", "ours", "pull", _PULLS),
      _rvsm_by_share("leaf"),
    ),
    Method(
      *("rvsm-all", "RVSM, cardinality, one budget", "ours", "pull", _PULLS),
      _rvsm_by_share("all"),
    ),
    Method(
      *("through-l0", "straight-through, l0", "ours", "ramp until", _ENDS),
      _through_by_lam(rvsm_jax.l0()),
    ),
    Method(
      *("through-tl1", "straight-through, TL1", "ours", "ramp until", _ENDS),
      _through_by_lam(rvsm_jax.transformed_l1(0.1)),
    ),
    Method(
      *("through-leaf", "straight-through, cardinality per layer", "ours"),
      *("ramp until", _ENDS, methods.straight_through(methods.by_rank("leaf"))),
    ),
    Method(
      *("through-all", "straight-through, cardinality, one budget", "ours"),
      *("ramp until", _ENDS, methods.straight_through(methods.by_rank("all"))),
    ),
    Method(
      *("proximal-tl1", "proximal, TL1", "ours", "a", (0.01, 0.1, 1.0, 10.0)),
      _proximal,
    ),
    Method(
      *("sparsify", "sparsify, as it is", "ours", "–", (0.0,)),
      methods.sparsify,
    ),
    Method("admm", "ADMM, one budget", "ours", "rho", (0.3, 1.0, 3.0, 10.0), _admm),
  )
}


@dataclasses.dataclass(frozen=True)
class Config:
  """What a task and a method are trained with: all that determines the numbers.

  Attributes:
    task: the data set and its training.
    method: the name of the method.
    values: of its hyperparameter.
    shares: of zeros.
    seeds: how many final trainings for each share; the search has the seed 0.
    validation_share: of the training examples, held out for the search.
  """

  task: Task
  method: str
  values: tuple[float, ...]
  shares: tuple[float, ...] = SHARES
  seeds: int = 5
  validation_share: float = 0.2


# For a network whose training takes minutes: the methods that matter, each with the
# value that the search chose most often on the small tasks at 95% and 98%.
_LARGE = {
  "cut": 0.0,
  "pruning-leaf": 0.5,
  "pruning-all": 0.7,
  "rvsm-l0": 0.3,
  "through-all": 0.5,
  "sparsify": 0.0,
}


def _searched(task: Task) -> bool:
  """Whether a training is short enough for a search of the hyperparameters."""
  return task.network in ("perceptron", "cnn")


def methods_of(task: Task) -> tuple[str, ...]:
  """The names of the methods that are compared on a task."""
  return tuple(METHODS if _searched(task) else _LARGE)


def config_of(task: Task, method: str) -> Config:
  """What a method is trained with on a task."""
  if _searched(task):
    return Config(task, method, METHODS[method].values)
  return Config(task, method, (_LARGE[method],), (0.9, 0.95, 0.98), seeds=2)


def score(task: Task, point: Mapping[str, Any]) -> float:
  """What is measured of a training, larger for a better one."""
  return -point["loss"] if task.in_nats else point["accuracy"]
