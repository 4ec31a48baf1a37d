"""The user's own pictures: from scans and photographs to what the network sees.

A picture is brought to one working size, its ink told from the paper around it, and
the drawing, cropped and scaled, put on 100 x 100 pixels:

  * light: every pixel is divided by the brightness of the paper there, a grey
    closing, which follows gradients and the edges of shadows;
  * ink: the local threshold of Sauvola & Pietikainen (2000), whose dynamic range is
    that of the picture, so that a pencil is found as a pen is;
  * dust: parts much smaller than the largest are dropped;
  * scale: a pixel is ink if half of its area is, or if the middle line of a stroke
    passes: thin strokes stay whole, about a pixel wide, and thick ones keep their
    width.
"""

import functools
import hashlib
import os
import pathlib
from typing import NamedTuple
import unicodedata
import warnings

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps
import rich.progress
from scipy import ndimage
from skimage import filters, morphology

from experiments.core.results import console

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")
MAX_PIXELS = 120_000_000
SIDE = 100
MARGIN = 6

# Part of the digest of a folder: to be raised whenever `prepare` gives other images.
_VERSION = 1
# The longer side while the ink is found; the lengths below are in its pixels.
_WORKING_SIDE = 1000
_SMOOTH = 0.7
_PAPER_REDUCED = 4
# Wider than any stroke: the brightest in such a window is paper.
_PAPER_WINDOW = 51
_INK_WINDOW = 151
_SAUVOLA_K = 0.2
_DARKEST = 0.001
_DUST = 0.02
# What is smaller than this, or less dark against its paper, is no drawing.
_LEAST_EXTENT = 40
_LEAST_CONTRAST = 0.14

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]


class Folder(NamedTuple):
  """A folder of pictures.

  Attributes:
    classes: names of the two classes, sorted; the first has the label 0.
    files: for "train" and "test", the pictures of each class, sorted.
    digest: SHA-256 of the names and contents of all pictures.
    skipped: what is hidden, or no picture by its suffix.
  """

  classes: tuple[str, str]
  files: dict[str, tuple[list[pathlib.Path], list[pathlib.Path]]]
  digest: str
  skipped: list[pathlib.Path]


def find(root: pathlib.Path) -> Folder:
  """Lists the pictures `root/train/<class>/*` and `root/test/<class>/*`."""
  skipped: list[pathlib.Path] = []
  found = {split: _classes(root / split, skipped) for split in ("train", "test")}
  for split, classes in found.items():
    if len(classes) != 2:
      listed = ", ".join(map(repr, classes)) or "none"
      raise ValueError(
        f"{root / split} must have two folders, one for each class; found"
        f" {len(classes)}: {listed}."
      )
    for name, files in classes.items():
      if not files:
        raise ValueError(
          f"{root / split / name} has no pictures ({', '.join(SUFFIXES)})."
        )
  if found["train"].keys() != found["test"].keys():
    train, test = (" and ".join(map(repr, classes)) for classes in found.values())
    raise ValueError(f"{root}: the classes are {train} in train, {test} in test.")
  first, second = found["train"]
  pictures = {split: (one[first], one[second]) for split, one in found.items()}
  return Folder((first, second), pictures, _digest(root, pictures), skipped)


def _classes(
  directory: pathlib.Path, skipped: list[pathlib.Path]
) -> dict[str, list[pathlib.Path]]:
  """From the names of classes to their pictures, both sorted."""
  if not directory.is_dir():
    raise ValueError(f"There is no folder {directory}.")
  classes = {}
  for one in sorted(directory.iterdir()):
    if one.name.startswith(".") or not one.is_dir():
      skipped.append(one)
      continue
    kept: list[pathlib.Path] = []
    for file in sorted(one.iterdir()):
      hidden = file.name.startswith(".") or not file.is_file()
      usable = not hidden and file.suffix.lower() in SUFFIXES
      (kept if usable else skipped).append(file)
    # The same letters may have different bytes on another file system.
    classes[unicodedata.normalize("NFC", one.name)] = kept
  return dict(sorted(classes.items()))


