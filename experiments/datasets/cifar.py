"""CIFAR-10: the files of its binary version and how to read them.

The binary version is `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`;
a record is one byte of label and 3 x 32 x 32 bytes of pixels, channel first.
"""

import pathlib

import numpy as np
from numpy.typing import NDArray

from experiments.datasets import _original
from experiments.datasets._cache import Arrays, DataSet

FILES = {
  "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
  "test": ("test_batch.bin",),
}
RECORDS = 10_000

_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32

# Git's blob ids of `test_batch.bin`, upstream and in a copy in which twenty images
# went through JPEG.
_EXACT_TEST = "e3f3b4653f18f27ada1558cabc3352a3ed1b25cc"
_INEXACT_TEST = "658497482d5de6e3d41281e4fd39965887ff7c6f"


def test_set_note(images: NDArray[np.uint8], labels: NDArray[np.int32]) -> str:
  """Whether these are upstream's test images, by the checksum of their binary file."""
  pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
  content = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1).tobytes()
  blob = _original.git_blob(content)
  notes = {
    _EXACT_TEST: "the upstream test images",
    _INEXACT_TEST: "a copy of the test images in which 20 of 10,000 (19 ships, 1"
    " horse) went through JPEG, which can change an accuracy by at most 0.2 points",
  }
  return notes.get(blob, f"test images with the git blob id {blob}")


def _read(folder: pathlib.Path, split: str) -> Arrays:
  names = FILES[split]
  expected = RECORDS * _RECORD_BYTES
  missing = [name for name in names if not (folder / name).is_file()]
  if missing:
    raise FileNotFoundError(
      f"CIFAR-10: {folder} lacks {', '.join(missing)} (of {expected:,} bytes each)."
    )
  parts = []
  for name in names:
    content = np.fromfile(folder / name, np.uint8)
    if content.size != expected:
      raise ValueError(
        f"CIFAR-10: {folder / name} has {content.size:,} bytes instead of"
        f" {expected:,}: it is truncated, or another file."
      )
    parts.append(content.reshape(RECORDS, _RECORD_BYTES))
    if parts[-1][:, 0].max() > 9:
      raise ValueError(
        f"CIFAR-10: {folder / name} has a label of {parts[-1][:, 0].max()}, not 0 to"
        " 9: it is damaged, or another file."
      )
  records = np.concatenate(parts)
  images = records[:, 1:].reshape(-1, *_SHAPE).transpose(0, 2, 3, 1)
  return np.ascontiguousarray(images), records[:, 0].astype(np.int32)


SET = DataSet(
  "cifar10",
  {split: RECORDS * len(names) for split, names in FILES.items()},
  "3.0.2",
  read=_read,
  files=tuple(name for names in FILES.values() for name in names),
  folder="cifar-10-batches-bin",
)
