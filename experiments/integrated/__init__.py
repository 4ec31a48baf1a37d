"""Ma et al. (2019): integrated transformed l1 and its rivals on six data sets."""

import dataclasses

from experiments.core import backend, cli, results
from experiments.integrated import config as configs
from experiments.integrated import train
from experiments.integrated.report import rebuild


def main(
  places: cli.Common,
  data: tuple[str, ...] = ("digits", "pendigits"),
  methods: tuple[str, ...] = (),
  seeds: tuple[int, ...] = (0, 1, 2),
  epochs: int = 0,
  search_epochs: int = 0,
) -> None:
  """Searches the grid, trains and tests each method on each data set.

  What is finished is kept: run again after a kill, the same command goes on and ends
  with the same numbers.

  Args:
    places: where it reads and writes.
    data: digits, pendigits, sdd, sdd_subset, mnist, fashion_mnist, cifar10.
    methods: by default those that the paper has for a data set, l2, and with Adam the
      proximal step in its own metric.
    seeds: of the final trainings.
    epochs: passes over the training examples; by default those of the data set.
    search_epochs: the same of the grid search.

  Raises:
    ValueError: for an unknown data set or method.
  """
  backend.reuse_freed_memory()
  if places.quick:
    data = data if len(data) == 1 else ("pendigits" if places.source else "digits",)
    seeds = (0,)
  for kind, names, known in (
    ("data set", data, tuple(configs.PROBLEMS)),
    ("method", methods, tuple(configs.METHODS)),
  ):
    for name in names:
      if name not in known:
        raise ValueError(f"There is no {kind} {name!r}, only {', '.join(known)}.")
  runs = places.run("integrated")
  folder = places.report("integrated", runs)
  for name in data:
    problem = configs.PROBLEMS[name]
    problem = problem.quick if places.quick else problem
    problem = dataclasses.replace(
      problem,
      epochs=epochs or problem.epochs,
      search_epochs=search_epochs or problem.search_epochs,
    )
    examples, note = train.load_data(problem, places.data_dir, places.source)
    result = train.train(
      problem,
      methods or tuple(method.name for method in configs.methods_of(problem)),
      seeds,
      examples,
      note,
      runs,
      places.checkpoint_seconds,
    )
    results.write_json(folder / f"{name}.json", result)
  results.show(rebuild(folder))
