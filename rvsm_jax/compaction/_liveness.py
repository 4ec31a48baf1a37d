"""Which units the outputs need, and where the constant ones go.

Every sum over units (a matrix product, or a convolution over its input channels) is an
*end*: what a unit adds there is null if its own value is zero, or if its weights are
zero towards all outputs that are needed. A unit of which all ends are null can go. The
others are found as in the mark phase of a garbage collector, from what must stay, until
nothing changes; so units that only feed units that go, go too.

What a unit of constant value adds is not zero, but constant: it goes into the next bias
(or mean of a batch normalisation) if there is one and the sum sees no padding, else
into the weights of one constant unit, which stays and stands for all: a *fold*.
"""

import collections
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rvsm_jax.compaction import _constants as values
from rvsm_jax.compaction import _trace as tracing
from rvsm_jax.compaction import _units

# A constant that stays anyway carries others unless it is this much smaller, so that
# rounding would show.
_SMALL = 1e-2


class Fold(NamedTuple):
  """What constant units add: `coefficients` times the kernel, summed over `axes`.

  Attributes:
    kernel: index of the leaf of weights.
    axes: of the kernel, ascending, that are summed over.
    coefficients: of shape `[kernel.shape[d] for d in axes]`.
    target: index of the leaf to which the sum is added.
    places: for each axis of the target, the axis of the kernel, None for size 1.
    carrier: where along `axes` it is added, if the target is the kernel.
  """

  kernel: int
  axes: tuple[int, ...]
  coefficients: np.ndarray
  target: int
  places: tuple[int | None, ...] = ()
  carrier: tuple[int, ...] | None = None


class _View(NamedTuple):
  """A node that shows a leaf: for each axis that of the leaf, None for a new one."""

  leaf: int
  places: tuple[int | None, ...]
  # Whether nothing else uses the leaf.
  alone: bool


class _Side(NamedTuple):
  """A factor: the axes summed over, and those that both factors have."""

  node: tracing.Node
  over: tuple[int, ...]
  each: tuple[int, ...]


class _Bias(NamedTuple):
  leaf: int
  places: tuple[int | None, ...]
  sign: int


class _Folding(NamedTuple):
  """The factor that is constant in places, and the weights; `taps` of a convolution."""

  constant: _Side
  weights: _Side
  view: _View
  taps: tuple[int, ...]
  bias: _Bias | None


class _End(NamedTuple):
  sides: tuple[_Side, _Side]
  folding: _Folding | None
  # Elements on the grid of the axes summed over: (number of axes, *sizes).
  grid: np.ndarray


