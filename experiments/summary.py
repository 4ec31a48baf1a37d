"""The results that matter most, in two tables, from the JSON of other experiments."""

from collections.abc import Iterator, Sequence
import pathlib
from typing import Any

import numpy as np

from experiments.cifar import config as cifar
from experiments.cifar import report as cifar_report
from experiments.core import results
from experiments.core.tables import table, with_error
from experiments.curves import paper as curves_paper
from experiments.frontier import config as frontier
from experiments.integrated import paper as integrated_paper

SHARES = (0.9, 0.95, 0.98)

_NETWORKS = {"vgg16": "VGG-16", "resnet18": "ResNet-18"}
_FRONTIER = (
  "Test accuracy of the sparse network in per cent, mean ± standard error; of text the"
  " test loss in nats per character, lower is better. *Magnitude pruning* has one"
  " budget for all layers, and a ramp that was tuned where there are five seeds;"
  " `sparsify` has nothing tuned. *Best of ours* is chosen, among more methods than the"
  " others, by the numbers shown. On CIFAR-10 nothing is tuned, one training has a"
  " standard error of about 0.3, and at full width `sparsify` is that of an earlier"
  " recipe."
)
_PAPERS = (
  "Test accuracy, mean ± standard deviation where there are several seeds. Zeros of"
  " RVSM are exact zeros of u, in the dense layer; the paper counts weights w below"
  " 1e-10, on images that are not public. On CIFAR-10 they are those of all kernels,"
  " and our training has 30 epochs, the paper's 200. Zeros of integrated TL1 are those"
  " of all parameters, chosen within half a point of the best validation accuracy;"
  " of sets that are not here in full, the paper's numbers are left out."
)


