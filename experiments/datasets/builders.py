"""TFDS builders of the project's own sets: Tensor features, array_record files.

Such builders need no TensorFlow. The keys of the examples fix TFDS's shuffling.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments import datasets
from experiments.datasets import alphabets, planar_shapes, tabular

Examples = Iterable[tuple[np.ndarray, int]]


class _Builder(tfds.core.GeneratorBasedBuilder):
  """What the sets share; `source` is the directory of the original files."""

  VERSION = tfds.core.Version("1.0.0")
  FEATURE = "image"

  def __init__(self, *, source: pathlib.Path | None = None, **options: Any):
    self._source = source
    super().__init__(**options)

  def _info(self) -> tfds.core.DatasetInfo:
    shape, dtype = self._kind()
    features = {
      self.FEATURE: tfds.features.Tensor(shape=shape, dtype=dtype),
      "label": tfds.features.Scalar(dtype=np.uint8),
    }
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(features),
      supervised_keys=(self.FEATURE, "label"),
      disable_shuffling=self.FEATURE == "features",
    )

  def _kind(self) -> tuple[tuple[int, ...], type]:
    """Shape and dtype of the inputs."""
    return (100, 100, 1), np.uint8

  def _examples(self, download: Callable) -> dict[str, Examples]:
    """The examples of each split."""
    del download
    sizes: Any = datasets.SETS[self.name].splits
    return {
      split: map(functools.partial(self._example, number), range(size))
      for number, (split, size) in enumerate(sizes.items())
    }

  def _example(self, split: int, index: int) -> tuple[np.ndarray, int]:
    """Image and label number `index` of split number `split`."""
    raise NotImplementedError

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    found = self._examples(dl_manager.download)
    return {split: self._generate_examples(part) for split, part in found.items()}

  def _generate_examples(
    self, examples: Examples
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, (x, label) in enumerate(examples):
      yield index, {self.FEATURE: x, "label": label}


class PlanarShapes(_Builder):
  """Outlines of triangles and quadrangles, drawn by a steady or a shaky hand."""

  def _example(self, split: int, index: int) -> tuple[np.ndarray, int]:
    return planar_shapes.example(split, index)


@dataclasses.dataclass(kw_only=True)
class AlphabetsConfig(tfds.core.BuilderConfig):
  """Adds the font of the shaky letters; None shakes the regular fonts."""

  shaky_font: pathlib.Path | None = None


class Alphabets(_Builder):
  """The 52 letters in several fonts, regular or shaky."""

  BUILDER_CONFIGS = [AlphabetsConfig(name="tremor")]  # noqa: RUF012 (TFDS's own way)

  def _example(self, split: int, index: int) -> tuple[np.ndarray, int]:
    return alphabets.example(split, index, self.builder_config.shaky_font)


class _TableBuilder(_Builder):
  """A set of `tabular`."""

  FEATURE = "features"

  def _kind(self) -> tuple[tuple[int, ...], type]:
    one = tabular.TABLES[self.name]
    return (one.features,), one.dtype

  def _examples(self, download: Callable) -> dict[str, Examples]:
    one = tabular.TABLES[self.name]
    parsed = one.parse(tabular.contents(one, self._source, download))
    return {split: zip(*arrays, strict=True) for split, arrays in parsed.items()}


class Digits(_TableBuilder):
  """1,797 handwritten digits of 8 x 8 pixels, as scikit-learn has them."""


class Pendigits(_TableBuilder):
  """Pen-Based Recognition of Handwritten Digits (UCI): 8 points of each stroke."""


class Sdd(_TableBuilder):
  """Sensorless Drive Diagnosis (UCI): 48 features of the currents of a motor."""


class SddSubset(_TableBuilder):
  """200 rows of each of the 11 classes of Sensorless Drive Diagnosis."""


def own(
  name: str,
  font: pathlib.Path | None,
  source: pathlib.Path | None,
  options: dict[str, Any],
) -> tfds.core.DatasetBuilder:
  """The builder of a set; that of alphabets with a font is named by its digest."""
  name, _, digest = name.partition("-")
  if font is not None:
    options["config"] = AlphabetsConfig(name=f"font-{digest}", shaky_font=font)
  kinds = (PlanarShapes, Alphabets, Digits, Pendigits, Sdd, SddSubset)
  kind = next(kind for kind in kinds if kind.name == name)
  return kind(source=source, **options)
