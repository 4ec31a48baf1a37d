"""The tasks, the methods, and what of each is chosen on validation examples."""

from collections.abc import Callable
import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rvsm_jax

SHARES = (0.80, 0.90, 0.95, 0.98, 0.99)
# Where a ramp begins, as a share of the training.
_BEGIN = 0.1


@dataclasses.dataclass(frozen=True)
class Task:
  """A data set, its network, and how it is trained, the same by all methods.

  Attributes:
    name: of the data set.
    title: what tables call it.
    sizes: of the layers of a perceptron; or the channels of the convolutions of a CNN,
      each with pooling, and then the sizes of its two dense layers.
    scale: the largest value of an input.
    epochs: passes over the training examples.
    batch_size: examples per step.
    learning_rate: the peak of one cycle, of SGD with momentum.
    momentum: Nesterov's.
    network: which.
    train_size: only so many training examples, the first; 0 takes all.
  """

  name: str
  title: str
  sizes: tuple[int, ...]
  scale: float
  epochs: int
  batch_size: int
  learning_rate: float
  momentum: float = 0.9
  network: Literal["perceptron", "cnn"] = "perceptron"
  train_size: int = 0

  @property
  def at_once(self) -> bool:
    """Whether one program does all trainings: convolutions are slow that way."""
    return self.network == "perceptron"

  @property
  def described(self) -> str:
    """The network, for a sentence."""
    name = {"perceptron": "Perceptron", "cnn": "CNN"}[self.network]
    return f"{name} {'-'.join(map(str, self.sizes))}"


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
  )
}


class Setting(NamedTuple):
  """What an optimizer depends on, besides its method; numbers may be traced.

  Attributes:
    rate: the schedule of the learning rate.
    momentum: of SGD.
    steps: updates of the training.
    share: of zeros that is wanted.
    value: of the hyperparameter of the method.
  """

  rate: optax.Schedule
  momentum: float
  steps: int
  share: Any
  value: Any

  @property
  def sgd(self) -> optax.GradientTransformation:
    """The optimizer of all methods."""
    return optax.sgd(self.rate, self.momentum, nesterov=True)

  def ramp(self, end: Any) -> optax.Schedule:
    """The sparsity of Zhu & Gupta, from `_BEGIN` to `end`, shares of the training."""
    begin, length = _BEGIN * self.steps, (end - _BEGIN) * self.steps

    def schedule(count: jax.Array) -> jax.Array:
      progress = jnp.clip((count - begin) / length, 0.0, 1.0)
      return self.share * (1.0 - (1.0 - progress) ** 3)

    return schedule

  def by_share(
    self,
    make: Callable[[rvsm_jax.Penalty], optax.GradientTransformation],
    scope: Any,
    end: Any,
  ) -> optax.GradientTransformation:
    """A transformation with a `cardinality` whose share rises as the ramp."""

    @optax.inject_hyperparams
    def at(sparsity: jax.Array) -> optax.GradientTransformation:
      return make(rvsm_jax.cardinality(sparsity, scope=scope))

    return at(self.ramp(end))

  def by_lam(
    self, make: Callable[[jax.Array], optax.GradientTransformation], end: Any
  ) -> optax.GradientTransformation:
    """A transformation whose lam is moved until there are as many zeros."""
    return rvsm_jax.target_sparsity(make, self.ramp(end), mask=rvsm_jax.kernels)


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
  make: Callable[[Setting], optax.GradientTransformation]


_ENDS = (0.3, 0.5, 0.7, 0.85)
_PULLS = (0.03, 0.1, 0.3, 1.0)
_MASK: dict[str, Any] = {"mask": rvsm_jax.kernels}
# As DESIGN's recipe has it: half of the training for the ramp.
_END = 0.5


def _cut_and_tuned(s: Setting) -> optax.GradientTransformation:
  """One cut in mid-training; then the support is trained on."""
  share = lambda count: jnp.where(count >= s.value * s.steps, s.share, 0.0)  # noqa: E731
  return optax.chain(s.sgd, rvsm_jax.magnitude_pruning(share, every=1))


