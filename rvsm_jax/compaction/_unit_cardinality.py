"""A target number of units of a plan, in whatever leaves they are."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from rvsm_jax import _masks, _penalty, _sets, _validate
from rvsm_jax.compaction._plan import Group, endings


class _Units(NamedTuple):
  """The axis of a leaf along which its units lie, and their numbers, -1 for none."""

  axis: int
  labels: np.ndarray


def unit_cardinality(groups: Sequence[Group], sparsity: ArrayLike) -> _penalty.Penalty:
  r"""Sets a share of dead units: keeps the largest of each group, in all leaves.

  As :func:`rvsm_jax.cardinality`, with whole units of a :class:`Plan` in place of
  entries: the indicator of params in which of each group of n units at least
  :math:`\lceil sparsity \cdot n \rceil` are zero. Its prox, for any step > 0, drops
  exactly so many, those with the smallest norms. Of equal ones, the first are kept.

  The weights of a unit can be in many leaves: of a channel behind a residual connection
  they are the filters, biases and scales of all layers that add to it; of a head, its
  part of query, key, value and output. What belongs to no unit stays as it is. A weight
  between two units counts for that of the last axis, into which it leads: so leave out
  the group of the numbers of a value, `value/kernel`, if it is heads that should go.

  `value` and `prox` take a whole pytree: params with the paths that were planned, or a
  part of them. Transformations do so, except :func:`rvsm_jax.proximal_adam`.

  Args:
    groups: the groups of a plan, or some of them. What is dead in the plan does not
      matter.
    sparsity: share of dead units in each group, in [0, 1].

  Returns:
    The penalty. The step is a scalar.

  Raises:
    TypeError: if `groups` are none.
    ValueError: for a share out of range, or, from the functions, for a pytree without
      these units or of other sizes.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from rvsm_jax import compaction
    >>> params = {
    ...   "in": jnp.array([[1.0, 0.2, 2.0], [3.0, 0.1, 0.3]]),
    ...   "out": jnp.array([[1.0], [0.1], [2.0]]),
    ... }
    >>> def network(params, x):
    ...   return jax.nn.relu(x @ params["in"]) @ params["out"]
    >>> plan = compaction.plan(network, params, jnp.ones((1, 2)))
    >>> sparse = compaction.unit_cardinality(plan.groups, 1 / 3).prox(params, 1.0)
    >>> print(sparse["in"])
    [[1.  0.  2. ]
     [3.  0.  0.3]]
    >>> print(sparse["out"].T)
    [[1. 0. 2.]]
  """
  known = isinstance(groups, Sequence) and all(isinstance(g, Group) for g in groups)
  if not known or not groups:
    raise TypeError(f"groups must be groups of a plan, plan.groups, got {groups!r}.")
  of_norms = _sets.cardinality(sparsity)
  places = _places(groups)
  ends = np.cumsum([group.size for group in groups])

  def norms(leaves: Sequence[jax.Array], units: Sequence[_Units | None]) -> Any:
    """Those of all units, group by group, in units of the largest entry."""
    pairs = [(x, one) for x, one in zip(leaves, units, strict=True) if one is not None]
    dtype = _validate.compute_dtype(jnp.result_type(*leaves))
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x)).astype(dtype) for x, _ in pairs]))
    scale = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    squares = jnp.zeros(ends[-1], dtype)
    for x, one in pairs:
      squares = _added(squares, jnp.square(x.astype(dtype) / scale), one)
    return jnp.split(jnp.sqrt(squares), ends[:-1])

  def value(tree: Any) -> jax.Array:
    return sum(map(of_norms.value, norms(*_found(tree, places))), jnp.zeros(()))

  def prox(tree: Any, step: ArrayLike) -> Any:
    _validate.check_nonnegative("step", step)
    step = jnp.asarray(step)
    _penalty.check_scalar(step, "unit_cardinality")
    if not jax.tree.leaves(tree):
      return tree
    leaves, units = _found(tree, places)
    kept = jnp.concatenate(
      [of_norms.prox(part, 1.0) != 0 for part in norms(leaves, units)]
    )
    dropped = (step > 0) & ~kept
    out = [
      x if one is None else jnp.where(_spread(dropped, x, one), 0, x)
      for x, one in zip(leaves, units, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(tree), out)

  return _penalty.Penalty(value, _penalty.ProximalMap(prox, joint=True))


def _places(groups: Sequence[Group]) -> dict[str, _Units]:
  """By path the last axis along which units lie, and their numbers over all groups.

  Where entries are of two groups, as behind a reshape, they count for the larger one.
  """
  firsts = np.cumsum([0, *(group.size for group in groups)])
  found: dict[str, _Units] = {}
  for first, group in sorted(
    zip(firsts, groups, strict=False), key=lambda pair: pair[1].size
  ):
    for path, axis, labels in group.places:
      numbers = np.where(labels >= 0, first + labels, -1)
      known = found.get(path)
      if known is None or axis > known.axis:
        found[path] = _Units(axis, numbers)
      elif axis == known.axis:
        found[path] = _Units(axis, np.where(labels >= 0, numbers, known.labels))
  return found


def _found(
  tree: Any, places: dict[str, _Units]
) -> tuple[list[jax.Array], list[_Units | None]]:
  """The leaves, and the units of each."""
  names = _masks.leaf_names(tree)
  found = jax.tree_util.tree_leaves_with_path(tree)
  leaves = [_validate.float_array("x", leaf) for _, leaf in found]
  known = endings(tuple(tuple(path.split("/")) for path in places))
  all_units, units = [*places.values()], list[_Units | None]()
  for (path, _), x in zip(found, leaves, strict=True):
    name = "/".join(names[path])
    index = known.get(tuple(name.split("/")))
    one = None if index is None else all_units[index]
    if one is not None and (x.ndim <= one.axis or x.shape[one.axis] != len(one.labels)):
      raise ValueError(
        f"unit_cardinality: the leaf {name!r} has shape {x.shape}, but"
        f" {len(one.labels)} entries along axis {one.axis} in the plan: plan again for"
        " these params."
      )
    units.append(one)
  if not any(units):
    raise ValueError(
      "unit_cardinality: no leaf has units of these groups, whose places are"
      f" {', '.join(sorted(places)[:4])}: pass params with the paths that were planned."
    )
  return leaves, units


def _added(total: jax.Array, x: jax.Array, units: _Units) -> jax.Array:
  """The sums over the entries of each unit, added to its place of `total`."""
  others = tuple(axis for axis in range(x.ndim) if axis != units.axis)
  sums = jnp.sum(x, axis=others)
  if jax.typeof(sums).sharding.spec != jax.typeof(total).sharding.spec:
    sums = jax.sharding.reshard(sums, jax.sharding.PartitionSpec(None))
  # Entries of no unit lie beyond the end.
  at = np.where(units.labels < 0, len(total), units.labels)
  return total.at[at].add(sums, mode="drop")


def _spread(dropped: jax.Array, x: jax.Array, units: _Units) -> jax.Array:
  """Whether the unit of each entry is dropped, on the axes of x."""
  shape = [1] * x.ndim
  shape[units.axis] = len(units.labels)
  return (jnp.asarray(units.labels >= 0) & dropped[units.labels]).reshape(shape)
