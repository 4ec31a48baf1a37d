"""CIFAR-10: from cached arrays, from the files of its binary version, or by TFDS.

The binary version is `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`;
a record is one byte of label and 3 x 32 x 32 bytes of pixels, channel first.
"""

import hashlib
import logging
import os
import pathlib

import numpy as np
from numpy.typing import NDArray

from experiments import datasets

FILES = {
  "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
  "test": ("test_batch.bin",),
}
RECORDS = 10_000

_VERSION = "3.0.2"
_SHAPE = (3, 32, 32)
_RECORD_BYTES = 1 + 3 * 32 * 32

# Git's blob ids of `test_batch.bin`, upstream and in a copy in which twenty images
# went through JPEG.
_EXACT_TEST = "e3f3b4653f18f27ada1558cabc3352a3ed1b25cc"
_INEXACT_TEST = "658497482d5de6e3d41281e4fd39965887ff7c6f"

_log = logging.getLogger(__name__)

Arrays = tuple[NDArray[np.uint8], NDArray[np.int32]]


def load(split: str, data_dir: str | os.PathLike[str] | None = None) -> Arrays:
  """Returns the images and labels of one split.

  Looked for in this order: `cifar10-3.0.2-{split}.npz` in `data_dir`; the binary
  version's files there or in its folder `cifar-10-batches-bin`; TFDS's `cifar10`
  below `data_dir/tfds`, which is prepared if necessary (this needs TensorFlow and
  the internet, once) and then cached as the first.

  Args:
    split: `"train"` (50,000 images) or `"test"` (10,000).
    data_dir: by default the environment variable `RVSM_DATA_DIR`, or else
      `~/.cache/rvsm_jax`.

  Returns:
    Images, (n, 32, 32, 3) uint8, and labels, (n,) int32.

  Raises:
    FileNotFoundError: if there are no data, or some of the binary files are missing.
    ValueError: for an unknown split, or a damaged file.
  """
  if split not in FILES:
    raise ValueError(f"CIFAR-10 has no split {split!r}, only {', '.join(FILES)}.")
  if data_dir is None:
    data_dir = os.environ.get("RVSM_DATA_DIR", "~/.cache/rvsm_jax")
  root = pathlib.Path(data_dir).expanduser()
  cache = root / f"cifar10-{_VERSION}-{split}.npz"
  if not cache.exists():
    for folder in (root, root / "cifar-10-batches-bin"):
      if any((folder / name).exists() for names in FILES.values() for name in names):
        return _read_binary(folder, FILES[split])
    _prepare(split, cache)
  return datasets._read(cache, RECORDS * len(FILES[split]))


def test_set_note(images: NDArray[np.uint8], labels: NDArray[np.int32]) -> str:
  """Whether these are upstream's test images, by the checksum of their binary file."""
  pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
  content = np.concatenate([labels[:, None].astype(np.uint8), pixels], 1).tobytes()
  blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
  notes = {
    _EXACT_TEST: "the upstream test images",
    _INEXACT_TEST: "a copy of the test images in which 20 of 10,000 (19 ships, 1"
    " horse) went through JPEG, which can change an accuracy by at most 0.2 points",
  }
  return notes.get(blob, f"test images with the git blob id {blob}")


def _read_binary(folder: pathlib.Path, names: tuple[str, ...]) -> Arrays:
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


def _prepare(split: str, cache: pathlib.Path) -> None:
  """Prepares CIFAR-10 with TFDS, and caches the arrays of one split."""
  try:
    import tensorflow_datasets as tfds

    builder = tfds.builder(
      f"cifar10:{_VERSION}", data_dir=cache.parent / "tfds", file_format="array_record"
    )
    if not builder.is_prepared():
      _log.warning("CIFAR-10: nothing in %s; TFDS downloads it", cache.parent)
    builder.download_and_prepare()
    source = builder.as_data_source(split=split)
  except (ImportError, OSError, AssertionError) as error:
    names = ", ".join(name for names in FILES.values() for name in names)
    raise FileNotFoundError(
      f"CIFAR-10: there is neither {cache}, nor in {cache.parent} any of {names}"
      f" ({RECORDS * _RECORD_BYTES:,} bytes each), and TFDS could not prepare it"
      f" ({type(error).__name__}: {error}). Pass a data directory that has one of"
      " them, or pip install 'rvsm_jax[experiments,prepare]' on a machine with"
      " internet."
    ) from error
  examples = [source[i] for i in range(len(source))]
  partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
  with partial.open("wb") as file:
    np.savez_compressed(
      file,
      images=np.stack([example["image"] for example in examples]),
      labels=np.array([example["label"] for example in examples], np.int32),
    )
  partial.replace(cache)
