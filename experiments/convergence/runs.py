"""Runs of RVSM on the network, many at once, and which claims about them hold.

Everything here is to be called under `jax.enable_x64(True)`.
"""

import functools
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.convergence import problem
from experiments.convergence.problem import Number
import rvsm_jax

# What counts as a rise, of numbers of size 1 in double precision.
ROUNDING = 1e-13
# Of the gradient of the Lagrangian at the end of a run that has converged.
CONVERGED = 1e-8


class Setting(NamedTuple):
  """The parameters of n runs, each an array of shape (n,)."""

  k: np.ndarray
  delta: np.ndarray
  lam: np.ndarray
  beta: np.ndarray
  eta: np.ndarray

  @classmethod
  def relative(
    cls, k: Number, delta: Number, d: int, *, beta: Number, lam: Number, eta: Number
  ) -> Self:
    """Parameters as multiples of the largest that Theorem 1 allows.

    Args:
      k: number of patches.
      delta: of the theorem.
      d: dimension.
      beta: times delta sin(delta) / (k pi).
      lam: times beta / sqrt(d).
      eta: times 1 / (beta + L).
    """
    k, delta, beta, lam, eta = np.broadcast_arrays(k, delta, beta, lam, eta)
    stiffness = beta * problem.largest_beta(delta, k)
    step = eta / (stiffness + problem.curvature(k))
    return cls(k, delta, lam * stiffness / np.sqrt(d), stiffness, step)


class Trace(NamedTuple):
  """What is recorded at each (w_t, u_t), before the step: (n, steps) each."""

  lagrangian: Any
  angle: Any
  residual: Any
  norm: Any


class Runs(NamedTuple):
  """n runs in d dimensions.

  Attributes:
    setting: their parameters.
    target: w*, (n, d).
    w: the limits, (n, d), and
    u: (n, d).
    c: C of equation (12) at the limits, (n,).
    mismatch: norm of the difference of its two sides, (n,).
    trace: of every step.
  """

  setting: Setting
  target: np.ndarray
  w: np.ndarray
  u: np.ndarray
  c: np.ndarray
  mismatch: np.ndarray
  trace: Trace


def draw(
  rng: np.random.Generator, d: int, theta: Number, norm: Number, n: int
) -> tuple[np.ndarray, np.ndarray]:
  """Starts of given norms, at given angles to targets uniform on the sphere; both."""
  target, other = rng.normal(size=(2, n, d))
  target /= np.linalg.norm(target, axis=1, keepdims=True)
  other -= np.sum(other * target, axis=1, keepdims=True) * target
  other /= np.linalg.norm(other, axis=1, keepdims=True)
  along = np.broadcast_to(norm * np.cos(theta), n)[:, None]
  across = np.broadcast_to(norm * np.sin(theta), n)[:, None]
  return along * target + across * other, target


def simulate(
  setting: Setting,
  start: np.ndarray,
  target: np.ndarray,
  penalty: rvsm_jax.Penalty,
  ordering: str = "gauss_seidel",
  steps: int = 2000,
) -> Runs:
  """Runs RVSM from each start."""
  setting = Setting(*(np.asarray(x, np.float64) for x in setting))
  out = _simulate(setting, start, target, penalty, ordering, steps)
  return Runs(setting, target, *jax.tree.map(np.asarray, out))


