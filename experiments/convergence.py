r"""Dinh & Xin (2020), the theory: Theorem 1 and what belongs to it, in numbers.

A network of k hidden units shares one weight w on k disjoint Gaussian patches. Its
population loss (5) and gradient (13) have closed forms, so RVSM can be run on them
exactly, in double precision: it is the library's own `rvsm`, after `optax.sgd`. What
the paper claims is counted over a grid inside the conditions of Theorem 1; outside
them, a scan shows what breaks first. Everywhere ‖w*‖ = 1.

The largest eigenvalue of the Hessian of f is 2a/k² wherever f is smooth, because
f - a/k² ‖w‖² is concave; so this is the L of Theorem 1, see `curvature`.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import pathlib
import time
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich.progress
import tyro

from experiments import _plots, _run
import rvsm_jax

_RESULTS = pathlib.Path(__file__).parent / "results" / "convergence"

# A number, or a NumPy or JAX array (or a tracer) of them, one per run.
Number = Any

PENALTIES = {
  "l1": rvsm_jax.l1(),
  "l0": rvsm_jax.l0(),
  "TL1": rvsm_jax.transformed_l1(1.0),
}
ORDERINGS = ("gauss_seidel", "jacobi")
_COLORS = {"l1": _plots.BLUE, "l0": _plots.ORANGE, "TL1": _plots.GREEN}

# What counts as a rise, of numbers of size 1 in double precision.
ROUNDING = 1e-13
# Of the gradient of the Lagrangian at the end of a run that has converged.
CONVERGED = 1e-8


# The network, and what the paper says about it


def network(w: jax.Array, patches: jax.Array) -> jax.Array:
  """Output of the network for one input: the mean of its hidden units.

  Args:
    w: the shared weight, (d,).
    patches: the disjoint parts of the input, (k, d).

  Returns:
    A scalar.
  """
  return jnp.mean(jax.nn.relu(patches @ w))


def angle(u: jax.Array, v: jax.Array) -> jax.Array:
  """Angle between two vectors, to rounding also near 0 and pi, unlike arccos."""
  a, b = jnp.linalg.norm(v) * u, jnp.linalg.norm(u) * v
  return 2 * jnp.arctan2(jnp.linalg.norm(a - b), jnp.linalg.norm(a + b))


def population_loss(w: jax.Array, target: jax.Array, k: Number) -> jax.Array:
  r"""Expected squared error of the network, equation (5).

  .. math::
    f(w) = \frac{1}{k^2} [a (\|w\|^2 + \|w^*\|^2) - 2 k g(w, w^*)
      - 2 b \|w\| \|w^*\|], \quad b = \frac{k^2 - k}{2\pi}, \; a = b + \frac k2

  with g of Lemma 1.

  Args:
    w: weight, (d,).
    target: the true weight, (d,).
    k: number of patches.

  Returns:
    A scalar.
  """
  b = (k * k - k) / (2 * jnp.pi)
  a = b + k / 2
  norms = jnp.linalg.norm(w), jnp.linalg.norm(target)
  theta = angle(w, target)
  both = norms[0] * norms[1]
  g = both / (2 * jnp.pi) * (jnp.sin(theta) + (jnp.pi - theta) * jnp.cos(theta))
  return (a * (norms[0] ** 2 + norms[1] ** 2) - 2 * k * g - 2 * b * both) / (k * k)


def _radial(w: jax.Array, target: jax.Array, k: Number) -> jax.Array:
  """The factor of w in the gradient, times k: (13) over k."""
  ratio = jnp.linalg.norm(target) / jnp.linalg.norm(w)
  bend = ratio * jnp.sin(angle(w, target))
  return 1 + (k - 1) / jnp.pi * (1 - ratio) - bend / jnp.pi


def gradient(w: jax.Array, target: jax.Array, k: Number) -> jax.Array:
  """Gradient of `population_loss`, equation (13); there is none at w = 0."""
  pull = (jnp.pi - angle(w, target)) / jnp.pi * target
  return (_radial(w, target, k) * w - pull) / k


def saddle(target: jax.Array, k: Number) -> jax.Array:
  """The degenerate saddle point of Lemma 3, 2 (c), for k > 1."""
  return -(k * k - k) / (k * k + (jnp.pi - 1) * k) * target


def curvature(k: Number) -> Number:
  r"""The largest eigenvalue of the Hessian, :math:`2a/k^2 = 1/k + (1 - 1/k)/\pi`.

  f is :math:`a/k^2 \|w\|^2` plus a constant minus two convex functions, g and the
  norm, so the inequality after Lemma 2 holds with this L between any two points,
  also through the origin, and no smaller L will do: it is the radial eigenvalue.
  """
  return 1 / k + (1 - 1 / k) / np.pi


def largest_beta(delta: Number, k: Number) -> Number:
  """The bound on beta of Theorem 1 (iii)."""
  return delta * np.sin(delta) / (k * np.pi)


def expansion(
  w: jax.Array, u: jax.Array, target: jax.Array, k: Number, beta: Number
) -> tuple[jax.Array, jax.Array]:
  """C of equation (12), and the norm of what is left between its two sides.

  C is the factor of w in the gradient, divided by that of w*; both sides then agree
  where the gradient of the Lagrangian is zero.
  """
  share = jnp.pi / (jnp.pi - angle(w, target))
  c = share * _radial(w, target, k)
  return c, jnp.linalg.norm(target - share * k * beta * (w - u) - c * w)


# RVSM


class Setting(NamedTuple):
  """The parameters of n runs, each an array of shape (n,)."""

  k: np.ndarray
  delta: np.ndarray
  lam: np.ndarray
  beta: np.ndarray
  eta: np.ndarray


class Trace(NamedTuple):
  """What is recorded at (w_t, u_t), of n runs: each (n, steps)."""

  lagrangian: Any
  angle: Any
  residual: Any
  norm: Any


class Runs(NamedTuple):
  """Runs of RVSM: of n runs in d dimensions, vectors are (n, d)."""

  setting: Setting
  start: np.ndarray
  target: np.ndarray
  w: np.ndarray
  u: np.ndarray
  c: np.ndarray
  left: np.ndarray
  trace: Trace

  @property
  def error(self) -> np.ndarray:
    """Distance of the limit from w*."""
    return np.linalg.norm(self.w - self.target, axis=1)


def _run_one(
  setting: Any,
  start: jax.Array,
  target: jax.Array,
  penalty: rvsm_jax.Penalty,
  ordering: Any,
  steps: int,
) -> tuple[Any, ...]:
  k, _, lam, beta, eta = setting
  tx = optax.chain(
    optax.sgd(eta),
    rvsm_jax.rvsm(eta, penalty, lam=lam, beta=beta, ordering=ordering),
  )

  def step(carry: tuple, _: None) -> tuple[tuple, Trace]:
    w, state = carry
    u = rvsm_jax.sparse_params(state, w)
    grads = gradient(w, target, k)
    loss = population_loss(w, target, k)
    trace = Trace(
      rvsm_jax.lagrangian(loss, penalty, w, u, lam=lam, beta=beta),
      angle(w, target),
      rvsm_jax.critical_point_residual(grads, w, u, beta),
      jnp.linalg.norm(w),
    )
    updates, state = tx.update(grads, state, w)
    return (optax.apply_updates(w, updates), state), trace

  (w, state), trace = jax.lax.scan(step, (start, tx.init(start)), length=steps)
  u = rvsm_jax.sparse_params(state, w)
  return w, u, *expansion(w, u, target, k, beta), trace


@functools.partial(jax.jit, static_argnames=("penalty", "ordering", "steps"))
def _run_all(
  setting: Setting,
  start: jax.Array,
  target: jax.Array,
  penalty: rvsm_jax.Penalty,
  ordering: str,
  steps: int,
) -> tuple[Any, ...]:
  run = functools.partial(_run_one, penalty=penalty, ordering=ordering, steps=steps)
  return jax.vmap(run)(setting, start, target)


def simulate(
  setting: Setting,
  start: np.ndarray,
  target: np.ndarray,
  penalty: rvsm_jax.Penalty,
  ordering: str = "gauss_seidel",
  steps: int = 2000,
) -> Runs:
  """Runs RVSM from each start; call it under `jax.enable_x64(True)`.

  Args:
    setting: the parameters, (n,) each.
    start: w_0, (n, d).
    target: w*, (n, d).
    penalty: the penalty.
    ordering: of `rvsm_jax.rvsm`.
    steps: how many.
  """
  setting = Setting(*(np.asarray(x, np.float64) for x in setting))
  out = _run_all(setting, start, target, penalty, ordering, steps)
  return Runs(setting, start, target, *jax.tree.map(np.asarray, out))


def draw(
  rng: np.random.Generator, d: int, theta: np.ndarray, norm: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Starts of given norms, and at given angles to targets uniform on the sphere.

  Args:
    rng: where the numbers come from.
    d: dimension, at least 2.
    theta: angles, (n,).
    norm: norms of the starts, (n,).

  Returns:
    The starts and the targets, (n, d) each.
  """
  target, other = rng.normal(size=(2, len(theta), d))
  target /= np.linalg.norm(target, axis=1, keepdims=True)
  other -= np.sum(other * target, axis=1, keepdims=True) * target
  other /= np.linalg.norm(other, axis=1, keepdims=True)
  along, across = norm * np.cos(theta), norm * np.sin(theta)
  return along[:, None] * target + across[:, None] * other, target


