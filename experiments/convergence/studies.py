"""What is run: the grid inside the conditions, the error, the scans outside."""

import dataclasses
import itertools
from typing import Any

import numpy as np

from experiments.convergence import counterexamples, runs
import rvsm_jax

PENALTIES = {
  "l1": rvsm_jax.l1(),
  "l0": rvsm_jax.l0(),
  "TL1": rvsm_jax.transformed_l1(1.0),
}
ORDERINGS = ("gauss_seidel", "jacobi")

# Each leaves one condition of Theorem 1, from inside outwards: what is varied, how
# reports call it, and its values.
SCANS: dict[str, tuple[str, tuple[float, ...]]] = {
  "beta": ("beta over its bound", (0.5, 1, 2, 4, 8, 12, 16, 32, 64)),
  "lam": ("lam sqrt(d) / beta", (0.1, 0.5, 1, 1.5, 2, 4, 8)),
  "eta": ("eta (beta + L)", (0.5, 1, 1.5, 1.9, 2.1, 2.25, 2.5, 3)),
  "phi": ("(pi - initial angle) / delta", (1, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02)),
  "k": ("k", (5, 2, 1)),
}
SCANNED = (
  "Lagrangian never rises",
  "angle never rises while >= delta",
  "(w, u) converges",
  "limit angle < delta",
  "C > 0",
  "u is not all zero",
)


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


def grid(config: Config, d: int) -> tuple[runs.Setting, np.ndarray, np.ndarray]:
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
  setting = runs.Setting.relative(k, delta, d, beta=beta, lam=lam, eta=eta)
  theta = (np.pi - delta) * np.where(index == 0, 1, rng.uniform(0, 1, len(k)))
  # Lemma 5's annulus, which the paper assumes without loss of generality.
  inner = (k - 1) / (np.pi + k - 1)
  return setting, *runs.draw(rng, d, theta, rng.uniform(inner, 1), len(k))


def inside(config: Config, penalty: str, ordering: str) -> dict[str, Any]:
  """Counts the runs of the grid that break a claim, and the largest measures."""
  parts = [
    runs.claims(
      runs.simulate(*grid(config, d), PENALTIES[penalty], ordering, config.steps)
    )
    for d in config.dims
  ]
  return {
    "penalty": penalty,
    "ordering": ordering,
    "claims": {
      name: {
        "runs": sum(part[name].holds.size for part in parts),
        "broken": sum(int(np.sum(~part[name].holds)) for part in parts),
        "broken_from_pi_minus_delta": sum(
          int(np.sum(~part[name].holds[:: config.starts])) for part in parts
        ),
        "largest": max(float(np.max(part[name].measure)) for part in parts),
        "measure": first.meaning,
      }
      for name, first in parts[0].items()
    },
  }


def _draw(config: Config, study: int, d: int, theta: Any, n: int = 1) -> Any:
  """Starts of norm 0.9 and targets, other ones for each study."""
  return runs.draw(np.random.default_rng((config.seed, study)), d, theta, 0.9, n)


def error_against_beta(config: Config) -> list[dict[str, Any]]:
  """‖w - w*‖ for a range of beta at fixed lam/beta, and the slope of the fit."""
  d, delta, factors = 20, np.pi / 4, np.geomspace(1e-3, 1, 10)
  factor = np.repeat(factors, config.scan_starts)
  out = []
  for penalty, k in itertools.product(PENALTIES, (2, 5, 20)):
    # Weak thresholds: most entries of a unit vector are above them for each penalty.
    setting = runs.Setting.relative(k, delta, d, beta=factor, lam=0.05, eta=1.0)
    start, target = _draw(config, 1, d, np.pi - delta, factor.size)
    found = runs.simulate(
      setting, start, target, PENALTIES[penalty], steps=config.steps
    )
    error = np.linalg.norm(found.w - target, axis=1)
    scale = k * setting.beta * np.linalg.norm(found.w - found.u, axis=1)
    betas, errors = (x.reshape(len(factors), -1).mean(1) for x in (setting.beta, error))
    out.append(
      {
        "penalty": penalty,
        "k": k,
        "d": d,
        "beta": betas,
        "error": errors,
        "slope": float(np.polyfit(np.log(betas), np.log(errors), 1)[0]),
        "largest_error_over_k_beta_gap": float(np.max(error / scale)),
      }
    )
  return out


