"""Data, training and measurement of one configuration."""

import base64
from collections.abc import Callable
import dataclasses
import functools
import hashlib
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from experiments import datasets
from experiments.core import measure, results, training
from experiments.core.run import Run
from experiments.core.training import Data, Examples
from experiments.curves import config as configs
from experiments.curves import images as pictures
from experiments.networks.curves import CurvesCNN
import rvsm_jax

_EVALUATION_BATCH = 250
_SHOWN = 24
_DECADE_BINS = np.linspace(-12.0, 1.0, 105)


def identified(config: configs.Config) -> configs.Config:
  """The configuration with what identifies the user's own images or font."""
  if config.images is not None:
    root = pathlib.Path(config.images).expanduser().resolve()
    folder = pictures.find(root)
    for path in folder.skipped:
      results.console.print(f"Skipped, as it is no picture: {path}", markup=False)
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


def _pictures(config: configs.Config) -> dict[str, pictures.Pictures]:
  assert config.images is not None
  assert config.digest is not None
  return pictures.load(pathlib.Path(config.images), config.digest)


def _load(
  config: configs.Config, split: str, data_dir: pathlib.Path | None
) -> Examples:
  if config.images is not None:
    return Examples(*_pictures(config)[split][:2])
  font = config.shaky_font
  return Examples(*datasets.load(config.data, split, data_dir, shaky_font=font))


def load_data(config: configs.Config, data_dir: pathlib.Path | None) -> Data:
  """The images that a configuration trains on and is measured on.

  Returns:
    Images (n, 100, 100, 1) of zeros and ones, uint8, and labels (n,), int32; for
    testing, those of the test set, or what is held out for validation.
  """
  images, labels = _load(config, "train", data_dir)
  if config.validation_size:
    kept = len(images) - config.validation_size
    if kept < config.batch_size:
      raise ValueError(
        f"validation_size={config.validation_size} leaves {kept} images to train on."
      )
    test = Examples(images[kept:], labels[kept:])
    images, labels = images[:kept], labels[:kept]
  else:
    test = _load(config, "test", data_dir)
  size = min(config.train_size or len(images), len(images))
  if size < config.batch_size:
    raise ValueError(
      f"batch_size={config.batch_size} is more than the {size} images to train on:"
      " lower it."
    )
  return Data(Examples(images[:size], labels[:size]), test)


def load_unseen_font(
  config: configs.Config, data_dir: pathlib.Path | None
) -> Examples | None:
  """Letters, steady and shaky, of a font that training never saw; None without.

  There is one if the letters are those of the project's own fonts, and nothing is
  chosen by what is measured.
  """
  if config.data != "alphabets" or config.shaky_font or config.validation_size:
    return None
  return Examples(*datasets.load(config.data, "test_unseen_font", data_dir))


def initial_params(config: configs.Config) -> tuple[nnx.GraphDef, nnx.State]:
  """The network and its weights before training: a function of the seed alone."""
  rngs = nnx.Rngs(params=config.seed)
  model = CurvesCNN(ink=config.ink, dense_std=config.dense_std, rngs=rngs)
  return nnx.split(model, nnx.Param)


def shifted(images: jax.Array, largest: int, key: jax.Array) -> jax.Array:
  """Each image of (n, h, w, 1) moved at random by up to `largest` pixels each way.

  What comes in at the sides is paper, what leaves is lost.
  """
  corners = jax.random.randint(key, (len(images), 2), 0, 2 * largest + 1)
  return training.cropped(images, corners, largest)


def trainer(config: configs.Config, steps: int) -> training.Trainer:
  """What trains the network of a configuration."""
  graph, _ = initial_params(config)
  return training.Trainer(
    training.plain_forward(graph),
    lambda fields: configs.optimizer(dataclasses.replace(config, **fields), steps),
    (lambda key, x: shifted(x, config.shift, key)) if config.shift else None,
    config.seed,
  )


def evaluator(config: configs.Config, examples: Examples) -> Any:
  """See `training.evaluator`."""
  forward = training.plain_forward(initial_params(config)[0])
  return training.evaluator(forward, examples, _EVALUATION_BATCH)


def predictor(config: configs.Config) -> Callable[[Any, NDArray], NDArray[np.float32]]:
  """A function from params and images to what the network says of them, (n, 2)."""
  graph, _ = initial_params(config)
  apply = jax.jit(lambda params, images: nnx.merge(graph, params)(images))

  def logits(params: Any, images: NDArray) -> NDArray[np.float32]:
    starts = range(0, len(images), _EVALUATION_BATCH)
    return np.concatenate(
      [apply(params, images[start : start + _EVALUATION_BATCH]) for start in starts]
    )

  return logits


def train(
  config: configs.Config,
  run: Run,
  data_dir: pathlib.Path | None = None,
  checkpoint_seconds: float = 20.0,
) -> dict[str, Any]:
  """Trains one configuration, or goes on with it, and returns what came out.

  A finished run is not trained again.
  """
  if (result := run.finished()) is not None:
    return result
  data = load_data(config, data_dir)
  _, params = initial_params(config)
  steps = len(data.train.x) // config.batch_size * config.epochs
  one = trainer(config, steps)
  evaluate = evaluator(config, data.test)
  measured = training.networks_metrics(
    evaluate, lambda state: measure.zeros(state.sparse, configs.SPARSE), config.splits
  )
  state, record = training.fit(
    run,
    one.init(params, {}),
    epochs=config.epochs,
    batches=functools.partial(
      training.epoch_order,
      config.seed,
      size=len(data.train.x),
      batch_size=config.batch_size,
    ),
    step=one.compiled(Examples(*map(jnp.asarray, data.train)), {}),
    **measured,
    after_epoch=training.overwritten if config.overwrite else None,
    checkpoint_seconds=checkpoint_seconds,
  )
  unseen = load_unseen_font(config, data_dir)
  sparse = state.sparse
  said = predictor(config)(sparse, data.test.x)[None]
  warmth = temperature(said, data.test.y)
  result = results.result(
    "curves",
    run.config,
    record.seconds,
    name=config.name,
    data=described(config, data),
    final=final(
      initial_params(config)[1],
      state.params,
      sparse if config.splits else None,
      evaluate,
      unseen and evaluator(config, unseen),
    ),
    temperature=warmth,
    mistakes=mistakes(config, data.test, probabilities(said, warmth))
    if config.images
    else None,
    epochs=record.epochs,
  )
  return run.finish(result, sparse)