def _digest(
  root: pathlib.Path,
  files: dict[str, tuple[list[pathlib.Path], list[pathlib.Path]]],
) -> str:
  total = hashlib.sha256(str(_VERSION).encode())
  for file in (file for split in files.values() for one in split for file in one):
    total.update(hashlib.sha256(os.fsencode(file.relative_to(root))).digest())
    with file.open("rb") as content:
      total.update(hashlib.file_digest(content, "sha256").digest())
  return total.hexdigest()


class Pictures(NamedTuple):
  """Images (n, 100, 100, 1), labels (n,), and the files below the folder."""

  x: NDArray[np.uint8]
  y: NDArray[np.int32]
  files: list[str]


@functools.lru_cache(maxsize=1)
def load(root: pathlib.Path, digest: str) -> dict[str, Pictures]:
  """The pictures in "train" and "test", each in a fixed shuffled order."""
  folder = find(root)
  if folder.digest != digest:
    raise ValueError(f"The pictures in {root} have changed since they were listed.")
  out = {}
  for split, classes in folder.files.items():
    files = [file for one in classes for file in one]
    labels = np.repeat(np.arange(2, dtype=np.int32), [len(one) for one in classes])
    progress = rich.progress.track(
      files, f"Reading the pictures in {split}", console=console, transient=True
    )
    images = np.stack([prepare(file) for file in progress])
    order = np.random.default_rng(0).permutation(len(files))
    names = [files[i].relative_to(root).as_posix() for i in order]
    out[split] = Pictures(images[order], labels[order], names)
  return out


def prepare(path: pathlib.Path) -> NDArray[np.uint8]:
  """The drawing in a picture, (100, 100, 1) of zeros and, for ink, ones.

  Ink is what stands out from the paper around it, dark on light or light on dark. A
  picture of 100 x 100 pixels in two colours is taken as it is; the rarer is ink.
  """
  grey = _read(path)
  values = np.unique(grey)
  if grey.shape == (SIDE, SIDE) and len(values) == 2:
    first = grey == values[0]
    return (first if first.mean() <= 0.5 else ~first).astype(np.uint8)[:, :, None]
  ink = find_ink(grey)
  if not ink.any():
    raise ValueError(f"{path} is blank: nothing stands out from the paper as ink.")
  return _place(ink).astype(np.uint8)[:, :, None]


def _read(path: pathlib.Path) -> Grey:
  """The picture in grey, upright, on white, with at most 1000 pixels a side."""
  try:
    with warnings.catch_warnings():
      # Pillow warns below our limit, at which decoding takes about a gigabyte.
      warnings.simplefilter("ignore", Image.DecompressionBombWarning)
      with Image.open(path) as image:
        if image.width * image.height > MAX_PIXELS:
          raise Image.DecompressionBombError
        return _reduced(image)
  except Image.DecompressionBombError as error:
    raise ValueError(
      f"{path} has more than {MAX_PIXELS // 10**6} million pixels: scale it down."
    ) from error
  # The readers of broken files raise errors of many types.
  except Exception as error:
    raise ValueError(f"{path} cannot be read as a picture: {error}") from error


def _reduced(image: Image.Image) -> Grey:
  """An open picture, as `_read` returns it; reduced before anything is computed."""
  limit = (_WORKING_SIDE, _WORKING_SIDE)
  image.draft(None, (2 * _WORKING_SIDE, 2 * _WORKING_SIDE))
  image.load()
  orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
  if image.mode.startswith(("I", "F")):
    # 16 bits and more, of which a scanner may use a part.
    deep = np.asarray(image, np.float32)
    image = Image.fromarray(deep * (255 / max(deep.max(), 1e-6)))
  else:
    mode = "RGBA" if image.has_transparency_data else "L"
    # Of a large picture there is no need for a copy.
    image = image if image.mode == mode else image.convert(mode)
  image.thumbnail(limit)
  if image.mode == "RGBA":
    paper = Image.new("RGBA", image.size, "white")
    image = Image.alpha_composite(paper, image).convert("L")
  image.getexif()[ExifTags.Base.Orientation] = orientation
  return np.asarray(ImageOps.exif_transpose(image), np.float32)


