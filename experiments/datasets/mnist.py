"""MNIST and Fashion-MNIST: their original files and how to read them."""

import gzip
import pathlib

import numpy as np

from experiments.datasets import _cache, _original
from experiments.datasets._cache import Arrays

_VERSION = "3.0.1"
_HEADERS = {"images": 16, "labels": 8}

# As TFDS registers them.
_CHECKSUMS = {
  "mnist": {
    "train": {
      "images": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
      "labels": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    },
    "test": {
      "images": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
      "labels": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    },
  },
  "fashion_mnist": {
    "train": {
      "images": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
      "labels": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    },
    "test": {
      "images": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
      "labels": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
    },
  },
}


def original(name: str, split: str, part: str) -> _original.Original:
  """The compressed file of the `"images"` or `"labels"` of a split."""
  prefix = {"train": "train", "test": "t10k"}[split]
  axes = {"images": 3, "labels": 1}[part]
  return _original.Original(
    f"{prefix}-{part}-idx{axes}-ubyte.gz", _CHECKSUMS[name][split][part]
  )


def _read(directory: pathlib.Path, name: str, split: str) -> Arrays:
  parts = {
    part: np.frombuffer(
      gzip.decompress(original(name, split, part).find(directory, name)),
      np.uint8,
      offset=offset,
    )
    for part, offset in _HEADERS.items()
  }
  return parts["images"].reshape(-1, 28, 28, 1), parts["labels"].astype(np.int32)


def _find(directory: pathlib.Path, name: str, split: str) -> Arrays | None:
  """What is in a directory, which may be that of prepared sets, too."""
  names = [original(name, split, part).name for part in _HEADERS]
  folders = (directory, directory / name)
  if any((folder / file).exists() for folder in folders for file in names):
    return _read(directory, name, split)
  return None


SETS = tuple(
  _cache.DataSet(
    name,
    _VERSION,
    {"train": 60_000, "test": 10_000},
    _cache.official(name, _VERSION),
    originals=_find,
    files=tuple(
      original(name, split, part).name
      for split in ("train", "test")
      for part in _HEADERS
    ),
  )
  for name in _CHECKSUMS
)

TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
