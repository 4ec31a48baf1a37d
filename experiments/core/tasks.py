"""Two trainings of minutes that several experiments share: a CNN, and a transformer."""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
from typing import Any

from flax import nnx
import jax.numpy as jnp
import numpy as np
import optax

from experiments import datasets
from experiments.core import training
from experiments.core.training import Data, Examples
from experiments.datasets import text
from experiments.networks.cnn import CNN
from experiments.networks.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Task:
  """A data set with its network, and how it is trained.

  Attributes:
    name: of the data set.
    title: what tables call it.
    unit: of the number in a table, "%" of accuracy or "nats".
    network: from the random numbers.
    rate: from the number of steps to the learning rate.
    optimizer: from the learning rate.
    epochs: passes over the training examples.
    batch_size: examples per step.
    train_size: only so many training examples, the first; None takes all.
  """

  name: str
  title: str
  unit: str
  network: Callable[..., nnx.Module]
  rate: Callable[[int], optax.Schedule]
  optimizer: Callable[[optax.Schedule], optax.GradientTransformation]
  epochs: int
  batch_size: int
  train_size: int | None = None

  def steps(self, data: Data, epochs: int | None = None) -> int:
    """The number of updates."""
    return (epochs or self.epochs) * (len(data.train.y) // self.batch_size)


def _cnn(rngs: nnx.Rngs, fused: bool = True, width: int = 16) -> nnx.Module:
  convs = width, 2 * width, 4 * width
  return CNN((28, 28, 1), convs, (0, 1, 2), (64, 10), fused=fused, rngs=rngs)


def _transformer(rngs: nnx.Rngs) -> nnx.Module:
  return Transformer(len(text.ALPHABET), text.CONTEXT, rngs=rngs)


def plain(task: Task, params: Any) -> nnx.Module:
  """The network with these params, convolutions and pooling by the usual operations."""
  make = task.network
  if task.unit == "%":
    make = functools.partial(make, fused=False)
  return nnx.merge(nnx.graphdef(nnx.eval_shape(lambda: make(nnx.Rngs(0)))), params)


TASKS = {
  task.name: task
  for task in (
    Task(
      *("fashion_mnist", "Fashion-MNIST, CNN", "%", _cnn),
      lambda steps: optax.cosine_onecycle_schedule(steps, 0.1),
      lambda rate: optax.sgd(rate, 0.9, nesterov=True),
      *(10, 64, 5000),
    ),
    Task(
      *("text", "text, transformer", "nats", _transformer),
      lambda steps: optax.cosine_onecycle_schedule(steps, 3e-3, pct_start=0.1),
      lambda rate: optax.adamw(rate, weight_decay=0.1),
      *(1, 8),
    ),
  )
}

WIDE = dataclasses.replace(
  TASKS["fashion_mnist"],
  title="Fashion-MNIST, CNN of twice the width",
  network=functools.partial(_cnn, width=32),
)


def load(
  task: Task, data_dir: pathlib.Path | None, source: pathlib.Path | None
) -> Data:
  """The examples: images in [0, 1], or numbers of characters; see `datasets.load`."""

  def part(split: str, size: int | None) -> Examples:
    x, y = (array[:size] for array in datasets.load(task.name, split, data_dir, source))
    return Examples(x if task.name == "text" else x.astype(np.float32) / 255, y)

  return Data(part("train", task.train_size), part("test", None))


def fit(
  task: Task,
  data: Data,
  tx: optax.GradientTransformation,
  seed: int,
  epochs: int | None = None,
) -> tuple[training.TrainState, nnx.GraphDef]:
  """Trains a network once; its batches are a function of the seed.

  Raises:
    FloatingPointError: if a weight is not finite in the end.
  """
  graph, params = nnx.split(task.network(nnx.Rngs(params=seed)))
  trainer = training.Trainer(training.plain_forward(graph), lambda _: tx, seed=seed)
  examples = Examples(*map(jnp.asarray, data.train))
  state, step = trainer.init(params), trainer.compiled(examples, whole_epochs=False)
  for epoch in range(epochs or task.epochs):
    order = training.epoch_order(seed, epoch, len(data.train.y), task.batch_size)
    for batch in order:
      state = step.call(state, batch)
  training.require_finite(state.params, task.title)
  return state, graph


def evaluator(task: Task, examples: Examples) -> Callable[..., tuple[float, float]]:
  """From a network's forward function and params to mean loss and accuracy."""
  size = 100 if task.unit == "%" else 16

  def evaluate(graph: nnx.GraphDef, params: Any) -> tuple[float, float]:
    return training.evaluator(training.plain_forward(graph), examples, size)(params)

  return evaluate
