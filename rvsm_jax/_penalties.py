r"""Penalties: pairs of pure functions, a value and its proximal map.

A penalty acts on one array. Transformations apply it to every selected leaf of a
pytree. `prox(x, step)` is :math:`\arg\min_u step\, P(u) + \tfrac12\|u - x\|^2`;
where the minimiser is not unique, one of the minimisers.
"""

from collections.abc import Callable
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from rvsm_jax import _metrics, _thresholds, _validate

_abs = _thresholds.magnitude


class Penalty(NamedTuple):
  r"""A penalty P, the twin of `optax.GradientTransformation(init, update)`.

  Attributes:
    value: `value(x)` is P(x), a scalar of the dtype of `x`, float32 for half
      precisions.
    prox: `prox(x, step)` is
      :math:`\arg\min_u step\,P(u) + \tfrac12\|u-x\|^2`, with the shape and dtype
      of `x`. `step >= 0` may be a tracer and, for separable penalties and those
      with group norms, an array that broadcasts to `x`, a diagonal metric:
      :math:`\arg\min_u P(u) + \sum_i (u_i-x_i)^2 / (2\,step_i)`. `prox(x, 0)` is
      `x`; NaN and infinities pass through.

  A penalty of your own needs nothing but the two functions:

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> ridge = rvsm_jax.Penalty(
    ...   value=lambda x: jnp.sum(jnp.square(x)) / 2,
    ...   prox=lambda x, step: x / (1 + step),
    ... )
    >>> print(ridge.prox(jnp.array([2.0, 4.0]), 1.0))
    [1. 2.]
  """

  value: Callable[[jax.Array], jax.Array]
  prox: Callable[[jax.Array, ArrayLike], jax.Array]


def _value(function: Callable[..., Any]) -> Callable[[jax.Array], jax.Array]:
  """`function` evaluated in float32 or better."""

  def value(x: ArrayLike) -> jax.Array:
    x = _validate.float_array("x", x)
    return function(x.astype(_validate.compute_dtype(x.dtype)))

  return value


def _prox(
  function: Callable[[jax.Array, jax.Array], jax.Array], scalar_for: str = ""
) -> Callable[[jax.Array, ArrayLike], jax.Array]:
  """`function(x, step)` of a whole array, in float32 or better.

  The step is a scalar or has one value per entry; if `scalar_for` names a penalty, it
  is a scalar.
  """

  def prox(x: ArrayLike, step: ArrayLike) -> jax.Array:
    x = _validate.float_array("x", x)
    z, step = _checked(x, step, scalar_for)
    out = function(z, step).astype(x.dtype)
    return jnp.where((step > 0) & jnp.isfinite(x), out, x)

  return prox


def _checked(
  x: jax.Array, step: ArrayLike, scalar_for: str = ""
) -> tuple[jax.Array, jax.Array]:
  """x and the step in float32 or better; see `_prox`."""
  _validate.check_nonnegative("step", step)
  z = x.astype(_validate.compute_dtype(x.dtype))
  step = jnp.asarray(step).astype(z.dtype)
  if step.ndim and scalar_for:
    raise ValueError(
      f"step must be a scalar for {scalar_for}, got shape {step.shape}: it has no"
      " proximal map in a diagonal metric, such as that of proximal_adam."
    )
  if step.ndim and not _thresholds.is_per_entry(step, x):
    raise ValueError(
      f"step must be a scalar or have one value per entry of x, shape {x.shape}, got"
      f" shape {step.shape}."
    )
  return z, step


