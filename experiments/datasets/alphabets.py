"""Alphabets of Xue & Xin (2019), section 3: regular against shaky letters.

The 52 letters in several fonts, turned, sheared and elastically distorted on a
100 x 100 binary image. Label 0: as the font has them. Label 1: written with
Parkinsonian tremor of 0.5 to 0.9 mm mean amplitude (`_drawing` states frequency,
scale and writing speed). The authors' shaky font may not be redistributed; whoever
has it, or any other, can have the shaky letters in that font instead.

The tremor moves the pen, so both edges of a stroke move together: a point of the
outline is displaced by the tremor at the time when the pen passes, which is its
distance from the start of the letter within the strokes.

Only the tremor tells the classes apart. Both have the same fonts, and a shaky
letter is stretched to the bounding box, and inked with the number of pixels, that
its regular twin would have had after the same distortions.

The distortion is that of Simard et al. (2003), a smoothed random field, with
scipy's `gaussian_filter` and `map_coordinates`: scipy is maintained, JAX needs it
anyway, and unlike elasticdeform, scikit-image or Keras it adds no dependency. The
field moves the outline's points, so that nothing is resampled before the threshold.

Outlines come from matplotlib, filled shapes from Pillow, fields from scipy: the
bytes are the same for the same versions of these, not across all of them; `load`
caches the arrays.
"""

import functools
import math
import os
import pathlib
import string
from typing import NamedTuple

import matplotlib
from matplotlib.font_manager import FontProperties, get_font
from matplotlib.textpath import TextPath
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage, sparse, spatial

from experiments.datasets import _drawing
from experiments.datasets._drawing import SIDE, Floats, uniform

LETTERS = string.ascii_letters
# All ship with matplotlib: DejaVu (Bitstream Vera licence), STIX (OFL), and, held
# back for `test_unseen_font`, Computer Modern (BaKoMa). Only pictures are derived.
FONTS = (
  "DejaVuSans",
  "DejaVuSans-Oblique",
  "DejaVuSerif",
  "DejaVuSansMono",
  "STIXGeneral",
  "STIXGeneralItalic",
)
UNSEEN_FONTS = ("cmr10",)
_UNSEEN_SPLIT = 2

_SEED = 1_903
_TREMOR_MM = (0.5, 0.9)
_EM = 80.0
_STEP = 0.5
_SCALE = (0.8, 1.15)
_STRETCH = (0.85, 1.18)
_SHEAR = (-0.25, 0.25)
_TURN = (-1 / 18, 1 / 18)
_MARGIN = 3.0
# Simard et al. smooth over 4 of 29 pixels.
_ELASTIC_SMOOTH = 14.0
_ELASTIC_MOVE = 2.5
# The field is drawn at every fourth pixel and interpolated.
_ELASTIC_GRID = 4
_OVERSAMPLE = 2


class _Glyph(NamedTuple):
  """A letter: outline points, distances along the strokes, ends of the contours."""

  points: Floats
  arc: Floats
  ends: tuple[int, ...]


def example(
  split: int, index: int, shaky_font: str | os.PathLike[str] | None = None
) -> tuple[NDArray[np.uint8], int]:
  """Returns image `index` of a split, (100, 100, 1) of zeros and ones, and label.

  Args:
    split: number of the split; 2 is drawn in the fonts the others never use.
    index: number within the split. Even ones are regular, odd ones shaky.
    shaky_font: font file of the shaky letters; by default a tremor makes them.
  """
  rng = _drawing.keyed_rng(_SEED, split, index)
  label = index % 2
  letter = LETTERS[int(rng.random() * len(LETTERS))]
  fonts = UNSEEN_FONTS if split == _UNSEEN_SPLIT else FONTS
  glyph = _glyph(_shipped(fonts[int(rng.random() * len(fonts))]), letter)
  linear = _linear_map(rng)
  field = _elastic_field(rng)
  spot = rng.random(2)

  regular = _elastic(glyph.points @ linear, field)
  low, high = regular.min(axis=0), regular.max(axis=0)
  shrink = min(1.0, *((SIDE - 2 * _MARGIN) / (high - low)))
  size = (high - low) * shrink
  ink = round(_area(regular, glyph.ends) * shrink * shrink)

  points = regular
  if label and shaky_font is None:
    scale = math.sqrt(abs(np.linalg.det(linear)))
    points = _elastic(_shaken(rng, glyph.points @ linear, glyph.arc * scale), field)
  elif label:
    glyph = _glyph(str(shaky_font), letter)
    points = _elastic(glyph.points @ linear, field)
  corner = _MARGIN + spot * (SIDE - 2 * _MARGIN - size)
  points = _drawing.fit_box(points, corner, corner + size)
  return _fill(points, glyph.ends, ink)[:, :, None], label


def _shipped(font: str) -> str:
  """Returns the path of a font that matplotlib ships."""
  path = pathlib.Path(matplotlib.get_data_path(), "fonts", "ttf", f"{font}.ttf")
  return str(path)


@functools.cache
def _glyph(font: str, letter: str) -> _Glyph:
  """Returns a letter of _EM pixels per em, y downwards."""
  try:
    known = get_font(font).get_char_index(ord(letter))
  except RuntimeError as error:
    raise ValueError(f"{font} is not a font file ({error})") from error
  if not known:
    raise ValueError(f"the font {font} has no letter {letter!r}")
  path = TextPath((0, 0), letter, size=_EM, prop=FontProperties(fname=font))
  contours = [
    _drawing.trace(np.asarray(polygon)[:-1] * (1.0, -1.0), _STEP)[0]
    for polygon in path.to_polygons()
  ]
  ends = tuple(np.cumsum([len(contour) for contour in contours]).tolist())
  points = np.concatenate(contours)
  return _Glyph(points, _strokes(points, ends), ends)


