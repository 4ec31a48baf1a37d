r"""The relaxed variable splitting method (RVSM), as an Optax transformation.

RVSM trains :math:`f(w) + \lambda P(u) + \tfrac\beta2 \|w - u\|^2`: a gradient step on
w, which is pulled towards u, and a proximal step for u, whose zeros are exact.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike
import optax

from rvsm_jax import _masks, _penalty, _transform, _validate


class RVSMState(NamedTuple):
  """State of :func:`rvsm`.

  Attributes:
    count: number of updates so far, int32.
    u: the auxiliary weights, with exact zeros, in the structure of the params;
      `optax.MaskedNode()` where the mask selects nothing, None if not carried.
  """

  count: jax.Array  # type: ignore[assignment]
  u: Any


def rvsm(
  learning_rate: optax.ScalarOrSchedule,
  penalty: _penalty.Penalty,
  *,
  lam: optax.ScalarOrSchedule,
  beta: optax.ScalarOrSchedule,
  normalize: Literal["leaf", "global"] | None = None,
  ordering: Literal["gauss_seidel", "jacobi"] = "gauss_seidel",
  carry_u: bool = True,
  u_dtype: DTypeLike | None = None,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Trains dense weights w and sparse weights u together. Put it last in a chain.

  This is the relaxed variable splitting method (RVSM).

  It adds to the updates d of the optimizer in front a pull of the weights w towards u,
  which like decoupled weight decay stays outside momentum and scaling, and takes the
  proximal step for u:

  .. math::
    u_{t+1} &= \mathrm{prox}_{(\lambda/\beta) P}(w_t) \\
    w_{t+1} &= w_t + d_t - \eta \beta (w_t - u_{t+1})

  This is `ordering="gauss_seidel"`, Xue & Xin (2019), algorithm 1. The state holds
  the proximal step of the *new* weights, so that `u == prox(w)` holds between
  updates, for lam and beta at the state's count, and the next update uses it. With
  `ordering="jacobi"`, Dinh & Xin (2020), algorithm 1, :math:`w_{t+1}` uses the
  older :math:`u_t`, which the state holds. At a fixed point of either,
  :math:`\nabla f(w) = \beta (u - w)`.

  The sparse network is u: read it with :func:`sparse_params`. With l0, a weight that
  stays above the threshold :math:`\sqrt{2\lambda/\beta}` is never pulled. So the
  threshold, compared with the weights, sets the sparsity, and beta sets how closely w
  and u agree. First try a lam that is zero during a warm-up and then ramps up.

  .. note::
    Chain it after the optimizer, and wrap `optax.MultiSteps` or
    `optax.apply_if_finite` around the whole chain. Chained after a `MultiSteps`, it
    would act on every mini-step.

  Args:
    learning_rate: eta, the same as that of the optimizer in front; a number or a
      schedule.
    penalty: the penalty P.
    lam: weight of the penalty, `>= 0`, a number or a schedule.
    beta: stiffness of the pull, `> 0`, a number or a schedule.
    normalize: divide the new weights by their l2 norm, that of each selected leaf
      (`"leaf"`) or of all (`"global"`), as algorithm 1 of Xue & Xin has it.
    ordering: `"gauss_seidel"` or `"jacobi"`, see above.
    carry_u: if False, u is recomputed from the params instead of stored, and takes no
      memory; read it as `penalty.prox(w, lam / beta)`. Needs `"gauss_seidel"`.
    u_dtype: dtype of u in the state; None means that of the params. With a lower
      precision, the weights are pulled towards rounded values.
    mask: a pytree of bools, a prefix of one, or a function from params to one:
      which leaves have a u. The others pass through.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state :class:`RVSMState`.

  Raises:
    TypeError: if `penalty` is not a penalty, or a selected leaf is not of a
      floating-point type.
    ValueError: for arguments out of range, or if `update` is called without params.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rvsm_jax
    >>> tx = optax.chain(
    ...   optax.sgd(0.1), rvsm_jax.rvsm(0.1, rvsm_jax.l0(), lam=0.05, beta=1.0)
    ... )
    >>> params = jnp.array([1.0, 0.1])
    >>> state = tx.init(params)
    >>> updates, state = tx.update(jnp.array([1.0, 1.0]), state, params)
    >>> params = optax.apply_updates(params, updates)
    >>> print(params, rvsm_jax.sparse_params(state, params))
    [ 0.9  -0.01] [0.9 0. ]

  References:
    Xue & Xin, *Learning Sparse Neural Networks via l0 and Tl1 by a Relaxed Variable
    Splitting Method with Application to Multi-scale Curve Classification*, 2019.
    Dinh & Xin, *Convergence of a Relaxed Variable Splitting Method for Learning
    Sparse Neural Networks via l1, l0, and Transformed-l1 Penalties*, 2020.
  """
  _penalty.check_penalty(penalty)
  learning_rate = _transform.as_schedule("learning_rate", learning_rate)
  lam = _transform.as_schedule("lam", lam)
  beta = _transform.as_schedule("beta", beta, _validate.check_positive)
  _validate.check_choice("normalize", normalize, (None, "leaf", "global"))
  _validate.check_choice("ordering", ordering, ("gauss_seidel", "jacobi"))
  if not carry_u and ordering == "jacobi":
    raise ValueError(
      'carry_u=False needs ordering="gauss_seidel", got "jacobi", whose u is not a'
      " function of the current params."
    )
  if u_dtype is not None and not jnp.issubdtype(u_dtype, jnp.floating):
    raise TypeError(f"u_dtype must be a floating point dtype or None, got {u_dtype!r}.")

  repeats = _penalty.is_cheap(penalty)

  def split(params: optax.Params, count: jax.Array) -> Any:
    weight, stiffness = lam(count), beta(count)
    # Schedules may both start at zero: no penalty, whatever the stiffness.
    step = jnp.where(jnp.asarray(weight) > 0, weight / stiffness, 0)
    u = _transform.prox(penalty, _masks.pick(mask, params), step)
    return u if u_dtype is None else optax.tree.cast(u, u_dtype)

  def init_fn(params: optax.Params) -> RVSMState:
    count = jnp.zeros([], jnp.int32)
    u = None
    if carry_u:
      # A copy, because params and state may both be donated.
      u = jax.tree.map(lambda x: jnp.array(x, copy=True), split(params, count))
    return RVSMState(count, u)

  def update_fn(
    updates: optax.Updates,
    state: RVSMState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, RVSMState]:
    del extra_args
    _masks.require_params("rvsm", params)
    rate = learning_rate(state.count) * beta(state.count)

    # It costs less to repeat the cheapest maps than to read u from memory.
    repeated = state.u is None or (repeats and ordering == "gauss_seidel")

    u = split(params, state.count) if repeated else state.u
    updates = _masks.map_selected(
      lambda w, d, u: _transform.pulled(w, d, u, rate),
      _masks.keep,
      mask,
      params,
      updates,
      u,
    )
    if normalize is not None:
      updates = _normalized(updates, params, mask, whole=normalize == "global")
    count = optax.safe_increment(state.count)
    if not carry_u:
      return updates, RVSMState(count, None)
    new = params if ordering == "jacobi" else _transform.moved(params, updates)
    u = split(new, count)
    if repeated:
      # Nothing reads the old u, but with it there XLA writes over the donated one.
      u = jax.tree.map(
        lambda x, old: jax.lax.optimization_barrier((x, old))[0], u, state.u
      )
    return updates, RVSMState(count, u)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _normalized(
  updates: optax.Updates, params: optax.Params, mask: _masks.Mask, *, whole: bool
) -> optax.Updates:
  """Updates that lead to the selected leaves divided by their norm."""

  def reached(w: jax.Array, d: jax.Array | None) -> jax.Array:
    dtype = _validate.compute_dtype(w.dtype)
    return w.astype(dtype) if d is None else w.astype(dtype) + d.astype(dtype)

  squares = _masks.map_selected(
    lambda w, d: jnp.sum(jnp.square(reached(w, d))), _masks.drop, mask, params, updates
  )
  total = sum(jax.tree.leaves(squares))

  def normalized(
    w: jax.Array, d: jax.Array | None, square: jax.Array
  ) -> jax.Array | None:
    if d is None:
      return None
    norm = jnp.sqrt(total if whole else square)
    unit = reached(w, d) / jnp.where(norm > 0, norm, 1)
    return (unit - w.astype(unit.dtype)).astype(w.dtype)

  return _masks.map_selected(normalized, _masks.keep, mask, params, updates, squares)


