"""The project's own image sets: planar shapes and alphabets.

`load` is the whole interface. On first use it prepares a set through TFDS (no
TensorFlow) and caches the arrays; afterwards the cache alone is enough, also on a
machine that has neither TFDS nor the fonts.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import hashlib
import os
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np
from numpy.typing import NDArray


@dataclasses.dataclass(frozen=True)
class ImageSet:
  """Name, version and sizes of a set of (100, 100, 1) images of zeros and ones.

  Attributes:
    name: what `load` and TFDS call it.
    version: changes whenever the images do.
    splits: number of images of each split, half of them shaky.
  """

  name: str
  version: str
  splits: dict[str, int]


PLANAR_SHAPES = ImageSet("planar_shapes", "1.0.0", {"train": 5000, "test": 1000})
ALPHABETS = ImageSet(
  "alphabets", "1.0.0", {"train": 5000, "test": 1000, "test_unseen_font": 1000}
)


def load(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  *,
  shaky_font: str | os.PathLike[str] | None = None,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
  """Returns the images and labels of one split, preparing the set if necessary.

  Args:
    name: `"planar_shapes"` or `"alphabets"`.
    split: `"train"`, `"test"`, or, for alphabets, `"test_unseen_font"`.
    data_dir: where prepared sets are kept; by default the environment variable
      `RVSM_DATA_DIR`, or else `~/.cache/rvsm_jax`.
    shaky_font: for alphabets, a font file for the shaky letters, instead of
      letters of the regular fonts with a tremor.

  Returns:
    Images, (n, 100, 100, 1) uint8, 0 for paper and 1 for ink, and labels, (n,)
    int32, 0 for a steady and 1 for a shaky hand, in a fixed shuffled order.

  Raises:
    ValueError: for an unknown set or split, a font where none is used, or a
      damaged cache.
    FileNotFoundError: if there is no such font.
    ImportError: if the set must be prepared and TFDS is not installed.
  """
  sets = {one.name: one for one in (PLANAR_SHAPES, ALPHABETS)}
  if name not in sets:
    raise ValueError(f"no data set {name!r}; there are {', '.join(sets)}")
  chosen = sets[name]
  if split not in chosen.splits:
    raise ValueError(f"{name} has no split {split!r}, only {', '.join(chosen.splits)}")
  if shaky_font is not None and chosen is not ALPHABETS:
    raise ValueError(f"shaky_font is for alphabets, not for {name}")
  root = cache_root(data_dir)
  font = None if shaky_font is None else pathlib.Path(shaky_font).expanduser()
  variant = "" if font is None else f"-{_digest(font)}"
  cache = root / f"{name}{variant}-{chosen.version}-{split}.npz"
  if not cache.exists():
    _prepare(chosen, split, cache, font, variant.lstrip("-"))
  return _read(cache, chosen.splits[split])


def cache_root(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
  """Where prepared sets are kept; see `load`."""
  if data_dir is None:
    data_dir = os.environ.get("RVSM_DATA_DIR", "~/.cache/rvsm_jax")
  return pathlib.Path(data_dir).expanduser()


def _digest(font: pathlib.Path) -> str:
  """Names a font by its contents, so that a changed file is prepared anew."""
  if not font.is_file():
    raise FileNotFoundError(f"shaky_font: there is no file {font}")
  return hashlib.sha256(font.read_bytes()).hexdigest()[:12]


def _read(
  cache: pathlib.Path, size: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
  """Reads a cache; the archive's own checksums find any damage."""
  try:
    with np.load(cache, allow_pickle=False) as arrays:
      images, labels = arrays["images"], arrays["labels"]
    if len(images) != size or len(labels) != size:
      raise ValueError(f"{len(images)} images instead of {size}")
  except (ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    raise ValueError(
      f"{cache} is damaged ({error}): delete it, and it will be prepared anew"
    ) from error
  return images, labels


def _prepare(
  chosen: ImageSet,
  split: str,
  cache: pathlib.Path,
  font: pathlib.Path | None,
  variant: str,
) -> None:
  """Prepares a set with TFDS and caches the arrays of one split."""
  with preparing(cache):
    from experiments.datasets import builders
  arguments = (chosen, cache.parent / "tfds", font, variant)
  cache_split(lambda: builders.builder(*arguments), split, cache, "image")


@contextlib.contextmanager
def preparing(cache: pathlib.Path) -> Iterator[None]:
  """Says what to install where preparing a set fails to import something."""
  try:
    yield
  except ImportError as error:
    raise ImportError(
      f"{cache} does not exist, and preparing it needs {error.name}: pip install"
      " 'rvsm_jax[experiments]', or copy the file from a machine that has it"
    ) from error


def cache_split(
  make: Callable[[], Any], split: str, cache: pathlib.Path, feature: str
) -> None:
  """Prepares a set with TFDS, if necessary, and caches the arrays of one split.

  TFDS renames a finished set into place, and so does this function with the cache:
  whatever is interrupted leaves nothing that would be taken for a whole set.

  Args:
    make: returns a new builder of the set.
    split: which.
    cache: the file to write, which has `images` and `labels`.
    feature: what the builder calls the images.
  """
  builder = make()
  try:
    builder.download_and_prepare()
  except FileExistsError:
    # Another process has finished the same set meanwhile.
    builder = make()
  source = builder.as_data_source(split=split)
  examples = [source[i] for i in range(len(source))]
  partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
  with partial.open("wb") as file:
    np.savez_compressed(
      file,
      images=np.stack([example[feature] for example in examples]),
      labels=np.array([example["label"] for example in examples], np.int32),
    )
  partial.replace(cache)
