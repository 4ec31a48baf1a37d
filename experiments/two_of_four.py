"""Two of four weights: what the pattern costs against any half of the weights.

`python -m experiments two_of_four` trains a CNN on a part of Fashion-MNIST and the
character transformer, dense and with half of the weights zero: anywhere in a layer, or
two of any four consecutive ones along the axis that a product sums over.
"""

from collections.abc import Mapping
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import datasets
from experiments.core import backend, cli, measure, results, tables, tasks
from experiments.core.run import Run
from experiments.core.tasks import TASKS, Task
from experiments.core.training import Data
import rvsm_jax


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained.

  Attributes:
    task: its name.
    seeds: trainings of each kind.
    epochs: of each.
  """

  task: str
  seeds: int
  epochs: int


_SEEDS = {"fashion_mnist": 3, "text": 1}


def axis(kernel: jax.Array) -> int:
  """The one along which four weights go into one sum.

  Of Flax kernels it is the one before the last; of queries, keys and values, (width,
  heads, size), the first.
  """
  return 0 if kernel.ndim == 3 and kernel.shape[0] == max(kernel.shape) else -2


def chosen(params: Any) -> Any:
  """The mask of the kernels with a multiple of four along that axis."""
  return jax.tree.map(
    lambda picked, w: picked and w.shape[axis(w)] % 4 == 0,
    rvsm_jax.kernels(params),
    params,
  )


def _two_of_four() -> rvsm_jax.Penalty:
  def of(x: jax.Array) -> rvsm_jax.Penalty:
    return rvsm_jax.nm_sparsity(2, 4, axis=axis(x))

  return rvsm_jax.Penalty(lambda x: of(x).value(x), lambda x, step: of(x).prox(x, step))


PATTERNS = {"any half": rvsm_jax.cardinality(0.5), "two of four": _two_of_four()}


def projected(penalty: rvsm_jax.Penalty, params: Any) -> Any:
  """The params with the chosen leaves projected."""
  return jax.tree.map(
    lambda picked, w: penalty.prox(w, 1.0) if picked else w, chosen(params), params
  )


def cut_at(penalty: rvsm_jax.Penalty, when: int) -> optax.GradientTransformation:
  """Last in a chain: projects after so many updates; then what is zero stays."""

  def update(updates: Any, count: jax.Array, params: Any = None) -> Any:
    after = optax.apply_updates(params, updates)
    cut = projected(penalty, after)
    target = jax.tree.map(
      lambda picked, w, new, to: (
        jnp.where(count == when, to, jnp.where((count > when) & (w == 0), 0, new))
        if picked
        else new
      ),
      *(chosen(params), params, after, cut),
    )
    return jax.tree.map(jnp.subtract, target, params), count + 1

  return optax.GradientTransformation(lambda _: jnp.zeros([], jnp.int32), update)


def optimizers(task: Task, steps: int) -> dict[str, optax.GradientTransformation]:
  """What is trained with, by the name of the method and the pattern."""
  optimizer = functools.partial(task.optimizer, steps)
  made = {"dense": optimizer()}
  for pattern, penalty in PATTERNS.items():
    made[f"cut and tuned, {pattern}"] = optax.chain(
      optimizer(), cut_at(penalty, steps // 2)
    )
    made[f"straight-through, {pattern}"] = rvsm_jax.straight_through(
      optimizer(), penalty, step=1.0, mask=chosen
    )
  return made


def train(task: Task, data: Data, method: str, seed: int, epochs: int) -> dict:
  """Trains once; returns what is measured on the test examples.

  Of the dense network also what it is worth when it is cut at the end.
  """
  tx = optimizers(task, task.steps(data, epochs))[method]
  state, graph = tasks.fit(task, data, tx, seed, epochs)
  evaluate = tasks.evaluator(task, data.test)
  networks = {method: state.sparse}
  if method == "dense":
    for pattern, penalty in PATTERNS.items():
      networks[f"cut once, {pattern}"] = projected(penalty, state.params)
  found = {}
  for name, network in networks.items():
    loss, accuracy = evaluate(graph, network)
    zeros = float(measure.zeros(network, chosen))
    found[name] = {"loss": loss, "accuracy": accuracy, "zeros": zeros}
  return found


def main(
  places: cli.Common,
  names: tuple[str, ...] = tuple(_SEEDS),
  methods: tuple[str, ...] = (),
) -> None:
  """Trains all of it; what is finished is kept.

  Args:
    places: where it reads and writes.
    names: of the tasks: fashion_mnist, text.
    methods: only these; by default all.
  """
  backend.reuse_freed_memory()
  runs = places.run("two_of_four")
  folder = places.report("two_of_four", runs)
  for name in names[:1] if places.quick else names:
    task = TASKS[name]
    config = Config(name, _SEEDS[name], task.epochs)
    if places.quick:
      config = Config(name, 1, 1)
    data = tasks.load(task, places.data_dir, places.source)
    with Run(runs / name, config) as run:
      networks = _trained(task, data, config, methods, run)
    result = results.result(
      *("two_of_four", config, None),
      note=datasets.note(name, *data.test),
      examples=len(data.train.y),
      networks=networks,
    )
    results.write_json(folder / f"{name}.json", result)
  results.show(rebuild(folder))


def _trained(
  task: Task, data: Data, config: Config, methods: tuple[str, ...], run: Run
) -> dict[str, list[Any]]:
  networks: dict[str, list[Any]] = {}
  for method in methods or optimizers(task, 1):
    for seed in range(config.seeds):
      results.console.print(f"{task.title}: {method}, seed {seed}")
      one = run.once(
        f"{method.replace(' ', '-').replace(',', '')}-{seed}",
        functools.partial(train, task, data, method, seed, config.epochs),
      )
      for network, measured in one.items():
        networks.setdefault(network, []).append(measured)
  return networks


def page(found: Mapping[str, dict[str, Any]]) -> str:
  """The report of the results of all tasks as Markdown."""
  parts = [
    "# Two of four weights",
    "Half of the weights are zero, in every kernel that has a multiple of four inputs:"
    " *any half* of a kernel, or *two of four* consecutive ones along the axis that is"
    " summed over (`nm_sparsity(2, 4)`). *Cut once* is the trained dense network, cut;"
    " *cut and tuned* is cut in mid-training, after which its zeros stay;"
    " *straight-through* projects at every update. All have the same optimizer,"
    " schedule and number of updates.",
  ]
  for name, result in found.items():
    task, networks = TASKS[name], result["networks"]
    rows = [["dense", _cell(task, networks, "dense"), ""]] + [
      [method, *(_cell(task, networks, f"{method}, {p}") for p in PATTERNS)]
      for method in ("cut once", "cut and tuned", "straight-through")
    ]
    accuracy = not task.in_nats
    seeds, epochs = result["config"]["seeds"], result["config"]["epochs"]
    parts += [
      f"## {task.title}",
      tables.table(["network", *PATTERNS], rows),
      ("Test accuracy in per cent" if accuracy else "Test loss in nats per character")
      + (", mean and standard error" if seeds > 1 else "")
      + f"; {seeds} seed{'s' if seeds > 1 else ''},"
      f" {epochs} epoch{'s' if epochs > 1 else ''} of {result['examples']:,} examples."
      f" Data: {result['note']}.",
    ]
  parts.append(
    f"{results.footer(list(found.values()))}\n"
    "Written by `python -m experiments two_of_four`."
  )
  return "\n\n".join(parts) + "\n"


def _cell(task: Task, networks: Mapping[str, list[Any]], network: str) -> str:
  if network not in networks:
    return "–"
  accuracy = not task.in_nats
  key, factor, digits = ("accuracy", 100.0, 2) if accuracy else ("loss", 1.0, 3)
  values = factor * np.array([one[key] for one in networks[network]])
  return tables.with_error(values, digits)


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the table of the results in a folder, and returns its path."""
  text = page(results.read_all(folder, TASKS))
  return [results.write_atomically(folder / "two_of_four.md", text)]


if __name__ == "__main__":
  cli.run("two_of_four", main)
