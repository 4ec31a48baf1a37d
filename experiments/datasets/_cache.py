"""Data sets, and the arrays that are cached once TFDS has prepared them."""

from collections.abc import Callable
import dataclasses
import os
import pathlib
from typing import Any
import zipfile
import zlib

import numpy as np
from numpy.typing import NDArray

Arrays = tuple[NDArray, NDArray[np.int32]]


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A set of examples, and where they come from.

  Attributes:
    name: what `load` and TFDS call it.
    splits: number of examples of each split.
    version: changes whenever the examples do.
    feature: what the builder calls the inputs.
    font: of the shaky letters; its digest is part of the name then.
    read: from a directory and a split to the arrays, from the original files there.
      Only of sets whose builder is TFDS's own, which needs TensorFlow and the internet.
    files: the names of those files.
    folder: of a directory, in which they may be, too.
  """

  name: str
  splits: dict[str, int]
  version: str = "1.0.0"
  feature: str = "image"
  font: pathlib.Path | None = None
  read: Callable[[pathlib.Path, str], Arrays] | None = None
  files: tuple[str, ...] = ()
  folder: str = ""

  def load(self, split: str, root: pathlib.Path, source: pathlib.Path | None) -> Arrays:
    """One split; see `datasets.load`."""
    if split not in self.splits:
      raise ValueError(f"{self.name} has no split {split!r}, only {list(self.splits)}.")
    cache = root / f"{self.name}-{self.version}-{split}.npz"
    if self.read is not None and (source is not None or not cache.exists()):
      for folder in (source or root, (source or root) / self.folder):
        if any((folder / file).exists() for file in self.files):
          return self.read(folder, split)
      if source is not None:
        names = ", ".join(self.files)
        raise FileNotFoundError(f"{self.name}: {source} has none of {names}.")
    if not cache.exists():
      self._prepare(split, cache, source)
    return _read(cache, self.splits[split])

  def builder(self, directory: pathlib.Path, source: pathlib.Path | None) -> Any:
    """The TFDS builder, in the format that needs no TensorFlow."""
    import tensorflow_datasets as tfds

    options = {"data_dir": directory, "file_format": "array_record"}
    if self.read is not None:
      return tfds.builder(f"{self.name}:{self.version}", **options)
    from experiments.datasets import builders

    return builders.own(self.name, self.font, source, options)

  def _prepare(
    self, split: str, cache: pathlib.Path, source: pathlib.Path | None
  ) -> None:
    """Prepares the set with TFDS, if necessary, and caches the arrays of one split.

    TFDS renames a finished set into place, and so does this method with the cache:
    whatever is interrupted leaves nothing that would be taken for a whole set.
    """
    try:
      builder = self.builder(cache.parent / "tfds", source)
      try:
        builder.download_and_prepare()
      except FileExistsError:
        # Another process has finished the same set meanwhile.
        builder = self.builder(cache.parent / "tfds", source)
      found = builder.as_data_source(split=split)
      examples = [found[i] for i in range(len(found))]
    except (ImportError, OSError, AssertionError) as error:
      if self.read is not None:
        raise FileNotFoundError(
          f"{self.name}: there is no {cache}, and TFDS could not prepare it"
          f" ({type(error).__name__}: {error}). Pass a directory that has"
          f" {', '.join(self.files)}, or pip install 'rvsm_jax[experiments,prepare]' on"
          " a machine with internet."
        ) from error
      if not isinstance(error, ImportError):
        raise
      raise ImportError(
        f"{cache} does not exist, and preparing it needs {error.name}: pip install"
        " 'rvsm_jax[experiments]', or copy the file from a machine that has it"
      ) from error
    partial = cache.with_name(f"{cache.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
      np.savez_compressed(
        file,
        images=np.stack([example[self.feature] for example in examples]),
        labels=np.array([example["label"] for example in examples], np.int32),
      )
    partial.replace(cache)


def _read(cache: pathlib.Path, size: int) -> Arrays:
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
