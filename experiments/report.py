"""Rebuilds every table and figure from the committed results, without training.

`python -m experiments.report`: after it, `git status` shows what no longer follows
from its JSON files.
"""

from collections.abc import Iterator
import json
import pathlib
import sys
from typing import Any

import tyro

from experiments import _compaction, _run, export, survival
from experiments.benchmark import report as benchmark
from experiments.cifar import report as cifar
from experiments.convergence import report as convergence
from experiments.curves import report as curves
from experiments.curves import tables, train
from experiments.curves.config import Config
from experiments.integrated import report as integrated
from experiments.paths import report as paths

_RESULTS = pathlib.Path(__file__).parent / "results"

# Folders and names of results, and what writes their tables.
MEASURED = {
  "benchmark": benchmark,
  "compaction": _compaction,
  "export": export,
  "paths": paths,
  "survival": survival,
}


def main(
  results: pathlib.Path = _RESULTS, data_dir: pathlib.Path | None = None
) -> None:
  """Writes the tables and figures of all experiments again, the papers' beside ours.

  Args:
    results: a folder for each experiment.
    data_dir: where prepared data sets are kept; curves shows samples of its images.
  """
  _run.announce(_rebuilt(results, data_dir))


def _rebuilt(
  results: pathlib.Path, data_dir: pathlib.Path | None
) -> Iterator[pathlib.Path]:
  for file in sorted((results / "curves").glob("*.json")):
    result = _read(file)
    data = train.load_data(Config(data=result["config"]["data"]), data_dir)
    yield from curves.write(result, data, file.parent)
  if (results / "curves" / "printed").exists():
    yield from tables.write(results / "curves", data_dir)
  for file in (results / "convergence").glob("convergence.json"):
    _run.write_atomically(file.with_suffix(".md"), convergence.markdown(_read(file)))
    yield file.with_suffix(".md")
  for folder in sorted((results / "cifar").glob("*/")):
    yield from cifar.write(folder)
  if any((results / "integrated").glob("*.json")):
    yield from integrated.write(results / "integrated")
  for name, module in MEASURED.items():
    for file in sorted((results / name).rglob(f"{name}.json")):
      yield from module.write(file.parent)


def _read(file: pathlib.Path) -> dict[str, Any]:
  return json.loads(file.read_text(encoding="utf-8"))


if __name__ == "__main__":
  try:
    tyro.cli(main, prog="python -m experiments.report")
  except ValueError as error:
    sys.exit(str(error))
