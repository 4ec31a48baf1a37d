r"""Proximal maps of scalar penalties, as functions.

For a penalty :math:`P` and a step :math:`\gamma \ge 0` the proximal map is

.. math::
  \mathrm{prox}_{\gamma P}(x) = \arg\min_u \; \gamma P(u) + \tfrac12 \|u - x\|^2.

All functions keep the shape and dtype of `x`, compute half precisions in
float32, let NaN and infinities through, and take `gamma` (and every
hyperparameter) as a number, an array that broadcasts to `x`, or a tracer.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from rvsm_jax import _validate


def in_one_precision(prox: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Lets `prox(x, gamma, *hyperparams)` see arrays of one precision only.

  `prox` computes in float32 or better; the wrapper checks shapes and casts back.
  """

  @functools.wraps(prox)
  def wrapper(x: ArrayLike, gamma: ArrayLike, *hyperparams: ArrayLike) -> jax.Array:
    x = _validate.float_array("x", x)
    _validate.check_nonnegative("gamma (the step)", gamma)
    dtype = _validate.compute_dtype(x.dtype)
    args = [jnp.asarray(h).astype(dtype) for h in (gamma, *hyperparams)]
    for arg in args:
      if not broadcasts_to(arg.shape, x.shape):
        raise ValueError(
          f"A step or hyperparameter of shape {arg.shape} does not broadcast to"
          f" x of shape {x.shape}: pass a scalar, or one value per entry of x."
        )
    return prox(x.astype(dtype), *args).astype(x.dtype)

  return wrapper


