"""All data sets, prepared through TFDS; `load` is the whole interface.

Its own sets (planar shapes, alphabets) and the tables (DIGITS, PENDIGITS, SDD) need no
TensorFlow. The official image sets need it once, or their original files. What has been
prepared is cached as arrays; afterwards the cache alone is enough, also on a machine
that has neither TFDS nor the fonts.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from experiments.datasets import (
  alphabets,
  cifar,
  mnist,
  planar_shapes,
  tabular,
  text,
)
from experiments.datasets._cache import Arrays, DataSet

PLANAR_SHAPES = DataSet("planar_shapes", {"train": 5000, "test": 1000})
ALPHABETS = DataSet(
  "alphabets", {"train": 5000, "test": 1000, "test_unseen_font": 1000}
)
_ALL: tuple[DataSet | text.TextSet, ...] = (
  *(PLANAR_SHAPES, ALPHABETS, *tabular.SETS, *mnist.SETS, cifar.SET),
  text.SET,
)
SETS = {one.name: one for one in _ALL}


def load(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  source: pathlib.Path | None = None,
  *,
  shaky_font: str | os.PathLike[str] | None = None,
) -> Arrays:
  """Returns the inputs and labels of one split, preparing the set if necessary.

  Args:
    name: one of `SETS`: planar_shapes, alphabets; digits, which comes with
      scikit-learn, pendigits, sdd, and sdd_subset, 200 rows of each of its classes;
      mnist, fashion_mnist, cifar10; text, which comes with SciPy.
    split: `"train"`, `"test"`, or, for alphabets, `"test_unseen_font"`. Of digits and
      sdd, which were published without a split, a random fifth is for testing.
    data_dir: where prepared sets are kept; by default the environment variable
      `RVSM_DATA_DIR`, or else `~/.cache/rvsm_jax`. The original files of CIFAR-10,
      its binary version, are found there, too.
    source: a directory with the original files, plain or compressed, or with a folder
      of them for each set. Without it, tables are downloaded from UCI, and image sets
      by TFDS, which needs TensorFlow and the internet, once.
    shaky_font: for alphabets, a font file for the shaky letters, instead of
      letters of the regular fonts with a tremor.

  Returns:
    Inputs and labels, (n,) int32. Of the project's own images (n, 100, 100, 1) uint8,
    0 for paper and 1 for ink, and the label 0 for a steady, 1 for a shaky hand, in a
    fixed shuffled order; of others, in their original order, images (n, h, w, c) uint8
    or features (n, k). Of text, pieces of characters (n, 128) uint8, and for
    each the next one, (n, 128) int32.

  Raises:
    ValueError: for an unknown set or split, a font where none is used, a damaged
      cache, or a file that is not the original.
    FileNotFoundError: if there is no such font, or there are no data.
    ImportError: if the set must be prepared and TFDS is not installed.
  """
  if name not in SETS:
    raise ValueError(f"no data set {name!r}; there are {', '.join(SETS)}")
  chosen: Any = SETS[name]
  if shaky_font is not None:
    chosen = _with_font(chosen, pathlib.Path(shaky_font).expanduser())
  data_dir = data_dir or os.environ.get("RVSM_DATA_DIR", "~/.cache/rvsm_jax")
  return chosen.load(split, pathlib.Path(data_dir).expanduser(), source)


def _with_font(chosen: DataSet, font: pathlib.Path) -> DataSet:
  """Alphabets whose cache is named by the font's contents: a changed one is another."""
  if chosen.name != ALPHABETS.name:
    raise ValueError(f"shaky_font is for alphabets, not for {chosen.name}")
  if not font.is_file():
    raise FileNotFoundError(f"shaky_font: there is no file {font}")
  digest = hashlib.sha256(font.read_bytes()).hexdigest()[:12]
  return dataclasses.replace(chosen, name=f"{chosen.name}-{digest}", font=font)


def samples(name: str, count: int) -> Arrays:
  """Test images of planar_shapes or alphabets, drawn anew, half of each class."""
  module: Any = {"planar_shapes": planar_shapes, "alphabets": alphabets}[name]
  split = list(SETS[name].splits).index("test")
  images, labels = zip(*(module.example(split, i) for i in range(count)), strict=True)
  return np.stack(images), np.array(labels, np.int32)


def note(name: str, x: Any, y: Any) -> str:
  """What is to be said of a set: which part of what was published it is."""
  if name == "cifar10":
    return cifar.test_set_note(x, y)
  if name == text.SET.name:
    return text.note()
  return tabular.NOTES.get(name) or f"{mnist.TITLES.get(name, name)} as published"
