"""Times of two functions, called in turn, as the median of their ratios."""

from collections.abc import Callable
import resource
import statistics
import time
from typing import Any, Literal, NamedTuple

import jax

Clock = Literal["wall", "processor"]


class Comparison(NamedTuple):
  """One function against another.

  Attributes:
    ratio: median of the ratios of neighbouring calls.
    quartiles: the lower and the upper one of those ratios.
    seconds: median of the calls of the function.
    base_seconds: median of those of the other one.
  """

  ratio: float
  quartiles: tuple[float, float]
  seconds: float
  base_seconds: float


class Repeated:
  """A function whose result is its next argument, as in training: it may donate it."""

  def __init__(self, function: Callable[..., Any], state: Any, *rest: Any):
    self._function, self._state, self._rest = function, state, rest

  def __call__(self) -> None:
    """Calls it once more, and waits for the result."""
    self._state = jax.block_until_ready(self._function(self._state, *self._rest))


def compare(
  base: Callable[[], Any], other: Callable[[], Any], pairs: int, clock: Clock = "wall"
) -> Comparison:
  """Calls both in turn, after two calls of each that are not counted.

  Args:
    base: what is compared with; it ends when its work is done.
    other: what is compared; likewise.
    pairs: how often.
    clock: "wall", or "processor", the time of all threads of this process: for a
      machine that does other work as well, and only where the work is on its cores.
  """
  now = time.perf_counter if clock == "wall" else time.process_time
  times = []
  for _ in range(2 + pairs):
    start = now()
    base()
    middle = now()
    other()
    times.append((middle - start, now() - middle))
  times = times[2:]
  lower, ratio, upper = statistics.quantiles(
    (second / first for first, second in times), method="inclusive"
  )
  return Comparison(
    ratio=ratio,
    quartiles=(lower, upper),
    seconds=statistics.median(second for _, second in times),
    base_seconds=statistics.median(first for first, _ in times),
  )


def page_faults(function: Callable[[], Any], calls: int = 3) -> float:
  """Minor page faults of one call: memory that the system has to hand out anew."""
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(calls):
    function()
  return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / calls
