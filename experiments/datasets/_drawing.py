"""How a hand draws: tremor and drift in physical units, and a pen of exact ink.

The canvas is 100 x 100 pixels and stands for 50 x 50 mm; the hand moves at a
steady 25 mm/s, slow but usual for a careful drawing task, so that distance
along the line is time and a frequency of f Hz has a wavelength of 50/f pixels:

  * tremor: Parkinsonian, 4 to 6 Hz (8 to 12 pixels), its mean amplitude from the
    line to the crest a few tenths of a millimetre to one (each set says which),
    frequency and amplitude wandering slowly along the line;
  * drift: the unsteadiness of any hand, below 1 Hz (50 pixels and longer), a
    few tenths of a millimetre. Regular and shaky drawings both have it.

Everything here uses operations that IEEE 754 rounds correctly (+, -, *, /, sqrt),
sums in a fixed order, and an integer rasteriser; no libm sine or pow, no pairwise,
BLAS or Python sum (which changed in Python 3.12). So one key gives the same bytes
on every machine.
"""

import math

import numpy as np
from numpy.typing import NDArray

SIDE = 100
PIXELS_PER_MM = 2.0
SPEED_MM_PER_S = 25.0
PIXELS_PER_S = SPEED_MM_PER_S * PIXELS_PER_MM

TREMOR_HZ = (4.6, 5.4)
TREMOR_HZ_WANDER = 0.1
TREMOR_MM_WANDER = 0.6
DRIFT_HZ = 1.0
DRIFT_MM = 0.5

# Points are rounded to this fraction of a pixel; distances are then integers.
_SUBPIXEL = 64
# Pixels further than this from the line are never inked.
_REACH = 3

Floats = NDArray[np.float64]


def keyed_rng(*key: int) -> np.random.Generator:
  """Returns the generator of one example; only its `random` is used.

  `random` is the top 53 bits of the Philox stream, which no numpy release may
  change; `normal`, `integers` and the like carry no such promise.
  """
  return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def uniform(rng: np.random.Generator, low: float, high: float) -> float:
  """Returns a number drawn uniformly from [low, high)."""
  return low + (high - low) * float(rng.random())


def norm(vectors: Floats) -> Floats:
  """Returns the lengths of (..., 2) vectors, without libm's pow or hypot."""
  x, y = vectors[..., 0], vectors[..., 1]
  return np.sqrt(x * x + y * y)


def sine(turns: Floats) -> Floats:
  """Returns sin(2 pi turns) to 1e-7, the same bits on every machine."""
  x = turns - np.floor(turns + 0.5)
  x = np.where(np.abs(x) > 0.25, np.copysign(0.5, x) - x, x)
  x = 2 * math.pi * x
  taylor = [(-1) ** k / math.factorial(2 * k + 1) for k in range(6)]
  return x * np.polyval(taylor[::-1], x * x)


def waves(rng: np.random.Generator, u: Floats, harmonics: int, decay: int) -> Floats:
  """Returns a random smooth function of period one, at most one in size.

  sum_k c_k k^-decay sin(2 pi (k u + p_k)), k = 1..harmonics, with c >= 0 of sum
  one. decay=1 is, up to 2 pi, the integral of such a function with decay=0.
  """
  share, phase = rng.random(harmonics), rng.random(harmonics)
  share = share / np.cumsum(share)[-1]
  total = np.zeros_like(u)
  for k in range(1, harmonics + 1):
    total = total + share[k - 1] / k**decay * sine(k * u + phase[k - 1])
  return total


def trace(corners: Floats, step: float) -> tuple[Floats, Floats, float]:
  """Walks round a closed polygon.

  Returns:
    (n, 2) points, among them the corners, their (n,) distances from the first
    corner along the line, and the perimeter.
  """
  ahead = np.roll(corners, -1, axis=0) - corners
  points, arc, length = [], [], 0.0
  for start, move, edge in zip(corners, ahead, norm(ahead).tolist(), strict=True):
    steps = int(edge / step) + 1
    u = np.arange(steps) / steps
    points.append(start + u[:, None] * move)
    arc.append(length + u * edge)
    length += edge
  return np.concatenate(points), np.concatenate(arc), length


def drift(rng: np.random.Generator, arc: Floats, length: float) -> Floats:
  """Returns the slow deviation of a steady hand at distances `arc`, in pixels."""
  harmonics = max(1, int(length / PIXELS_PER_S * DRIFT_HZ))
  return DRIFT_MM * PIXELS_PER_MM * waves(rng, arc / length, harmonics, decay=0)


def tremor(
  rng: np.random.Generator,
  arc: Floats,
  length: float,
  millimetres: tuple[float, float],
) -> tuple[Floats, Floats]:
  """Returns the tremor's phase in turns and its amplitude in pixels.

  The phase is n u + (w n / 2 pi) waves(u), u = arc / length: its derivative, the
  frequency, stays within a share w of n / length. n is a whole number, so that
  the oscillation of a closed line closes.
  """
  u = arc / length
  turns = math.floor(length / PIXELS_PER_S * uniform(rng, *TREMOR_HZ) + 0.5)
  wander = TREMOR_HZ_WANDER * turns / (2 * math.pi)
  phase = turns * u + wander * waves(rng, u, 6, decay=1) + rng.random()
  amplitude = PIXELS_PER_MM * uniform(rng, *millimetres)
  return phase, amplitude * (1 + TREMOR_MM_WANDER * waves(rng, u, 6, decay=0))


def ink_line(points: Floats, ink: int) -> NDArray[np.uint8]:
  """Draws a line with the pen that leaves exactly `ink` pixels.

  The `ink` pixels nearest to the points are inked, which is a round pen whose
  width the ink determines.

  Args:
    points: (n, 2) x and y in pixels, no further apart than about half a pixel;
      pixel centres are whole numbers.
    ink: number of pixels.
  """
  fine = np.floor(points * _SUBPIXEL + 0.5).astype(np.int64)
  centre = (fine + _SUBPIXEL // 2) // _SUBPIXEL
  near = np.arange(-_REACH, _REACH + 1)
  x = centre[:, 0, None, None] + near[:, None]
  y = centre[:, 1, None, None] + near[None, :]
  squared = (x * _SUBPIXEL - fine[:, 0, None, None]) ** 2 + (
    y * _SUBPIXEL - fine[:, 1, None, None]
  ) ** 2
  limit = (_REACH * _SUBPIXEL) ** 2
  inside = (x >= 0) & (x < SIDE) & (y >= 0) & (y < SIDE) & (squared <= limit)
  distance = np.full(SIDE * SIDE, limit + 1)
  np.minimum.at(distance, (y * SIDE + x)[inside], squared[inside])
  order = np.argsort(distance, kind="stable")[:ink]
  if distance[order[-1]] > limit:
    raise ValueError(f"a line of {len(points)} points cannot take {ink} pixels of ink")
  image = np.zeros(SIDE * SIDE, np.uint8)
  image[order] = 1
  return image.reshape(SIDE, SIDE)


def fit_box(points: Floats, low: Floats, high: Floats) -> Floats:
  """Stretches (n, 2) points so that they just fill the box from low to high."""
  least, most = points.min(axis=0), points.max(axis=0)
  return low + (points - least) / (most - least) * (high - low)
