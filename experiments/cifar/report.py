"""Tables and figures of all rows of one size, from their results."""

from collections.abc import Mapping
import pathlib
from typing import Any

from matplotlib.ticker import NullLocator, PercentFormatter

from experiments.cifar import config as configs
from experiments.core import plots
from experiments.core import results as results_
from experiments.core.measure import sparse_name
from experiments.core.tables import percent, table

Results = Mapping[str, dict[str, Any]]

_TITLES = {
  "1": "VGG-16, Table 1 of Dinh & Xin (2020)",
  "2": "ResNet-18, Table 2 of Dinh & Xin (2020)",
  "beyond": "At a target sparsity",
}
_TARGETS = "accuracy-against-sparsity.png"
_NETWORKS = {"vgg16": "VGG-16", "resnet18": "ResNet-18"}
_HEADER = [
  "row",
  "paper: accuracy",
  "paper: sparsity",
  "accuracy of w",
  "accuracy of u",
  "of u, recalibrated",
  "of w cut at its gap",
  "zeros, all kernels",
  "zeros, all parameters",
  "w below 1e-3",
]


def write(directory: pathlib.Path) -> list[pathlib.Path]:
  """Writes `tables.md` and the figures of all rows whose results are there.

  Args:
    directory: with `{row}.json` for each finished row, all with the same settings.

  Returns:
    The paths of what was written.
  """
  results = {
    name: results_.read(directory / f"{name}.json")
    for name in configs.ROWS
    if (directory / f"{name}.json").exists()
  }
  if not results:
    return []
  text = markdown(results)
  files = [results_.write_atomically(directory / "tables.md", text)]
  for table_name in configs.TABLES:
    for name, found in _by_network(results, table_name).items():
      files.append(directory / name)
      draw_training(found, files[-1])
  if _by_network(results, "beyond"):
    files.append(directory / _TARGETS)
    draw_targets(results, files[-1])
  return files


def _by_network(results: Results, table_name: str) -> dict[str, Results]:
  """The results of a table's rows, for each network, by the name of their figure."""
  out: dict[str, dict[str, dict[str, Any]]] = {}
  for row in configs.TABLES[table_name]:
    if row.name in results:
      figure = f"table-{table_name}-{row.network}.png"
      out.setdefault(figure, {})[row.name] = results[row.name]
  return dict(out)


def markdown(results: Results) -> str:
  """All tables of the results that there are, the paper's numbers beside ours."""
  first = next(iter(results.values()))
  settings = configs.Settings(**first["config"]["settings"])
  parts = [f"# CIFAR-10{', reduced size' if settings.reduced else ''}"]
  if settings.reduced:
    parts.append(
      "**Not the full tables: those are not measured.** They are those of\n\n"
      f"    {configs.Settings().command}\n\n"
      "and these rows are those of the same command with smaller sizes,\n\n"
      f"    {settings.command}\n\n"
      "which do not reach the paper's accuracy and are not meant to. The paper's"
      " numbers stand beside them for orientation only. With fewer channels the initial"
      " weights are larger, and in fewer steps weight decay shrinks them less: fewer"
      " fall below the threshold of a constant lambda and beta, and a weak pull, as"
      " ADMM's, leaves w far from u."
    )
  for name, rows in configs.TABLES.items():
    lines = [_line(row, results[row.name]) for row in rows if row.name in results]
    if lines:
      figures = [*_by_network(results, name), *[_TARGETS] * (name == "beyond")]
      parts += [f"## {_TITLES[name]}", table(_HEADER, lines)]
      parts += [f"![{_TITLES[name]}]({figure})" for figure in figures]
    if lines and name == "beyond":
      parts.append(_comparison(results))
  parts += [_definitions(first), _protocol(settings)]
  if settings.overwrite_w_each_epoch:
    parts.append(
      "At the end of every epoch w was overwritten by u and the momentum restarted, as"
      " in the authors' released code."
    )
  parts.append(results_.footer(list(results.values())))
  return "\n\n".join(parts) + "\n"


def _line(row: configs.Row, result: dict[str, Any]) -> list[str]:
  final = result["final"]
  paper = configs.PAPER.get(row.name, (None, None))
  own = final.get("recalibrated", {}).get("u")
  title = row.title
  if row in configs.TABLES["beyond"]:
    title = f"{_NETWORKS[row.network]}: {title}"
  return [
    title,
    *(percent(None if share is None else share / 100) for share in paper),
    percent(final["accuracy"]["w"]),
    percent(final["accuracy"]["u"]),
    percent(own and own["accuracy"]),
    percent(final["accuracy"]["w_cut"]),
    percent(final["zeros"][sparse_name(final)]),
    percent(final["zeros_all"][sparse_name(final)]),
    percent(final["w_below"]["3"]),
  ]


