r"""Proximal maps of scalar penalties, and of the group norm, as functions.

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

Groups = str | Sequence[int]


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
  r"""Proximal map of the l0 penalty: keeps entries above :math:`\sqrt{2\gamma}`.

  .. math::
    H_\gamma(x) = 0 \text{ if } |x| \le \sqrt{2\gamma}, \text{ else } x

  Xue & Xin (2019), equation (2.1).

  Args:
    x: array of floating point numbers.
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
  r"""Proximal map of the l1 penalty.

  .. math::
    S_\gamma(x) = \mathrm{sgn}(x) \max(|x| - \gamma, 0)

  Xue & Xin (2019), equation (2.2).

  Args:
    x: array of floating point numbers.
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
  r"""Proximal map of the transformed l1 penalty, in closed form.

  .. math::
    T_\gamma(x) = 0 \text{ if } |x| \le t, \text{ else }
    \mathrm{sgn}(x) \, (|x| - \gamma \tfrac{a(a+1)}{(a+|x|)^2} H(\cos\theta))

  with :math:`\sin^2\theta = \frac{27 \gamma a (a+1)}{4 (a+|x|)^3}`,
  :math:`H(\cos\theta) = 9\sin^2(\theta/3)/\sin^2\theta \in [1, 9/4]`, and
  :math:`t = \gamma (a+1)/a` if :math:`\gamma \le a^2/(2(a+1))`, else
  :math:`t = \sqrt{2\gamma(a+1)} - a/2`.

  This equals Xue & Xin (2019), equations (2.3) and (2.4), without the
  cancellation that costs their arccos form all digits of a small shrinkage; H is
  evaluated as a polynomial.

  Args:
    x: array of floating point numbers.
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


def group_axes(x: jax.Array, groups: Groups) -> tuple[int, ...]:
  """The axes of `x` that are summed over for each way to state `groups`.

  Raises:
    ValueError: if `x` has no such axis, or `groups` is none of `"out"`, `"in"`
      or a sequence of axes.
  """
  if isinstance(groups, str):
    if groups not in ("out", "in"):
      raise ValueError(
        f'groups must be "out", "in" or a tuple of axes, got {groups!r}.'
      )
    kept = {"out": 1, "in": 2}[groups]
    if x.ndim < kept:
      raise ValueError(
        f"groups={groups!r} needs an array of at least {kept} axes, got shape"
        f" {x.shape}: mask such leaves out, or pass a tuple of axes."
      )
    return tuple(axis for axis in range(x.ndim) if axis != x.ndim - kept)
  axes = tuple(groups)
  inside = all(-x.ndim <= axis < x.ndim for axis in axes)
  if not inside or len({axis % x.ndim for axis in axes}) < len(axes):
    raise ValueError(
      f"groups={groups!r} must name distinct axes of an array of shape {x.shape}:"
      " mask such leaves out, or pass other axes."
    )
  return tuple(axis % x.ndim for axis in axes)


