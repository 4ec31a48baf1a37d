"""What is the same for every input of the network: found from the params alone.

For each node, the values that are known and where they are: two arrays that are spread
over the node's shape, so that of what is equal along an axis one entry is enough. That
of an activation is as small as the number of its channels; that of a param is the param
itself. `None` stands for nothing known.

Anything times zero is taken for zero, as a compiler with finite numbers may.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax.compaction import _trace as tracing
from rvsm_jax.compaction import _units

# Entries beyond which nothing is computed: no copies of weights.
_LIMIT = 1 << 20


class Known(NamedTuple):
  """Values, and where they hold; each spread over a node's shape."""

  value: Any
  mask: np.ndarray


def support(node: tracing.Node, known: Known | None) -> np.ndarray:
  """Where a node may be other than zero, spread over its shape."""
  if known is None:
    return np.ones((1,) * len(node.shape), bool)
  return ~known.mask | nonzero(known.value)


def nonzero(x: Any) -> np.ndarray:
  """Where an array is not zero; compared on the device on which it lies."""
  if isinstance(x, jax.Array) and x.devices() != {jax.devices("cpu")[0]}:
    return np.asarray(x != 0)
  return np.asarray(x) != 0


def constants(
  program: tracing.Program, leaves: list[Any]
) -> dict[tracing.Node, Known | None]:
  """What is known of each node of a program with these arrays for params."""
  known: dict[tracing.Node, Known | None] = dict.fromkeys(program.inputs)
  for node, leaf in zip(program.params, leaves, strict=True):
    known[node] = _exactly(node, leaf)
  for equation in program.equations:
    for node in equation.inputs:
      if node not in known:
        known[node] = _exactly(node, node.value)
    rule = _RULES.get(equation.name)
    if equation.name in _units.ELEMENTWISE:
      rule = _elementwise
    inputs = [known[node] for node in equation.inputs]
    found = rule(equation, *inputs) if rule else [None] * len(equation.outputs)
    for node, entry in zip(equation.outputs, found, strict=True):
      known[node] = None if entry is None or not np.any(entry.mask) else entry
  return known


def _exactly(node: tracing.Node, x: Any) -> Known | None:
  if x is None or node.dtype is None:
    return None
  if not jnp.issubdtype(node.dtype, np.number) and node.dtype != bool:
    return None
  if not hasattr(x, "shape"):
    x = np.asarray(x, node.dtype)
  return Known(x, np.ones((1,) * len(node.shape), bool))


def _elementwise(equation: tracing.Equation, *inputs: Known | None) -> list:
  if equation.name in ("convert_element_type", "copy", "copy_p"):
    return [inputs[0]]
  out = equation.outputs[0]
  ndim = len(out.shape)
  if None in inputs:
    return [_annihilated(ndim, inputs) if equation.name == "mul" else None]
  present = [_spread(ndim, entry) for entry in inputs if entry is not None]
  shapes = [np.shape(array) for entry in present for array in entry]
  shape = np.broadcast_shapes(*shapes)
  if np.prod(shape) > _LIMIT:
    return [None]
  mask = np.logical_and.reduce(
    np.broadcast_arrays(*(entry.mask for entry in present), np.ones(shape, bool))[:-1]
  )
  arguments = [np.broadcast_to(np.asarray(entry.value), shape) for entry in present]
  function = _NUMPY.get(equation.name)
  with np.errstate(all="ignore"):
    if function is None:
      value = np.asarray(equation.primitive.bind(*arguments, **equation.params))
    else:
      value = np.asarray(function(*arguments), out.dtype)
    wide = value.astype(np.float32)
    # Infinite padding is there to lose against what it surrounds.
    extremum = equation.name in ("max", "min")
    mask = mask & (~np.isnan(wide) if extremum else np.isfinite(wide))
  found = Known(np.where(mask, value, 0), mask)
  if equation.name == "mul" and (zero := _annihilated(ndim, inputs)) is not None:
    value = np.where(zero.mask, np.zeros((), value.dtype), found.value)
    found = Known(value, found.mask | zero.mask)
  return [_narrowed(found)]


