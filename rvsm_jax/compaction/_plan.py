"""What can be removed from a pytree of params, and why the rest stays."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from rvsm_jax import _masks
from rvsm_jax.compaction import _check as checking
from rvsm_jax.compaction import _constants, _units
from rvsm_jax.compaction import _trace as tracing
from rvsm_jax.compaction._liveness import Fold, Liveness

_RAISES = "the code does not run with less"


class Place(NamedTuple):
  """An axis of a leaf along which units of a group lie.

  Attributes:
    path: the names that lead to the leaf, joined by "/".
    axis: of the leaf.
    labels: for each index along the axis the number of its unit in the group, -1
      where there is none; an array of ints.
  """

  path: str
  axis: int
  labels: np.ndarray


class Group(NamedTuple):
  """Units of one kind, each of which can only be removed from all places at once.

  There are at least two, since one that is alone stays.

  Attributes:
    name: the path of the first leaf in the order of computation.
    size: number of units.
    places: where they are.
    kept: whether each stays; a mask.
  """

  name: str
  size: int
  places: tuple[Place, ...]
  kept: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
  """What can be removed from a pytree of params; made by :func:`plan`.

  Attributes:
    paths: the names that lead to each array among the leaves.
    shapes: of these arrays before.
    keep: for each array and axis the indices that stay, None for all.
    groups: the units that can be removed, in the order of computation.
    stays: for each reason the axes that stay for it, as "path[axis]".
    notes: what else there is to know.
    multiplications: in matrix products and convolutions, before and after.
    folds: what constant units leave behind in other leaves.
  """

  paths: tuple[tuple[str, ...], ...]
  shapes: tuple[tuple[int, ...], ...]
  keep: tuple[tuple[np.ndarray | None, ...], ...]
  groups: tuple[Group, ...]
  stays: Mapping[str, tuple[str, ...]]
  notes: tuple[str, ...]
  multiplications: tuple[int, int]
  folds: tuple[Fold, ...]

  @property
  def smaller_shapes(self) -> tuple[tuple[int, ...], ...]:
    """The shapes of the arrays after."""
    return tuple(
      tuple(
        size if kept is None else len(kept)
        for size, kept in zip(shape, keep, strict=True)
      )
      for shape, keep in zip(self.shapes, self.keep, strict=True)
    )

  @property
  def parameters(self) -> tuple[int, int]:
    """The number of entries of the arrays, before and after."""
    before, after = (
      sum(int(np.prod(shape)) for shape in shapes)
      for shapes in (self.shapes, self.smaller_shapes)
    )
    return before, after

  def report(self) -> str:
    """Units before and after, sizes, and what stays for which reason, as text."""
    rows = [("units", "before", "after", "found along")]
    for group in self.groups:
      places = [f"{place.path}[{place.axis}]" for place in group.places]
      rows.append(
        (group.name, f"{group.size:,}", f"{np.sum(group.kept):,}", _some(places))
      )
    widths = [max(len(row[k]) for row in rows) for k in range(3)]
    lines = [
      f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}"
      for row in rows
    ]
    for name, (before, after) in (
      ("parameters", self.parameters),
      ("multiplications", self.multiplications),
    ):
      share = after / before if before else 1.0
      lines.append(f"{name}: {before:,} -> {after:,} ({share:.1%})")
    if self.stays:
      lines.append("what stays, and why:")
      lines += [f"  {reason}: {_some(axes)}" for reason, axes in self.stays.items()]
    return "\n".join([*lines, *self.notes])

  def __str__(self) -> str:
    return self.report()


def _some(names: Sequence[str], most: int = 4) -> str:
  more = len(names) - most
  return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


@functools.lru_cache(maxsize=8)
def endings(paths: tuple[tuple[str, ...], ...]) -> dict[tuple[str, ...], int]:
  """Paths, and what is left of them without the name of a collection, if unique."""
  shorter = [path[1:] for path in paths if len(path) > 1]
  unique = {
    path[1:]: k
    for k, path in enumerate(paths)
    if len(path) > 1 and shorter.count(path[1:]) == 1
  }
  return unique | {path: k for k, path in enumerate(paths)}


def make(
  apply_fn: Callable[..., Any],
  params: Any,
  inputs: Sequence[Any],
  retrace: Callable[[Sequence[tuple[int, ...]]], tracing.Program],
  *,
  may_be_rebuilt: bool,
) -> Plan:
  """Makes a plan of which `retrace`, with the smaller shapes, has the program."""
  names = _masks.leaf_names(params)
  found = jax.tree_util.tree_leaves_with_path(params)
  arrays = [(names[path], leaf) for path, leaf in found if tracing.is_array(leaf)]
  for path, leaf in arrays:
    if isinstance(leaf, jax.ShapeDtypeStruct | jax.core.Tracer):
      raise TypeError(
        f"params leaf {'/'.join(path)!r} must be a concrete array, got {leaf!r}: its"
        " zeros decide what can be removed."
      )
  program = tracing.trace(apply_fn, params, inputs)
  labels = _units.Labels(program)
  leaves = [leaf for _, leaf in arrays]
  constants = _constants.constants(program, leaves)
  liveness = Liveness(program, labels, constants)
  families = _families(program, labels)

  def solve(part: Sequence[int]) -> tuple[Fold, ...]:
    left = [units for k, units in enumerate(candidates) if k not in part]
    return tuple(liveness.solve(np.concatenate([[], *left]).astype(int)))

  def outcome(part: Sequence[int]) -> str | None:
    solve(part)
    try:
      smaller = retrace(_shapes(program, labels, liveness))
    except Exception as error:
      return f"{_RAISES} ({type(error).__name__}: {_first_line(error)})"
    return checking.difference(program, smaller, labels.axes, liveness.alive)

  liveness.solve(np.array([], int))
  candidates = [units for units in families if not np.all(liveness.alive(units))]
  everything = list(range(len(candidates)))
  why = outcome(everything) if everything else None
  notes = []
  if may_be_rebuilt and why is not None and _is_fixed(everything, outcome):
    kept, failed = everything, dict[int, str]()
    notes.append(
      "The code does not run with smaller params, whose sizes it fixes: make the model"
      f" anew with those of this report, and compare outputs. {why}"
    )
  else:
    kept, failed = checking.settle(len(candidates), outcome)
  folds = solve(kept)
  before = checking.multiplications(program, lambda node: node.shape)
  after = checking.multiplications(
    program, lambda node: _shape(labels.axes[node], liveness)
  )
  paths = ["/".join(path) for path, _ in arrays]
  order = _order(program)
  # One that is alone stays whatever happens.
  groups = [
    _group(units, paths, order, program, labels, liveness)
    for units in families
    if len(units) > 1
  ]
  stays = _stays(paths, order, program, labels)
  for k, reason in failed.items():
    axes = _group(candidates[k], paths, order, program, labels, liveness).places
    stays[reason] = (
      *stays.get(reason, ()),
      *(f"{place.path}[{place.axis}]" for place in axes),
    )
  return Plan(
    paths=tuple(path for path, _ in arrays),
    shapes=tuple(node.shape for node in program.params),
    keep=tuple(
      tuple(_kept(axis, liveness) for axis in labels.axes[node])
      for node in program.params
    ),
    groups=tuple(groups),
    stays=stays,
    notes=tuple(notes),
    multiplications=(before, after),
    folds=folds,
  )


def _first_line(error: Exception) -> str:
  return (str(error).splitlines() or [""])[0]


def _is_fixed(
  candidates: Sequence[int], outcome: Callable[[Sequence[int]], str | None]
) -> bool:
  """Whether code seems to run with no smaller params at all."""
  # Not all of them one by one, which for a large model takes long.
  tried = (outcome([k]) for k in candidates[:3])
  return all(why is not None and why.startswith(_RAISES) for why in tried)


def _shape(axes: Sequence[np.ndarray], liveness: Liveness) -> tuple[int, ...]:
  return tuple(int(np.sum(liveness.alive(axis))) for axis in axes)


def _shapes(
  program: tracing.Program, labels: _units.Labels, liveness: Liveness
) -> list[tuple[int, ...]]:
  return [_shape(labels.axes[node], liveness) for node in program.params]


def _kept(axis: np.ndarray, liveness: Liveness) -> np.ndarray | None:
  alive = liveness.alive(axis)
  return None if np.all(alive) else np.flatnonzero(alive)


def _order(program: tracing.Program) -> list[int]:
  """The indices of the params in the order of their first use."""
  first: dict[tracing.Node, int] = {}
  for k, equation in enumerate(program.equations):
    for node in equation.inputs:
      first.setdefault(node, k)
  last = len(program.equations)
  return sorted(
    range(len(program.params)), key=lambda k: first.get(program.params[k], last)
  )


def _columns(axis: np.ndarray, labels: _units.Labels) -> list[np.ndarray]:
  """The units along an axis that need not stay, -1 for others, part by part."""
  units = labels.units
  roots = units.find(axis)
  made = np.isin(roots, units.made())
  if not np.any(made):
    return [np.where(units.are_pinned(roots), -1, roots)]
  parts = [units.parts(root) for root in roots.tolist()]
  table = np.full((max(map(len, parts)), len(parts)), -1)
  for k, part in enumerate(parts):
    table[: len(part), k] = part
  pinned = units.are_pinned(np.maximum(table, 0))
  return list(np.where(pinned, -1, table))


def _families(program: tracing.Program, labels: _units.Labels) -> list[np.ndarray]:
  """Units that lie along the same axes, family by family, in the order of use."""
  family: dict[int, set[int]] = {}
  for k in _order(program):
    for axis in labels.axes[program.params[k]]:
      for column in _columns(axis, labels):
        units = set(column[column >= 0].tolist())
        met = {id(family[u]): family[u] for u in units if u in family}
        union: set[int] = units.union(*met.values())
        family.update(dict.fromkeys(union, union))
  unique = {id(units): units for units in family.values()}
  return [np.array(sorted(units)) for units in unique.values()]


def _group(
  units: np.ndarray,
  paths: Sequence[str],
  order: Sequence[int],
  program: tracing.Program,
  labels: _units.Labels,
  liveness: Liveness,
) -> Group:
  places = []
  for k in order:
    for d, axis in enumerate(labels.axes[program.params[k]]):
      for column in _columns(axis, labels):
        at = np.searchsorted(units, column).clip(max=len(units) - 1)
        numbers = np.where(units[at] == column, at, -1)
        if np.any(numbers >= 0):
          places.append(Place(paths[k], d, numbers))
  return Group(places[0].path, len(units), tuple(places), liveness.alive(units))


def _stays(
  paths: Sequence[str],
  order: Sequence[int],
  program: tracing.Program,
  labels: _units.Labels,
) -> dict[str, tuple[str, ...]]:
  found: dict[str, tuple[str, ...]] = {}
  for k in order:
    for d, axis in enumerate(labels.axes[program.params[k]]):
      if len(axis) > 1:
        for reason in dict.fromkeys(labels.units.why(axis)):
          if reason:
            found[reason] = (*found.get(reason, ()), f"{paths[k]}[{d}]")
  return found
