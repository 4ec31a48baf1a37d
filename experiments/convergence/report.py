"""The report, in Markdown, from the results."""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax

from experiments.convergence import figures, studies
from experiments.core import results
from experiments.core.tables import table


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
  return (
    f"{number}. **{example['claim']}**: {example['observed']}. ({example['penalty']},"
    f" {example['ordering']}, {setting}, w_0 = {tuple(example['start'])},"
    f" w* = ({target}))"
  )


def _errors(rows: list[dict[str, Any]]) -> str:
  return table(
    ["penalty", "k", "slope", "largest ‖w - w*‖ / (k beta ‖w - u‖)"],
    [
      [
        row["penalty"],
        str(row["k"]),
        f"{row['slope']:.4f}",
        f"{row['largest_error_over_k_beta_gap']:.3f}",
      ]
      for row in rows
    ],
  )


def _scans(outside: dict[str, Any]) -> str:
  return table(
    ["claim", *(label for label, _ in studies.SCANS.values())],
    [
      [
        f"{penalty}: {name}",
        *(first_broken(scans[scan], name) for scan in studies.SCANS),
      ]
      for penalty, scans in outside.items()
      for name in studies.SCANNED
    ],
  )


def _outside(outside: dict[str, Any]) -> str:
  return f"""## Outside: what breaks first

The first value of the scan at which a run breaks a claim, and the share of the runs
(k = 5, d = 20, delta = pi/4, lam sqrt(d)/beta = 0.5; gauss_seidel). The other
conditions hold. A dash: none did.

{_scans(outside)}

![Claims that break outside the conditions](outside.png)

- **beta**: the bound is generous here. Several times above it C turns negative, so
  that (12) makes w* no expansion of w any more, and the angle may rise and stay large.
- **eta**: nothing more breaks below 2/(beta + L), as the last line of Lemma 6 says.
  Just above it the penalties whose threshold jumps (l0) break first, soon all of them.
- **Initial angle**: nearer to pi than delta, the angle may rise at first. For w* on or
  near an axis the saddle even becomes a limit: the last counterexample.
- **lam**: u is all zero, w is still close to w*. With l0 this happens inside the
  conditions already.
- **k = 1**, which the theorem leaves out, breaks nothing that k = 5 does not."""


def markdown(result: Mapping[str, Any]) -> str:
  """The report of a result."""
  inside = result["inside"]
  claims = inside[0]["claims"]
  turned = [row["claims"]["angle never rises"] for row in inside]
  largest_c = max(
    row["claims"]["C (1 - 2 k lam sqrt d) < 1"]["largest"] for row in inside
  )
  examples = enumerate(result["counterexamples"], 1)
  lemmas = [[name, f"{value:.2e}"] for name, value in result["lemmas"].items()]
  return f"""# Dinh & Xin (2020): the theory in numbers

RVSM, the library's own, on the population loss (5) of the non-overlap network, in
double precision. ‖w*‖ = 1, starts in the annulus of Lemma 5, and L = 2a/k², the
largest eigenvalue of the Hessian. TL1 has a = 1.

## Inside the conditions of Theorem 1

Runs, of {claims["(12) holds"]["runs"]} in each column, that break a claim:

{_claims(inside)}

- **The Lagrangian** never rises by more than rounding with the ordering
  "gauss_seidel", which the proof of Lemma 6 uses (u_{{t+1}} = S(w_t), and w_{{t+1}}
  from u_{{t+1}}). Algorithm 1 as printed computes w_{{t+1}} from u_t: this is
  "jacobi". For l1 it descends as well (the u-step gains beta/2 ‖Δu‖², which pays for
  the delay), but where the threshold jumps some runs end in a cycle of period 2 and
  do not converge at all: counterexamples 3 and 4.
- **The angle** decreases as long as it is at least delta. That is all that section 5.4
  proves; "decreases monotonically" is not true:
  {sum(row["broken"] for row in turned)} of {sum(row["runs"] for row in turned)} runs
  turn back below delta, {sum(row["broken_from_pi_minus_delta"] for row in turned)} of
  these from an initial angle of pi - delta; a start at w* suffices: counterexample 1.
  Without a bound on ‖w_0‖ not even what is proved holds for l0: counterexample 2.
- **C of (12)** is positive, at most {largest_c:.4f}, and below its upper bound
  1/(1 - 2 k lam sqrt d) where there is one. In {claims["2 k lam sqrt d < 1"]["broken"]}
  of the settings 2 k lam sqrt(d) >= 1, which the conditions allow for delta above
  pi/2, and the interval of Corollary 1 is empty: counterexample 6.
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

{chr(10).join(_example(number, example) for number, example in examples)}

## ‖w - w*‖ = O(beta)

At fixed lam/beta, d = 20, beta from 0.001 to 1 times its bound; the constant is that
of the paper's O(k beta sin γ), with ‖u‖ sin γ <= ‖w - u‖.

{_errors(result["error_against_beta"])}

![Error against beta](error.png)

{_outside(result["outside"])}

## Formulas

{table(["Lemmas 1 to 4", "value"], lemmas)}

Seed {result["config"]["seed"]}. {results.footer([result])}
"""


def write(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the report and the figures of the result in a folder."""
  result = results.read(folder / "convergence.json")
  names = ("descent", "error", "shrinkage", "outside")
  files = [folder / f"{name}.png" for name in names]
  text = markdown(result)
  report = results.write_atomically(folder / "convergence.md", text)
  with jax.enable_x64(True):
    figures.draw_descent(files[0], result["descent"])
    figures.draw_error(files[1], result["error_against_beta"])
    figures.draw_shrinkage(files[2], result["shrinkage"])
    figures.draw_outside(files[3], result["outside"])
  return [report, *files]