def _narrowed(entry: Known) -> Known:
  """One entry along each axis along which all are equal."""
  for d in range(np.ndim(entry.value)):
    first = Known(*(np.take(array, [0], d) for array in entry))
    if np.all(entry.value == first.value) and np.all(entry.mask == first.mask):
      entry = first
  return entry


def _spread(ndim: int, entry: Known) -> Known:
  """A scalar with as many axes as the array it meets."""
  if np.ndim(entry.value) == ndim:
    return entry
  return Known(*(np.reshape(np.asarray(array), (1,) * ndim) for array in entry))


def _annihilated(ndim: int, inputs: tuple[Known | None, ...]) -> Known | None:
  """Where a product is zero because one factor is."""
  zeros = []
  for entry in inputs:
    if entry is not None and np.size(entry.value) <= _LIMIT:
      spread = _spread(ndim, entry)
      zeros.append(spread.mask & ~nonzero(spread.value))
  if not zeros:
    return None
  mask = zeros[0] if len(zeros) == 1 else zeros[0] | zeros[1]
  return Known(np.zeros((1,) * ndim, np.float32), mask)


def _both(function: Callable[[np.ndarray], np.ndarray], entry: Known) -> Known:
  return Known(function(np.asarray(entry.value)), function(entry.mask))


def _broadcast_in_dim(equation: tracing.Equation, entry: Known | None, *_: Any) -> list:
  if entry is None:
    return [None]
  ndim, to = len(equation.outputs[0].shape), equation.params["broadcast_dimensions"]

  def spread(x: np.ndarray) -> np.ndarray:
    shape = [1] * ndim
    for d, size in zip(to, x.shape, strict=True):
      shape[d] = size
    return x.reshape(shape)

  return [_both(spread, entry)]


def _reshape(equation: tracing.Equation, entry: Known | None) -> list:
  node, out = equation.inputs[0], equation.outputs[0]
  if entry is None or equation.params.get("dimensions") or 0 in node.shape:
    return [None]

  def reshaped(x: np.ndarray) -> np.ndarray:
    full, shape = list(x.shape), [1] * len(out.shape)
    for before, after in tracing.blocks(node.shape, out.shape):
      if any(x.shape[d] > 1 for d in before):
        for d in before:
          full[d] = node.shape[d]
        for d in after:
          shape[d] = out.shape[d]
    return np.broadcast_to(x, full).reshape(shape)

  return [_both(reshaped, entry)]


def _squeeze(equation: tracing.Equation, entry: Known | None) -> list:
  if entry is None:
    return [None]
  gone = tuple(equation.params["dimensions"])
  return [_both(lambda x: np.squeeze(x, gone), entry)]


def _transpose(equation: tracing.Equation, entry: Known | None) -> list:
  if entry is None:
    return [None]
  return [_both(lambda x: np.transpose(x, equation.params["permutation"]), entry)]


def _concatenate(equation: tracing.Equation, *inputs: Known | None) -> list:
  along, ndim = equation.params["dimension"], len(equation.outputs[0].shape)
  nothing = Known(np.zeros((1,) * ndim), np.zeros((1,) * ndim, bool))
  parts = [nothing if entry is None else entry for entry in inputs]
  if sum(np.size(part.value) for part in parts) > _LIMIT:
    return [None]

  def joined(arrays: list[np.ndarray]) -> np.ndarray:
    around = np.broadcast_shapes(
      *((*x.shape[:along], 1, *x.shape[along + 1 :]) for x in arrays)
    )
    spread = [
      np.broadcast_to(x, (*around[:along], node.shape[along], *around[along + 1 :]))
      for x, node in zip(arrays, equation.inputs, strict=True)
    ]
    return np.concatenate(spread, along)

  values = joined([np.asarray(part.value) for part in parts])
  return [Known(values, joined([part.mask for part in parts]))]


