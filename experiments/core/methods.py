"""Ways to a share of zeros that several experiments compare."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import rvsm_jax

# A ramp begins, and, where that is not searched, ends at these shares of a training.
_BEGIN, END = 0.1, 0.5


class Setting(NamedTuple):
  """What an optimizer depends on, besides its method; numbers may be traced.

  Attributes:
    rate: the schedule of the learning rate.
    momentum: of SGD, Nesterov's.
    steps: updates of the training.
    share: of zeros that is wanted.
    value: of the hyperparameter of the method.
    weight_decay: of all parameters; of SGD in the gradient, ahead of the momentum.
    adam: whether the optimizer is AdamW instead.
  """

  rate: optax.Schedule
  momentum: float
  steps: int
  share: Any = 0.0
  value: Any = 0.0
  weight_decay: float = 0.0
  adam: bool = False

  @property
  def optimizer(self) -> optax.GradientTransformation:
    """The optimizer of all methods."""
    if self.adam:
      return optax.adamw(self.rate, weight_decay=self.weight_decay)
    sgd = optax.sgd(self.rate, self.momentum, nesterov=True)
    if not self.weight_decay:
      return sgd
    return optax.chain(optax.add_decayed_weights(self.weight_decay), sgd)

  @property
  def pull(self) -> optax.Schedule:
    """Beta such that beta times the learning rate is the value of the method."""
    return lambda count: self.value / self.rate(count)

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
    target: Callable[[jax.Array], rvsm_jax.Penalty],
    end: Any,
  ) -> optax.GradientTransformation:
    """A transformation with a penalty whose share of zeros rises as the ramp."""

    @optax.inject_hyperparams
    def at(sparsity: jax.Array) -> optax.GradientTransformation:
      return make(target(sparsity))

    return at(self.ramp(end))

  def by_lam(
    self, make: Callable[[jax.Array], optax.GradientTransformation], end: Any
  ) -> optax.GradientTransformation:
    """A transformation whose lam is moved until there are as many zeros."""
    return rvsm_jax.target_sparsity(make, self.ramp(end), mask=rvsm_jax.kernels)


Make = Callable[[Setting], optax.GradientTransformation]


def pruning(scope: Any) -> Make:
  """Gradual magnitude pruning; the value is the end of the ramp."""
  return lambda s: optax.chain(
    s.optimizer, rvsm_jax.magnitude_pruning(s.ramp(s.value), scope=scope)
  )


def rvsm(penalty: rvsm_jax.Penalty) -> Make:
  """RVSM, its lam found by the share; the value is beta times the learning rate."""

  def make(s: Setting) -> optax.GradientTransformation:
    # lam times beta, so that lam alone is the step of the prox.
    split = lambda lam: rvsm_jax.rvsm(  # noqa: E731
      s.rate,
      penalty,
      lam=lambda n: lam * s.pull(n),
      beta=s.pull,
      mask=rvsm_jax.kernels,
    )
    return optax.chain(s.optimizer, s.by_lam(split, END))

  return make


def by_rank(scope: Any) -> Callable[[Any], rvsm_jax.Penalty]:
  """From a share of zeros to the penalty that keeps the largest entries."""
  return functools.partial(rvsm_jax.cardinality, scope=scope)


def straight_through(
  target: Callable[[Any], rvsm_jax.Penalty], mask: Any = rvsm_jax.kernels
) -> Make:
  """With a penalty for each share; the value is the end of the ramp."""
  return lambda s: s.by_share(
    lambda penalty: rvsm_jax.straight_through(
      s.optimizer, penalty, step=1.0, mask=mask
    ),
    *(target, s.value),
  )


def ramped(
  rate: optax.Schedule,
  steps: int,
  penalty: rvsm_jax.Penalty,
  lam: Any,
  beta: float | None = None,
) -> optax.GradientTransformation:
  """RVSM, or without a beta the proximal step; lam rises until half of the steps."""
  options: dict[str, Any] = {
    "lam": optax.linear_schedule(0.0, lam, steps // 2),
    "momentum": 0.9,
    "mask": rvsm_jax.kernels,
  }
  if beta is None:
    return rvsm_jax.proximal_sgd(rate, penalty, **options)
  return rvsm_jax.rvsm_sgd(rate, penalty, beta=beta, **options)


def sparsify(s: Setting) -> optax.GradientTransformation:
  """`rvsm_jax.sparsify` as it is, which has no value to choose."""
  return rvsm_jax.sparsify(s.optimizer, s.share, steps=s.steps)
