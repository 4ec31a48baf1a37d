"""The largest entries of several arrays together, found by counting.

Nothing is sorted or gathered: entries are compared with some magnitudes, and what is
sent between devices is how many reach each. Magnitudes are ranked as the bits of the
numbers, which have the same order.
"""

from collections.abc import Sequence
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from rvsm_jax import _metrics, _validate

_SMALL = 2**31


class Number(NamedTuple):
  """A whole number `>= 0`.

  Billions of weights are more than the 32 bits that JAX counts with by default.

  Attributes:
    low: it, uint32, if it is below 2**31 whatever happens; else its lowest 16 bits.
    high: the bits above those, uint32; None for small numbers.
  """

  low: jax.Array
  high: jax.Array | None = None

  def at_least(self, other: "Number") -> jax.Array:
    """Whether it is not below another one."""
    if self.high is None or other.high is None:
      return self.low >= other.low
    same = (self.high == other.high) & (self.low >= other.low)
    return (self.high > other.high) | same

  def equals(self, other: "Number") -> jax.Array:
    """Whether it is another one."""
    same = self.low == other.low
    return same if self.high is None else same & (self.high == other.high)

  def minus(self, other: "Number") -> "Number":
    """The difference to another one; 0 if that is larger."""
    there = self.at_least(other)
    if self.high is None or other.high is None:
      return Number(jnp.where(there, self.low - other.low, 0))
    borrow = self.low < other.low
    low = jnp.where(borrow, self.low + 2**16, self.low) - other.low
    high = self.high - other.high - borrow.astype(jnp.uint32)
    return Number(jnp.where(there, low, 0), jnp.where(there, high, 0))

  def as_float(self) -> jax.Array:
    """It in float32, rounded."""
    low = self.low.astype(jnp.float32)
    return low if self.high is None else self.high.astype(jnp.float32) * 2**16 + low


def number(value: int | jax.Array, most: int) -> Number:
  """A whole number, a Python integer or an array of integers or floats.

  Args:
    value: it.
    most: above that are none of the numbers that it will be compared with.
  """
  if most < _SMALL:
    return Number(jnp.asarray(value).astype(jnp.uint32))
  if isinstance(value, int):
    return Number(jnp.uint32(value & 0xFFFF), jnp.uint32(value >> 16))
  high = value >> 16 if jnp.issubdtype(value.dtype, jnp.integer) else value // 2**16
  return Number((value - high * 2**16).astype(jnp.uint32), high.astype(jnp.uint32))


def total(counts: Sequence[jax.Array], most: int) -> Number:
  """The sum of integers, `most` at most."""
  lows = [number(count, most).low for count in counts]
  low = sum(lows[1:], lows[0])
  if most < _SMALL:
    return Number(low)
  highs = [jnp.asarray(number(count, most).high) for count in counts]
  return Number(low & 0xFFFF, sum(highs[1:], highs[0]) + (low >> 16))


def size(leaves: Sequence[jax.Array]) -> int:
  """The number of entries.

  Raises:
    ValueError: if one leaf has more than can be counted.
  """
  limit = jnp.iinfo(jnp.zeros((), int).dtype).max
  for leaf in leaves:
    if leaf.size > limit:
      raise ValueError(
        f"x has {leaf.size} entries, more than the {limit} that can be counted: set"
        " jax_enable_x64, split it, or mask it out."
      )
  return sum(leaf.size for leaf in leaves)


def dropped(sparsity: ArrayLike, entries: int) -> Number:
  """The number of entries that a share is, of so many, rounded up."""
  known = _validate.concrete(sparsity)
  if known is not None:
    # 0.07 * 100 is a little above 7, and means 7.
    return number(math.ceil(float(known) * entries * (1 - 1e-12)), entries)
  share = jnp.asarray(sparsity)
  if not jnp.issubdtype(share.dtype, jnp.floating):
    share = share.astype(jnp.float32)
  most = jnp.ceil(share * float(entries) * (1 - jnp.finfo(share.dtype).eps))
  return number(most, entries)


def kept(sparsity: ArrayLike, entries: int) -> Number:
  """The number of the others."""
  return number(entries, entries).minus(dropped(sparsity, entries))