def _comparison(results: Results) -> str:
  """By how many points RVSM is more accurate than pruning at the same sparsity."""
  rows = []
  for network, title in _NETWORKS.items():
    cells = []
    for target in configs.TARGETS:
      names = [
        f"{network}-{kind}{100 * target:.0f}" for kind in ("cardinality", "pruning")
      ]
      if not all(name in results for name in names):
        cells.append("–")
        continue
      split, pruned = (results[name]["final"] for name in names)
      base = pruned["accuracy"]["w"]
      points = [
        100 * (split["accuracy"]["u"] - base),
        100 * (split["recalibrated"]["u"]["accuracy"] - base),
      ]
      cells.append("{:+.1f} ({:+.1f})".format(*points))
    rows.append([title, *cells])
  size = next(iter(results.values()))["data"]["test_images"]
  header = [
    "accuracy of u minus that of pruning",
    *(f"{target:.0%}" for target in configs.TARGETS),
  ]
  return (
    "In points, of one training each, and in brackets with u recalibrated; an"
    f" accuracy on {size:,} images has a standard error of up to"
    f" {50 / size**0.5:.1f} points:\n\n{table(header, rows)}"
  )


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
    ' all network weights". Accuracy of u is with the running statistics of batch'
    " normalisation as trained, with w; *recalibrated*: with statistics of its own,"
    " from the training images without augmentation. The gap is the emptiest decade"
    " of magnitudes of w with at least half of the weights below."
  )


def _protocol(settings: configs.Settings) -> str:
  start, end = configs.RAMP
  return (
    f"Protocol: {settings.epochs} epochs in batches of {settings.batch_size}, random"
    f" crops and mirroring, SGD with learning rate {settings.learning_rate:g} per 128"
    " images of a batch, divided by 10 after 40%, 60% and 80% of the training (the"
    " paper's epochs 80, 120, 160 of 200, which it prints for ResNet-18 and which are"
    f" taken for VGG-16 as well), Nesterov momentum {settings.momentum:g} and weight"
    f" decay {settings.weight_decay:g} (from the authors' released code; the paper"
    f" prints neither), He initialisation, {settings.precision}, seed {settings.seed}."
    " RVSM in the order of the paper's Algorithm 1. Target sparsities, the same for"
    f" every kernel, rise from {start:.0%} to {end:.0%} of the training by the cubic"
    " schedule of Zhu & Gupta (2017), for gradual magnitude pruning and for RVSM alike,"
    f" which there has beta such that beta times the learning rate is"
    f" {configs.TARGET_PULL:g} throughout."
  )


def draw_training(results: Results, path: pathlib.Path) -> None:
  """Accuracy and zeros of one sparse network against epochs, and zeros by layer."""
  with plots.figure(path, columns=3, width=4.8, height=3.8) as axes:
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
  with plots.figure(path, columns=2, width=5.2, height=4.0) as axes:
    for panel, (network, title) in zip(axes[0], _NETWORKS.items(), strict=True):
      for label, kind, style in (
        ("RVSM, cardinality", "cardinality", {"color": plots.ORANGE, "marker": "o"}),
        ("gradual pruning", "pruning", {"color": plots.BLUE, "marker": "s"}),
      ):
        names = [f"{network}-{kind}{round(100 * target)}" for target in configs.TARGETS]
        points = [_point(results[name]) for name in names if name in results]
        if points:
          panel.plot(*zip(*points, strict=True), label=label, **style)
      others = [
        row
        for row in (*configs.TABLES["1"], *configs.TABLES["2"])
        if row.network == network and row.name in results
      ]
      for row, marker in zip(others, "x+^v", strict=False):
        x, y = _point(results[row.name])
        panel.plot(x, y, marker, color=plots.GREY, label=row.title)
      panel.set(
        title=title,
        xlabel="weights that are not zero",
        xscale="log",
        xlim=(1.15, 0.015),
      )
      panel.set_xticks([1, 0.5, 0.2, 0.1, 0.05, 0.02])
      panel.xaxis.set_major_formatter(PercentFormatter(1.0, 0))
      panel.xaxis.set_minor_locator(NullLocator())
      plots.percent_axis(panel, 0)
      panel.legend(fontsize=8)
    axes[0, 0].set_ylabel("test accuracy of the sparse network")


def _point(result: dict[str, Any]) -> tuple[float, float]:
  final = result["final"]
  name = sparse_name(final)
  return 1 - final["zeros"][name], final["accuracy"][name]