def find_ink(grey: Grey) -> Mask:
  """Where the ink is, with a longer side of 1000 pixels; nowhere if there is none."""
  height, width = grey.shape
  scale = _WORKING_SIDE / max(height, width)
  size = (max(1, round(scale * width)), max(1, round(scale * height)))
  grey = np.asarray(Image.fromarray(grey).resize(size, Image.Resampling.BICUBIC))
  grey = ndimage.gaussian_filter(grey, _SMOOTH)
  # Light ink on dark paper: what differs from its surroundings is lighter.
  difference = grey - ndimage.uniform_filter(grey, _INK_WINDOW)
  if np.median(grey) < grey.max() / 2 and np.mean(difference**3) > 0:
    grey = grey.max() - grey
  grey = grey - min(0.0, grey.min())
  relative = np.minimum(grey / np.maximum(_paper(grey), 1e-6), 1)
  darkest = 1 - np.quantile(relative, _DARKEST)
  ink = relative < filters.threshold_sauvola(
    relative, _INK_WINDOW, _SAUVOLA_K, max(darkest / 2, 1e-6)
  )
  ink = _without_dust(ink, 1 - relative)
  if not ink.any() or 1 - np.median(relative[ink]) < _LEAST_CONTRAST:
    return np.zeros_like(ink)
  return ink


def _paper(grey: Grey) -> Grey:
  """How bright the paper is, under the ink as well."""
  size = grey.shape[::-1]
  small = np.asarray(Image.fromarray(grey).reduce(_PAPER_REDUCED))
  small = ndimage.median_filter(small, 3)
  # Without more picture all round, a shadow that ends at its edge is taken for ink.
  wide = np.pad(small, _PAPER_WINDOW, "edge")
  wide = ndimage.grey_closing(wide, size=_PAPER_WINDOW)
  inside = slice(_PAPER_WINDOW, -_PAPER_WINDOW)
  small = np.ascontiguousarray(wide[inside, inside])
  return np.asarray(Image.fromarray(small).resize(size, Image.Resampling.BILINEAR))


def _without_dust(ink: Mask, darkness: Grey) -> Mask:
  """The parts of the ink that are no dust; none if even the heaviest is.

  A high power of the darkness weighs what is faint less, such as the grain of paper.
  """
  parts, _ = ndimage.label(ink, np.ones((3, 3)))
  weights = np.bincount(parts.ravel(), darkness.ravel() ** 4)
  weights[0] = 0
  rows, columns = np.nonzero(parts == weights.argmax())
  if not weights.any() or max(np.ptp(rows), np.ptp(columns)) < _LEAST_EXTENT:
    return np.zeros_like(ink)
  return (weights >= _DUST * weights.max())[parts]


def _place(ink: Mask) -> Mask:
  """The ink cropped and scaled, in the middle of (100, 100) pixels with a margin."""
  rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
  ink = ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
  scale = (SIDE - 2 * MARGIN) / max(ink.shape)
  height, width = (max(1, round(scale * side)) for side in ink.shape)

  def area(mask: Mask) -> Grey:
    """The share of each pixel that the mask covers."""
    image = Image.fromarray(mask.astype(np.float32))
    return np.asarray(image.resize((width, height), Image.Resampling.BOX))

  placed = np.zeros((SIDE, SIDE), bool)
  top, left = (SIDE - height) // 2, (SIDE - width) // 2
  drawing = (area(ink) >= 0.5) | (area(morphology.skeletonize(ink)) > 0)
  placed[top : top + height, left : left + width] = drawing
  return placed
