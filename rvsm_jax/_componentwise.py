"""Penalties that are a sum over components."""

from collections.abc import Callable
import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rvsm_jax import _cutoff, _penalty, _thresholds, _validate

# Of a map that subtracts the step.
_SOFT = _penalty.Cutoff(lambda step, *_: step, lambda t, *_: t)


def l0() -> _penalty.Penalty:
  r"""Makes zeros without shrinking the rest: the number of non-zero entries.

  Its prox is the hard threshold.

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
  return _penalty.separable(
    lambda x: jnp.where(x == 0, 0, jnp.ones_like(x)),
    _thresholds.hard_threshold,
    cutoff=_penalty.Cutoff(lambda step: jnp.sqrt(2 * step), lambda t: t * t / 2),
    cheap=True,
  )


def l1() -> _penalty.Penalty:
  r"""For convex problems; shrinks everything it keeps: the sum of magnitudes.

  Its prox is the soft threshold.

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
  return _penalty.separable(
    _thresholds.magnitude, _thresholds.soft_threshold, cutoff=_SOFT, cheap=True
  )


def transformed_l1(a: ArrayLike = 1.0) -> _penalty.Penalty:
  r"""Between l0 (`a -> 0`) and l1 (`a -> inf`): zeros with little shrinking.

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

  def value(x: jax.Array, a: jax.Array) -> jax.Array:
    size = _thresholds.magnitude(x)
    return (a + 1) * (size / (a + size))

  def to_step(t: jax.Array, a: jax.Array) -> jax.Array:
    far = jnp.square(t + a / 2) / (2 * (a + 1))
    return jnp.where(t <= a / 2, t * (a / (a + 1)), far)

  return _penalty.separable(
    value,
    _thresholds.transformed_l1_threshold,
    a,
    cutoff=_penalty.Cutoff(_thresholds.transformed_l1_cutoff, to_step),
  )


def scad(lam: ArrayLike, gamma: ArrayLike = 3.7) -> _penalty.Penalty:
  r"""Zeros with no shrinking of large weights: smoothly clipped absolute deviation.

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
    size = jnp.minimum(_thresholds.magnitude(x), gamma * lam)
    excess = jnp.maximum(size - lam, 0)
    return lam * size - jnp.square(excess) / (2 * (gamma - 1))

  @_thresholds.elementwise
  def prox(
    x: jax.Array, step: jax.Array, lam: jax.Array, gamma: jax.Array
  ) -> jax.Array:
    size = _thresholds.magnitude(x)
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

  # Soft up to a step of gamma + 1, where the last piece begins to be the minimiser.
  cutoff = _penalty.Cutoff(
    lambda step, lam, gamma: lam * _soft_then_root(step, gamma + 1),
    lambda t, lam, gamma: _soft_then_square(t / lam, gamma + 1),
  )
  return _penalty.separable(
    value, _identity_at_zero_step(prox), lam, gamma, cutoff=cutoff
  )


