"""Independent oracles: what the penalties and their proximal maps must be.

Nothing here imports `rvsm_jax`. Penalties are written down from their definitions (in
numpy, double precision); minimisers come from brute force, from optimality conditions
that are sufficient, or from mpmath with 50 digits.
"""

from collections.abc import Callable, Iterator, Mapping
import dataclasses
import itertools
from typing import Any

import mpmath
import numpy as np
import scipy.optimize

Hyper = Mapping[str, Any]
Groups = str | tuple[int, ...]


# ------------------------------------------------------------------------------------
# Separable penalties.
# ------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True, eq=False)
class Separable:
  """A penalty P(x) = sum_i p(x_i), as the papers define it.

  Attributes:
    name: The constructor's name in `rvsm_jax`.
    density: p(u; hyper), elementwise.
    slope: p'(u; hyper) for u > 0.
    ranges: Per hyperparameter, the decimal exponents between which it is drawn.
    critical: The step at which step * p + u^2/2 stops being convex for u > 0; the
      two-branched maps switch formula there. Infinite for convex penalties.
    static: Hyperparameters which are not drawn.
    odd: Whether p is even, so that its proximal map is odd.
    unbiased: Whether p' vanishes or is bounded at infinity: huge inputs stay.
  """

  name: str
  density: Callable[..., np.ndarray]
  slope: Callable[..., np.ndarray]
  ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
  critical: Callable[..., float] = lambda **_: np.inf
  static: Mapping[str, float] = dataclasses.field(default_factory=dict)
  convex: bool = False
  odd: bool = True
  unbiased: bool = True

  def __str__(self) -> str:
    return self.name + "".join(f"-{v:.3g}" for v in self.static.values())


def _scad_density(u: np.ndarray, lam: float, gamma: float) -> np.ndarray:
  u = np.abs(u)
  middle = (2 * gamma * lam * u - u**2 - lam**2) / (2 * (gamma - 1))
  return np.where(
    u <= lam, lam * u, np.where(u < gamma * lam, middle, lam**2 * (gamma + 1) / 2)
  )


def _scad_slope(u: np.ndarray, lam: float, gamma: float) -> np.ndarray:
  return np.where(u <= lam, lam, np.maximum(gamma * lam - u, 0) / (gamma - 1))


def _mcp_density(u: np.ndarray, lam: float, gamma: float) -> np.ndarray:
  u = np.abs(u)
  return np.where(u <= gamma * lam, lam * u - u**2 / (2 * gamma), gamma * lam**2 / 2)


SEPARABLE = (
  Separable(
    "l0",
    density=lambda u: (u != 0).astype(float),
    slope=lambda u: np.zeros_like(u),
    critical=lambda: 0.0,
  ),
  Separable("l1", density=np.abs, slope=np.ones_like, convex=True),
  Separable(
    "transformed_l1",
    density=lambda u, a: (a + 1) * np.abs(u) / (a + np.abs(u)),
    slope=lambda u, a: a * (a + 1) / (a + u) ** 2,
    ranges={"a": (-2, 2)},
    critical=lambda a: a**2 / (2 * (a + 1)),
  ),
  Separable(
    "scad",
    density=_scad_density,
    slope=_scad_slope,
    ranges={"lam": (-2, 1), "gamma": (0.31, 1)},
    critical=lambda lam, gamma: gamma - 1,
  ),
  Separable(
    "mcp",
    density=_mcp_density,
    slope=lambda u, lam, gamma: np.maximum(lam - u / gamma, 0),
    ranges={"lam": (-2, 1), "gamma": (0.01, 1)},
    critical=lambda lam, gamma: gamma,
  ),
  Separable(
    "log_penalty",
    density=lambda u, gamma: np.log1p(gamma * np.abs(u)) / np.log1p(gamma),
    slope=lambda u, gamma: gamma / ((1 + gamma * u) * np.log1p(gamma)),
    ranges={"gamma": (-2, 3)},
    critical=lambda gamma: np.log1p(gamma) / gamma**2,
  ),
  Separable(
    "capped_l1",
    density=lambda u, a: np.minimum(np.abs(u), a),
    slope=lambda u, a: (u < a).astype(float),
    ranges={"a": (-2, 1)},
    critical=lambda a: 2 * a,
  ),
  Separable(
    "lp",
    density=lambda u, p: np.abs(u) ** p,
    slope=lambda u, p: p * u ** (p - 1),
    static={"p": 1 / 2},
  ),
  Separable(
    "lp",
    density=lambda u, p: np.abs(u) ** p,
    slope=lambda u, p: p * u ** (p - 1),
    static={"p": 2 / 3},
  ),
  Separable(
    "elastic_net",
    density=lambda u, alpha: np.abs(u) + alpha / 2 * u**2,
    slope=lambda u, alpha: 1 + alpha * u,
    ranges={"alpha": (-2, 2)},
    convex=True,
    unbiased=False,
  ),
  Separable(
    "nonnegative",
    density=lambda u: np.where(u < 0, np.inf, 0.0),
    slope=lambda u: np.zeros_like(u),
    convex=True,
    odd=False,
  ),
)