def conditions(
  k: Number, delta: Number, d: int, *, beta: Number, lam: Number, eta: Number
) -> Setting:
  """Parameters as multiples of the largest that Theorem 1 allows.

  Args:
    k: number of patches.
    delta: of the theorem.
    d: dimension.
    beta: times delta sin(delta) / (k pi).
    lam: times beta / sqrt(d).
    eta: times 1 / (beta + L).
  """
  k, delta, beta, lam, eta = map(
    np.asarray, np.broadcast_arrays(k, delta, beta, lam, eta)
  )
  stiffness = beta * largest_beta(delta, k)
  return Setting(
    k,
    delta,
    lam * stiffness / np.sqrt(d),
    stiffness,
    eta / (stiffness + curvature(k)),
  )


# What is counted


class Check(NamedTuple):
  """For each of n runs, whether it breaks a claim, and by what measure."""

  broken: np.ndarray
  measure: np.ndarray
  meaning: str


def checks(runs: Runs) -> dict[str, Check]:
  """The claims about single runs, counted.

  A run that is not finite breaks them all.
  """
  k, delta, lam, beta, eta = runs.setting
  trace = runs.trace
  d = runs.w.shape[1]
  rise = np.diff(trace.lagrangian, axis=1).max(1)
  turn = np.diff(trace.angle, axis=1)
  above = np.where(trace.angle[:, :-1] >= delta[:, None], turn, -np.inf).max(1)
  final = trace.angle[:, -1]
  with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
    upper = 1 / (1 - 2 * k * lam * np.sqrt(d))
    descent = eta * (1 - eta * (curvature(k) + beta) / 2)
    best = np.minimum.accumulate(trace.residual, axis=1) ** 2
    spent = np.arange(1, best.shape[1] + 1) * descent[:, None]
    budget = trace.lagrangian[:, :1] - trace.lagrangian[:, -1:]
    excess = (best * spent - budget).max(1)
  inner, outer = (k - 1) / (np.pi + k - 1 + k * np.pi * beta), 1.0
  norm = trace.norm[:, -1]
  settled = trace.residual[:, -1] < CONVERGED
  lost = ~np.any(runs.u != 0, axis=1)

  def holds(condition: np.ndarray, measure: np.ndarray, meaning: str) -> Check:
    return Check(~condition, measure, meaning)

  return {
    "Lagrangian never rises": holds(rise <= ROUNDING, rise, "largest rise"),
    "angle never rises": holds(
      turn.max(1) <= ROUNDING, final - trace.angle.min(1), "final minus smallest angle"
    ),
    "angle never rises while >= delta": holds(above <= ROUNDING, above, "largest rise"),
    "(w, u) converges": holds(settled, trace.residual[:, -1], "final residual"),
    "limit angle < delta": holds(final < delta, final / delta, "angle / delta"),
    "(12) holds": holds(runs.left < 100 * CONVERGED, runs.left, "its residual"),
    "C > 0": holds(runs.c > 0, -runs.c, "-C"),
    "C < 1/(1 - 2 k lam sqrt d)": holds(
      (runs.c < upper) & (upper > 0), runs.c, "largest C"
    ),
    "least residual in T steps = O(1/sqrt T)": holds(
      excess <= ROUNDING, excess, "T eta (1 - eta (L + beta)/2) r² - (L_0 - L_T)"
    ),
    "norm of the limit in the annulus": holds(
      (norm >= inner - CONVERGED) & (norm <= outer + CONVERGED), 1 - norm, "1 - norm"
    ),
    "u is not all zero": holds(~lost, lost.astype(float), "1 if it is"),
  }


