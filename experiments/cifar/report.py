"""Tables and figures of all rows of one size, from their results."""

from collections.abc import Mapping
import pathlib
from typing import Any

from matplotlib.ticker import NullLocator, PercentFormatter
import numpy as np

from experiments.cifar import config as configs
from experiments.core import plots
from experiments.core import results as results_
from experiments.core.measure import sparse_name
from experiments.core.tables import percent, table

Results = Mapping[str, dict[str, Any]]

_TITLES = {
  "1": "VGG-16, Table 1 of Dinh & Xin (2020)",
  "2": "ResNet-18, Table 2 of Dinh & Xin (2020)",
}
_DENSE = {"1": "vgg16-base", "2": "resnet18-sgd"}
_FIGURES = {"1": "table-1-vgg16.png", "2": "table-2-resnet18.png"}
_TARGETS = "accuracy-against-sparsity.png"
_NETWORKS = {"vgg16": "VGG-16", "resnet18": "ResNet-18"}
_HEADER = [
  "row",
  "paper: accuracy",
  "paper: sparsity",
  "accuracy of w",
  "accuracy of u",
  "sparse, own statistics",
  "of w cut at its gap",
  "zeros, all kernels",
  "zeros, all parameters",
  "w below 1e-3",
]
_ABOUT_TARGETS = (
  "Accuracy of the sparse network, cut to the share if it had fewer zeros; in"
  " brackets its exact zeros in all kernels before. One training each: a difference"
  " has a standard error of about 0.3 to 0.4 points on 10,000 test images, and of as"
  " much again by the seed."
)


def write(directory: pathlib.Path) -> list[pathlib.Path]:
  """Writes `tables.md` and the figures of all rows whose results are there.

  Args:
    directory: with `{row}.json` for each finished row, all with the same settings.

  Returns:
    The paths of what was written.
  """
  results = results_.read_all(directory, configs.ROWS)
  if not results:
    return []
  text = markdown(results)
  files = [results_.write_atomically(directory / "tables.md", text)]
  for name, figure in _FIGURES.items():
    if found := _of_table(results, name):
      files.append(directory / figure)
      draw_training(found, files[-1])
  if _of_table(results, "beyond"):
    files.append(directory / _TARGETS)
    draw_targets(results, files[-1])
  return files


def _of_table(results: Results, name: str) -> Results:
  rows = configs.TABLES[name]
  return {row.name: results[row.name] for row in rows if row.name in results}


def markdown(results: Results) -> str:
  """All tables of the results that there are, the paper's numbers beside ours."""
  first = next(iter(results.values()))
  settings = configs.Settings(**first["config"]["settings"])
  everything = (first["data"]["train_images"], first["data"]["test_images"])
  whole = everything == (50_000, 10_000)
  parts = [f"# CIFAR-10{'' if whole else ', a part of the images'}"]
  parts.append(
    f"    {settings.command}\n\nThe paper trains for 200 epochs, all channels and"
    f" images; here: {_sizes(settings, first)}."
  )
  for name, title in _TITLES.items():
    found = _of_table(results, name)
    if found:
      lines = [_line(configs.ROWS[row], result) for row, result in found.items()]
      parts += [f"## {title}", table(_HEADER, lines), *_losses(results, name)]
      parts.append(f"![{title}]({_FIGURES[name]})")
  if _of_table(results, "beyond"):
    parts.append("## At a target sparsity")
    parts += [text for network in _NETWORKS for text in _targets(results, network)]
    parts += [_ABOUT_TARGETS, f"![Accuracy against zeros]({_TARGETS})"]
  known = {*results, *(row.name for row in configs.TABLES["units"])}
  missing = [name for name in configs.ORDER if name not in known]
  if missing:
    parts.append(f"Not trained so far: {', '.join(missing)}.")
  parts += [_definitions(first), _protocol(settings)]
  return "\n\n".join([*parts, results_.footer([*results.values()])]) + "\n"


def _sizes(settings: configs.Settings, result: dict[str, Any]) -> str:
  width = (
    "all channels" if settings.width == 1 else f"{settings.width:g} of the channels"
  )
  data = result["data"]
  return (
    f"{settings.epochs} epochs, {width}, {data['train_images']:,} training and"
    f" {data['test_images']:,} test images"
  )


def _line(row: configs.Row, result: dict[str, Any]) -> list[str]:
  final = result["final"]
  paper = configs.PAPER.get(row.name, (None, None))
  sparse = sparse_name(final)
  return [
    row.title,
    *(percent(None if share is None else share / 100) for share in paper),
    percent(final["accuracy"]["w"]),
    percent(final["accuracy"]["u"]),
    percent(final.get("own_statistics", {}).get("accuracy")),
    percent(final["accuracy"]["w_cut"]),
    percent(final["zeros"][sparse]),
    percent(final["zeros_all"][sparse]),
    percent(final["w_below"]["3"]),
  ]


