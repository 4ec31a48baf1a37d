"""Tables and figures, from results and data."""

import base64
from collections.abc import Mapping, Sequence
import functools
import itertools
import pathlib
from typing import Any

from matplotlib.axes import Axes
import matplotlib.colors
import numpy as np
from numpy.typing import NDArray

from experiments import datasets
from experiments.core import plots, results
from experiments.core.tables import percent, table
from experiments.core.training import Examples
from experiments.curves import images as pictures
from experiments.curves import paper, path
from experiments.curves.config import Config

_PAPER_AND_INK = matplotlib.colors.ListedColormap(["white", "black"])


def write(
  result: dict[str, Any], directory: pathlib.Path, images: Examples | None = None
) -> list[pathlib.Path]:
  """Writes the result as JSON, the table and the figures, and returns their paths."""
  name, source = result["name"], result["data"]["name"]
  files = {
    part: directory / f"{name}{part}"
    for part in (".md", ".json", "-training.png", "-weights.png")
  }
  results.write_json(files[".json"], result)
  results.write_atomically(files[".md"], markdown(result))
  draw_training(result, files["-training.png"])
  draw_weights(result, files["-weights.png"])
  wrong = draw_mistakes(result, directory / f"{name}-mistakes.png")
  samples = directory / f"{source}-samples.png"
  if images is None:
    draw_own_samples(source, samples)
  else:
    draw_samples(images, samples, result["data"]["classes"])
  return [*files.values(), *wrong, samples]


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the report of every single training whose result is in a folder."""
  found = map(results.read, sorted(folder.glob("*.json")))
  return [file for result in found for file in write(result, folder)]


def title(name: str) -> str:
  """How tables and figures call a set of images."""
  return name.replace("_", " ").capitalize()


def classes(data: dict[str, Any]) -> str:
  """The two classes, with the numbers of their images."""
  counts = zip(
    data["classes"], data["train_per_class"], data["test_per_class"], strict=True
  )
  sentences = [
    f"{name!r}, {train} images to train and {test} to test on"
    for name, train, test in counts
  ]
  return f"Classes: {'; '.join(sentences)}.\n\n"


def penalty_name(config: dict[str, Any]) -> str:
  """How tables and figures call the penalty of a configuration."""
  if config["penalty"] == "none":
    return "dense network"
  name = config["penalty"].replace("transformed_l1", f"TL1, a = {config['a']:g}")
  if config["method"] == "sgd":
    return f"{name}, SGD on the penalised loss"
  return f"{name}, w replaced by u each epoch" if config["overwrite"] else name


def protocol(config: dict[str, Any]) -> str:
  """One sentence on how a configuration is trained."""
  schedule = {
    "one_cycle": "one-cycle learning rate with peak",
    "constant": "learning rate, after a rise over an eighth of the steps,",
  }[config["schedule"]]
  text = (
    f"{config['epochs']} epochs in batches of {config['batch_size']}, SGD with momentum"
    f" {config['momentum']:g}, {schedule} {config['learning_rate']:g}, He"
    " initialisation"
  )
  if config["shift"]:
    text += f", images shifted by up to {config['shift']} pixels at random"
  if config["dense_std"] is not None:
    text += f", of the dense layer with standard deviation {config['dense_std']:g}"
  text += f", inputs 0 and {config['ink']:g}, seed {config['seed']}"
  if config["penalty"] == "none":
    return f"{text}, no penalty."
  if config["lam_schedule"] == "constant":
    text += f"; lambda {config['lam']:g} throughout"
  else:
    start, end = config["ramp"]
    text += (
      f"; lambda 0 for the first {start:.0%} of the steps, then ramped so that the"
      f" threshold of u rises linearly to {config['threshold']:g} at {end:.0%}"
    )
  if config["method"] == "rvsm":
    text += f"; beta {config['beta']:g}"
    text += ", w replaced by u after each epoch" if config["overwrite"] else ""
  return f"{text}."


def markdown(result: dict[str, Any]) -> str:
  """The table of one training, the paper's row beside it."""
  config, final = result["config"], result["final"]
  a = config["a"] if config["penalty"] == "transformed_l1" else 1.0
  printed = paper.row(config["data"], config["penalty"], a)
  rows = []
  if printed is not None:
    number, row = printed
    rows.append(
      [
        f"Xue & Xin (2019), Table {number}",
        *(percent(row.accuracy / 100, 1), "–", "–"),
        *("–", percent(row.sparsity / 100, 1)),
      ]
    )
  rows.append(
    [
      "this run",
      *(percent(final["accuracy"][name], 1) for name in ("w", "u", "w_cut")),
      *(percent(final["zeros"]["u"]), percent(final["w_below"]["10"])),
    ]
  )
  main = table(
    [
      penalty_name(config),
      *(f"accuracy of {network}" for network in ("w", "u", "w cut at the gap")),
      *("exact zeros in u", "w below 1e-10"),
    ],
    rows,
  )
  scales = table(
    ["share of w", *(f"below 1e-{n}" for n in final["w_below"])],
    [
      ["as trained", *map(percent, final["w_below"].values())],
      ["divided by its norm", *map(percent, final["w_below_normalized"].values())],
    ],
  )
  gap = final["gap"]
  if gap is None:
    cut = "The weights w have no gap."
  else:
    cut = (
      f"The gap of w is from {gap['low']:.1e} to {gap['high']:.1e}, with"
      f" {percent(gap['share'])} of the weights; cut in the middle,"
      f" {percent(final['zeros']['w_cut'])} of w are zero."
    )
  tested = f"{result['data']['test_images']} {result['data']['tested_on']} images"
  return f"""# {title(result["data"]["name"])}, {penalty_name(config)}

{main}

{classes(result["data"])}Accuracy on {tested}; shares of the {final["weights"]:,}
weights of the dense layer. The paper's sparsity is the share of w below a scale of
1e-10.

{scales}

{cut} (The gap is the emptiest decade of magnitudes with at least half of the
weights below and 0.01% above; there is none if it has more than 1% of the weights.)

{mistakes(result)}Protocol: {protocol(config)}

{results.footer([result])}
"""