def _join(parts: Sequence[dict[str, Check]]) -> dict[str, Check]:
  """The checks of several batches of runs as one."""
  return {
    name: Check(
      np.concatenate([part[name].broken for part in parts]),
      np.concatenate([part[name].measure for part in parts]),
      parts[0][name].meaning,
    )
    for name in parts[0]
  }


@dataclasses.dataclass(frozen=True)
class Config:
  """What is run.

  Attributes:
    dims: dimensions d of the grid.
    starts: starts and targets per setting of the grid; the first is at the angle
      pi - delta, the others are uniform below it.
    steps: of each run.
    scan_starts: starts and targets per point of the scans and of the error fit.
    samples: inputs of the Monte Carlo.
    seed: of starts, targets and inputs.
  """

  dims: tuple[int, ...] = (4, 20, 100)
  starts: int = 3
  steps: int = 2000
  scan_starts: int = 40
  samples: int = 400_000
  seed: int = 0


QUICK = Config(dims=(20,), starts=2, steps=1500, scan_starts=8, samples=100_000)


def grid(config: Config, d: int) -> tuple[Setting, np.ndarray, np.ndarray]:
  """The settings inside the conditions of Theorem 1, with starts and targets."""
  rng = np.random.default_rng((config.seed, d))
  axes = itertools.product(
    (2.0, 5.0, 20.0),
    (np.pi / 8, np.pi / 4, np.pi / 2, 2.0),
    (0.25, 1.0),
    (0.1, 0.5, 0.99),
    (0.5, 1.0),
    range(config.starts),
  )
  k, delta, beta, lam, eta, index = np.array(list(axes)).T
  setting = conditions(k, delta, d, beta=beta, lam=lam, eta=eta)
  theta = (np.pi - delta) * np.where(index == 0, 1, rng.uniform(0, 1, len(k)))
  # Lemma 5's annulus, which the paper assumes without loss of generality.
  inner = (k - 1) / (np.pi + k - 1)
  start, target = draw(rng, d, theta, rng.uniform(inner, 1))
  return setting, start, target


def inside(config: Config, penalty: str, ordering: str) -> dict[str, Any]:
  """Counts the claims over the grid."""
  all_runs = [
    simulate(*grid(config, d), PENALTIES[penalty], ordering, config.steps)
    for d in config.dims
  ]
  counted = _join([checks(runs) for runs in all_runs])
  farthest = np.concatenate(
    [np.arange(len(runs.w)) % config.starts == 0 for runs in all_runs]
  )
  rows = {
    name: {
      "runs": len(check.broken),
      "broken": int(check.broken.sum()),
      "broken_from_pi_minus_delta": int(check.broken[farthest].sum()),
      "worst": float(np.max(check.measure)),
      "measure": check.meaning,
    }
    for name, check in counted.items()
  }
  rows["C < 1/(1 - 2 k lam sqrt d)"]["empty_interval"] = sum(
    int(np.sum(2 * s.k * s.lam * np.sqrt(runs.w.shape[1]) >= 1))
    for runs in all_runs
    for s in [runs.setting]
  )
  return {"penalty": penalty, "ordering": ordering, "claims": rows}


def error_against_beta(config: Config) -> list[dict[str, Any]]:
  """‖w - w*‖ for a range of beta at fixed lam/beta, and the slope of the fit."""
  d, delta, factors = 20, np.pi / 4, np.geomspace(1e-3, 1, 10)
  out = []
  for penalty in PENALTIES:
    rng = np.random.default_rng((config.seed, 1))
    k, factor, _ = np.array(
      list(itertools.product((2.0, 5.0, 20.0), factors, range(config.scan_starts)))
    ).T
    # Weak thresholds: most entries of a unit vector are above them for each penalty.
    setting = conditions(k, delta, d, beta=factor, lam=0.05, eta=1.0)
    start, target = draw(rng, d, np.full_like(k, np.pi - delta), np.full_like(k, 0.9))
    runs = simulate(setting, start, target, PENALTIES[penalty], steps=config.steps)
    shape = (3, len(factors), config.scan_starts)
    errors = runs.error.reshape(shape).mean(2)
    betas = setting.beta.reshape(shape)[:, :, 0]
    constants = runs.error / (
      setting.k * setting.beta * np.linalg.norm(runs.w - runs.u, axis=1)
    )
    for i, patches in enumerate((2, 5, 20)):
      slope = np.polyfit(np.log(betas[i]), np.log(errors[i]), 1)[0]
      out.append(
        {
          "penalty": penalty,
          "k": patches,
          "d": d,
          "beta": betas[i],
          "error": errors[i],
          "slope": float(slope),
          "largest_error_over_k_beta_gap": float(constants.reshape(3, -1)[i].max()),
        }
      )
  return out