def scalar_objective(
  density: Callable[[np.ndarray], np.ndarray],
  u: np.ndarray,
  x: np.ndarray,
  step: float,
) -> np.ndarray:
  """step * p(u) + (u - x)^2 / 2, elementwise."""
  penalty = density(u)
  return np.where(penalty == 0, 0, step * penalty) + (u - x) ** 2 / 2


def scalar_minimum(
  density: Callable[[np.ndarray], np.ndarray], x: np.ndarray, step: float
) -> tuple[np.ndarray, np.ndarray]:
  """Global minimum of `scalar_objective` for every x: (argument, value).

  A grid on [-x/2, 3x/2] which holds 0 and x exactly and is refined geometrically
  towards 0, then eight rounds of zooming into each of its three lowest local minima.
  """
  x = np.asarray(x, np.float64)
  grid = np.union1d(np.linspace(-0.5, 1.5, 1001), np.geomspace(1e-9, 1, 200))
  grid = np.union1d(grid, [0.0, 1.0])
  value = scalar_objective(density, x[:, None] * grid, x[:, None], step)
  padded = np.pad(value, ((0, 0), (1, 1)), constant_values=np.inf)
  is_low = (value <= padded[:, :-2]) & (value <= padded[:, 2:])
  wells = np.argsort(np.where(is_low, value, np.inf), axis=1)[:, :3]
  rows = np.arange(len(x))
  arg, best = np.zeros_like(x), scalar_objective(density, np.zeros_like(x), x, step)
  for well in wells.T:
    low, high = grid[np.maximum(well - 1, 0)], grid[np.minimum(well + 1, len(grid) - 1)]
    u, lowest = x * grid[well], value[rows, well]
    for _ in range(8):
      t = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 33)
      inner = scalar_objective(density, x[:, None] * t, x[:, None], step)
      k = np.argmin(inner, axis=1)
      better = inner[rows, k] < lowest
      u = np.where(better, x * t[rows, k], u)
      lowest = np.where(better, inner[rows, k], lowest)
      low, high = t[rows, np.maximum(k - 1, 0)], t[rows, np.minimum(k + 1, 32)]
    arg, best = np.where(lowest < best, u, arg), np.minimum(lowest, best)
  return arg, best


# ------------------------------------------------------------------------------------
# Penalties of groups.
# ------------------------------------------------------------------------------------
def reduced_axes(groups: Groups, ndim: int) -> tuple[int, ...]:
  """The axes summed over: all but the last ("out"), all but the one before ("in")."""
  if groups == "out":
    return tuple(range(ndim - 1))
  if groups == "in":
    return tuple(k for k in range(ndim) if k != ndim - 2)
  return tuple(groups)


