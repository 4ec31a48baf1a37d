"""The non-overlap network: loss, gradient, critical points, and the theorem's bounds.

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