SCANS: dict[str, tuple[str, tuple[float, ...]]] = {
  "beta": ("beta over its bound", (0.5, 1, 2, 4, 8, 12, 16, 32, 64)),
  "lam": ("lam sqrt(d) / beta", (0.1, 0.5, 1, 1.5, 2, 4, 8)),
  "eta": ("eta (beta + L)", (0.5, 1, 1.5, 1.9, 2.1, 2.25, 2.5, 3)),
  "phi": ("(pi - initial angle) / delta", (1, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02)),
  "k": ("k", (1, 2, 5)),
}
_SCANNED = (
  "Lagrangian never rises",
  "angle never rises while >= delta",
  "(w, u) converges",
  "limit angle < delta",
  "C > 0",
  "u is not all zero",
)


def outside(config: Config, penalty: str) -> tuple[dict[str, Any], Runs]:
  """Leaves one condition of Theorem 1 at a time; shares of runs that break claims.

  Returns:
    The scans, and the runs inside all conditions, for pictures.
  """
  d, delta = 20, np.pi / 4
  points = [(scan, value) for scan, (_, values) in SCANS.items() for value in values]
  n = config.scan_starts

  def column(scan: str, default: float) -> np.ndarray:
    return np.repeat([v if s == scan else default for s, v in points], n)

  setting = conditions(
    column("k", 5.0),
    delta,
    d,
    beta=column("beta", 1.0),
    lam=column("lam", 0.5),
    eta=column("eta", 1.0),
  )
  rng = np.random.default_rng((config.seed, 2))
  theta = np.pi - delta * column("phi", 1.0)
  start, target = draw(rng, d, theta, np.full_like(theta, 0.9))
  runs = simulate(setting, start, target, PENALTIES[penalty], steps=config.steps)
  counted = checks(runs)
  scans = {
    scan: {
      "values": values,
      "broken": {
        name: [
          float(counted[name].broken[column(scan, np.nan) == value].mean())
          for value in values
        ]
        for name in _SCANNED
      },
    }
    for scan, (_, values) in SCANS.items()
  }
  within = column("beta", np.nan) == 1
  return scans, jax.tree.map(lambda x: x[within], runs)


def lemmas(config: Config) -> dict[str, Any]:
  """Loss, gradient, critical points and L against each other and a Monte Carlo."""
  rng = np.random.default_rng((config.seed, 3))
  parts = [_lemmas(rng, k, config) for k in (2.0, 5.0, 20.0)]
  opposite = jnp.array([-1e-3, 0.0])
  pole = jnp.array([1.0, 0.0])
  rise = population_loss(opposite, pole, 1) - population_loss(0 * opposite, pole, 1)
  return {
    **{name: max(part[name] for part in parts) for name in parts[0]},
    "k = 1: change of the loss from w = 0 towards -w* (> 0: no maximum)": float(rise),
  }


@jax.jit
def _on_points(points: jax.Array, target: jax.Array, k: Number) -> tuple:
  """Loss, gradient (13) and gradient of the loss at each of the points."""

  def at(w: jax.Array) -> tuple:
    value, automatic = jax.value_and_grad(population_loss)(w, target, k)
    return value, gradient(w, target, k), automatic

  return jax.vmap(at)(points)


def _lemmas(rng: np.random.Generator, k: float, config: Config) -> dict[str, float]:
  d = 5
  target, across = jnp.asarray(rng.normal(size=(2, d)))
  across -= across @ target / (target @ target) * target
  points = jnp.asarray(rng.normal(size=(32, d)))
  values, closed, automatic = _on_points(points, target, k)
  step = points[None] - points[:, None]
  bent = values[None] - values[:, None] - jnp.einsum("id,ijd->ij", closed, step)
  bent /= jnp.sum(step**2, axis=2) / 2 + jnp.eye(len(points))
  low = saddle(target, k)
  level = population_loss(low, target, k)
  around = [low + 1e-2 * across, low - 1e-2 * across, 0.99 * low, 1.01 * low]
  steps = _on_points(jnp.stack(around), target, k)[0] - level
  top = population_loss(jnp.zeros(d), target, k)
  stationary = [gradient(target, target, k), gradient(low, target, k)]
  return {
    "gradient (13): largest difference from autodiff of (5)": float(
      jnp.max(jnp.abs(closed - automatic))
    ),
    "Monte Carlo of (5) and (13): largest deviation in standard errors": monte_carlo(
      points[0], target, int(k), config.samples, config.seed
    ),
    "gradient at w* and at the saddle: largest entry": float(
      jnp.max(jnp.abs(jnp.stack(stationary)))
    ),
    "change of the loss across the saddle (< 0)": float(jnp.max(steps[:2])),
    "minus its change along the saddle's ray (< 0)": float(jnp.max(-steps[2:])),
    "change of the loss from w = 0, k > 1 (< 0: a maximum)": float(
      jnp.max(_on_points(1e-3 * points, target, k)[0] - top)
    ),
    "largest curvature between two points, over L = 2a/k² (<= 1)": float(
      jnp.max(bent) / curvature(k)
    ),
  }


