"""The closed forms against each other and a Monte Carlo of the real network."""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.convergence import problem
from experiments.convergence.problem import Number


def check(samples: int, seed: int) -> dict[str, float]:
  """Loss, gradient, critical points and curvature; the worst over k = 2, 5, 20."""
  rng = np.random.default_rng((seed, 3))
  parts = [_of_patches(rng, k, samples, seed) for k in (2.0, 5.0, 20.0)]
  pole = jnp.array([1.0, 0.0])
  opposite, center = (problem.population_loss(x * pole, pole, 1) for x in (-1e-3, 0))
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
    value, automatic = jax.value_and_grad(problem.population_loss)(w, target, k)
    return value, problem.gradient(w, target, k), automatic

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
  low = problem.saddle(target, k)
  level = problem.population_loss(low, target, k)
  around = [low + 1e-2 * across, low - 1e-2 * across, 0.99 * low, 1.01 * low]
  steps = _at_points(jnp.stack(around), target, k)[0] - level
  top = problem.population_loss(jnp.zeros(d), target, k)
  stationary = [problem.gradient(point, target, k) for point in (target, low)]
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
    / problem.curvature(k),
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
    return jnp.square(problem.network(w, x) - problem.network(target, x))

  drawn = jax.jit(jax.vmap(jax.value_and_grad(loss), (None, 0)))(w, patches)
  exact = problem.population_loss(w, target, k), problem.gradient(w, target, k)

  def deviation(sample: jax.Array, value: jax.Array) -> jax.Array:
    error = jnp.std(sample, axis=0) / np.sqrt(samples)
    return jnp.max(jnp.abs(jnp.mean(sample, axis=0) - value) / error)

  return float(max(jax.tree.leaves(jax.tree.map(deviation, drawn, exact))))
