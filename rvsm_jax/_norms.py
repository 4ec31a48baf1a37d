"""Penalties of norms of a whole array, or of the matrix that it is."""

import jax
import jax.numpy as jnp

from rvsm_jax import _group_thresholds, _penalty, _thresholds


def l1_minus_l2() -> _penalty.Penalty:
  r"""Sparser than l1, on a whole array: the difference of its l1 and its l2 norm.

  .. math::
    P(x) = \|x\|_1 - \|x\|_2

  The prox is that of Lou & Yan (2018). Not separable: the step is a scalar.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.l1_minus_l2().prox(jnp.array([3.0, 0.5]), 1.0))
    [3. 0.]
  """

  def value(x: jax.Array) -> jax.Array:
    norm = _group_thresholds.group_norm(x, tuple(range(x.ndim)))
    return jnp.sum(_thresholds.magnitude(x)) - jnp.squeeze(norm)

  @_penalty.unsharded
  def prox(x: jax.Array, step: jax.Array) -> jax.Array:
    soft = x - jnp.clip(x, -step, step)
    grown = _group_thresholds.shrink_groups(soft, -step, tuple(range(x.ndim)))
    # No entry above the step: all but one of the largest entries vanish.
    size = _thresholds.magnitude(x)
    largest = jnp.arange(x.size).reshape(x.shape) == jnp.argmax(size)
    return jnp.where(jnp.max(size) > step, grown, jnp.where(largest, x, 0))

  return _penalty.Penalty(
    _penalty.wide_value(value), _penalty.whole_prox(prox, "l1_minus_l2")
  )


def nuclear() -> _penalty.Penalty:
  r"""Low rank in place of zeros: the nuclear norm, the sum of the singular values.

  .. math::
    P(X) = \sum_i \sigma_i(X), \qquad
    \mathrm{prox}_{\gamma P}(X) = U \max(\Sigma - \gamma, 0) V^T

  An array of more than two axes is taken as the matrix whose columns are its
  last axis (of a Flax kernel: one column per output).

  .. note::
    Avoid it for large matrices on a TPU: XLA takes more than four minutes to compile
    the singular values of a 4096 x 4096 matrix. Mask such leaves out, or use
    :func:`group_lasso`, which lowers the rank by whole rows or columns.

  Returns:
    The penalty. Both functions raise ValueError for arrays with fewer than two axes.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.nuclear().prox(jnp.diag(jnp.array([3.0, 0.5])), 1.0))
    [[2. 0.]
     [0. 0.]]
  """

  def matrix(x: jax.Array) -> jax.Array:
    if x.ndim < 2:
      raise ValueError(
        f"nuclear() needs an array of at least 2 axes, got shape {x.shape}: mask"
        " such leaves out."
      )
    return x.reshape(-1, x.shape[-1])

  def value(x: jax.Array) -> jax.Array:
    return _nuclear_norm(matrix(x))

  @_penalty.unsharded
  def prox(x: jax.Array, step: jax.Array) -> jax.Array:
    return _singular_value_threshold(matrix(x), step).reshape(x.shape)

  return _penalty.Penalty(
    _penalty.wide_value(value), _penalty.whole_prox(prox, "nuclear")
  )


@jax.custom_jvp
def _nuclear_norm(x: jax.Array) -> jax.Array:
  return jnp.sum(jnp.linalg.svd(x, compute_uv=False))


@_nuclear_norm.defjvp
def _nuclear_norm_jvp(primals: tuple, tangents: tuple) -> tuple:
  u, s, vt = jnp.linalg.svd(primals[0], full_matrices=False)
  used = s > s[0] * jnp.finfo(s.dtype).eps * max(primals[0].shape)
  return jnp.sum(s), jnp.sum((jnp.where(used, u, 0) @ vt) * tangents[0])


@jax.custom_jvp
def _singular_value_threshold(x: jax.Array, step: jax.Array) -> jax.Array:
  u, s, vt = jnp.linalg.svd(x, full_matrices=False)
  return (u * jnp.maximum(s - step, 0)) @ vt


@_singular_value_threshold.defjvp
def _singular_value_threshold_jvp(primals: tuple, tangents: tuple) -> tuple:
  """Derivative of a spectral function by divided differences.

  The derivative of the singular vectors, which does not exist where singular
  values coincide, is never formed.
  """
  x, step = primals
  dx, dstep = tangents
  u, s, vt = jnp.linalg.svd(x, full_matrices=False)
  f = jnp.maximum(s - step, 0)
  slope = jnp.where(s > step, 1.0, 0.0).astype(s.dtype)

  def ratio(top: jax.Array, bottom: jax.Array) -> jax.Array:
    usable = jnp.abs(bottom) > jnp.finfo(s.dtype).tiny
    return jnp.where(usable, top / jnp.where(usable, bottom, 1), 0)

  # Of two singular values on the same side of the step only the slope counts: their
  # difference may be rounding.
  same = slope[:, None] == slope
  difference = jnp.where(same, slope, ratio(f[:, None] - f, s[:, None] - s))
  mean = ratio(f[:, None] + f, s[:, None] + s)
  core = u.T @ dx @ vt.T
  inner = difference * (core + core.T) / 2 + mean * (core - core.T) / 2
  inner = inner - jnp.diag(slope) * dstep
  outside = ratio(f, s)
  left = (dx - u @ (u.T @ dx)) @ vt.T * outside
  right = outside[:, None] * (u.T @ (dx - (dx @ vt.T) @ vt))
  return (u * f) @ vt, u @ inner @ vt + left @ vt + u @ right