class Keys(NamedTuple):
  """Unsigned integers by which entries are ranked.

  Attributes:
    leaves: one array for each leaf.
    width: they are below 2**width.
    first: the thresholds of the first pass, ascending; None to begin by interpolation.
    even: gaps wider than that are divided evenly; None for no gap.
  """

  leaves: Sequence[jax.Array]
  width: int
  first: jax.Array | None = None
  even: int | None = None


def magnitudes(leaves: Sequence[jax.Array]) -> Keys:
  """The bits of the magnitudes, in the precision that holds all."""
  dtype = jnp.result_type(*leaves)
  width = jnp.finfo(dtype).bits
  unsigned = f"uint{width}"

  def bits(x: ArrayLike) -> jax.Array:
    return jax.lax.bitcast_convert_type(jnp.abs(jnp.asarray(x, dtype)), unsigned)

  # The smallest number that is not zero, and those between which most weights are.
  first = jnp.maximum(bits(np.array([0, *(2.0**e for e in range(-11, 0, 2))])), 1)
  return Keys([bits(x) for x in leaves], width - 1, first, 2 ** jnp.finfo(dtype).nmant)


def _places(x: jax.Array) -> Keys:
  """Keys of which those of the first entries are the largest."""
  unsigned = jnp.uint32 if x.size < 2**32 else jnp.uint64
  place = jnp.full(x.shape, x.size, unsigned)
  for axis in range(x.ndim):
    stride = jnp.asarray(math.prod(x.shape[axis + 1 :]), unsigned)
    place = place - stride * jax.lax.broadcasted_iota(unsigned, x.shape, axis)
  return Keys([place], x.size.bit_length())


class Cut(NamedTuple):
  """The smallest of the keys that are kept, and what is known of it.

  Attributes:
    low: keys of at least that are kept.
    high: no key between `low` and this one is missing: either as many as wanted are at
      least `low`, or `high` is `low + 1`, and some of those that equal `low` are kept.
    reached: how many keys are at least `low`.
    above: how many are at least `high`.
  """

  low: jax.Array
  high: jax.Array
  reached: Number
  above: Number


_THRESHOLDS = 7