class Liveness:
  """The units that stay, and the folds, for a program with known constants."""

  def __init__(
    self,
    program: tracing.Program,
    labels: _units.Labels,
    constants: dict[tracing.Node, values.Known | None],
  ):
    self._labels = labels
    self._units = labels.units
    self._constants = constants
    self._axes = list(
      {id(axis): axis for axes in labels.axes.values() for axis in axes}.values()
    )
    self._parts = {root: list(self._units.parts(root)) for root in labels.units.made()}
    self._is_made = np.zeros(len(self._units), bool)
    self._is_made[list(self._parts)] = True
    finder = _Finder(program, labels, constants)
    ends = map(finder.end, program.equations)
    self._ends = [end for end in ends if end is not None]

  def solve(self, pinned: np.ndarray) -> list[Fold]:
    """Finds what stays, for :meth:`alive`, if these elements do; returns the folds."""
    everything = np.arange(len(self._units))
    self._live = np.zeros(len(everything), bool)
    self._mark(everything[self._units.are_pinned(everything)])
    self._mark(pinned)
    carriers: dict[int, int] = {}
    while True:
      while any([self._visit(end) for end in reversed(self._ends)]):
        pass
      if not self._keep_one() and not self._choose(carriers):
        break
    folds = [self._fold(end, carriers.get(k)) for k, end in enumerate(self._ends)]
    return [fold for fold in folds if fold is not None]

  def alive(self, elements: np.ndarray) -> np.ndarray:
    """Whether elements stay: all parts of their units do."""
    roots = self._units.find(elements)
    alive = self._live[roots]
    made = self._is_made[roots]
    if np.any(made):
      alive[made] = [np.all(self._live[self._parts[k]]) for k in roots[made].tolist()]
    return alive

  def _mark(self, elements: np.ndarray) -> bool:
    roots = np.unique(self._units.find(elements))
    found = set(roots[~self._is_made[roots]].tolist())
    for root in roots[self._is_made[roots]].tolist():
      found.update(self._parts[root])
    new = [unit for unit in found if not self._live[unit]]
    self._live[new] = True
    return bool(new)

  def _visit(self, end: _End) -> bool:
    """Marks the units that add to what is needed; whether there were new ones."""
    if np.all(self.alive(end.grid)):
      return False
    adds = self._adds(end)
    if end.folding is not None:
      adds &= self._constant(end.folding) == 0
    return self._mark(end.grid[:, adds])

  def _adds(self, end: _End) -> np.ndarray:
    """Where on the grid something is added to an output that stays."""
    one, two = (self._needed(side) for side in end.sides)
    return np.any(one & two, axis=tuple(range(len(end.sides[0].each))))

  def _needed(self, side: _Side) -> np.ndarray:
    """Where a factor is not zero and its outputs stay: of shape (each..., over...)."""
    table = values.support(side.node, self._constants[side.node])
    rest = [d for d in range(table.ndim) if d not in side.over]
    for d in rest:
      alive = self.alive(self._labels.axes[side.node][d])
      if not np.all(alive):
        table = table & np.expand_dims(alive, [k for k in range(table.ndim) if k != d])
    free = tuple(d for d in rest if d not in side.each)
    table = np.any(table, axis=free, keepdims=True)
    kept = (*side.each, *side.over)
    table = np.squeeze(
      table.transpose((*kept, *free)), tuple(range(len(kept), table.ndim))
    )
    return np.broadcast_to(table, [side.node.shape[d] for d in kept])

  def _constant(self, folding: _Folding) -> np.ndarray:
    """The values on the grid that are constant, 0 where they are not."""
    node, over, _ = folding.constant
    known = values.along(node, self._constants[node], over)
    shape = [node.shape[d] for d in over]
    if known is None:
      return np.zeros(shape)
    return np.where(known.mask, known.value, 0).astype(np.float64).reshape(shape)

  def _leaving(self, end: _End) -> np.ndarray:
    """The constants on the grid that are needed, but come from units that go."""
    if end.folding is None or np.all(stay := np.all(self.alive(end.grid), axis=0)):
      return np.zeros(end.grid.shape[1:])
    return np.where(self._adds(end) & ~stay, self._constant(end.folding), 0)

  def _keep_one(self) -> bool:
    """Keeps an element of each axis that would be empty."""
    empty = [axis for axis in self._axes if len(axis) and not np.any(self.alive(axis))]
    return any([self._mark(axis[:1]) for axis in empty if not np.any(self.alive(axis))])

  def _choose(self, carriers: dict[int, int]) -> bool:
    """Chooses a constant unit to stand for others; whether it would have gone."""
    for k, end in enumerate(self._ends):
      if end.folding is None or end.folding.bias is not None or k in carriers:
        continue
      leaving = np.abs(self._leaving(end))
      if not np.any(leaving):
        continue
      stay = np.all(self.alive(end.grid), axis=0)
      staying = np.where(stay, np.abs(self._constant(end.folding)), 0)
      large = np.max(staying) >= _SMALL * np.max(leaving)
      carriers[k] = int(np.argmax(staying if large else leaving))
      if self._mark(end.grid.reshape(len(end.grid), -1)[:, carriers[k]]):
        return True
    return False

  def _fold(self, end: _End, carrier: int | None) -> Fold | None:
    coefficients = self._leaving(end)
    if end.folding is None or not np.any(coefficients):
      return None
    _, weights, view, taps, bias = end.folding
    axes: list[Any] = [view.places[d] for d in weights.over]
    if bias is None:
      assert carrier is not None
      value = self._constant(end.folding).reshape(-1)[carrier]
      at = np.unravel_index(carrier, coefficients.shape)
      order = np.argsort(axes)
      return Fold(
        view.leaf,
        tuple(axes[k] for k in order),
        coefficients.transpose(order) / value,
        view.leaf,
        carrier=tuple(int(at[k]) for k in order),
      )
    sizes = [weights.node.shape[d] for d in taps]
    coefficients = np.multiply.outer(bias.sign * coefficients, np.ones(sizes))
    axes += [view.places[d] for d in taps]
    order = np.argsort(axes)
    return Fold(
      view.leaf,
      tuple(axes[k] for k in order),
      coefficients.transpose(order),
      bias.leaf,
      bias.places,
    )


