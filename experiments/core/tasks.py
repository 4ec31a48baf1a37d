"""Data sets with a network and its training, which several experiments share."""

from collections.abc import Callable
import dataclasses
import pathlib
from typing import Any, Literal

from flax import nnx
import jax.numpy as jnp
import numpy as np
import optax

from experiments import datasets
from experiments.core import training
from experiments.core.methods import Setting
from experiments.core.training import Data, Examples
from experiments.datasets import text
from experiments.networks.cnn import CNN
from experiments.networks.curves import CurvesCNN
from experiments.networks.perceptron import perceptron
from experiments.networks.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Task:
  """A data set, its network, and how it is trained, the same by all methods.

  Attributes:
    name: of the data set.
    title: what tables call it.
    sizes: of the layers of a perceptron; or the channels of the convolutions of a CNN,
      each with pooling, and then the sizes of its two dense layers; or the width,
      heads, neurons of an MLP and blocks of a transformer. Those of "curves" are fixed.
    scale: the largest value of an input.
    epochs: passes over the training examples.
    batch_size: examples per step.
    learning_rate: the peak of one cycle, of SGD with momentum or, for a transformer,
      of AdamW.
    momentum: Nesterov's, or AdamW's first.
    network: which.
    train_size: only so many training examples, the first; 0 takes all.
  """

  name: str
  title: str
  sizes: tuple[int, ...]
  scale: float
  epochs: int
  batch_size: int
  learning_rate: float
  momentum: float = 0.9
  network: Literal["perceptron", "cnn", "curves", "transformer"] = "perceptron"
  train_size: int = 0

  @property
  def at_once(self) -> bool:
    """Whether one program does all trainings: convolutions are slow that way."""
    return self.network == "perceptron"

  @property
  def in_nats(self) -> bool:
    """Whether the test loss is reported instead of the accuracy."""
    return self.network == "transformer"

  @property
  def described(self) -> str:
    """The network, for a sentence."""
    if self.network == "curves":
      return "The network of Xue & Xin"
    names = {"perceptron": "Perceptron", "cnn": "CNN", "transformer": "Transformer"}
    return f"{names[self.network]} {'-'.join(map(str, self.sizes))}"

  def setting(self, steps: int, share: Any = 0.0, value: Any = 0.0) -> Setting:
    """What the optimizer depends on, for so many updates."""
    adam = self.network == "transformer"
    rate = optax.cosine_onecycle_schedule(
      steps, self.learning_rate, pct_start=0.1 if adam else 0.3
    )
    decay = 0.1 if adam else 0.0
    return Setting(rate, self.momentum, steps, share, value, decay, adam)

  @property
  def trained(self) -> str:
    """The optimizer, for a sentence."""
    if self.network == "transformer":
      return f"AdamW, one cycle with peak {self.learning_rate:g}, weight decay 0.1"
    return (
      f"SGD with Nesterov momentum {self.momentum:g}, one cycle with peak"
      f" {self.learning_rate:g}"
    )

  def optimizer(self, steps: int) -> optax.GradientTransformation:
    """That of a dense network, for so many updates."""
    return self.setting(steps).optimizer

  def steps(self, data: Data, epochs: int | None = None) -> int:
    """The number of updates."""
    return (epochs or self.epochs) * (len(data.train.y) // self.batch_size)

  def network_of(self, rngs: nnx.Rngs, fused: bool = True) -> nnx.Module:
    """The network before training; see `CNN` for `fused`."""
    match self.network:
      case "perceptron":
        return perceptron(self.sizes, rngs)
      case "curves":
        return CurvesCNN(rngs=rngs)
      case "cnn":
        *convs, hidden, classes = self.sizes
        shape, pooled = (28, 28, 1), range(len(convs))
        return CNN(shape, convs, pooled, (hidden, classes), fused=fused, rngs=rngs)
      case "transformer":
        width, heads, neurons, blocks = self.sizes
        sizes = {"width": width, "heads": heads, "hidden": neurons, "blocks": blocks}
        return Transformer(len(text.ALPHABET), text.CONTEXT, **sizes, rngs=rngs)


TASKS = {
  task.name: task
  for task in (
    Task(
      *("fashion_mnist", "Fashion-MNIST, CNN", (16, 32, 64, 64, 10), 255.0, 10, 64),
      learning_rate=0.1,
      network="cnn",
      train_size=5000,
    ),
    Task(
      *("text", "Text, transformer", (160, 5, 640, 3), 1.0, 1, 8, 3e-3),
      network="transformer",
    ),
  )
}

# For compaction: small networks spend most of their time on what does not shrink.
WIDE = {
  task.name: task
  for task in (
    dataclasses.replace(
      TASKS["fashion_mnist"],
      title="Fashion-MNIST, CNN of twice the width",
      sizes=(32, 64, 128, 64, 10),
    ),
    dataclasses.replace(
      TASKS["text"],
      title="Text, transformer of twice the heads and neurons",
      sizes=(160, 10, 1280, 3),
    ),
  )
}


def plain(task: Task, params: Any) -> nnx.Module:
  """The network with these params, convolutions and pooling by the usual operations."""
  shapes = nnx.eval_shape(lambda: task.network_of(nnx.Rngs(0), fused=False))
  return nnx.merge(nnx.graphdef(shapes), params)


def load(
  task: Task, data_dir: pathlib.Path | None, source: pathlib.Path | None
) -> Data:
  """The examples: inputs in [0, 1], or numbers of characters; see `datasets.load`."""

  def part(split: str, size: int | None) -> Examples:
    x, y = (array[:size] for array in datasets.load(task.name, split, data_dir, source))
    return Examples(x if task.in_nats else x.astype(np.float32) / task.scale, y)

  return Data(part("train", task.train_size or None), part("test", None))


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
  graph, params = nnx.split(task.network_of(nnx.Rngs(params=seed)))
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
  size = 16 if task.in_nats else 100

  def evaluate(graph: nnx.GraphDef, params: Any) -> tuple[float, float]:
    return training.evaluator(training.plain_forward(graph), examples, size)(params)

  return evaluate
