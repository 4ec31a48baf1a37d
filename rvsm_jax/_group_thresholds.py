"""Norms of groups and their proximal maps, as functions."""

from collections.abc import Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rvsm_jax import _thresholds, _validate

Groups = str | Sequence[int]


def group_axes(x: jax.Array, groups: Groups) -> tuple[int, ...]:
  """The axes of `x` that are summed over for each way to state `groups`.

  Raises:
    ValueError: if `x` has no such axis, or `groups` is none of `"out"`, `"in"`
      or a sequence of axes.
  """
  if isinstance(groups, str):
    if groups not in ("out", "in"):
      raise ValueError(
        f'groups must be "out", "in" or a tuple of axes, got {groups!r}.'
      )
    kept = {"out": 1, "in": 2}[groups]
    if x.ndim < kept:
      raise ValueError(
        f"groups={groups!r} needs an array of at least {kept} axes, got shape"
        f" {x.shape}: mask such leaves out, or pass a tuple of axes."
      )
    return tuple(axis for axis in range(x.ndim) if axis != x.ndim - kept)
  axes = tuple(groups)
  inside = all(-x.ndim <= axis < x.ndim for axis in axes)
  if not inside or len({axis % x.ndim for axis in axes}) < len(axes):
    raise ValueError(
      f"groups={groups!r} must name distinct axes of an array of shape {x.shape}:"
      " mask such leaves out, or pass other axes."
    )
  return tuple(axis % x.ndim for axis in axes)