def _losses(results: Results, name: str) -> list[str]:
  """What l0 loses at the paper's share of zeros; what its printed threshold does."""
  dense = _DENSE[name]
  l0, at_share = (
    row for row in configs.TABLES[name] if row.penalty == "l0" and row.method == "rvsm"
  )
  texts = []
  if dense in results and at_share.name in results:
    paper = configs.PAPER[dense][0] - configs.PAPER[l0.name][0]
    ours = results[dense]["final"]["accuracy"]["w"]
    ours -= sparse_accuracy(results[at_share.name])
    texts.append(
      f"With the paper's share of zeros, {configs.percent(at_share.sparsity)}, u of l0"
      f" loses {100 * ours:.2f} points against the dense network; the paper's,"
      f" {paper:.2f}."
    )
  if l0.name in results:
    width = results[l0.name]["config"]["settings"]["width"]
    threshold, deviation = (2 * l0.lam / l0.beta) ** 0.5, (2 / (9 * 512 * width)) ** 0.5
    texts.append(
      "The printed lambda and beta of l0 are a threshold of sqrt(2 lambda / beta) ="
      f" {threshold:.3f}. Initial weights of the widest layers have a deviation of"
      f" {deviation:.3f} here; those of a layer with less than the threshold begin with"
      " zeros in nearly all of u, to which w is pulled."
    )
  return ["\n\n".join(texts)] if texts else []


def sparse_accuracy(result: dict[str, Any]) -> float:
  """That of the sparse network, cut to the row's sparsity if it has fewer zeros."""
  final, sparse = result["final"], sparse_name(result["final"])
  # The share is a float32.
  if final["zeros"][sparse] >= result["config"]["row"]["sparsity"] - 1e-6:
    return final["accuracy"][sparse]
  return final["at_share"]["accuracy"]


def _targets(results: Results, network: str) -> list[str]:
  """Accuracy of all methods at all shares, and ours against pruning."""

  def cell(method: str, share: float) -> str:
    result = results.get(configs.target_name(network, method, share))
    if result is None:
      return "–"
    zeros = result["final"]["zeros"][sparse_name(result["final"])]
    return f"{percent(sparse_accuracy(result))} ({percent(zeros)})"

  def difference(share: float) -> str:
    found = {
      method: sparse_accuracy(results[name])
      for method in configs.TITLES
      if (name := configs.target_name(network, method, share)) in results
    }
    pruned = found.pop("pruning", None)
    if pruned is None or not found:
      return "–"
    best = max(found, key=lambda method: found[method])
    return f"{100 * (found[best] - pruned):+.2f} ({configs.TITLES[best]})"

  if not any(
    configs.ROWS[name].network == network for name in _of_table(results, "beyond")
  ):
    return []
  shares = configs.TARGETS
  lines = [
    [title, *(cell(method, share) for share in shares)]
    for method, title in configs.TITLES.items()
  ]
  lines.append(["best of ours minus pruning, points", *map(difference, shares)])
  dense = results.get(_DENSE["1" if network == "vgg16" else "2"])
  known = f", dense {percent(dense['final']['accuracy']['w'])}" if dense else ""
  header = [f"{_NETWORKS[network]}{known}", *(f"{share:.0%}" for share in shares)]
  return [table(header, lines)]


def _definitions(result: dict[str, Any]) -> str:
  data, final = result["data"], result["final"]
  return (
    f"Accuracy on {data['test_images']:,} test images after the last epoch;"
    f" {data['train_images']:,} training images. Tested on {data['test_note']}.\n\n"
    "Zeros are exact zeros of u, or of w where there is no u. *All kernels*: of all"
    " convolutions and the dense layer, which are what is made sparse"
    f" ({final['weights']:,} weights in {result['config']['row']['network']}). *All"
    " parameters*: those and the biases and scales, which are dense"
    f' ({final["params"]:,}). The paper has "the percentage of zero components over'
    ' all network weights". Accuracy of w and u is with the running statistics of'
    " batch normalisation as trained, with w; *own statistics*: of the sparse network"
    " with its own, from the augmented training images. The gap is the emptiest decade"
    " of magnitudes of w with at least half of the weights below."
  )