def monte_carlo(
  w: jax.Array, target: jax.Array, k: int, samples: int, seed: int
) -> float:
  """Loss and gradient of the real network on Gaussian patches against (5), (13).

  Returns:
    The largest deviation, in standard errors.
  """
  patches = jax.random.normal(
    jax.random.key(seed), (samples, k, len(target)), jnp.float64
  )

  def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.square(network(w, x) - network(target, x))

  drawn = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))(w, patches)
  exact = population_loss(w, target, k), gradient(w, target, k)

  def deviation(sample: jax.Array, value: jax.Array) -> jax.Array:
    error = jnp.std(sample, axis=0) / np.sqrt(samples)
    return jnp.max(jnp.abs(jnp.mean(sample, axis=0) - value) / error)

  return float(max(jax.tree.leaves(jax.tree.map(deviation, drawn, exact))))


# Counterexamples: in two dimensions, for k = 2


_EXAMPLE_PENALTIES = {**PENALTIES, "TL1, a = 0.1": rvsm_jax.transformed_l1(0.1)}


class Example(NamedTuple):
  """A run, what it contradicts, and what it does.

  `inside` tells whether it meets the conditions of Theorem 1.
  """

  claim: str
  setting: dict[str, float]
  penalty: str
  ordering: str
  start: tuple[float, float]
  target: tuple[float, float]
  shows: Callable[[Runs], tuple[bool, str]]
  inside: bool = True


def _angle_rises(runs: Runs) -> tuple[bool, str]:
  theta = runs.trace.angle[0]
  return bool(theta[-1] > theta[0] + 1e-3), (
    f"the angle rises from {theta[0]:.4f} to {theta[-1]:.4f}"
  )


def _turns_away(runs: Runs) -> tuple[bool, str]:
  theta = runs.trace.angle[0]
  return bool(theta[1] > theta[0] + 1e-3), (
    f"‖w_0‖ = {runs.trace.norm[0, 0]:.2f}: the first step raises the angle from"
    f" {theta[0]:.4f} = pi - delta to {theta[1]:.4f}"
  )


def _cycles(runs: Runs) -> tuple[bool, str]:
  energy, residual = runs.trace.lagrangian[0], runs.trace.residual[0]
  rise = float(np.diff(energy[-100:]).max())
  same = abs(energy[-1] - energy[-3]) < ROUNDING
  return bool(rise > 1e-6 and same and residual[-100:].min() > 1e-3), (
    f"period 2 for ever: the Lagrangian alternates between {energy[-2:].min():.6f} and"
    f" {energy[-2:].max():.6f}, the residual stays at {residual[-1]:.4f}"
  )


def _norm_falls(runs: Runs) -> tuple[bool, str]:
  norm = runs.trace.norm[0]
  return bool(norm[1] < norm[0] < 1), (
    f"‖w_0‖ = {norm[0]:.4f} < 1 = ‖w*‖, but ‖w_1‖ = {norm[1]:.4f}"
  )


def _empty_interval(runs: Runs) -> tuple[bool, str]:
  k, _, lam, _, _ = (float(x[0]) for x in runs.setting)
  room = 1 - 2 * k * lam * np.sqrt(2)
  return bool(room < 0 < runs.c[0]), (
    f"1 - 2 k lam sqrt(d) = {room:.4f}, so the interval is empty; C = {runs.c[0]:.4f}"
  )


def _all_zero(runs: Runs) -> tuple[bool, str]:
  return bool(not runs.u.any()), f"the limit has u = 0, w = {np.round(runs.w[0], 4)}"


def _ends_at_the_saddle(runs: Runs) -> tuple[bool, str]:
  trace = runs.trace
  there = trace.angle[0, -1] > 3.14 and trace.residual[0, -1] < CONVERGED
  return bool(there), (
    f"from pi - {np.pi - trace.angle[0, 0]:.3f} the angle rises to pi, and w ="
    f" {np.round(runs.w[0], 4)} is a limit, residual {trace.residual[0, -1]:.0e}"
  )


_TARGET = (0.8, 0.6)
_BASE = {"k": 2.0, "delta": np.pi / 2, "beta": 0.25}
EXAMPLES = (
  Example(
    "Theorem 1, Corollary 2: the angle decreases monotonically",
    {**_BASE, "lam": 0.1},
    *("l1", "gauss_seidel", _TARGET, _TARGET, _angle_rises),
  ),
  Example(
    "Section 5.4, ‖u‖ <= 1: the start may be anywhere (no condition on ‖w_0‖)",
    {**_BASE, "lam": 0.175},
    *("l0", "gauss_seidel", (3.0, 1.15), (-1.15 / 3.2128, 3 / 3.2128), _turns_away),
  ),
  Example(
    "Corollary 2 with Algorithm 1 as printed (w_{t+1} from u_t = S(w_{t-1}))",
    {**_BASE, "lam": 0.03},
    *("l0", "jacobi", (0.1, 0.2), _TARGET, _cycles),
  ),
  Example(
    "The same for transformed l1, where its threshold jumps, lam/beta > a²/(2(a+1))",
    {**_BASE, "lam": 0.03},
    *("TL1, a = 0.1", "jacobi", (0.1, 0.2), _TARGET, _cycles),
  ),
  Example(
    "Proof of Lemma 5: if ‖w_t‖ < ‖w*‖ then ‖w_{t+1}‖ > ‖w_t‖",
    {**_BASE, "lam": 0.1},
    *("l1", "gauss_seidel", (0.784, 0.588), _TARGET, _norm_falls),
  ),
  Example(
    "Corollary 1: C in (0, 1/(1 - 2 k lam sqrt d))",
    {"k": 2.0, "delta": 2.0, "beta": 0.289, "lam": 0.2},
    *("l1", "gauss_seidel", (0.6, 0.6), _TARGET, _empty_interval),
  ),
  Example(
    "Section 5.4: lam/beta < 1/sqrt(d) keeps u from being zero (l1)",
    {**_BASE, "lam": 0.176},
    *("l1", "gauss_seidel", (0.6, 0.6), (0.7072, 0.7070), _all_zero),
  ),
  Example(
    "The same with l0, whose threshold is sqrt(2 lam/beta) (Corollary 2)",
    {**_BASE, "lam": 0.1},
    *("l0", "gauss_seidel", (0.6, 0.6), _TARGET, _all_zero),
  ),
  Example(
    "Condition (ii) is needed: w* on an axis, w_0 nearer to -w* than delta",
    {**_BASE, "lam": 0.01},
    *("l1", "gauss_seidel", (-0.4975, -0.0499), (1.0, 0.0), _ends_at_the_saddle),
    inside=False,
  ),
)


