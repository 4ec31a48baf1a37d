"""Searches and trains a method at all shares of zeros."""

import functools
import itertools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.core import measure, results, training
from experiments.core.run import Run
from experiments.core.tasks import Task
from experiments.core.training import Data, Examples
from experiments.frontier import config as configs


def split(config: configs.Config, data: Data) -> tuple[np.ndarray, Examples]:
  """The numbers of the examples that the search trains on, and what it measures on."""
  count = len(data.train.y)
  order = np.random.default_rng(0).permutation(count)
  size = round(config.validation_share * count)
  return order[size:], Examples(data.train.x[order[:size]], data.train.y[order[:size]])


def initial_params(task: Task, seed: int) -> nnx.State:
  """The weights before training: a function of the seed alone."""
  return nnx.state(task.network_of(nnx.Rngs(params=seed)), nnx.Param)


def trainer(config: configs.Config, steps: int) -> training.Trainer:
  """What trains the network with any share of zeros and hyperparameter."""
  task = config.task
  graph = nnx.graphdef(nnx.eval_shape(lambda: task.network_of(nnx.Rngs(0))))
  method = configs.METHODS[config.method]
  return training.Trainer(
    training.plain_forward(graph),
    lambda hyper: method.make(task.setting(steps, *hyper)),
  )


class Trainings:
  """All trainings of a method on a task.

  Args:
    config: what is trained.
    data: its examples.
    run: the directory in which finished trainings are kept.
  """

  def __init__(self, config: configs.Config, data: Data, run: Run):
    self.config = config
    self.directory = run
    self.examples = Examples(*map(jnp.asarray, data.train))
    task = config.task
    self.shape = task.epochs, len(data.train.y) // task.batch_size, task.batch_size
    self.one = trainer(config, self.shape[0] * self.shape[1])

    def whole(params: Any, order: Any, hyper: Any, examples: Any, held: Any) -> Any:
      state, _ = self.one.whole(params, order, hyper, examples)
      return self._outcome(state, hyper, held)

    self._whole = jax.jit(jax.vmap(whole, (0, 0, 0, None, None)))
    self._measure = jax.jit(self._outcome)
    self._dense: dict[int, training.TrainState] = {}

  def measured(
    self,
    name: str,
    points: list[tuple[float, float, int]],
    chosen: np.ndarray,
    held: Examples,
  ) -> list[dict[str, Any]]:
    """What comes of shares of zeros, values of the hyperparameter, and seeds.

    Args:
      name: of these trainings; those that are finished are not done again.
      points: (share, value, seed) of each training.
      chosen: the numbers of the examples that are trained on.
      held: those to measure on.
    """
    held = Examples(*map(jnp.asarray, held))
    if self.config.task.at_once:
      return self.directory.once(name, lambda: self._at_once(points, chosen, held))
    return [
      self.directory.once(
        f"{name}-{number}", functools.partial(self._single, point, chosen, held)
      )
      for number, point in enumerate(points)
    ]

  def _outcome(self, state: training.TrainState, hyper: Any, held: Examples) -> Any:
    sparse = measure.with_share(state.sparse, hyper[0])
    loss, accuracy = training.means(self.one.forward, sparse, held)
    loss_w, accuracy_w = training.means(self.one.forward, state.params, held)
    return {
      **{"loss": loss, "loss_w": loss_w},
      **{"accuracy": accuracy, "accuracy_w": accuracy_w},
      "zeros": measure.zeros(sparse),
      "zeros_found": measure.zeros(state.sparse),
      "finite": jnp.all(jnp.isfinite(optax.tree.norm(state.params))),
    }

  def _order(self, seed: int, chosen: np.ndarray) -> np.ndarray:
    return training.reshuffled((seed, 1), chosen, self.shape)

  def _single(
    self, point: tuple[float, float, int], chosen: np.ndarray, held: Examples
  ) -> dict[str, Any]:
    share, value, seed = point
    hyper = jnp.float32(share), jnp.float32(value)
    if (state := self._dense.get(seed)) is None:
      state = self._trained(seed, chosen, hyper)
    if configs.METHODS[self.config.method].group == "dense":
      # It is the same at all shares.
      self._dense[seed] = state
    return _with_point(point, self._measure(state, hyper, held))

  def _trained(self, seed: int, chosen: np.ndarray, hyper: Any) -> training.TrainState:
    state = self.one.init(initial_params(self.config.task, seed), hyper)
    step = self.one.compiled(self.examples, hyper)
    for epoch in self._order(seed, chosen):
      for batches in (epoch,) if step.whole_epochs else epoch:
        state = step.call(state, batches)
    return state

  def _at_once(
    self, points: list[tuple[float, float, int]], chosen: np.ndarray, held: Examples
  ) -> list[dict[str, Any]]:
    shares, values, seeds = zip(*points, strict=True)
    params = jax.tree.map(
      lambda *leaves: jnp.stack(leaves),
      *(initial_params(self.config.task, seed) for seed in seeds),
    )
    order = jnp.asarray(np.stack([self._order(seed, chosen) for seed in seeds]))
    hyper = jnp.array(shares, jnp.float32), jnp.array(values, jnp.float32)
    found = self._whole(params, order, hyper, self.examples, held)
    columns = jax.tree.map(np.asarray, found)
    return [
      _with_point(point, {name: column[i] for name, column in columns.items()})
      for i, point in enumerate(points)
    ]


def _with_point(point: tuple[float, float, int], found: Any) -> dict[str, Any]:
  measures = {name: value.item() for name, value in found.items()}
  return dict(zip(("share", "value", "seed"), point, strict=True)) | measures


def train(config: configs.Config, data: Data, run: Run) -> dict[str, Any]:
  """Chooses the hyperparameter at each share on validation examples, and tests it.

  Args:
    config: the task and the method.
    data: the examples.
    run: its directory, in which what is finished is kept.

  Returns:
    The result: the points of the "search", and the "finals" of the chosen values, each
    with the accuracy of the sparse network, and its zeros, cut to the share if it had
    fewer.
  """
  if (result := run.finished()) is not None:
    return result
  trainings = Trainings(config, data, run)
  searched, held = split(config, data)
  grid = [(s, v, 0) for s, v in itertools.product(config.shares, config.values)]
  single = len(config.values) == 1
  search = [] if single else trainings.measured("search", grid, searched, held)

  def best(share: float) -> float:
    if single:
      return config.values[0]
    points = [p for p in search if p["share"] == share and p["finite"]]
    if not points:
      raise FloatingPointError(
        f"{config.method} at {share:.0%}: no training is finite."
      )
    return max(points, key=lambda point: configs.score(config.task, point))["value"]

  points = [(s, best(s), seed) for s in config.shares for seed in range(config.seeds)]
  everything = np.arange(len(data.train.y))
  finals = trainings.measured("finals", points, everything, data.test)
  result = results.result(
    "frontier", config, None, method=config.method, search=search, finals=finals
  )
  results.write_json(run.result_file, result)
  return result
