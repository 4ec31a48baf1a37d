"""The non-overlap network: its closed forms, and a check of them.

k hidden units share one weight w on k disjoint Gaussian patches; another network of
this kind, of weight w*, is the target.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# A number, or a NumPy or JAX array (or a tracer) of them, one per run.
Number = Any


def network(w: jax.Array, patches: jax.Array) -> jax.Array:
  """Output of the network for one input: the mean of its hidden units."""
  return jnp.mean(jax.nn.relu(patches @ w))


def angle(u: jax.Array, v: jax.Array) -> jax.Array:
  """Angle between two vectors, to rounding also near 0 and pi, unlike arccos."""
  a, b = jnp.linalg.norm(v) * u, jnp.linalg.norm(u) * v
  return 2 * jnp.arctan2(jnp.linalg.norm(a - b), jnp.linalg.norm(a + b))


def population_loss(w: jax.Array, target: jax.Array, k: Number) -> jax.Array:
  r"""Expected squared error of the network, equation (5).

  .. math::
    f(w) = \frac{1}{k^2} [a (\|w\|^2 + \|w^*\|^2) - 2 k g(w, w^*)
      - 2 b \|w\| \|w^*\|], \quad b = \frac{k^2 - k}{2\pi}, \; a = b + \frac k2

  with g of Lemma 1.
  """
  b = (k * k - k) / (2 * jnp.pi)
  a = b + k / 2
  norms = jnp.linalg.norm(w), jnp.linalg.norm(target)
  theta = angle(w, target)
  both = norms[0] * norms[1]
  g = both / (2 * jnp.pi) * (jnp.sin(theta) + (jnp.pi - theta) * jnp.cos(theta))
  return (a * (norms[0] ** 2 + norms[1] ** 2) - 2 * k * g - 2 * b * both) / (k * k)


def _radial(w: jax.Array, target: jax.Array, k: Number) -> jax.Array:
  """The factor of w in the gradient, times k."""
  ratio = jnp.linalg.norm(target) / jnp.linalg.norm(w)
  bend = ratio * jnp.sin(angle(w, target))
  return 1 + (k - 1) / jnp.pi * (1 - ratio) - bend / jnp.pi


def gradient(w: jax.Array, target: jax.Array, k: Number) -> jax.Array:
  """Gradient of `population_loss`, equation (13); there is none at w = 0."""
  pull = (jnp.pi - angle(w, target)) / jnp.pi * target
  return (_radial(w, target, k) * w - pull) / k


def saddle(target: jax.Array, k: Number) -> jax.Array:
  """The degenerate saddle point of Lemma 3, 2 (c), for k > 1."""
  return -(k * k - k) / (k * k + (jnp.pi - 1) * k) * target


def curvature(k: Number) -> Number:
  r"""The largest eigenvalue of the Hessian, :math:`2a/k^2 = 1/k + (1 - 1/k)/\pi`.

  This is the L of Theorem 1. f is :math:`a/k^2 \|w\|^2` plus a constant minus two
  convex functions, g and the norm, so the inequality after Lemma 2 holds with it
  between any two points, also through the origin, and no smaller L will do: it is the
  radial eigenvalue.
  """
  return 1 / k + (1 - 1 / k) / np.pi


def largest_beta(delta: Number, k: Number) -> Number:
  """The bound on beta of Theorem 1 (iii)."""
  return delta * np.sin(delta) / (k * np.pi)


def expansion(
  w: jax.Array, u: jax.Array, target: jax.Array, k: Number, beta: Number
) -> tuple[jax.Array, jax.Array]:
  """C of equation (12), and the norm of what is left between its two sides.

  C is the factor of w in the gradient, divided by that of w*; both sides then agree
  where the gradient of the Lagrangian is zero.
  """
  share = jnp.pi / (jnp.pi - angle(w, target))
  c = share * _radial(w, target, k)
  return c, jnp.linalg.norm(target - share * k * beta * (w - u) - c * w)


def check(samples: int, seed: int) -> dict[str, float]:
  """Loss, gradient, critical points and curvature; the worst over k = 2, 5, 20."""
  rng = np.random.default_rng((seed, 3))
  parts = [_of_patches(rng, k, samples, seed) for k in (2.0, 5.0, 20.0)]
  pole = jnp.array([1.0, 0.0])
  opposite, center = (population_loss(x * pole, pole, 1) for x in (-1e-3, 0))
  return {
    **{name: max(part[name] for part in parts) for name in parts[0]},
    "k = 1: change of the loss from w = 0 towards -w* (> 0: no maximum)": float(
      opposite - center
    ),
  }


@jax.jit
def _at_points(points: jax.Array, target: jax.Array, k: Number) -> tuple:
  """Loss, gradient (13) and gradient of the loss at each of the points."""

  def at(w: jax.Array) -> tuple:
    value, automatic = jax.value_and_grad(population_loss)(w, target, k)
    return value, gradient(w, target, k), automatic

  return jax.vmap(at)(points)


def _of_patches(
  rng: np.random.Generator, k: float, samples: int, seed: int
) -> dict[str, float]:
  d = 5
  target, across = jnp.asarray(rng.normal(size=(2, d)))
  across -= across @ target / (target @ target) * target
  points = jnp.asarray(rng.normal(size=(32, d)))
  values, closed, automatic = _at_points(points, target, k)
  # Twice what the loss lies above its tangent, over the squared distance.
  step = points[None] - points[:, None]
  bent = values[None] - values[:, None] - jnp.einsum("id,ijd->ij", closed, step)
  bent /= jnp.sum(step**2, axis=2) / 2 + jnp.eye(len(points))
  low = saddle(target, k)
  level = population_loss(low, target, k)
  around = [low + 1e-2 * across, low - 1e-2 * across, 0.99 * low, 1.01 * low]
  steps = _at_points(jnp.stack(around), target, k)[0] - level
  top = population_loss(jnp.zeros(d), target, k)
  stationary = [gradient(point, target, k) for point in (target, low)]
  found = {
    "gradient (13): largest difference from autodiff of (5)": jnp.max(
      jnp.abs(closed - automatic)
    ),
    "Monte Carlo of (5) and (13): largest deviation in standard errors": monte_carlo(
      points[0], target, int(k), samples, seed
    ),
    "gradient at w* and at the saddle: largest entry": jnp.max(
      jnp.abs(jnp.stack(stationary))
    ),
    "change of the loss across the saddle (< 0)": jnp.max(steps[:2]),
    "minus its change along the saddle's ray (< 0)": jnp.max(-steps[2:]),
    "change of the loss from w = 0, k > 1 (< 0: a maximum)": jnp.max(
      _at_points(1e-3 * points, target, k)[0] - top
    ),
    "largest curvature between two points, over L = 2a/k² (<= 1)": jnp.max(bent)
    / curvature(k),
  }
  return {name: float(value) for name, value in found.items()}


def monte_carlo(
  w: jax.Array, target: jax.Array, k: int, samples: int, seed: int
) -> float:
  """Loss and gradient of the real network on Gaussian patches against (5), (13)."""
  patches = jax.random.normal(
    jax.random.key(seed), (samples, k, len(target)), jnp.float64
  )

  def loss(w: jax.Array, x: jax.Array) -> jax.Array:
    return jnp.square(network(w, x) - network(target, x))

  drawn = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))(w, patches)
  exact = population_loss(w, target, k), gradient(w, target, k)

  def deviation(sample: jax.Array, value: jax.Array) -> jax.Array:
    error = jnp.std(sample, axis=0) / np.sqrt(samples)
    return jnp.max(jnp.abs(jnp.mean(sample, axis=0) - value) / error)

  return float(max(jax.tree.leaves(jax.tree.map(deviation, drawn, exact))))
