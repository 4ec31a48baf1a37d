"""Planar shapes of Xue & Xin (2019), section 3: steady against shaky outlines.

Triangles and quadrangles, convex or not, as thin outlines on a 100 x 100 binary
image. Label 0: drawn by a steady hand. Label 1: the same kind of outline with
Parkinsonian tremor across the line, of 0.35 to 0.65 mm mean amplitude (`_drawing`
states both hands in Hz, mm and mm/s).

Only the tremor tells the classes apart. The outline, its bounding box and its
ink are drawn before the label is looked at: the finished line is stretched to
exactly that box and drawn with the pen that leaves exactly that many pixels, so
box and ink are independent of the label. A tremor makes a line longer, hence its
pen is thinner, by 7% on average, among pens that vary by a factor of 2.5: the best
threshold on the pen's width is right 55% of the time.
"""

import numpy as np
from numpy.typing import NDArray

from experiments.datasets import _drawing
from experiments.datasets._drawing import Floats, uniform

_SEED = 1_901
_STEP = 0.5
_TREMOR_MM = (0.35, 0.65)
_BOX = (40.0, 92.0)
# Square root of the pen's width, 1.25 to 3.1 pixels.
_PEN_ROOT = (1.118, 1.761)
# Sine of the sharpest, and of the flattest, corner: 20 and 160 degrees.
_CORNER = 0.34
_EDGE = 18.0
# Corners are rounded over this many steps, which also turns the normal smoothly.
_ROUND = 9


def example(split: int, index: int) -> tuple[NDArray[np.uint8], int]:
  """Returns image `index` of a split, (100, 100, 1) of zeros and ones, and label.

  Args:
    split: number of the split; different numbers share no randomness.
    index: number within the split. Even ones are steady, odd ones shaky.
  """
  rng = _drawing.keyed_rng(_SEED, split, index)
  label = index % 2
  size = np.floor([uniform(rng, *_BOX), uniform(rng, *_BOX)])
  corner = np.floor(rng.random(2) * (_drawing.SIDE - 1 - size) + 0.5)
  corners = _corners(rng, size)
  points, arc, length = _drawing.trace(corners, _STEP)
  points = _smooth(points)
  root = uniform(rng, *_PEN_ROOT)
  pen = root * root
  ink = int(pen * length)

  normal = _normal(points)
  offset = _drawing.drift(rng, arc, length)
  if label:
    phase, amplitude = _drawing.tremor(rng, arc, length, _TREMOR_MM)
    offset = offset + amplitude * _drawing.sine(phase)
  points = points + offset[:, None] * normal
  # The extreme point lies half a pixel less than the pen's radius inside the box:
  # then the pen reaches the box's outermost pixels, and none beyond.
  stretch = _length(points) / length
  inset = pen / stretch / 2 - 0.5
  points = _drawing.fit_box(points, corner + inset, corner + size - inset)
  return _drawing.ink_line(points, ink)[:, :, None], label


def _corners(rng: np.random.Generator, size: Floats) -> Floats:
  """Draws 3 or 4 corners of a simple polygon that fills a box of this size."""
  count = 3 + int(2 * rng.random())
  while True:
    corners = _drawing.fit_box(rng.random((count, 2)), np.zeros(2), size)
    ahead = np.roll(corners, -1, axis=0) - corners
    behind = np.roll(ahead, 1, axis=0)
    edge = _drawing.norm(ahead)
    bend = np.abs(_cross(behind, ahead)) / (edge * np.roll(edge, 1))
    if edge.min() < _EDGE or bend.min() < _CORNER:
      continue
    if count == 3 or not (_crosses(*corners) or _crosses(*np.roll(corners, 1, axis=0))):
      return corners


def _cross(a: Floats, b: Floats) -> Floats:
  return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _crosses(a: Floats, b: Floats, c: Floats, d: Floats) -> bool:
  """Whether the segments ab and cd cross."""
  splits = _cross(b - a, c - a) * _cross(b - a, d - a) < 0
  return bool(splits and _cross(d - c, a - c) * _cross(d - c, b - c) < 0)


def _smooth(points: Floats) -> Floats:
  """Returns the moving average along a closed line."""
  total = np.zeros_like(points)
  for shift in range(-(_ROUND // 2), _ROUND // 2 + 1):
    total = total + np.roll(points, shift, axis=0)
  return total / _ROUND


def _normal(points: Floats) -> Floats:
  """Returns the unit normals of a closed line."""
  along = np.roll(points, -1, axis=0) - np.roll(points, 1, axis=0)
  across = np.stack([-along[:, 1], along[:, 0]], axis=1)
  return across / _drawing.norm(along)[:, None]


def _length(points: Floats) -> float:
  """Returns the length of a closed line."""
  along = np.roll(points, -1, axis=0) - points
  return float(np.cumsum(_drawing.norm(along))[-1])