def elementwise(prox: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`in_one_precision` of a `prox` for finite x; other entries pass through."""

  @in_one_precision
  @functools.wraps(prox)
  def wrapper(x: jax.Array, *args: jax.Array) -> jax.Array:
    return jnp.where(jnp.isfinite(x), prox(x, *args), x)

  return wrapper


def magnitude(x: jax.Array) -> jax.Array:
  """abs(x) with derivative 0 at 0, where JAX has 1."""
  return x * jax.lax.stop_gradient(jnp.sign(x))


def signed(size: jax.Array, x: jax.Array) -> jax.Array:
  """`size >= 0` with the sign of `x`; zeros are +0."""
  return jnp.where(size > 0, jnp.where(x < 0, -size, size), 0)


def broadcasts_to(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
  """Whether an array of `shape` broadcasts to `target` without changing it."""
  try:
    return np.broadcast_shapes(shape, target) == target
  except ValueError:
    return False


def is_per_entry(step: jax.Array, x: jax.Array) -> bool:
  """Whether `step` has the axes of `x`, and with it one value per entry."""
  return step.ndim == x.ndim and broadcasts_to(step.shape, x.shape)


def implicit_derivative(
  penalty_slope: Callable[..., jax.Array],
) -> Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]]:
  r"""Derivative of an odd proximal map from its optimality condition.

  Where the solution :math:`u > 0`, it solves
  :math:`u - x + \gamma \rho'(u; \theta) = 0`, so that

  .. math::
    du = \frac{dx - d[\gamma \rho'](u; \theta)}{1 + \gamma \rho''(u; \theta)},

  and 0 where :math:`u = 0`: cheaper and safer than to differentiate through
  the branches of a solver.

  Args:
    penalty_slope: :math:`\rho'(u, *theta)` for `u > 0`.
  """

  def decorate(solve: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    solver = jax.custom_jvp(solve)

    @solver.defjvp
    def solver_jvp(primals: tuple, tangents: tuple) -> tuple:
      gamma, *theta = primals[1:]
      u = solver(*primals)
      active = u != 0
      point = jnp.where(active, jnp.abs(u), 1)

      def pull(point: jax.Array, gamma: jax.Array, *theta: jax.Array) -> jax.Array:
        return gamma * penalty_slope(point, *theta)

      _, slope = jax.jvp(
        lambda p: pull(p, gamma, *theta), (point,), (jnp.ones_like(point),)
      )
      _, change = jax.jvp(functools.partial(pull, point), (gamma, *theta), tangents[1:])
      # The curvature is positive but where the map itself has a vertical slope.
      # At a step of zero it is 1, also where the slope of the penalty overflows.
      slope = jnp.where(gamma > 0, slope, 0)
      curvature = jnp.maximum(1 + slope, jnp.finfo(u.dtype).eps)
      change = jnp.where(u < 0, -change, change)
      return u, jnp.where(active, (tangents[0] - change) / curvature, 0)

    return solver

  return decorate


@in_one_precision
def hard_threshold(x: jax.Array, gamma: jax.Array) -> jax.Array:
  r"""The proximal map of l0 as a function: keeps entries above :math:`\sqrt{2\gamma}`.

  .. math::
    H_\gamma(x) = 0 \text{ if } |x| \le \sqrt{2\gamma}, \text{ else } x

  Xue & Xin (2019), equation (2.1).

  Args:
    x: an array of floating-point numbers.
    gamma: step, `>= 0`, broadcast against `x`.

  Returns:
    An array of the shape and dtype of `x`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.hard_threshold(jnp.array([-2.0, 0.5, 1.5]), 0.5))
    [-2.   0.   1.5]
  """
  # Written as "drop" rather than "keep" so that prox(x, 0) is x also where
  # subnormal numbers compare equal to zero.
  return jnp.where((jnp.abs(x) <= jnp.sqrt(2 * gamma)) & (gamma > 0), 0, x)


@in_one_precision
def soft_threshold(x: jax.Array, gamma: jax.Array) -> jax.Array:
  r"""The proximal map of l1 as a function: moves entries by up to gamma towards zero.

  .. math::
    S_\gamma(x) = \mathrm{sgn}(x) \max(|x| - \gamma, 0)

  Xue & Xin (2019), equation (2.2).

  Args:
    x: an array of floating-point numbers.
    gamma: step, `>= 0`, broadcast against `x`.

  Returns:
    An array of the shape and dtype of `x`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.soft_threshold(jnp.array([-2.0, 0.5, 1.5]), 1.0))
    [-1.   0.   0.5]
  """
  return x - jnp.clip(x, -gamma, gamma)


@functools.cache
def _tl1_coefficients(degree: int) -> tuple[float, ...]:
  r"""Power series in :math:`s = 2r - 1` of the shrinkage factor of TL1.

  :math:`H(\cos\theta) = 9 \sin^2(\theta/3) / \sin^2\theta` is analytic in
  :math:`r = \cos\theta` on [0, 1], its nearest singularity is at r = -1, so the
  Chebyshev interpolant converges like :math:`(3 + \sqrt 8)^{-degree}`.
  """
  order, odd = np.arange(degree + 1), 2 * np.arange(degree + 1) + 1
  quarter = np.pi / (2 * len(order))
  theta = np.arccos((1 + np.cos(quarter * odd)) / 2)
  factor = 9 * (np.sin(theta / 3) / np.sin(theta)) ** 2
  # Angles reduced as integers: NumPy's own interpolation loses two digits here.
  waves = np.cos(quarter * (np.outer(order, odd) % (4 * len(order))))
  coefficients = 2 / len(order) * (waves @ factor)
  coefficients[0] /= 2
  return tuple(np.polynomial.chebyshev.cheb2poly(coefficients).tolist())


def _polynomial(coefficients: Sequence[Any], x: jax.Array) -> Any:
  """The polynomial by Estrin's scheme, whose steps wait less for each other."""
  if len(coefficients) == 1:
    return coefficients[0]
  even, odd = coefficients[::2], coefficients[1::2]
  terms = [low + high * x for low, high in zip(even, odd, strict=False)]
  return _polynomial([*terms, *even[len(odd) :]], x * x)


def _two_product(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The product, and its rounding error (Dekker 1971, split on the bits)."""
  low_bits = -(jnp.finfo(x.dtype).nmant // -2)
  integer = jnp.dtype(f"int{jnp.finfo(x.dtype).bits}")

  def split(v: jax.Array) -> tuple[jax.Array, jax.Array]:
    bits = jax.lax.bitcast_convert_type(v, integer) & -(1 << low_bits)
    high = jax.lax.bitcast_convert_type(bits, v.dtype)
    return high, v - high

  (xh, xl), (yh, yl) = split(x), split(y)
  product = x * y
  return product, ((xh * yh - product) + xh * yl + xl * yh) + xl * yl


def _times_successor(x: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The product x (a + 1), and its rounding error."""
  successor = a + 1
  rest = jnp.where(a > 1, (a - successor) + 1, (1 - successor) + a)
  product, error = _two_product(x, successor)
  return product, error + x * rest


def transformed_l1_cutoff(gamma: jax.Array, a: jax.Array) -> jax.Array:
  """Largest magnitude that the proximal map of transformed l1 sends to zero."""
  half_square, error = _times_successor(gamma, a)
  root = jnp.sqrt(2 * half_square)
  square, square_error = _two_product(root, root)
  root_error = ((2 * half_square - square) + (2 * error - square_error)) / (2 * root)
  convex = 2 * half_square <= a * a
  return jnp.where(convex, gamma + gamma / a, (root - a / 2) + root_error)


def _double_root(gamma: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
  r"""The number :math:`k = (\tfrac{27}{4} \gamma a (a + 1))^{1/3}`, and its error.

  At x = k - a the two stationary points of TL1's proximal problem coincide, and its
  map has a vertical slope: what is lost to rounding here is multiplied there.
  """
  product, product_error = _two_product(gamma, a)
  cube, cube_error = _times_successor(product, a)
  cube_error += product_error * (a + 1)
  # k = 3 j for j^3 = cube / 4; one Newton step gives the lower half of j.
  j = jnp.cbrt(cube / 4)
  square, square_error = _two_product(j, j)
  third, third_error = _two_product(square, j)
  j_error = (cube / 4 - third) - (third_error + square_error * j) + cube_error / 4
  j_error = jnp.where(j > 0, j_error / (3 * square), 0)
  k, k_error = _two_product(jnp.full_like(j, 3), j)
  return k, k_error + 3 * j_error


@in_one_precision
@implicit_derivative(lambda u, a: (a / (a + u)) * ((a + 1) / (a + u)))
def _transformed_l1(x: jax.Array, gamma: jax.Array, a: jax.Array) -> jax.Array:
  size = jnp.abs(x)
  k, k_error = _double_root(gamma, a)
  # XLA makes one loop of this, without temporary arrays, only as long as what it
  # takes for expensive, a division or a root, is used once: hence not k / (a + size).
  t = k * (1 / (a + size))  # sin(theta)^2 is t^3.
  # 1 - t without cancellation, and cos(theta)^2 = 1 - t^3.
  inverse = jnp.where(k > 0, 1 / k, 0)
  rest = (((a - k) + size) - k_error) * inverse * t
  cosine = rest * (t * (t + 1) + 1)
  s = 2 * jnp.sqrt(jnp.where(cosine > 0, cosine, 0)) - 1
  factor = _polynomial(_tl1_coefficients(20 if x.dtype == jnp.float64 else 9), s)
  cutoff = transformed_l1_cutoff(gamma, a)
  # The shrinkage is at most the cutoff, and rounding must not make it more.
  scale = gamma * (a * inverse) * ((a + 1) * inverse)
  shrinkage = jnp.minimum(t * t * scale * factor, cutoff)
  kept = jnp.where(x < 0, x + shrinkage, x - shrinkage)
  return jnp.where((size <= cutoff) & (gamma > 0), 0, kept)


def transformed_l1_threshold(x: ArrayLike, gamma: ArrayLike, a: ArrayLike) -> jax.Array:
  r"""The proximal map of transformed l1 as a function, in closed form.

  .. math::
    T_\gamma(x) = 0 \text{ if } |x| \le t, \text{ else }
    \mathrm{sgn}(x) \, (|x| - \gamma \tfrac{a(a+1)}{(a+|x|)^2} H(\cos\theta))

  with :math:`\sin^2\theta = \frac{27 \gamma a (a+1)}{4 (a+|x|)^3}`,
  :math:`H(\cos\theta) = 9\sin^2(\theta/3)/\sin^2\theta \in [1, 9/4]`, and
  :math:`t = \gamma (a+1)/a` if :math:`\gamma \le a^2/(2(a+1))`, else
  :math:`t = \sqrt{2\gamma(a+1)} - a/2`.

  This equals equations (2.3) and (2.4) of Xue & Xin (2019), but without the
  cancellation by which their arccos form loses all digits of a small shrinkage. H is
  evaluated as a polynomial.

  Args:
    x: an array of floating-point numbers.
    gamma: step, `>= 0`, broadcast against `x`.
    a: shape, `> 0`: tends to hard thresholding as `a -> 0`, and to soft
      thresholding as `a -> inf`.

  Returns:
    An array of the shape and dtype of `x`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> x = jnp.array([-2.0, 0.5, 1.5])
    >>> print(rvsm_jax.transformed_l1_threshold(x, 0.5, 1.0))
    [-1.8793852  0.         1.313099 ]
  """
  _validate.check_positive("a", a)
  return _transformed_l1(x, gamma, a)
