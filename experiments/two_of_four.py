"""Two of four weights: what the pattern costs against any half of the weights.

`python -m experiments two_of_four` trains a CNN on a part of Fashion-MNIST and the
character transformer, dense and with half of the weights zero: anywhere in a layer, or
two of any four consecutive ones along the axis that a product sums over.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import sys
from typing import Annotated, Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments import datasets
from experiments.core import backend, cli, measure, results, tables, training
from experiments.core.run import Run
from experiments.core.training import Data, Examples
from experiments.datasets import text
from experiments.networks.cnn import CNN
from experiments.networks.transformer import Transformer
import rvsm_jax


@dataclasses.dataclass(frozen=True)
class Task:
  """A data set with its network, and how it is trained.

  Attributes:
    name: of the data set.
    title: what tables call it.
    unit: of the number in the table, "%" of accuracy or "nats".
    network: from the random numbers.
    optimizer: from the number of steps; AdamW or SGD, one cycle.
    epochs: passes over the training examples.
    batch_size: examples per step.
    train_size: only so many training examples, the first; None takes all.
  """

  name: str
  title: str
  unit: str
  network: Callable[[nnx.Rngs], nnx.Module]
  optimizer: Callable[[int], optax.GradientTransformation]
  epochs: int
  batch_size: int
  train_size: int | None = None


def _cnn(rngs: nnx.Rngs) -> nnx.Module:
  return CNN((28, 28, 1), (16, 32, 64), (0, 1, 2), (64, 10), fused=True, rngs=rngs)


def _sgd(steps: int) -> optax.GradientTransformation:
  rate = optax.cosine_onecycle_schedule(steps, 0.1)
  return optax.sgd(rate, 0.9, nesterov=True)


def _adamw(steps: int) -> optax.GradientTransformation:
  rate = optax.cosine_onecycle_schedule(steps, 3e-3, pct_start=0.1)
  return optax.adamw(rate, weight_decay=0.1)


def _transformer(rngs: nnx.Rngs) -> nnx.Module:
  return Transformer(len(text.ALPHABET), text.CONTEXT, rngs=rngs)


TASKS = {
  task.name: task
  for task in (
    Task(
      *("fashion_mnist", "Fashion-MNIST, CNN", "%", _cnn, _sgd, 10, 64),
      train_size=5000,
    ),
    Task("text", "text, transformer", "nats", _transformer, _adamw, 1, 8),
  )
}


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained.

  Attributes:
    tasks: by name.
    seeds: trainings of each kind on a task.
    epochs: instead of the task's, if positive.
  """

  tasks: tuple[str, ...] = tuple(TASKS)
  seeds: tuple[int, ...] = (3, 1)
  epochs: int = 0


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
  made = {"dense": task.optimizer(steps)}
  for pattern, penalty in PATTERNS.items():
    made[f"cut and tuned, {pattern}"] = optax.chain(
      task.optimizer(steps), cut_at(penalty, steps // 2)
    )
    made[f"straight-through, {pattern}"] = rvsm_jax.straight_through(
      task.optimizer(steps), penalty, step=1.0, mask=chosen
    )
  return made


def load(task: Task, places: cli.Places) -> Data:
  """The examples: images in [0, 1], or numbers of characters."""

  def part(split: str) -> Examples:
    x, y = datasets.load(task.name, split, places.data_dir, places.source)
    if split == "train":
      x, y = x[: task.train_size], y[: task.train_size]
    return Examples(x if task.name == "text" else x.astype(np.float32) / 255, y)

  return Data(part("train"), part("test"))


def train(task: Task, data: Data, method: str, seed: int, epochs: int) -> dict:
  """Trains once; returns what is measured on the test examples.

  Of the dense network also what it is worth when it is cut at the end.
  """
  graph, params = nnx.split(task.network(nnx.Rngs(params=seed)))
  steps = epochs * (len(data.train.y) // task.batch_size)
  forward = training.plain_forward(graph)
  trainer = training.Trainer(
    forward, lambda _: optimizers(task, steps)[method], seed=seed
  )
  examples = Examples(*map(jnp.asarray, data.train))
  evaluate = training.evaluator(forward, data.test, 100 if task.unit == "%" else 16)
  state, step = trainer.init(params), trainer.compiled(examples, whole_epochs=False)
  for epoch in range(epochs):
    order = training.epoch_order(seed, epoch, len(data.train.y), task.batch_size)
    for batch in order:
      state = step.call(state, batch)
  training.require_finite(state.params, f"{task.title}, {method}")
  networks = {method: state.sparse}
  if method == "dense":
    for pattern, penalty in PATTERNS.items():
      networks[f"cut once, {pattern}"] = projected(penalty, state.params)
  found = {}
  for name, network in networks.items():
    loss, accuracy = evaluate(network)
    zeros = float(measure.zeros(network, chosen))
    found[name] = {"loss": loss, "accuracy": accuracy, "zeros": zeros}
  return found


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes], places: cli.Common
) -> None:
  """Trains all of it; what is finished is kept.

  Args:
    config: what is trained.
    places: where it reads and writes.
  """
  backend.reuse_freed_memory()
  if places.quick:
    config = dataclasses.replace(config, tasks=("fashion_mnist",), seeds=(1,), epochs=1)
  runs = places.run("two_of_four")
  found: dict[str, Any] = {}
  with Run(runs, config) as run:
    for name, seeds in zip(config.tasks, config.seeds, strict=False):
      task = TASKS[name]
      data = load(task, places)
      epochs = config.epochs or task.epochs
      networks: dict[str, list[Any]] = {}
      for method in optimizers(task, 1):
        for seed in range(seeds):
          results.console.print(f"{task.title}: {method}, seed {seed}")
          one = run.once(
            f"{name}-{method.replace(' ', '-').replace(',', '')}-{seed}",
            functools.partial(train, task, data, method, seed, epochs),
          )
          for network, measured in one.items():
            networks.setdefault(network, []).append(measured)
      found[name] = {
        "note": datasets.note(name, *data.test),
        "examples": len(data.train.y),
        "epochs": epochs,
        "networks": networks,
      }
    result = results.result("two_of_four", config, None, tasks=found)
    folder = places.report("two_of_four", runs)
    results.write_json(folder / "two_of_four.json", result)
  results.show(write(folder))


