"""Whole regularisation paths by one compiled program; see docs/paths.md."""

import dataclasses
import functools
from typing import Annotated, Any

import tyro

from experiments.core import cli, results
from experiments.core.run import Run
from experiments.paths import report, train


def main(
  config: Annotated[train.Config, tyro.conf.OmitArgPrefixes],
  places: cli.Common,
  vmap: bool | None = None,
) -> None:
  """Trains paths of lam on DIGITS by one compiled program, and measures what it saves.

  Args:
    config: what is trained and measured.
    places: where it reads and writes.
    vmap: whether the paths of the figure are trained all points together; by default
      not on CPU.
  """
  if places.quick:
    config = dataclasses.replace(config, points=4, seeds=1, rounds=1)
  directory = places.run("paths")
  folder = places.report("paths", directory)
  data = train.load_data(places.data_dir)

  def timed(epochs: int) -> dict[str, Any]:
    return {"epochs": epochs, "rounds": train.timed(config, epochs, data)}

  with Run(directory, config) as run:
    result = results.result(
      "paths",
      config,
      None,
      times=[
        run.once(f"times-{epochs}", functools.partial(timed, epochs))
        for epochs in (config.epochs, config.long_epochs)
      ],
      vmap=train.uses_vmap(vmap),
      paths=run.once("paths", lambda: train.accuracies(config, data, vmap)),
    )
  results.write_json(folder / "paths.json", result)
  results.show(report.write(folder))


rebuild = report.write

COMMANDS = main
