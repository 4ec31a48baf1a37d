"""Reports on small sets of pictures, from their results."""

from collections.abc import Sequence
import pathlib
from typing import Any

import numpy as np

from experiments.core import results
from experiments.core.tables import percent, table
from experiments.curves import report

_PARTS = {"held_out": "training pictures, held out", "test": "test pictures"}


def write(result: dict[str, Any], folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the table, the JSON and the mistakes of one result; returns their paths."""
  stem = folder / result["name"]
  return [
    results.write_atomically(stem.with_name(f"{stem.name}.md"), markdown(result)),
    results.write_json(stem.with_name(f"{stem.name}.json"), result),
    *report.draw_mistakes(result, stem.with_name(f"{stem.name}-mistakes.png")),
  ]


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes a table of all results in a folder, and the mistakes of the last of them."""
  found = [results.read(file) for file in sorted(folder.glob("*.json"))]
  if not found:
    return []
  found.sort(key=lambda one: len(_augmented(one["config"])))
  return [
    results.write_atomically(folder / "small.md", compared(found)),
    *report.draw_mistakes(found[-1], folder / "mistakes.png"),
  ]


def markdown(result: dict[str, Any]) -> str:
  """The report on one result."""
  final, config = result["final"], result["config"]
  header = ["pictures", "number", "one network", "seeds", "folds", "average", "95%"]
  rows = [
    [title, str(final[part]["count"]), *_cells(final[part])]
    for part, title in _PARTS.items()
    if part in final
  ]
  networks = np.size(final["zeros"])
  return f"""# {report.title(result["data"]["name"])}, {networks} networks

{table(header, rows)}

{_EXPLAINED}

{report.classes(result["data"])}Augmentation: {augmentation(config)}.
Protocol: {report.protocol(config)}
{_zeros(final)}

{report.mistakes(result)}{results.footer([result])}
"""


_EXPLAINED = (
  "*One network*: the mean accuracy of single networks, and from the least to the most."
  " *Seeds* and *folds*: the standard deviation over seeds, of means over folds, and"
  " over folds, of means over seeds, in points. *Average*: the accuracy of the averaged"
  " probabilities of all networks that did not see the picture, with Wilson's 95%"
  " interval: how far the true share may be from the one found on so few pictures, if"
  " they are a fair sample. For held-out pictures it is approximate, since their"
  " networks have training pictures in common."
)


def compared(found: Sequence[dict[str, Any]]) -> str:
  """One table of several results."""
  header = ["augmentation", "pictures", "one network", "seeds", "folds", "average"]
  rows = []
  for part, title in _PARTS.items():
    for config, measured in ((one["config"], one["final"].get(part)) for one in found):
      if measured is not None:
        pictures = f"{measured['count']} {title}"
        rows.append([augmentation(config), pictures, *_cells(measured)])
  first = found[0]
  return f"""# Small sets

{table([*header, "95%"], rows)}

{_EXPLAINED}

{report.classes(first["data"])}Protocol: {report.protocol(first["config"])}

{results.footer(found)}
"""


def augmentation(config: dict[str, Any]) -> str:
  """What is done to pictures in training, in words."""
  return ", ".join(_augmented(config)) or "none"


def _augmented(config: dict[str, Any]) -> list[str]:
  words = {
    "shift": "shifts of up to {:g} px",
    "rotation": "turns of up to {:g}°",
    "elastic": "bends of {:g} px",
    "stroke": "strokes changed by up to {:g} px",
  }
  return [text.format(config[name]) for name, text in words.items() if config[name]]


def _cells(part: dict[str, Any]) -> list[str]:
  """Accuracies of single networks and of their average."""
  networks = np.array(part["networks"])
  low, high = (percent(share, 0) for share in part["interval"])
  span = f"{percent(networks.min(), 0)} to {percent(networks.max(), 0)}"
  return [
    f"{percent(float(networks.mean()), 1)} ({span})",
    *(_spread(networks.mean(axis=axis)) for axis in (0, 1)),
    percent(part["accuracy"], 1),
    f"{low} to {high}",
  ]


def _spread(values: np.ndarray) -> str:
  return "–" if len(values) == 1 else f"{100 * np.std(values, ddof=1):.1f}"


def _zeros(final: dict[str, Any]) -> str:
  shares = np.array(final["zeros"])
  return f"Exact zeros in the dense layer of u: {percent(float(shares.mean()))}."
