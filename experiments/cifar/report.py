"""Tables and figures of all rows of one size, from their results."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

from matplotlib.ticker import PercentFormatter

from experiments import _plots, _run
from experiments.cifar import config as configs
from experiments.curves.report import percent, table

Results = Mapping[str, dict[str, Any]]

_TITLES = {
  "1": "VGG-16, Table 1 of Dinh & Xin (2020)",
  "2": "ResNet-18, Table 2 of Dinh & Xin (2020)",
  "beyond": "At a target sparsity",
}
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
    directory: with `{row}.json` for each finished row, all with the same settings;
      `cost.json` is looked for there and in the directory above.

  Returns:
    The paths of what was written.
  """
  results = {
    name: json.loads((directory / f"{name}.json").read_text())
    for name in configs.ROWS
    if (directory / f"{name}.json").exists()
  }
  if not results:
    return []
  costs = [folder / "cost.json" for folder in (directory, directory.parent)]
  cost = next((json.loads(file.read_text()) for file in costs if file.exists()), None)
  files = [directory / "tables.md"]
  _run.write_atomically(files[0], markdown(results, cost))
  for name, rows in configs.TABLES.items():
    found = {row.name: results[row.name] for row in rows if row.name in results}
    if found:
      files.append(directory / f"table-{name}.png")
      draw_training(found, files[-1])
  if any(row.name in results for row in configs.TABLES["beyond"]):
    files.append(directory / "accuracy-against-sparsity.png")
    draw_targets(results, files[-1])
  return files


def sparse(result: dict[str, Any]) -> str:
  """Which network of a result is the sparse one: u, or w where there is no u."""
  return "w" if result["final"]["zeros_kernels"]["u"] is None else "u"


def markdown(results: Results, cost: dict[str, Any] | None) -> str:
  """All tables, with the paper's numbers beside ours.

  Args:
    results: those that there are, by name.
    cost: of `cost.full_size`, if it has been measured.
  """
  first = next(iter(results.values()))
  settings = configs.Settings(**first["config"]["settings"])
  parts = [f"# CIFAR-10{', reduced size' if settings.reduced else ''}"]
  if settings.reduced:
    parts.append(
      "**Not the full tables: those are not measured.** These rows are the same"
      " commands with smaller sizes"
      f" ({', '.join(f'{k} {v}' for k, v in settings.changes.items())}),"
      " which do not reach the paper's accuracy and are not meant to. Its numbers"
      " stand beside them for orientation only. With fewer channels the initial"
      " weights are larger, and in fewer steps weight decay shrinks them less: fewer"
      " fall below the threshold of a constant lambda and beta, and a weak pull, as"
      " ADMM's, leaves w far from u."
    )
  for name, rows in configs.TABLES.items():
    lines = [_line(row, results[row.name]) for row in rows if row.name in results]
    if lines:
      parts += [f"## {_TITLES[name]}", table(_HEADER, lines)]
  parts += [_definitions(first), _protocol(settings)]
  if settings.overwrite_w_each_epoch:
    parts.append(
      "At the end of every epoch w was overwritten by u and the momentum restarted, as"
      " in the authors' released code."
    )
  if cost is not None:
    parts.append(_cost(cost))
  hardware, versions = first["hardware"], first["versions"]
  seconds = sum(result["seconds"] for result in results.values())
  parts.append(
    f"Time of all rows here: {seconds / 60:.0f} min on {first['devices']} device(s),"
    f" {hardware['cores']} cores of {hardware['processor']} ({hardware['backend']});"
    f" JAX {versions['jax']}, Flax {versions['flax']}, Optax {versions['optax']},"
    f" Python {versions['python']}; revision {first['git_revision']}."
  )
  return "\n\n".join(parts) + "\n"


def _line(row: configs.Row, result: dict[str, Any]) -> list[str]:
  final = result["final"]
  paper = configs.PAPER.get(row.name, (None, None))
  own = final["u_recalibrated"]
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
    percent(final["zeros_kernels"][sparse(result)]),
    percent(final["zeros_params"][sparse(result)]),
    percent(final["w_below"]["3"]),
  ]


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