def _unsharded(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Lets a function that ranks entries see all of them, under an explicit mesh."""

  @functools.wraps(function)
  def wrapper(x: jax.Array, *args: Any) -> jax.Array:
    spec = jax.typeof(x).sharding.spec
    if all(axis is None for axis in spec):
      return function(x, *args)
    whole = jax.sharding.reshard(x, jax.sharding.PartitionSpec(*[None] * x.ndim))
    return jax.sharding.reshard(function(whole, *args), spec)

  return wrapper


def _separable(
  value: Callable[..., jax.Array], prox: Callable[..., jax.Array], *hyperparams: Any
) -> Penalty:
  """A penalty summed over components, and its map of `(x, step, *hyperparams)`."""

  def total(x: jax.Array) -> jax.Array:
    return jnp.sum(value(x, *(jnp.asarray(h).astype(x.dtype) for h in hyperparams)))

  return Penalty(_value(total), lambda x, step: prox(x, step, *hyperparams))


def _hard(x: ArrayLike, step: ArrayLike) -> jax.Array:
  return _thresholds.hard_threshold(x, step)


def _soft(x: ArrayLike, step: ArrayLike) -> jax.Array:
  return _thresholds.soft_threshold(x, step)


# Of so few operations that a pass over memory costs more.
CHEAP_MAPS = (_hard, _soft)


def l0() -> Penalty:
  r"""Number of non-zero entries; its prox is the hard threshold.

  .. math::
    P(x) = \sum_i 1[x_i \ne 0]

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> x = jnp.array([-2.0, 0.5, 0.0])
    >>> print(rvsm_jax.l0().value(x), rvsm_jax.l0().prox(x, 0.5))
    2.0 [-2.  0.  0.]
  """

  def value(x: jax.Array) -> jax.Array:
    return jnp.sum(jnp.where(x == 0, 0, jnp.ones_like(x)))

  return Penalty(_value(value), _hard)


def l1() -> Penalty:
  r"""Sum of magnitudes; its prox is the soft threshold.

  .. math::
    P(x) = \sum_i |x_i|

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> x = jnp.array([-2.0, 0.5])
    >>> print(rvsm_jax.l1().value(x), rvsm_jax.l1().prox(x, 1.0))
    2.5 [-1.  0.]
  """
  return Penalty(_value(lambda x: jnp.sum(_abs(x))), _soft)


def transformed_l1(a: ArrayLike = 1.0) -> Penalty:
  r"""Transformed l1, between l0 (`a -> 0`) and l1 (`a -> inf`).

  .. math::
    P(x) = \sum_i \frac{(a + 1) |x_i|}{a + |x_i|}

  Zhang & Xin (2018); Ma et al. (2019), equation (7). The prox is
  :func:`transformed_l1_threshold`.

  Args:
    a: shape, `> 0`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.transformed_l1(a=1.0).value(jnp.array([1.0, -3.0])))
    2.5
  """
  _validate.check_positive("a", a)
  return _separable(
    lambda x, a: (a + 1) * (_abs(x) / (a + _abs(x))),
    _thresholds.transformed_l1_threshold,
    a,
  )


def scad(lam: ArrayLike, gamma: ArrayLike = 3.7) -> Penalty:
  r"""Smoothly clipped absolute deviation.

  .. math::
    P(x) = \sum_i \begin{cases}
      \lambda |x_i| & |x_i| \le \lambda \\
      \frac{2\gamma\lambda|x_i| - x_i^2 - \lambda^2}{2(\gamma - 1)}
        & \lambda < |x_i| < \gamma\lambda \\
      \lambda^2 (\gamma + 1) / 2 & |x_i| \ge \gamma\lambda
    \end{cases}

  Fan & Li (2001); Ma et al. (2019), equation (1). For a step below
  :math:`\gamma - 1` the prox is continuous, for larger ones it jumps.

  Args:
    lam: slope at zero, `> 0`.
    gamma: width, `> 2`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.scad(1.0).prox(jnp.array([0.5, 1.5, 5.0]), 1.0))
    [0.  0.5 5. ]
  """
  _validate.check_positive("lam", lam)
  _validate.check("gamma", gamma, "a number > 2", lambda v: v > 2)

  def value(x: jax.Array, lam: jax.Array, gamma: jax.Array) -> jax.Array:
    size = jnp.minimum(_abs(x), gamma * lam)
    excess = jnp.maximum(size - lam, 0)
    return lam * size - jnp.square(excess) / (2 * (gamma - 1))

  @_thresholds.elementwise
  def prox(
    x: jax.Array, step: jax.Array, lam: jax.Array, gamma: jax.Array
  ) -> jax.Array:
    size = _abs(x)
    soft = jnp.maximum(size - step * lam, 0)
    convex = step < gamma - 1
    # Where the middle piece is convex its stationary point is the minimiser;
    # otherwise the minimiser jumps from the first piece to the last.
    curvature = jnp.where(convex, 1 - step / (gamma - 1), 1)
    middle = (size - step * lam * (gamma / (gamma - 1))) / curvature
    continuous = jnp.where(size <= (1 + step) * lam, soft, middle)
    jump = lam * jnp.where(
      step <= gamma + 1, (gamma + 1 + step) / 2, jnp.sqrt(step * (gamma + 1))
    )
    last = size > jnp.where(convex, gamma * lam, jump)
    return jnp.where(
      last, x, _thresholds.signed(jnp.where(convex, continuous, soft), x)
    )

  return _separable(value, _identity_at_zero_step(prox), lam, gamma)


def mcp(lam: ArrayLike, gamma: ArrayLike = 2.0) -> Penalty:
  r"""Minimax concave penalty.

  .. math::
    P(x) = \sum_i \begin{cases}
      \lambda |x_i| - x_i^2 / (2\gamma) & |x_i| \le \gamma\lambda \\
      \gamma\lambda^2 / 2 & |x_i| > \gamma\lambda
    \end{cases}

  Zhang (2010); Ma et al. (2019), equation (2). The prox is the firm threshold for
  steps below :math:`\gamma`, a hard threshold for larger ones.

  Args:
    lam: slope at zero, `> 0`.
    gamma: width, `> 1`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.mcp(1.0).prox(jnp.array([0.5, 1.5, 5.0]), 1.0))
    [0. 1. 5.]
  """
  _validate.check_positive("lam", lam)
  _validate.check("gamma", gamma, "a number > 1", lambda v: v > 1)

  def value(x: jax.Array, lam: jax.Array, gamma: jax.Array) -> jax.Array:
    size = jnp.minimum(_abs(x), gamma * lam)
    return lam * size - size * (size / (2 * gamma))

  @_thresholds.elementwise
  def prox(
    x: jax.Array, step: jax.Array, lam: jax.Array, gamma: jax.Array
  ) -> jax.Array:
    size = _abs(x)
    convex = step < gamma
    firm = jnp.maximum(size - step * lam, 0) / jnp.where(convex, 1 - step / gamma, 1)
    last = size > lam * jnp.where(convex, gamma, jnp.sqrt(step * gamma))
    return jnp.where(last, x, _thresholds.signed(jnp.where(convex, firm, 0), x))

  return _separable(value, _identity_at_zero_step(prox), lam, gamma)


def _identity_at_zero_step(prox: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Makes `prox(x, 0) == x` exact where the formula only rounds to it."""

  @functools.wraps(prox)
  def wrapper(x: ArrayLike, step: ArrayLike, *hyperparams: ArrayLike) -> jax.Array:
    return jnp.where(jnp.asarray(step) > 0, prox(x, step, *hyperparams), x)

  return wrapper