def _pruning(scope: Any) -> Callable[[Setting], optax.GradientTransformation]:
  return lambda s: optax.chain(
    s.sgd, rvsm_jax.magnitude_pruning(s.ramp(s.value), scope=scope)
  )


def _pull(s: Setting) -> Callable[[jax.Array], jax.Array]:
  """Beta such that beta times the learning rate is the value of the method."""
  return lambda count: s.value / s.rate(count)


def _rvsm_by_share(scope: Any) -> Callable[[Setting], optax.GradientTransformation]:
  def make(s: Setting) -> optax.GradientTransformation:
    split = lambda penalty: rvsm_jax.rvsm(  # noqa: E731
      s.rate, penalty, lam=1.0, beta=_pull(s), **_MASK
    )
    return optax.chain(s.sgd, s.by_share(split, scope, _END))

  return make


def _rvsm_by_lam(
  penalty: rvsm_jax.Penalty,
) -> Callable[[Setting], optax.GradientTransformation]:
  def make(s: Setting) -> optax.GradientTransformation:
    # lam times beta, so that lam alone is the step of the prox.
    split = lambda lam: rvsm_jax.rvsm(  # noqa: E731
      s.rate, penalty, lam=lambda n: lam * _pull(s)(n), beta=_pull(s), **_MASK
    )
    return optax.chain(s.sgd, s.by_lam(split, _END))

  return make


def _through_by_share(scope: Any) -> Callable[[Setting], optax.GradientTransformation]:
  return lambda s: s.by_share(
    lambda penalty: rvsm_jax.straight_through(s.sgd, penalty, step=1.0, **_MASK),
    scope,
    s.value,
  )


def _through_by_lam(
  penalty: rvsm_jax.Penalty,
) -> Callable[[Setting], optax.GradientTransformation]:
  return lambda s: s.by_lam(
    lambda lam: rvsm_jax.straight_through(s.sgd, penalty, step=lam, **_MASK), s.value
  )


def _proximal(s: Setting) -> optax.GradientTransformation:
  step = lambda lam: rvsm_jax.proximal(  # noqa: E731
    s.rate, rvsm_jax.transformed_l1(s.value), lam=lam, **_MASK
  )
  return optax.chain(s.sgd, s.by_lam(step, _END))


def _admm(s: Setting) -> optax.GradientTransformation:
  split = lambda penalty: rvsm_jax.admm(  # noqa: E731
    s.rate, penalty, rho=s.value, **_MASK
  )
  return optax.chain(s.sgd, s.by_share(split, "all", _END))


METHODS = {
  method.name: method
  for method in (
    Method("cut", "dense, cut once", "dense", "–", (0.0,), lambda s: s.sgd),
    Method("tuned", "cut once, fine-tuned", "pruning", "cut at", _ENDS, _cut_and_tuned),
    Method(
      *("pruning-leaf", "magnitude pruning, per layer", "pruning"),
      *("ramp until", _ENDS, _pruning("leaf")),
    ),
    Method(
      *("pruning-all", "magnitude pruning, one budget", "pruning"),
      *("ramp until", _ENDS, _pruning("all")),
    ),
    Method(
      *("rvsm-l0", "RVSM, l0", "ours", "pull", _PULLS),
      _rvsm_by_lam(rvsm_jax.l0()),
    ),
    Method(
      *("rvsm-tl1", "RVSM, TL1", "ours", "pull", _PULLS),
      _rvsm_by_lam(rvsm_jax.transformed_l1(0.1)),
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
      *("ramp until", _ENDS, _through_by_share("leaf")),
    ),
    Method(
      *("through-all", "straight-through, cardinality, one budget", "ours"),
      *("ramp until", _ENDS, _through_by_share("all")),
    ),
    Method(
      *("proximal-tl1", "proximal, TL1", "ours", "a", (0.01, 0.1, 1.0, 10.0)),
      _proximal,
    ),
    Method(
      *("sparsify", "sparsify, as it is", "ours", "–", (0.0,)),
      lambda s: rvsm_jax.sparsify(s.sgd, s.share, steps=s.steps),
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
