"""Zeros that stay: training on a support, and gradual magnitude pruning."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from rvsm_jax import _masks, _sets, _transform, _validate


class MagnitudePruningState(NamedTuple):
  """State of :func:`magnitude_pruning`.

  Attributes:
    count: number of updates so far, int32.
  """

  count: jax.Array  # type: ignore[assignment]


def keep_zeros(mask: _masks.Mask = None) -> optax.GradientTransformationExtraArgs:
  """For fine-tuning: weights that are zero stay zero. Put it last in a chain.

  If a weight is exactly zero, its update becomes zero, whatever momentum or weight
  decay in front made of it. NaN passes through.

  .. note::
    A leaf that starts at zero would never train, such as biases, or the last layers of
    some networks. Exclude it with a mask such as :func:`kernels`.

  Args:
    mask: a pytree of bools, a prefix of one, or a function from params to one: which
      leaves keep their zeros. The others pass through.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state `optax.EmptyState`.

  Raises:
    TypeError: if a selected leaf is not of a floating-point type.
    ValueError: for a mask that does not fit, or if `update` is called without params.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rvsm_jax
    >>> tx = optax.chain(optax.sgd(0.5), rvsm_jax.keep_zeros())
    >>> params = jnp.array([2.0, 0.0])
    >>> updates, _ = tx.update(jnp.ones(2), tx.init(params), params)
    >>> print(optax.apply_updates(params, updates))
    [1.5 0. ]
  """

  def init_fn(params: optax.Params) -> optax.EmptyState:
    _masks.selected(mask, params)
    return optax.EmptyState()

  def update_fn(
    updates: optax.Updates,
    state: optax.EmptyState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, optax.EmptyState]:
    del extra_args
    _masks.require_params("keep_zeros", params)
    return _masks.map_selected(stay_zero, _masks.keep, mask, params, updates), state

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def stay_zero(w: jax.Array, d: jax.Array | None) -> jax.Array | None:
  """The update d of w, zero where w is; NaN is for the weights to show."""
  return None if d is None else jnp.where((w == 0) & ~jnp.isnan(d), 0, d)


def magnitude_pruning(
  sparsity: optax.ScalarOrSchedule,
  *,
  scope: Literal["leaf", "all"] = "all",
  every: ArrayLike = 16,
  mask: _masks.Mask = _masks.kernels,
) -> optax.GradientTransformationExtraArgs:
  r"""Gradual magnitude pruning, the usual baseline. Put it last in a chain.

  With d the updates of the optimizer in front, and :math:`s_t` the sparsity,

  .. math::
    w_{t+1} = \mathrm{largest}_{1 - s_t}\bigl(w_t + d_t\, 1[w_t \ne 0]\bigr)

  where the map acts in every `every`-th update, and keeps exactly the share
  :math:`1 - s_t` of largest magnitude, as :func:`cardinality` does. A weight that is
  zero stays zero, whatever momentum or weight decay in front made of its update. So the
  zeros are the mask, and the params are the sparse network.

  Prefer :func:`sparsify`, in which a weight that was dropped comes back if the loss
  needs it.

  .. note::
    A leaf that starts at zero would never train: exclude it with the mask. Wrap
    `optax.MultiSteps` and `optax.apply_if_finite` around the whole chain.

  Args:
    sparsity: the share of zeros, a number in [0, 1] or a schedule of it, such as
      :func:`sparsity_schedule`; at the number of updates so far.
    scope: `"all"`, one share of all selected leaves together, or `"leaf"`, the same
      share of each.
    every: the number of updates from one pruning to the next, `>= 1`. The first update
      prunes.
    mask: a pytree of bools, a prefix of one, or a function from params to one: which
      leaves are pruned. The others pass through.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state
    :class:`MagnitudePruningState`.

  Raises:
    TypeError: if a selected leaf is not of a floating-point type.
    ValueError: for arguments out of range, or if `update` is called without params.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rvsm_jax
    >>> tx = optax.chain(optax.adam(1e-3), rvsm_jax.magnitude_pruning(0.5))
    >>> params = {"kernel": jnp.array([[3.0, -1.0], [2.0, 0.5]])}
    >>> updates, _ = tx.update(params, tx.init(params), params)
    >>> print(rvsm_jax.sparsity(optax.apply_updates(params, updates)))
    0.5

  References:
    Zhu & Gupta, *To prune, or not to prune: exploring the efficacy of pruning for
    model compression*, 2017.
  """
  sparsity = _transform.as_schedule("sparsity", sparsity, _validate.check_share)
  _validate.check_choice("scope", scope, ("leaf", "all"))
  _validate.check_count("every", every)

  def init_fn(params: optax.Params) -> MagnitudePruningState:
    _masks.selected(mask, params)
    return MagnitudePruningState(jnp.zeros([], jnp.int32))

  def update_fn(
    updates: optax.Updates,
    state: MagnitudePruningState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, MagnitudePruningState]:
    del extra_args
    _masks.require_params("magnitude_pruning", params)
    penalty = _sets.cardinality(sparsity(state.count), scope=scope)

    updates = _masks.map_selected(stay_zero, _masks.keep, mask, params, updates)
    new = _masks.map_selected(_transform.reached, _masks.drop, mask, params, updates)
    new = jax.lax.cond(
      state.count % every == 0,
      lambda tree: _transform.prox(penalty, tree, 1.0),
      lambda tree: tree,
      new,
    )

    def move(w: jax.Array, d: jax.Array | None, z: jax.Array) -> jax.Array | None:
      return None if d is None else _transform.towards(w, z)

    updates = _masks.map_selected(move, _masks.keep, mask, params, updates, new)
    return updates, MagnitudePruningState(optax.safe_increment(state.count))

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)
