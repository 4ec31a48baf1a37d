"""Indicators of sets: penalties that are zero or infinite, whose prox projects."""

from collections.abc import Iterable, Sequence
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rvsm_jax import _metrics, _penalty, _thresholds, _validate


def nonnegative() -> _penalty.Penalty:
  r"""Keeps weights from being negative: the indicator of :math:`x \ge 0`.

  Its prox is the projection, for any step > 0.

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


def cardinality(
  sparsity: ArrayLike, *, scope: Literal["leaf", "all"] = "leaf"
) -> _penalty.Penalty:
  r"""A share of zeros in place of a weight lam: keeps the largest magnitudes.

  Indicator of arrays of which at least the share `sparsity` is zero.

  Its prox, for any step > 0, keeps the entries of largest magnitude and drops
  exactly :math:`\lceil sparsity \cdot n \rceil`: a target sparsity in place of a
  weight of the penalty. The magnitude to cut at is found digit by digit in the bits
  of the numbers, by counting: exact, much faster than a sort, and without gathering
  an array that is split over devices. Of equal magnitudes the first are kept.

  With `scope="all"` it is one budget for all leaves that a transformation selects:
  their entries are ranked together, so that each layer keeps what it needs. Its
  `value` and `prox` take a whole pytree, of which the leaves are counted one by one.
  A layer of smaller weights than the others can lose all of them.

  Args:
    sparsity: share of zeros, in [0, 1].
    scope: `"leaf"`, the share of each array, or `"all"`, that of all together.

  Returns:
    The penalty.

  Raises:
    ValueError: for arguments out of range, or, from the prox, if there are more
      entries than the integers count, 2**31 unless `jax_enable_x64` is set.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.cardinality(0.5).prox(jnp.array([3.0, -1.0, 2.0, 0.5]), 1.0))
    [3. 0. 2. 0.]
    >>> params = {"first": jnp.array([3.0, -1.0]), "last": jnp.array([0.5, 0.1])}
    >>> kept = rvsm_jax.cardinality(0.5, scope="all").prox(params, 1.0)
    >>> print(kept["first"], kept["last"])
    [ 3. -1.] [0. 0.]
  """
  _validate.check_share("sparsity", sparsity)
  _validate.check_choice("scope", scope, ("leaf", "all"))

  def value(tree: Any) -> jax.Array:
    leaves = jax.tree.leaves(tree)
    zeros = sum(jnp.sum(x == 0) for x in leaves)
    enough = zeros >= _dropped(sparsity, _size(leaves))
    return jnp.where(enough, jnp.zeros((), jnp.result_type(*leaves)), jnp.inf)

  def prox(tree: Any, step: jax.Array) -> Any:
    del step
    leaves, structure = jax.tree.flatten(tree)
    kept = _size(leaves) - _dropped(sparsity, _size(leaves))
    return jax.tree.unflatten(structure, _largest(leaves, kept))

  if scope == "leaf":
    return _penalty.Penalty(
      _penalty.wide_value(value), _penalty.whole_prox(prox, "cardinality")
    )

  def joint_value(tree: Any) -> jax.Array:
    return value(jax.tree.map(_wide, tree))

  def joint_prox(tree: Any, step: ArrayLike) -> Any:
    if not jax.tree.leaves(tree):
      return tree
    _validate.check_nonnegative("step", step)
    step = jnp.asarray(step)
    if step.ndim:
      raise ValueError(
        f'step must be a scalar for cardinality of scope "all", got shape {step.shape}.'
      )
    kept = prox(jax.tree.map(_wide, tree), step)
    return jax.tree.map(
      lambda x, y: jnp.where((step > 0) & jnp.isfinite(x), y.astype(x.dtype), x),
      tree,
      kept,
    )

  return _penalty.Penalty(joint_value, _penalty.ProximalMap(joint_prox, joint=True))


def nm_sparsity(n: int, m: int, axis: int = -2) -> _penalty.Penalty:
  r"""For 2:4 and its kin: at most n non-zero entries of every m along an axis.

  N:M sparsity, 2:4 for one. Its prox, for any step > 0, keeps the n largest
  magnitudes of each m and drops the others; of equal magnitudes the first are kept.
  The default axis is the one that a kernel of Flax, (..., in, out), contracts, which
  is what hardware asks for. `rvsm_jax.export.pack_nm` stores the result.

  This library promises no speed of it: JAX has removed its product with 2:4 matrices.

  Args:
    n: how many may stay, an integer from 1 to `m`.
    m: size of the blocks, an integer `>= 1` that divides the length of the axis.
    axis: along which entries follow each other.

  Returns:
    The penalty.

  Raises:
    TypeError: if an argument is no integer.
    ValueError: for n or m out of range or, when value or prox are traced, for an array
      without that axis or one whose length m does not divide.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> kernel = jnp.array([[3.0], [-1.0], [2.0], [0.5]])
    >>> print(rvsm_jax.nm_sparsity(2, 4).prox(kernel, 1.0).T)
    [[3. 0. 2. 0.]]

  References:
    Zhou et al., `Learning N:M Fine-grained Structured Sparse Neural Networks From
    Scratch <https://arxiv.org/abs/2102.04010>`_, 2021.
  """
  _validate.check_nm(n, m, axis)

  def value(x: jax.Array) -> jax.Array:
    filled = jnp.sum(_validate.blocks(x, m, axis) != 0, axis=-1)
    return jnp.where(jnp.all(filled <= n), jnp.zeros((), x.dtype), jnp.inf)

  def prox(x: jax.Array, step: jax.Array) -> jax.Array:
    del step
    blocks = _validate.blocks(x, m, axis)
    (bits,), _ = _bits([blocks])
    place = jnp.arange(m)
    larger = jnp.zeros(blocks.shape, int)
    for i in range(m):
      other = bits[..., i : i + 1]
      larger += (other > bits) | ((other == bits) & (i < place))
    kept = jnp.where(larger < n, blocks, 0)
    return jnp.moveaxis(kept.reshape(jnp.moveaxis(x, axis, -1).shape), -1, axis)

  return _penalty.Penalty(
    _penalty.wide_value(value), _penalty.whole_prox(prox, "nm_sparsity")
  )


def largest(tree: Any, sparsity: ArrayLike, floor: float) -> Any:
  """All but the share `sparsity` of smallest magnitude of all leaves together.

  Each leaf keeps about the share `floor` at least of what it would keep if all had the
  same sparsity, where there are enough entries for that.
  """
  leaves, structure = jax.tree.flatten(tree)
  if not leaves:
    return tree
  wide = [_wide(x) for x in leaves]
  size = _size(wide)
  kept = size - _dropped(sparsity, size)
  share = jnp.asarray(kept).astype(jnp.float32) / size
  density = floor * jnp.where((1 - floor) * share * size >= len(wide), share, 0)

  bits, width = _bits(wide)
  own = [jnp.ceil(density * x.size).astype(int) for x in wide]
  cuts = _largest_cuts([[b] for b in bits], own, width)
  ranked = [
    jnp.where((b >= cut) & (x != 0), jnp.inf, x)
    for x, b, cut in zip(wide, bits, cuts, strict=True)
  ]
  kept_of = _largest(ranked, kept)
  return jax.tree.unflatten(
    structure,
    [
      jnp.where((k != 0) | ~jnp.isfinite(x), x, 0)
      for x, k in zip(leaves, kept_of, strict=True)
    ],
  )


def _dropped(sparsity: ArrayLike, size: int) -> Any:
  """The number of entries that a share is, of so many."""
  known = _validate.concrete(sparsity)
  if known is not None:
    # 0.07 * 100 is a little above 7, and means 7.
    return math.ceil(float(known) * size * (1 - 1e-12))
  share = jnp.asarray(sparsity)
  if not jnp.issubdtype(share.dtype, jnp.floating):
    share = share.astype(jnp.float32)
  return jnp.ceil(share * size * (1 - jnp.finfo(share.dtype).eps)).astype(int)


def _wide(x: ArrayLike) -> jax.Array:
  x = _validate.float_array("x", x)
  return x.astype(_validate.compute_dtype(x.dtype))


def _size(leaves: Sequence[jax.Array]) -> int:
  size = sum(x.size for x in leaves)
  limit = jnp.iinfo(jnp.zeros((), int).dtype).max
  if size > limit:
    raise ValueError(
      f"x has {size} entries, more than the {limit} that can be counted: set"
      " jax_enable_x64, or mask some leaves out."
    )
  return size


def _largest(leaves: Sequence[jax.Array], kept: ArrayLike) -> list[jax.Array]:
  """The leaves with all but the `kept` largest entries of them together zero."""
  bits, width = _bits(leaves)
  (cut,) = _largest_cuts([bits], [kept], width)
  above, ties = [b > cut for b in bits], [b == cut for b in bits]
  # Of those as large as the cut, the first ones.
  larger, equal = _total(zip(above, ties, strict=True))
  missing = kept - larger
  size = _size(leaves)
  places: list[jax.Array] = []
  integer = jnp.uint32 if size < 2**32 else jnp.uint64
  for x, tie in zip(leaves, ties, strict=True):
    left = size - sum(place.size for place in places)
    place = left - jnp.arange(x.size, dtype=integer).reshape(x.shape)
    places.append(jnp.where(tie, place, 0))
  last = jax.lax.cond(
    equal == missing,
    lambda: jnp.ones((), integer),
    lambda: _largest_cuts([places], [missing], size.bit_length())[0],
  )
  return [
    jnp.where(up | (place >= last), x, 0)
    for x, up, place in zip(leaves, above, places, strict=True)
  ]


def _bits(leaves: Sequence[jax.Array]) -> tuple[list[jax.Array], int]:
  """Magnitudes as unsigned integers of the same order, and their number of bits."""
  dtype = jnp.result_type(*leaves)
  # Non-negative floating point numbers are ordered as their bits are.
  width = jnp.finfo(dtype).bits
  bits = [
    jax.lax.bitcast_convert_type(jnp.abs(x.astype(dtype)), f"uint{width}")
    for x in leaves
  ]
  return bits, width - 1


def _total(masks: Iterable[Sequence[jax.Array]]) -> list[jax.Array]:
  """Numbers of true entries of several masks of each leaf, over all leaves."""
  counts = [_metrics.count(*of_leaf) for of_leaf in masks]
  return [sum(of_mask[1:], of_mask[0]) for of_mask in zip(*counts, strict=True)]


def _largest_cuts(
  groups: Sequence[Sequence[jax.Array]], kept: Sequence[ArrayLike], width: int
) -> list[jax.Array]:
  """For each group the largest number of `width` bits that its `kept` keys reach.

  The keys are unsigned. With none kept the number can be larger than `width` bits.
  """
  digit, integer = 3, groups[0][0].dtype

  def refine(i: jax.Array, cuts: list[jax.Array]) -> list[jax.Array]:
    # The last digit may overlap the one before, whose bits it then leaves alone.
    shift = jnp.maximum(width - digit * (i + 1), 0).astype(integer)

    def raised(keys: Sequence[jax.Array], wanted: ArrayLike, cut: jax.Array) -> Any:
      higher = [cut + (jnp.asarray(d, integer) << shift) for d in range(1, 2**digit)]
      reached = _total([key >= c for c in higher] for key in keys)
      return cut + (sum((n >= wanted).astype(integer) for n in reached) << shift)

    return [raised(*group) for group in zip(groups, kept, cuts, strict=True)]

  cuts = [jnp.zeros((), integer) for _ in groups]
  return jax.lax.fori_loop(0, -(-width // digit), refine, cuts)
