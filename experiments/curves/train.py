"""Data, training and measurement of one configuration."""

from collections.abc import Callable
import dataclasses
import functools
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
import optax

from experiments import _models, _run, datasets
from experiments.curves import config as configs
from experiments.curves import images as pictures
from experiments.curves import measure
import rvsm_jax

_EVALUATION_BATCH = 250


class Data(NamedTuple):
  """Images (n, 100, 100, 1) of zeros and ones, uint8, and labels (n,), int32.

  Attributes:
    images: for training.
    labels: for training.
    test_images: the test set, or what is held out for validation.
    test_labels: their labels.
  """

  images: NDArray[np.uint8]
  labels: NDArray[np.int32]
  test_images: NDArray[np.uint8]
  test_labels: NDArray[np.int32]


def identified(config: configs.Config) -> configs.Config:
  """The configuration with what identifies the user's own images or font.

  Raises:
    ValueError: if there is no such folder or font, or not what is expected there.
  """
  if config.images is not None:
    root = pathlib.Path(config.images).expanduser().resolve()
    folder = pictures.find(root)
    for path in folder.skipped:
      _run.console.print(f"Skipped, as it is no picture: {path}", markup=False)
    return dataclasses.replace(
      config, images=str(root), classes=folder.classes, digest=folder.digest
    )
  if config.shaky_font is not None:
    font = pathlib.Path(config.shaky_font).expanduser().resolve()
    if not font.is_file():
      raise ValueError(f"shaky_font: there is no file {font}.")
    digest = hashlib.sha256(font.read_bytes()).hexdigest()
    return dataclasses.replace(config, shaky_font=str(font), digest=digest)
  return config


def _load(
  config: configs.Config, split: str, data_dir: pathlib.Path | None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
  if config.images is not None:
    return pictures.load(pathlib.Path(config.images), config.digest)[split]
  if config.shaky_font is not None:
    return datasets.load(config.data, split, data_dir, shaky_font=config.shaky_font)
  return datasets.load(config.data, split, data_dir)


def load_data(config: configs.Config, data_dir: pathlib.Path | None) -> Data:
  """The images that a configuration trains on and is measured on.

  Args:
    config: what to train; `identified`, if on the user's own images.
    data_dir: see `datasets.load`.
  """
  images, labels = _load(config, "train", data_dir)
  if config.validation_size:
    kept = len(images) - config.validation_size
    if kept < config.batch_size:
      raise ValueError(
        f"validation_size={config.validation_size} leaves {kept} images to train on."
      )
    test_images, test_labels = images[kept:], labels[kept:]
    images, labels = images[:kept], labels[:kept]
  else:
    test_images, test_labels = _load(config, "test", data_dir)
  size = min(config.train_size or len(images), len(images))
  if size < config.batch_size:
    raise ValueError(
      f"batch_size={config.batch_size} is more than the {size} images to train on:"
      " lower it."
    )
  return Data(images[:size], labels[:size], test_images, test_labels)


def load_unseen_font(
  config: configs.Config, data_dir: pathlib.Path | None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]] | None:
  """Letters, steady and shaky, of a font that training never saw; None without.

  There is one if the letters are those of the project's own fonts, and nothing is
  chosen by what is measured.
  """
  if config.data != "alphabets" or config.shaky_font or config.validation_size:
    return None
  return datasets.load(config.data, "test_unseen_font", data_dir)


def initial_params(config: configs.Config) -> tuple[nnx.GraphDef, nnx.State]:
  """The network and its weights before training: a function of the seed alone."""
  rngs = nnx.Rngs(params=config.seed)
  model = _models.CurvesCNN(ink=config.ink, dense_std=config.dense_std, rngs=rngs)
  return nnx.split(model, nnx.Param)


def losses(
  graph: nnx.GraphDef, params: Any, images: jax.Array, labels: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """Cross entropy of each image, (n,), and whether its class was found, (n,)."""
  logits = nnx.merge(graph, params)(images)
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return loss, jnp.argmax(logits, axis=-1) == labels


def advance(
  graph: nnx.GraphDef,
  tx: optax.GradientTransformation,
  state: _run.TrainState,
  images: jax.Array,
  labels: jax.Array,
) -> _run.TrainState:
  """One update on one batch of images."""

  def objective(params: Any) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    loss, found = losses(graph, params, images, labels)
    return jnp.mean(loss), (jnp.sum(loss), jnp.sum(found))

  grads, (loss, found) = jax.grad(objective, has_aux=True)(state.params)
  return state.updated(tx, grads, loss=loss, found=found, seen=len(images))


def shifted(images: jax.Array, largest: int, key: jax.Array) -> jax.Array:
  """Each image of (n, h, w, 1) moved at random by up to `largest` pixels each way.

  What comes in at the sides is paper, what leaves is lost.
  """
  around = (largest, largest)
  padded = jnp.pad(images, ((0, 0), around, around, (0, 0)))
  corners = jax.random.randint(key, (len(images), 2), 0, 2 * largest + 1)
  return jax.vmap(
    lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])
  )(padded, corners)


def train_step(
  config: configs.Config,
  graph: nnx.GraphDef,
  tx: optax.GradientTransformation,
  images: jax.Array,
  labels: jax.Array,
) -> Callable[[_run.TrainState, NDArray[np.int64]], _run.TrainState]:
  """The jitted update, from a state, which is donated, and indices into `images`."""

  @functools.partial(jax.jit, donate_argnums=0)
  def update(
    state: _run.TrainState, batch: jax.Array, images: jax.Array, labels: jax.Array
  ) -> _run.TrainState:
    chosen = images[batch]
    if config.shift:
      key = jax.random.fold_in(jax.random.key(config.seed), state.step)
      chosen = shifted(chosen, config.shift, key)
    return advance(graph, tx, state, chosen, labels[batch])

  # The images are an argument, since a closure would make them part of the program.
  return lambda state, batch: update(state, batch, images, labels)