def mcp(lam: ArrayLike, gamma: ArrayLike = 2.0) -> _penalty.Penalty:
  r"""Zeros with little shrinking of large weights: the minimax concave penalty.

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
    size = jnp.minimum(_thresholds.magnitude(x), gamma * lam)
    return lam * size - size * (size / (2 * gamma))

  @_thresholds.elementwise
  def prox(
    x: jax.Array, step: jax.Array, lam: jax.Array, gamma: jax.Array
  ) -> jax.Array:
    size = _thresholds.magnitude(x)
    convex = step < gamma
    firm = jnp.maximum(size - step * lam, 0) / jnp.where(convex, 1 - step / gamma, 1)
    last = size > lam * jnp.where(convex, gamma, jnp.sqrt(step * gamma))
    return jnp.where(last, x, _thresholds.signed(jnp.where(convex, firm, 0), x))

  cutoff = _penalty.Cutoff(
    lambda step, lam, gamma: lam * _soft_then_root(step, gamma),
    lambda t, lam, gamma: _soft_then_square(t / lam, gamma),
  )
  return _penalty.separable(
    value, _identity_at_zero_step(prox), lam, gamma, cutoff=cutoff
  )


def _soft_then_root(step: jax.Array, change: jax.Array) -> jax.Array:
  """The step up to `change`, the root of `step * change` above."""
  return jnp.where(step <= change, step, jnp.sqrt(step) * jnp.sqrt(change))


def _soft_then_square(t: jax.Array, change: jax.Array) -> jax.Array:
  """The inverse of `_soft_then_root`."""
  return jnp.where(t <= change, t, t * (t / change))


def _identity_at_zero_step(prox: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Makes `prox(x, 0) == x` exact where the formula only rounds to it."""

  @functools.wraps(prox)
  def wrapper(x: ArrayLike, step: ArrayLike, *hyperparams: ArrayLike) -> jax.Array:
    return jnp.where(jnp.asarray(step) > 0, prox(x, step, *hyperparams), x)

  return wrapper


def log_penalty(gamma: ArrayLike) -> _penalty.Penalty:
  r"""Between l1 (`gamma -> 0`) and l0 (`gamma -> inf`): the log penalty.

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

  def value(x: jax.Array, g: jax.Array) -> jax.Array:
    return jnp.log1p(g * _thresholds.magnitude(x)) / jnp.log1p(g)

  return _penalty.separable(value, prox, gamma, cutoff=_cutoff.by_bisection(prox))


def capped_l1(a: ArrayLike) -> _penalty.Penalty:
  r"""Shrinks small weights as l1 does, and leaves large ones alone: capped l1.

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
    size = _thresholds.magnitude(x)
    jump = jnp.where(step <= 2 * a, a + step / 2, jnp.sqrt(2 * step * a))
    soft = x - jnp.clip(x, -step, step)
    return jnp.where((size > jump) | (step == 0), x, soft)

  cutoff = _penalty.Cutoff(
    lambda step, a: _soft_then_root(step, 2 * a),
    lambda t, a: _soft_then_square(t, 2 * a),
  )
  return _penalty.separable(
    lambda x, a: jnp.minimum(_thresholds.magnitude(x), a), prox, a, cutoff=cutoff
  )


def lp(p: float) -> _penalty.Penalty:
  r"""Between l0 and l1, for p = 1/2 or p = 2/3: the l_p quasi-norm to the power p.

  .. math::
    P(x) = \sum_i |x_i|^p

  Xu et al. (2012), Cao et al. (2013). The prox is 0 up to the jump at
  :math:`\tfrac32 \gamma^{2/3}` (p = 1/2) or
  :math:`2 (\tfrac23\gamma)^{3/4}` (p = 2/3) and a root of a cubic or quartic
  above it, found by Newton's method from the right, where it converges
  monotonically, to rounding in a fixed number of steps.

  Args:
    p: 1/2 or 2/3. Only these two have a closed-form prox.

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
    return jnp.where(x == 0, 0, jnp.where(x == 0, 1, _thresholds.magnitude(x)) ** power)

  # It is scale * (share * step)**exponent.
  scale, share, exponent = (1.5, 1, 2 / 3) if p == 0.5 else (2, 2 / 3, 3 / 4)
  cutoff = _penalty.Cutoff(
    lambda step: scale * (share * step) ** exponent,
    lambda t: (t / scale) ** (1 / exponent) / share,
  )
  return _penalty.separable(value, prox, cutoff=cutoff)


def elastic_net(alpha: ArrayLike) -> _penalty.Penalty:
  r"""l1 plus half the squared l2 norm: keeps correlated inputs together.

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

  def value(x: jax.Array, alpha: jax.Array) -> jax.Array:
    return _thresholds.magnitude(x) + alpha / 2 * x * x

  return _penalty.separable(value, prox, alpha, cutoff=_SOFT)