def group_slices(shape: tuple[int, ...], groups: Groups) -> Iterator[tuple[Any, ...]]:
  """An index per group, row-major in the axes which are not summed over."""
  axes = reduced_axes(groups, len(shape))
  kept = [[slice(None)] if k in axes else range(n) for k, n in enumerate(shape)]
  return itertools.product(*kept)


def by_group(
  x: np.ndarray, groups: Groups, one: Callable[[np.ndarray], np.ndarray]
) -> np.ndarray:
  """`one`, a map of vectors, applied to one group after the other."""
  out = np.empty_like(x)
  for index in group_slices(x.shape, groups):
    part = x[index]
    out[index] = one(np.ravel(part)).reshape(np.shape(part))
  return out


def group_sum(
  x: np.ndarray, groups: Groups, one: Callable[[np.ndarray], float]
) -> float:
  """The sum of `one`, a function of vectors, over the groups."""
  return sum(float(one(np.ravel(x[i]))) for i in group_slices(x.shape, groups))


def norm1(x: np.ndarray) -> float:
  """Sum of absolute values."""
  return float(np.sum(np.abs(x)))


def norm2(x: np.ndarray) -> float:
  """Euclidean norm, scaled so that it neither overflows nor underflows."""
  largest = float(np.max(np.abs(x), initial=0.0))
  return largest * float(np.linalg.norm(x / largest)) if largest > 0 else 0.0


def soft(x: np.ndarray, threshold: float) -> np.ndarray:
  """sign(x) max(abs(x) - threshold, 0)."""
  return np.sign(x) * np.maximum(np.abs(x) - threshold, 0)


def block_soft(x: np.ndarray, threshold: float) -> np.ndarray:
  """x max(1 - threshold / norm2(x), 0) of one group."""
  size = norm2(x)
  return x * (1 - threshold / size) if size > threshold else np.zeros_like(x)


@dataclasses.dataclass(frozen=True, eq=False)
class Grouped:
  """A penalty P(x) = sum_g p(x_g), with p a function of one group's vector.

  Attributes:
    name: The constructor's name in `rvsm_jax`.
    density: p(u; hyper) of one group.
    violation: How far u is from being prox(x, step), for one group: zero in exact
      arithmetic if and only if it is (for a convex p stationarity suffices).
    hyper: Names of the hyperparameters, each drawn from [0, 1].
  """

  name: str
  density: Callable[..., float]
  violation: Callable[..., float]
  hyper: tuple[str, ...] = ()

  def __str__(self) -> str:
    return self.name


def _violation(
  u: np.ndarray, x: np.ndarray, l1: float, l2: float, exclusive: float
) -> float:
  """Distance of x - u to the subdifferential at u of a sum of the three terms.

  The terms are l1 * norm1(u) + l2 * norm2(u) + exclusive * norm1(u)^2 / 2.
  """
  l1 = l1 + exclusive * norm1(u)
  if not np.any(u):
    return max(norm2(soft(x, l1)) - l2, 0.0)
  smooth = x - u - l2 * u / norm2(u)
  residual = np.where(u != 0, smooth - l1 * np.sign(u), soft(smooth, l1))
  return float(np.max(np.abs(residual)))


def _l0_violation(u: np.ndarray, x: np.ndarray, step: float) -> float:
  """By how much the objective exceeds that of the better of 0 and x, over norm2(x)."""
  excess = step * np.any(u) + norm2(u - x) ** 2 / 2 - min(step, norm2(x) ** 2 / 2)
  return float(excess) / (norm2(x) or 1.0)