def log_penalty(gamma: ArrayLike) -> Penalty:
  r"""Log penalty, between l1 (`gamma -> 0`) and l0 (`gamma -> inf`).

  .. math::
    P(x) = \sum_i \frac{\log(\gamma |x_i| + 1)}{\log(\gamma + 1)}

  Mazumder et al. (2011); Ma et al. (2019), equation (3).

  Args:
    gamma: concavity, `> 0`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.log_penalty(1.0).value(jnp.array([0.0, -1.0])))
    1.0
  """
  _validate.check_positive("gamma", gamma)

  @_thresholds.elementwise
  @_thresholds.implicit_derivative(lambda u, g: g / ((1 + g * u) * jnp.log1p(g)))
  def prox(z: jax.Array, step: jax.Array, g: jax.Array) -> jax.Array:
    x = jnp.abs(z)
    # With v = 1/gamma + u the optimality condition is v^2 - (x + 1/gamma) v +
    # kappa = 0; the larger root is the local minimiser.
    shift = 1 / g
    kappa = step / jnp.log1p(g)
    total = x + shift
    root = jnp.sqrt(jnp.maximum(1 - 4 * (kappa / total) / total, 0))
    u = jnp.maximum(x - kappa / (total / 2 * (1 + root)), 0)
    convex = kappa <= jnp.square(shift)
    # Not convex: compare with u = 0, the other candidate.
    w = g * u
    better = jnp.log1p(w) - w / (1 + w) < u * (u / jnp.where(kappa > 0, kappa, 1)) / 2
    inside = jnp.where(convex, x > kappa * g, better & (4 * kappa <= total * total))
    return jnp.where(step > 0, _thresholds.signed(jnp.where(inside, u, 0), z), z)

  return _separable(lambda x, g: jnp.log1p(g * _abs(x)) / jnp.log1p(g), prox, gamma)


def capped_l1(a: ArrayLike) -> Penalty:
  r"""Capped l1.

  .. math::
    P(x) = \sum_i \min(|x_i|, a)

  Zhang (2010); Ma et al. (2019), equation (4).

  Args:
    a: cap, `> 0`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.capped_l1(2.0).prox(jnp.array([0.5, 1.5, 5.0]), 1.0))
    [0.  0.5 5. ]
  """
  _validate.check_positive("a", a)

  @_thresholds.elementwise
  def prox(x: jax.Array, step: jax.Array, a: jax.Array) -> jax.Array:
    size = _abs(x)
    jump = jnp.where(step <= 2 * a, a + step / 2, jnp.sqrt(2 * step * a))
    soft = x - jnp.clip(x, -step, step)
    return jnp.where((size > jump) | (step == 0), x, soft)

  return _separable(lambda x, a: jnp.minimum(_abs(x), a), prox, a)


