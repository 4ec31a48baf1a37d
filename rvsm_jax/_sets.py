"""Indicators of sets: penalties that are zero or infinite, whose prox projects."""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rvsm_jax import _metrics, _penalty, _ranking, _thresholds, _validate


def nonnegative() -> _penalty.Penalty:
  r"""Keeps weights from becoming negative: the indicator of :math:`x \ge 0`.

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
  r"""Sets a share of zeros instead of a weight lam: keeps the largest magnitudes.

  The indicator of arrays with at least the share `sparsity` of zeros.

  Its prox, for any step > 0, keeps the entries of largest magnitude and drops
  exactly :math:`\lceil sparsity \cdot n \rceil`. It finds the magnitude to cut at by
  counting the entries above trial values, in about six passes: this is exact, much
  faster than sorting, and does not gather an array that is split over devices. Among
  equal magnitudes, the first are kept.

  With `scope="all"` all leaves that a transformation selects share one budget: their
  entries are ranked together, so that each layer keeps what it needs. `value` and
  `prox` then take a whole pytree, and count its leaves one by one. A layer can lose all
  of its weights, if they are smaller than those of the others.

  Args:
    sparsity: share of zeros, in [0, 1].
    scope: `"leaf"`, the share of each array, or `"all"`, that of all together.

  Returns:
    The penalty.

  Raises:
    ValueError: for arguments out of range, or, from the functions, if one array has
      more entries than the integers count, 2**31 unless `jax_enable_x64` is set.

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
    leaves = [_validate.float_array("x", x) for x in jax.tree.leaves(tree)]
    size = _ranking.size(leaves)
    dropped = _ranking.dropped(sparsity, size)
    zeros = _ranking.total([_metrics.count(x == 0, x != 0)[0] for x in leaves], size)
    dtype = _validate.compute_dtype(jnp.result_type(*leaves))
    return jnp.where(zeros.at_least(dropped), jnp.zeros((), dtype), jnp.inf)

  def prox(tree: Any, step: ArrayLike) -> Any:
    _validate.check_nonnegative("step", step)
    step = jnp.asarray(step)
    of = 'cardinality of scope "all"' if scope == "all" else "cardinality"
    _penalty.check_scalar(step, of)
    leaves, structure = jax.tree.flatten(tree)
    if not leaves:
      return tree
    leaves = [_validate.float_array("x", x) for x in leaves]
    wanted = _ranking.kept(sparsity, _ranking.size(leaves))
    found = [
      jnp.where((step > 0) & jnp.isfinite(x), y, x)
      for x, y in zip(leaves, _ranking.largest(leaves, wanted), strict=True)
    ]
    return jax.tree.unflatten(structure, found)

  return _penalty.Penalty(value, _penalty.ProximalMap(prox, joint=scope == "all"))


def nm_sparsity(n: int, m: int, axis: int = -2) -> _penalty.Penalty:
  r"""For patterns such as 2:4: at most n of every m entries along an axis are not zero.

  Its prox, for any step > 0, keeps the n largest magnitudes of each m and drops the
  others. Among equal magnitudes, the first are kept. The default axis is the one that a
  Flax kernel, (..., in, out), contracts, as hardware requires. Store the result with
  `rvsm_jax.export.pack_nm`.

  This library does not make it faster: JAX has removed its product with 2:4 matrices.

  Args:
    n: how many may stay, an integer from 1 to `m`.
    m: size of the blocks, an integer `>= 1` that divides the length of the axis.
    axis: along which entries follow each other.

  Returns:
    The penalty.

  Raises:
    TypeError: if an argument is not an integer.
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
    (bits,) = _ranking.magnitudes([blocks]).leaves
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
  size = _ranking.size(leaves)
  kept = _ranking.kept(sparsity, size)
  share = kept.as_float() / size
  density = floor * jnp.where((1 - floor) * share * size >= len(leaves), share, 0)

  keys = _ranking.magnitudes(leaves)
  own = [_ranking.number(jnp.ceil(density * x.size), x.size) for x in leaves]
  cuts = _ranking.thresholds([keys._replace(leaves=[k]) for k in keys.leaves], own)
  ranked = [
    jnp.where((key >= cut) & (x != 0), jnp.inf, x)
    for x, key, cut in zip(leaves, keys.leaves, cuts, strict=True)
  ]
  return jax.tree.unflatten(
    structure,
    [
      jnp.where((k != 0) | ~jnp.isfinite(x), x, 0)
      for x, k in zip(leaves, _ranking.largest(ranked, kept), strict=True)
    ],
  )
