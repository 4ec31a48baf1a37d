"""Accuracy against the share of zeros: the methods of this library and pruning."""

import dataclasses

from experiments.core import backend, cli, results
from experiments.core import tasks as tasks_
from experiments.core.run import Run
from experiments.frontier import config as configs
from experiments.frontier import train
from experiments.frontier.report import rebuild


def main(
  places: cli.Common,
  tasks: tuple[str, ...] = tuple(configs.TASKS),
  methods: tuple[str, ...] = (),
) -> None:
  """Trains every method at every share of zeros on every task.

  What is finished is kept: run again after a kill, the same command goes on.

  Args:
    places: where it reads and writes.
    tasks: digits, pendigits, fashion_mnist, planar_shapes, text.
    methods: their names; by default all, or those that matter on a large task.

  Raises:
    ValueError: for an unknown task or method.
  """
  backend.reuse_freed_memory()
  for names, known in ((tasks, configs.TASKS), (methods, configs.METHODS)):
    for name in names:
      if name not in known:
        raise ValueError(f"There is no {name!r}, only {', '.join(known)}.")
  if places.quick:
    tasks = tasks[:1]
  runs = places.run("frontier")
  folder = places.report("frontier", runs)
  for task in (configs.TASKS[name] for name in tasks):
    if places.quick:
      task = dataclasses.replace(task, epochs=5)
    data = tasks_.load(task, places.data_dir, places.source)
    for name in methods or configs.methods_of(task):
      config = configs.config_of(task, name)
      if places.quick:
        config = dataclasses.replace(config, shares=(0.9,), seeds=2)
      results.console.rule(f"{task.title}: {configs.METHODS[name].title}")
      with Run(runs / task.name / name, config) as run:
        result = train.train(config, data, run)
      results.write_json(folder / task.name / f"{name}.json", result)
  results.show(rebuild(folder))
