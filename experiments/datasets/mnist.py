"""MNIST and Fashion-MNIST: from their original files, cached arrays, or by TFDS."""

import gzip
import os
import pathlib

import numpy as np
from numpy.typing import NDArray

from experiments import datasets
from experiments.datasets import _original

Arrays = tuple[NDArray[np.uint8], NDArray[np.int32]]

SIZES = {"train": 60_000, "test": 10_000}

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


def load(
  name: str,
  split: str,
  data_dir: str | os.PathLike[str] | None = None,
  source: pathlib.Path | None = None,
) -> Arrays:
  """Returns the images and labels of one split.

  Args:
    name: `"mnist"` or `"fashion_mnist"`.
    split: `"train"` (60,000 images) or `"test"` (10,000).
    data_dir: where prepared sets are kept, see `datasets.load`.
    source: a directory with the four original files, or with a folder of them
      called `name`. Without it they come from TFDS, which needs TensorFlow and the
      internet, once.

  Returns:
    Images, (n, 28, 28, 1) uint8, and labels, (n,) int32.

  Raises:
    ValueError: for an unknown set or split, or a file that is not the original.
    FileNotFoundError: if there are no data.
  """
  if name not in _CHECKSUMS:
    raise ValueError(f"no data set {name!r}; there are {', '.join(_CHECKSUMS)}")
  if split not in SIZES:
    raise ValueError(f"{name} has no split {split!r}, only {', '.join(SIZES)}")
  if source is not None:
    parts = {
      part: np.frombuffer(
        gzip.decompress(original(name, split, part).find(source, name)),
        np.uint8,
        offset=offset,
      )
      for part, offset in _HEADERS.items()
    }
    return parts["images"].reshape(-1, 28, 28, 1), parts["labels"].astype(np.int32)
  cache = datasets.cache_root(data_dir) / f"{name}-{_VERSION}-{split}.npz"
  if not cache.exists():
    _prepare(name, split, cache)
  return datasets._read(cache, SIZES[split])


def _prepare(name: str, split: str, cache: pathlib.Path) -> None:
  try:
    import tensorflow_datasets as tfds

    datasets.cache_split(
      lambda: tfds.builder(
        f"{name}:{_VERSION}", data_dir=cache.parent / "tfds", file_format="array_record"
      ),
      split,
      cache,
      "image",
    )
  except (ImportError, OSError, AssertionError) as error:
    names = ", ".join(original(name, split, part).name for part in _HEADERS)
    raise FileNotFoundError(
      f"{name}: there is no {cache}, and TFDS could not prepare it"
      f" ({type(error).__name__}: {error}). Pass a directory that has {names}, or pip"
      " install 'rvsm_jax[experiments,prepare]' on a machine with internet."
    ) from error
