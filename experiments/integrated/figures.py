"""Figures 1 to 7."""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
import numpy as np

from experiments.core import plots
import rvsm_jax

Results = Mapping[str, dict[str, Any]]

# What legends call each method, and how it is drawn.
_STYLES = {
  name: {"label": label, "color": color, "marker": marker}
  for name, label, color, marker in (
    ("l2", "l2", plots.GREY, "x"),
    ("l1", "l1", plots.BLUE, "s"),
    ("sgl", "SGL", plots.GREEN, "^"),
    ("cges", "CGES", plots.YELLOW, "D"),
    ("itl", "integrated TL1", plots.ORANGE, "o"),
    ("itl_adaptive", "the same, proximal Adam", plots.PURPLE, "v"),
  )
}
_METHODS = tuple(_STYLES)
MEASURES = {"accuracy": "accuracy", "flops": "FLOPs", "parameters": "parameters"}
# A legend that hides no line.
_BESIDE: dict[str, Any] = {
  "fontsize": 8,
  "loc": "center left",
  "bbox_to_anchor": (1.0, 0.5),
}

# As in the captions of Figures 1 and 2.
_PENALTIES = {
  "l0": rvsm_jax.l0(),
  "l1": rvsm_jax.l1(),
  "SCAD, λ = 0.28, γ = 3.7": rvsm_jax.scad(0.28, 3.7),
  "MCP, λ = 0.4, γ = 2": rvsm_jax.mcp(0.4, 2.0),
  "capped l1, a = 0.3": rvsm_jax.capped_l1(0.3),
  "log penalty, γ = 1000": rvsm_jax.log_penalty(1e3),
  "l$_{1/2}$": rvsm_jax.lp(0.5),
  "l$_1$ − l$_2$": rvsm_jax.l1_minus_l2(),
  "TL1, a = 1": rvsm_jax.transformed_l1(1.0),
}


def draw(results: Results, directory: pathlib.Path) -> list[pathlib.Path]:
  """Draws all figures that the results suffice for, and returns their paths."""
  files = {number: directory / f"figure-{number}.png" for number in range(1, 8)}
  draw_penalties(_PENALTIES, 3, files[1])
  shapes = {f"TL1, a = {a:g}": rvsm_jax.transformed_l1(a) for a in (1e-2, 1.0, 1e2)}
  draw_penalties(shapes, 1, files[2])
  draw_boxes(results, files[3])
  draw_trade_off(results, files[4])
  draw_convergence(results, files[5])
  draw_filters(_preferred(results, "mnist", "pendigits"), files[6])
  if "digits" in results and "itl" in results["digits"]["methods"]:
    draw_shapes(results["digits"], files[7])
  return [file for file in files.values() if file.exists()]


def _preferred(results: Results, *names: str) -> dict[str, Any]:
  """The result of the first of these data sets that there is, or any."""
  return next((results[n] for n in names if n in results), next(iter(results.values())))


