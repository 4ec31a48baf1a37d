"""Searches and trains a method at all shares of zeros, many at once."""

import functools
import itertools
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import datasets
from experiments.core import measure, results, training
from experiments.core.run import Run
from experiments.core.training import Data, Examples
from experiments.frontier import config as configs
from experiments.networks.perceptron import perceptron


def load_data(
  task: configs.Task, data_dir: pathlib.Path | None, source: pathlib.Path | None
) -> Data:
  """The examples, with inputs in [0, 1]; see `datasets.load`."""

  def load(split: str) -> Examples:
    x, y = datasets.load(task.name, split, data_dir, source)
    return Examples(x.astype(np.float32) / task.scale, y)

  return Data(load("train"), load("test"))


def split(config: configs.Config, data: Data) -> tuple[np.ndarray, Examples]:
  """The numbers of the examples that the search trains on, and what it measures on."""
  count = len(data.train.y)
  order = np.random.default_rng(0).permutation(count)
  size = round(config.validation_share * count)
  return order[size:], Examples(data.train.x[order[:size]], data.train.y[order[:size]])


def initial_params(task: configs.Task, seed: int) -> nnx.State:
  """The weights before training: a function of the seed alone."""
  return nnx.state(perceptron(task.sizes, nnx.Rngs(params=seed)), nnx.Param)


def trainer(config: configs.Config, steps: int) -> training.Trainer:
  """What trains the network with any share of zeros and hyperparameter."""
  task = config.task
  graph = nnx.graphdef(nnx.eval_shape(lambda: perceptron(task.sizes, nnx.Rngs(0))))
  method = configs.METHODS[config.method]
  rate = optax.cosine_onecycle_schedule(steps, task.learning_rate)
  return training.Trainer(
    training.plain_forward(graph),
    lambda hyper: method.make(configs.Setting(rate, task.momentum, steps, *hyper)),
  )


class Trainings:
  """All trainings of a method on a task, mapped over points by one program.

  Args:
    config: what is trained.
    data: its examples.
  """

  def __init__(self, config: configs.Config, data: Data):
    self.config = config
    self.examples = Examples(*map(jnp.asarray, data.train))
    task = config.task
    self.shape = task.epochs, len(data.train.y) // task.batch_size, task.batch_size
    one = trainer(config, self.shape[0] * self.shape[1])

    def run(params: Any, order: Any, hyper: Any, examples: Any, held: Any) -> Any:
      state, _ = one.whole(params, order, hyper, examples)
      zeros = measure.zeros(state.sparse)
      sparse = measure.with_share(state.sparse, hyper[0])
      return {
        "accuracy": training.accuracy(one.forward, sparse, held),
        "accuracy_w": training.accuracy(one.forward, state.params, held),
        "zeros": measure.zeros(sparse),
        "zeros_found": zeros,
        "finite": jnp.all(jnp.isfinite(optax.tree.norm(state.params))),
      }

    self._run = jax.jit(jax.vmap(run, (0, 0, 0, None, None)))

  def measured(
    self,
    points: list[tuple[float, float, int]],
    chosen: np.ndarray,
    held: Examples,
  ) -> list[dict[str, Any]]:
    """What comes of shares of zeros, values of the hyperparameter, and seeds.

    Args:
      points: (share, value, seed) of each training.
      chosen: the numbers of the examples that are trained on.
      held: those to measure on.
    """
    shares, values, seeds = zip(*points, strict=True)
    params = jax.tree.map(
      lambda *leaves: jnp.stack(leaves),
      *(initial_params(self.config.task, seed) for seed in seeds),
    )
    order = np.stack(
      [training.reshuffled((seed, 1), chosen, self.shape) for seed in seeds]
    )
    hyper = jnp.array(shares, jnp.float32), jnp.array(values, jnp.float32)
    held = Examples(*map(jnp.asarray, held))
    found = jax.tree.map(
      np.asarray, self._run(params, jnp.asarray(order), hyper, self.examples, held)
    )
    return [
      {"share": share, "value": value, "seed": seed}
      | {name: column[i].item() for name, column in found.items()}
      for i, (share, value, seed) in enumerate(points)
    ]


def train(config: configs.Config, data: Data, run: Run) -> dict[str, Any]:
  """Chooses the hyperparameter at each share on validation examples, and tests it.

  Args:
    config: the task and the method.
    data: the examples.
    run: its directory, in which the search is a finished part.

  Returns:
    The result: the points of the "search", and the "finals" of the chosen values, each
    with the accuracy of the sparse network, and its zeros, cut to the share if it had
    fewer.
  """
  if (result := run.finished()) is not None:
    return result
  trainings = Trainings(config, data)
  searched, held = split(config, data)
  grid = [(s, v, 0) for s, v in itertools.product(config.shares, config.values)]
  search = run.once(
    "search", functools.partial(trainings.measured, grid, searched, held)
  )

  def best(share: float) -> float:
    points = [p for p in search if p["share"] == share and p["finite"]]
    if not points:
      raise FloatingPointError(
        f"{config.method} at {share:.0%}: no training is finite."
      )
    return max(points, key=lambda point: point["accuracy"])["value"]

  points = [(s, best(s), seed) for s in config.shares for seed in range(config.seeds)]
  everything = np.arange(len(data.train.y))
  finals = run.once(
    "finals", functools.partial(trainings.measured, points, everything, data.test)
  )
  result = results.result(
    "frontier", config, None, method=config.method, search=search, finals=finals
  )
  results.write_json(run.result_file, result)
  return result