GROUPED = (
  Grouped(
    "group_l0",
    density=lambda u: float(np.any(u)),
    violation=_l0_violation,
  ),
  Grouped(
    "group_lasso",
    density=norm2,
    violation=lambda u, x, step: _violation(u, x, 0, step, 0),
  ),
  Grouped(
    "sparse_group_lasso",
    density=lambda u, mu: mu * norm1(u) + (1 - mu) * norm2(u),
    violation=lambda u, x, step, mu: _violation(u, x, step * mu, step * (1 - mu), 0),
    hyper=("mu",),
  ),
  Grouped(
    "exclusive_lasso",
    density=lambda u: norm1(u) ** 2 / 2,
    violation=lambda u, x, step: _violation(u, x, 0, 0, step),
  ),
  Grouped(
    "combined_group_exclusive",
    density=lambda u, mu: mu * norm1(u) ** 2 / 2 + (1 - mu) * norm2(u),
    violation=lambda u, x, step, mu: _violation(u, x, 0, step * (1 - mu), step * mu),
    hyper=("mu",),
  ),
)


def vector_minimum(
  penalty: Callable[[np.ndarray], float], x: np.ndarray, step: float
) -> tuple[np.ndarray, float]:
  """Minimum over vectors of step * penalty(u) + norm2(u - x)^2 / 2: (argument, value).

  For a penalty which depends on abs(u) alone, so that a minimiser has the signs of x.
  Every support is tried, from two starts, with bounds that keep the signs: within one
  support the objective is smooth.
  """
  size = np.abs(np.ravel(x))

  def objective(u: np.ndarray) -> float:
    return step * penalty(u) + 0.5 * float(np.sum((u - size) ** 2))

  best, arg = objective(np.zeros_like(size)), np.zeros_like(size)
  for support in itertools.product([False, True], repeat=len(size)):
    chosen = np.flatnonzero(support)
    if not len(chosen):
      continue

    def restricted(v: np.ndarray, chosen: np.ndarray = chosen) -> float:
      u = np.zeros_like(size)
      u[chosen] = v
      return objective(u)

    for scale in (1.0, 0.3):
      found = scipy.optimize.minimize(
        restricted,
        scale * size[chosen] + 1e-6,
        bounds=[(0.0, None)] * len(chosen),
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10},
      )
      if found.fun < best:
        best, arg = float(found.fun), np.zeros_like(size)
        arg[chosen] = found.x
  return (np.sign(np.ravel(x)) * arg).reshape(np.shape(x)), best


# ------------------------------------------------------------------------------------
# Transformed l1 with 50 digits.
# ------------------------------------------------------------------------------------
def tl1_threshold(gamma: float, a: float) -> mpmath.mpf:
  """The largest abs(x) which the proximal map of gamma * TL1 sends to 0."""
  with mpmath.workdps(50):
    gamma, a = mpmath.mpf(gamma), mpmath.mpf(a)
    if gamma <= a**2 / (2 * (a + 1)):
      return gamma * (a + 1) / a
    return mpmath.sqrt(2 * gamma * (a + 1)) - a / 2


def tl1_prox(x: float, gamma: float, a: float) -> mpmath.mpf:
  """The minimiser of gamma * TL1(u) + (u - x)^2 / 2, by the cubic's largest root."""
  with mpmath.workdps(50):
    size, exact_gamma, exact_a = abs(mpmath.mpf(x)), mpmath.mpf(gamma), mpmath.mpf(a)
    if size <= tl1_threshold(gamma, a):
      return mpmath.mpf(0)
    shifted = exact_a + size
    cosine = 1 - 27 * exact_gamma * exact_a * (exact_a + 1) / (2 * shifted**3)
    root = shifted * 2 / 3 * mpmath.cos(mpmath.acos(cosine) / 3)
    return mpmath.sign(x) * (root - 2 * exact_a / 3 + size / 3)


def rounded(value: mpmath.mpf, bits: int, lowest_exponent: int) -> float:
  """`value` rounded once to the nearest number of a binary format, ties to even.

  Args:
    value: What is rounded.
    bits: Length of the significand, the hidden bit included (11 for float16).
    lowest_exponent: Exponent of the smallest subnormal number (-24 for float16).
  """
  if value == 0:
    return 0.0
  with mpmath.workdps(50):
    _, exponent = mpmath.frexp(value)
    quantum = mpmath.ldexp(1, max(int(exponent) - bits, lowest_exponent))
    return float(mpmath.nint(value / quantum) * quantum)
