"""A target sparsity in place of a weight of the penalty: ramp and feedback."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rvsm_jax import _masks, _metrics, _sparse_params, _transform, _validate

# A proportional and integral controller of log(lam). The average makes it stable where
# sparsity follows lam at once, the proportional part where it follows late.
_LARGEST_ERROR = 3.0
_INTEGRAL_STEPS = 50
_AVERAGE_STEPS = 20


class TargetSparsityState(NamedTuple):
  """State of :func:`target_sparsity`.

  Attributes:
    count: number of updates so far, int32.
    lam: weight of the penalty in the last update, float32.
    log_lam: the logarithm that it is moving to, float32.
    sparsity: running average of the share of zeros, float32.
    inner_state: that of the transformation.
  """

  count: jax.Array  # type: ignore[assignment]
  lam: jax.Array
  log_lam: jax.Array
  sparsity: jax.Array
  inner_state: optax.OptState


def sparsity_schedule(
  target: float,
  steps: int,
  *,
  begin: int = 0,
  initial: float = 0.0,
  power: float = 3.0,
) -> optax.Schedule:
  r"""A ramp for a target sparsity: fast at first, then slow.

  This is the schedule of Zhu & Gupta (2018).

  .. math::
    s_t = s_f + (s_0 - s_f) \left(1 - \frac{t - t_0}{n}\right)^p

  for :math:`t_0 \le t \le t_0 + n`; :math:`s_0` before, :math:`s_f` after.

  Args:
    target: the share of zeros at the end, :math:`s_f`, in [0, 1].
    steps: length of the ramp, n, `> 0`.
    begin: the step at which it begins, :math:`t_0`, `>= 0`.
    initial: the share of zeros at the beginning, :math:`s_0`, in [0, 1].
    power: p, `> 0`.

  Returns:
    An `optax.Schedule`, for :func:`target_sparsity`, or, by
    `optax.inject_hyperparams`, for :func:`cardinality`.

  Raises:
    TypeError: for an argument that is not a number.
    ValueError: for arguments out of range.

  Examples:
    >>> import rvsm_jax
    >>> schedule = rvsm_jax.sparsity_schedule(0.9, 20_000)
    >>> [round(float(schedule(step)), 3) for step in (0, 5_000, 10_000, 20_000, 30_000)]
    [0.0, 0.52, 0.787, 0.9, 0.9]

  References:
    Zhu & Gupta, *To prune, or not to prune: exploring the efficacy of pruning for
    model compression*, 2017.
  """
  _validate.check_share("target", target)
  _validate.check_share("initial", initial)
  _validate.check_positive("steps", steps)
  _validate.check_nonnegative("begin", begin)
  _validate.check_positive("power", power)
  return optax.polynomial_schedule(initial, target, power, steps, begin)


def target_sparsity(
  make_tx: Callable[[jax.Array], optax.GradientTransformation],
  sparsity: optax.ScalarOrSchedule,
  *,
  lam: float = 1e-5,
  gain: float = 2.0,
  bounds: tuple[float, float] = (1e-12, 1e3),
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  r"""Reaches a share of zeros with any penalty, groups included, by adapting lam.

  Before each update it counts the zeros, of u where the transformation carries one and
  of the params otherwise, and moves :math:`\lambda` against the error: that of the
  number of non-zeros, as a logarithm, since from 98 to 99% is as far as from 50 to 75%.
  With the target :math:`s_t`, and :math:`\bar{s_t}` the average of the measured shares
  over about 20 updates,

  .. math::
    e_t &= \log\frac{1 - \bar{s_t}}{1 - s_t} \\
    \log \mu_{t+1} &= \log \mu_t + g e_t / 50 \\
    \lambda_t &= \mu_{t+1} \, \exp(g e_t)

  0.0001 is added to both shares of non-zeros, and e is cut at 3 and -3. While the
  target is zero, so is lam.

  The zeros still come from the penalty, as they would with a lam that you choose; only
  its strength is found for you. If you want to keep the largest weights, exactly as
  many as the target allows, use :func:`cardinality` with the ramp instead.

  .. note::
    Give the ramp a thousand updates or more: lam takes a few hundred to find its
    scale. Start with a small lam; one that is too small costs steps, one that is too
    large costs weights. Where sparsity moves in jumps, a group or a layer at a time,
    it stays within one jump of the target, and lam drifts up and down. With
    :func:`proximal`, zeros come and go with the noise of the gradients, whatever lam
    is. Wrap `optax.MultiSteps` and `optax.apply_if_finite` around it.

  Args:
    make_tx: from lam, a float32 scalar, to a transformation; called in each trace.
    sparsity: the target, a share in [0, 1] of the weights selected, or a schedule of
      it such as :func:`sparsity_schedule`.
    lam: where the search begins, within `bounds`.
    gain: g, `> 0`: how far lam moves for an error.
    bounds: the limits of lam, `0 < low <= high`. If lam comes to rest at one of them,
      the target is out of reach.
    mask: a pytree of bools, a prefix of one, or a function from params to one: which
      leaves count. Usually the mask of the transformation.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state
    :class:`TargetSparsityState`, in which :func:`sparse_params` finds u.

  Raises:
    TypeError: if `make_tx` is not a function, or does not return a transformation.
    ValueError: for arguments out of range, if `update` is called without params, or
      for `rvsm(carry_u=False)`, whose zeros cannot be counted.

  Examples:
    >>> import jax
    >>> import optax
    >>> import rvsm_jax
    >>> tx = rvsm_jax.target_sparsity(
    ...   lambda lam: rvsm_jax.rvsm_sgd(0.1, rvsm_jax.l1(), lam=lam, beta=0.1),
    ...   rvsm_jax.sparsity_schedule(0.9, 1000),
    ... )
    >>> goal = jax.random.normal(jax.random.key(0), (1000,))
    >>> def step(carry, _):
    ...   params, state = carry
    ...   updates, state = tx.update(params - goal, state, params)
    ...   return (optax.apply_updates(params, updates), state), None
    >>> (params, state), _ = jax.lax.scan(step, (goal, tx.init(goal)), length=1000)
    >>> sparse = rvsm_jax.sparse_params(state, params)
    >>> print(f"{rvsm_jax.sparsity(sparse):.0%}")
    90%
  """
  if not callable(make_tx):
    raise TypeError(
      "make_tx must be a function from lam to a transformation, such as"
      f" `lambda lam: proximal_sgd(..., lam=lam)`, got {make_tx!r}."
    )
  schedule = _transform.as_schedule("sparsity", sparsity, _validate.check_share)
  _validate.check_positive("gain", gain)
  _validate.check(
    "bounds",
    bounds,
    "two finite numbers, 0 < low <= high",
    lambda v: v.shape == (2,) and 0 < v[0] <= v[1] < float("inf"),
  )
  low, high = bounds
  _validate.check(
    "lam", lam, f"a number within bounds, {bounds}", lambda v: (v >= low) & (v <= high)
  )

  def inner(weight: jax.Array) -> optax.GradientTransformationExtraArgs:
    tx = make_tx(weight)
    if not isinstance(tx, optax.GradientTransformation):
      raise TypeError(f"make_tx must return a transformation, got {tx!r}.")
    return optax.with_extra_args_support(tx)

  def init_fn(params: optax.Params) -> TargetSparsityState:
    _masks.selected(mask, params)
    weight = jnp.where(_float32(schedule(0)) > 0, _float32(lam), 0)
    return TargetSparsityState(
      jnp.zeros([], jnp.int32),
      weight,
      jnp.log(_float32(lam)),
      jnp.zeros([], jnp.float32),
      inner(weight).init(params),
    )

  def update_fn(
    updates: optax.Updates,
    state: TargetSparsityState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, TargetSparsityState]:
    _masks.require_params("target_sparsity", params)
    wanted = _float32(schedule(state.count))
    # What the last update left: to count what this one leaves would need it whole
    # before it is written.
    zeros = _share_of_zeros(state.inner_state, params, mask)
    share = state.sparsity + (zeros - state.sparsity) / _AVERAGE_STEPS
    # The constant is for targets of 100%.
    error = jnp.log((1.0001 - share) / (1.0001 - wanted))
    push = gain * jnp.clip(error, -_LARGEST_ERROR, _LARGEST_ERROR)
    within = jnp.log(_float32(low)), jnp.log(_float32(high))
    log_lam = jnp.clip(state.log_lam + push / _INTEGRAL_STEPS, *within)
    weight = jnp.where(wanted > 0, jnp.exp(jnp.clip(log_lam + push, *within)), 0)
    updates, inner_state = inner(weight).update(
      updates, state.inner_state, params, **extra_args
    )
    return updates, TargetSparsityState(
      optax.safe_increment(state.count),
      weight,
      # What is zero before the penalty sets in says nothing about it.
      jnp.where(wanted > 0, log_lam, state.log_lam),
      share,
      inner_state,
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _float32(x: Any) -> jax.Array:
  return jnp.asarray(x, jnp.float32)


def _share_of_zeros(
  state: optax.OptState, params: optax.Params, mask: _masks.Mask
) -> jax.Array:
  """The zeros of the sparse network, over the leaves that the mask selects."""
  picked = jax.tree.leaves(_masks.selected(mask, params))
  leaves = jax.tree.leaves(_sparse_params.sparse_params(state, params))
  return _metrics.sparsity([x for x, p in zip(leaves, picked, strict=True) if p])