def _strokes(points: Floats, ends: tuple[int, ...]) -> Floats:
  """Returns how far along the strokes, from the top of each, the points lie.

  That is the geodesic distance within the letter, by Dijkstra's algorithm on the
  graph of its pixels with their 16 nearest neighbours.
  """
  corner = points.min(axis=0)
  size = np.ceil(points.max(axis=0) - corner).astype(np.int64) + 1
  rows, columns = np.nonzero(_inside(points - corner, ends, size))
  pixels = np.stack([columns, rows], axis=1) + corner
  tree = spatial.cKDTree(pixels)
  graph = tree.sparse_distance_matrix(tree, 2.3, output_type="coo_matrix").tocsr()
  _, part = sparse.csgraph.connected_components(graph)
  starts = np.unique(part, return_index=True)[1]
  arc = sparse.csgraph.dijkstra(graph, indices=starts, min_only=True)
  return arc[tree.query(points)[1]]


def _shaken(rng: np.random.Generator, points: Floats, arc: Floats) -> Floats:
  """Displaces points along the ellipse on which a trembling pen circles."""
  phase, amplitude = _drawing.tremor(rng, arc, float(arc.max()), _TREMOR_MM)
  axis = 2 * math.pi * rng.random()
  width = uniform(rng, 0.6, 1.0)
  major = np.array([math.cos(axis), math.sin(axis)])
  minor = width * np.array([-math.sin(axis), math.cos(axis)])
  turn = _drawing.sine(phase)[:, None] * major
  turn = turn + _drawing.sine(phase + 0.25)[:, None] * minor
  return points + amplitude[:, None] * turn


def _linear_map(rng: np.random.Generator) -> Floats:
  """Draws scale, stretch, shear and rotation, for row vectors."""
  scale, stretch = uniform(rng, *_SCALE), math.sqrt(uniform(rng, *_STRETCH))
  shear, turn = uniform(rng, *_SHEAR), 2 * math.pi * uniform(rng, *_TURN)
  sheared = scale * np.array([[stretch, 0.0], [shear, 1 / stretch]])
  return sheared @ np.array(
    [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]]
  )


def _elastic_field(rng: np.random.Generator) -> Floats:
  """Draws smooth displacements, (2, n, n), of _ELASTIC_MOVE pixels rms."""
  side, smooth = SIDE // _ELASTIC_GRID, _ELASTIC_SMOOTH / _ELASTIC_GRID
  noise = 2 * rng.random((2, side, side)) - 1
  field = ndimage.gaussian_filter(noise, smooth, mode="wrap", axes=(1, 2))
  # The rms of white noise of variance 1/3 after the filter.
  rms = 1 / (math.sqrt(3) * 2 * math.sqrt(math.pi) * smooth)
  return _ELASTIC_MOVE / rms * field


def _elastic(points: Floats, field: Floats) -> Floats:
  """Adds the field to points; it repeats itself beyond its edges."""
  place = points.T[::-1] / _ELASTIC_GRID
  moves = [
    ndimage.map_coordinates(part, place, order=1, mode="grid-wrap") for part in field
  ]
  return points + np.stack(moves, axis=1)


def _area(points: Floats, ends: tuple[int, ...]) -> float:
  """Returns the area inside the contours; holes run the other way round."""
  contours = np.split(points, ends[:-1])
  total = 0.0
  for contour in contours:
    x, y = contour.T
    total += float(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2
  return abs(total)


def _inside(
  points: Floats, ends: tuple[int, ...], size: NDArray[np.int64]
) -> NDArray[np.bool_]:
  """Fills contours by the non-zero winding rule; size is width and height."""
  winding = np.zeros(size[::-1], np.int8)
  for contour in np.split(points, ends[:-1]):
    mask = Image.new("1", tuple(size.tolist()))
    ImageDraw.Draw(mask).polygon(contour.ravel().tolist(), fill=1)
    x, y = contour.T
    sign = np.sign(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y))
    winding += np.int8(sign) * np.asarray(mask, np.int8)
  return winding != 0


def _fill(points: Floats, ends: tuple[int, ...], ink: int) -> NDArray[np.uint8]:
  """Inks the pixels deepest inside, or nearest to, the outline: `ink` of them."""
  low = np.floor(points.min(axis=0)).astype(np.int64) - 1
  size = np.ceil(points.max(axis=0)).astype(np.int64) + 1 - low
  inside = _inside((points - low) * _OVERSAMPLE, ends, size * _OVERSAMPLE)
  depth = ndimage.distance_transform_edt(inside)
  depth = depth - ndimage.distance_transform_edt(~inside)
  depth = depth.reshape(size[1], _OVERSAMPLE, size[0], _OVERSAMPLE).mean(axis=(1, 3))
  patch = np.zeros(depth.size, np.uint8)
  patch[np.argsort(-depth.ravel(), kind="stable")[:ink]] = 1
  image = np.zeros((SIDE, SIDE), np.uint8)
  image[low[1] :, low[0] :][: size[1], : size[0]] = patch.reshape(depth.shape)
  return image
