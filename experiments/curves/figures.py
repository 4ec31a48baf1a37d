"""Figures of the tables' trainings: paths, distributions, convergence, samples."""

from collections.abc import Mapping, Sequence
import itertools
import pathlib
from typing import Any

from experiments.core import plots, results
from experiments.curves import paper, path, report
from experiments.curves.config import Config

# The results of the path, the printed and the tuned rows of one set of images.
Blocks = Mapping[str, Sequence[dict[str, Any]]]


def draw(data: str, blocks: Blocks, directory: pathlib.Path) -> list[pathlib.Path]:
  """Draws what there are results for, and returns the paths of the figures."""
  files = [directory / f"{data}-samples.png"]
  report.draw_own_samples(data, files[0])
  if blocks["path"]:
    files.append(directory / f"{data}-path.png")
    draw_path(data, blocks, files[-1])
  if blocks["printed"]:
    files.append(directory / f"{data}-distributions.png")
    draw_distributions(blocks, files[-1])
  for row in blocks["printed"]:
    if row["config"]["penalty"] == "l0" and row["config"]["seed"] == 0:
      files.append(directory / f"{data}-training.png")
      report.draw_training(row, files[-1])
  return files


def draw_path(data: str, blocks: Blocks, file: pathlib.Path) -> None:
  """Accuracy against zeros: paths, full trainings, and the paper's rows."""
  with plots.figure(file, columns=2, width=5.2, height=4.2) as axes:
    panel, full_size = axes[0]
    for color, (penalty, a) in zip(plots.COLORS, path.PENALTIES, strict=False):
      name = report.penalty_name(results.plain(Config(penalty=penalty, a=a)))

      def mine(result: dict[str, Any], penalty: str = penalty, a: float = a) -> bool:
        config = result["config"]
        return config["penalty"] == penalty and config["a"] == a

      points = [
        r for r in blocks["path"] if mine(r) and r["config"]["beta"] == Config.beta
      ]
      points.sort(key=lambda r: r["config"]["threshold"])
      panel.plot(
        [1 - p["final"]["zeros"]["u"] for p in points],
        [p["final"]["accuracy"]["u"] for p in points],
        color=color,
        marker="o",
        markersize=4,
        linewidth=1,
        label=name,
      )
      full = [r["final"] for r in blocks["tuned"] if mine(r)]
      full_size.scatter(
        [1 - f["zeros"]["u"] for f in full],
        [f["accuracy"]["u"] for f in full],
        color=color,
        marker="*",
        s=130,
        zorder=3,
      )
      row = paper.row(data, penalty, a)
      if row is not None:
        full_size.scatter(
          1 - row[1].sparsity / 100,
          row[1].accuracy / 100,
          color=color,
          marker="x",
          s=50,
          zorder=3,
        )
    styles: dict[str, dict[str, Any]] = {
      "u of the tuned rows": {"marker": "*", "markersize": 11},
      "paper: w, below 1e-10": {"marker": "x", "markersize": 7},
    }
    for label, style in styles.items():
      full_size.plot([], [], color=plots.GREY, linestyle="none", label=label, **style)
    size, epochs = path.REDUCED["train_size"], path.REDUCED["epochs"]
    panel.set(
      title=f"{report.title(data)}: {size:,} images, {epochs} epochs",
      ylabel="accuracy of u, validation",
    )
    full_size.set(title="5,000 images, 10 epochs", ylabel="accuracy, test")
    # A network that has learnt nothing would squash the others.
    best = max(p["final"]["accuracy"]["u"] for p in blocks["path"])
    low = min(p["final"]["accuracy"]["u"] for p in blocks["path"])
    panel.set_ylim(max(low, best - 0.25) - 0.01, best + 0.01)
    for axis in (panel, full_size):
      axis.set(xlabel="weights of the dense layer that are not zero", xscale="log")
      axis.invert_xaxis()
      axis.xaxis.set_major_formatter(lambda share, _: f"{100 * share:g}%")
    plots.percent_axis(panel, 0)
    plots.percent_axis(full_size, 2)
    panel.legend(fontsize=8, loc="lower left")
    full_size.legend(fontsize=8, loc="best", frameon=True, edgecolor="none")


def draw_distributions(blocks: Blocks, file: pathlib.Path) -> None:
  """Magnitudes of a sparse network's weights beside the dense one's; Fig. 6."""
  rows = {
    (block, row["config"]["penalty"]): row
    for block in ("printed", "tuned")
    for row in blocks[block]
    if row["config"]["seed"] == 0
  }
  wanted = [key for key in itertools.product(blocks, ("none", "l0")) if key in rows]
  height = -(-len(wanted) // 2)
  with plots.figure(file, height, 2, width=5.6, height=3.2) as axes:
    for panel, (block, penalty) in zip(axes.ravel(), wanted, strict=False):
      report.draw_histogram(panel, rows[block, penalty])
      name = report.penalty_name(rows[block, penalty]["config"])
      panel.set_title(f"{name}, {'as printed' if block == 'printed' else block}")
