"""Rebuilds every table and figure from the committed results, without training.

`python -m experiments report`: after it, `git status` shows what no longer follows
from its JSON files.
"""

from collections.abc import Iterator
import importlib
import pathlib

from experiments import summary
from experiments.core import cli, results


def rebuilt(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """Writes the reports of all experiments that have results in a folder again."""
  for one in sorted(folder.glob("*/")):
    if any(one.rglob("*.json")):
      yield from importlib.import_module(f"experiments.{one.name}").rebuild(one)


def main(results_folder: pathlib.Path = results.DIRECTORY) -> None:
  """Writes the tables and figures of all experiments again, the papers' beside ours."""
  results.announce([*rebuilt(results_folder), *summary.write(results_folder)])


if __name__ == "__main__":
  cli.run("report", main)
