"""DIGITS, PENDIGITS and Sensorless Drive Diagnosis, and how to read their files."""

from collections.abc import Callable, Mapping
import dataclasses
import io
import os
import pathlib

import numpy as np
from numpy.typing import NDArray

from experiments.datasets import _original
from experiments.datasets._cache import Arrays, DataSet

_TEST_SHARE = 5


@dataclasses.dataclass(frozen=True)
class Table:
  """A set of examples with numbers as features.

  Attributes:
    name: what `load` calls it.
    splits: number of examples of each split.
    features: how many an example has.
    dtype: theirs.
    parse: from the contents of the files, by name, to the examples of each split.
    files: the original ones.
  """

  name: str
  splits: dict[str, int]
  features: int
  dtype: type
  parse: Callable[[Mapping[str, bytes]], dict[str, Arrays]]
  files: tuple[_original.Original, ...] = ()


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
    Table("digits", {"train": 1438, "test": 359}, 64, np.uint8, _digits),
    Table(
      "pendigits",
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


SETS = tuple(
  DataSet(one.name, one.splits, feature="features") for one in TABLES.values()
)

NOTES = {
  "digits": "DIGITS as scikit-learn has it, a random fifth for testing",
  "pendigits": "PENDIGITS as published",
  "sdd": "all 58,509 rows of SDD, a random fifth for testing",
  "sdd_subset": "a subset of SDD, 200 rows of each class, of which a random fifth is"
  " for testing: not comparable with the paper's",
}


def contents(
  table: Table,
  source: pathlib.Path | None,
  download: Callable[[str], str | os.PathLike[str]],
) -> dict[str, bytes]:
  """The contents of the original files of a set, by name."""
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
