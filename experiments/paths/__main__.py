"""The command line: `python -m experiments.paths --help`."""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from experiments import _run
from experiments.paths import report, train

_RESULTS = pathlib.Path(__file__).parents[1] / "results" / "paths"


def main(
  config: Annotated[train.Config, tyro.conf.OmitArgPrefixes],
  vmap: bool | None = None,
  results: pathlib.Path = _RESULTS,
  data_dir: pathlib.Path | None = None,
  quick: bool = False,
) -> None:
  """Trains paths of lam on DIGITS by one compiled program, and measures what it saves.

  Args:
    config: what is trained and measured.
    vmap: whether the paths of the figure are trained all points together; by default
      not on CPU.
    results: where the result, the table and the figure go.
    data_dir: where prepared data sets are kept.
    quick: 4 points, one seed and one round; the report goes to runs/paths-quick.
  """
  if quick:
    config = dataclasses.replace(config, points=4, seeds=1, rounds=1)
    results = pathlib.Path("runs", "paths-quick")
  data = train.load_data(data_dir)
  result = {
    "config": dataclasses.asdict(config),
    "times": [
      {"epochs": epochs, "rounds": train.timed(config, epochs, data)}
      for epochs in (config.epochs, config.long_epochs)
    ],
    "vmap": train.uses_vmap(vmap),
    "paths": train.accuracies(config, data, vmap),
    **_run.environment(),
  }
  _run.write_json(results / "paths.json", result)
  files = report.write(results)
  _run.console.print(files[0].read_text(), markup=False)
  _run.announce([results / "paths.json", *files])


if __name__ == "__main__":
  tyro.cli(main, prog="python -m experiments.paths")
