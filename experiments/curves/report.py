"""Table and figures of one training, from its result and its data."""

from collections.abc import Sequence
import pathlib
from typing import Any

from matplotlib.axes import Axes
import matplotlib.colors
import numpy as np

from experiments import datasets
from experiments.core import plots, results
from experiments.core.tables import percent, table
from experiments.core.training import Examples
from experiments.curves import paper
from experiments.curves.config import Config


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
  samples = directory / f"{source}-samples.png"
  if images is None:
    draw_own_samples(source, samples)
  else:
    draw_samples(images, samples, result["data"]["classes"])
  return [*files.values(), samples]


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
  printed = paper.row(config["data"], config["penalty"], config["a"])
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
      "accuracy of w",
      "accuracy of u",
      "accuracy of w cut at the gap",
      "exact zeros in u",
      "w below 1e-10",
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

Protocol: {protocol(config)}

{results.footer([result])}
"""


def draw_training(result: dict[str, Any], path: pathlib.Path) -> None:
  """Losses, accuracies and zeros against epochs; Fig. 4 of the paper."""
  epochs = {
    name: [metrics[name] for metrics in result["epochs"]]
    for name in result["epochs"][0]
  }
  number = epochs["epoch"]
  with plots.figure(path, columns=3) as axes:
    left, middle, right = axes[0]
    left.plot(number, epochs["loss"], color=plots.GREY, label="training, w")
    left.plot(number, epochs["test_loss"], color=plots.BLUE, label="test, w")
    middle.plot(number, epochs["accuracy"], color=plots.GREY, label="training, w")
    middle.plot(number, epochs["test_accuracy"], color=plots.BLUE, label="test, w")
    if "test_loss_u" in epochs:
      style = {"color": plots.ORANGE, "label": "test, u", "linestyle": "--"}
      left.plot(number, epochs["test_loss_u"], **style)
      middle.plot(number, epochs["test_accuracy_u"], **style)
    right.plot(number, epochs["zeros"], color=plots.ORANGE)
    left.set(title="Cross entropy", xlabel="epoch", yscale="log")
    middle.set(title="Accuracy", xlabel="epoch")
    right.set(title="Exact zeros in the dense layer", xlabel="epoch")
    right.set_ylim(-0.02, 1.02)
    for panel in (middle, right):
      plots.percent_axis(panel)
    for panel in (left, middle):
      panel.legend()
    for panel in axes[0]:
      panel.xaxis.get_major_locator().set_params(integer=True)


def draw_weights(result: dict[str, Any], path: pathlib.Path) -> None:
  """How the magnitudes of the dense layer are distributed; Fig. 6 of the paper."""
  with plots.figure(path, width=7.0, height=3.8) as axes:
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


def draw_own_samples(name: str, path: pathlib.Path) -> None:
  """`draw_samples` of one of the project's own sets."""
  draw_samples(Examples(*datasets.samples(name, 32)), path, Config().class_names)


def draw_samples(
  data: Examples,
  path: pathlib.Path,
  classes: Sequence[str],
  columns: int = 8,
) -> None:
  """Two rows of each class; Figs. 3 and 5 of the paper."""
  rows = []
  for label in (0, 1):
    images = data.x[data.y == label][: 2 * columns]
    rows += [images[:columns], images[columns:]]
  paper_and_ink = matplotlib.colors.ListedColormap(["white", "black"])
  with plots.figure(path, len(rows), columns, width=1.1, height=1.15) as axes:
    for panel in axes.ravel():
      panel.set(xticks=[], yticks=[])
      panel.grid(False)
      panel.spines[:].set(visible=True, color="#CCCCCC")
    for panels, images in zip(axes, rows, strict=True):
      for panel, image in zip(panels, images, strict=False):
        panel.imshow(image[:, :, 0], cmap=paper_and_ink, vmin=0, vmax=1)
    for label, name in enumerate(classes):
      axes[2 * label, 0].set_title(name)
