"""The alternating direction method of multipliers with a gradient step for w."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from rvsm_jax import _masks, _penalty, _transform, _validate


class ADMMState(NamedTuple):
  """State of :func:`admm`.

  Attributes:
    count: number of updates so far, int32.
    u: the auxiliary weights, with exact zeros, in the structure of the params;
      `optax.MaskedNode()` where the mask selects nothing.
    dual: the scaled dual variables (the multipliers over rho), likewise.
  """

  count: jax.Array  # type: ignore[assignment]
  u: Any
  dual: Any


def admm(
  learning_rate: optax.ScalarOrSchedule,
  penalty: _penalty.Penalty,
  *,
  rho: ArrayLike,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  r"""ADMM, for when w and u must agree in the end. Put it last in a chain.

  The minimisation over w is replaced by a gradient step.

  With d the updates of the optimizer in front and y the scaled dual variables,

  .. math::
    w_{t+1} &= w_t + d_t - \eta\rho (w_t - u_t + y_t) \\
    u_{t+1} &= \mathrm{prox}_{P/\rho}(w_{t+1} + y_t) \\
    y_{t+1} &= y_t + w_{t+1} - u_{t+1}

  This is the variation of Dinh & Xin (2020), equation (10) and section 6, who prune
  with `cardinality(0.6)`. The sparse network is u: read it with :func:`sparse_params`.
  Unlike in :func:`rvsm`, w and u are equal at a fixed point.

  Args:
    learning_rate: eta, the same as that of the optimizer in front; a number or a
      schedule.
    penalty: the penalty P; :func:`scaled` gives it a weight.
    rho: stiffness, `> 0`.
    mask: a pytree of bools, a prefix of one, or a function from params to one:
      which leaves have a u. The others pass through.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state :class:`ADMMState`.

  Raises:
    TypeError: if `penalty` is not a penalty, or a selected leaf is not of a
      floating-point type.
    ValueError: for arguments out of range, or if `update` is called without params.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rvsm_jax
    >>> tx = optax.chain(
    ...   optax.sgd(0.1), rvsm_jax.admm(0.1, rvsm_jax.cardinality(0.5), rho=1.0)
    ... )
    >>> params = jnp.array([1.0, 0.1])
    >>> print(rvsm_jax.sparse_params(tx.init(params), params))
    [1. 0.]

  References:
    Dinh & Xin, *Convergence of a Relaxed Variable Splitting Method for Learning
    Sparse Neural Networks via l1, l0, and Transformed-l1 Penalties*, 2020.
  """
  _penalty.check_penalty(penalty)
  learning_rate = _transform.as_schedule("learning_rate", learning_rate)
  _validate.check_positive("rho", rho)
  step = 1 / rho

  def init_fn(params: optax.Params) -> ADMMState:
    # Copies, because params and state may both be donated.
    u = _transform.prox(penalty, _masks.pick(mask, params), step)
    u = jax.tree.map(lambda x: jnp.array(x, copy=True), u)
    dual = _masks.map_selected(jnp.zeros_like, _masks.drop, mask, params)
    return ADMMState(jnp.zeros([], jnp.int32), u, dual)

  def update_fn(
    updates: optax.Updates,
    state: ADMMState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, ADMMState]:
    del extra_args
    _masks.require_params("admm", params)
    rate = learning_rate(state.count) * rho

    updates = _masks.map_selected(
      lambda w, d, u, y: _transform.pulled(w, d, u - y, rate),
      _masks.keep,
      mask,
      params,
      updates,
      state.u,
      state.dual,
    )
    new = _transform.moved(params, updates)
    shifted = _masks.map_selected(jnp.add, _masks.drop, mask, new, state.dual)
    u = _transform.prox(penalty, shifted, step)
    dual = _masks.map_selected(
      lambda w, y, u: y + w - u, _masks.drop, mask, new, state.dual, u
    )
    return updates, ADMMState(optax.safe_increment(state.count), u, dual)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