def _cost(cost: dict[str, Any]) -> str:
  hardware, settings = cost["hardware"], cost["settings"]
  rows = []
  for name, one in cost["networks"].items():
    seconds = one["seconds_per_step"]
    rows.append(
      [
        _NETWORKS[name],
        f"{one['steps']:,}",
        f"{one['flops'] / 1e9:,.0f}",
        f"{one['flops'] * one['steps'] / 1e15:,.1f}",
        f"{one['bytes']['peak'] / 2**30:.2f}",
        f"{seconds:.1f}",
        f"{seconds * one['steps'] / 86400:.1f}",
      ]
    )
  header = [
    "full size",
    "steps",
    "GFLOP per step",
    "PFLOP in all",
    "GiB",
    "s per step here",
    "days per row here",
  ]
  return (
    "## What a full row needs\n\n"
    + table(header, rows)
    + f"\n\nOne training of {settings['epochs']} epochs in batches of"
    f" {settings['batch_size']} at full width, RVSM with l0, {settings['precision']}:"
    " operations and memory (weights, momentum, u, gradients, activations, without"
    " 0.15 GiB of images) as the compiler counts them; the time is that of the faster"
    f" of two steps on {hardware['cores']} cores of {hardware['processor']}"
    f" ({hardware['backend']})."
  )


def draw_training(results: Results, path: pathlib.Path) -> None:
  """Accuracy and zeros of the sparse networks against epochs, and zeros by layer."""
  with _plots.figure(path, columns=3, width=4.8, height=3.8) as axes:
    left, middle, right = axes[0]
    styles = ("-", "--", ":")
    for index, (name, result) in enumerate(results.items()):
      row = configs.ROWS[name]
      style = {
        "color": _plots.COLORS[index % len(_plots.COLORS)],
        "linestyle": styles[index // len(_plots.COLORS)],
      }
      label = f"{_NETWORKS[row.network]}: {row.title}"
      epochs = [metrics["epoch"] for metrics in result["epochs"]]
      suffix = "_u" if sparse(result) == "u" else ""
      accuracy = [metrics[f"test_accuracy{suffix}"] for metrics in result["epochs"]]
      left.plot(epochs, accuracy, label=label, **style)
      middle.plot(epochs, [metrics["zeros"] for metrics in result["epochs"]], **style)
      zeros = [layer["zeros"] for layer in result["final"]["layers"]]
      depth = [index / (len(zeros) - 1) for index in range(len(zeros))]
      right.plot(depth, zeros, marker=".", **style)
    left.set(title="Test accuracy of the sparse network", xlabel="epoch")
    middle.set(title="Exact zeros in all kernels", xlabel="epoch")
    right.set(title="Exact zeros by layer, at the end", xlabel="depth of the layer")
    for panel in axes[0]:
      _plots.percent_axis(panel)
    for panel in (middle, right):
      panel.set_ylim(-0.02, 1.02)
    for panel in (left, middle):
      panel.xaxis.get_major_locator().set_params(integer=True)
    handles, labels = left.get_legend_handles_labels()
    left.figure.legend(
      handles, labels, loc="outside lower center", ncols=min(4, len(labels)), fontsize=8
    )


def draw_targets(results: Results, path: pathlib.Path) -> None:
  """Accuracy of the sparse networks against their sparsity, a panel per network."""
  with _plots.figure(path, columns=2, width=5.2, height=4.0) as axes:
    for panel, (network, title) in zip(axes[0], _NETWORKS.items(), strict=True):
      for label, kind, style in (
        ("RVSM, cardinality", "cardinality", {"color": _plots.ORANGE, "marker": "o"}),
        ("gradual pruning", "pruning", {"color": _plots.BLUE, "marker": "s"}),
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
        panel.plot(x, y, marker, color=_plots.GREY, label=row.title)
      panel.set(title=title, xlabel="exact zeros in all kernels", xlim=(-0.03, 1.03))
      panel.xaxis.set_major_formatter(PercentFormatter(1.0))
      _plots.percent_axis(panel)
      panel.legend(fontsize=8)
    axes[0, 0].set_ylabel("test accuracy of the sparse network")


def _point(result: dict[str, Any]) -> Sequence[float]:
  name, final = sparse(result), result["final"]
  return final["zeros_kernels"][name], final["accuracy"][name]
