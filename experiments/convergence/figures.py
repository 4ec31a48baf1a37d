"""The figures of the report."""

from collections.abc import Mapping, Sequence
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from experiments.convergence import studies
from experiments.core import plots

_COLORS = {"l1": plots.BLUE, "l0": plots.ORANGE, "TL1": plots.GREEN}


def draw_descent(path: pathlib.Path, found: Mapping[str, Any]) -> None:
  """Lagrangian and angle over the steps, and the cycle of the printed ordering."""
  with plots.figure(path, columns=3) as axes:
    energy, turn, cycle = axes[0]
    for penalty, traces in found["penalties"].items():
      for number, (above, angle) in enumerate(
        zip(traces["above"], traces["angle"], strict=True)
      ):
        label = penalty if number == 0 else None
        style = {"color": _COLORS[penalty], "label": label, "linewidth": 1.1}
        above = np.array(above)
        energy.plot(np.where(above > 1e-15, above, np.nan), **style)
        turn.plot(angle, **style)
    energy.set(title="Lagrangian above its limit")
    delta, shown = found["delta"], found["steps"]
    turn.axhline(delta, color=plots.GREY, linestyle="--", linewidth=1)
    turn.text(shown, delta * 1.06, "δ", ha="right", va="bottom")
    turn.set(title="Angle between w and w*", ylim=(0.01, np.pi))
    for ordering, color, label in (
      ("gauss_seidel", plots.BLUE, "gauss–seidel"),
      ("jacobi", plots.ORANGE, "jacobi (as printed)"),
    ):
      cycle.plot(found["cycle"][ordering], color=color, label=label)
    cycle.set(title="A cycle: ‖∇$_w$ Lagrangian‖, l0, k = d = 2", ylim=(1e-15, 3))
    for panel, place in zip(
      axes[0], ("upper right", "lower left", "center right"), strict=True
    ):
      panel.set(xlabel="step", yscale="log", xlim=(0, shown))
      panel.legend(loc=place)


def draw_error(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """‖w - w*‖ against beta; `rows` of `studies.error_against_beta`."""
  patches = sorted({row["k"] for row in rows})
  with plots.figure(path, columns=len(patches), width=3.9) as axes:
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


def draw_shrinkage(path: pathlib.Path, found: Mapping[str, Mapping[str, Any]]) -> None:
  """The limits against w*, entry by entry, with the curve of equation (12)."""
  with plots.figure(path, columns=len(found), width=4.0, height=3.9) as axes:
    for panel, (name, limit) in zip(axes[0], found.items(), strict=True):
      final_w, final_u, target = (np.array(limit[key]) for key in ("w", "u", "target"))
      w = 1.05 * np.abs(final_w).max() * np.linspace(-1, 1, 4001)
      u = np.asarray(studies.PENALTIES[name].prox(jnp.asarray(w), limit["step"]))
      panel.axline(
        (0, 0), slope=1, color=plots.GREY, linestyle=":", linewidth=1, label="w*"
      )
      curve = {"color": plots.SKY, "linewidth": 4, "alpha": 0.6}
      # Apart, because the curve of l0 has branches.
      for part, label in ((u < 0, "equation (12)"), (u == 0, None), (u > 0, None)):
        x = limit["share"] * (w - u) + limit["c"] * w
        panel.plot(x[part], w[part], label=label, **curve)
      dots = {"linestyle": "none", "marker": "o", "markersize": 3.5}
      panel.plot(target, final_u, color=plots.ORANGE, label="u", **dots)
      panel.plot(target, final_w, color=plots.BLUE, label="w", **dots)
      panel.set(
        title=f"{name}: {np.mean(final_u == 0):.0%} zeros in u, C = {limit['c']:.2f}",
        xlabel="true weight w*",
      )
      panel.legend(loc="upper left")
    axes[0, 0].set_ylabel("limit of RVSM")


def draw_outside(path: pathlib.Path, scans: Mapping[str, Mapping[str, Any]]) -> None:
  """Shares of the runs that break a claim as one condition is left at a time."""
  columns = [scan for scan in studies.SCANS if scan != "k"]
  with plots.figure(path, len(scans), len(columns), width=3.7, height=2.3) as axes:
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
        panel.axvline(allowed - 0.5, color=plots.GREY, linestyle="--", linewidth=1)
        panel.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        panel.set_yticks(range(len(studies.SCANNED)), [])
        panel.grid(False)
        panel.tick_params(length=0)
      line[0].set_yticklabels(studies.SCANNED)
      line[0].set_title(f"{penalty}: per cent of the runs that break it")
    for panel, scan in zip(axes[-1], columns, strict=True):
      sign = "≥" if scan == "phi" else "≤"
      panel.set_xlabel(f"{studies.SCANS[scan][0]} (theorem: {sign} 1)")