def run_example(example: Example, steps: int = 1000, ordering: str = "") -> Runs:
  """Runs a counterexample, in another ordering if one is given.

  Raises:
    ValueError: if it claims to meet the conditions of Theorem 1, and does not.
  """
  p = example.setting
  eta = 1 / (p["beta"] + curvature(p["k"]))
  start, target = np.array([example.start]), np.array([example.target])
  target /= np.linalg.norm(target)
  theta = float(angle(start[0], target[0]))
  if example.inside and not (
    theta <= np.pi - p["delta"] + 1e-12
    and p["beta"] <= largest_beta(p["delta"], p["k"]) + 1e-12
    and p["lam"] / p["beta"] < 1 / np.sqrt(2)
  ):
    raise ValueError(f"Not inside the conditions of Theorem 1: {example}.")
  values = (p["k"], p["delta"], p["lam"], p["beta"], eta)
  setting = Setting(*(np.array([value]) for value in values))
  return simulate(
    setting,
    start,
    target,
    _EXAMPLE_PENALTIES[example.penalty],
    ordering or example.ordering,
    steps,
  )


# Figures


def draw_descent(path: pathlib.Path, sample: Mapping[str, Runs]) -> None:
  """Lagrangian and angle over the steps, and the cycle of the printed ordering."""
  with _plots.figure(path, columns=3) as axes:
    energy, turn, cycle = axes[0]
    for penalty, runs in sample.items():
      for i in range(3):
        label = penalty if i == 0 else None
        style = {"color": _COLORS[penalty], "label": label, "linewidth": 1.1}
        above = runs.trace.lagrangian[i] - runs.trace.lagrangian[i, -1]
        energy.plot(np.where(above > 1e-15, above, np.nan), **style)
        turn.plot(runs.trace.angle[i], **style)
    energy.set(
      title="Lagrangian above its limit", xlabel="step", yscale="log", xlim=(0, 60)
    )
    delta = runs.setting.delta[0]
    turn.axhline(delta, color=_plots.GREY, linestyle="--", linewidth=1)
    turn.text(60, delta * 1.06, "δ", ha="right", va="bottom")
    turn.set(
      title="Angle between w and w*",
      xlabel="step",
      yscale="log",
      xlim=(0, 60),
      ylim=(0.01, np.pi),
    )
    example = next(e for e in EXAMPLES if e.ordering == "jacobi")
    labels = ("gauss–seidel", "jacobi (as printed)")
    colors = (_plots.BLUE, _plots.ORANGE)
    for ordering, color, label in zip(ORDERINGS, colors, labels, strict=True):
      residual = run_example(example, ordering=ordering).trace.residual[0]
      cycle.plot(residual, color=color, label=label)
    cycle.set(
      title="A cycle: ‖∇$_w$ Lagrangian‖, l0, k = d = 2",
      xlabel="step",
      yscale="log",
      xlim=(0, 60),
      ylim=(1e-15, 3),
    )
    for panel, place in zip(
      axes[0], ("upper right", "lower left", "center right"), strict=True
    ):
      panel.legend(loc=place)


