"""TFDS builders of the project's own sets: Tensor features, array_record files.

Such builders need no TensorFlow. The keys of the examples fix TFDS's shuffling.
"""

import abc
from collections.abc import Iterator
import dataclasses
import pathlib
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from experiments.datasets import (
  ALPHABETS,
  PLANAR_SHAPES,
  alphabets,
  planar_shapes,
  tabular,
)
from experiments.datasets._cache import DataSet

_FORMAT = "array_record"


class _ImageSetBuilder(tfds.core.GeneratorBasedBuilder):
  """What both sets share: features, splits and numbering."""

  IMAGE_SET: DataSet

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          "image": tfds.features.Tensor(shape=(100, 100, 1), dtype=np.uint8),
          "label": tfds.features.Scalar(dtype=np.uint8),
        }
      ),
      supervised_keys=("image", "label"),
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    del dl_manager
    return {
      split: self._generate_examples(number, split)
      for number, split in enumerate(self.IMAGE_SET.splits)
    }

  def _generate_examples(
    self, number: int, split: str
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for index in range(self.IMAGE_SET.splits[split]):
      image, label = self._example(number, index)
      yield index, {"image": image, "label": label}

  @abc.abstractmethod
  def _example(self, split: int, index: int) -> tuple[np.ndarray, int]:
    """Returns image and label number `index` of split number `split`."""


class PlanarShapes(_ImageSetBuilder):
  """Outlines of triangles and quadrangles, drawn by a steady or a shaky hand."""

  IMAGE_SET = PLANAR_SHAPES
  VERSION = tfds.core.Version(PLANAR_SHAPES.version)

  def _example(self, split: int, index: int) -> tuple[np.ndarray, int]:
    return planar_shapes.example(split, index)


@dataclasses.dataclass(kw_only=True)
class AlphabetsConfig(tfds.core.BuilderConfig):
  """Adds the font of the shaky letters; None shakes the regular fonts."""

  shaky_font: pathlib.Path | None = None


class Alphabets(_ImageSetBuilder):
  """The 52 letters in several fonts, regular or shaky."""

  IMAGE_SET = ALPHABETS
  VERSION = tfds.core.Version(ALPHABETS.version)
  BUILDER_CONFIGS = [AlphabetsConfig(name="tremor")]  # noqa: RUF012 (TFDS's own way)

  def _example(self, split: int, index: int) -> tuple[np.ndarray, int]:
    return alphabets.example(split, index, self.builder_config.shaky_font)


def images(
  directory: pathlib.Path,
  *,
  name: str,
  shaky_font: pathlib.Path | None = None,
  font_name: str = "",
) -> tfds.core.DatasetBuilder:
  """Returns the builder of a set, in the format that needs no TensorFlow.

  Args:
    directory: TFDS's data directory.
    name: of the set.
    shaky_font: a font file for the shaky alphabets.
    font_name: what to call the variant with that font; changes with the font.
  """
  if name == PLANAR_SHAPES.name:
    return PlanarShapes(data_dir=directory, file_format=_FORMAT)
  config = None
  if shaky_font is not None:
    config = AlphabetsConfig(name=f"font-{font_name}", shaky_font=shaky_font)
  return Alphabets(data_dir=directory, file_format=_FORMAT, config=config)


class _TableBuilder(tfds.core.GeneratorBasedBuilder):
  """A set of `tabular`; `source` is the directory of the original files."""

  TABLE: tabular.Table

  def __init__(self, *, source: pathlib.Path | None = None, **options: Any):
    self._source = source
    super().__init__(**options)

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=tfds.features.FeaturesDict(
        {
          "features": tfds.features.Tensor(
            shape=(self.TABLE.features,), dtype=self.TABLE.dtype
          ),
          "label": tfds.features.Scalar(dtype=np.uint8),
        }
      ),
      supervised_keys=("features", "label"),
      disable_shuffling=True,
    )

  def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
    contents = tabular.contents(self.TABLE, self._source, dl_manager.download)
    return {
      split: self._generate_examples(*arrays)
      for split, arrays in self.TABLE.parse(contents).items()
    }

  def _generate_examples(
    self, x: np.ndarray, y: np.ndarray
  ) -> Iterator[tuple[int, dict[str, Any]]]:
    for index, (features, label) in enumerate(zip(x, y, strict=True)):
      yield index, {"features": features, "label": label}


class Digits(_TableBuilder):
  """1,797 handwritten digits of 8 x 8 pixels, as scikit-learn has them."""

  TABLE = tabular.TABLES["digits"]
  VERSION = tfds.core.Version("1.0.0")


class Pendigits(_TableBuilder):
  """Pen-Based Recognition of Handwritten Digits (UCI): 8 points of each stroke."""

  TABLE = tabular.TABLES["pendigits"]
  VERSION = tfds.core.Version("1.0.0")


class Sdd(_TableBuilder):
  """Sensorless Drive Diagnosis (UCI): 48 features of the currents of a motor."""

  TABLE = tabular.TABLES["sdd"]
  VERSION = tfds.core.Version("1.0.0")


class SddSubset(_TableBuilder):
  """200 rows of each of the 11 classes of Sensorless Drive Diagnosis."""

  TABLE = tabular.TABLES["sdd_subset"]
  VERSION = tfds.core.Version("1.0.0")


def table(
  one: tabular.Table, directory: pathlib.Path, source: pathlib.Path | None
) -> tfds.core.DatasetBuilder:
  """Returns the builder of a table, in the format that needs no TensorFlow.

  Args:
    one: which set.
    directory: TFDS's data directory.
    source: the directory of the original files; None downloads them.
  """
  kinds = {kind.TABLE.name: kind for kind in (Digits, Pendigits, Sdd, SddSubset)}
  return kinds[one.name](data_dir=directory, file_format=_FORMAT, source=source)