def rvsm_sgd(
  learning_rate: optax.ScalarOrSchedule,
  penalty: _penalty.Penalty,
  *,
  lam: optax.ScalarOrSchedule,
  beta: optax.ScalarOrSchedule,
  momentum: ArrayLike | None = None,
  nesterov: bool = False,
  normalize: Literal["leaf", "global"] | None = None,
  ordering: Literal["gauss_seidel", "jacobi"] = "gauss_seidel",
  carry_u: bool = True,
  u_dtype: DTypeLike | None = None,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  """Shorthand for :func:`rvsm` after `optax.sgd`, with one learning rate for both.

  Args:
    learning_rate: see :func:`rvsm`.
    penalty: see :func:`rvsm`.
    lam: see :func:`rvsm`.
    beta: see :func:`rvsm`.
    momentum: see `optax.sgd`.
    nesterov: see `optax.sgd`.
    normalize: see :func:`rvsm`.
    ordering: see :func:`rvsm`.
    carry_u: see :func:`rvsm`.
    u_dtype: see :func:`rvsm`.
    mask: see :func:`rvsm`.

  Returns:
    An `optax.GradientTransformationExtraArgs`.

  Examples:
    >>> import rvsm_jax
    >>> tx = rvsm_jax.rvsm_sgd(
    ...   0.1, rvsm_jax.transformed_l1(1.0), lam=1e-4, beta=0.1, momentum=0.9
    ... )
  """
  return optax.chain(
    optax.sgd(learning_rate, momentum, nesterov),
    rvsm(
      learning_rate,
      penalty,
      lam=lam,
      beta=beta,
      normalize=normalize,
      ordering=ordering,
      carry_u=carry_u,
      u_dtype=u_dtype,
      mask=mask,
    ),
  )
