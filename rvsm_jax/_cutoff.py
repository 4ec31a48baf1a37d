"""The threshold of a proximal map from its step, and the step from the threshold."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rvsm_jax import _penalty, _validate


def step_for_threshold(penalty: _penalty.Penalty, threshold: ArrayLike) -> jax.Array:
  r"""Turns a threshold for the weights into a step, which in RVSM is lam / beta.

  With this step, the proximal map sends magnitudes up to `threshold` to zero.

  A threshold is easier to choose than the weight of a penalty, because you can compare
  it with the weights. With :func:`rvsm` the step is :math:`\lambda / \beta`, so lam is
  `beta * step_for_threshold(penalty, threshold)`; the step of :func:`straight_through`
  is this number itself.

  Args:
    penalty: a penalty with a threshold: one of single weights, or one of your own that
      is summed over components, whose threshold is found by bisection on its `prox`.
      For :func:`group_lasso` and :func:`group_l0` it is the threshold of a group's
      norm. You can wrap any of them in :func:`scaled`.
    threshold: magnitude, `>= 0`: a number, an array or a tracer.

  Returns:
    The step, in float32 or better, up to rounding; infinite if no step has this
    threshold.

  Raises:
    TypeError: if `penalty` is not a penalty.
    ValueError: if the penalty has no threshold, or `threshold` is negative.

  Examples:
    >>> import optax
    >>> import rvsm_jax
    >>> print(rvsm_jax.step_for_threshold(rvsm_jax.l0(), 0.5))
    0.125
    >>> penalty, beta = rvsm_jax.transformed_l1(0.1), 0.5
    >>> ramp = optax.linear_schedule(0.0, 0.2, 1000)
    >>> def lam(count):
    ...   return beta * rvsm_jax.step_for_threshold(penalty, ramp(count))
    >>> tx = rvsm_jax.rvsm(0.1, penalty, lam=lam, beta=beta)
  """
  cutoff = _cutoff_of(penalty)
  _validate.check_nonnegative("threshold", threshold)
  return cutoff.to_step(_wide(threshold))


def threshold_for_step(penalty: _penalty.Penalty, step: ArrayLike) -> jax.Array:
  r"""Turns a step into a threshold: the largest magnitude that becomes zero.

  The inverse of :func:`step_for_threshold`. In :func:`rvsm`, weights up to
  `threshold_for_step(penalty, lam / beta)` have :math:`u = 0`.

  Args:
    penalty: see :func:`step_for_threshold`.
    step: `>= 0`: a number, an array or a tracer.

  Returns:
    The threshold, in float32 or better, up to rounding.

  Raises:
    TypeError: if `penalty` is not a penalty.
    ValueError: if the penalty has no threshold, or `step` is negative.

  Examples:
    >>> import rvsm_jax
    >>> print(rvsm_jax.threshold_for_step(rvsm_jax.l0(), 0.5))
    1.0
  """
  cutoff = _cutoff_of(penalty)
  _validate.check_nonnegative("step", step)
  return cutoff.of_step(_wide(step))


def _cutoff_of(penalty: _penalty.Penalty) -> _penalty.Cutoff:
  _penalty.check_penalty(penalty)
  if not isinstance(penalty.prox, _penalty.ProximalMap):
    return by_bisection(penalty.prox)
  if penalty.prox.cutoff is None:
    raise ValueError(
      f"penalty has no threshold, got {penalty!r}: what its proximal map sends to zero"
      " depends on other entries, or on no magnitude. Take a penalty of single weights"
      " or one of groups, group_lasso or group_l0."
    )
  return penalty.prox.cutoff


def _wide(x: ArrayLike) -> jax.Array:
  x = jnp.asarray(x)
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def by_bisection(prox: Callable[..., jax.Array]) -> _penalty.Cutoff:
  """The threshold of a map of `(x, step, *hyperparams)` that acts on components."""

  def of_step(step: jax.Array, *hyperparams: Any) -> jax.Array:
    def is_zero(x: jax.Array, step: jax.Array) -> jax.Array:
      return prox(x, step, *hyperparams) == 0

    return _last(is_zero, step)

  def to_step(threshold: jax.Array, *hyperparams: Any) -> jax.Array:
    def stays(step: jax.Array, x: jax.Array) -> jax.Array:
      return jnp.abs(prox(x, step, *hyperparams)) > 0

    # A threshold of zero needs no step.
    return jnp.where(threshold > 0, _last(stays, threshold), 0)

  return _penalty.Cutoff(of_step, to_step)


def _last(holds: Callable[..., jax.Array], at: jax.Array) -> jax.Array:
  """The largest x >= 0 for which `holds(x, at)`, which does up to there.

  Non-negative floating point numbers are ordered as their bits are, which are found
  one by one, the highest first.
  """
  width = jnp.finfo(at.dtype).bits
  integer = jnp.dtype(f"uint{width}")

  def one(at: jax.Array) -> jax.Array:
    def refine(i: jax.Array, bits: jax.Array) -> jax.Array:
      higher = bits | (jnp.ones((), integer) << (width - 2 - i).astype(integer))
      x = jax.lax.bitcast_convert_type(higher, at.dtype)
      return jnp.where(jnp.isfinite(x) & holds(x, at), higher, bits)

    bits = jax.lax.fori_loop(0, width - 1, refine, jnp.zeros((), integer))
    x = jax.lax.bitcast_convert_type(bits, at.dtype)
    return jnp.where(x == jnp.finfo(at.dtype).max, jnp.inf, x)

  return jnp.vectorize(one)(at)