def overwrite(state: _run.TrainState) -> _run.TrainState:
  """Replaces w by u, and restarts the momentum."""
  opt_state = state.opt_state
  sparse = rvsm_jax.sparse_params(opt_state, state.params)
  momentum = optax.tree.get(opt_state, "trace")
  return state._replace(
    # A copy, because an array cannot be donated as w and as u.
    params=jax.tree.map(jnp.copy, sparse),
    opt_state=optax.tree.set(opt_state, trace=jax.tree.map(jnp.zeros_like, momentum)),
  )


def evaluator(
  graph: nnx.GraphDef, images: NDArray[np.uint8], labels: NDArray[np.int32]
) -> Callable[[Any], tuple[float, float]]:
  """A function from params to their mean loss and accuracy on these images."""
  sums = jax.jit(lambda *args: jax.tree.map(jnp.sum, losses(graph, *args)))

  def evaluate(params: Any) -> tuple[float, float]:
    loss = found = 0.0
    for start in range(0, len(images), _EVALUATION_BATCH):
      batch = slice(start, start + _EVALUATION_BATCH)
      part = sums(params, images[batch], labels[batch])
      loss, found = loss + float(part[0]), found + float(part[1])
    return loss / len(images), found / len(images)

  return evaluate


def logits(
  graph: nnx.GraphDef, params: Any, images: NDArray[np.uint8]
) -> NDArray[np.float32]:
  """What the network says of images, (n, 2)."""
  apply = jax.jit(lambda params, images: nnx.merge(graph, params)(images))
  starts = range(0, len(images), _EVALUATION_BATCH)
  return np.concatenate(
    [apply(params, images[start : start + _EVALUATION_BATCH]) for start in starts]
  )


def sparse_params(config: configs.Config, state: _run.TrainState) -> Any:
  """The network of u, or that of w where there is no u."""
  if not config.splits:
    return state.params
  return rvsm_jax.sparse_params(state.opt_state, state.params)


def stored(file: pathlib.Path, config: configs.Config) -> dict[str, Any] | None:
  """The result in a file; None if there is none, or that of another configuration."""
  if not file.exists():
    return None
  result = json.loads(file.read_text())
  if configs.complete(result["config"]) == configs.plain(config):
    return result
  _run.console.print(f"{file} is of another configuration: trained anew.", markup=False)
  return None


def train(
  config: configs.Config,
  run: _run.Run,
  data_dir: pathlib.Path | None = None,
  checkpoint_seconds: float = 20.0,
) -> dict[str, Any]:
  """Trains one configuration, or goes on with it, and returns what came out.

  A finished run is not trained again.

  Args:
    config: what to train.
    run: its directory.
    data_dir: see `datasets.load`.
    checkpoint_seconds: see `_run.fit`.

  Returns:
    The result, which also stands in `run.result_file`.
  """
  result = run.result()
  if result is not None:
    _run.console.print(f"Finished before: {run.result_file}")
    return result
  data = load_data(config, data_dir)
  graph, params = initial_params(config)
  steps = len(data.images) // config.batch_size * config.epochs
  tx = configs.optimizer(config, steps)
  evaluate = evaluator(graph, data.test_images, data.test_labels)
  unseen = load_unseen_font(config, data_dir)
  zeros = jax.jit(lambda state: rvsm_jax.sparsity(_layer(config, state)))

  images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
  update = train_step(config, graph, tx, images, labels)

  def step(state: _run.TrainState, batch: NDArray[np.int64]) -> _run.TrainState:
    state = update(state, batch)
    if config.overwrite and int(state.step) % (steps // config.epochs) == 0:
      state = overwrite(state)
    return state

  def metrics(state: _run.TrainState) -> dict[str, float]:
    loss, accuracy = evaluate(state.params)
    out = {"test_loss": loss, "test_accuracy": accuracy}
    if config.splits:
      loss, accuracy = evaluate(sparse_params(config, state))
      out |= {"test_loss_u": loss, "test_accuracy_u": accuracy}
    return out | live(state)

  def live(state: _run.TrainState) -> dict[str, float]:
    return {"zeros": float(zeros(state))}

  state, record = _run.fit(
    run,
    _run.TrainState.create(params, tx),
    epochs=config.epochs,
    batches=lambda epoch: _run.epoch_order(
      config.seed, epoch, len(data.images), config.batch_size
    ),
    step=step,
    evaluate=metrics,
    live=live,
    checkpoint_seconds=checkpoint_seconds,
  )
  result = {
    "name": config.name,
    "config": run.config,
    "seed": config.seed,
    "data": {
      "name": config.source,
      "classes": config.class_names,
      "train_images": len(data.images),
      "test_images": len(data.test_images),
      "train_per_class": np.bincount(data.labels, minlength=2),
      "test_per_class": np.bincount(data.test_labels, minlength=2),
      "tested_on": "validation" if config.validation_size else "test",
    },
    "final": measure.final(
      initial_params(config)[1],
      state.params,
      sparse_params(config, state) if config.splits else None,
      evaluate,
      None if unseen is None else evaluator(graph, *unseen),
    ),
    "temperature": measure.temperature(
      logits(graph, sparse_params(config, state), data.test_images), data.test_labels
    ),
    "epochs": record.epochs,
    "seconds": record.seconds,
    **_run.environment(),
  }
  _run.write_json(run.result_file, result)
  return result


def _layer(config: configs.Config, state: _run.TrainState) -> jax.Array:
  return measure.layer(sparse_params(config, state))
