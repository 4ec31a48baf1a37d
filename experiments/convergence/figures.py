"""The figures of the report."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments import _plots
from experiments.convergence import counterexamples, runs, studies

_COLORS = {"l1": _plots.BLUE, "l0": _plots.ORANGE, "TL1": _plots.GREEN}


def draw_descent(path: pathlib.Path, config: studies.Config) -> None:
  """Lagrangian and angle over the steps, and the cycle of the printed ordering."""
  delta, shown, n = np.pi / 4, 60, 3
  setting = runs.Setting.relative(
    np.full(n, 5.0), delta, 20, beta=1.0, lam=0.5, eta=1.0
  )
  rng = np.random.default_rng((config.seed, 5))
  start, target = runs.draw(rng, 20, np.pi - delta, 0.9, n)
  with _plots.figure(path, columns=3) as axes:
    energy, turn, cycle = axes[0]
    for penalty, prox in studies.PENALTIES.items():
      trace = runs.simulate(setting, start, target, prox, steps=5 * shown).trace
      for i in range(n):
        label = penalty if i == 0 else None
        style = {"color": _COLORS[penalty], "label": label, "linewidth": 1.1}
        above = trace.lagrangian[i] - trace.lagrangian[i, -1]
        energy.plot(np.where(above > 1e-15, above, np.nan), **style)
        turn.plot(trace.angle[i], **style)
    energy.set(title="Lagrangian above its limit")
    turn.axhline(delta, color=_plots.GREY, linestyle="--", linewidth=1)
    turn.text(shown, delta * 1.06, "δ", ha="right", va="bottom")
    turn.set(title="Angle between w and w*", ylim=(0.01, np.pi))
    for ordering, color, label in (
      ("gauss_seidel", _plots.BLUE, "gauss–seidel"),
      ("jacobi", _plots.ORANGE, "jacobi (as printed)"),
    ):
      example = dataclasses.replace(counterexamples.CYCLE, ordering=ordering)
      residual = counterexamples.run(example).trace.residual[0]
      cycle.plot(residual, color=color, label=label)
    cycle.set(title="A cycle: ‖∇$_w$ Lagrangian‖, l0, k = d = 2", ylim=(1e-15, 3))
    for panel, place in zip(
      axes[0], ("upper right", "lower left", "center right"), strict=True
    ):
      panel.set(xlabel="step", yscale="log", xlim=(0, shown))
      panel.legend(loc=place)


def draw_error(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """‖w - w*‖ against beta; `rows` of `studies.error_against_beta`."""
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


def draw_shrinkage(path: pathlib.Path, config: studies.Config) -> None:
  """The limits against w*, entry by entry, with the curve of equation (12)."""
  d, k = 200, 5.0
  # So that the thresholds are alike: lam/beta, its double, the root of its double.
  factors = {"l1": 0.5, "l0": 0.125 / np.sqrt(d), "TL1": 0.25}
  rng = np.random.default_rng((config.seed, 4))
  start, target = runs.draw(rng, d, 1.0, 0.9, 1)
  columns = len(studies.PENALTIES)
  with _plots.figure(path, columns=columns, width=4.0, height=3.9) as axes:
    for panel, (name, penalty) in zip(axes[0], studies.PENALTIES.items(), strict=True):
      setting = runs.Setting.relative(
        np.array([k]), np.pi / 2, d, beta=1.0, lam=factors[name], eta=1.0
      )
      found = runs.simulate(setting, start, target, penalty, steps=config.steps)
      lam, beta, c = setting.lam[0], setting.beta[0], found.c[0]
      share = k * np.pi / (np.pi - found.trace.angle[0, -1]) * beta
      w = 1.05 * np.abs(found.w).max() * np.linspace(-1, 1, 4001)
      u = np.asarray(penalty.prox(jnp.asarray(w), lam / beta))
      panel.axline(
        (0, 0), slope=1, color=_plots.GREY, linestyle=":", linewidth=1, label="w*"
      )
      curve = {"color": _plots.SKY, "linewidth": 4, "alpha": 0.6}
      # Apart, because the curve of l0 has branches.
      for part, label in ((u < 0, "equation (12)"), (u == 0, None), (u > 0, None)):
        panel.plot((share * (w - u) + c * w)[part], w[part], label=label, **curve)
      dots = {"linestyle": "none", "marker": "o", "markersize": 3.5}
      panel.plot(target[0], found.u[0], color=_plots.ORANGE, label="u", **dots)
      panel.plot(target[0], found.w[0], color=_plots.BLUE, label="w", **dots)
      panel.set(
        title=f"{name}: {np.mean(found.u == 0):.0%} zeros in u, C = {c:.2f}",
        xlabel="true weight w*",
      )
      panel.legend(loc="upper left")
    axes[0, 0].set_ylabel("limit of RVSM")


def draw_outside(path: pathlib.Path, scans: Mapping[str, Mapping[str, Any]]) -> None:
  """Shares of the runs that break a claim as one condition is left at a time.

  Args:
    path: of the PNG.
    scans: `studies.outside` of each penalty.
  """
  columns = [scan for scan in studies.SCANS if scan != "k"]
  with _plots.figure(path, len(scans), len(columns), width=3.7, height=2.3) as axes:
    for line, (penalty, found) in zip(axes, scans.items(), strict=True):
      for panel, scan in zip(line, columns, strict=True):
        values = found[scan]["values"]
        shares = np.array([found[scan]["broken"][name] for name in studies.SCANNED])
        panel.imshow(shares, cmap="Oranges", vmin=0, vmax=1.6, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
          if share > 0:
            text = f"{100 * share:.0f}"
            panel.text(column, row, text, ha="center", va="center", fontsize=8)
        # Between what the theorem allows, which comes first, and what it does not.
        allowed = sum(v >= 1 if scan == "phi" else v <= 1 for v in values)
        panel.axvline(allowed - 0.5, color=_plots.GREY, linestyle="--", linewidth=1)
        panel.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        panel.set_yticks(range(len(studies.SCANNED)), [])
        panel.grid(False)
        panel.tick_params(length=0)
      line[0].set_yticklabels(studies.SCANNED)
      line[0].set_title(f"{penalty}: per cent of the runs that break it")
    for panel, scan in zip(axes[-1], columns, strict=True):
      sign = "≥" if scan == "phi" else "≤"
      panel.set_xlabel(f"{studies.SCANS[scan][0]} (theorem: {sign} 1)")