@functools.partial(jax.jit, static_argnames=("penalty", "ordering", "steps"))
def _simulate(
  setting: Setting,
  start: jax.Array,
  target: jax.Array,
  penalty: rvsm_jax.Penalty,
  ordering: Any,
  steps: int,
) -> tuple[Any, ...]:
  def run(
    setting: Setting, start: jax.Array, target: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, Trace]:
    k, _, lam, beta, eta = setting
    splitting = rvsm_jax.rvsm(eta, penalty, lam=lam, beta=beta, ordering=ordering)
    tx = optax.chain(optax.sgd(eta), splitting)

    def step(carry: tuple[jax.Array, Any], _: None) -> tuple[tuple, Trace]:
      w, state = carry
      u = rvsm_jax.sparse_params(state, w)
      grads = problem.gradient(w, target, k)
      loss = problem.population_loss(w, target, k)
      trace = Trace(
        rvsm_jax.lagrangian(loss, penalty, w, u, lam=lam, beta=beta),
        problem.angle(w, target),
        rvsm_jax.critical_point_residual(grads, w, u, beta),
        jnp.linalg.norm(w),
      )
      updates, state = tx.update(grads, state, w)
      return (optax.apply_updates(w, updates), state), trace

    (w, state), trace = jax.lax.scan(step, (start, tx.init(start)), length=steps)
    u = rvsm_jax.sparse_params(state, w)
    return w, u, *problem.expansion(w, u, target, k, beta), trace

  return jax.vmap(run)(setting, start, target)


class Claim(NamedTuple):
  """A claim about single runs.

  Attributes:
    holds: for which, (n,).
    measure: by what measure, (n,).
    meaning: of the measure.
  """

  holds: np.ndarray
  measure: np.ndarray
  meaning: str


def claims(runs: Runs) -> dict[str, Claim]:
  """What the paper claims about a run; a run that is not finite breaks it all."""
  k, delta, lam, beta, eta = runs.setting
  trace, final = runs.trace, Trace(*(part[:, -1] for part in runs.trace))
  turn = np.diff(trace.angle, axis=1)
  turn_above = np.where(trace.angle[:, :-1] < delta[:, None], -np.inf, turn).max(1)
  rise = np.diff(trace.lagrangian, axis=1).max(1)
  room = 1 - 2 * k * lam * np.sqrt(runs.w.shape[1])
  inner = (k - 1) / (np.pi + k - 1 + k * np.pi * beta)
  kept = np.count_nonzero(np.abs(runs.u) > 0, axis=1)
  with np.errstate(over="ignore", invalid="ignore"):
    # What Lemma 6 says that each step gains, per squared residual.
    gain = eta * (1 - eta * (problem.curvature(k) + beta) / 2)
    least = np.minimum.accumulate(trace.residual, axis=1) ** 2
    spent = gain[:, None] * np.arange(1, least.shape[1] + 1) * least
    excess = (spent - trace.lagrangian[:, :1] + final.lagrangian[:, None]).max(1)
  return {
    "Lagrangian never rises": Claim(rise <= ROUNDING, rise, "largest rise"),
    "angle never rises": Claim(
      turn.max(1) <= ROUNDING,
      final.angle - trace.angle.min(1),
      "final minus smallest angle",
    ),
    "angle never rises while >= delta": Claim(
      turn_above <= ROUNDING, turn_above, "largest rise"
    ),
    "(w, u) converges": Claim(
      final.residual < CONVERGED, final.residual, "final residual"
    ),
    "limit angle < delta": Claim(
      final.angle < delta, final.angle / delta, "angle / delta"
    ),
    "(12) holds": Claim(
      runs.mismatch < 100 * CONVERGED, runs.mismatch, "difference of its sides"
    ),
    "C > 0": Claim(runs.c > 0, -runs.c, "-C"),
    "C (1 - 2 k lam sqrt d) < 1": Claim(runs.c * room < 1, runs.c, "C"),
    "2 k lam sqrt d < 1": Claim(room > 0, 1 - room, "2 k lam sqrt d"),
    "least residual in T steps = O(1/sqrt T)": Claim(
      excess <= ROUNDING, excess, "T eta (1 - eta (L + beta)/2) r² - (L_0 - L_T)"
    ),
    "norm of the limit in the annulus": Claim(
      (final.norm >= inner - CONVERGED) & (final.norm <= 1 + CONVERGED),
      1 - final.norm,
      "1 - norm",
    ),
    "u is not all zero": Claim(kept > 0, np.mean(runs.u == 0, axis=1), "zeros of u"),
  }