def _pad(
  equation: tracing.Equation, entry: Known | None, filling: Known | None
) -> list:
  if entry is None or np.size(entry.value) > _LIMIT:
    return [None]
  sides = equation.params["padding_config"]
  if not np.any(np.asarray(sides)):
    return [entry]
  if filling is None or np.min(np.asarray(sides)) < 0 or any(s[2] for s in sides):
    return [None]
  fill = np.asarray(filling.value)
  if np.all(~entry.mask | (np.asarray(entry.value) == fill)):
    return [entry]
  out = equation.outputs[0].shape
  if np.prod([n for n, s in zip(out, sides, strict=True) if any(s)]) > _LIMIT:
    return [None]
  full = [
    size if any(side) else 1
    for size, side in zip(equation.inputs[0].shape, sides, strict=True)
  ]

  def padded(x: np.ndarray, border: Any) -> np.ndarray:
    spread = np.broadcast_to(x, np.broadcast_shapes(x.shape, full))
    return np.pad(spread, [side[:2] for side in sides], constant_values=border)

  return [Known(padded(np.asarray(entry.value), fill), padded(entry.mask, True))]


def _slice(equation: tracing.Equation, entry: Known | None) -> list:
  if entry is None:
    return [None]
  strides = equation.params["strides"] or (1,) * len(equation.inputs[0].shape)
  parts = tuple(
    map(
      slice, equation.params["start_indices"], equation.params["limit_indices"], strides
    )
  )
  return [_both(lambda x: _taken(x, parts), entry)]


def _split(equation: tracing.Equation, entry: Known | None) -> list:
  found, stop, along = [], 0, equation.params["axis"]
  for size in equation.params["sizes"]:
    parts = [slice(None)] * len(equation.inputs[0].shape)
    parts[along] = slice(stop, stop + size)
    stop += size
    found.append(_sliced(entry, tuple(parts)))
  return found


def _sliced(entry: Known | None, parts: tuple[slice, ...]) -> Known | None:
  return None if entry is None else _both(lambda x: _taken(x, parts), entry)


def _taken(x: np.ndarray, parts: tuple[slice, ...]) -> np.ndarray:
  ends = zip(x.shape, parts, strict=True)
  return x[tuple(slice(None) if size == 1 else part for size, part in ends)]


def _reduce_sum(equation: tracing.Equation, entry: Known | None, *_: Any) -> list:
  if entry is None or np.size(entry.value) > _LIMIT:
    return [None]
  axes = tuple(int(d) for d in equation.params["axes"])
  value, mask = np.asarray(entry.value), entry.mask
  shape = np.broadcast_shapes(value.shape, mask.shape)
  value = np.broadcast_to(value, shape)
  times = np.prod([equation.inputs[0].shape[d] / shape[d] for d in axes])
  return [Known(times * value.sum(axes), np.all(mask, axes))]


def _reduce_extremum(equation: tracing.Equation, entry: Known | None, *_: Any) -> list:
  if entry is None or np.size(entry.value) > _LIMIT:
    return [None]
  axes = tuple(int(d) for d in equation.params["axes"])
  extremum = np.max if equation.name == "reduce_max" else np.min
  return [Known(extremum(np.asarray(entry.value), axes), np.all(entry.mask, axes))]


def _windows(equation: tracing.Equation, entry: Known | None) -> list:
  sizes = equation.params["window_dimensions"]
  if entry is None:
    return [None]
  for array in entry:
    if any(n > 1 and size > 1 for n, size in zip(np.shape(array), sizes, strict=True)):
      return [None]
  padding = np.max(np.asarray(equation.params["padding"]), axis=1, initial=0)
  dilated = np.any(np.asarray(equation.params["base_dilation"]) != 1)
  if equation.name != "reduce_window_sum":
    # What is padded does not win, unless a window sees nothing else.
    return [None if dilated or np.any(padding >= sizes) else entry]
  mask = entry.mask
  if dilated or np.any(padding):
    mask = mask & ~nonzero(entry.value)
  return [Known(np.asarray(entry.value) * np.prod(sizes), mask)]


