"""Data, training and measurement of one row."""

from collections.abc import Callable, Sequence
import functools
import pathlib
from typing import Any, NamedTuple, Self

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
from numpy.typing import NDArray

from experiments import datasets
from experiments.cifar import config as configs
from experiments.core import measure, results, training
from experiments.core.run import Run
from experiments.core.training import Data, Examples
from experiments.datasets import cifar
from experiments.networks import cifar as networks

# Of the training images, in [0, 1].
MEAN = (0.49139968, 0.48215841, 0.44653091)
DEVIATION = (0.24703223, 0.24348513, 0.26158784)
PADDING = 4

_EVALUATION_BATCH = 500


def load_data(
  settings: configs.Settings,
  data_dir: pathlib.Path | None,
  source: pathlib.Path | None = None,
) -> tuple[Data, str]:
  """The images that these settings train and test on: the first of each split.

  Returns:
    Images (n, 32, 32, 3), uint8, and labels (n,), int32; and where those for testing
    come from.
  """
  train, test = (
    Examples(*datasets.load("cifar10", split, data_dir, source))
    for split in ("train", "test")
  )
  note = cifar.test_set_note(*test)
  size, test_size = settings.train_size or None, settings.test_size or None
  return Data(
    Examples(train.x[:size], train.y[:size]),
    Examples(test.x[:test_size], test.y[:test_size]),
  ), note


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
  """Random crops of the images with a margin of four zeros, mirrored half the time.

  Args:
    key: of the randomness.
    images: (n, height, width, channels).

  Returns:
    As many of the same shape and dtype.
  """
  n = len(images)
  crop_key, flip_key = jax.random.split(key)
  corners = jax.random.randint(crop_key, (n, 2), 0, 2 * PADDING + 1)
  cropped = training.cropped(images, corners, PADDING)
  mirrored = jax.random.bernoulli(flip_key, shape=(n, 1, 1, 1))
  return jnp.where(mirrored, cropped[:, :, ::-1], cropped)


def normalized(images: jax.Array) -> jax.Array:
  """Images of bytes as float32 of mean 0 and deviation 1 in each channel."""
  mean, deviation = jnp.array(MEAN), jnp.array(DEVIATION)
  return (images.astype(jnp.float32) / 255 - mean) / deviation


class Network(NamedTuple):
  """The graphs of a network.

  Attributes:
    training: normalises with the statistics of the batch.
    testing: normalises with the running statistics.
    measuring: as for training, but keeps the statistics of the last batch alone.
  """

  training: nnx.GraphDef
  testing: nnx.GraphDef
  measuring: nnx.GraphDef

  @classmethod
  def create(cls, config: configs.Config) -> tuple[Self, nnx.State, nnx.State]:
    """The network of a row, its initial weights and running statistics."""
    settings = config.settings

    def create(momentum: float, training: bool) -> nnx.Module:
      model = networks.create(
        config.row.network,
        width=settings.width,
        seed=settings.seed,
        precision=settings.precision,
        momentum=momentum,
      )
      if training:
        model.train()
      else:
        model.eval()
      return model

    def graph(momentum: float, training: bool) -> nnx.GraphDef:
      return nnx.split(nnx.eval_shape(lambda: create(momentum, training)))[0]

    parts: Any = nnx.split(create(0.9, True), nnx.Param, nnx.BatchStat)
    training, params, stats = parts
    return cls(training, graph(0.9, False), graph(0.0, True)), params, stats


def forward(graph: nnx.GraphDef) -> training.Forward:
  """From images of bytes to logits (n, 10), and the statistics afterwards."""

  def apply(params: Any, stats: Any, images: jax.Array) -> tuple[jax.Array, Any]:
    # Batch normalisation may write to variables that were made in this trace alone.
    model = nnx.merge(graph, params, jax.tree.map(lambda value: value, stats))
    logits = model(normalized(images))
    return logits, nnx.state(model, nnx.BatchStat)

  return apply


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """All devices, or these, in a row along which batches are split."""
  devices = jax.devices() if devices is None else list(devices)
  return jax.make_mesh((len(devices),), ("batch",), (AxisType.Auto,), devices=devices)


def split_batch(mesh: Mesh, batch: jax.Array) -> jax.Array:
  """A batch, split over the devices along its first axis."""
  sharding = NamedSharding(mesh, PartitionSpec("batch"))
  return jax.lax.with_sharding_constraint(batch, sharding)


def trainer(
  config: configs.Config, network: Network, steps: int, mesh: Mesh
) -> training.Trainer:
  """What trains a row, whose batches are split over the devices of a mesh."""
  return training.Trainer(
    forward(network.training),
    lambda _: configs.optimizer(config, steps),
    augment,
    config.settings.seed,
    functools.partial(split_batch, mesh),
    NamedSharding(mesh, PartitionSpec()),
    configs.SMOOTHING if config.settings.recipe == "fast" else 0.0,
  )


