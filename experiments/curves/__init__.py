"""Xue & Xin (2019): curves drawn by a steady or a shaky hand, and a sparse CNN."""

import dataclasses
import pathlib
from typing import Annotated, cast

import tyro

from experiments.core import backend, cli, results
from experiments.core.run import Run
from experiments.curves import predict, report, small, small_report, tables, train

_QUICK_IMAGES = 2000


def main(
  config: Annotated[small.Config, tyro.conf.OmitArgPrefixes], places: cli.Common
) -> None:
  """Trains the CNN of Xue & Xin (2019) with a sparse dense layer.

  Run again after a kill, the same command goes on and ends with the same numbers.
  Before the options, `predict` applies what was trained to pictures, `draw` makes
  pictures to try it on, and `tables` trains all rows of the paper's tables.

  Args:
    config: what to train.
    places: where it reads and writes.
  """
  backend.reuse_freed_memory()
  if places.quick:
    config = dataclasses.replace(config, train_size=_QUICK_IMAGES)
  config = cast(small.Config, train.identified(config))
  if config.digest:
    # Before there is a run directory: it would refuse the files once they are mended.
    train.load_data(config, places.data_dir)
  directory = places.run("curves", config.name)
  own = config.validation_size or config.images or config.several
  folder = directory
  if places.results is not None or not own:
    folder = places.report("curves", directory)
  if config.several:
    _train_several(config, directory, folder, places)
    return
  with Run(directory, config.single) as run:
    result = train.train(config.single, run, places.data_dir, places.checkpoint_seconds)
  other = config.images or config.shaky_font
  images = train.load_data(config, places.data_dir).test if other else None
  results.show(report.write(result, folder, images))


def _train_several(
  config: small.Config,
  directory: pathlib.Path,
  folder: pathlib.Path,
  places: cli.Places,
) -> None:
  with Run(directory, config) as run:
    result = small.train_all(config, run, places.data_dir)
  samples = directory / f"{config.source}-samples.png"
  data = train.load_data(config, places.data_dir)
  report.draw_samples(data.train, samples, config.class_names)
  results.show([*small_report.write(result, folder), samples])


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes all tables and figures of the results in a folder again."""
  return [
    *report.rebuild(folder),
    *tables.write(folder),
    *small_report.rebuild(folder / "small"),
  ]


COMMANDS: dict[str, cli.Command] = {
  "": main,
  "draw": small.draw,
  "predict": predict.main,
  "tables": tables.main,
}
