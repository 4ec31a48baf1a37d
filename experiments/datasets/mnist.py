"""MNIST and Fashion-MNIST: their original files and how to read them."""

import functools
import gzip
import pathlib

import numpy as np

from experiments.datasets._cache import Arrays, DataSet
from experiments.datasets._original import Original

# Images and labels, with the bytes of their headers.
FILES = {
  "train": {"train-images-idx3-ubyte.gz": 16, "train-labels-idx1-ubyte.gz": 8},
  "test": {"t10k-images-idx3-ubyte.gz": 16, "t10k-labels-idx1-ubyte.gz": 8},
}
_NAMES = tuple(name for files in FILES.values() for name in files)

# As TFDS registers them, in the order of the files.
CHECKSUMS = {
  "mnist": [
    "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
  ],
  "fashion_mnist": [
    "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
    "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
    "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
    "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
  ],
}


def _read(name: str, directory: pathlib.Path, split: str) -> Arrays:
  checksums = dict(zip(_NAMES, CHECKSUMS[name], strict=True))
  images, labels = (
    np.frombuffer(
      gzip.decompress(Original(file, checksums[file]).find(directory, name)),
      np.uint8,
      offset=header,
    )
    for file, header in FILES[split].items()
  )
  return images.reshape(-1, 28, 28, 1), labels.astype(np.int32)


SETS = tuple(
  DataSet(
    name,
    {"train": 60_000, "test": 10_000},
    "3.0.1",
    read=functools.partial(_read, name),
    files=_NAMES,
    folder=name,
  )
  for name in CHECKSUMS
)

TITLES = {"mnist": "MNIST", "fashion_mnist": "Fashion-MNIST"}