def _cuts(groups: Sequence[Keys], wanted: Sequence[Number]) -> list[Cut]:
  """For each group of keys where to cut so that the `wanted` largest are kept.

  Each pass over the keys counts them against seven thresholds, so that the gap that the
  cut is in becomes an eighth at most in every other pass. As a rule it becomes much
  narrower: in a narrow gap keys are spread about evenly, and the thresholds stand
  around where the cut is to be expected.
  """
  sizes = [sum(x.size for x in keys.leaves) for keys in groups]

  def begin(keys: Keys, n: Number, size: int) -> Cut:
    top = jnp.asarray(2**keys.width, keys.leaves[0].dtype)
    zero = number(0, size)
    none = n.equals(zero)
    start = jax.tree.map(lambda x: jnp.where(none, 0, x), number(size, size))
    return Cut(jnp.where(none, top, 0), top, start, zero)

  def tried(keys: Keys, n: Number, cut: Cut, even: jax.Array) -> jax.Array:
    unsigned = keys.leaves[0].dtype
    gap = jnp.maximum(cut.high - cut.low, 1)
    inside = cut.reached.minus(cut.above).as_float()
    place = (cut.reached.minus(n).as_float() + 0.5) / jnp.maximum(inside, 1)
    # What may be expected of the place's error, and steps from there to a quarter.
    error = jnp.clip(jax.lax.rsqrt(jnp.maximum(inside, 1)), 2.0**-10, 0.125)
    growth = jnp.sqrt(0.25 / error)
    order = np.arange(-(_THRESHOLDS // 2), _THRESHOLDS // 2 + 1, dtype=np.float32)
    around = place + np.sign(order) * error * growth ** (np.abs(order) - 1)
    index = np.arange(1, _THRESHOLDS + 1, dtype=np.float32)
    if keys.even is not None:
      even = even | (gap > keys.even)
    share = jnp.where(even, index / (_THRESHOLDS + 1), around)
    move = jnp.clip(share, 0, 1) * gap.astype(jnp.float32)
    move = jnp.where(gap <= _THRESHOLDS + 1, index, move).astype(unsigned)
    return cut.low + jnp.clip(move, jnp.minimum(1, gap - 1), gap - 1)

  def refined(keys: Keys, n: Number, cut: Cut, size: int, thresholds: jax.Array) -> Cut:
    counts = [
      jnp.stack(_metrics.count(*(x >= t for t in thresholds))) for x in keys.leaves
    ]
    reached = total(counts, size)
    place = jnp.sum(reached.at_least(n).astype(jnp.int32))
    before = jax.tree.map(jnp.append, (cut.low, cut.reached), (thresholds, reached))
    after = jax.tree.map(jnp.append, (thresholds, reached), (cut.high, cut.above))
    (low, reached), (high, above) = jax.tree.map(lambda x: x[place], (before, after))
    return Cut(low, high, reached, above)

  def open_(n: Number, cut: Cut) -> jax.Array:
    return ~cut.reached.equals(n) & (cut.high - cut.low > 1)

  def step(carry: tuple) -> tuple:
    begun, cuts, evens = carry
    new = []
    for keys, n, size, cut, even in zip(
      groups, wanted, sizes, cuts, evens, strict=True
    ):
      thresholds = tried(keys, n, cut, even)
      if keys.first is not None:
        first = jnp.clip(keys.first, cut.low, cut.high)
        thresholds = jnp.where(begun, thresholds, first)
      new.append(refined(keys, n, cut, size, thresholds))
    # Where interpolation does not do, as at many equal keys, the next gap is even.
    evens = [
      ~even & (a.high - a.low > (b.high - b.low) // (_THRESHOLDS + 1))
      for even, a, b in zip(evens, new, cuts, strict=True)
    ]
    return jnp.array(True), new, evens

  def unfinished(carry: tuple) -> jax.Array:
    left = [open_(n, cut) for n, cut in zip(wanted, carry[1], strict=True)]
    return functools.reduce(jnp.logical_or, left)

  start = [begin(*group) for group in zip(groups, wanted, sizes, strict=True)]
  evens = [jnp.array(False) for _ in groups]
  return jax.lax.while_loop(unfinished, step, (jnp.array(False), start, evens))[1]


def thresholds(keys: Sequence[Keys], wanted: Sequence[Number]) -> list[jax.Array]:
  """For each group of keys the cut up from which at least the `wanted` largest are."""
  return [cut.low for cut in _cuts(keys, wanted)]


def largest(leaves: Sequence[jax.Array], wanted: Number) -> list[jax.Array]:
  """The leaves with all but the `wanted` largest entries of them together zero."""
  entries = size(leaves)
  keys = magnitudes(leaves)
  (cut,) = _cuts([keys], [wanted])
  ties = [x == cut.low for x in keys.leaves]
  places = [_places(x) for x in leaves]

  def the_first() -> list[jax.Array]:
    """Up from which place those as large as the cut are kept, in each leaf."""
    rest, own = wanted.minus(cut.above), []
    for tie in ties:
      here = number(_metrics.count(tie, ~tie)[0], entries)
      enough = here.at_least(rest)
      most = jax.tree.map(lambda a, b, e=enough: jnp.where(e, a, b), rest, here)
      own.append(_narrowed(most, tie.size))
      rest = rest.minus(here)
    tied = [
      place._replace(leaves=[jnp.where(tie, place.leaves[0], 0)])
      for tie, place in zip(ties, places, strict=True)
    ]
    return thresholds(tied, own)

  last = jax.lax.cond(
    cut.reached.equals(wanted),
    lambda: [jnp.zeros((), place.leaves[0].dtype) for place in places],
    the_first,
  )
  return [
    jnp.where((key > cut.low) | (tie & (place.leaves[0] >= end)), x, 0)
    for x, key, tie, place, end in zip(
      leaves, keys.leaves, ties, places, last, strict=True
    )
  ]


def _narrowed(n: Number, most: int) -> Number:
  """A number that is known to be at most `most`."""
  if n.high is None or most >= _SMALL:
    return n
  return Number(n.high * 2**16 + n.low)