def write(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes `summary.md` into the folder with the results of all experiments."""
  return [results.write_atomically(folder / "summary.md", markdown(folder))]


def markdown(folder: pathlib.Path) -> str:
  """Both tables."""
  methods = ["dense network", "dense, cut once", "magnitude pruning", "`sparsify`"]
  header = ["task, share of zeros, seeds", *methods, "best of ours"]
  full, narrow = _cifar(folder / "cifar")
  targets = [*_cifar_targets(narrow, ", 1/4 as wide"), *_cifar_targets(full)]
  ours = table(header, [*_frontier(folder / "frontier"), *targets])
  header = ["data set, method, seeds", "dense network", "sparse network", "its zeros"]
  header += ["paper: accuracy", "paper: zeros"]
  rows = [*_curves(folder / "curves" / "tuned"), *_cifar_papers(full)]
  rows += _integrated(folder / "integrated")
  parts = ["## At the same share of zeros", ours, _FRONTIER]
  parts += ["## Beside the papers", table(header, rows), _PAPERS]
  return "\n\n".join(parts) + "\n"


def _frontier(folder: pathlib.Path) -> Iterator[list[str]]:
  for name, task in frontier.TASKS.items():
    found = results.read_all(folder / name, frontier.METHODS)
    compared = ("cut", "pruning-all", "sparsify")
    if any(method not in found for method in compared):
      continue
    key = "loss" if task.in_nats else "accuracy"
    ours = [method for method in found if frontier.METHODS[method].group == "ours"]
    for share in SHARES:
      best = max(ours, key=lambda m: _score(task, found[m], share))
      cells = [_error(task, _at(found["cut"], share, f"{key}_w"))]
      cells += [_error(task, _at(found[m], share, key)) for m in (*compared, best)]
      cells[-1] += f" ({frontier.METHODS[best].title})"
      seeds = found["cut"]["config"]["seeds"]
      yield [f"{task.title}, {share:.0%}, {seeds} seeds", *cells]


def _cifar(folder: pathlib.Path) -> list[dict[str, dict[str, Any]]]:
  """By the names of their rows, the networks of full width, and of a quarter of it."""
  found = [results.read(file) for file in sorted(folder.glob("*/*.json"))]
  return [
    {r["name"]: r for r in found if r["config"]["settings"]["width"] == width}
    for width in (1.0, 0.25)
  ]


def _cifar_targets(
  found: dict[str, dict[str, Any]], size: str = ""
) -> Iterator[list[str]]:
  for network, dense in (("vgg16", "vgg16-base"), ("resnet18", "resnet18-sgd")):
    for share in SHARES:
      accuracy = {
        method: 100 * cifar_report.sparse_accuracy(found[name])
        for method in cifar.TITLES
        if (name := cifar.target_name(network, method, share)) in found
      }
      if dense in found and accuracy.keys() == cifar.TITLES.keys():
        best = max(accuracy.keys() - {"pruning"}, key=lambda method: accuracy[method])
        yield [
          f"CIFAR-10, {_NETWORKS[network]}{size}, {share:.0%}, 1 seed",
          f"{100 * found[dense]['final']['accuracy']['w']:.2f}",
          "–",
          f"{accuracy['pruning']:.2f}",
          f"{accuracy['sparsify']:.2f}",
          f"{accuracy[best]:.2f} ({cifar.TITLES[best]})",
        ]


def _cifar_papers(found: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
  pairs = (
    ("vgg16", "vgg16-base", "vgg16-rvsm87", "vgg16-l0"),
    ("resnet18", "resnet18-sgd", "resnet18-rvsm94", "resnet18-l0"),
  )
  for network, dense, sparse, printed in pairs:
    if dense in found and sparse in found:
      accuracy, zeros = cifar.PAPER[printed]
      yield [
        f"CIFAR-10, {_NETWORKS[network]}, RVSM with l0, 1 seed",
        f"{found[dense]['final']['accuracy']['w']:.1%}",
        f"{cifar_report.sparse_accuracy(found[sparse]):.1%}",
        f"{found[sparse]['final']['zeros']['u']:.1%}",
        f"{accuracy:.1f}%",
        f"{zeros:.1f}%",
      ]


def _at(result: dict[str, Any], share: float, key: str) -> np.ndarray:
  return np.array([final[key] for final in result["finals"] if final["share"] == share])


def _score(task: frontier.Task, result: dict[str, Any], share: float) -> float:
  finals = [final for final in result["finals"] if final["share"] == share]
  return float(np.mean([frontier.score(task, final) for final in finals]))


def _error(task: frontier.Task, values: np.ndarray) -> str:
  """The mean and its standard error, in the task's unit."""
  return with_error(values, 3) if task.in_nats else with_error(100 * values, 2)


def _curves(folder: pathlib.Path) -> Iterator[list[str]]:
  for name in ("planar_shapes", "alphabets"):
    dense = folder / f"{name}-none-seed0.json"
    if not dense.exists():
      continue
    files = sorted(folder.glob(f"{name}-l0-rvsm-ramped-seed*.json"))
    finals = [results.read(file)["final"] for file in files]
    printed = curves_paper.row(name, "l0", 1.0)
    assert printed is not None
    yield [
      f"{name.replace('_', ' ')}, RVSM with l0, {len(finals)} seeds",
      f"{results.read(dense)['final']['accuracy']['w']:.1%}",
      _spread([final["accuracy"]["u"] for final in finals]),
      _spread([final["zeros"]["u"] for final in finals]),
      f"{printed[1].accuracy:.1f}%",
      f"{printed[1].sparsity:.1f}%",
    ]


def _integrated(folder: pathlib.Path) -> Iterator[list[str]]:
  for file in sorted(folder.glob("*.json")):
    result = results.read(file)
    problem, seeds = result["config"]["problem"], len(result["config"]["seeds"])
    dense, sparse = (result["methods"][name]["finals"] for name in ("l2", "itl"))
    printed = integrated_paper.TABLE_2.get(problem["name"], {}).get("itl")
    if problem["train_size"]:
      continue  # A small part of the set says nothing.
    if "subset" in problem["name"]:
      printed = None
    yield [
      f"{problem['title']}, integrated TL1, {seeds} seed{'s' * (seeds > 1)}",
      _spread([final["accuracy"] for final in dense]),
      _spread([final["accuracy"] for final in sparse]),
      _spread([1 - final["parameters"] for final in sparse]),
      f"{printed.accuracy[0]:.1%}" if printed else "–",
      f"{1 - printed.parameters[0]:.1%}" if printed else "–",
    ]


def _spread(values: Sequence[float]) -> str:
  if len(values) == 1:
    return f"{values[0]:.1%}"
  return f"{np.mean(values):.1%} ± {100 * np.std(values, ddof=1):.1f}"