def mistakes(result: dict[str, Any]) -> str:
  """The table of the pictures that the network gets wrong; empty if there are none."""
  found = result.get("mistakes")
  if not found:
    return ""
  rows = [
    [
      f"`{one['file']}`",
      *(one.get("part", "test").replace("_", " "), one["class"], one["said"]),
      percent(one["probability"], 1),
    ]
    for one in found
  ]
  header = ["wrong, the most certain first", "", "it is", "the network says", "with"]
  return f"{table(header, rows)}\n\n"


def draw_mistakes(result: dict[str, Any], file: pathlib.Path) -> list[pathlib.Path]:
  """Up to 12 pictures of each part that are wrong, as the network sees them.

  Returns:
    The file, unless there are none.
  """
  parts: dict[str, list[dict[str, Any]]] = {}
  for one in result.get("mistakes") or ():
    parts.setdefault(one.get("part", "test"), []).append(one)
  shown = [one for part in parts.values() for one in part[:12]]
  if not shown:
    return []
  columns = 6
  with plots.figure(
    file, -(-len(shown) // columns), columns, width=1.7, height=2.2
  ) as axes:
    for panel in axes.ravel():
      panel.set_axis_off()
    for panel, one in zip(axes.ravel(), shown, strict=False):
      bits = np.frombuffer(base64.b64decode(one["image"]), np.uint8)
      _draw_image(panel, np.unpackbits(bits).reshape(pictures.SIDE, pictures.SIDE))
      part = one.get("part", "test").replace("_", " ")
      lines = [f"{part}: {pathlib.Path(one['file']).name}", f"is {one['class']}"]
      lines.append(f"said {one['said']}, {percent(one['probability'], 0)}")
      panel.set_title("\n".join(lines), fontsize=7)
  return [file]


def draw_training(result: dict[str, Any], file: pathlib.Path) -> None:
  """Losses, accuracies and zeros against epochs; Fig. 4 of the paper."""
  epochs = {
    name: [metrics[name] for metrics in result["epochs"]]
    for name in result["epochs"][0]
  }
  number = epochs["epoch"]
  with plots.figure(file, columns=3, width=3.3, height=2.9) as axes:
    left, middle, right = axes[0]
    for panel, name in ((left, "loss"), (middle, "accuracy")):
      panel.plot(number, epochs[name], color=plots.GREY, label="training, w")
      panel.plot(number, epochs[f"test_{name}"], color=plots.BLUE, label="test, w")
      if (u := epochs.get(f"test_{name}_u")) is not None:
        panel.plot(number, u, "--", color=plots.ORANGE, label="test, u")
    right.plot(number, epochs["zeros"], color=plots.ORANGE)
    left.set(title="Cross entropy", xlabel="epoch", yscale="log")
    middle.set(title="Accuracy", xlabel="epoch")
    right.set(title="Exact zeros in the dense layer", xlabel="epoch")
    right.set_ylim(-0.02, 1.02)
    for panel in (middle, right):
      plots.percent_axis(panel)
    for panel in (left, middle):
      panel.legend(fontsize=8)
    for panel in axes[0]:
      panel.xaxis.get_major_locator().set_params(integer=True)


def draw_weights(result: dict[str, Any], file: pathlib.Path) -> None:
  """How the magnitudes of the dense layer are distributed; Fig. 6 of the paper."""
  with plots.figure(file, width=7.0, height=3.8) as axes:
    draw_histogram(axes[0, 0], result)
    axes[0, 0].set_title(f"Dense layer: {penalty_name(result['config'])}")


def draw_histogram(panel: Axes, result: dict[str, Any]) -> None:
  """The distribution of the dense layer's magnitudes, on one panel."""
  histogram = result["final"]["histogram"]
  edges = np.array(histogram["log10_edges"])
  zero = edges[0] - 0.7
  if "u" in histogram:
    style: dict[str, Any] = {"color": plots.ORANGE, "alpha": 0.6}
    panel.stairs(histogram["u"]["counts"], edges, fill=True, **style)
    panel.bar(zero, histogram["u"]["zero"], 0.5, label="u", **style)
  panel.stairs(histogram["w"]["counts"], edges, color=plots.BLUE, label="w")
  panel.stairs(
    histogram["initial"]["counts"],
    edges,
    color=plots.GREY,
    linestyle=":",
    label="w before training",
  )
  gap = result["final"]["gap"]
  if gap is not None:
    low, high = np.log10([gap["low"], gap["high"]])
    panel.axvspan(low, high, color=plots.YELLOW, alpha=0.2, lw=0, label="gap of w")
  panel.set(xlabel="magnitude", ylabel="number of weights", yscale="log")
  ticks = range(-10, 2, 2)
  panel.set_xticks([zero, *ticks], ["0", *(f"$10^{{{n}}}$" for n in ticks)])
  panel.legend(loc="upper center", ncols=2, fontsize=8)
  panel.set_ylim(top=2e7)


def draw_own_samples(name: str, file: pathlib.Path) -> None:
  """`draw_samples` of one of the project's own sets."""
  draw_samples(Examples(*datasets.samples(name, 32)), file, Config().class_names)


def draw_samples(
  data: Examples,
  file: pathlib.Path,
  classes: Sequence[str],
  columns: int = 8,
) -> None:
  """Two rows of each class; Figs. 3 and 5 of the paper."""
  rows = []
  for label in (0, 1):
    images = data.x[data.y == label][: 2 * columns]
    rows += [images[:columns], images[columns:]]
  with plots.figure(file, len(rows), columns, width=1.1, height=1.15) as axes:
    for panel in axes.ravel():
      panel.set_axis_off()
    for panels, drawn in zip(axes, rows, strict=True):
      for panel, image in zip(panels, drawn, strict=False):
        _draw_image(panel, image[:, :, 0])
    for label, name in enumerate(classes):
      axes[2 * label, 0].set_title(name)


def _draw_image(panel: Axes, image: NDArray[np.uint8]) -> None:
  panel.set_axis_on()
  panel.set(xticks=[], yticks=[])
  panel.grid(False)
  panel.spines[:].set(visible=True, color="#CCCCCC")
  panel.imshow(image, cmap=_PAPER_AND_INK, vmin=0, vmax=1)


# The results of the path, the printed and the tuned rows of one set of images.
Blocks = Mapping[str, Sequence[dict[str, Any]]]


def draw(data: str, blocks: Blocks, directory: pathlib.Path) -> list[pathlib.Path]:
  """Draws what there are results for, and returns the paths of the figures."""
  files = [directory / f"{data}-samples.png"]
  draw_own_samples(data, files[0])
  if blocks["path"]:
    files.append(directory / f"{data}-path.png")
    draw_path(data, blocks, files[-1])
  if blocks["printed"]:
    files.append(directory / f"{data}-distributions.png")
    draw_distributions(blocks, files[-1])
  for row in blocks["printed"]:
    if row["config"]["penalty"] == "l0" and row["config"]["seed"] == 0:
      files.append(directory / f"{data}-training.png")
      draw_training(row, files[-1])
  return files


def draw_path(data: str, blocks: Blocks, file: pathlib.Path) -> None:
  """Accuracy against zeros: paths, full trainings, and the paper's rows."""

  def of_kind(block: str, penalty: str, a: float) -> list[dict[str, Any]]:
    configs = [(row, row["config"]) for row in blocks[block]]
    return [row for row, c in configs if (c["penalty"], c["a"]) == (penalty, a)]

  def points(rows: Sequence[dict[str, Any]]) -> tuple[list[float], list[float]]:
    found = [row["final"] for row in rows]
    return [1 - f["zeros"]["u"] for f in found], [f["accuracy"]["u"] for f in found]

  with plots.figure(file, columns=2, width=5.2, height=4.2) as axes:
    panel, full_size = axes[0]
    for color, kind in zip(plots.COLORS, path.PENALTIES, strict=False):
      rows = [r for r in of_kind("path", *kind) if r["config"]["beta"] == Config.beta]
      rows.sort(key=lambda row: row["config"]["threshold"])
      name = penalty_name(results.plain(Config(penalty=kind[0], a=kind[1])))
      style: dict[str, Any] = {"marker": "o", "markersize": 4, "linewidth": 1}
      panel.plot(*points(rows), color=color, label=name, **style)
      dot = functools.partial(full_size.scatter, color=color, zorder=3)
      dot(*points(of_kind("tuned", *kind)), marker="*", s=130)
      if (row := paper.row(data, *kind)) is not None:
        dot(1 - row[1].sparsity / 100, row[1].accuracy / 100, marker="x", s=50)
    styles: dict[str, dict[str, Any]] = {
      "u of the tuned rows": {"marker": "*", "markersize": 11},
      "paper: w, below 1e-10": {"marker": "x", "markersize": 7},
    }
    for label, style in styles.items():
      full_size.plot([], [], color=plots.GREY, linestyle="none", label=label, **style)
    size, epochs = path.REDUCED["train_size"], path.REDUCED["epochs"]
    panel.set(
      title=f"{title(data)}: {size:,} images, {epochs} epochs",
      ylabel="accuracy of u, validation",
    )
    full_size.set(title="5,000 images, 10 epochs", ylabel="accuracy, test")
    # A network that has learnt nothing would squash the others.
    found = [row["final"]["accuracy"]["u"] for row in blocks["path"]]
    panel.set_ylim(max(min(found), max(found) - 0.25) - 0.01, max(found) + 0.01)
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
  with plots.figure(file, height, 2, width=5.0, height=3.0) as axes:
    for panel, (block, penalty) in zip(axes.ravel(), wanted, strict=False):
      draw_histogram(panel, rows[block, penalty])
      name = penalty_name(rows[block, penalty]["config"])
      panel.set_title(f"{name}, {'as printed' if block == 'printed' else block}")
