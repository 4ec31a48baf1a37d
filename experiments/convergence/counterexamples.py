"""Runs that contradict the paper's claims: in two dimensions, with two patches."""

from collections.abc import Callable
import dataclasses
from typing import Any

import numpy as np

from experiments.convergence import problem, runs
import rvsm_jax

_K = 2.0
_PENALTIES = {
  "l1": rvsm_jax.l1(),
  "l0": rvsm_jax.l0(),
  "TL1, a = 0.1": rvsm_jax.transformed_l1(0.1),
}


@dataclasses.dataclass(frozen=True)
class Example:
  """A run, what it contradicts, and what it does.

  Attributes:
    claim: of the paper.
    shows: whether the run contradicts it, and what is observed.
    start: w_0.
    lam: weight of the penalty.
    target: w*, of any norm but 0: it is divided by it.
    penalty: its name.
    ordering: of `rvsm_jax.rvsm`.
    delta: of Theorem 1.
    beta: stiffness.
    inside: whether it meets the conditions of Theorem 1; eta = 1/(beta + L) does.
  """

  claim: str
  shows: Callable[[runs.Runs], tuple[bool, str]]
  start: tuple[float, float]
  lam: float
  target: tuple[float, float] = (0.8, 0.6)
  penalty: str = "l1"
  ordering: str = "gauss_seidel"
  delta: float = np.pi / 2
  beta: float = 0.25
  inside: bool = True


def run(example: Example) -> runs.Runs:
  """Runs a counterexample."""
  start, target = np.array([example.start]), np.array([example.target])
  target /= np.linalg.norm(target)
  delta, beta, lam = example.delta, example.beta, example.lam
  if example.inside and not (
    problem.angle(start[0], target[0]) <= np.pi - delta + 1e-12
    and beta <= problem.largest_beta(delta, _K) + 1e-12
    and lam / beta < 1 / np.sqrt(2)
  ):
    raise ValueError(f"Not inside the conditions of Theorem 1: {example}.")
  values = (_K, delta, lam, beta, 1 / (beta + problem.curvature(_K)))
  setting = runs.Setting(*(np.array([value]) for value in values))
  penalty = _PENALTIES[example.penalty]
  return runs.simulate(setting, start, target, penalty, example.ordering, steps=1000)


def _angle_rises(found: runs.Runs) -> tuple[bool, str]:
  theta = found.trace.angle[0]
  return bool(theta[-1] > theta[0] + 1e-3), (
    f"the angle rises from {theta[0]:.4f} to {theta[-1]:.4f}"
  )


def _turns_away(found: runs.Runs) -> tuple[bool, str]:
  theta = found.trace.angle[0]
  return bool(theta[1] > theta[0] + 1e-3), (
    f"‖w_0‖ = {found.trace.norm[0, 0]:.2f}: the first step raises the angle from"
    f" {theta[0]:.4f} = pi - delta to {theta[1]:.4f}"
  )


def _cycles(found: runs.Runs) -> tuple[bool, str]:
  energy, residual = found.trace.lagrangian[0], found.trace.residual[0]
  rise = float(np.diff(energy[-100:]).max())
  same = abs(energy[-1] - energy[-3]) < runs.ROUNDING
  return bool(rise > 1e-6 and same and residual[-100:].min() > 1e-3), (
    f"period 2 for ever: the Lagrangian alternates between {energy[-2:].min():.6f} and"
    f" {energy[-2:].max():.6f}, the residual stays at {residual[-1]:.4f}"
  )


def _norm_falls(found: runs.Runs) -> tuple[bool, str]:
  norm = found.trace.norm[0]
  return bool(norm[1] < norm[0] < 1), (
    f"‖w_0‖ = {norm[0]:.4f} < 1 = ‖w*‖, but ‖w_1‖ = {norm[1]:.4f}"
  )


def _empty_interval(found: runs.Runs) -> tuple[bool, str]:
  room = 1 - 2 * _K * found.setting.lam[0] * np.sqrt(2)
  return bool(room < 0 < found.c[0]), (
    f"1 - 2 k lam sqrt(d) = {room:.4f}, so the interval is empty; C = {found.c[0]:.4f}"
  )


def _all_zero(found: runs.Runs) -> tuple[bool, str]:
  return bool(not found.u.any()), (
    f"the limit has u = 0, w = {np.round(found.w[0], 4)}"
  )


def _ends_at_the_saddle(found: runs.Runs) -> tuple[bool, str]:
  first, last = found.trace.angle[0, [0, -1]]
  residual = found.trace.residual[0, -1]
  return bool(last > 3.14 and residual < runs.CONVERGED), (
    f"from pi - {np.pi - first:.3f} the angle rises to pi, and w ="
    f" {np.round(found.w[0], 4) + 0} is a limit, residual {residual:.0e}"
  )


CYCLE = Example(
  "Corollary 2 with Algorithm 1 as printed (w_{t+1} from u_t = S(w_{t-1}))",
  _cycles,
  start=(0.1, 0.2),
  lam=0.03,
  penalty="l0",
  ordering="jacobi",
)
EXAMPLES = (
  Example(
    "Theorem 1, Corollary 2: the angle decreases monotonically",
    _angle_rises,
    start=(0.8, 0.6),
    lam=0.1,
  ),
  Example(
    "Section 5.4, ‖u‖ <= 1: the start may be anywhere (no condition on ‖w_0‖)",
    _turns_away,
    start=(3.0, 1.15),
    lam=0.175,
    target=(-1.15, 3.0),
    penalty="l0",
  ),
  CYCLE,
  dataclasses.replace(
    CYCLE,
    claim="The same for transformed l1, where its threshold jumps,"
    " lam/beta > a²/(2(a+1))",
    penalty="TL1, a = 0.1",
  ),
  Example(
    "Proof of Lemma 5: if ‖w_t‖ < ‖w*‖ then ‖w_{t+1}‖ > ‖w_t‖",
    _norm_falls,
    start=(0.784, 0.588),
    lam=0.1,
  ),
  Example(
    "Corollary 1: C in (0, 1/(1 - 2 k lam sqrt d))",
    _empty_interval,
    start=(0.6, 0.6),
    lam=0.2,
    delta=2.0,
    beta=0.289,
  ),
  Example(
    "Section 5.4: lam/beta < 1/sqrt(d) keeps u from being zero (l1)",
    _all_zero,
    start=(0.6, 0.6),
    lam=0.176,
    target=(0.7072, 0.7070),
  ),
  Example(
    "The same with l0, whose threshold is sqrt(2 lam/beta) (Corollary 2)",
    _all_zero,
    start=(0.6, 0.6),
    lam=0.1,
    penalty="l0",
  ),
  Example(
    "Condition (ii) is needed: w* on an axis, w_0 nearer to -w* than delta",
    _ends_at_the_saddle,
    start=(-0.4975, -0.0499),
    lam=0.01,
    target=(1.0, 0.0),
    inside=False,
  ),
)


def summaries() -> list[dict[str, Any]]:
  """The examples, and what came out, for the report."""
  out = []
  for example in EXAMPLES:
    found = run(example)
    contradicts, observed = example.shows(found)
    out.append(
      {
        "claim": example.claim,
        "penalty": example.penalty,
        "ordering": example.ordering,
        "setting": {name: x[0] for name, x in found.setting._asdict().items()},
        "start": example.start,
        "target": found.target[0],
        "contradicts": contradicts,
        "observed": observed,
      }
    )
  return out