def _dot_general(
  equation: tracing.Equation, left: Known | None, right: Known | None
) -> list:
  (over_left, over_right), (each_left, _) = equation.params["dimension_numbers"]
  a, b = equation.inputs
  if not each_left:
    for node, entry, over, other, weights, across, first in (
      (a, left, over_left, b, right, over_right, True),
      (b, right, over_right, a, left, over_left, False),
    ):
      if weights is None or not np.all(weights.mask):
        continue
      vector = along(node, entry, over)
      if vector is not None:
        return [_times_weights(vector, node, other, weights.value, across, first)]
  return [_product_of_zeros(equation, left, right)]


def along(
  node: tracing.Node, entry: Known | None, axes: tuple[int, ...]
) -> Known | None:
  """The entries along some axes, known where they are equal along all others; flat."""
  size = int(np.prod([node.shape[d] for d in axes]))
  if entry is None:
    return Known(np.zeros(size), np.zeros(size, bool))
  if np.size(entry.value) > _LIMIT:
    return None
  value, mask = np.asarray(entry.value), entry.mask
  rest = tuple(d for d in range(len(node.shape)) if d not in axes)
  first = value
  for d in rest:
    first = np.take(first, [0], d)
  flat = []
  for array in (first, np.all(mask & (value == first), axis=rest, keepdims=True)):
    array = np.transpose(array, (*axes, *rest)).reshape([array.shape[d] for d in axes])
    flat.append(np.broadcast_to(array, [node.shape[d] for d in axes]).reshape(-1))
  return Known(*flat)


def _times_weights(
  vector: Known,
  node: tracing.Node,
  other: tracing.Node,
  weights: Any,
  across: tuple[int, ...],
  first: bool,
) -> Known:
  """A vector that is known in part, times weights: known where these hide the rest."""
  rest = [d for d in range(len(other.shape)) if d not in across]
  table = nonzero(weights)
  table = np.transpose(table, (*across, *rest)).reshape(len(vector.mask), -1)
  hidden = (
    ~np.any(table, 0) if not np.any(vector.mask) else ~np.any(table[~vector.mask], 0)
  )
  value = np.zeros(len(hidden))
  rows = vector.mask & (vector.value != 0)
  if np.any(rows) and np.any(hidden):
    w = np.transpose(np.asarray(weights), (*across, *rest)).reshape(table.shape)
    part = w[np.ix_(rows, hidden)].astype(np.float64)
    value[hidden] = vector.value[rows].astype(np.float64) @ part
  free = [1] * (len(node.shape) - len(across))
  shape = [other.shape[d] for d in rest]
  shape = [*free, *shape] if first else [*shape, *free]
  return Known(value.reshape(shape), hidden.reshape(shape))


def _product_of_zeros(
  equation: tracing.Equation, left: Known | None, right: Known | None
) -> Known | None:
  """Where a product is zero because of each pair of factors one is."""
  numbers = equation.params["dimension_numbers"]
  if max(np.size(entry.value) if entry else 1 for entry in (left, right)) > _LIMIT:
    return None
  supports = [
    support(node, entry)
    for node, entry in zip(equation.inputs, (left, right), strict=True)
  ]
  sides = []
  for k, (node, table) in enumerate(zip(equation.inputs, supports, strict=True)):
    over, each = numbers[0][k], numbers[1][k]
    free = [d for d in range(table.ndim) if d not in (*over, *each)]
    full = list(table.shape)
    for d in (*over, *each):
      full[d] = node.shape[d]
    table = np.broadcast_to(table, full).transpose((*each, *over, *free))
    columns = int(np.prod([full[d] for d in free]))
    flat = table.reshape(*table.shape[: len(each)], -1, columns)
    sides.append((table.shape, flat))
  (shape, a), (other, b) = sides
  if a.size * b.shape[-1] > _LIMIT:
    return None
  batch, over = len(numbers[1][0]), len(numbers[0][0])
  counts = np.einsum("...kf,...kg->...fg", a.astype(np.float32), b.astype(np.float32))
  zero = (counts == 0).reshape(
    *shape[:batch], *shape[batch + over :], *other[batch + over :]
  )
  return Known(np.zeros(zero.shape, np.float32), zero)