def recalibrated(
  network: Network, params: Any, stats: Any, images: NDArray[np.uint8], mesh: Mesh
) -> Any:
  """Statistics of batch normalisation for these params.

  The mean of those of the batches of all the images, augmented as for training:
  without the margins of crops they would be others, and cost a point of accuracy.
  """
  size = min(_evaluation_batch(mesh), len(images) // mesh.size * mesh.size)
  measured = _measured(network.measuring, mesh)
  total = jax.tree.map(jnp.zeros_like, stats)
  count = len(images) // size
  for number in range(count):
    batch = images[number * size : (number + 1) * size]
    found = measured(params, stats, jax.random.key(number), batch)
    total = jax.tree.map(jnp.add, total, found)
  return jax.tree.map(lambda value: value / count, total)


@functools.cache
def _measured(graph: nnx.GraphDef, mesh: Mesh) -> Callable[..., Any]:
  """The statistics of a batch, compiled once."""

  @jax.jit
  def measured(params: Any, stats: Any, key: jax.Array, images: jax.Array) -> Any:
    images = augment(key, split_batch(mesh, images))
    return forward(graph)(params, stats, images)[1]

  return measured


def _evaluation_batch(mesh: Mesh) -> int:
  return -(-_EVALUATION_BATCH // mesh.size) * mesh.size


def train(
  config: configs.Config,
  run: Run,
  data_dir: pathlib.Path | None = None,
  source: pathlib.Path | None = None,
  checkpoint_seconds: float = 20.0,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Trains one row, or goes on with it, and returns what came out.

  A finished run is not trained again. What is reported is the network after the last
  epoch, never one chosen by its test accuracy.

  Args:
    config: what to train.
    run: its directory.
    data_dir: see `datasets.load`.
    source: likewise.
    checkpoint_seconds: see `training.fit`; where an epoch is one call, at its end.
    devices: over which batches are split; by default all.

  Returns:
    The result, which also stands in `run.result_file`: "final" is that of
    `measure.final` with the running statistics of the training, which are those of w;
    "own_statistics", accuracy and loss of the sparse network with those of its own;
    and of a row with a target sparsity "at_share", the same as "final" of that network
    with at least so many zeros.

  Raises:
    ValueError: if the devices do not divide the batch.
  """
  if (result := run.finished()) is not None:
    return result
  row, settings = config.row, config.settings
  mesh = data_mesh(devices)
  if settings.batch_size % mesh.size:
    raise ValueError(
      f"batch_size={settings.batch_size} is not a multiple of the {mesh.size} devices."
    )
  data, note = load_data(settings, data_dir, source)
  network, params, stats = Network.create(config)
  size = len(data.train.x)
  one = trainer(config, network, size // settings.batch_size * settings.epochs, mesh)
  evaluate = training.evaluator(
    forward(network.testing),
    data.test,
    _evaluation_batch(mesh),
    functools.partial(split_batch, mesh),
  )
  measured = training.networks_metrics(
    evaluate, lambda state: measure.zeros(state.sparse), row.splits
  )
  overwrite = settings.overwrite_w_each_epoch and row.splits
  state, record = training.fit(
    run,
    jax.device_put(one.init(params, extra=stats), one.shardings),
    epochs=settings.epochs,
    batches=functools.partial(
      training.epoch_order, settings.seed, size=size, batch_size=settings.batch_size
    ),
    step=one.compiled(jax.device_put(data.train, one.shardings)),
    **measured,
    after_epoch=training.overwritten if overwrite else None,
    checkpoint_seconds=checkpoint_seconds,
  )
  own = recalibrated(network, state.sparse, state.extra, data.train.x, mesh)
  result = results.result(
    "cifar",
    run.config,
    record.seconds,
    name=row.name,
    reduced=settings.reduced,
    data={"train_images": size, "test_images": len(data.test.x), "test_note": note},
    devices=mesh.size,
    final=_final(row, state, own, evaluate),
    epochs=record.epochs,
  )
  return run.finish(result, {"params": state.sparse, "statistics": state.extra})


def _final(
  row: configs.Row,
  state: training.TrainState,
  own: Any,
  evaluate: Callable[[Any, Any], tuple[float, float]],
) -> dict[str, Any]:
  """What is measured in the end, `own` being the sparse network's own statistics."""

  def tested(params: Any, stats: Any) -> dict[str, float]:
    loss, accuracy = evaluate(params, stats)
    zeros = float(measure.zeros(params))
    return {"accuracy": accuracy, "loss": loss, "zeros": zeros}

  u = state.sparse if row.splits else None
  _, final = measure.final(state.params, u, lambda p: evaluate(p, state.extra))
  final["own_statistics"] = tested(state.sparse, own)
  if row.sparsity and row.method != "units":
    cut = measure.with_share(state.sparse, row.sparsity)
    final["at_share"] = tested(cut, state.extra)
  return final