class _Finder:
  """Finds the ends of a program, and what can be folded at them."""

  def __init__(
    self,
    program: tracing.Program,
    labels: _units.Labels,
    constants: dict[tracing.Node, values.Known | None],
  ):
    self._params = program.params
    self._labels = labels
    self._constants = constants
    self._uses: collections.Counter[tracing.Node] = collections.Counter(program.outputs)
    self._users: dict[tracing.Node, tracing.Equation] = {}
    for equation in program.equations:
      self._uses.update(equation.inputs)
      self._users.update(dict.fromkeys(equation.inputs, equation))
    self._views: dict[tracing.Node, _View] = {
      node: _View(k, tuple(range(len(node.shape))), self._uses[node] == 1)
      for k, node in enumerate(program.params)
    }
    for equation in program.equations:
      self._look_through(equation)

  def end(self, equation: tracing.Equation) -> _End | None:
    """The end that an equation is, if any."""
    if equation.name not in ("dot_general", "conv_general_dilated"):
      return None
    numbers = equation.params["dimension_numbers"]
    left, right = equation.inputs
    if equation.name == "dot_general":
      (over_left, over_right), (each_left, each_right) = numbers
      if not over_left:
        return None
      sides = (
        _Side(left, tuple(over_left), tuple(each_left)),
        _Side(right, tuple(over_right), tuple(each_right)),
      )
      folding = None
      if not each_left:
        folding = self._folding(equation, *sides, ())
        folding = folding or self._folding(equation, *sides[::-1], ())
    elif (
      equation.params["feature_group_count"] == 1
      and equation.params["batch_group_count"] == 1
    ):
      sides = (
        _Side(left, (numbers.lhs_spec[1],), ()),
        _Side(right, (numbers.rhs_spec[1],), ()),
      )
      folding = self._folding(equation, *sides, tuple(numbers.rhs_spec[2:]))
    else:
      return None
    axes = [self._labels.axes[sides[0].node][d] for d in sides[0].over]
    return _End(sides, folding, np.stack(np.meshgrid(*axes, indexing="ij")))

  def _look_through(self, equation: tracing.Equation) -> None:
    if not equation.inputs or equation.inputs[0] not in self._views:
      return
    node, out = equation.inputs[0], equation.outputs[0]
    view = self._views[node]
    if equation.name in ("convert_element_type", "copy", "copy_p", "stop_gradient"):
      order: Sequence[int | None] = range(len(out.shape))
    elif equation.name == "transpose":
      order = equation.params["permutation"]
    elif equation.name == "squeeze":
      gone = equation.params["dimensions"]
      order = [d for d in range(len(node.shape)) if d not in gone]
    elif equation.name == "broadcast_in_dim":
      order = [None] * len(out.shape)
      for d, to in enumerate(equation.params["broadcast_dimensions"]):
        order[to] = d if node.shape[d] == out.shape[to] else None
    elif equation.name == "reshape" and 0 not in node.shape:
      order = [None] * len(out.shape)
      for before, after in tracing.blocks(node.shape, out.shape):
        if len(before) != 1 or len(after) != 1:
          return
        order[after[0]] = before[0]
    else:
      return
    places = tuple(None if d is None else view.places[d] for d in order)
    self._views[out] = _View(view.leaf, places, view.alone and self._uses[out] == 1)

  def _folding(
    self,
    equation: tracing.Equation,
    constant: _Side,
    weights: _Side,
    taps: tuple[int, ...],
  ) -> _Folding | None:
    view = self._views.get(weights.node)
    if self._constants.get(constant.node) is None or view is None:
      return None
    if None in [view.places[d] for d in (*weights.over, *taps)]:
      return None
    bias = self._bias(equation, weights, view)
    if bias is None and not view.alone:
      return None
    return _Folding(constant, weights, view, taps, bias)

  def _bias(
    self, equation: tracing.Equation, weights: _Side, view: _View
  ) -> _Bias | None:
    """The leaf that is added to the output, or subtracted from it, and its axes."""
    out = equation.outputs[0]
    user = self._users.get(out)
    if user is None or self._uses[out] != 1 or user.name not in ("add", "sub"):
      return None
    if user.name == "sub" and user.inputs[0] is not out:
      return None
    if equation.name == "conv_general_dilated" and not values.is_even(equation):
      return None
    other = user.inputs[1] if user.inputs[0] is out else user.inputs[0]
    bias = self._views.get(other)
    if bias is None or not bias.alone or len(other.shape) != len(out.shape):
      return None
    # From axes of the output to those of the leaf of weights.
    ways = self._ways(equation, weights, view)
    places: dict[int, int | None] = {}
    for d, place in enumerate(bias.places):
      if d in ways and out.shape[d] > 1 and (place is None or ways[d] is None):
        return None
      if place is not None and other.shape[d] > 1:
        if d not in ways:
          return None
        places[place] = ways[d]
    axes = range(len(self._params[bias.leaf].shape))
    sign = 1 if user.name == "add" else -1
    return _Bias(bias.leaf, tuple(map(places.get, axes)), sign)

  @staticmethod
  def _ways(
    equation: tracing.Equation, weights: _Side, view: _View
  ) -> dict[int, int | None]:
    numbers = equation.params["dimension_numbers"]
    if equation.name == "conv_general_dilated":
      return {numbers.out_spec[1]: view.places[numbers.rhs_spec[0]]}
    left, right = equation.inputs
    free = [d for d in range(len(weights.node.shape)) if d not in weights.over]
    first = 0
    if weights.node is right:
      first = len(left.shape) - len(numbers[0][0])
    return {first + k: view.places[d] for k, d in enumerate(free)}
