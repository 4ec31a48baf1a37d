"""Dinh & Xin (2020), section 6: VGG-16 and ResNet-18 on CIFAR-10."""

import pathlib
from typing import Annotated, Literal

import tyro

from experiments.cifar import config as configs
from experiments.cifar import report, train
from experiments.core import backend, cli, results
from experiments.core.run import Run

_QUICK = configs.Settings(
  epochs=3, width=1 / 16, batch_size=20, train_size=500, test_size=500
)


def main(
  settings: Annotated[configs.Settings, tyro.conf.OmitArgPrefixes],
  places: cli.Common,
  table: Literal["1", "2", "beyond", "all"] = "all",
  row: str | None = None,
) -> None:
  """Trains VGG-16 and ResNet-18 on CIFAR-10 to exact zeros: Dinh & Xin (2020).

  Rows are trained one after another. Run again after a kill, the same command goes
  on and ends with the same numbers. A run differs from the full one by the flags of
  its size alone, such as `--width 0.125 --epochs 10 --train-size 2000`.

  Args:
    settings: the size of a training, and what all rows have in common.
    places: where it reads and writes; reports go to a folder named after the settings.
    table: which rows.
    row: only this one.

  Raises:
    ValueError: for an unknown row.
  """
  backend.reuse_freed_memory()
  if row is not None and row not in configs.ROWS:
    raise ValueError(f"There is no row {row!r}, only {', '.join(configs.ROWS)}.")
  if places.quick:
    settings, names = _QUICK, ["vgg16-l0", "resnet18-l0"]
  elif row is not None:
    names = [row]
  elif table == "all":
    names = list(configs.ROWS)
  else:
    names = [one.name for one in configs.TABLES[table]]
  runs = places.run("cifar", "cifar" if places.quick else settings.name)
  folder = places.report("cifar", runs)
  if not places.quick:
    folder /= settings.name
  for name in names:
    results.console.rule(name)
    config = configs.Config(configs.ROWS[name], settings)
    with Run(runs / name, config) as run:
      result = train.train(config, run, places.data_dir, places.checkpoint_seconds)
    results.write_json(folder / f"{name}.json", result)
    # After every row, so that a kill leaves the tables of those that are finished.
    files = report.write(folder)
  results.show(files)


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes all tables and figures of the results in a folder again."""
  return [file for size in sorted(folder.glob("*/")) for file in report.write(size)]


COMMANDS = main
