"""Indicators of sets: penalties that are zero or infinite, whose prox projects."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rvsm_jax import _metrics, _penalty, _thresholds, _validate


def nonnegative() -> _penalty.Penalty:
  r"""Indicator of :math:`x \ge 0`; its prox is the projection, for any step > 0.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.nonnegative().prox(jnp.array([-1.0, 2.0]), 1.0))
    [0. 2.]
  """

  @_thresholds.elementwise
  def prox(x: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.where((x < 0) & (step > 0), 0, x)

  return _penalty.separable(
    lambda x: jnp.where(x < 0, jnp.inf, jnp.zeros_like(x)), prox
  )


def _largest_cut(keys: jax.Array, kept: ArrayLike, width: int) -> jax.Array:
  """The largest number of `width` bits that at least `kept` of the keys reach.

  The keys are unsigned. With `kept = 0` the number can be larger than `width` bits.
  """
  digit = 3

  def refine(i: jax.Array, cut: jax.Array) -> jax.Array:
    # The last digit may overlap the one before, whose bits it then leaves alone.
    shift = jnp.maximum(width - digit * (i + 1), 0).astype(keys.dtype)
    higher = [cut + (jnp.asarray(d, keys.dtype) << shift) for d in range(1, 2**digit)]
    reached = _metrics.count(*(keys >= cut for cut in higher))
    raised = sum((count >= kept).astype(keys.dtype) for count in reached)
    return cut + (raised << shift)

  return jax.lax.fori_loop(0, -(-width // digit), refine, jnp.zeros((), keys.dtype))


def cardinality(sparsity: ArrayLike) -> _penalty.Penalty:
  r"""Indicator of arrays of which at least the share `sparsity` is zero.

  Its prox, for any step > 0, keeps the entries of largest magnitude and drops
  exactly :math:`\lceil sparsity \cdot n \rceil`: a target sparsity in place of a
  weight of the penalty. The magnitude to cut at is found digit by digit in the bits
  of the numbers, by counting: exact, much faster than a sort, and without gathering
  an array that is split over devices. Of equal magnitudes the first are kept.

  Args:
    sparsity: share of zeros, in [0, 1].

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.cardinality(0.5).prox(jnp.array([3.0, -1.0, 2.0, 0.5]), 1.0))
    [3. 0. 2. 0.]
  """
  _validate.check_share("sparsity", sparsity)

  def dropped(x: jax.Array) -> Any:
    known = _validate.concrete(sparsity)
    if known is not None:
      # 0.07 * 100 is a little above 7, and means 7.
      return math.ceil(float(known) * x.size * (1 - 1e-12))
    share = jnp.asarray(sparsity)
    return jnp.ceil(share * x.size * (1 - jnp.finfo(share.dtype).eps)).astype(int)

  def value(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.sum(x == 0) >= dropped(x), jnp.zeros((), x.dtype), jnp.inf)

  def prox(x: jax.Array, step: jax.Array) -> jax.Array:
    del step
    kept = x.size - dropped(x)
    # Non-negative floating point numbers are ordered as their bits are.
    width = jnp.finfo(x.dtype).bits
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), f"uint{width}")
    cut = _largest_cut(bits, kept, width - 1)
    above, ties = bits > cut, bits == cut
    # Of those as large as the cut, the first ones.
    larger, equal = _metrics.count(above, ties)
    missing = kept - larger
    places = jnp.arange(x.size, 0, -1, dtype=jnp.uint32).reshape(x.shape)
    order = jnp.where(ties, places, 0)
    last = jax.lax.cond(
      equal == missing,
      lambda: jnp.ones((), order.dtype),
      lambda: _largest_cut(order, missing, x.size.bit_length()),
    )
    return jnp.where(above | (order >= last), x, 0)

  return _penalty.Penalty(
    _penalty.wide_value(value), _penalty.whole_prox(prox, "cardinality")
  )
