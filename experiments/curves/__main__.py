"""The command line: `python -m experiments.curves --help`."""

from collections.abc import Callable
import dataclasses
import pathlib
import sys
from typing import Annotated

import tyro

from experiments import _run
from experiments.curves import predict, report, tables, train
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
  `predict --help` tells of the command that applies what was trained to pictures,
  `tables --help` of that which trains all rows of the paper's tables.

  Args:
    config: what to train.
    output: run directory, for checkpoints and result; by default one under runs/
      that is named after the configuration. A directory with a run of another
      configuration is refused.
    results: where the table and the figures go; those of a quick run, or of one on
      validation images or your own, stay in the run directory.
    data_dir: where prepared data sets are kept.
    quick: two minutes on two cores: train on 2,000 images.
    checkpoint_seconds: at most about so much work is lost to a kill.
  """
  if quick:
    config = dataclasses.replace(config, train_size=_QUICK_IMAGES)
  config = train.identified(config)
  if config.digest:
    # Before there is a run directory: it would refuse the files once they are mended.
    train.load_data(config, data_dir)
  name = f"{config.name}-quick" if quick else config.name
  directory = output or pathlib.Path("runs", "curves", name)
  with _run.Run(directory, config) as run:
    result = train.train(config, run, data_dir, checkpoint_seconds)
  if quick or config.validation_size or config.images:
    results = directory
  files = report.write(result, train.load_data(config, data_dir), results)
  _run.console.print(report.markdown(result), markup=False)
  _run.announce(files)


_COMMANDS: dict[str, Callable[..., None]] = {
  "predict": predict.main,
  "tables": tables.main,
}


def run(arguments: list[str]) -> None:
  """Runs the command that the first argument names; without one, trains."""
  prog = "python -m experiments.curves"
  command: Callable[..., None] = main
  if arguments and arguments[0] in _COMMANDS:
    name, *arguments = arguments
    prog, command = f"{prog} {name}", _COMMANDS[name]
  try:
    tyro.cli(command, prog=prog, args=arguments)
  except ValueError as error:
    sys.exit(str(error))


if __name__ == "__main__":
  _run.reuse_freed_memory()
  run(sys.argv[1:])