def page(result: dict[str, Any]) -> str:
  """The report as Markdown."""
  parts = [
    "# Two of four weights",
    "Half of the weights are zero, in every kernel that has a multiple of four inputs:"
    " *any half* of a kernel, or *two of four* consecutive ones along the axis that is"
    " summed over (`nm_sparsity(2, 4)`). *Cut once* is the trained dense network, cut;"
    " *cut and tuned* is cut in mid-training, after which its zeros stay;"
    " *straight-through* projects at every update. All have the same optimizer,"
    " schedule and number of updates.",
  ]
  for name, found in result["tasks"].items():
    task = TASKS[name]
    key, factor = ("accuracy", 100.0) if task.unit == "%" else ("loss", 1.0)
    values = {
      network: np.array([factor * one[key] for one in several])
      for network, several in found["networks"].items()
    }
    digits = 2 if task.unit == "%" else 4

    def cell(network: str, values: Any = values, digits: int = digits) -> str:
      v = values[network]
      spread = (
        f" ± {np.std(v, ddof=1) / len(v) ** 0.5:.{digits}f}" if len(v) > 1 else ""
      )
      return f"{np.mean(v):.{digits}f}{spread}"

    rows = [["dense", cell("dense"), ""]] + [
      [method, *(cell(f"{method}, {pattern}") for pattern in PATTERNS)]
      for method in ("cut once", "cut and tuned", "straight-through")
    ]
    count = len(values["dense"])
    what = (
      "test accuracy in per cent"
      if task.unit == "%"
      else ("test loss in nats per character, lower is better")
    )
    parts += [
      f"## {task.title}",
      tables.table(["network", *PATTERNS], rows),
      f"{what[0].upper()}{what[1:]}"
      f"{', mean and standard error' if count > 1 else ''}; {count}"
      f" seed{'s' if count > 1 else ''}, {found['epochs']} epoch"
      f"{'s' if found['epochs'] > 1 else ''} of {found['examples']:,} examples."
      f" Data: {found['note']}.",
    ]
  parts.append(
    f"{results.footer([result])}\nWritten by `python -m experiments two_of_four`."
  )
  return "\n\n".join(parts) + "\n"


def write(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the table of the result in a folder, and returns its path."""
  result = results.read(folder / "two_of_four.json")
  return [results.write_atomically(folder / "two_of_four.md", page(result))]


rebuild = write

COMMANDS = main

if __name__ == "__main__":
  cli.run("two_of_four", COMMANDS, sys.argv[1:])
