"""DIGITS, PENDIGITS and Sensorless Drive Diagnosis, prepared through TFDS.

`load` is the whole interface. It caches the arrays; the cache alone is enough later.
"""

from collections.abc import Callable, Mapping
import dataclasses
import io
import os
import pathlib

import numpy as np
from numpy.typing import NDArray

from experiments import datasets
from experiments.datasets import _original

Arrays = tuple[NDArray, NDArray[np.int32]]

_TEST_SHARE = 5


@dataclasses.dataclass(frozen=True)
class Table:
  """A set of examples with numbers as features.

  Attributes:
    name: what `load` calls it.
    title: what tables call it.
    splits: number of examples of each split.
    features: how many an example has.
    dtype: theirs.
    parse: from the contents of the files, by name, to the examples of each split.
    files: the original ones.
    version: changes whenever the arrays do.
  """

  name: str
  title: str
  splits: Mapping[str, int]
  features: int
  dtype: type
  parse: Callable[[Mapping[str, bytes]], dict[str, Arrays]]
  files: tuple[_original.Original, ...] = ()
  version: str = "1.0.0"


def hold_out(x: NDArray, y: NDArray) -> dict[str, Arrays]:
  """A fifth of the examples for testing, always the same, and the others.

  For sets that were published without a split.
  """
  order = np.random.default_rng(0).permutation(len(x))
  y = y.astype(np.int32)
  size = len(x) // _TEST_SHARE
  test, train = np.sort(order[:size]), np.sort(order[size:])
  return {"train": (x[train], y[train]), "test": (x[test], y[test])}


def _digits(_: Mapping[str, bytes]) -> dict[str, Arrays]:
  from sklearn.datasets import load_digits

  x, y = load_digits(return_X_y=True)
  return hold_out(x.astype(np.uint8), y)


def _pendigits(contents: Mapping[str, bytes]) -> dict[str, Arrays]:
  out = {}
  for split, content in zip(("train", "test"), contents.values(), strict=True):
    rows = np.loadtxt(io.BytesIO(content), np.uint8, delimiter=",")
    out[split] = rows[:, :-1], rows[:, -1].astype(np.int32)
  return out


def _sdd(contents: Mapping[str, bytes]) -> dict[str, Arrays]:
  (content,) = contents.values()
  rows = np.loadtxt(io.BytesIO(content))
  return hold_out(rows[:, :-1].astype(np.float32), rows[:, -1] - 1)


def _sdd_subset(contents: Mapping[str, bytes]) -> dict[str, Arrays]:
  x, y = (np.load(io.BytesIO(content)) for content in contents.values())
  return hold_out(x.astype(np.float32), y)


_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"

TABLES = {
  table.name: table
  for table in (
    Table("digits", "DIGITS", {"train": 1438, "test": 359}, 64, np.uint8, _digits),
    Table(
      "pendigits",
      "PENDIGITS",
      {"train": 7494, "test": 3498},
      16,
      np.uint8,
      _pendigits,
      (
        _original.Original(
          "pendigits.tra",
          "e2b9eb9f0d0467e2b64a4816a3420edf2b8043447576f4b84337aba44a9f97d3",
          f"{_UCI}/pendigits/pendigits.tra",
        ),
        _original.Original(
          "pendigits.tes",
          "8bd03229c5c5291fefe43e45465dd948d2645bf23328b9d993e0b777666b2015",
          f"{_UCI}/pendigits/pendigits.tes",
        ),
      ),
    ),
    Table(
      "sdd",
      "SDD",
      {"train": 46808, "test": 11701},
      48,
      np.float32,
      _sdd,
      (
        _original.Original(
          "Sensorless_drive_diagnosis.txt",
          # Of this file no SHA-256 is known.
          "9101c388dfa5ccd3bfbec96c00efe2b1d7c36f32",
          f"{_UCI}/00325/Sensorless_drive_diagnosis.txt",
          _original.git_blob,
        ),
      ),
    ),
    Table(
      "sdd_subset",
      "SDD, 2,200 of its 58,509 rows",
      {"train": 1760, "test": 440},
      48,
      np.float32,
      _sdd_subset,
      (
        _original.Original(
          "X.npy", "da03c6cfbf9572495321c483d9d01ed8e86d7abcc67d2f13304fb3c228ecb273"
        ),
        _original.Original(
          "Y.npy", "272a4f343621a1f8843cfdb5323cd01ad5dbb608e9c60d1a5907190cd16dd286"
        ),
      ),
    ),
  )
}


def load(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  source: pathlib.Path | None = None,
) -> Arrays:
  """Returns the features and labels of one split, preparing the set if necessary.

  Args:
    name: `"digits"`, which comes with scikit-learn; `"pendigits"`; `"sdd"`;
      `"sdd_subset"`, 200 rows of each of the 11 classes.
    split: `"train"` or `"test"`. PENDIGITS was published with this split; of the
      others a random fifth is for testing.
    data_dir: where prepared sets are kept, see `datasets.load`.
    source: a directory with the original files, plain or compressed, or with
      folders of them; without it, they are downloaded from UCI.

  Returns:
    Features, (n, k), uint8 or, of SDD, float32, and labels, (n,) int32, in their
    original order.

  Raises:
    ValueError: for an unknown set or split, or a file that is not the original.
    FileNotFoundError: if an original file is missing.
    ImportError: if the set must be prepared and TFDS is not installed.
  """
  if name not in TABLES:
    raise ValueError(f"no data set {name!r}; there are {', '.join(TABLES)}")
  table = TABLES[name]
  if split not in table.splits:
    raise ValueError(f"{name} has no split {split!r}, only {', '.join(table.splits)}")
  cache = datasets.cache_root(data_dir) / f"{name}-{table.version}-{split}.npz"
  if not cache.exists():
    with datasets.preparing(cache):
      from experiments.datasets import builders

      datasets.cache_split(
        lambda: builders.table_builder(table, cache.parent / "tfds", source),
        split,
        cache,
        "features",
      )
  return datasets._read(cache, table.splits[split])


def contents(
  table: Table,
  source: pathlib.Path | None,
  download: Callable[[str], str | os.PathLike[str]],
) -> dict[str, bytes]:
  """The contents of the original files of a set, by name.

  Args:
    table: the set.
    source: see `load`.
    download: from a URL to the path of the file.

  Raises:
    FileNotFoundError: if a file is missing, and cannot be downloaded.
    ValueError: if it is another one.
  """
  out = {}
  for file in table.files:
    if source is not None:
      out[file.name] = file.find(source, table.name)
    elif file.url is not None:
      out[file.name] = file.read(pathlib.Path(download(file.url)))
    else:
      raise FileNotFoundError(
        f"{table.name} is not published: pass the directory that has {file.name}, with"
        f" the SHA-256 {file.checksum}."
      )
  return out
