"""The command line: `python -m experiments.integrated --help`."""

import dataclasses
import pathlib
import sys

import tyro

from experiments import _run
from experiments.integrated import config as configs
from experiments.integrated import report, train

_RESULTS = pathlib.Path(__file__).parents[1] / "results" / "integrated"


def run(
  data: tuple[str, ...] = ("digits", "pendigits"),
  methods: tuple[str, ...] = (),
  seeds: tuple[int, ...] = (0, 1, 2),
  source: pathlib.Path | None = None,
  data_dir: pathlib.Path | None = None,
  output: pathlib.Path | None = None,
  results: pathlib.Path = _RESULTS,
  epochs: int = 0,
  search_epochs: int = 0,
  quick: bool = False,
  checkpoint_seconds: float = 20.0,
) -> None:
  """Searches the grid, trains and tests each method on each data set.

  What is finished is kept: run again after a kill, the same command goes on and ends
  with the same numbers.

  Args:
    data: which data sets: digits, pendigits, sdd, sdd_subset, mnist, fashion_mnist,
      cifar10.
    methods: which methods; by default all that the paper has for a data set, l2,
      and for those that are trained with Adam the proximal step in its own metric.
    seeds: of the final trainings.
    source: a directory with the original files, or with a folder of them for each
      data set.
    data_dir: where prepared data sets are kept.
    output: where each training keeps its results and checkpoints; by default in
      runs/. A directory with results of another configuration is refused.
    results: where tables and figures go; those of a quick run stay in the output
      directory.
    epochs: passes over the training examples; by default those of the data set.
    search_epochs: the same of the grid search.
    quick: two minutes on two cores: PENDIGITS, small, or DIGITS without a source.
    checkpoint_seconds: at most about so much work of a long training is lost to a
      kill.

  Raises:
    ValueError: for an unknown data set or method.
  """
  if quick:
    data = data if len(data) == 1 else ("pendigits" if source else "digits",)
    seeds = (0,)
  for kind, names, known in (
    ("data set", data, tuple(configs.PROBLEMS)),
    ("method", methods, tuple(configs.METHODS)),
  ):
    for name in names:
      if name not in known:
        raise ValueError(f"There is no {kind} {name!r}, only {', '.join(known)}.")
  runs = output or pathlib.Path("runs", "integrated-quick" if quick else "integrated")
  results = runs if quick else results
  for name in data:
    problem = configs.PROBLEMS[name]
    problem = problem.quick if quick else problem
    problem = dataclasses.replace(
      problem,
      epochs=epochs or problem.epochs,
      search_epochs=search_epochs or problem.search_epochs,
    )
    result = train.train(
      problem,
      methods or tuple(method.name for method in configs.methods_of(problem)),
      seeds,
      train.load_data(problem, data_dir, source),
      runs,
      checkpoint_seconds,
    )
    _run.write_json(results / f"{name}.json", result)
  tables(results)


def tables(results: pathlib.Path = _RESULTS) -> None:
  """Writes the tables and figures of all data sets whose results are there.

  Args:
    results: the directory with the results.
  """
  files = report.write(results)
  _run.console.print(files[0].read_text(), markup=False)
  _run.announce(files)


if __name__ == "__main__":
  _run.reuse_freed_memory()
  try:
    tyro.extras.subcommand_cli_from_dict(
      {"run": run, "tables": tables}, prog="python -m experiments.integrated"
    )
  except (ValueError, FileNotFoundError) as error:
    sys.exit(str(error))
