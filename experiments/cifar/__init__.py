"""Dinh & Xin (2020), section 6: VGG-16 and ResNet-18 on CIFAR-10."""

from collections.abc import Iterable
import functools
import os
import pathlib
from typing import Annotated, Any

import tyro

from experiments.cifar import config as configs
from experiments.cifar import report, train
from experiments.core import backend, cli, results
from experiments.core import jobs as jobs_
from experiments.core.run import Run

_QUICK = configs.Settings(
  epochs=3, width=1 / 16, batch_size=20, train_size=500, test_size=500
)


def main(
  settings: Annotated[configs.Settings, tyro.conf.OmitArgPrefixes],
  places: cli.Common,
  rows: tuple[str, ...] = (),
  jobs: int = 1,
) -> None:
  """Trains VGG-16 and ResNet-18 on CIFAR-10 to exact zeros: Dinh & Xin (2020).

  Rows are trained by their worth. Run again after a kill, the same command goes on and
  ends with the same numbers. A run differs from the paper's by its flags alone:
  `--recipe fast --width 0.25 --epochs 15` for CPU; for a GPU
  `--recipe fast --epochs 30 --batch-size 512 --precision bfloat16`.

  Args:
    settings: the size of a training, and what all rows have in common.
    places: where it reads and writes; reports go to a folder named after the settings.
    rows: only these, or those of the tables 1, 2, beyond, units.
    jobs: how many rows at the same time, each in a process of its own, on CPU with one
      thread. Several on one GPU mostly wait for each other.

  Raises:
    ValueError: for an unknown row.
  """
  backend.reuse_freed_memory()
  names = _chosen(rows)
  if places.quick:
    settings, names = _QUICK, ["vgg16-sparsify95", "resnet18-l0"]
  runs = places.run("cifar", "cifar" if places.quick else settings.name)
  folder = places.report("cifar", runs)
  if not places.quick:
    folder /= settings.name
  train_row = functools.partial(_train, settings, places, runs)
  if jobs == 1:
    _report(map(train_row, names), names, folder)
    return
  # So that processes share the memory of a GPU.
  os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
  with jobs_.pool(jobs) as pool:
    _report(pool.map(train_row, names), names, folder)


def _chosen(rows: tuple[str, ...]) -> list[str]:
  known = {*configs.ROWS, *configs.TABLES}
  if unknown := [name for name in rows if name not in known]:
    raise ValueError(f"There is no row {unknown[0]!r}, only {', '.join(configs.ROWS)}.")
  wanted = set(rows or configs.TABLES)
  for table in wanted & configs.TABLES.keys():
    wanted |= {row.name for row in configs.TABLES[table]}
  return [name for name in configs.ORDER if name in wanted]


def _train(
  settings: configs.Settings, places: cli.Places, runs: pathlib.Path, name: str
) -> dict[str, Any]:
  results.console.rule(name)
  config = configs.Config(configs.ROWS[name], settings)
  with Run(runs / name, config) as run:
    return train.train(
      *(config, run, places.data_dir, places.source),
      checkpoint_seconds=places.checkpoint_seconds,
    )


def _report(
  found: Iterable[dict[str, Any]], names: list[str], folder: pathlib.Path
) -> None:
  files: list[pathlib.Path] = []
  for name, result in zip(names, found, strict=True):
    results.write_json(folder / f"{name}.json", result)
    # After every row, so that a kill leaves the tables of those that are finished.
    files = report.write(folder)
  results.show(files)


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes all tables and figures of the results in a folder again."""
  return [file for size in sorted(folder.glob("*/")) for file in report.write(size)]
