"""Proximal steps and penalty gradients, as Optax transformations."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from rvsm_jax import _masks, _penalty, _transform, _validate


class ProximalState(NamedTuple):
  """State of :func:`proximal`.

  Attributes:
    count: number of updates so far, int32.
  """

  count: jax.Array  # type: ignore[assignment]


class ProximalAdamState(NamedTuple):
  """State of :func:`proximal_adam`.

  Attributes:
    count: number of updates so far, int32.
    mu: exponential moving average of the gradients, in the structure of the params.
    nu: that of their squares.
  """

  count: jax.Array  # type: ignore[assignment]
  mu: optax.Updates
  nu: optax.Updates


class PenaltyGradientState(NamedTuple):
  """State of :func:`add_penalty_gradient`.

  Attributes:
    count: number of updates so far, int32.
  """

  count: jax.Array  # type: ignore[assignment]


def proximal(
  learning_rate: optax.ScalarOrSchedule,
  penalty: _penalty.Penalty,
  *,
  lam: optax.ScalarOrSchedule,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Makes zeros in the model's own weights, after SGD. Put it last in a chain.

  This is the proximal step of the proximal gradient method.

  With d the updates of the optimizer in front, the new weights are

  .. math::
    w_{t+1} = \mathrm{prox}_{\eta\lambda P}(w_t + d_t)

  and their zeros are exactly 0.0 after `optax.apply_updates`. After `optax.sgd`
  without momentum this is the proximal gradient method, which minimises
  :math:`f + \lambda P` for convex P.

  .. warning::
    After Adam this Euclidean step is what Ma et al. (2019) do, but it does not
    minimise :math:`f + \lambda P`: Adam's steps have another metric in every
    coordinate. On an ill-conditioned quadratic plus l1 it stops above the optimum,
    without a zero. :func:`proximal_adam` takes the step in Adam's metric.

  .. note::
    Updates are differences, :math:`w_{t+1} - w_t`, so the old weights must be kept
    until the group norms of the new ones are known, and the sum :math:`w_t + d_t` is
    then computed twice. (On CPU, with :func:`integrated_tl1`, it is kept in temporary
    memory instead, which is cheaper there.) Where this matters, leave the map out of
    the chain and apply it after `optax.apply_updates`, which needs neither::

      params = optax.apply_updates(params, updates)
      selected = rvsm_jax.kernels(params)
      params = jax.tree.map(
        lambda w, pick: penalty.prox(w, eta * lam) if pick else w, params, selected
      )

  .. note::
    Wrap `optax.MultiSteps` around the whole chain. Chained after a `MultiSteps`, the
    proximal step would act on every mini-step. Averages of the weights (`optax.ema`,
    schedule-free) are not sparse: average first, or apply `penalty.prox` to the
    average.

  Args:
    learning_rate: eta, the same as that of the optimizer in front; a number or a
      schedule.
    penalty: the penalty P.
    lam: weight of the penalty, `>= 0`, a number or a schedule.
    mask: a pytree of bools, a prefix of one, or a function from params to one:
      which leaves are penalised. The others pass through.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state :class:`ProximalState`.

  Raises:
    TypeError: if `penalty` is not a penalty, or a selected leaf is not of a
      floating-point type.
    ValueError: for arguments out of range, or if `update` is called without params.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rvsm_jax
    >>> tx = optax.chain(optax.sgd(0.5), rvsm_jax.proximal(0.5, rvsm_jax.l1(), lam=1.0))
    >>> params = jnp.array([2.0, 0.25])
    >>> state = tx.init(params)
    >>> updates, state = tx.update(jnp.array([1.0, 0.0]), state, params)
    >>> print(optax.apply_updates(params, updates))
    [1. 0.]

  References:
    Ma et al., *Transformed l1 Regularization for Learning Sparse Deep Neural
    Networks*, 2019, section 3.2.
  """
  _penalty.check_penalty(penalty)
  learning_rate = _transform.as_schedule("learning_rate", learning_rate)
  lam = _transform.as_schedule("lam", lam)

  def init_fn(params: optax.Params) -> ProximalState:
    _masks.selected(mask, params)
    return ProximalState(jnp.zeros([], jnp.int32))

  def update_fn(
    updates: optax.Updates,
    state: ProximalState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, ProximalState]:
    del extra_args
    _masks.require_params("proximal", params)
    step = learning_rate(state.count) * lam(state.count)

    if _penalty.is_joint(penalty):
      new = _masks.map_selected(_transform.reached, _masks.drop, mask, params, updates)
      new = penalty.prox(new, step)
    else:
      new = _masks.map_selected(
        lambda w, d: _transform.prox_of_sum(penalty, w, d, step),
        _masks.drop,
        mask,
        params,
        updates,
      )

    def move(w: jax.Array, d: jax.Array | None, z: jax.Array) -> jax.Array | None:
      return None if d is None else _transform.towards(w, z)

    updates = _masks.map_selected(move, _masks.keep, mask, params, updates, new)
    return updates, ProximalState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def proximal_sgd(
  learning_rate: optax.ScalarOrSchedule,
  penalty: _penalty.Penalty,
  *,
  lam: optax.ScalarOrSchedule,
  momentum: ArrayLike | None = None,
  nesterov: bool = False,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  """Shorthand for :func:`proximal` after `optax.sgd`, with one learning rate for both.

  Args:
    learning_rate: see :func:`proximal`.
    penalty: see :func:`proximal`.
    lam: see :func:`proximal`.
    momentum: see `optax.sgd`.
    nesterov: see `optax.sgd`.
    mask: see :func:`proximal`.

  Returns:
    An `optax.GradientTransformationExtraArgs`.

  Examples:
    >>> import rvsm_jax
    >>> tx = rvsm_jax.proximal_sgd(0.1, rvsm_jax.group_lasso("out"), lam=1e-3)
  """
  return optax.chain(
    optax.sgd(learning_rate, momentum, nesterov),
    proximal(learning_rate, penalty, lam=lam, mask=mask),
  )


def proximal_adam(
  learning_rate: optax.ScalarOrSchedule,
  penalty: _penalty.Penalty,
  *,
  lam: optax.ScalarOrSchedule,
  b1: ArrayLike = 0.9,
  b2: ArrayLike = 0.999,
  eps: ArrayLike = 1e-8,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Makes zeros in the model's own weights, with Adam: an optimizer of its own.

  Adam with a proximal step in its own diagonal metric.

  With Adam's bias-corrected moments :math:`\hat m, \hat v` of the gradients and its
  step :math:`s = \eta / (\sqrt{\hat v} + \varepsilon)` for each coordinate,

  .. math::
    w_{t+1} = \arg\min_u \; \lambda P(u)
      + \sum_i \frac{(u_i - (w_t - s \hat m)_i)^2}{2 s_i}

  For convex P its fixed points are the minimisers of :math:`f + \lambda P`, which
  those of :func:`proximal` after Adam are not; it approaches them as Adam does, as
  the learning rate falls. The map is exact for separable penalties, `group_lasso`,
  `group_l0` and `sparse_group_lasso`. For `integrated_tl1` it is, as in the Euclidean
  metric, the composition of the two maps.

  .. note::
    A weight whose gradient has always been zero has a step of eta / eps: only the
    penalty acts on it, and sends it to zero at once.

  Args:
    learning_rate: eta, a number or a schedule.
    penalty: the penalty P, separable or with group norms.
    lam: weight of the penalty, `>= 0`, a number or a schedule.
    b1: decay of the average of the gradients, in [0, 1).
    b2: decay of the average of their squares, in [0, 1). With half-precision params,
      give `optax.inject_hyperparams` a `hyperparam_dtype` of float32. It would
      otherwise round 0.999 to 1, which is out of range.
    eps: added to the root of the second moment, `>= 0`.
    mask: a pytree of bools, a prefix of one, or a function from params to one:
      which leaves are penalised. Others are updated by plain Adam.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state
    :class:`ProximalAdamState`.

  Raises:
    TypeError: if `penalty` is not a penalty, or a selected leaf is not of a
      floating-point type.
    ValueError: for arguments out of range, if `update` gets no params, or for a
      penalty without a proximal map in a diagonal metric, which it names.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rvsm_jax
    >>> tx = rvsm_jax.proximal_adam(0.25, rvsm_jax.l1(), lam=1.0)
    >>> params = jnp.array([2.0, 0.25])
    >>> state = tx.init(params)
    >>> updates, state = tx.update(jnp.array([1.0, 0.1]), state, params)
    >>> print(optax.apply_updates(params, updates).round(1))
    [1.5 0. ]

  References:
    Kingma & Ba, `Adam: A Method for Stochastic Optimization
    <https://arxiv.org/abs/1412.6980>`_, 2015.
  """
  _penalty.check_penalty(penalty)
  learning_rate = _transform.as_schedule("learning_rate", learning_rate)
  lam = _transform.as_schedule("lam", lam)
  for name, decay in (("b1", b1), ("b2", b2)):
    _validate.check(name, decay, "a number >= 0 and < 1", lambda v: (v >= 0) & (v < 1))
  _validate.check_nonnegative("eps", eps)
  if _penalty.is_joint(penalty):
    raise ValueError(
      "penalty must act on one array at a time for proximal_adam, got one of scope"
      ' "all", which has no proximal map in a diagonal metric: use proximal after'
      " optax.adam, or straight_through."
    )
  adam = optax.scale_by_adam(b1, b2, eps)

  def init_fn(params: optax.Params) -> ProximalAdamState:
    _masks.selected(mask, params)
    return ProximalAdamState(*adam.init(params))

  def update_fn(
    updates: optax.Updates,
    state: ProximalAdamState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, ProximalAdamState]:
    del extra_args
    _masks.require_params("proximal_adam", params)

    def per_gradient(function: Callable[..., Any], *trees: Any) -> Any:
      return jax.tree.map(function, updates, *trees, is_leaf=lambda g: g is None)

    def wide(g: Any, leaf: Any) -> jax.Array | None:
      # What has no gradient keeps its moments, which Optax would drop.
      if g is None or not jnp.issubdtype(g.dtype, jnp.inexact):
        return None
      return leaf.astype(_validate.compute_dtype(leaf.dtype))

    def stored(_: Any, new: jax.Array | None, old: Any) -> Any:
      return old if new is None else new.astype(old.dtype)

    grads, mu, nu = (per_gradient(wide, tree) for tree in (updates, state.mu, state.nu))
    direction, (count, mu, nu) = adam.update(
      grads, optax.ScaleByAdamState(state.count, mu, nu)
    )
    rate, weight = learning_rate(state.count), lam(state.count)

    def move(w: jax.Array, g: Any, d: Any, v: Any) -> jax.Array | None:
      if d is None:
        return g
      step = weight * rate / (jnp.sqrt(v) + eps)
      # NaN is for the weights to show.
      step = jnp.where(jnp.isnan(step), 0, step)
      return _transform.towards(w, penalty.prox(_transform.reached(w, -rate * d), step))

    def descend(w: jax.Array, g: Any, d: Any, _: Any) -> jax.Array | None:
      return g if d is None else (-rate * d).astype(w.dtype)

    new_updates = _masks.map_selected(
      move,
      descend,
      mask,
      params,
      updates,
      direction,
      optax.tree.bias_correction(nu, b2, count),
    )
    mu, nu = per_gradient(stored, mu, state.mu), per_gradient(stored, nu, state.nu)
    return new_updates, ProximalAdamState(count, mu, nu)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def add_penalty_gradient(
  penalty: _penalty.Penalty,
  lam: optax.ScalarOrSchedule,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  r"""The baseline of most papers, to compare with. It makes no exact zeros.

  Adds the gradient of :math:`\lambda P` to the gradients. Put it before the optimizer.

  This is gradient descent on the penalised loss. It makes weights small but, unlike a
  proximal step, never zero. At zero, the gradient of every penalty here is zero.

  Args:
    penalty: the penalty P.
    lam: weight of the penalty, `>= 0`, a number or a schedule.
    mask: a pytree of bools, a prefix of one, or a function from params to one:
      which leaves are penalised. The others pass through.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state
    :class:`PenaltyGradientState`.

  Raises:
    TypeError: if `penalty` is not a penalty, or a selected leaf is not of a
      floating-point type.
    ValueError: for arguments out of range, or if `update` is called without params.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rvsm_jax
    >>> baseline = rvsm_jax.add_penalty_gradient(rvsm_jax.l1(), 0.1)
    >>> tx = optax.chain(baseline, optax.sgd(1.0))
    >>> params = jnp.array([2.0, -2.0])
    >>> updates, _ = tx.update(jnp.zeros(2), tx.init(params), params)
    >>> print(updates)
    [-0.1  0.1]
  """
  _penalty.check_penalty(penalty)
  lam = _transform.as_schedule("lam", lam)

  def init_fn(params: optax.Params) -> PenaltyGradientState:
    _masks.selected(mask, params)
    return PenaltyGradientState(jnp.zeros([], jnp.int32))

  def update_fn(
    updates: optax.Updates,
    state: PenaltyGradientState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, PenaltyGradientState]:
    del extra_args
    _masks.require_params("add_penalty_gradient", params)

    def wide(w: jax.Array, g: jax.Array | None) -> jax.Array | optax.MaskedNode:
      return (
        optax.MaskedNode() if g is None else w.astype(_validate.compute_dtype(w.dtype))
      )

    slopes = jax.grad(lambda tree: _transform.value(penalty, tree))(
      _masks.map_selected(wide, _masks.drop, mask, params, updates)
    )

    def add(_: jax.Array, g: jax.Array | None, slope: jax.Array) -> jax.Array | None:
      if g is None:
        return None
      weight = jnp.asarray(lam(state.count)).astype(slope.dtype)
      return (g.astype(slope.dtype) + weight * slope).astype(g.dtype)

    updates = _masks.map_selected(add, _masks.keep, mask, params, updates, slopes)
    return updates, PenaltyGradientState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
