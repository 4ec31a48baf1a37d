"""Small sets of pictures: augmentation, cross-validation, and averages of networks.

With few pictures, one training and one number on the test pictures say little. Here
each training picture is held out once, in one of several folds; in each fold, networks
are trained from several seeds; what they say of a picture is averaged; and the share of
pictures that they get right has an interval.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import pathlib
import time
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from PIL import Image
import rich.progress
from scipy import ndimage, stats
from sklearn.model_selection import StratifiedKFold
import tyro

from experiments.core import backend, measure, results, training
from experiments.core.run import Run
from experiments.core.training import Examples
from experiments.curves import config as configs
from experiments.curves import train
from experiments.datasets import planar_shapes

# Pictures are bent by so many random offsets a side, with smooth ones between them: the
# waves are as long as the drawing, those of a tremor much shorter.
_KNOTS = 4
_CONFIDENCE = 0.95

# What the names of the files of networks begin with.
FILES = "network-"


@dataclasses.dataclass(frozen=True)
class Config(configs.Config):
  """One training, or several on a small set.

  Attributes:
    folds: hold out each training picture once, in one of so many parts; 0 for none.
    networks: train so many in each fold, from as many seeds, and average them.
    rotation: in training, turn images by up to so many degrees, at random.
    elastic: in training, bend images by about so many pixels.
    stroke: in training, make strokes wider or thinner by up to so many pixels.
  """

  folds: int = 0
  networks: int = 1
  rotation: float = 0.0
  elastic: float = 0.0
  stroke: float = 0.0

  def __post_init__(self) -> None:
    super().__post_init__()
    self._require("folds", "be 0, or 2 and more", lambda n: n == 0 or n > 1)
    self._require("networks", "be positive", lambda n: n > 0)
    for name in ("rotation", "elastic", "stroke"):
      self._require(name, "not be negative", lambda value: value >= 0)
    if self.several and self.overwrite:
      raise ValueError("overwrite is for one training, without folds and networks.")

  @property
  def name(self) -> str:
    """Names files; those who differ in it are different trainings."""
    values = ((field, getattr(self, field.name)) for field in _ADDED)
    parts = [f"{one.name}{value:g}" for one, value in values if value != one.default]
    return "-".join([super().name, *parts])

  @property
  def augments(self) -> bool:
    """Whether images are changed by more than a shift."""
    return bool(self.rotation or self.elastic or self.stroke)

  @property
  def several(self) -> bool:
    """Whether it asks for what this module has."""
    return bool(self.folds) or self.networks > 1 or self.augments

  @property
  def single(self) -> configs.Config:
    """The configuration of one training, without what this module has."""
    return configs.Config(
      **{field.name: getattr(self, field.name) for field in _SINGLE}
    )


_SINGLE = dataclasses.fields(configs.Config)
_ADDED = dataclasses.fields(Config)[len(_SINGLE) :]


class Member(NamedTuple):
  """A network to train.

  Attributes:
    fold: the number of its fold.
    seed: of weights, order of images and augmentation.
    kept: the numbers of the images that it is trained on.
    held: of those that it never sees.
  """

  fold: int
  seed: int
  kept: NDArray[np.integer]
  held: NDArray[np.integer]


def draw(
  folder: Annotated[pathlib.Path, tyro.conf.Positional],
  train_count: Annotated[int, tyro.conf.arg(name="train")] = 36,
  test_count: Annotated[int, tyro.conf.arg(name="test")] = 15,
) -> None:
  """Draws planar shapes as files, to try `--images` on.

  Args:
    folder: which is made, and must not be there.
    train_count: how many of each class to train on.
    test_count: how many of each class to test on.
  """
  folder.mkdir(parents=True)
  counts = {"train": train_count, "test": test_count}
  for split, (name, count) in enumerate(counts.items()):
    for index in range(2 * count):
      image, label = planar_shapes.example(split, index)
      file = folder / name / configs.Config().class_names[label] / f"{index:04}.png"
      file.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(255 - 255 * image[:, :, 0]).save(file)
  results.console.print(f"Drew {2 * sum(counts.values())} pictures below {folder}")


def distances(images: NDArray[np.uint8]) -> NDArray[np.float32]:
  """How far each pixel is from the edge of the ink, negative inside.

  The ink is where it is below zero. A level below another one has thinner strokes.
  """

  def of_one(ink: NDArray[np.bool_]) -> NDArray[np.floating]:
    outside, inside = map(ndimage.distance_transform_edt, (~ink, ink))
    return np.where(ink, 0.5 - inside, outside - 0.5)

  fields = np.stack([of_one(image[..., 0] > 0) for image in images])
  return fields[..., None].astype(np.float32)


def augmented(fields: jax.Array, key: jax.Array, config: Config) -> jax.Array:
  """Images (n, h, w, 1), turned, bent, and drawn with other pens, each by itself.

  Args:
    fields: `distances` of images, which bear being resampled: lines stay sharp.
    key: of what is random.
    config: how much. Strokes are made thinner only as far as they stay whole.
  """
  count, side = fields.shape[:2]
  of_angle, of_bend, of_pen = jax.random.split(key, 3)
  angle = jnp.radians(config.rotation) * _even(of_angle, (count,))
  turn = jnp.array(
    [[jnp.cos(angle), -jnp.sin(angle)], [jnp.sin(angle), jnp.cos(angle)]]
  )
  along = jnp.arange(side) - (side - 1) / 2
  grid = jnp.stack(jnp.meshgrid(along, along, indexing="ij"))
  bend = config.elastic * jax.random.normal(of_bend, (count, 2, _KNOTS, _KNOTS))
  bend = jax.image.resize(bend, (count, 2, side, side), "cubic")
  places = jnp.einsum("ijn,jhw->nihw", turn, grid) + bend + (side - 1) / 2

  def moved(field: jax.Array, places: jax.Array) -> jax.Array:
    # Beyond the image there is paper.
    return jax.scipy.ndimage.map_coordinates(field, [*places], 1, "constant", side)

  # The mean depth of a stroke is half a pixel, if it is as thin as can be.
  ink = fields < 0
  depth = -jnp.mean(fields, axis=(1, 2, 3), where=ink)
  level = jnp.maximum(config.stroke / 2 * _even(of_pen, (count,)), 0.5 - depth)
  lines = jax.vmap(moved)(fields[..., 0], places) < level[:, None, None]
  return lines[..., None].astype(jnp.uint8)


def _even(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  return jax.random.uniform(key, shape, minval=-1.0)


def members(config: Config, labels: NDArray[np.integer]) -> list[Member]:
  """The networks to train, by folds, whose classes are mixed as those of all images.

  Raises:
    ValueError: if a class has fewer images than there are folds.
  """
  everything = np.arange(len(labels))
  splits = [(everything, everything[:0])]
  if config.folds:
    fewest = int(np.bincount(labels, minlength=2).min())
    if fewest < config.folds:
      raise ValueError(f"folds={config.folds} is more than the {fewest} of a class.")
    folds = StratifiedKFold(config.folds, shuffle=True, random_state=config.seed)
    splits = list(folds.split(everything, labels))
  seeds = range(config.seed, config.seed + config.networks)
  return [Member(fold, seed, *one) for fold, one in enumerate(splits) for seed in seeds]


Fit = Callable[[Sequence[Member]], list[Any]]


def fitter(config: Config, data: Examples, kept: int) -> Fit:
  """A function that trains networks, and returns of each u, or w where there is no u.

  They are trained at the same time, mapped over by `jax.vmap`; but on CPU one after
  the other, since there convolutions with several kernels are slow.

  Args:
    config: how.
    data: all images.
    kept: how many each is trained on at least.
  """
  per_epoch = kept // config.batch_size
  if not per_epoch:
    raise ValueError(
      f"batch_size={config.batch_size} is more than the {kept} images of a fold to"
      " train on: lower it."
    )
  shape = (config.epochs, per_epoch, config.batch_size)
  one = train.trainer(config, config.epochs * per_epoch)
  x = data.x
  if config.augments:
    x, shift = distances(x), one.augment

    def augment(key: jax.Array, fields: jax.Array) -> jax.Array:
      first, second = jax.random.split(key)
      images = augmented(fields, first, config)
      return images if shift is None else shift(second, images)

    one = dataclasses.replace(one, augment=augment)
  examples = Examples(jnp.asarray(x), jnp.asarray(data.y))

  def start(member: Member) -> tuple[Any, ...]:
    of_seed = dataclasses.replace(config, seed=member.seed)
    order = training.reshuffled((member.seed, member.fold), member.kept, shape)
    return jnp.asarray(member.seed), train.initial_params(of_seed)[1], order

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
  def whole(seed: Any, params: Any, order: jax.Array, data: Examples) -> Any:
    seeded = dataclasses.replace(one, seed=seed)
    return seeded.whole(params, order, {}, data)[0].sparse

  @functools.partial(jax.jit, donate_argnums=1)
  def update(seed: Any, state: Any, batch: jax.Array, data: Examples) -> Any:
    return dataclasses.replace(one, seed=seed).update(state, batch, {}, data)

  def together(group: Sequence[Member]) -> list[Any]:
    starts = jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(start, group))
    trained = whole(*starts, examples)
    return [jax.tree.map(lambda a, i=i: a[i], trained) for i in range(len(group))]

  def in_turn(group: Sequence[Member]) -> list[Any]:
    trained = []
    for member in group:
      seed, params, order = start(member)
      state = one.init(params, {})
      for batch in order.reshape(-1, config.batch_size):
        state = update(seed, state, batch, examples)
      trained.append(state.sparse)
    return trained

  return in_turn if backend.on_cpu() else together


def file_name(member: Member) -> str:
  """What the files of a network are called."""
  return f"{FILES}fold{member.fold}-seed{member.seed}"


def train_all(
  config: Config, run: Run, data_dir: pathlib.Path | None = None
) -> dict[str, Any]:
  """Trains the networks of a configuration, or those that are left of them.

  Returns:
    The result. In "final", of the pictures "held_out", where there are folds, and those
    for "test": their "count"; the share "accuracy" that the average of the networks
    that did not see them gets right, and its "interval"; and the accuracies of single
    "networks", (folds, seeds). "zeros" of u, (folds, seeds). "mistakes" of the
    averages, see `train.mistakes`.
  """
  if (result := run.finished()) is not None:
    return result
  data = train.load_data(config, data_dir)
  chosen = members(config, data.train.y)
  fit = fitter(config, data.train, min(len(member.kept) for member in chosen))
  predict = train.predictor(config)
  everything = _everything(data)

  def trained(group: Sequence[Member]) -> list[dict[str, Any]]:
    clock = time.monotonic()
    found = []
    for member, params in zip(group, fit(group), strict=True):
      training.require_finite(params, file_name(member))
      run.keep(params, file_name(member))
      zeros = float(measure.zeros(params, configs.SPARSE))
      found.append({"zeros": zeros, "logits": predict(params, everything.x)})
    seconds = (time.monotonic() - clock) / len(group)
    return [one | {"seconds": seconds} for one in found]

  # What is lost to a kill is a group.
  size = 1 if backend.on_cpu() else len(chosen)
  groups = [chosen[start : start + size] for start in range(0, len(chosen), size)]
  found = []
  for group in rich.progress.track(
    groups, "Training", console=results.console, transient=True
  ):
    found += run.once(file_name(group[0]), functools.partial(trained, group))

  final, mistakes, warmth = _tested(config, data, chosen, found)
  zeros = np.reshape([one["zeros"] for one in found], (-1, config.networks))
  result = results.result(
    "curves",
    # Where the pictures are is of no interest elsewhere.
    run.config | {"images": config.images and pathlib.Path(config.images).name},
    sum(one["seconds"] for one in found),
    name=config.name,
    data=train.described(config, data),
    final=final | {"zeros": zeros},
    temperature=warmth,
    mistakes=mistakes,
  )
  results.write_json(run.result_file, result)
  return result


def _everything(data: training.Data) -> Examples:
  return Examples(*map(np.concatenate, zip(data.train, data.test, strict=True)))


def _tested(
  config: Config,
  data: training.Data,
  chosen: Sequence[Member],
  found: Sequence[dict[str, Any]],
) -> tuple[dict[str, Any], list[dict[str, Any]], float]:
  """By part, how good the averages are; the mistakes; and the temperature."""
  everything = _everything(data)
  logits = np.array([one["logits"] for one in found], np.float32)
  logits = logits.reshape(-1, config.networks, *logits.shape[1:])
  right = np.argmax(logits, axis=-1) == everything.y
  held = [member.held for member in chosen[:: config.networks]]
  tested = np.arange(len(data.train.y), len(everything.y))
  # Of each part the images, what the networks that did not see them say of them, and
  # how often each is right.
  parts: dict[str, tuple[NDArray, NDArray, Any]] = {}
  if config.folds:
    folds = list(zip(logits, right, held, strict=True))
    parts["held_out"] = (
      np.concatenate(held),
      np.concatenate([said[:, part] for said, _, part in folds], axis=1),
      [np.mean(found[:, part], axis=1) for _, found, part in folds],
    )
  parts["test"] = (
    tested,
    np.concatenate(logits)[:, tested],
    np.mean(right[..., tested], axis=-1),
  )
  # Where others are held out, nothing is fitted to the test pictures.
  index, said, _ = next(iter(parts.values()))
  warmth = train.temperature(said, everything.y[index])
  final: dict[str, Any] = {}
  mistakes: list[dict[str, Any]] = []
  for name, (index, said, networks) in parts.items():
    examples = Examples(everything.x[index], everything.y[index])
    shares = train.probabilities(said, warmth)
    correct = int(np.sum(np.argmax(shares, axis=1) == examples.y))
    final[name] = {
      "count": len(index),
      "accuracy": correct / len(index),
      "interval": interval(correct, len(index)),
      "networks": networks,
    }
    wrong = train.mistakes(config, examples, shares)
    mistakes += [{"part": name, **one} for one in wrong]
  return final, mistakes, warmth


def interval(right: int, count: int) -> tuple[float, float]:
  """Wilson's interval of a share of which `right` of `count` were found."""
  return tuple(
    stats.binomtest(right, count).proportion_ci(_CONFIDENCE, method="wilson")
  )