def described(config: configs.Config, data: Data) -> dict[str, Any]:
  """What a result says of its images."""
  return {
    "name": config.source,
    "classes": config.class_names,
    "train_images": len(data.train.x),
    "test_images": len(data.test.x),
    "train_per_class": np.bincount(data.train.y, minlength=2),
    "test_per_class": np.bincount(data.test.y, minlength=2),
    "tested_on": "validation" if config.validation_size else "test",
  }


def layer(params: Any) -> jax.Array:
  """The weights that are made sparse, (5408, 128)."""
  return params["dense"]["kernel"][...]


def final(
  initial: Any,
  params: Any,
  sparse: Any | None,
  evaluate: Callable[[Any], tuple[float, float]],
  evaluate_unseen: Callable[[Any], tuple[float, float]] | None = None,
) -> dict[str, Any]:
  """All that is reported of a trained network.

  Returns:
    What `measure.final` has, of the dense layer. "unseen_font": the "accuracy" in a
    font never seen. "w_below_normalized": as "w_below", of w divided by its l2 norm.
    "sign_changes": for each convolution the number and share of weights whose sign
    differs from the initial one. "histogram": counts.
  """
  networks, found = measure.final(params, sparse, evaluate, configs.SPARSE)
  w = np.asarray(layer(params))
  drawn = {"initial": initial, "w": params, "u": sparse}
  return {
    **found,
    "unseen_font": evaluate_unseen
    and {"accuracy": measure.of_each(networks, lambda p: evaluate_unseen(p)[1])},
    "w_below_normalized": measure.below(w / np.linalg.norm(w)),
    "sign_changes": {
      name: _sign_changes(initial[name]["kernel"][...], params[name]["kernel"][...])
      for name in ("conv1", "conv2", "conv3")
    },
    "histogram": {
      "log10_edges": _DECADE_BINS,
      **{
        name: _histogram(np.asarray(layer(network)))
        for name, network in drawn.items()
        if network is not None
      },
    },
  }


def temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
  """The t >= 1 for which `probabilities` fits images not trained on best.

  It minimises the cross entropy (Guo et al. 2017), and takes back the certainty that
  training to a loss of zero leaves.

  Args:
    logits: of one or more networks, (networks, n, 2).
    labels: (n,).
  """

  def loss(inverse: float) -> float:
    log_p = special.log_softmax(inverse * np.asarray(logits, np.float64), axis=-1)
    log_p = special.logsumexp(log_p, axis=0) - np.log(len(logits))
    return -float(np.mean(np.take_along_axis(log_p, labels[:, None], axis=-1)))

  best = optimize.minimize_scalar(loss, bounds=(1e-3, 1.0), method="bounded").x
  # The search approaches, but never tries, the end of the interval.
  return 1.0 if loss(1.0) <= loss(best) else float(1 / best)


def probabilities(logits: NDArray[np.floating], temperature: float) -> NDArray:
  """The average over networks of softmax(logits / temperature), (n, 2)."""
  scaled = np.asarray(logits, np.float64) / temperature
  return np.mean(special.softmax(scaled, axis=-1), axis=0)


def mistakes(
  config: configs.Config, examples: Examples, shares: NDArray[np.floating]
) -> list[dict[str, Any]]:
  """The images of which the wrong class is said, the most certain first.

  Args:
    config: whose images they are.
    examples: the images and labels.
    shares: the probabilities of the classes, (n, 2).

  Returns:
    Of at most 24 the file, the class, the class said and its probability, and the image
    itself, one bit a pixel, in base 64.
  """
  names: dict[bytes, str] = {}
  if config.images:
    for x, _, files in _pictures(config).values():
      names |= {image.tobytes(): file for image, file in zip(x, files, strict=True)}
  said = np.argmax(shares, axis=1)
  wrong = np.flatnonzero(said != examples.y)
  wrong = wrong[np.argsort(-shares[wrong, said[wrong]], kind="stable")][:_SHOWN]
  return [
    {
      "file": names.get(np.asarray(examples.x[i]).tobytes(), f"number {i}"),
      "class": config.class_names[examples.y[i]],
      "said": config.class_names[said[i]],
      "probability": float(shares[i, said[i]]),
      "image": base64.b64encode(np.packbits(examples.x[i]).tobytes()).decode(),
    }
    for i in wrong
  ]


def _sign_changes(before: jax.Array, after: jax.Array) -> dict[str, float]:
  count = int(rvsm_jax.sign_changes(before, after))
  return {"count": count, "share": count / before.size}


def _histogram(weights: NDArray[np.floating]) -> dict[str, Any]:
  """Exact zeros, and counts by magnitude; the smallest count in the first bin."""
  magnitudes = np.abs(weights[weights != 0], dtype=np.float64)
  logs = np.maximum(np.log10(magnitudes), _DECADE_BINS[0])
  counts = np.histogram(logs, _DECADE_BINS)[0]
  return {"zero": int(np.sum(weights == 0)), "counts": counts.tolist()}
