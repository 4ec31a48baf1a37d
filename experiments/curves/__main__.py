"""The command line: `python -m experiments.curves --help`."""

import dataclasses
import pathlib
import sys
from typing import Annotated

import tyro

from experiments import _run
from experiments.curves import report, train
from experiments.curves.config import Config

_RESULTS = pathlib.Path(__file__).parents[1] / "results" / "curves"
_QUICK_IMAGES = 2000


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes],
  output: pathlib.Path | None = None,
  results: pathlib.Path = _RESULTS,
  data_dir: pathlib.Path | None = None,
  quick: bool = False,
  checkpoint_seconds: float = 20.0,
) -> None:
  """Trains the CNN of Xue & Xin (2019) with a sparse dense layer.

  Run again after a kill, the same command goes on and ends with the same numbers.

  Args:
    config: what to train.
    output: run directory, for checkpoints and result; by default one under runs/
      that is named after the configuration. A directory with a run of another
      configuration is refused.
    results: where the table and the figures go; those of a quick run or of one on
      validation images stay in the run directory.
    data_dir: where prepared data sets are kept.
    quick: two minutes on two cores: train on 2,000 images.
    checkpoint_seconds: at most about so much work is lost to a kill.
  """
  if quick:
    config = dataclasses.replace(config, train_size=_QUICK_IMAGES)
  name = f"{config.name}-quick" if quick else config.name
  directory = output or pathlib.Path("runs", "curves", name)
  with _run.Run(directory, config) as run:
    result = train.train(config, run, data_dir, checkpoint_seconds)
  if quick or config.validation_size:
    results = directory
  files = report.write(result, train.load_data(config, data_dir), results)
  _run.console.print(report.markdown(result), markup=False)
  for file in files:
    _run.console.print(f"Wrote {file}", markup=False)


if __name__ == "__main__":
  _run.reuse_freed_memory()
  try:
    tyro.cli(main, prog="python -m experiments.curves")
  except ValueError as error:
    sys.exit(str(error))
