"""Proximal steps and penalty gradients, as Optax transformations."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from rvsm_jax import _masks, _penalties, _rvsm, _validate


class ProximalState(NamedTuple):
  """State of :func:`proximal`.

  Attributes:
    count: number of updates so far, int32.
  """

  count: jax.Array  # type: ignore[assignment]


class PenaltyGradientState(NamedTuple):
  """State of :func:`add_penalty_gradient`.

  Attributes:
    count: number of updates so far, int32.
  """

  count: jax.Array  # type: ignore[assignment]


def proximal(
  learning_rate: optax.ScalarOrSchedule,
  penalty: _penalties.Penalty,
  *,
  lam: optax.ScalarOrSchedule,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  r"""The proximal step of the proximal gradient method; last in a chain.

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
    without a zero.

  .. note::
    Wrap `optax.MultiSteps` around the whole chain: chained after a `MultiSteps`, the
    proximal step would be taken at every mini-step. Weights that are averaged after
    it (`optax.ema`, schedule-free) are not sparse: average first, or take
    `penalty.prox` of the average.

  Args:
    learning_rate: eta, that of the optimizer in front, a number or a schedule.
    penalty: the penalty P.
    lam: weight of the penalty, `>= 0`, a number or a schedule.
    mask: a pytree of bools, a prefix of one, or a function from params to one:
      which leaves are penalised. Others pass through.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state :class:`ProximalState`.

  Raises:
    TypeError: if `penalty` is no penalty or a selected leaf not of a floating type.
    ValueError: for arguments out of range, or if `update` gets no params.

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
    Ma et al., `Transformed l1 Regularization for Learning Sparse Deep Neural
    Networks`, 2019, section 3.2.
  """
  _penalties.check_penalty(penalty)
  learning_rate = _rvsm.as_schedule("learning_rate", learning_rate)
  lam = _rvsm.as_schedule("lam", lam)

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

    def move(w: jax.Array, d: jax.Array | None) -> jax.Array | None:
      if d is None:
        return None
      dtype = _validate.compute_dtype(w.dtype)
      new = penalty.prox(w.astype(dtype) + d.astype(dtype), step)
      # Rounded before the difference is taken, which is then exact at zeros.
      return (new.astype(w.dtype).astype(dtype) - w.astype(dtype)).astype(w.dtype)

    updates = _masks.map_selected(move, _masks.keep, mask, params, updates)
    return updates, ProximalState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def proximal_sgd(
  learning_rate: optax.ScalarOrSchedule,
  penalty: _penalties.Penalty,
  *,
  lam: optax.ScalarOrSchedule,
  momentum: ArrayLike | None = None,
  nesterov: bool = False,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  """`optax.sgd` followed by :func:`proximal`, with one learning rate.

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


def add_penalty_gradient(
  penalty: _penalties.Penalty,
  lam: optax.ScalarOrSchedule,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Adds the gradient of :math:`\lambda P` to the gradients; before the optimizer.

  The plain baseline: gradient descent on the penalised loss, which makes weights
  small but, unlike a proximal step, never zero. At zero the gradient of every
  penalty of this library is zero.

  Args:
    penalty: the penalty P.
    lam: weight of the penalty, `>= 0`, a number or a schedule.
    mask: a pytree of bools, a prefix of one, or a function from params to one:
      which leaves are penalised. Others pass through.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state
    :class:`PenaltyGradientState`.

  Raises:
    TypeError: if `penalty` is no penalty or a selected leaf not of a floating type.
    ValueError: for arguments out of range, or if `update` gets no params.

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
  _penalties.check_penalty(penalty)
  lam = _rvsm.as_schedule("lam", lam)

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

    def add(w: jax.Array, g: jax.Array | None) -> jax.Array | None:
      if g is None:
        return None
      dtype = _validate.compute_dtype(w.dtype)
      slope = jax.grad(penalty.value)(w.astype(dtype))
      weight = jnp.asarray(lam(state.count)).astype(dtype)
      return (g.astype(dtype) + weight * slope).astype(g.dtype)

    updates = _masks.map_selected(add, _masks.keep, mask, params, updates)
    return updates, PenaltyGradientState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
