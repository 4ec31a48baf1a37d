"""The report, in Markdown, and its figures, from the results."""

from collections.abc import Mapping, Sequence
import pathlib
import string
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.convergence import studies
from experiments.core import plots, results
from experiments.core.tables import of_rows, table

_COLORS = {"l1": plots.BLUE, "l0": plots.ORANGE, "TL1": plots.GREEN}


def draw_descent(path: pathlib.Path, found: Mapping[str, Any]) -> None:
  """Lagrangian and angle over the steps, and the cycle of the printed ordering."""
  with plots.figure(path, columns=3, width=3.3, height=3.0) as axes:
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
      ("gauss_seidel", plots.BLUE, "Gauss–Seidel"),
      ("jacobi", plots.ORANGE, "Jacobi (as printed)"),
    ):
      cycle.plot(found["cycle"][ordering], color=color, label=label)
    cycle.set(title="l0, k = d = 2: ‖∇$_w$ Lagrangian‖", ylim=(1e-15, 3))
    for panel, top in zip(axes[0], (1.0, 0.75, 0.9), strict=True):
      panel.set(xlabel="step", yscale="log", xlim=(0, shown))
      panel.legend(loc="upper right", bbox_to_anchor=(1, top))


def draw_error(path: pathlib.Path, rows: Sequence[Mapping[str, Any]]) -> None:
  """‖w - w*‖ against beta; `rows` of `studies.error_against_beta`."""
  patches = sorted({row["k"] for row in rows})
  with plots.figure(path, columns=len(patches), width=3.3) as axes:
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
  with plots.figure(path, columns=len(found), width=3.3, height=3.4) as axes:
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
  with plots.figure(path, len(scans), len(columns), width=2.7, height=2.0) as axes:
    for line, (penalty, found) in zip(axes, scans.items(), strict=True):
      for panel, scan in zip(line, columns, strict=True):
        values = found[scan]["values"]
        shares = np.array([found[scan]["broken"][name] for name in studies.SCANNED])
        panel.imshow(shares, cmap="Oranges", vmin=0, vmax=1.6, aspect="auto")
        for (row, column), share in np.ndenumerate(shares):
          if share > 0:
            text = f"{100 * share:.0f}"
            panel.text(column, row, text, ha="center", va="center", fontsize=7)
        # Between what the theorem allows, which comes first, and what it does not.
        allowed = sum(v >= 1 if scan == "phi" else v <= 1 for v in values)
        panel.axvline(allowed - 0.5, color=plots.GREY, linestyle="--", linewidth=1)
        panel.set_xticks(range(len(values)), map("{:g}".format, values), fontsize=7)
        panel.set_yticks(range(len(studies.SCANNED)), [])
        panel.grid(False)
        panel.tick_params(length=0)
      line[0].set_yticklabels(studies.SCANNED)
      line[0].set_title(f"{penalty}: per cent of the runs that break it")
    for panel, scan in zip(axes[-1], columns, strict=True):
      sign = "≥" if scan == "phi" else "≤"
      panel.set_xlabel(f"{studies.SCANS[scan][0]}\n(theorem: {sign} 1)")


def first_broken(scan: Mapping[str, Any], name: str) -> str:
  """The first value of a scan, outwards, that breaks a claim, and by what share."""
  broken = zip(scan["values"], scan["broken"][name], strict=True)
  return next((f"{value:g} ({share:.0%})" for value, share in broken if share), "–")


def _claims(inside: list[dict[str, Any]]) -> str:
  rows = []
  for name, first in inside[0]["claims"].items():
    found = [row["claims"][name] for row in inside]
    largest = max(row["largest"] for row in found)
    rows.append(
      [
        name,
        *(str(row["broken"]) for row in found),
        f"{largest:.1e} ({first['measure']})",
      ]
    )
  columns = (f"{row['penalty']}, {row['ordering']}" for row in inside)
  return table(["claim", *columns, "largest"], rows)


def _example(number: int, example: dict[str, Any]) -> str:
  setting = ", ".join(f"{name} {x:.6g}" for name, x in example["setting"].items())
  target = ", ".join(f"{x:.4f}" for x in example["target"])
  text = (
    f"{example['observed']}. ({example['penalty']}, {example['ordering']}, {setting},"
    f" w_0 = {tuple(example['start'])}, w* = ({target}))"
  )
  claim, text = (one.replace("*", r"\*") for one in (example["claim"], text))
  return f"{number}. **{claim}**: {text}"


_ERRORS = {
  "penalty": "{penalty}",
  "k": "{k}",
  "slope": "{slope:.4f}",
  "largest ‖w - w*‖ / (k beta ‖w - u‖)": "{largest_error_over_k_beta_gap:.3f}",
}


def _outside(outside: dict[str, Any]) -> str:
  columns = (label for label, _ in studies.SCANS.values())
  rows = [
    [f"{penalty}: {name}", *(first_broken(scans[scan], name) for scan in studies.SCANS)]
    for penalty, scans in outside.items()
    for name in studies.SCANNED
  ]
  return table(["claim", *columns], rows)


def markdown(result: Mapping[str, Any]) -> str:
  """The report of a result: `report.md`, with its numbers and tables."""
  inside = result["inside"]
  claims = inside[0]["claims"]
  turned = [row["claims"]["angle never rises"] for row in inside]
  c = [row["claims"]["C (1 - 2 k lam sqrt d) < 1"]["largest"] for row in inside]
  examples = enumerate(result["counterexamples"], 1)
  lemmas = [[name, f"{value:.2e}"] for name, value in result["lemmas"].items()]
  text = pathlib.Path(__file__).with_suffix(".md").read_text(encoding="utf-8")
  return string.Template(text).substitute(
    runs=claims["(12) holds"]["runs"],
    claims=_claims(inside),
    turned=sum(row["broken"] for row in turned),
    all_runs=sum(row["runs"] for row in turned),
    turned_from_delta=sum(row["broken_from_pi_minus_delta"] for row in turned),
    largest_c=f"{max(c):.4f}",
    empty=claims["2 k lam sqrt d < 1"]["broken"],
    counterexamples="\n".join(_example(*example) for example in examples),
    errors=of_rows(_ERRORS, result["error_against_beta"]),
    outside=_outside(result["outside"]),
    lemmas=table(["Lemmas 1 to 4", "value"], lemmas),
    seed=result["config"]["seed"],
    footer=results.footer([result]),
  )


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the report and the figures of the result in a folder."""
  result = results.read(folder / "convergence.json")
  report = results.write_atomically(folder / "convergence.md", markdown(result))
  with jax.enable_x64(True):
    draw_descent(folder / "descent.png", result["descent"])
    draw_error(folder / "error.png", result["error_against_beta"])
    draw_shrinkage(folder / "shrinkage.png", result["shrinkage"])
    draw_outside(folder / "outside.png", result["outside"])
  names = ("descent", "error", "shrinkage", "outside")
  return [report, *(folder / f"{name}.png" for name in names)]