def group_scale(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """A positive scale per group, by which squares neither over- nor underflow."""
  scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axes, keepdims=True))
  normal = (scale >= jnp.finfo(x.dtype).tiny) & jnp.isfinite(scale)
  return jnp.where(normal, scale, 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def group_norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """l2 norm over `axes`, which are kept; its gradient at zero is zero."""
  scale = group_scale(x, axes)
  squares = jnp.sum(jnp.square(x / scale), axis=axes, keepdims=True)
  return scale * jnp.sqrt(squares)


@group_norm.defjvp
def _group_norm_jvp(axes: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple:
  (x,), (dx,) = primals, tangents
  norm = group_norm(x, axes)
  slope = jnp.sum(_unit(x, norm) * dx, axis=axes, keepdims=True)
  return norm, slope


def _unit(x: jax.Array, norm: jax.Array) -> jax.Array:
  return x / jnp.where(norm > 0, norm, 1)


def per_group(name: str, value: ArrayLike, x: jax.Array, axes: tuple[int, ...]) -> Any:
  """`value`, a number or one per group, with the axes of `x`.

  Raises:
    ValueError: if it is neither.
  """
  value = jnp.asarray(value).astype(x.dtype)
  shape = tuple(n for axis, n in enumerate(x.shape) if axis not in axes)
  if not _thresholds.broadcasts_to(value.shape, shape):
    raise ValueError(
      f"{name} of shape {value.shape} must be a scalar or broadcast to one value"
      f" per group, shape {shape}."
    )
  return jnp.expand_dims(jnp.broadcast_to(value, shape), axes)


def _wide(
  x: ArrayLike, gamma: ArrayLike, weights: ArrayLike, groups: Groups
) -> tuple[jax.Array, jax.Array, tuple[int, ...]]:
  """x and the weights of its groups to compute with, and the groups' axes."""
  x = _validate.float_array("x", x)
  _validate.check_nonnegative("gamma (the step)", gamma)
  axes = group_axes(x, groups)
  z = x.astype(_validate.compute_dtype(x.dtype))
  return z, per_group("weights", weights, z, axes), axes


def block_soft_threshold(
  x: ArrayLike, gamma: ArrayLike, groups: Groups = "out"
) -> jax.Array:
  r"""Sends whole groups to zero: the proximal map of the sum of the groups' l2 norms.

  .. math::
    u_g = \max(1 - \gamma / \|x_g\|_2, 0) \; x_g

  A group of zeros stays zero, and so does its gradient. With one step per entry this is
  the map in a diagonal metric,

  .. math::
    \arg\min_u \sum_g \|u_g\|_2 + \sum_i (u_i - x_i)^2 / (2 \gamma_i)

  where a group is zero if :math:`\|x_g / \gamma_g\|_2 \le 1`, and otherwise
  :math:`u_i = x_i / (1 + \gamma_i / t)` with t its norm, which is found to rounding by
  Newton's method.

  Args:
    x: an array of floating-point numbers.
    gamma: step, `>= 0`: a scalar, one value per group, or an array of as many axes as
      `x` that broadcasts to it.
    groups: `"out"`, one group per output neuron or filter (the last axis of a
      Flax kernel), `"in"`, one per input neuron or channel (the axis before it),
      or the tuple of the axes to sum over.

  Returns:
    An array of the shape and dtype of `x`.

  Raises:
    ValueError: if `x` has no such axes, or `gamma` is negative.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.block_soft_threshold(jnp.array([[3.0, 0.1], [4.0, 0.2]]), 1.0))
    [[2.4 0. ]
     [3.2 0. ]]
  """
  return weighted_block_soft_threshold(x, gamma, 1.0, groups)


def weighted_block_soft_threshold(
  x: ArrayLike, gamma: ArrayLike, weights: ArrayLike, groups: Groups
) -> jax.Array:
  """Block soft thresholding by `gamma * weights`, with one weight or one per group."""
  x = _validate.float_array("x", x)
  axes = group_axes(x, groups)
  if not axes or not _thresholds.is_per_entry(jnp.asarray(gamma), x):
    return times_share(x, block_share(x, gamma, weights, groups))
  z, weights, axes = _wide(x, gamma, weights, groups)
  gamma = jnp.asarray(gamma).astype(z.dtype)
  out = shrink_groups_in_metric(z, gamma * weights, axes)
  return jnp.where(jnp.isfinite(x), out.astype(x.dtype), x)


def block_share(
  x: ArrayLike, gamma: ArrayLike, weights: ArrayLike, groups: Groups
) -> jax.Array:
  """The factor by which block soft thresholding shrinks each group, on its axes."""
  z, weights, axes = _wide(x, gamma, weights, groups)
  gamma = per_group("gamma (the step)", gamma, z, axes)
  return _group_share(z, gamma * weights, axes)


def times_share(x: jax.Array, share: jax.Array) -> jax.Array:
  """The groups of x times their factors; what is not finite stays what it is."""
  return jnp.where(jnp.isfinite(x), (x.astype(share.dtype) * share).astype(x.dtype), x)


def is_dropped(
  x: ArrayLike, gamma: ArrayLike, weights: ArrayLike, groups: Groups
) -> jax.Array:
  """Where the proximal map of the number of groups that are not zero is zero."""
  z, weights, axes = _wide(x, gamma, weights, groups)
  gamma = jnp.asarray(gamma).astype(z.dtype)
  if not _thresholds.is_per_entry(gamma, z):
    gamma = per_group("gamma (the step)", gamma, z, axes)
  # In units of the threshold: no square over- or underflows where it counts.
  unit = jnp.sqrt(2 * gamma) * jnp.sqrt(weights)
  scale = 1 / _normal(unit)
  total = jnp.sum(jnp.square(z * scale), axis=axes, keepdims=True)
  # Written as in `hard_threshold`, for subnormal numbers; NaN stays too.
  return (total <= 1) & (unit > 0)


def _normal(x: jax.Array) -> jax.Array:
  """x, moved so far that neither it nor its inverse over- or underflows."""
  tiny = jnp.finfo(x.dtype).tiny
  return jnp.clip(x, tiny, 1 / tiny)


def shrink_groups(x: jax.Array, gamma: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Moves the norm of each group by -gamma, at most to 0; gamma may be negative."""
  return x * _group_share(x, gamma, axes)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _group_share(x: jax.Array, gamma: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """The factor of each group by which its norm moves by -gamma, at least 0.

  The norms are taken in units of gamma, so that no pass for a scale is needed: what
  overflows has a share of 1, and what vanishes one of 0, to rounding.
  """
  scale = 1 / _normal(jnp.abs(gamma))
  norm = jnp.sqrt(jnp.sum(jnp.square(x * scale), axis=axes, keepdims=True))
  return _kept_share(norm, gamma * scale)


@_group_share.defjvp
def _group_share_jvp(axes: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple:
  x, gamma = primals
  dx, dgamma = tangents
  # By the norm, whose own derivative is right at zero, for derivatives of this one.
  norm = group_norm(x, axes)
  share = _kept_share(norm, gamma)
  along = jnp.sum(_unit(x, norm) * dx, axis=axes, keepdims=True)
  change = _unit((1 - share) * along - dgamma, norm)
  return _group_share(x, gamma, axes), jnp.where(share != 0, change, 0)


def _kept_share(norm: jax.Array, gamma: jax.Array) -> jax.Array:
  """1 - gamma / norm, but at least 0; 1 for infinite groups, and for gamma = 0."""
  usable = (norm > gamma) & (norm > 0) & jnp.isfinite(norm)
  share = (norm - gamma) / jnp.where(usable, norm, 1)
  whole = (gamma == 0) | (jnp.isinf(norm) & (norm > gamma))
  return jnp.where(usable & (gamma != 0), share, jnp.where(whole, 1.0, 0.0))


# Bounds a loop that ends by itself: after 3 to 6 steps in practice, after 21 in the
# worst case known, steps spread evenly over 30 decades within one group.
_NEWTON_STEPS = 64


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def shrink_groups_in_metric(
  x: jax.Array, gamma: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
  """Proximal map of the groups' norms in the metric of `gamma`, of the shape of x."""
  return x * _metric_share(_metric_norm(x, gamma, axes), gamma)


@shrink_groups_in_metric.defjvp
def _shrink_groups_in_metric_jvp(
  axes: tuple[int, ...], primals: tuple, tangents: tuple
) -> tuple:
  x, gamma = primals
  norm, dnorm = jax.jvp(lambda x, g: _metric_norm(x, g, axes), primals, tangents)
  share, unit = _metric_share(norm, gamma), _metric_unit(x, norm, gamma)
  turned = share * (tangents[0] - unit * tangents[1])
  return x * share, turned + (1 - share) * unit * dnorm


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _metric_norm(x: jax.Array, gamma: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  r"""Norm t of each group of the proximal map, in the metric of `gamma`.

  It is the root of :math:`\|q(t)\|_2 = 1` for :math:`q_i(t) = x_i / (t + \gamma_i)`,
  or 0 if there is none. As :math:`1/\|q\|_2` is increasing and concave, Newton's
  method for it climbs to the root from a lower bound, where no :math:`q_i` exceeds 1.
  """
  total = functools.partial(jnp.sum, axis=axes, keepdims=True)
  largest = functools.partial(jnp.max, axis=axes, keepdims=True)
  scale = group_scale(x, axes)
  # Of the numbers as they are: XLA may take the scale out of a ratio of ratios.
  ratio = jnp.where(x != 0, x / gamma, 0)
  positive = total(jnp.square(ratio)) > 1
  size, gamma = jnp.abs(x) / scale, gamma / scale
  high = jnp.sqrt(total(jnp.square(size)))
  low = jnp.maximum(largest(size - gamma), high - largest(gamma))

  def climb(carry: tuple) -> tuple:
    t, _, count = carry
    stretch = jnp.where(size > 0, t + gamma, 1)
    q = size / stretch
    norm, slope = jnp.sqrt(total(q * q)), total(q * (q / stretch))
    rise = (norm - 1) * (norm * norm / jnp.where(slope > 0, slope, 1))
    higher = jnp.minimum(jnp.where(norm > 1, t + rise, t), high)
    return higher, jnp.any(higher > t), count + 1

  t, _, _ = jax.lax.while_loop(
    lambda carry: carry[1] & (carry[2] < _NEWTON_STEPS),
    climb,
    (jnp.maximum(low, 0), jnp.array(True), 0),
  )
  return scale * jnp.where(jnp.isinf(high), high, jnp.where(positive, t, 0))


@_metric_norm.defjvp
def _metric_norm_jvp(axes: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple:
  x, gamma = primals
  norm = _metric_norm(x, gamma, axes)
  unit = _metric_unit(x, norm, gamma)
  weight = unit * _metric_share(norm, gamma)
  slope = jnp.sum(weight * unit, axis=axes, keepdims=True)
  change = jnp.sum(
    weight * (tangents[0] - unit * tangents[1]), axis=axes, keepdims=True
  )
  return norm, jnp.where(slope > 0, change / jnp.where(slope > 0, slope, 1), 0)


def _metric_share(norm: jax.Array, gamma: jax.Array) -> jax.Array:
  """The factor norm / (norm + gamma) of each entry; 1 where gamma is no step at all."""
  whole = (norm + gamma == 0) | jnp.isinf(norm)
  return jnp.where(whole, 1, norm / jnp.where(whole, 1, norm + gamma))


def _metric_unit(x: jax.Array, norm: jax.Array, gamma: jax.Array) -> jax.Array:
  """The direction of each group of the proximal map, a vector of length 1."""
  stretch = norm + gamma
  return x / jnp.where(stretch > 0, stretch, 1)
