"""Whether code makes of smaller params the program that was predicted.

Code may read sizes: it divides by the square root of a width, or reshapes to a number
of heads that is written down. So it is traced again, and compared primitive by
primitive, with their numbers and the shapes of what they compute.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rvsm_jax.compaction import _trace as tracing

# What follows from the shapes of the outputs, which are compared.
_SIZES = frozenset(
  {
    *("shape", "new_sizes", "sizes", "slice_sizes", "limit_indices"),
    *("sharding", "out_sharding", "feature_group_count"),
  }
)


def difference(
  program: tracing.Program,
  smaller: tracing.Program,
  axes: dict[tracing.Node, list[np.ndarray]],
  alive: Callable[[np.ndarray], np.ndarray],
) -> str | None:
  """The first difference of a program from what is predicted, None if there is none.

  Args:
    program: of the params as they were.
    smaller: of those without the units that go.
    axes: the elements along the axes of each node of `program`.
    alive: whether elements stay.
  """
  same = dict(
    zip(
      (*program.params, *program.inputs),
      (*smaller.params, *smaller.inputs),
      strict=True,
    )
  )
  if len(program.equations) != len(smaller.equations):
    return "the code computes otherwise with smaller params"

  def corresponds(a: tracing.Node, b: tracing.Node) -> bool:
    if a in same:
      return same[a] is b
    return (
      a.value is not None
      and b.value is not None
      and np.array_equal(np.asarray(a.value), np.asarray(b.value), equal_nan=True)
    )

  def shape(node: tracing.Node) -> tuple[int, ...]:
    return tuple(int(np.sum(alive(axis))) for axis in axes[node])

  for one, two in zip(program.equations, smaller.equations, strict=True):
    pairs = list(zip(one.inputs, two.inputs, strict=False))
    if (
      one.name != two.name
      or len(one.inputs) != len(two.inputs)
      or one.times != two.times
      or not all(corresponds(a, b) for a, b in pairs)
    ):
      return f"the code computes {two.name!r} otherwise with smaller params"
    for a, b in zip(one.outputs, two.outputs, strict=True):
      same[a] = b
      if shape(a) != b.shape:
        return f"the code fixes a size: {two.name!r} has {b.shape}, not {shape(a)}"
    if not _alike(one, two, axes, alive):
      return f"the code fixes a number of {two.name!r}"
  if [same.get(node) for node in program.outputs] != list(smaller.outputs):
    return "the code returns something else with smaller params"
  return None


def _alike(
  one: tracing.Equation,
  two: tracing.Equation,
  axes: dict[tracing.Node, list[np.ndarray]],
  alive: Callable[[np.ndarray], np.ndarray],
) -> bool:
  for key, value in one.params.items():
    other = two.params.get(key)
    if key == "start_indices":
      ends = zip(axes[one.inputs[0]], value, strict=True)
      value = [int(np.sum(alive(axis[:start]))) for axis, start in ends]
      other = list(other or ())
    if key not in _SIZES and not callable(value) and str(value) != str(other):
      return False
  return True


def settle(
  count: int, outcome: Callable[[Sequence[int]], str | None]
) -> tuple[list[int], dict[int, str]]:
  """A subset of candidates that works together, as large as halving finds.

  Args:
    count: of candidates.
    outcome: of some of them: None if they work, else why not.

  Returns:
    Which work, and why each other does not.
  """
  kept: list[int] = []
  failed: dict[int, str] = {}

  def search(part: list[int]) -> None:
    why = outcome([*kept, *part])
    if why is None:
      kept.extend(part)
    elif len(part) == 1:
      failed[part[0]] = why
    else:
      half = len(part) // 2
      search(part[:half])
      search(part[half:])

  if count:
    search(list(range(count)))
  return sorted(kept), failed


def multiplications(
  program: tracing.Program,
  size: Callable[[tracing.Node], Sequence[int]],
) -> int:
  """Of all matrix products and convolutions, for nodes of these sizes."""
  total = 0
  for equation in program.equations:
    numbers: Any = equation.params.get("dimension_numbers")
    if equation.name == "dot_general":
      left = size(equation.inputs[0])
      inner = np.prod([left[d] for d in numbers[0][0]])
    elif equation.name == "conv_general_dilated":
      right = size(equation.inputs[1])
      inner = np.prod(right) / right[numbers.rhs_spec[0]]
    else:
      continue
    total += equation.times * int(np.prod(size(equation.outputs[0])) * inner)
  return total
