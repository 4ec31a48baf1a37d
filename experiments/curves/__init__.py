"""Xue & Xin (2019): curves drawn by a steady or a shaky hand, and a sparse CNN."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from experiments.core import backend, cli, results
from experiments.core.run import Run
from experiments.curves import predict, report, tables, train
from experiments.curves.config import Config

_QUICK_IMAGES = 2000


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes], places: cli.Common
) -> None:
  """Trains the CNN of Xue & Xin (2019) with a sparse dense layer.

  Run again after a kill, the same command goes on and ends with the same numbers.
  Before the options, `predict` applies what was trained to pictures, and `tables`
  trains all rows of the paper's tables.

  Args:
    config: what to train.
    places: where it reads and writes.
  """
  backend.reuse_freed_memory()
  if places.quick:
    config = dataclasses.replace(config, train_size=_QUICK_IMAGES)
  config = train.identified(config)
  if config.digest:
    # Before there is a run directory: it would refuse the files once they are mended.
    train.load_data(config, places.data_dir)
  directory = places.run("curves", config.name)
  with Run(directory, config) as run:
    result = train.train(config, run, places.data_dir, places.checkpoint_seconds)
  folder = places.report("curves", directory)
  if config.validation_size or config.images:
    folder = directory
  other = config.images or config.shaky_font
  images = train.load_data(config, places.data_dir).test if other else None
  results.show(report.write(result, folder, images))


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes all tables and figures of the results in a folder again."""
  return [*report.rebuild(folder), *tables.write(folder)]


COMMANDS = {"": main, "predict": predict.main, "tables": tables.main}
