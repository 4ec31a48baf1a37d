"""Which axes of which arrays belong together, index by index.

Every index along every axis of every array is an element of a class, a *unit*: what
can only be taken out of all its places at once. The axes of the params begin with
units of their own; each primitive joins those that it ties together, in the manner of
union-find. A unit is *pinned*, with the reason, where it must stay: what the data
fixes, what is reduced over, what no rule covers.

Where a reshape merges or splits axes, an element of the long axis is made of *parts*,
one for each short axis: it goes if one of its parts goes. So the heads of an attention
can be taken out of an axis of heads x width.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rvsm_jax.compaction import _trace as tracing

_Axes = list[np.ndarray]


class Units:
  """Classes of elements, some of them pinned, some made of parts."""

  def __init__(self) -> None:
    self._parent = np.arange(1024)
    self._size = 0
    # An index into `reasons`; 0 for none.
    self._pin = np.zeros(1024, np.int32)
    self.reasons = [""]
    self._pinned: dict[str, int] = {}
    self._parts: dict[int, tuple[int, ...]] = {}

  def __len__(self) -> int:
    return self._size

  def new(self, count: int) -> np.ndarray:
    """Elements, each a unit of its own."""
    first, self._size = self._size, self._size + count
    if self._size > len(self._parent):
      grown = np.arange(2 * self._size)
      grown[: len(self._parent)] = self._parent
      self._parent = grown
      self._pin = np.pad(self._pin, (0, len(grown) - len(self._pin)))
    return np.arange(first, self._size)

  def fixed(self, count: int, reason: str) -> np.ndarray:
    """Elements that must stay."""
    if reason not in self._pinned:
      self._pinned[reason] = int(self.new(1)[0])
      self.reasons.append(reason)
      self._pin[self._pinned[reason]] = len(self.reasons) - 1
    return np.full(count, self._pinned[reason])

  def find(self, elements: np.ndarray) -> np.ndarray:
    """The units of elements."""
    roots = self._parent[elements]
    while np.any((above := self._parent[roots]) != roots):
      roots = above
    self._parent[elements] = roots
    return roots

  def why(self, elements: np.ndarray) -> list[str]:
    """For each element the reason why its unit must stay, "" if it need not."""
    return [self.reasons[k] for k in self._pin[self.find(elements)]]

  def are_pinned(self, elements: np.ndarray) -> np.ndarray:
    """Whether their units must stay."""
    return self._pin[self.find(elements)] > 0

  def parts(self, unit: int) -> tuple[int, ...]:
    """The units that a unit is made of; it alone, if of none."""
    if unit not in self._parts:
      return (unit,)
    units = self.find(np.array(self._parts[unit]))
    return tuple(part for k in units.tolist() for part in self.parts(k))

  def made(self) -> list[int]:
    """The units that are made of parts."""
    return list(self._parts)

  def pin(self, elements: np.ndarray, reason: str) -> None:
    """Says that units must stay."""
    roots = np.unique(self.find(elements))
    roots = roots[self._pin[roots] == 0]
    if len(roots):
      # For the number of the reason.
      code = self._pin[self.fixed(1, reason)[0]]
      self._pin[roots] = code
      for root in self._parts.keys() & set(roots.tolist()):
        self.pin(np.array(self._parts[root]), reason)

  def join(self, a: np.ndarray, b: np.ndarray) -> None:
    """Says that elements at the same index of two arrays belong together."""
    if a is b:
      return
    pairs = zip(self.find(a).tolist(), self.find(b).tolist(), strict=True)
    for x, y in dict.fromkeys(pairs):
      if x != y:
        self._join(x, y)

  def _join(self, x: int, y: int) -> None:
    x, y = self.find(np.array([x, y])).tolist()
    shared = set(self._pinned.values())
    if x == y or (x in shared and y in shared):
      return
    if x in shared or y in shared:
      # What the data fixes does not tie together what it fixes.
      unit, fixed = (y, x) if x in shared else (x, y)
      self.pin(np.array([unit]), self.reasons[self._pin[fixed]])
      return
    self._parent[y] = x
    reason = self.reasons[self._pin[x] or self._pin[y]]
    parts = [self._parts.pop(k) for k in (x, y) if k in self._parts]
    if parts:
      self._parts[x] = parts[0]
      self._agree(x, *parts)
    self._pin[x] = 0
    if reason:
      self.pin(np.array([x]), reason)

  def define(self, element: int, parts: Sequence[int]) -> None:
    """Says that an element is made of parts, besides what was said of it."""
    root = int(self.find(np.array([element]))[0])
    before = self._parts.get(root, tuple(parts))
    self._parts[root] = before
    self._agree(root, before, tuple(parts))
    if self._pin[root]:
      self.pin(np.array(parts), self.reasons[self._pin[root]])

  def _agree(self, root: int, *descriptions: tuple[int, ...]) -> None:
    """Joins the parts of one unit that was described in two ways."""
    first, last = descriptions[0], descriptions[-1]
    if len(first) == len(last):
      self.join(np.array(first), np.array(last))
    else:
      for parts in descriptions:
        self.pin(np.array(parts), "it is split in two ways")
    if self._within(root, self._parts[root]):
      parts_of_itself = np.array(self._parts.pop(root))
      self.pin(parts_of_itself, "it is a part of itself")
      self.pin(np.array([root]), "it is a part of itself")

  def _within(self, root: int, parts: tuple[int, ...]) -> bool:
    roots = self.find(np.array(parts)).tolist()
    return root in roots or any(
      self._within(root, self._parts[k]) for k in roots if k in self._parts
    )

  def merge(self, axes: Sequence[np.ndarray]) -> np.ndarray:
    """The elements of the axis that a reshape makes of several."""
    shape = [len(axis) for axis in axes]
    grid = np.meshgrid(*axes, indexing="ij")
    free = [k for k, axis in enumerate(axes) if not np.all(self.are_pinned(axis))]
    if len(free) < 2:
      return grid[free[0] if free else 0].reshape(-1)
    merged = self.new(int(np.prod(shape)))
    table = np.stack([grid[k].reshape(-1) for k in free], axis=-1).tolist()
    for element, parts in zip(merged.tolist(), table, strict=True):
      self.define(element, parts)
    return merged

  def split(self, axis: np.ndarray, sizes: Sequence[int]) -> _Axes:
    """The elements of the axes that a reshape makes of one."""
    if np.all(self.are_pinned(axis)):
      reason = self.why(axis[:1])[0]
      return [self.fixed(size, reason) for size in sizes]
    axes = [self.new(size) for size in sizes]
    grid = np.meshgrid(*axes, indexing="ij")
    table = np.stack([part.reshape(-1) for part in grid], axis=-1).tolist()
    for element, parts in zip(axis.tolist(), table, strict=True):
      self.define(element, parts)
    return axes


class Labels:
  """The elements along each axis of each node, and the units they belong to."""

  def __init__(self, program: tracing.Program):
    self.units = Units()
    self.axes: dict[tracing.Node, _Axes] = {}
    self.barriers: dict[str, int] = {}
    for node in program.params:
      self.axes[node] = [self._own(size) for size in node.shape]
    for node in program.inputs:
      self.axes[node] = self._fixed(node, "an input of the network")
    self.from_data = set(program.inputs)
    for equation in program.equations:
      if not self.from_data.isdisjoint(equation.inputs):
        self.from_data.update(equation.outputs)
      for node in equation.inputs:
        if node not in self.axes:
          self.axes[node] = self._fixed(node, "a constant in the code")
      rule = _RULES.get(equation.name, _barrier)
      for node, axes in zip(equation.outputs, rule(self, equation), strict=True):
        self.axes[node] = axes
    used = {node for equation in program.equations for node in equation.inputs}
    for node in program.outputs:
      self._pin_all(node, "an output of the network")
    for node in program.params:
      if node not in used:
        self._pin_all(node, "not used")

  def _own(self, size: int) -> np.ndarray:
    return self.units.new(size) if size > 1 else self.units.fixed(size, "one alone")

  def _fixed(self, node: tracing.Node, reason: str) -> _Axes:
    return [self.units.fixed(size, reason) for size in node.shape]

  def _pin_all(self, node: tracing.Node, reason: str) -> None:
    for axis in self.axes.get(node, ()):
      self.units.pin(axis, reason)


def _barrier(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  reason = f"no rule for the primitive {equation.name!r}"
  free = [
    axis
    for node in equation.inputs
    for axis in labels.axes[node]
    if not np.all(labels.units.are_pinned(axis))
  ]
  if free:
    labels.barriers[equation.name] = labels.barriers.get(equation.name, 0) + 1
  for axis in free:
    labels.units.pin(axis, reason)
  return [labels._fixed(node, reason) for node in equation.outputs]


def _elementwise(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  shape = equation.outputs[0].shape
  axes: list[Any] = [None] * len(shape)
  for node in equation.inputs:
    # Scalars and axes of size 1 are spread over the others.
    for d, axis in enumerate(labels.axes[node] if node.shape else ()):
      if len(axis) != shape[d]:
        continue
      if axes[d] is None:
        axes[d] = axis
      else:
        labels.units.join(axes[d], axis)
  return [axes for _ in equation.outputs]


def _broadcast_in_dim(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  node, out = equation.inputs[0], equation.outputs[0]
  # New axes are as long as the arrays they meet: they get elements of their own.
  axes = [labels._own(size) for size in out.shape]
  for d, to in enumerate(equation.params["broadcast_dimensions"]):
    if node.shape[d] == out.shape[to]:
      axes[to] = labels.axes[node][d]
  return [axes]


def _reshape(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  node, out = equation.inputs[0], equation.outputs[0]
  if equation.params.get("dimensions") is not None or 0 in node.shape:
    return _barrier(labels, equation)
  axes = [labels._own(size) for size in out.shape]
  for before, after in tracing.blocks(node.shape, out.shape):
    ins = [labels.axes[node][d] for d in before]
    if len(before) == len(after) == 1:
      axes[after[0]] = ins[0]
    elif len(after) == 1:
      axes[after[0]] = labels.units.merge(ins)
    elif len(before) == 1:
      parts = labels.units.split(ins[0], [out.shape[d] for d in after])
      for d, part in zip(after, parts, strict=True):
        axes[d] = part
    else:
      reason = "a reshape of several axes to several"
      for axis in ins:
        labels.units.pin(axis, reason)
      for d in after:
        axes[d] = labels.units.fixed(out.shape[d], reason)
  return [axes]


def _squeeze(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  gone = equation.params["dimensions"]
  axes = labels.axes[equation.inputs[0]]
  return [[axis for d, axis in enumerate(axes) if d not in gone]]


def _transpose(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  axes = labels.axes[equation.inputs[0]]
  return [[axes[d] for d in equation.params["permutation"]]]


def _concatenate(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  along = equation.params["dimension"]
  parts = [labels.axes[node] for node in equation.inputs]
  axes = list(parts[0])
  axes[along] = np.concatenate([part[along] for part in parts])
  for part in parts[1:]:
    for d, axis in enumerate(part):
      if d != along:
        labels.units.join(axes[d], axis)
  return [axes]


def _taken(labels: Labels, axis: np.ndarray, part: slice) -> np.ndarray:
  """The elements of a slice; one that is taken alone must stay."""
  taken = axis[part]
  if len(taken) == 1 < len(axis):
    labels.units.pin(taken, "taken alone, by its index")
  return taken


def _slice(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  strides = equation.params["strides"] or (1,) * len(equation.inputs[0].shape)
  parts = map(
    slice, equation.params["start_indices"], equation.params["limit_indices"], strides
  )
  axes = labels.axes[equation.inputs[0]]
  return [[_taken(labels, axis, part) for axis, part in zip(axes, parts, strict=True)]]


def _split(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  along, stop = equation.params["axis"], 0
  found = []
  for size in equation.params["sizes"]:
    axes = list(labels.axes[equation.inputs[0]])
    axes[along] = _taken(labels, axes[along], slice(stop, stop + size))
    stop += size
    found.append(axes)
  return found


def _rev(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  axes = list(labels.axes[equation.inputs[0]])
  for d in equation.params["dimensions"]:
    axes[d] = axes[d][::-1]
  return [axes]


def _pad(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  axes = list(labels.axes[equation.inputs[0]])
  for d, (low, high, inner) in enumerate(equation.params["padding_config"]):
    if low == high == inner == 0:
      continue
    reason = "padding"
    if inner == 0 <= min(low, high):
      ends = [labels.units.fixed(size, reason) for size in (low, high)]
      axes[d] = np.concatenate([ends[0], axes[d], ends[1]])
    else:
      labels.units.pin(axes[d], reason)
      axes[d] = labels.units.fixed(equation.outputs[0].shape[d], reason)
  return [axes]


def _windows(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  sizes, padding = equation.params["window_dimensions"], equation.params["padding"]
  pairs = zip(sizes, padding, strict=True)
  whole = [size == 1 and tuple(pad) == (0, 0) for size, pad in pairs]
  return _where(labels, equation, whole)


def _dynamic_slice(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  sizes = equation.params["slice_sizes"]
  whole = [a == b for a, b in zip(sizes, equation.inputs[0].shape, strict=True)]
  return _where(labels, equation, whole)


def _where(
  labels: Labels, equation: tracing.Equation, whole: Sequence[bool]
) -> list[_Axes]:
  """The axes of the input where they stay whole; the others must stay."""
  out = equation.outputs[0]
  axes = list(labels.axes[equation.inputs[0]])
  for d, axis in enumerate(axes):
    if not whole[d] or len(axis) != out.shape[d]:
      reason = f"{equation.name} along it"
      labels.units.pin(axis, reason)
      axes[d] = labels.units.fixed(out.shape[d], reason)
  return [axes]


def _dynamic_update_slice(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  whole, part = (labels.axes[node] for node in equation.inputs[:2])
  for axis, written in zip(whole, part, strict=True):
    if len(axis) == len(written):
      labels.units.join(axis, written)
    else:
      labels.units.pin(axis, "written at positions that vary")
      labels.units.pin(written, "written at positions that vary")
  return [whole]


def _along(*names: str) -> Callable[[Labels, tracing.Equation], list[_Axes]]:
  """For primitives that mix along axes, which stay, and have them in the output."""

  def rule(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
    key = next(name for name in names if name in equation.params)
    along = equation.params[key]
    found = _elementwise(labels, equation)
    for d in np.atleast_1d(np.asarray(along, int)).tolist():
      labels.units.pin(found[0][d], f"{equation.name} along it")
    return found

  return rule


def _reduce(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  """What is summed, or compared, stays: means and norms depend on how many there are.

  Of zeros the sum alone would not, but the code divides by a number.
  """
  along = {int(d) for d in equation.params["axes"]}
  axes = labels.axes[equation.inputs[0]]
  for d in along:
    labels.units.pin(axes[d], f"{equation.name} over it, as in a mean or a norm")
  kept = [axis for d, axis in enumerate(axes) if d not in along]
  return [kept for _ in equation.outputs]


def _dot_general(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  left, right = (labels.axes[node] for node in equation.inputs)
  (over_left, over_right), (each_left, each_right) = equation.params[
    "dimension_numbers"
  ]
  for a, b in zip((*over_left, *each_left), (*over_right, *each_right), strict=True):
    labels.units.join(left[a], right[b])
  if labels.from_data.issuperset(equation.inputs):
    # Code scales such products by the size of the axis, as attention does.
    for d in over_left:
      labels.units.pin(left[d], "a product of data with data over it")
  return [
    [
      *(left[d] for d in each_left),
      *(axis for d, axis in enumerate(left) if d not in (*over_left, *each_left)),
      *(axis for d, axis in enumerate(right) if d not in (*over_right, *each_right)),
    ]
  ]


def _convolution(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  if equation.params["batch_group_count"] != 1:
    return _barrier(labels, equation)
  units, numbers = labels.units, equation.params["dimension_numbers"]
  left, right = (labels.axes[node] for node in equation.inputs)
  groups = equation.params["feature_group_count"]
  out_axis, in_axis, *window = (right[d] for d in numbers.rhs_spec)
  channels = left[numbers.lhs_spec[1]]
  if groups == 1:
    units.join(channels, in_axis)
  else:
    # Groups go as one: of what comes in, and of what comes out.
    units.pin(in_axis, "channels within a group of a convolution")
    for axis in (channels, out_axis):
      grouped = axis.reshape(groups, -1)
      for column in grouped.T[1:]:
        units.join(grouped[:, 0], column)
    units.join(channels.reshape(groups, -1)[:, 0], out_axis.reshape(groups, -1)[:, 0])
  for axis in (*window, *(left[d] for d in numbers.lhs_spec[2:])):
    units.pin(axis, "positions of a convolution")
  axes: list[Any] = labels._fixed(equation.outputs[0], "positions of a convolution")
  axes[numbers.out_spec[0]] = left[numbers.lhs_spec[0]]
  axes[numbers.out_spec[1]] = out_axis
  return [axes]


def _gather(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  node, out = equation.inputs[0], equation.outputs[0]
  numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
  reason = "rows that the data picks"
  axes = labels._fixed(out, reason)
  inner = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
  windows = [d for d in range(len(node.shape)) if d not in inner]
  offsets = dict(zip(windows, numbers.offset_dims, strict=True))
  for d, axis in enumerate(labels.axes[node]):
    if d in offsets and sizes[d] == node.shape[d] and d not in numbers.start_index_map:
      axes[offsets[d]] = axis
    else:
      labels.units.pin(axis, reason)
  for axis in labels.axes[equation.inputs[1]]:
    labels.units.pin(axis, reason)
  return [axes]


def _iota(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  axes = [labels._own(size) for size in equation.outputs[0].shape]
  labels.units.pin(axes[equation.params["dimension"]], "counted by its index")
  return [axes]


def _each(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  return [labels.axes[node] for node in equation.inputs]


def _carry_out(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  entered, left = (labels.axes[node] for node in equation.inputs)
  for a, b in zip(entered, left, strict=True):
    labels.units.join(a, b)
  return [entered]


def _scan_slice(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  first, *rest = labels.axes[equation.inputs[0]]
  labels.units.pin(first, "the turns of a scan")
  return [rest]


def _scan_stack(labels: Labels, equation: tracing.Equation) -> list[_Axes]:
  turns = equation.outputs[0].shape[0]
  first = labels.units.fixed(turns, "the turns of a scan")
  return [[first, *labels.axes[equation.inputs[0]]]]


_ELEMENTWISE = """
  abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp copy
  copy_p convert_element_type cos cosh digamma div eq eq_to erf erf_inv erfc exp
  exp2 expm1 floor ge gt integer_pow is_finite le lgamma log log1p logistic lt max
  min mul name ne neg nextafter not or pow real reduce_precision rem round rsqrt
  select_n sharding_constraint shift_left shift_right_arithmetic
  shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor
