"""The table and the figure of a result."""

import pathlib
import statistics
from typing import Any

from matplotlib.ticker import PercentFormatter
import numpy as np

from experiments.core import plots, results
from experiments.core.tables import table

_WAYS = (
  ("a compilation for each point", "separate"),
  ("one compilation, one point after another", "loop"),
  ("one compilation, all points together (vmap)", "vmap"),
)


def write(directory: pathlib.Path) -> list[pathlib.Path]:
  """Writes `paths.md` and `paths.png` from the `paths.json` of a directory.

  Args:
    directory: with the result.

  Returns:
    The paths of what was written.
  """
  result = results.read(directory / "paths.json")
  files = [directory / "paths.md", directory / "paths.png"]
  results.write_atomically(files[0], markdown(result))
  draw(result, files[1])
  return files


def markdown(result: dict[str, Any]) -> str:
  """Times of the ways to train a path, and how they were measured."""
  config = result["config"]
  way = "vmap" if result["vmap"] else "a loop over one compiled program"
  rows = []
  for length in result["times"]:
    for title, name in _WAYS:
      rows.append(_row(length, title, name))
  header = [
    "way",
    "epochs",
    "seconds, first path",
    "seconds, one more path",
    "first path, to that of each point compiled",
    "one more path, to the loop",
  ]
  weights = 64 * config["hidden"] + config["hidden"] * 10
  return f"""# Whole paths at once

A path of {config["points"]} values of lam on DIGITS (1,438 training and 359 test
examples), RVSM with l0; a network of {weights:,} weights, 64-{config["hidden"]}-10;
batches of {config["batch_size"]}. The first training, of {config["epochs"]} epochs, is
short against its compilation; the second is {config["long_epochs"]} epochs long.

{table(header, rows)}

Medians of {config["rounds"]} rounds, in which the ways take turns in one process;
ratios are medians of the ratios in a round. Each round compiles anew, and compiling
includes tracing. The longer the training, the less there is to gain: n trainings of
a program that compiles in C and runs in R seconds take C + nR with one compilation in
place of n(C + R). The first weights are drawn before, and the batches are the same for
all points. What is chosen on this machine is {way}.

{results.footer([result])}

![Accuracy against sparsity](paths.png)

{len(result["paths"])} paths of the long training, each point the mean of
{config["seeds"]} seeds; bars reach from the lowest to the highest accuracy. Accuracy on
the test examples, and zeros among the weights, of the sparse network: u of RVSM, w of
the proximal step. lam is ramped up from zero during the first half of the steps.
"""


def _row(length: dict[str, Any], title: str, name: str) -> list[str]:
  rounds = length["rounds"]

  def median(name: str) -> float:
    return statistics.median(found[name] for found in rounds)

  def ratio(name: str, to: str) -> str:
    value = statistics.median(found[name] / found[to] for found in rounds)
    return f"1/{1 / value:.1f}" if value < 0.5 else f"{value:.2f}"

  again = f"{name} again"
  return [
    title,
    str(length["epochs"]),
    f"{median(name):.2f}",
    "–" if name == "separate" else f"{median(again):.2f}",
    ratio(name, "separate"),
    "–" if name == "separate" else ratio(again, "loop again"),
  ]


def draw(result: dict[str, Any], path: pathlib.Path) -> None:
  """Draws accuracy against sparsity for each path."""
  with plots.figure(path, width=6.4, height=4.2) as grid:
    axes = grid[0, 0]
    for marker, (title, found) in zip("osD", result["paths"].items(), strict=False):
      accuracy, sparsity = np.array(found["accuracy"]), np.array(found["zeros"])
      mean = accuracy.mean(axis=1)
      spread = np.abs(np.stack([accuracy.min(axis=1), accuracy.max(axis=1)]) - mean)
      axes.errorbar(
        sparsity.mean(axis=1),
        mean,
        yerr=spread,
        marker=marker,
        markersize=4,
        elinewidth=0.8,
        label=title,
      )
    axes.set_xlabel("zeros among the weights")
    axes.set_ylabel("accuracy on the test examples")
    axes.legend(loc="lower left")
    plots.percent_axis(axes)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