def draw_error(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> None:
  """‖w - w*‖ against beta."""
  patches = sorted({row["k"] for row in rows})
  with _plots.figure(path, columns=len(patches), width=3.9) as axes:
    for panel, k in zip(axes[0], patches, strict=True):
      for row in (row for row in rows if row["k"] == k):
        panel.loglog(
          row["beta"],
          row["error"],
          marker="o",
          markersize=4,
          color=_COLORS[row["penalty"]],
          label=f"{row['penalty']}, slope {row['slope']:.3f}",
        )
      panel.set(title=f"k = {k}", xlabel="β, at fixed λ/β")
      panel.legend()
    axes[0, 0].set_ylabel("‖w − w*‖ at the limit")


def draw_shrinkage(path: pathlib.Path, config: Config) -> None:
  """The limits against w*, entry by entry, with the curve of equation (12)."""
  d, k, delta = 200, 5.0, np.pi / 2
  # So that the thresholds are alike: lam/beta, its double, the root of its double.
  factors = {"l1": 0.5, "l0": 0.125 / np.sqrt(d), "TL1": 0.25}
  rng = np.random.default_rng((config.seed, 4))
  start, target = draw(rng, d, np.array([1.0]), np.array([0.9]))
  with _plots.figure(path, columns=3, width=4.0, height=3.9) as axes:
    for panel, (penalty, factor) in zip(axes[0], factors.items(), strict=True):
      setting = conditions(np.array([k]), delta, d, beta=1.0, lam=factor, eta=1.0)
      runs = simulate(setting, start, target, PENALTIES[penalty], steps=config.steps)
      share = k * np.pi / (np.pi - runs.trace.angle[0, -1]) * setting.beta[0]
      bar = 1.05 * np.abs(runs.w).max() * np.linspace(-1, 1, 4001)
      step = setting.lam[0] / setting.beta[0]
      kept = np.asarray(PENALTIES[penalty].prox(jnp.asarray(bar), step))
      curve = share * (bar - kept) + runs.c[0] * bar
      panel.axline(
        (0, 0), slope=1, color=_plots.GREY, linestyle=":", linewidth=1, label="w*"
      )
      for i, part in enumerate((kept < 0, kept == 0, kept > 0)):
        label = "equation (12)" if i == 0 else None
        panel.plot(
          curve[part], bar[part], color=_plots.SKY, linewidth=4, alpha=0.6, label=label
        )
      dots = {"linestyle": "none", "marker": "o", "markersize": 3.5}
      panel.plot(target[0], runs.u[0], color=_plots.ORANGE, label="u", **dots)
      panel.plot(target[0], runs.w[0], color=_plots.BLUE, label="w", **dots)
      panel.set(
        title=f"{penalty}: {np.mean(runs.u == 0):.0%} zeros in u, C = {runs.c[0]:.2f}",
        xlabel="true weight w*",
      )
      panel.legend(loc="upper left")
    axes[0, 0].set_ylabel("limit of RVSM")


def draw_outside(path: pathlib.Path, scans: Mapping[str, dict[str, Any]]) -> None:
  """Which claims break as one condition is left at a time."""
  shown = ("l1", "l0")
  columns = [scan for scan in SCANS if scan != "k"]
  with _plots.figure(path, len(shown), len(columns), width=3.5, height=2.9) as axes:
    for line, penalty in zip(axes, shown, strict=True):
      for panel, scan in zip(line, columns, strict=True):
        data = scans[penalty][scan]
        for i, (name, shares) in enumerate(data["broken"].items()):
          # Lines that coincide stay visible.
          panel.plot(
            data["values"],
            np.array(shares) + 0.012 * (i - 2.5),
            marker="o",
            markersize=3.5,
            color=_plots.COLORS[i],
            label=name,
          )
        if scan == "phi":
          panel.invert_xaxis()
        allowed = "≥ 1" if scan == "phi" else "≤ 1"
        panel.axvline(1, color=_plots.GREY, linestyle="--", linewidth=1)
        panel.set(
          xscale="linear" if scan == "eta" else "log",
          xlabel=f"{SCANS[scan][0]} (theorem: {allowed})",
          ylim=(-0.06, 1.08),
        )
        panel.xaxis.set_major_formatter("{x:g}")
        _plots.percent_axis(panel, 0)
      line[0].set_ylabel(f"{penalty}: runs that break it")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    axes[0, 0].figure.legend(
      handles, labels, loc="outside upper center", ncols=3, frameon=False
    )


# The report


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  lines = [header, [":--", *["--:"] * (len(header) - 1)], *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def first_broken(scan: Mapping[str, Any], name: str) -> str:
  """The first value of a scan from the theorem's own on, outwards, that breaks it."""
  broken = zip(scan["values"], scan["broken"][name], strict=True)
  return next((f"{value:g} ({share:.0%})" for value, share in broken if share), "–")


def markdown(result: Mapping[str, Any]) -> str:
  """The report."""
  inside_rows = result["inside"]
  total = next(iter(inside_rows[0]["claims"].values()))["runs"]
  claims = _table(
    ["claim", *(f"{r['penalty']}, {r['ordering']}" for r in inside_rows), "largest"],
    [
      [
        name,
        *(str(row["claims"][name]["broken"]) for row in inside_rows),
        f"{max(r['claims'][name]['worst'] for r in inside_rows):.1e}"
        f" ({first['measure']})",
      ]
      for name, first in inside_rows[0]["claims"].items()
    ],
  )
  examples = "\n".join(
    f"{i}. **{e['claim']}**: {e['observed']}. ({e['penalty']}, {e['ordering']},"
    f" {', '.join(f'{n} {v:.6g}' for n, v in e['setting'].items())},"
    f" eta {e['eta']:.6g}, w_0 = {tuple(e['start'])}, w* ="
    f" ({', '.join(f'{x:.4f}' for x in e['target'])}))"
    for i, e in enumerate(result["counterexamples"], 1)
  )
  errors = _table(
    ["penalty", "k", "slope", "largest ‖w - w*‖ / (k beta ‖w - u‖)"],
    [
      [
        r["penalty"],
        str(r["k"]),
        f"{r['slope']:.4f}",
        f"{r['largest_error_over_k_beta_gap']:.3f}",
      ]
      for r in result["error_against_beta"]
    ],
  )
  scans = _table(
    ["penalty", "claim", *(SCANS[scan][0] for scan in SCANS)],
    [
      [
        penalty,
        name,
        *(first_broken(result["outside"][penalty][scan], name) for scan in SCANS),
      ]
      for penalty in PENALTIES
      for name in _SCANNED
    ],
  )
  facts = _table(
    ["Lemmas 1 to 4", "value"],
    [[name, f"{value:.2e}"] for name, value in result["lemmas"].items()],
  )
  l1 = inside_rows[0]["claims"]
  turned = sum(r["claims"]["angle never rises"]["broken"] for r in inside_rows)
  far = sum(
    r["claims"]["angle never rises"]["broken_from_pi_minus_delta"] for r in inside_rows
  )
  empty = l1["C < 1/(1 - 2 k lam sqrt d)"]["empty_interval"]
  hardware, versions = result["hardware"], result["versions"]
  return f"""# Dinh & Xin (2020): the theory in numbers

RVSM, the library's own, on the population loss (5) of the non-overlap network, in
double precision. ‖w*‖ = 1, starts in the annulus of Lemma 5, and L = 2a/k², the
largest eigenvalue of the Hessian. TL1 has a = 1.

## Inside the conditions of Theorem 1

Runs, of {total} in each column, that break a claim:

{claims}

- **The Lagrangian** never rises by more than rounding with the ordering
  "gauss_seidel", which the proof of Lemma 6 uses (u_{{t+1}} = S(w_t), and w_{{t+1}}
  from u_{{t+1}}). Algorithm 1 as printed computes w_{{t+1}} from u_t: this is
  "jacobi". For l1 it descends as well (the u-step gains beta/2 ‖Δu‖², which pays for
  the delay), but where the threshold jumps some runs end in a cycle of period 2 and
  do not converge at all: counterexamples 3 and 4.
- **The angle** decreases as long as it is at least delta. That is all that section 5.4
  proves; "decreases monotonically" is not true: {turned} of {total * len(inside_rows)}
  runs turn back below delta, {far} of these from an initial angle of pi - delta; a
  start at w* suffices: counterexample 1. Without a bound on ‖w_0‖ not even what is
  proved holds for l0: counterexample 2.
- **C of (12)** is positive, and its upper bound holds where there is one. In {empty}
  of the {total} settings 2 k lam sqrt(d) >= 1, which the conditions allow for delta
  above pi/2, and the interval is empty: counterexample 6. In all runs C <= 1.
- **lam/beta < 1/sqrt(d)** does not keep u from being zero, not even for l1, because
  ‖w‖ < 1 at the limit; for l0 and TL1 the thresholds differ. Nothing else in the
  theorem depends on it.
- **The rate**: with L as above, Lemma 6 gives min_t ‖∇_w L_beta‖² <= (L_0 - L_T) /
  (T eta (1 - eta (L + beta)/2)), which holds in all gauss_seidel runs: O(1/eps²)
  iterations. The rate seen is linear.

![Lagrangian, angle and a cycle](descent.png)

Three runs of each penalty from an angle of pi - delta (k = 5, d = 20, delta = pi/4);
the angle of those with u = 0 goes to zero. Right: counterexample 3 in both orderings.

![The limit against w*](shrinkage.png)

w is, up to C, a shrinkage of w*, equation (12), d = 200; l0 has two branches.

## Counterexamples

All but the last meet the conditions of Theorem 1; d = 2, eta = 1/(beta + L).

{examples}

## ‖w - w*‖ = O(beta)

At fixed lam/beta, d = 20, beta from 0.001 to 1 times its bound; the constant is that
of the paper's O(k beta sin γ), with ‖u‖ sin γ <= ‖w - u‖.

{errors}

![Error against beta](error.png)

## Outside: what breaks first

The first value of the scan at which a run breaks a claim, and the share of the runs
(k = 5, d = 20, delta = pi/4, lam sqrt(d)/beta = 0.5; gauss_seidel). The other
conditions hold. A dash: none did.

{scans}

![Claims that break outside the conditions](outside.png)

- **beta**: the bound is generous here. Several times above it C turns negative, so
  that (12) makes w* no expansion of w any more, and the angle may rise and stay large.
- **eta**: nothing breaks below 2/(beta + L), as the last line of Lemma 6 says. Just
  above it the penalties whose threshold jumps (l0) break first, soon all of them.
- **Initial angle**: nearer to pi than delta, the angle may rise at first. For w* on or
  near an axis the saddle even becomes a limit: the last counterexample.
- **lam**: u is all zero, w is still close to w*. With l0 this happens inside the
  conditions already.
- **k = 1** breaks nothing here.

## Formulas

{facts}

Seed {result["config"]["seed"]}; {result["seconds"]:.0f} s on {hardware["cores"]} cores
of {hardware["processor"]} ({hardware["backend"]}); JAX {versions["jax"]}, Optax
{versions["optax"]}, Python {versions["python"]}; revision {result["git_revision"]}.
"""


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes],
  results: pathlib.Path = _RESULTS,
  quick: bool = False,
) -> None:
  """Checks the theory of Dinh & Xin (2020): JSON, Markdown and figures.

  Args:
    config: what is run.
    results: where the report goes.
    quick: a smaller grid, in a minute on two cores, whatever else is set but the
      seed; its report goes to runs/convergence-quick.
  """
  if quick:
    config = dataclasses.replace(QUICK, seed=config.seed)
    results = pathlib.Path("runs", "convergence-quick")
  began = time.monotonic()
  with jax.enable_x64(True), rich.progress.Progress(console=_run.console) as bar:
    task = bar.add_task("convergence", total=len(PENALTIES) * 3 + 3)

    def done(value: Any) -> Any:
      bar.advance(task)
      return value

    result: dict[str, Any] = {
      "experiment": "convergence",
      "config": dataclasses.asdict(config),
      "lemmas": done(lemmas(config)),
      "inside": [
        done(inside(config, penalty, ordering))
        for penalty in PENALTIES
        for ordering in ORDERINGS
      ],
      "counterexamples": done([_example(example) for example in EXAMPLES]),
      "error_against_beta": done(error_against_beta(config)),
    }
    scanned = {penalty: done(outside(config, penalty)) for penalty in PENALTIES}
    result["outside"] = {penalty: scan for penalty, (scan, _) in scanned.items()}
    sample = {penalty: runs for penalty, (_, runs) in scanned.items()}
    draw_descent(results / "descent.png", sample)
    draw_error(results / "error.png", result["error_against_beta"])
    draw_shrinkage(results / "shrinkage.png", config)
    draw_outside(results / "outside.png", result["outside"])
  result |= {**_run.environment(), "seconds": time.monotonic() - began}
  _run.write_json(results / "convergence.json", result)
  _run.write_atomically(results / "convergence.md", markdown(result))
  _run.console.print(f"Wrote {results}", markup=False)


def _example(example: Example) -> dict[str, Any]:
  runs = run_example(example)
  contradicts, observed = example.shows(runs)
  return {
    "claim": example.claim,
    "penalty": example.penalty,
    "ordering": example.ordering,
    "setting": example.setting,
    "eta": runs.setting.eta[0],
    "start": example.start,
    "target": runs.target[0],
    "contradicts": contradicts,
    "observed": observed,
  }


if __name__ == "__main__":
  tyro.cli(main, prog="python -m experiments.convergence")