"""
ELEMENTWISE = frozenset(_ELEMENTWISE.split())

_RULES: dict[str, Callable[[Labels, tracing.Equation], list[_Axes]]] = {
  **dict.fromkeys(ELEMENTWISE, _elementwise),
  **dict.fromkeys(
    (
      *("argmax", "argmin", "reduce_and", "reduce_max"),
      *("reduce_min", "reduce_or", "reduce_prod", "reduce_sum", "reduce_xor"),
    ),
    _reduce,
  ),
  **dict.fromkeys(
    ("cumlogsumexp", "cummax", "cummin", "cumprod", "cumsum"), _along("axis")
  ),
  **dict.fromkeys(
    ("reduce_window_max", "reduce_window_min", "reduce_window_sum"), _windows
  ),
  "broadcast_in_dim": _broadcast_in_dim,
  "carry_in": _each,
  "carry_out": _carry_out,
  "concatenate": _concatenate,
  "conv_general_dilated": _convolution,
  "device_put": _each,
  "dot_general": _dot_general,
  "dynamic_slice": _dynamic_slice,
  "dynamic_update_slice": _dynamic_update_slice,
  "gather": _gather,
  "iota": _iota,
  "optimization_barrier": _each,
  "pad": _pad,
  "reshape": _reshape,
  "rev": _rev,
  "scan_slice": _scan_slice,
  "scan_stack": _scan_stack,
  "slice": _slice,
  "sort": _along("dimension"),
  "split": _split,
  "squeeze": _squeeze,
  "transpose": _transpose,
}
