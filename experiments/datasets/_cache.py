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
    version: changes whenever the examples do.
    splits: number of examples of each split.
    builder: from TFDS's data directory, and that of the original files if it was
      given, to the TFDS builder.
    feature: what that calls the inputs.
    originals: from a directory, its name, and a split to the arrays, read from the
      original files there; None if there are none. Only of sets whose builder is
      TFDS's own, which needs TensorFlow and the internet.
    files: the names of those files.
  """

  name: str
  version: str
  splits: dict[str, int]
  builder: Callable[[pathlib.Path, pathlib.Path | None], Any]
  feature: str = "image"
  originals: Callable[[pathlib.Path, str, str], Arrays | None] | None = None
  files: tuple[str, ...] = ()

  def load(self, split: str, root: pathlib.Path, source: pathlib.Path | None) -> Arrays:
    """One split; see `datasets.load`."""
    if split not in self.splits:
      raise ValueError(f"{self.name} has no split {split!r}, only {list(self.splits)}.")
    cache = root / f"{self.name}-{self.version}-{split}.npz"
    for folder in self._folders(root, source, cache):
      assert self.originals is not None
      arrays = self.originals(folder, self.name, split)
      if arrays is not None:
        return arrays
    if source is not None and self.originals:
      raise FileNotFoundError(
        f"{self.name}: {source} has none of {', '.join(self.files)}."
      )
    if not cache.exists():
      self._prepare(split, cache, source)
    return read(cache, self.splits[split])

  def _folders(
    self, root: pathlib.Path, source: pathlib.Path | None, cache: pathlib.Path
  ) -> list[pathlib.Path]:
    """Where original files are looked for."""
    if not self.originals or (source is None and cache.exists()):
      return []
    return [root if source is None else source]

  def _prepare(
    self, split: str, cache: pathlib.Path, source: pathlib.Path | None
  ) -> None:
    """Prepares the set with TFDS, and caches the arrays of one split."""
    try:
      import tensorflow_datasets  # noqa: F401, to tell whether it is there

      cache_split(
        lambda: self.builder(cache.parent / "tfds", source), split, cache, self.feature
      )
    except (ImportError, OSError, AssertionError) as error:
      if self.originals:
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


def root(data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
  """Where prepared sets are kept; see `datasets.load`."""
  if data_dir is None:
    data_dir = os.environ.get("RVSM_DATA_DIR", "~/.cache/rvsm_jax")
  return pathlib.Path(data_dir).expanduser()


def read(cache: pathlib.Path, size: int) -> Arrays:
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


def cache_split(
  make: Callable[[], Any], split: str, cache: pathlib.Path, feature: str
) -> None:
  """Prepares a set with TFDS, if necessary, and caches the arrays of one split.

  TFDS renames a finished set into place, and so does this function with the cache:
  whatever is interrupted leaves nothing that would be taken for a whole set.
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


def official(name: str, version: str) -> Callable[[pathlib.Path, Any], Any]:
  """The builder of one of TFDS's own sets."""

  def builder(directory: pathlib.Path, source: pathlib.Path | None) -> Any:
    del source
    import tensorflow_datasets as tfds

    return tfds.builder(
      f"{name}:{version}", data_dir=directory, file_format="array_record"
    )

  return builder