def lp(p: float) -> Penalty:
  r"""The l_p quasi-norm to the power p, for p = 1/2 or p = 2/3.

  .. math::
    P(x) = \sum_i |x_i|^p

  Xu et al. (2012), Cao et al. (2013). The prox is 0 up to the jump at
  :math:`\tfrac32 \gamma^{2/3}` (p = 1/2) or
  :math:`2 (\tfrac23\gamma)^{3/4}` (p = 2/3) and a root of a cubic or quartic
  above it, found by Newton's method from the right, where it converges
  monotonically, to rounding in a fixed number of steps.

  Args:
    p: 1/2 or 2/3; only these have a prox in closed form.

  Returns:
    The penalty.

  Raises:
    ValueError: for any other `p`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.lp(0.5).value(jnp.array([4.0, -9.0])))
    5.0
  """
  _validate.check("p", p, "1/2 or 2/3", lambda v: (v == 0.5) | (abs(v - 2 / 3) < 1e-6))

  def half(x: jax.Array, step: jax.Array) -> jax.Array:
    # u = x k^2 with k^3 - k + q/2 = 0, k in [sqrt(2/3), 1].
    cutoff = 1.5 * jnp.square(jnp.cbrt(step))
    active = x > cutoff
    z = jnp.where(active, x, 1)
    q = jnp.where(active, step, 0) / z / jnp.sqrt(z)
    k = jnp.ones_like(q)
    for _ in range(6):
      k = k - (k * (k * k - 1) + q / 2) / (3 * k * k - 1)
    return jnp.where(active, x - x * (q / (2 * k)), 0)

  def two_thirds(x: jax.Array, step: jax.Array) -> jax.Array:
    # u = x k^3 with k^4 - k + q = 0, k in [(1/2)^(1/3), 1].
    c = 2 * step / 3
    cutoff = 2 * jnp.sqrt(c) * jnp.sqrt(jnp.sqrt(c))
    active = x > cutoff
    z = jnp.where(active, x, 1)
    # The cube root by operations of which XLA makes vectors on CPU.
    root = jnp.exp(jnp.log(z) / 3)
    root = root - (root - z / (root * root)) / 3
    q = jnp.where(active, c, 0) / z / root
    k = jnp.ones_like(q)
    for _ in range(7):
      k = k - (k * (k * k * k - 1) + q) / (4 * k * k * k - 1)
    return jnp.where(active, x - x * (q / k), 0)

  power = 0.5 if p == 0.5 else 2 / 3
  solve = half if p == 0.5 else two_thirds

  @_thresholds.implicit_derivative(lambda u: power * u ** (power - 1))
  def odd(x: jax.Array, step: jax.Array) -> jax.Array:
    return _thresholds.signed(solve(jnp.abs(x), step), x)

  @_thresholds.elementwise
  def prox(x: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.where(step > 0, odd(x, step), x)

  def value(x: jax.Array) -> jax.Array:
    return jnp.where(x == 0, 0, jnp.where(x == 0, 1, _abs(x)) ** power)

  return _separable(value, prox)


def l1_minus_l2() -> Penalty:
  r"""Difference of the l1 and the l2 norm of the whole array.

  .. math::
    P(x) = \|x\|_1 - \|x\|_2

  The prox is that of Lou & Yan (2018). Not separable: the step is a scalar.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.l1_minus_l2().prox(jnp.array([3.0, 0.5]), 1.0))
    [3. 0.]
  """

  def value(x: jax.Array) -> jax.Array:
    norm = _thresholds.group_norm(x, tuple(range(x.ndim)))
    return jnp.sum(_abs(x)) - jnp.squeeze(norm)

  @_unsharded
  def prox(x: jax.Array, step: jax.Array) -> jax.Array:
    soft = x - jnp.clip(x, -step, step)
    grown = _thresholds.shrink_groups(soft, -step, tuple(range(x.ndim)))
    # No entry above the step: all but one of the largest entries vanish.
    size = _abs(x)
    largest = jnp.arange(x.size).reshape(x.shape) == jnp.argmax(size)
    return jnp.where(jnp.max(size) > step, grown, jnp.where(largest, x, 0))

  return Penalty(_value(value), _prox(prox, "l1_minus_l2"))


def elastic_net(alpha: ArrayLike) -> Penalty:
  r"""l1 plus half the squared l2 norm.

  .. math::
    P(x) = \sum_i |x_i| + \tfrac{\alpha}{2} x_i^2, \qquad
    \mathrm{prox}_{\gamma P}(x) = S_\gamma(x) / (1 + \gamma\alpha)

  Zou & Hastie (2005).

  Args:
    alpha: weight of the quadratic term, `>= 0`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.elastic_net(1.0).prox(jnp.array([0.5, 3.0]), 1.0))
    [0. 1.]
  """
  _validate.check_nonnegative("alpha", alpha)

  @_thresholds.elementwise
  def prox(x: jax.Array, step: jax.Array, alpha: jax.Array) -> jax.Array:
    return _thresholds.soft_threshold(x, step) / (1 + step * alpha)

  return _separable(lambda x, alpha: _abs(x) + alpha / 2 * x * x, prox, alpha)


def nonnegative() -> Penalty:
  r"""Indicator of :math:`x \ge 0`; its prox is the projection, for any step > 0.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.nonnegative().prox(jnp.array([-1.0, 2.0]), 1.0))
    [0. 2.]
  """

  @_thresholds.elementwise
  def prox(x: jax.Array, step: jax.Array) -> jax.Array:
    return jnp.where((x < 0) & (step > 0), 0, x)

  return _separable(lambda x: jnp.where(x < 0, jnp.inf, jnp.zeros_like(x)), prox)


def nuclear() -> Penalty:
  r"""Nuclear norm: the sum of the singular values.

  .. math::
    P(X) = \sum_i \sigma_i(X), \qquad
    \mathrm{prox}_{\gamma P}(X) = U \max(\Sigma - \gamma, 0) V^T

  An array of more than two axes is taken as the matrix whose columns are its
  last axis (of a Flax kernel: one column per output).

  Returns:
    The penalty. Both functions raise ValueError for arrays of less than two axes.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.nuclear().prox(jnp.diag(jnp.array([3.0, 0.5])), 1.0))
    [[2. 0.]
     [0. 0.]]
  """

  def matrix(x: jax.Array) -> jax.Array:
    if x.ndim < 2:
      raise ValueError(
        f"nuclear() needs an array of at least 2 axes, got shape {x.shape}: mask"
        " such leaves out."
      )
    return x.reshape(-1, x.shape[-1])

  def value(x: jax.Array) -> jax.Array:
    return _nuclear_norm(matrix(x))

  @_unsharded
  def prox(x: jax.Array, step: jax.Array) -> jax.Array:
    return _singular_value_threshold(matrix(x), step).reshape(x.shape)

  return Penalty(_value(value), _prox(prox, "nuclear"))


@jax.custom_jvp
def _nuclear_norm(x: jax.Array) -> jax.Array:
  return jnp.sum(jnp.linalg.svd(x, compute_uv=False))


@_nuclear_norm.defjvp
def _nuclear_norm_jvp(primals: tuple, tangents: tuple) -> tuple:
  u, s, vt = jnp.linalg.svd(primals[0], full_matrices=False)
  used = s > s[0] * jnp.finfo(s.dtype).eps * max(primals[0].shape)
  return jnp.sum(s), jnp.sum((jnp.where(used, u, 0) @ vt) * tangents[0])


@jax.custom_jvp
def _singular_value_threshold(x: jax.Array, step: jax.Array) -> jax.Array:
  u, s, vt = jnp.linalg.svd(x, full_matrices=False)
  return (u * jnp.maximum(s - step, 0)) @ vt


@_singular_value_threshold.defjvp
def _singular_value_threshold_jvp(primals: tuple, tangents: tuple) -> tuple:
  """Derivative of a spectral function by divided differences.

  The derivative of the singular vectors, which does not exist where singular
  values coincide, is never formed.
  """
  x, step = primals
  dx, dstep = tangents
  u, s, vt = jnp.linalg.svd(x, full_matrices=False)
  f = jnp.maximum(s - step, 0)
  slope = jnp.where(s > step, 1.0, 0.0).astype(s.dtype)

  def ratio(top: jax.Array, bottom: jax.Array) -> jax.Array:
    usable = jnp.abs(bottom) > jnp.finfo(s.dtype).tiny
    return jnp.where(usable, top / jnp.where(usable, bottom, 1), 0)

  # Of two singular values on the same side of the step only the slope counts: their
  # difference may be rounding.
  same = slope[:, None] == slope
  difference = jnp.where(same, slope, ratio(f[:, None] - f, s[:, None] - s))
  mean = ratio(f[:, None] + f, s[:, None] + s)
  core = u.T @ dx @ vt.T
  inner = difference * (core + core.T) / 2 + mean * (core - core.T) / 2
  inner = inner - jnp.diag(slope) * dstep
  outside = ratio(f, s)
  left = (dx - u @ (u.T @ dx)) @ vt.T * outside
  right = outside[:, None] * (u.T @ (dx - (dx @ vt.T) @ vt))
  return (u * f) @ vt, u @ inner @ vt + left @ vt + u @ right


def group_lasso(
  groups: _thresholds.Groups = "out", weights: ArrayLike | None = None
) -> Penalty:
  r"""Sum of the groups' l2 norms; its prox is :func:`block_soft_threshold`.

  .. math::
    P(x) = \sum_g w_g \|x_g\|_2

  Yuan & Lin (2006). A group of zeros stays zero, also in the gradient.

  Args:
    groups: `"out"`, `"in"` or a tuple of axes, see :func:`block_soft_threshold`.
    weights: `w_g >= 0`, one per group or one for all; None means 1. Yuan & Lin
      take the square root of the size of the group.

  Returns:
    The penalty. The step is a scalar, or has one value per group or per entry.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> x = jnp.array([[3.0, 0.0], [4.0, 1.0]])
    >>> print(rvsm_jax.group_lasso("out").value(x))
    6.0
    >>> print(rvsm_jax.group_lasso("out").prox(x, 1.0))
    [[2.4 0. ]
     [3.2 0. ]]
  """
  if weights is None:
    weights = 1.0
  _validate.check_nonnegative("weights", weights)

  def value(x: jax.Array) -> jax.Array:
    axes = _thresholds.group_axes(x, groups)
    weight = _thresholds.per_group("weights", weights, x, axes)
    return jnp.sum(weight * _thresholds.group_norm(x, axes))

  def prox(x: ArrayLike, step: ArrayLike) -> jax.Array:
    return _thresholds.weighted_block_soft_threshold(x, step, weights, groups)

  return Penalty(_value(value), prox)


def sparse_group_lasso(mu: ArrayLike, groups: _thresholds.Groups = "out") -> Penalty:
  r"""l1 and group lasso together.

  .. math::
    P(x) = \mu \|x\|_1 + (1 - \mu) \sum_g \|x_g\|_2

  Simon et al. (2013). The prox of l1 followed by that of the group lasso is the
  exact prox of the sum, also with one step per entry.

  Args:
    mu: share of the l1 term, in [0, 1].
    groups: `"out"`, `"in"` or a tuple of axes, see :func:`block_soft_threshold`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> penalty = rvsm_jax.sparse_group_lasso(mu=0.5)
    >>> print(penalty.prox(jnp.array([[6.5, 0.5], [8.5, 0.25]]), 1.0))
    [[5.7 0. ]
     [7.6 0. ]]
  """
  _validate.check_share("mu", mu)
  return _then_group(l1(), mu, groups)


def integrated_tl1(
  a: ArrayLike, mu: ArrayLike, groups: _thresholds.Groups = "out"
) -> Penalty:
  r"""Integrated transformed l1: transformed l1 and group lasso together.

  .. math::
    P(x) = \mu \sum_i \rho_a(x_i) + (1 - \mu) \sum_g \|x_g\|_2

  Ma et al. (2019), equation (11). Its `prox` is their equation (17): the prox of
  the transformed l1 term, then that of the group term, each with its share of the
  step. Unlike with l1 in the place of transformed l1
  (:func:`sparse_group_lasso`), this composition is *not* the exact prox of the
  sum.

  Args:
    a: shape of transformed l1, `> 0`.
    mu: share of the transformed l1 term, in [0, 1];
      :func:`integrated_tl1_schedule` gives the paper's choice per layer.
    groups: `"out"`, `"in"` or a tuple of axes, see :func:`block_soft_threshold`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> penalty = rvsm_jax.integrated_tl1(a=1.0, mu=0.5)
    >>> print(penalty.value(jnp.array([[3.0], [0.0]])))
    2.25
  """
  _validate.check_share("mu", mu)
  return _then_group(transformed_l1(a), mu, groups)


def _then_group(first: Penalty, mu: ArrayLike, groups: _thresholds.Groups) -> Penalty:
  """mu of `first` and 1 - mu of the group lasso; the prox is their composition."""
  second = group_lasso(groups)

  def value(x: jax.Array) -> jax.Array:
    m = jnp.asarray(mu).astype(x.dtype)
    return m * first.value(x) + (1 - m) * second.value(x)

  def prox(x: ArrayLike, step: ArrayLike) -> jax.Array:
    x = _validate.float_array("x", x)
    z, step = _checked(x, step)
    m = jnp.asarray(mu).astype(z.dtype)
    return second.prox(first.prox(z, step * m), step * (1 - m)).astype(x.dtype)

  return Penalty(_value(value), prox)


def _flat_groups(
  function: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
  """Lets `function(x, step)` see groups as rows, scaled to a largest entry of 1.

  For penalties that are homogeneous of degree two, whose prox commutes with
  scaling.
  """

  def prox(x: jax.Array, step: jax.Array, groups: _thresholds.Groups) -> jax.Array:
    axes = _thresholds.group_axes(x, groups)
    last = tuple(range(x.ndim - len(axes), x.ndim))
    moved = jnp.moveaxis(x, axes, last)
    rows = moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)
    return jnp.moveaxis(function(rows, step).reshape(moved.shape), last, axes)

  return prox


def _exclusive_threshold(rows: jax.Array, step: jax.Array) -> jax.Array:
  r"""Threshold by which the exact prox of the exclusive lasso shrinks each row.

  It is :math:`\gamma T` for :math:`T = \sum_i (|x_i| - \gamma T)_+`. Solved on
  the k largest entries alone T would be :math:`S_k / (1 + \gamma k)`, at most the
  true T, with equality for the true support: T is the maximum over k.
  """
  size = -jnp.sort(-_abs(rows), axis=-1)
  count = jnp.arange(1, rows.shape[-1] + 1, dtype=rows.dtype)
  sums = jnp.cumsum(size, axis=-1) / (1 + step * count)
  return step * jnp.max(sums, axis=-1, keepdims=True)


def exclusive_lasso(groups: _thresholds.Groups = "out") -> Penalty:
  r"""Exclusive lasso: entries of one group compete with each other.

  .. math::
    P(x) = \tfrac12 \sum_g \|x_g\|_1^2

  Zhou et al. (2010). The prox is exact: a soft threshold of each group, by a
  threshold that is found by sorting the group.

  Args:
    groups: `"out"`, `"in"` or a tuple of axes, see :func:`block_soft_threshold`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> x = jnp.array([[4.0], [1.0]])
    >>> print(rvsm_jax.exclusive_lasso().prox(x, 1.0))
    [[2.]
     [0.]]
  """

  @_unsharded
  @_flat_groups
  def threshold(rows: jax.Array, step: jax.Array) -> jax.Array:
    scale = _thresholds.group_scale(rows, (rows.ndim - 1,))
    cut = scale * _exclusive_threshold(rows / scale, step)
    return rows - jnp.clip(rows, -cut, cut)

  return Penalty(
    _exclusive_value(groups),
    _prox(lambda x, step: threshold(x, step, groups), "exclusive_lasso"),
  )


def _exclusive_value(
  groups: _thresholds.Groups,
) -> Callable[[jax.Array], jax.Array]:
  def value(x: jax.Array) -> jax.Array:
    axes = _thresholds.group_axes(x, groups)
    return jnp.sum(jnp.square(jnp.sum(_abs(x), axis=axes))) / 2

  return _value(value)


def exclusive_lasso_one_step(groups: _thresholds.Groups = "out") -> Penalty:
  r"""The exclusive lasso with the step that the CGES code takes in place of its prox.

  .. math::
    u_g = S_{\gamma \|x_g\|_1}(x_g)

  The threshold is taken from the group before it shrinks, so that it is larger
  than that of the exact prox of :func:`exclusive_lasso`: for reproductions of
  Yoon & Hwang (2017) only.

  Args:
    groups: `"out"`, `"in"` or a tuple of axes, see :func:`block_soft_threshold`.

  Returns:
    The penalty, whose `prox` is not the minimiser that `Penalty` promises.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> x = jnp.array([[4.0], [1.0]])
    >>> print(rvsm_jax.exclusive_lasso_one_step().prox(x, 0.5))
    [[1.5]
     [0. ]]
  """

  def prox(x: jax.Array, step: jax.Array) -> jax.Array:
    axes = _thresholds.group_axes(x, groups)
    cut = step * jnp.sum(_abs(x), axis=axes, keepdims=True)
    return x - jnp.clip(x, -cut, cut)

  return Penalty(_exclusive_value(groups), _prox(prox, "exclusive_lasso_one_step"))


def combined_group_exclusive(
  mu: ArrayLike, groups: _thresholds.Groups = "out"
) -> Penalty:
  r"""Combined group and exclusive sparsity (CGES).

  .. math::
    P(x) = \sum_g \tfrac{\mu}{2} \|x_g\|_1^2 + (1 - \mu) \|x_g\|_2

  Yoon & Hwang (2017). Here `mu` is the share of the *exclusive* term; public codes
  disagree, and the authors' own takes it as that of the group term. The prox is
  exact: a soft threshold, by the one root of a monotone function per group, then a
  block soft threshold.

  Args:
    mu: share of the exclusive term, in [0, 1].
    groups: `"out"`, `"in"` or a tuple of axes, see :func:`block_soft_threshold`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> x = jnp.array([[4.0], [1.0]])
    >>> print(rvsm_jax.combined_group_exclusive(mu=1.0).prox(x, 1.0))
    [[2.]
     [0.]]
  """
  _validate.check_share("mu", mu)
  exclusive, lasso = exclusive_lasso(groups), group_lasso(groups)

  def value(x: jax.Array) -> jax.Array:
    m = jnp.asarray(mu).astype(x.dtype)
    return m * exclusive.value(x) + (1 - m) * lasso.value(x)

  @_unsharded
  @_flat_groups
  def solve(rows: jax.Array, step: jax.Array) -> jax.Array:
    m = jnp.asarray(mu).astype(rows.dtype)
    scale = _thresholds.group_scale(rows, (rows.ndim - 1,))
    rows, first, second = rows / scale, step * m, step * (1 - m) / scale

    def shrunk(cut: jax.Array) -> jax.Array:
      # An infinite entry stays what its group is measured by.
      soft = jnp.where(jnp.isinf(rows), rows, rows - jnp.clip(rows, -cut, cut))
      return _thresholds.shrink_groups(soft, second, (rows.ndim - 1,))

    # The threshold is `first` times the l1 norm of the solution.
    def excess(cut: jax.Array) -> jax.Array:
      return cut - first * jnp.sum(_abs(shrunk(cut)), axis=-1, keepdims=True)

    def halve(_: Any, bounds: tuple) -> tuple:
      low, high = bounds
      middle = (low + high) / 2
      above = excess(middle) > 0
      return jnp.where(above, low, middle), jnp.where(above, middle, high)

    high = _exclusive_threshold(jax.lax.stop_gradient(rows), first)
    high = jnp.where(first > 0, high, 0)
    steps = 2 * jnp.finfo(rows.dtype).nmant
    low, high = jax.lax.fori_loop(0, steps, halve, (jnp.zeros_like(high), high))
    cut = jax.lax.stop_gradient((low + high) / 2)
    # One Newton step, whose numerator carries the derivative.
    error, slope = jax.jvp(excess, (cut,), (jnp.ones_like(cut),))
    newton = cut - error / jax.lax.stop_gradient(slope)
    cut = jnp.maximum(jnp.where(jnp.isfinite(newton), newton, cut), 0)
    return scale * shrunk(cut)

  return Penalty(
    _value(value),
    _prox(lambda x, step: solve(x, step, groups), "combined_group_exclusive"),
  )


def _largest_cut(keys: jax.Array, kept: ArrayLike, width: int) -> jax.Array:
  """The largest number of `width` bits that at least `kept` of the keys reach.

  The keys are unsigned. With `kept = 0` the number can be larger than `width` bits.
  """
  digit = 3

  def refine(i: jax.Array, cut: jax.Array) -> jax.Array:
    # The last digit may overlap the one before, whose bits it then leaves alone.
    shift = jnp.maximum(width - digit * (i + 1), 0).astype(keys.dtype)
    higher = [cut + (jnp.asarray(d, keys.dtype) << shift) for d in range(1, 2**digit)]
    reached = _metrics.count(*(keys >= cut for cut in higher))
    raised = sum((count >= kept).astype(keys.dtype) for count in reached)
    return cut + (raised << shift)

  return jax.lax.fori_loop(0, -(-width // digit), refine, jnp.zeros((), keys.dtype))


def cardinality(sparsity: ArrayLike) -> Penalty:
  r"""Indicator of arrays of which at least the share `sparsity` is zero.

  Its prox, for any step > 0, keeps the entries of largest magnitude and drops
  exactly :math:`\lceil sparsity \cdot n \rceil`: a target sparsity in place of a
  weight of the penalty. The magnitude to cut at is found digit by digit in the bits
  of the numbers, by counting: exact, much faster than a sort, and without gathering
  an array that is split over devices. Of equal magnitudes the first are kept.

  Args:
    sparsity: share of zeros, in [0, 1].

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.cardinality(0.5).prox(jnp.array([3.0, -1.0, 2.0, 0.5]), 1.0))
    [3. 0. 2. 0.]
  """
  _validate.check_share("sparsity", sparsity)

  def dropped(x: jax.Array) -> Any:
    known = _validate.concrete(sparsity)
    if known is not None:
      # 0.07 * 100 is a little above 7, and means 7.
      return math.ceil(float(known) * x.size * (1 - 1e-12))
    share = jnp.asarray(sparsity)
    return jnp.ceil(share * x.size * (1 - jnp.finfo(share.dtype).eps)).astype(int)

  def value(x: jax.Array) -> jax.Array:
    return jnp.where(jnp.sum(x == 0) >= dropped(x), jnp.zeros((), x.dtype), jnp.inf)

  def prox(x: jax.Array, step: jax.Array) -> jax.Array:
    del step
    kept = x.size - dropped(x)
    # Non-negative floating point numbers are ordered as their bits are.
    width = jnp.finfo(x.dtype).bits
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), f"uint{width}")
    cut = _largest_cut(bits, kept, width - 1)
    above, ties = bits > cut, bits == cut
    # Of those as large as the cut, the first ones.
    larger, equal = _metrics.count(above, ties)
    missing = kept - larger
    places = jnp.arange(x.size, 0, -1, dtype=jnp.uint32).reshape(x.shape)
    order = jnp.where(ties, places, 0)
    last = jax.lax.cond(
      equal == missing,
      lambda: jnp.ones((), order.dtype),
      lambda: _largest_cut(order, missing, x.size.bit_length()),
    )
    return jnp.where(above | (order >= last), x, 0)

  return Penalty(_value(value), _prox(prox, "cardinality"))


def scaled(penalty: Penalty, lam: ArrayLike) -> Penalty:
  r"""A penalty times a factor: :math:`\lambda P`.

  Args:
    penalty: a penalty.
    lam: factor, `>= 0`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.scaled(rvsm_jax.l1(), 2.0).prox(jnp.array([5.0]), 1.0))
    [3.]
  """
  check_penalty(penalty)
  _validate.check_nonnegative("lam", lam)

  def prox(x: jax.Array, step: ArrayLike) -> jax.Array:
    _validate.check_nonnegative("step", step)
    return penalty.prox(x, jnp.asarray(step) * lam)

  return Penalty(lambda x: jnp.asarray(lam * penalty.value(x)), prox)


def check_penalty(penalty: Any) -> None:
  """Raises TypeError unless `penalty` is a `Penalty`."""
  if not isinstance(penalty, Penalty):
    name = getattr(penalty, "__name__", None)
    hint = f" Did you mean {name}()?" if name else ""
    raise TypeError(
      "penalty must be a rvsm_jax.Penalty, such as rvsm_jax.l1(), got"
      f" {penalty!r}.{hint}"
    )


def integrated_tl1_schedule(num_layers: int, s: float) -> tuple[float, ...]:
  r"""Shares of the transformed l1 term by depth, from s to 1 - s.

  .. math::
    \mu_l = s + (1 - 2s) \frac{l - 1}{L - 1}, \qquad l = 1, \dots, L

  Ma et al. (2019): neurons are removed in the first layers, connections in the
  last ones, if s < 1/2.

  Args:
    num_layers: L, `>= 1`.
    s: share in the first layer, in [0, 1].

  Returns:
    The L shares, for :func:`integrated_tl1`'s `mu`; a single layer gets s.

  Examples:
    >>> import rvsm_jax
    >>> rvsm_jax.integrated_tl1_schedule(3, 0.25)
    (0.25, 0.5, 0.75)
  """
  _validate.check_share("s", s)
  _validate.check(
    "num_layers", num_layers, "an integer >= 1", lambda v: (v >= 1) & (v == np.floor(v))
  )
  last = max(int(num_layers) - 1, 1)
  return tuple(s + (1 - 2 * s) * layer / last for layer in range(int(num_layers)))