def _protocol(settings: configs.Settings) -> str:
  rate = (
    "one cycle of the learning rate (cosine, up to its peak in the first 30%) with peak"
    f" {settings.learning_rate:g} per 128 images of a batch, labels smoothed by"
    f" {configs.SMOOTHING:g},"
    if settings.recipe == "fast"
    else f"learning rate {settings.learning_rate:g} per 128 images of a batch, divided"
    " by 10 after 40%, 60% and 80% of the training (the paper's epochs 80, 120, 160 of"
    " 200, which it prints for ResNet-18 and which are taken for VGG-16 as well),"
  )
  return (
    f"Protocol: {settings.epochs} epochs in batches of {settings.batch_size}, random"
    f" crops and mirroring, SGD with {rate} Nesterov momentum {settings.momentum:g} and"
    f" weight decay {settings.weight_decay:g} (from the authors' released code; the"
    f" paper prints neither), He initialisation, {settings.precision}, seed"
    f" {settings.seed}. RVSM without a target sparsity has the paper's lambda, beta and"
    " order (Algorithm 1). Target sparsities hold for all kernels together and rise by"
    " the cubic ramp of Zhu & Gupta (2017), up to half of the training for all methods"
    " alike, from 10% of it, or, for the `sparsify` of before November 26, 2026, from"
    f" its beginning; beta times the learning rate is {configs.PULL:g}. Nothing was"
    " searched here."
  )


def draw_training(results: Results, path: pathlib.Path) -> None:
  """Accuracy and zeros of one sparse network against epochs, and zeros by layer."""
  with plots.figure(path, columns=3, width=3.4, height=3.2) as axes:
    left, middle, right = axes[0]
    for color, (name, result) in zip(plots.COLORS, results.items(), strict=False):
      row = configs.ROWS[name]
      style = {"color": color, "linestyle": "--" if row.method == "pruning" else "-"}
      epochs = [metrics["epoch"] for metrics in result["epochs"]]
      suffix = "_u" if sparse_name(result["final"]) == "u" else ""
      accuracy = [metrics[f"test_accuracy{suffix}"] for metrics in result["epochs"]]
      left.plot(epochs, accuracy, label=row.title, **style)
      middle.plot(epochs, [metrics["zeros"] for metrics in result["epochs"]], **style)
      zeros = [layer["zeros"] for layer in result["final"]["layers"]]
      right.plot(range(1, len(zeros) + 1), zeros, marker=".", **style)
    title = _NETWORKS[row.network]
    left.set(title=f"{title}: test accuracy when sparse", xlabel="epoch")
    middle.set(title="Exact zeros in all kernels", xlabel="epoch")
    right.set(title="Exact zeros by layer, at the end", xlabel="layer")
    for panel in axes[0]:
      plots.percent_axis(panel, 0)
      panel.xaxis.get_major_locator().set_params(integer=True)
    for panel in (middle, right):
      panel.set_ylim(-0.02, 1.02)
    handles, labels = left.get_legend_handles_labels()
    left.figure.legend(
      handles,
      labels,
      loc="outside lower center",
      ncols=3 if len(labels) > 4 else 4,
      fontsize=9,
    )


def draw_targets(results: Results, path: pathlib.Path) -> None:
  """Accuracy of the sparse networks against what is left, a panel per network."""
  there = {configs.ROWS[name].network for name in results}
  networks = [name for name in _NETWORKS if name in there]
  with plots.figure(path, columns=len(networks), width=5.2, height=4.0) as axes:
    for panel, network in zip(axes[0], networks, strict=True):
      for (method, label), color in zip(
        configs.TITLES.items(), plots.COLORS, strict=False
      ):
        names = [configs.target_name(network, method, t) for t in configs.TARGETS]
        points = [_point(results[name]) for name in names if name in results]
        if points:
          style = "s--" if method == "pruning" else "o-"
          panel.plot(*zip(*points, strict=True), style, color=color, label=label)
      others = [
        row
        for row in (*configs.TABLES["1"], *configs.TABLES["2"])
        if row.network == network and row.name in results
      ]
      for row, marker in zip(others, "x+^v", strict=False):
        x, y = _point(results[row.name])
        panel.plot(x, y, marker, color=plots.GREY, label=row.title)
      panel.set(
        title=_NETWORKS[network],
        xlabel="weights that are not zero",
        xscale="log",
        xlim=(1.15, 0.015),
      )
      panel.set_xticks([1, 0.5, 0.2, 0.1, 0.05, 0.02])
      panel.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
      panel.xaxis.set_minor_locator(NullLocator())
      plots.percent_axis(panel)
      # A network that has learnt nothing would squash the others.
      heights = np.concatenate([line.get_ydata() for line in panel.lines] or [[1.0]])
      shown = heights[heights > heights.max() - 0.1]
      margin = 0.05 * np.ptp(shown) + 1e-3
      panel.set_ylim(shown.min() - margin, shown.max() + margin)
      for line in panel.lines:
        if max(line.get_ydata()) < shown.min():
          line.set_label(f"{line.get_label()}: below")
      panel.legend(fontsize=8)
    axes[0, 0].set_ylabel("test accuracy of the sparse network")


def _point(result: dict[str, Any]) -> tuple[float, float]:
  final = result["final"]
  return 1 - final["zeros"][sparse_name(final)], sparse_accuracy(result)
