"""The command line: `python -m experiments.cifar --help`."""

import pathlib
import sys
from typing import Annotated, Literal

import tyro

from experiments import _run
from experiments.cifar import config as configs
from experiments.cifar import cost as costs
from experiments.cifar import report, train

_RESULTS = pathlib.Path(__file__).parents[1] / "results" / "cifar"
_QUICK = configs.Settings(
  epochs=3, width=1 / 16, batch_size=20, train_size=500, test_size=500
)


def main(
  settings: Annotated[configs.Settings, tyro.conf.OmitArgPrefixes],
  table: Literal["1", "2", "beyond", "all"] = "all",
  row: str | None = None,
  output: pathlib.Path | None = None,
  results: pathlib.Path = _RESULTS,
  data_dir: pathlib.Path | None = None,
  quick: bool = False,
  cost: bool = False,
  checkpoint_seconds: float = 20.0,
) -> None:
  """Trains VGG-16 and ResNet-18 on CIFAR-10 to exact zeros: Dinh & Xin (2020).

  Rows are trained one after another. Run again after a kill, the same command goes
  on and ends with the same numbers. A run differs from the full one by the flags of
  its size alone, such as `--width 0.125 --epochs 10 --train-size 2000`.

  Args:
    settings: the size of a training, and what all rows have in common.
    table: which rows.
    row: only this one.
    output: where the run directories are, each with checkpoints and a result; by
      default in runs/, named after the settings. A directory with a run of other
      settings is refused.
    results: where tables and figures go, in a directory named after the settings;
      those of a quick run stay in the output directory.
    data_dir: where CIFAR-10 is: cached arrays, the files of its binary version, or
      what TFDS prepares.
    quick: two minutes on two cores: row vgg16-l0 and resnet18-l0, very small.
    cost: train nothing, but write what one full-size step needs on this machine.
    checkpoint_seconds: at most about so much work is lost to a kill.

  Raises:
    ValueError: for an unknown row.
  """
  if cost:
    file = results / "cost.json"
    _run.write_json(file, costs.full_size(settings))
    _run.announce([file])
    return
  if row is not None and row not in configs.ROWS:
    raise ValueError(f"There is no row {row!r}, only {', '.join(configs.ROWS)}.")
  if quick:
    settings, names = _QUICK, ["vgg16-l0", "resnet18-l0"]
  elif row is not None:
    names = [row]
  elif table == "all":
    names = list(configs.ROWS)
  else:
    names = [one.name for one in configs.TABLES[table]]
  runs = output or pathlib.Path("runs", "cifar", "quick" if quick else settings.name)
  results = runs if quick else results / settings.name
  for name in names:
    _run.console.rule(name)
    config = configs.Config(configs.ROWS[name], settings)
    with _run.Run(runs / name, config) as run:
      result = train.train(config, run, data_dir, checkpoint_seconds)
    _run.write_json(results / f"{name}.json", result)
    # After every row, so that a kill leaves the tables of those that are finished.
    files = report.write(results)
  _run.console.print(files[0].read_text(), markup=False)
  _run.announce(files)


if __name__ == "__main__":
  _run.reuse_freed_memory()
  try:
    tyro.cli(main, prog="python -m experiments.cifar")
  except (ValueError, FileNotFoundError) as error:
    sys.exit(str(error))
