"""Data, training and measurement of one row."""

from collections.abc import Callable, Sequence
import pathlib
from typing import Any, NamedTuple, Self

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np
from numpy.typing import NDArray
import optax

from experiments import _run
from experiments.cifar import config as configs
from experiments.cifar import models
from experiments.curves import measure
from experiments.datasets import cifar
import rvsm_jax

# Of the training images, in [0, 1].
MEAN = (0.49139968, 0.48215841, 0.44653091)
DEVIATION = (0.24703223, 0.24348513, 0.26158784)
PADDING = 4
EXPONENTS = (2, 3, 4, 5, 10)

_EVALUATION_BATCH = 500


class Data(NamedTuple):
  """Images (n, 32, 32, 3), uint8, and labels (n,), int32.

  Attributes:
    images: for training.
    labels: for training.
    test_images: for testing.
    test_labels: their labels.
    test_note: where the test images come from.
  """

  images: NDArray[np.uint8]
  labels: NDArray[np.int32]
  test_images: NDArray[np.uint8]
  test_labels: NDArray[np.int32]
  test_note: str


def load_data(settings: configs.Settings, data_dir: pathlib.Path | None) -> Data:
  """The images that these settings train and test on: the first of each split."""
  images, labels = cifar.load("train", data_dir)
  test_images, test_labels = cifar.load("test", data_dir)
  note = cifar.test_set_note(test_images, test_labels)
  size, test_size = settings.train_size or None, settings.test_size or None
  return Data(
    images[:size], labels[:size], test_images[:test_size], test_labels[:test_size], note
  )


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
  margin = (PADDING, PADDING)
  padded = jnp.pad(images, ((0, 0), margin, margin, (0, 0)))
  cropped = jax.vmap(
    lambda image, corner: jax.lax.dynamic_slice(
      image, (corner[0], corner[1], 0), images.shape[1:]
    )
  )(padded, corners)
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
      model = models.create(
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


def apply(
  graph: nnx.GraphDef, params: Any, stats: Any, images: jax.Array
) -> tuple[jax.Array, Any]:
  """Logits (n, 10) of images of bytes, and the statistics afterwards."""
  # Batch normalisation may write to variables that were made in this trace alone.
  model = nnx.merge(graph, params, jax.tree.map(lambda value: value, stats))
  logits = model(normalized(images))
  return logits, nnx.state(model, nnx.BatchStat)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
  """All devices, or these, in a row along which batches are split."""
  devices = jax.devices() if devices is None else list(devices)
  return jax.make_mesh((len(devices),), ("batch",), (AxisType.Auto,), devices=devices)


def split_batch(batch: jax.Array, mesh: Mesh) -> jax.Array:
  """A batch, split over the devices along its first axis."""
  sharding = NamedSharding(mesh, PartitionSpec("batch"))
  return jax.lax.with_sharding_constraint(batch, sharding)


Update = Callable[[_run.TrainState, jax.Array, jax.Array, jax.Array], _run.TrainState]


def update_step(
  config: configs.Config,
  network: Network,
  tx: optax.GradientTransformation,
  mesh: Mesh,
) -> Update:
  """One update, from a state, indices into images, images and labels; not jitted."""
  key = jax.random.key(config.settings.seed)

  def objective(
    params: Any, stats: Any, images: jax.Array, labels: jax.Array
  ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
    logits, stats = apply(network.training, params, stats, images)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.mean(loss), (stats, jnp.sum(jnp.argmax(logits, axis=-1) == labels))

  def update(
    state: _run.TrainState, batch: jax.Array, images: jax.Array, labels: jax.Array
  ) -> _run.TrainState:
    batch = split_batch(batch, mesh)
    # By the number of the update, so that a resumed run augments alike.
    chosen = augment(jax.random.fold_in(key, state.step), images[batch])
    gradient = jax.value_and_grad(objective, has_aux=True)
    (loss, (stats, found)), grads = gradient(
      state.params, state.extra, chosen, labels[batch]
    )
    seen = len(batch)
    state = state.updated(tx, grads, loss=seen * loss, found=found, seen=seen)
    return state._replace(extra=stats)

  return update


class WholeEpoch:
  """The batches of an epoch, of which `fit` gets all that are left as one.

  Args:
    order: indices, (steps, batch_size).
  """

  def __init__(self, order: NDArray[np.int64]):
    self.order = order

  def __len__(self) -> int:
    return len(self.order)

  def __getitem__(self, left: slice) -> list[NDArray[np.int64]]:
    return [self.order[left]]


def stepper(
  update: Update, images: jax.Array, labels: jax.Array, mesh: Mesh, scan: bool
) -> Callable[[_run.TrainState, NDArray[np.int64]], _run.TrainState]:
  """The jitted update, from a state, which is donated, and a batch of indices.

  Args:
    update: see `update_step`.
    images: all training images, on the devices.
    labels: their labels.
    mesh: over which the batch is split; all else is on every device.
    scan: take many batches (n, batch_size) at a time. Not on CPU, where XLA's
      convolutions are slow inside a scan.
  """

  def many(
    state: _run.TrainState, batches: jax.Array, images: jax.Array, labels: jax.Array
  ) -> _run.TrainState:
    return jax.lax.scan(
      lambda state, batch: (update(state, batch, images, labels), None), state, batches
    )[0]

  jitted = jax.jit(
    many if scan else update,
    donate_argnums=0,
    out_shardings=NamedSharding(mesh, PartitionSpec()),
  )
  # The images are an argument, since a closure would make them part of the program.
  return lambda state, batch: jitted(state, jnp.asarray(batch), images, labels)


def overwritten(state: _run.TrainState) -> _run.TrainState:
  """The state with u in place of w and without momentum."""
  trace = optax.tree.get(state.opt_state, "trace")
  return state._replace(
    params=rvsm_jax.sparse_params(state.opt_state, state.params),
    opt_state=optax.tree.set(
      state.opt_state, trace=jax.tree.map(jnp.zeros_like, trace)
    ),
  )


def evaluator(
  network: Network,
  images: NDArray[np.uint8],
  labels: NDArray[np.int32],
  mesh: Mesh,
) -> Callable[[Any, Any], tuple[float, float]]:
  """A function from params and statistics to mean loss and accuracy on these images."""
  size = _evaluation_batch(mesh)
  padding = -len(images) % size
  # No image has the label -1.
  images = np.concatenate([images, np.zeros_like(images[:1]).repeat(padding, 0)])
  expected = np.concatenate([labels, np.full(padding, -1, np.int32)])

  @jax.jit
  def sums(
    params: Any, stats: Any, images: jax.Array, labels: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    logits, _ = apply(network.testing, params, stats, split_batch(images, mesh))
    loss = optax.softmax_cross_entropy_with_integer_labels(
      logits, jnp.maximum(labels, 0)
    )
    found = jnp.argmax(logits, axis=-1) == labels
    return jnp.sum(jnp.where(labels < 0, 0.0, loss)), jnp.sum(found)

  def evaluate(params: Any, stats: Any) -> tuple[float, float]:
    loss = found = 0.0
    for start in range(0, len(images), size):
      batch = slice(start, start + size)
      part = sums(params, stats, images[batch], expected[batch])
      loss, found = loss + float(part[0]), found + float(part[1])
    return loss / len(labels), found / len(labels)

  return evaluate


def _evaluation_batch(mesh: Mesh) -> int:
  return -(-_EVALUATION_BATCH // mesh.size) * mesh.size


def recalibrated(
  network: Network, params: Any, stats: Any, images: NDArray[np.uint8], mesh: Mesh
) -> Any:
  """Statistics of batch normalisation for these params.

  The mean of those of the batches of all the images, without augmentation.
  """
  size = min(_evaluation_batch(mesh), len(images) // mesh.size * mesh.size)

  @jax.jit
  def measured(params: Any, stats: Any, images: jax.Array) -> Any:
    return apply(network.measuring, params, stats, split_batch(images, mesh))[1]

  total = jax.tree.map(jnp.zeros_like, stats)
  count = len(images) // size
  for number in range(count):
    batch = images[number * size : (number + 1) * size]
    total = jax.tree.map(jnp.add, total, measured(params, stats, batch))
  return jax.tree.map(lambda value: value / count, total)


def kernels(params: Any) -> dict[str, jax.Array]:
  """The kernels among the params, by path and in depth: what is made sparse."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  chosen = jax.tree.leaves(rvsm_jax.kernels(params))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
    for (path, leaf), pick in zip(leaves, chosen, strict=True)
    if pick
  }


def sparse_network(row: configs.Row, state: _run.TrainState) -> Any:
  """The params of u, or those of w where there is no u."""
  if not row.splits:
    return state.params
  return rvsm_jax.sparse_params(state.opt_state, state.params)


def final(
  config: configs.Config,
  network: Network,
  state: _run.TrainState,
  images: NDArray[np.uint8],
  evaluate: Callable[[Any, Any], tuple[float, float]],
  mesh: Mesh,
) -> dict[str, Any]:
  """All that is reported of a trained network.

  Returns:
    Under the names "w", "u", and "w_cut", which is w with the weights below the
    middle of its gap (`curves.measure.find_gap`, of all kernels) set to zero:
    "accuracy" and "loss" with the running statistics of the training, which are
    those of w; "zeros_kernels" and "zeros_params", the shares of exact zeros in all
    kernels and in all params. None stands for what there is not. "u_recalibrated":
    accuracy and loss of u with statistics of its own. "w_below": shares of w in the
    kernels below 10^-n. "layers": name, size and zeros of each kernel of u, or else
    of w.
  """
  w = state.params
  u = sparse_network(config.row, state) if config.row.splits else None
  flat = np.concatenate([np.ravel(kernel) for kernel in kernels(w).values()])
  gap = measure.find_gap(flat)
  networks = {"w": w, "u": u, "w_cut": gap and _cut(w, gap.cut)}
  found = {
    name: None if params is None else evaluate(params, state.extra)
    for name, params in networks.items()
  }
  own = u and evaluate(u, recalibrated(network, u, state.extra, images, mesh))
  shares = rvsm_jax.sparsity_by_scale(flat, EXPONENTS)
  return {
    "weights": flat.size,
    "params": sum(leaf.size for leaf in jax.tree.leaves(w)),
    "accuracy": {name: part and part[1] for name, part in found.items()},
    "loss": {name: part and part[0] for name, part in found.items()},
    "u_recalibrated": own and {"accuracy": own[1], "loss": own[0]},
    "zeros_kernels": {
      name: params and float(rvsm_jax.sparsity(kernels(params)))
      for name, params in networks.items()
    },
    "zeros_params": {
      name: params and float(rvsm_jax.sparsity(params))
      for name, params in networks.items()
    },
    "gap": gap and gap._asdict(),
    "w_below": {
      str(n): float(share) for n, share in zip(EXPONENTS, shares, strict=True)
    },
    "layers": [
      {"name": name, "size": kernel.size, "zeros": float(rvsm_jax.sparsity(kernel))}
      for name, kernel in kernels(sparse_network(config.row, state)).items()
    ],
  }


def _cut(params: Any, threshold: float) -> Any:
  return jax.tree.map(
    lambda w, pick: jnp.where(jnp.abs(w) > threshold, w, 0) if pick else w,
    params,
    rvsm_jax.kernels(params),
  )


def train(
  config: configs.Config,
  run: _run.Run,
  data_dir: pathlib.Path | None = None,
  checkpoint_seconds: float = 20.0,
  devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
  """Trains one row, or goes on with it, and returns what came out.

  A finished run is not trained again. What is reported is the network after the last
  epoch, never one chosen by its test accuracy.

  Args:
    config: what to train.
    run: its directory.
    data_dir: see `datasets.cifar.load`.
    checkpoint_seconds: see `_run.fit`; where an epoch is one call, at its end.
    devices: over which batches are split; by default all.

  Returns:
    The result, which also stands in `run.result_file`.

  Raises:
    ValueError: if the devices do not divide the batch.
  """
  result = run.result()
  if result is not None:
    _run.console.print(f"Finished before: {run.result_file}")
    return result
  row, settings = config.row, config.settings
  mesh = data_mesh(devices)
  if settings.batch_size % mesh.size:
    raise ValueError(
      f"batch_size={settings.batch_size} is not a multiple of the {mesh.size} devices."
    )
  data = load_data(settings, data_dir)
  network, params, stats = Network.create(config)
  per_epoch = len(data.images) // settings.batch_size
  tx = configs.optimizer(config, per_epoch * settings.epochs)
  everywhere = NamedSharding(mesh, PartitionSpec())
  scan = mesh.devices.flat[0].platform != "cpu"
  step = stepper(
    update_step(config, network, tx, mesh),
    jax.device_put(data.images, everywhere),
    jax.device_put(data.labels, everywhere),
    mesh,
    scan,
  )
  overwrite = jax.jit(overwritten, donate_argnums=0)
  evaluate = evaluator(network, data.test_images, data.test_labels, mesh)
  zeros = jax.jit(lambda state: rvsm_jax.sparsity(kernels(sparse_network(row, state))))

  def batches(epoch: int) -> Any:
    size = len(data.images)
    order = _run.epoch_order(settings.seed, epoch, size, settings.batch_size)
    return WholeEpoch(order) if scan else order

  def advance(state: _run.TrainState, batch: NDArray[np.int64]) -> _run.TrainState:
    state = step(state, batch)
    if settings.overwrite_w_each_epoch and row.splits and not state.step % per_epoch:
      state = overwrite(state)
    return state

  def metrics(state: _run.TrainState) -> dict[str, float]:
    loss, accuracy = evaluate(state.params, state.extra)
    out = {"test_loss": loss, "test_accuracy": accuracy}
    if row.splits:
      loss, accuracy = evaluate(sparse_network(row, state), state.extra)
      out |= {"test_loss_u": loss, "test_accuracy_u": accuracy}
    return out | live(state)

  def live(state: _run.TrainState) -> dict[str, float]:
    return {"zeros": float(zeros(state))}

  state = _run.TrainState.create(params, tx, stats)
  state, record = _run.fit(
    run,
    jax.device_put(state, everywhere),
    epochs=settings.epochs,
    batches=batches,
    step=advance,
    evaluate=metrics,
    live=live,
    checkpoint_seconds=checkpoint_seconds,
  )
  result = {
    "name": row.name,
    "config": run.config,
    "seed": settings.seed,
    "reduced": settings.reduced,
    "data": {
      "train_images": len(data.images),
      "test_images": len(data.test_images),
      "test_note": data.test_note,
    },
    "devices": mesh.size,
    "final": final(config, network, state, data.images, evaluate, mesh),
    "epochs": record.epochs,
    "seconds": record.seconds,
    **_run.environment(),
  }
  _run.write_json(run.result_file, result)
  return result