def outside(config: Config, penalty: str) -> dict[str, Any]:
  """Leaves one condition of Theorem 1 at a time; shares of runs that break claims."""
  d, delta = 20, np.pi / 4
  points = [(scan, value) for scan, (_, values) in SCANS.items() for value in values]

  def column(scan: str, default: float) -> np.ndarray:
    values = [value if name == scan else default for name, value in points]
    return np.repeat(np.array(values, float), config.scan_starts)

  multiples = {"beta": column("beta", 1), "lam": column("lam", 0.5)}
  setting = runs.Setting.relative(
    column("k", 5), delta, d, **multiples, eta=column("eta", 1)
  )
  theta = np.pi - delta * column("phi", 1)
  start, target = _draw(config, 2, d, theta, theta.size)
  counted = runs.claims(
    runs.simulate(setting, start, target, PENALTIES[penalty], steps=config.steps)
  )
  return {
    scan: {
      "values": values,
      "broken": {
        name: [
          float(np.mean(~counted[name].holds[column(scan, np.nan) == value]))
          for value in values
        ]
        for name in SCANNED
      },
    }
    for scan, (_, values) in SCANS.items()
  }


def descent(config: Config) -> dict[str, Any]:
  """Three runs of each penalty, and the cycle in both orderings, for a figure.

  Returns:
    "delta" of the runs, how many "steps" are shown, for each penalty the Lagrangian
    "above" its limit and the "angle", and the residuals of the "cycle".
  """
  delta, shown, n = np.pi / 4, 60, 3
  setting = runs.Setting.relative(
    np.full(n, 5.0), delta, 20, beta=1.0, lam=0.5, eta=1.0
  )
  start, target = _draw(config, 5, 20, np.pi - delta, n)
  penalties = {}
  for name, penalty in PENALTIES.items():
    trace = runs.simulate(setting, start, target, penalty, steps=5 * shown).trace
    above = trace.lagrangian - trace.lagrangian[:, -1:]
    part = slice(shown + 2)
    penalties[name] = {"above": above[:, part], "angle": trace.angle[:, part]}

  def residual(ordering: str) -> np.ndarray:
    example = dataclasses.replace(counterexamples.CYCLE, ordering=ordering)
    return counterexamples.run(example).trace.residual[0, : shown + 2]

  cycle = {ordering: residual(ordering) for ordering in ORDERINGS}
  return {"delta": delta, "steps": shown, "penalties": penalties, "cycle": cycle}


def shrinkage(config: Config) -> dict[str, dict[str, Any]]:
  """The limits of each penalty from one start, and the terms of equation (12)."""
  d, k = 200, 5.0
  # So that the thresholds are alike: lam/beta, its double, the root of its double.
  factors = {"l1": 0.5, "l0": 0.125 / np.sqrt(d), "TL1": 0.25}
  start, target = _draw(config, 4, d, 1.0)
  out = {}
  for name, penalty in PENALTIES.items():
    setting = runs.Setting.relative(
      np.array([k]), np.pi / 2, d, beta=1.0, lam=factors[name], eta=1.0
    )
    found = runs.simulate(setting, start, target, penalty, steps=config.steps)
    lam, beta = setting.lam[0], setting.beta[0]
    out[name] = {
      "step": lam / beta,
      "share": k * np.pi / (np.pi - found.trace.angle[0, -1]) * beta,
      "c": found.c[0],
      "w": found.w[0],
      "u": found.u[0],
      "target": target[0],
    }
  return out