def _convolution(
  equation: tracing.Equation, images: Known | None, weights: Known | None
) -> list:
  numbers = equation.params["dimension_numbers"]
  node = equation.inputs[0]
  entry = along(node, images, (numbers.lhs_spec[1],))
  batched = equation.params["batch_group_count"] != 1
  if entry is None or weights is None or not np.all(weights.mask) or batched:
    return [None]
  groups = equation.params["feature_group_count"]
  values, mask = (x.reshape(groups, 1, -1) for x in entry)
  kernel = np.transpose(np.asarray(weights.value), numbers.rhs_spec)
  out_channels, in_channels = kernel.shape[:2]
  table = np.any(nonzero(kernel), axis=tuple(range(2, kernel.ndim)))
  table = table.reshape(groups, -1, in_channels)
  same = mask if is_even(equation) else mask & (values == 0)
  hidden = np.all(~table | same, axis=-1).reshape(-1)
  value = np.zeros(out_channels)
  if is_even(equation) and np.any(hidden) and np.any(mask & (values != 0)):
    taps = kernel[hidden].astype(np.float64)
    taps = taps.sum(axis=tuple(range(2, kernel.ndim)))
    constant = np.broadcast_to(
      np.where(mask, values, 0), (groups, out_channels // groups, in_channels)
    )
    value[hidden] = np.sum(taps * constant.reshape(-1, in_channels)[hidden], axis=-1)
  shape = [1] * len(node.shape)
  shape[numbers.out_spec[1]] = out_channels
  return [Known(value.reshape(shape), hidden.reshape(shape))]


def is_even(equation: tracing.Equation) -> bool:
  """Whether a convolution makes of constant images constant ones: no padding."""
  return not np.any(np.asarray(equation.params["padding"])) and not np.any(
    np.asarray(equation.params["lhs_dilation"]) != 1
  )


def _scan_slice(equation: tracing.Equation, entry: Known | None) -> list:
  """Of the weights of all turns, those that are zero in each."""
  if entry is None:
    return [None]
  zero = ~np.any(support(equation.inputs[0], entry), axis=0)
  return [Known(np.zeros((1,) * zero.ndim, np.float32), zero)]


def _scan_stack(equation: tracing.Equation, entry: Known | None) -> list:
  return [None if entry is None else _both(lambda x: x[None], entry)]


_NUMPY: dict[str, Callable[..., Any]] = {
  "abs": np.abs,
  "add": np.add,
  "add_any": np.add,
  "div": lambda a, b: np.asarray(a) / np.asarray(b),
  "exp": np.exp,
  "ge": np.greater_equal,
  "gt": np.greater,
  "le": np.less_equal,
  "log": np.log,
  "lt": np.less,
  "max": np.maximum,
  "min": np.minimum,
  "mul": np.multiply,
  "neg": np.negative,
  "rsqrt": lambda a: 1 / np.sqrt(a),
  "sqrt": np.sqrt,
  "square": np.square,
  "stop_gradient": lambda a: a,
  "sub": np.subtract,
  "tanh": np.tanh,
}

_RULES: dict[str, Callable[..., list]] = {
  "broadcast_in_dim": _broadcast_in_dim,
  "concatenate": _concatenate,
  "conv_general_dilated": _convolution,
  "dot_general": _dot_general,
  "pad": _pad,
  "reduce_max": _reduce_extremum,
  "reduce_min": _reduce_extremum,
  "reduce_sum": _reduce_sum,
  "reduce_window_max": _windows,
  "reduce_window_min": _windows,
  "reduce_window_sum": _windows,
  "reshape": _reshape,
  "scan_slice": _scan_slice,
  "scan_stack": _scan_stack,
  "slice": _slice,
  "split": _split,
  "squeeze": _squeeze,
  "transpose": _transpose,
}
