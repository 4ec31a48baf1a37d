"""The proximal maps alone, against the soft threshold."""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.core import timing
import rvsm_jax

_STEP = 1e-3
_COLUMNS = 1024

PENALTIES: dict[str, rvsm_jax.Penalty] = {
  "soft (l1)": rvsm_jax.l1(),
  "hard (l0)": rvsm_jax.l0(),
  "TL1": rvsm_jax.transformed_l1(1.0),
  "lp, p = 1/2": rvsm_jax.lp(0.5),
  "lp, p = 2/3": rvsm_jax.lp(2 / 3),
  "log": rvsm_jax.log_penalty(5.0),
  "MCP": rvsm_jax.mcp(1.0),
  "SCAD": rvsm_jax.scad(1.0),
  "block soft (groups)": rvsm_jax.group_lasso("out"),
  "integrated TL1": rvsm_jax.integrated_tl1(a=1.0, mu=0.5),
}


def measure(size: int, pairs: int, clock: timing.Clock) -> dict[str, Any]:
  """Time of each map of about `size` numbers, float32, to that of the soft threshold.

  Args:
    size: how many numbers, a matrix of 1,024 columns.
    pairs: see `timing.compare`.
    clock: see `timing.compare`.
  """
  x = 0.05 * jax.random.normal(jax.random.key(0), (size // _COLUMNS, _COLUMNS))
  step = jnp.float32(_STEP)

  def runner(penalty: rvsm_jax.Penalty) -> timing.Repeated:
    # In place: a fresh result of this size would cost more than the map.
    function = jax.jit(lambda _, x, step: penalty.prox(x, step), donate_argnums=0)
    return timing.Repeated(function, jnp.zeros_like(x), x, step)

  base = runner(PENALTIES["soft (l1)"])
  rows = {}
  for name, penalty in PENALTIES.items():
    found = timing.compare(base, runner(penalty), pairs, clock)
    rows[name] = {
      "ratio": found.ratio,
      "nanoseconds_per_number": 1e9 * found.seconds / x.size,
    }
  return {"size": x.size, "rows": rows}