def group_scale(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """A positive scale per group, by which squares neither over- nor underflow."""
  scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axes, keepdims=True))
  normal = (scale >= jnp.finfo(x.dtype).tiny) & jnp.isfinite(scale)
  return jnp.where(normal, scale, 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def group_norm(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """l2 norm over `axes`, which are kept; its gradient at zero is zero."""
  scale = group_scale(x, axes)
  squares = jnp.sum(jnp.square(x / scale), axis=axes, keepdims=True)
  return scale * jnp.sqrt(squares)


@group_norm.defjvp
def _group_norm_jvp(axes: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple:
  (x,), (dx,) = primals, tangents
  norm = group_norm(x, axes)
  slope = jnp.sum(_unit(x, norm) * dx, axis=axes, keepdims=True)
  return norm, slope


def _unit(x: jax.Array, norm: jax.Array) -> jax.Array:
  return x / jnp.where(norm > 0, norm, 1)


def per_group(name: str, value: ArrayLike, x: jax.Array, axes: tuple[int, ...]) -> Any:
  """`value`, a number or one per group, with the axes of `x`.

  Raises:
    ValueError: if it is neither.
  """
  value = jnp.asarray(value).astype(x.dtype)
  shape = tuple(n for axis, n in enumerate(x.shape) if axis not in axes)
  if not broadcasts_to(value.shape, shape):
    raise ValueError(
      f"{name} of shape {value.shape} must be a scalar or broadcast to one value"
      f" per group, shape {shape}."
    )
  return jnp.expand_dims(jnp.broadcast_to(value, shape), axes)


def block_soft_threshold(
  x: ArrayLike, gamma: ArrayLike, groups: Groups = "out"
) -> jax.Array:
  r"""Proximal map of the sum of the groups' l2 norms.

  .. math::
    u_g = \max(1 - \gamma / \|x_g\|_2, 0) \; x_g

  A group of zeros stays zero, also in the gradient. With one step per entry it is the
  map in a diagonal metric,

  .. math::
    \arg\min_u \sum_g \|u_g\|_2 + \sum_i (u_i - x_i)^2 / (2 \gamma_i)

  where a group is zero if :math:`\|x_g / \gamma_g\|_2 \le 1`, and otherwise
  :math:`u_i = x_i / (1 + \gamma_i / t)` with t its norm, which is found to rounding by
  Newton's method.

  Args:
    x: array of floating point numbers.
    gamma: step, `>= 0`: a scalar, one value per group, or an array of as many axes as
      `x` that broadcasts to it.
    groups: `"out"`, one group per output neuron or filter (the last axis of a
      Flax kernel), `"in"`, one per input neuron or channel (the axis before it),
      or the tuple of the axes to sum over.

  Returns:
    An array of the shape and dtype of `x`.

  Raises:
    ValueError: if `x` has no such axes, or `gamma` is negative.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.block_soft_threshold(jnp.array([[3.0, 0.1], [4.0, 0.2]]), 1.0))
    [[2.4 0. ]
     [3.2 0. ]]
  """
  return weighted_block_soft_threshold(x, gamma, 1.0, groups)


def weighted_block_soft_threshold(
  x: ArrayLike, gamma: ArrayLike, weights: ArrayLike, groups: Groups
) -> jax.Array:
  """Block soft thresholding by `gamma * weights`, with one weight or one per group."""
  x = _validate.float_array("x", x)
  _validate.check_nonnegative("gamma (the step)", gamma)
  axes = group_axes(x, groups)
  z = x.astype(_validate.compute_dtype(x.dtype))
  gamma = jnp.asarray(gamma).astype(z.dtype)
  weights = per_group("weights", weights, z, axes)
  if axes and is_per_entry(gamma, x):
    out = shrink_groups_in_metric(z, gamma * weights, axes)
  else:
    gamma = per_group("gamma (the step)", gamma, z, axes)
    out = shrink_groups(z, gamma * weights, axes)
  return jnp.where(jnp.isfinite(x), out.astype(x.dtype), x)


def is_per_entry(step: jax.Array, x: jax.Array) -> bool:
  """Whether `step` has the axes of `x`, and with it one value per entry."""
  return step.ndim == x.ndim and broadcasts_to(step.shape, x.shape)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def shrink_groups(x: jax.Array, gamma: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """Moves the norm of each group by -gamma, at most to 0; gamma may be negative."""
  return x * _group_share(x, gamma, axes)


@shrink_groups.defjvp
def _shrink_groups_jvp(axes: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple:
  x, gamma = primals
  dx, dgamma = tangents
  # By the norm, whose own derivative is right at zero, for derivatives of this one.
  norm = group_norm(x, axes)
  share, unit = _kept_share(norm, gamma), _unit(x, norm)
  along = jnp.sum(unit * dx, axis=axes, keepdims=True)
  turned = share * dx + unit * ((1 - share) * along - dgamma)
  return shrink_groups(x, gamma, axes), jnp.where(share != 0, turned, 0)


def _group_share(x: jax.Array, gamma: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  """The factor of each group by which its norm moves by -gamma, at least 0.

  The norms are taken in units of gamma, so that no pass for a scale is needed: what
  overflows has a share of 1, and what vanishes one of 0, to rounding.
  """
  tiny = jnp.finfo(x.dtype).tiny
  scale = 1 / jnp.clip(jnp.abs(gamma), tiny, 1 / tiny)
  norm = jnp.sqrt(jnp.sum(jnp.square(x * scale), axis=axes, keepdims=True))
  return _kept_share(norm, gamma * scale)


def _kept_share(norm: jax.Array, gamma: jax.Array) -> jax.Array:
  """1 - gamma / norm, but at least 0; 1 for infinite groups, and for gamma = 0."""
  usable = (norm > gamma) & (norm > 0) & jnp.isfinite(norm)
  share = (norm - gamma) / jnp.where(usable, norm, 1)
  whole = (gamma == 0) | (jnp.isinf(norm) & (norm > gamma))
  return jnp.where(usable & (gamma != 0), share, jnp.where(whole, 1.0, 0.0))


# Bounds a loop that ends by itself: after 3 to 6 steps in practice, after 21 in the
# worst case known, steps spread evenly over 30 decades within one group.
_NEWTON_STEPS = 64


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def shrink_groups_in_metric(
  x: jax.Array, gamma: jax.Array, axes: tuple[int, ...]
) -> jax.Array:
  """Proximal map of the groups' norms in the metric of `gamma`, of the shape of x."""
  return x * _metric_share(_metric_norm(x, gamma, axes), gamma)


@shrink_groups_in_metric.defjvp
def _shrink_groups_in_metric_jvp(
  axes: tuple[int, ...], primals: tuple, tangents: tuple
) -> tuple:
  x, gamma = primals
  norm, dnorm = jax.jvp(lambda x, g: _metric_norm(x, g, axes), primals, tangents)
  share, unit = _metric_share(norm, gamma), _metric_unit(x, norm, gamma)
  turned = share * (tangents[0] - unit * tangents[1])
  return x * share, turned + (1 - share) * unit * dnorm


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _metric_norm(x: jax.Array, gamma: jax.Array, axes: tuple[int, ...]) -> jax.Array:
  r"""Norm t of each group of the proximal map, in the metric of `gamma`.

  It is the root of :math:`\|q(t)\|_2 = 1` for :math:`q_i(t) = x_i / (t + \gamma_i)`,
  or 0 if there is none. As :math:`1/\|q\|_2` is increasing and concave, Newton's
  method for it climbs to the root from a lower bound, where no :math:`q_i` exceeds 1.
  """
  total = functools.partial(jnp.sum, axis=axes, keepdims=True)
  largest = functools.partial(jnp.max, axis=axes, keepdims=True)
  scale = group_scale(x, axes)
  # Of the numbers as they are: XLA may take the scale out of a ratio of ratios.
  ratio = jnp.where(x != 0, x / gamma, 0)
  positive = total(jnp.square(ratio)) > 1
  size, gamma = jnp.abs(x) / scale, gamma / scale
  high = jnp.sqrt(total(jnp.square(size)))
  low = jnp.maximum(largest(size - gamma), high - largest(gamma))

  def climb(carry: tuple) -> tuple:
    t, _, count = carry
    stretch = jnp.where(size > 0, t + gamma, 1)
    q = size / stretch
    norm, slope = jnp.sqrt(total(q * q)), total(q * (q / stretch))
    rise = (norm - 1) * (norm * norm / jnp.where(slope > 0, slope, 1))
    higher = jnp.minimum(jnp.where(norm > 1, t + rise, t), high)
    return higher, jnp.any(higher > t), count + 1

  t, _, _ = jax.lax.while_loop(
    lambda carry: carry[1] & (carry[2] < _NEWTON_STEPS),
    climb,
    (jnp.maximum(low, 0), jnp.array(True), 0),
  )
  return scale * jnp.where(jnp.isinf(high), high, jnp.where(positive, t, 0))


@_metric_norm.defjvp
def _metric_norm_jvp(axes: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple:
  x, gamma = primals
  norm = _metric_norm(x, gamma, axes)
  unit = _metric_unit(x, norm, gamma)
  weight = unit * _metric_share(norm, gamma)
  slope = jnp.sum(weight * unit, axis=axes, keepdims=True)
  change = jnp.sum(
    weight * (tangents[0] - unit * tangents[1]), axis=axes, keepdims=True
  )
  return norm, jnp.where(slope > 0, change / jnp.where(slope > 0, slope, 1), 0)


def _metric_share(norm: jax.Array, gamma: jax.Array) -> jax.Array:
  """The factor norm / (norm + gamma) of each entry; 1 where gamma is no step at all."""
  whole = (norm + gamma == 0) | jnp.isinf(norm)
  return jnp.where(whole, 1, norm / jnp.where(whole, 1, norm + gamma))


def _metric_unit(x: jax.Array, norm: jax.Array, gamma: jax.Array) -> jax.Array:
  """The direction of each group of the proximal map, a vector of length 1."""
  stretch = norm + gamma
  return x / jnp.where(stretch > 0, stretch, 1)