def draw_penalties(
  penalties: Mapping[str, rvsm_jax.Penalty], rows: int, path: pathlib.Path
) -> None:
  """Contours of penalties of two numbers; Figures 1 and 2 of the paper."""
  side = np.linspace(-1, 1, 401)
  points = jnp.stack(jnp.meshgrid(side, side), axis=-1).reshape(-1, 2)
  columns = len(penalties) // rows
  with plots.figure(path, rows, columns, width=2.9, height=2.8) as axes:
    for panel, (title, penalty) in zip(axes.flat, penalties.items(), strict=True):
      level = np.asarray(jax.vmap(penalty.value)(points)).reshape(401, 401)
      low, high = float(level.min()), float(level.max())
      edges = np.linspace(low, high, 11)[1:-1] if title != "l0" else [0.5, 1.5]
      # Each has its own scale: the pictures are about shape.
      shown = (level - low) / (high - low or 1.0)
      filled = panel.contourf(side, side, shown, np.linspace(0, 1, 25), cmap="Blues")
      panel.contour(side, side, level, edges, colors="#333333", linewidths=0.8)
      panel.set(title=title, aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
      panel.grid(False)
    for panel in axes[-1]:
      panel.set_xlabel("first weight")
    for panel in axes[:, 0]:
      panel.set_ylabel("second weight")
    bar = axes[0, 0].figure.colorbar(filled, ax=axes, shrink=0.7, ticks=[0, 1])
    bar.set_ticklabels(["lowest", "highest"])
    bar.set_label("penalty")


def draw_boxes(results: Results, path: pathlib.Path) -> None:
  """All seeds of each data set with several; Figure 3 of the paper."""
  several = [one for one in results.values() if len(one["config"]["seeds"]) > 1]
  if not several:
    return
  with plots.figure(path, len(several), 3, width=3.3, height=2.5) as axes:
    for panels, result in zip(axes, several, strict=True):
      methods = [m for m in _METHODS[1:] if m in result["methods"]]
      for panel, (measure, label) in zip(panels, MEASURES.items(), strict=True):
        for place, method in enumerate(methods):
          finals = result["methods"][method]["finals"]
          numbers = [final[measure] for final in finals]
          color = _STYLES[method]["color"]
          # Too few for a box: all of them, and their mean.
          panel.plot([place] * len(numbers), numbers, "o", color=color, markersize=4)
          panel.hlines(np.mean(numbers), place - 0.3, place + 0.3, color=color)
        short = [_STYLES[m]["label"].replace("integrated ", "int. ") for m in methods]
        short = [
          text.replace("the same, proximal", "int. TL1,\nprox.\n") for text in short
        ]
        panel.set_xticks(range(len(methods)), short, fontsize=8)
        panel.set_title(result["config"]["problem"]["title"], fontsize=9)
        panel.set_ylabel(label)
        panel.set_xlim(-0.6, len(methods) - 0.4)
        plots.percent_axis(panel, 1)


def draw_trade_off(results: Results, path: pathlib.Path) -> None:
  """Validation accuracy against both ratios over the grid; Figure 4 of the paper."""
  rows = -(-len(results) // 2)
  with plots.figure(path, rows, 4, width=2.5, height=2.6) as axes:
    pairs = axes.reshape(-1, 2)
    for unused in pairs[len(results) :].flat:
      unused.set_axis_off()
    for panels, result in zip(pairs, results.values(), strict=False):
      best = 0.0
      for panel, measure in zip(panels, ("flops", "parameters"), strict=True):
        for method in _METHODS:
          if method not in result["methods"]:
            continue
          found = _frontier(result["methods"][method]["points"], measure)
          best = max(best, max(accuracy for _, accuracy in found))
          panel.plot(
            *zip(*found, strict=True),
            markersize=4,
            linewidth=1.3,
            **_STYLES[method],
          )
        panel.set_title(result["config"]["problem"]["title"], fontsize=9)
        panel.set(xlabel=MEASURES[measure], ylim=(best - 0.045, best + 0.004))
        panel.set(xlim=(-0.03, 1.03), xticks=[0, 0.5, 1])
        panel.xaxis.set_major_formatter(plots.PercentFormatter(1.0))
        plots.percent_axis(panel, 0)
      panels[0].set_ylabel("validation accuracy")
    axes[0, 0].figure.legend(
      *axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=6
    )


def _frontier(points: list[dict[str, Any]], measure: str) -> list[tuple[float, float]]:
  """Ratio and accuracy of the points that no other one betters in both."""
  found: list[tuple[float, float]] = []
  for point in sorted(points, key=lambda p: (p[measure], -p["accuracy"])):
    if not found or point["accuracy"] > found[-1][1]:
      found.append((point[measure], point["accuracy"]))
  return found


def draw_convergence(results: Results, path: pathlib.Path) -> None:
  """Test accuracy against updates, seed 0; Figure 5 of the paper."""
  columns = min(3, len(results))
  rows = -(-len(results) // columns)
  with plots.figure(path, rows, columns, width=3.3, height=2.8) as axes:
    panels = axes.ravel()
    for panel in panels[len(results) :]:
      panel.set_axis_off()
    for panel, result in zip(panels, results.values(), strict=False):
      updates = result["data"]["train"] // result["config"]["problem"]["batch_size"]
      top = 0.0
      for method in _METHODS:
        if method in result["methods"]:
          final = result["methods"][method]["finals"][0]
          accuracy = final["history"]["accuracy"]
          steps = updates * np.arange(1, len(accuracy) + 1)
          top = max(top, *accuracy)
          style = _STYLES[method] | {"marker": "", "linewidth": 1.3}
          panel.plot(steps, accuracy, **style)
      panel.set_title(result["config"]["problem"]["title"], fontsize=9)
      panel.set(xlabel="updates", ylim=(top - 0.1, top + 0.005))
      plots.percent_axis(panel, 0)
    for panel in axes[:, 0]:
      panel.set_ylabel("test accuracy")
    last, unused = panels[len(results) - 1], panels[len(results) :]
    if len(unused):
      lines = last.get_legend_handles_labels()
      unused[0].legend(*lines, fontsize=8, loc="center left")
    else:
      last.legend(**_BESIDE)


def draw_filters(result: dict[str, Any], path: pathlib.Path) -> None:
  """The filters of the first convolution, seed 0; Figure 6 of the paper."""
  methods = [m for m in _METHODS[1:] if m in result["methods"]]
  first = result["methods"][methods[0]]["finals"][0]["first_layer"]
  count = min(16, np.shape(first)[-1])
  kernels = {
    method: np.array(result["methods"][method]["finals"][0]["first_layer"])
    for method in methods
  }
  limit = max(np.abs(kernel).max() for kernel in kernels.values()) or 1.0
  with plots.figure(path, len(methods), count, width=0.62, height=0.8) as axes:
    for panels, (method, kernel) in zip(axes, kernels.items(), strict=True):
      for number, panel in enumerate(panels):
        image = _draw_filter(panel, kernel[:, :, 0, number], limit)
      share = np.mean(kernel == 0)
      text = f"{_STYLES[method]['label']}: {share:.0%} zeros (black)"
      title = panels[0].text(0, 1.12, text, transform=panels[0].transAxes, fontsize=9)
      # It is wider than its panel, and would push the next one away.
      title.set_in_layout(False)
      panels[0].set_title(" ", fontsize=12)
    bar = axes[0, 0].figure.colorbar(image, ax=axes, shrink=0.7)
    bar.set_label("weight of a 3 x 3 filter")


def _draw_filter(panel: Axes, values: np.ndarray, limit: float) -> AxesImage:
  panel.set(xticks=[], yticks=[])
  panel.grid(False)
  panel.spines[:].set(visible=True, color="#CCCCCC")
  panel.set_facecolor("black")
  shown = np.ma.masked_equal(values, 0)
  return panel.imshow(shown, cmap="RdBu", vmin=-limit, vmax=limit)


def draw_shapes(result: dict[str, Any], path: pathlib.Path) -> None:
  """Integrated TL1 with each a, on validation examples; Figure 7 of the paper."""
  with plots.figure(path, 1, 3, width=3.4, height=3.0) as axes:
    points = result["methods"]["itl"]["by_a"]
    for panel, (measure, label) in zip(axes[0], MEASURES.items(), strict=True):
      for color, point in zip(plots.COLORS, points, strict=False):
        history = point["history"][measure]
        text = f"a = {point['a']:g}, λ = {point['lam']:g}"
        epochs = range(1, len(history) + 1)
        panel.plot(epochs, history, color=color, linewidth=1.4, label=text)
      panel.set(title=f"DIGITS: {label}", xlabel="epoch")
      plots.percent_axis(panel)
    axes[0, 0].set_title("DIGITS: validation accuracy")
    axes[0, 0].set_ylim(0.85, 1.0)
    axes[0, 2].set_ylim(0, 1.02)
    axes[0, 1].set_ylim(0, 1.02)
    axes[0, 2].legend(**_BESIDE)
