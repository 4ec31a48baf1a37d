"""Penalties with groups: neurons, filters, channels."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from rvsm_jax import (
  _componentwise,
  _group_thresholds,
  _penalty,
  _thresholds,
  _validate,
)


def group_lasso(
  groups: _group_thresholds.Groups = "out", weights: ArrayLike | None = None
) -> _penalty.Penalty:
  r"""Sends whole neurons, filters or inputs to zero: the sum of the groups' l2 norms.

  Its prox is :func:`block_soft_threshold`.

  .. math::
    P(x) = \sum_g w_g \|x_g\|_2

  Yuan & Lin (2006). A group of zeros stays zero, and so does its gradient.

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
    axes = _group_thresholds.group_axes(x, groups)
    weight = _group_thresholds.per_group("weights", weights, x, axes)
    return jnp.sum(weight * _group_thresholds.group_norm(x, axes))

  def prox(x: ArrayLike, step: ArrayLike) -> jax.Array:
    return _group_thresholds.weighted_block_soft_threshold(x, step, weights, groups)

  cutoff = _penalty.Cutoff(lambda step: step * weights, lambda t: t / weights)
  passes = _penalty.Passes(
    lambda x, step: _group_thresholds.block_share(x, step, weights, groups),
    lambda x, step, share: _group_thresholds.times_share(x, share),
  )
  return _penalty.Penalty(
    _penalty.wide_value(value), _penalty.ProximalMap(prox, cutoff, passes=passes)
  )


def group_l0(
  groups: _group_thresholds.Groups = "out", weights: ArrayLike | None = None
) -> _penalty.Penalty:
  r"""Removes whole neurons or filters, and leaves those that stay as they are.

  The number of groups that are not zero, where :func:`group_lasso` shrinks them all.

  .. math::
    P(x) = \sum_g w_g 1[x_g \ne 0], \qquad
    u_g = 0 \text{ if } \|x_g\|_2 \le \sqrt{2 \gamma w_g}, \text{ else } x_g

  Jiao, Jin & Lu (2017), with weights. For groups of one it is :func:`l0`. With one
  step per entry a group is zero if :math:`\sum_{i \in g} x_i^2 / (2 \gamma_i) \le w_g`.

  Args:
    groups: `"out"`, `"in"` or a tuple of axes, see :func:`block_soft_threshold`.
    weights: `w_g >= 0`, one per group or one for all; None means 1.

  Returns:
    The penalty. The step is a scalar, or has one value per group or per entry.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> x = jnp.array([[3.0, 0.5], [4.0, 1.0]])
    >>> print(rvsm_jax.group_l0("out").value(x))
    2.0
    >>> print(rvsm_jax.group_l0("out").prox(x, 1.0))
    [[3. 0.]
     [4. 0.]]
  """
  if weights is None:
    weights = 1.0
  _validate.check_nonnegative("weights", weights)

  def value(x: jax.Array) -> jax.Array:
    axes = _group_thresholds.group_axes(x, groups)
    weight = _group_thresholds.per_group("weights", weights, x, axes)
    return jnp.sum(jnp.where(jnp.any(x != 0, axis=axes, keepdims=True), weight, 0))

  def dropped(x: ArrayLike, step: ArrayLike) -> jax.Array:
    return _group_thresholds.is_dropped(x, step, weights, groups)

  def prox(x: ArrayLike, step: ArrayLike) -> jax.Array:
    return jnp.where(dropped(x, step), 0, x)

  cutoff = _penalty.Cutoff(
    lambda step: jnp.sqrt(2 * step * weights), lambda t: t * t / 2 / weights
  )
  passes = _penalty.Passes(dropped, lambda x, step, gone: jnp.where(gone, 0, x))
  return _penalty.Penalty(
    _penalty.wide_value(value), _penalty.ProximalMap(prox, cutoff, passes=passes)
  )


def sparse_group_lasso(
  mu: ArrayLike, groups: _group_thresholds.Groups = "out"
) -> _penalty.Penalty:
  r"""Removes neurons, and single weights of those that stay: l1 and group lasso.

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
  return _then_group(_componentwise.l1(), mu, groups)


def integrated_tl1(
  a: ArrayLike, mu: ArrayLike, groups: _group_thresholds.Groups = "out"
) -> _penalty.Penalty:
  r"""Removes neurons, and single weights of those that stay.

  Transformed l1 and group lasso together: integrated transformed l1.

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
  return _then_group(_componentwise.transformed_l1(a), mu, groups, heavy=True)


def integrated_tl1_schedule(num_layers: int, s: float) -> tuple[float, ...]:
  r"""Chooses `mu` of :func:`integrated_tl1` by depth: neurons first, weights last.

  Shares of the transformed l1 term, from s to 1 - s.

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


def _then_group(
  first: _penalty.Penalty,
  mu: ArrayLike,
  groups: _group_thresholds.Groups,
  heavy: bool = False,
) -> _penalty.Penalty:
  """mu of `first` and 1 - mu of the group lasso; the prox is their composition."""
  second = group_lasso(groups)

  def value(x: jax.Array) -> jax.Array:
    m = jnp.asarray(mu).astype(x.dtype)
    return m * first.value(x) + (1 - m) * second.value(x)

  def prox(x: ArrayLike, step: ArrayLike) -> jax.Array:
    x = _validate.float_array("x", x)
    z, step = _penalty.checked(x, step)
    m = jnp.asarray(mu).astype(z.dtype)
    return second.prox(first.prox(z, step * m), step * (1 - m)).astype(x.dtype)

  def share(x: jax.Array, step: ArrayLike) -> jax.Array:
    step = jnp.asarray(step)
    inner = first.prox(x, step * mu)
    return _group_thresholds.block_share(inner, step * (1 - mu), 1.0, groups)

  def shrunk(x: jax.Array, step: ArrayLike, share: jax.Array) -> jax.Array:
    inner = first.prox(x, jnp.asarray(step) * mu)
    return _group_thresholds.times_share(inner, share)

  return _penalty.Penalty(
    _penalty.wide_value(value),
    _penalty.ProximalMap(prox, passes=_penalty.Passes(share, shrunk, heavy)),
  )


def _flat_groups(
  function: Callable[..., jax.Array],
) -> Callable[..., jax.Array]:
  """Lets `function(x, step)` see groups as rows, scaled to a largest entry of 1.

  For penalties that are homogeneous of degree two, whose prox commutes with
  scaling.
  """

  def prox(
    x: jax.Array, step: jax.Array, groups: _group_thresholds.Groups
  ) -> jax.Array:
    axes = _group_thresholds.group_axes(x, groups)
    last = tuple(range(x.ndim - len(axes), x.ndim))

    def flat(x: jax.Array) -> jax.Array:
      moved = jnp.moveaxis(x, axes, last)
      rows = moved.reshape(*moved.shape[: x.ndim - len(axes)], -1)
      return jnp.moveaxis(function(rows, step).reshape(moved.shape), last, axes)

    return _penalty.unsharded(flat, axes)(x)

  return prox


def _exclusive_threshold(rows: jax.Array, step: jax.Array) -> jax.Array:
  r"""Threshold by which the exact prox of the exclusive lasso shrinks each row.

  It is :math:`\gamma T` for :math:`T = \sum_i (|x_i| - \gamma T)_+`. Solved on
  the k largest entries alone T would be :math:`S_k / (1 + \gamma k)`, at most the
  true T, with equality for the true support: T is the maximum over k.
  """
  size = -jnp.sort(-_thresholds.magnitude(rows), axis=-1)
  count = jnp.arange(1, rows.shape[-1] + 1, dtype=rows.dtype)
  sums = jnp.cumsum(size, axis=-1) / (1 + step * count)
  return step * jnp.max(sums, axis=-1, keepdims=True)


def exclusive_lasso(groups: _group_thresholds.Groups = "out") -> _penalty.Penalty:
  r"""Few weights in each group, and no empty group: entries compete with each other.

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

  @_flat_groups
  def threshold(rows: jax.Array, step: jax.Array) -> jax.Array:
    scale = _group_thresholds.group_scale(rows, (rows.ndim - 1,))
    cut = scale * _exclusive_threshold(rows / scale, step)
    return rows - jnp.clip(rows, -cut, cut)

  return _penalty.Penalty(
    _exclusive_value(groups),
    _penalty.whole_prox(lambda x, step: threshold(x, step, groups), "exclusive_lasso"),
  )


def _exclusive_value(
  groups: _group_thresholds.Groups,
) -> Callable[[jax.Array], jax.Array]:
  def value(x: jax.Array) -> jax.Array:
    axes = _group_thresholds.group_axes(x, groups)
    return jnp.sum(jnp.square(jnp.sum(_thresholds.magnitude(x), axis=axes))) / 2

  return _penalty.wide_value(value)


def exclusive_lasso_one_step(
  groups: _group_thresholds.Groups = "out",
) -> _penalty.Penalty:
  r"""The exclusive lasso as CGES's code computes it, to reproduce that paper.

  .. math::
    u_g = S_{\gamma \|x_g\|_1}(x_g)

  The threshold is computed before the group shrinks, so it is larger than that of the
  exact prox, :func:`exclusive_lasso`. Use it only to reproduce Yoon & Hwang (2017).

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
    axes = _group_thresholds.group_axes(x, groups)
    cut = step * jnp.sum(_thresholds.magnitude(x), axis=axes, keepdims=True)
    return x - jnp.clip(x, -cut, cut)

  return _penalty.Penalty(
    _exclusive_value(groups), _penalty.whole_prox(prox, "exclusive_lasso_one_step")
  )


def combined_group_exclusive(
  mu: ArrayLike, groups: _group_thresholds.Groups = "out"
) -> _penalty.Penalty:
  r"""Few inputs for each neuron, and neurons that vanish: group and exclusive lasso.

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

  @_flat_groups
  def solve(rows: jax.Array, step: jax.Array) -> jax.Array:
    m = jnp.asarray(mu).astype(rows.dtype)
    scale = _group_thresholds.group_scale(rows, (rows.ndim - 1,))
    rows, first, second = rows / scale, step * m, step * (1 - m) / scale

    def shrunk(cut: jax.Array) -> jax.Array:
      # An infinite entry stays what its group is measured by.
      soft = jnp.where(jnp.isinf(rows), rows, rows - jnp.clip(rows, -cut, cut))
      return _group_thresholds.shrink_groups(soft, second, (rows.ndim - 1,))

    # The threshold is `first` times the l1 norm of the solution.
    def excess(cut: jax.Array) -> jax.Array:
      return cut - first * jnp.sum(
        _thresholds.magnitude(shrunk(cut)), axis=-1, keepdims=True
      )

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

  return _penalty.Penalty(
    _penalty.wide_value(value),
    _penalty.whole_prox(
      lambda x, step: solve(x, step, groups), "combined_group_exclusive"
    ),
  )
