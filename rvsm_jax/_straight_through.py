r"""Gradients at the sparse point, applied to dense latent weights.

After an update from w to x the params are :math:`\mathrm{fl}(w + \mathrm{fl}(x - w))`,
since updates are differences that the caller adds. That is not always x, but an update
from w to what it is, :func:`_landed`, leads there. So the latent weights move to such
numbers only, seen from where they were: what the map keeps or sends to zero is then
exactly what the params become, whether they were zero or not.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rvsm_jax import _masks, _penalty, _transform, _validate


class StraightThroughState(NamedTuple):
  """State of :func:`straight_through` and :func:`sparsify`.

  Attributes:
    count: number of updates so far, int32.
    latent: the dense weights v, in the structure of the params;
      `optax.MaskedNode()` where the mask selects nothing.
    inner_state: that of the optimizer.
  """

  count: jax.Array  # type: ignore[assignment]
  latent: Any
  inner_state: optax.OptState


def straight_through(
  optimizer: optax.GradientTransformation,
  penalty: _penalty.Penalty,
  *,
  step: optax.ScalarOrSchedule,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  r"""For a few tenths of a point more than `sparsify`: gradients at the sparse weights.

  It wraps the optimizer. The state holds dense, latent weights v. The params of the
  model are the sparse network :math:`u`, at which the gradient is taken:

  .. math::
    v_{t+1} &= v_t + \mathrm{optimizer}(\nabla f(u_t);\, v_t) \\
    u_{t+1} &= \mathrm{prox}_{\gamma_t P}(v_{t+1})

  A weight that is zero in u still moves in v, and comes back when its v has grown past
  the threshold. With :func:`l0`, :func:`group_l0` or :func:`cardinality` this is
  pruning with feedback; with :func:`l1` and `optax.sgd` it is the linearized Bregman
  iteration; with quantising maps, PARQ and BinaryRelax. :func:`rvsm` takes the gradient
  at the dense weights instead.

  .. note::
    The latent weights start as a copy of the params, so that the first update turns
    dense params into sparse ones.

  .. note::
    After `optax.apply_updates` zeros are exactly 0.0, and the params exactly
    :math:`\mathrm{prox}(v)` for maps that keep an entry or send it to zero: v is
    rounded to numbers that a sum u + (u' - u) can give. With maps that shrink or
    quantise, params and :math:`\mathrm{prox}(v)` differ by the rounding of that sum.

  Args:
    optimizer: any optimizer, or chain of transformations. Its params are v, so that
      weight decay acts there.
    penalty: the penalty P.
    step: :math:`\gamma`, `>= 0`, a number or a schedule of the number of updates
      before; :func:`step_for_threshold` gives it from a threshold.
    mask: a pytree of bools, a prefix of one, or a function from params to one:
      which leaves are made sparse. Others train by the optimizer alone.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state
    :class:`StraightThroughState`. Do not chain it: what follows the optimizer
    goes inside, and `optax.MultiSteps` and `optax.apply_if_finite` go around it.

  Raises:
    TypeError: if `optimizer` or `penalty` is not one, or a selected leaf is not of a
      floating-point type.
    ValueError: for arguments out of range, or if `update` is called without params.

  Examples:
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rvsm_jax
    >>> tx = rvsm_jax.straight_through(optax.sgd(0.25), rvsm_jax.l0(), step=0.5)
    >>> params = jnp.array([3.0, 0.75])
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...   updates, state = tx.update(jnp.array([1.0, -1.0]), state, params)
    ...   params = optax.apply_updates(params, updates)
    ...   print(params, state.latent)
    [2.75 0.  ] [2.75 1.  ]
    [2.5  1.25] [2.5  1.25]

  References:
    Lin et al., *Dynamic Model Pruning with Feedback*, 2020. Cai, Osher & Shen,
    *Linearized Bregman iterations for compressed sensing*, 2009.
  """
  _penalty.check_penalty(penalty)
  step = _transform.as_schedule("step", step)

  def sparse(latent: Any, params: optax.Params, count: jax.Array) -> Any:
    del params
    return _transform.prox(penalty, latent, step(count))

  return by_latent("straight_through", optimizer, sparse, mask)


def by_latent(
  name: str,
  optimizer: optax.GradientTransformation,
  sparse: Callable[[Any, optax.Params, jax.Array], Any],
  mask: _masks.Mask,
  feedback: float = 1.0,
) -> optax.GradientTransformationExtraArgs:
  """Latent weights that `optimizer` moves, and params that are their sparse image.

  `sparse` maps new latent weights, the old params, both without the leaves that are
  not selected, and the number of updates before to the new params. `feedback` scales
  the updates of the latent weights of which the param is zero.
  """
  if not isinstance(optimizer, optax.GradientTransformation):
    raise TypeError(
      "optimizer must be an Optax optimizer, such as optax.sgd(0.1), got"
      f" {optimizer!r}."
    )
  optimizer = optax.with_extra_args_support(optimizer)

  def init_fn(params: optax.Params) -> StraightThroughState:
    # Copies, because params and state may both be donated.
    latent = _masks.map_selected(
      lambda w: jnp.array(w, copy=True), _masks.drop, mask, params
    )
    return StraightThroughState(
      jnp.zeros([], jnp.int32), latent, optimizer.init(params)
    )

  def update_fn(
    updates: optax.Updates,
    state: StraightThroughState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, StraightThroughState]:
    _masks.require_params(name, params)
    dense = _masks.map_selected(
      lambda _, v: v, lambda w, _: w, mask, params, state.latent
    )
    updates, inner_state = optimizer.update(
      updates, state.inner_state, dense, **extra_args
    )

    def move(w: jax.Array, v: jax.Array, d: jax.Array | None) -> Any:
      if d is None:
        return optax.MaskedNode()
      if feedback != 1:
        d = jnp.where(w == 0, feedback * d, d)
      return _landed(v, optax.apply_updates(v, d))

    latent = _masks.map_selected(move, _masks.drop, mask, params, state.latent, updates)
    new = sparse(latent, _masks.pick(mask, params), state.count)
    updates = _masks.map_selected(
      lambda w, d, u: None if d is None else _difference(w, u),
      _masks.keep,
      mask,
      params,
      updates,
      new,
    )
    latent = _masks.map_selected(
      lambda _, v, z: v if isinstance(z, optax.MaskedNode) else z,
      _masks.drop,
      mask,
      params,
      state.latent,
      latent,
    )
    count = optax.safe_increment(state.count)
    return updates, StraightThroughState(count, latent, inner_state)

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _rounded(x: jax.Array, dtype: Any) -> jax.Array:
  """x to the precision of `dtype`, in a way that XLA does not undo."""
  to = jnp.finfo(dtype)
  if jnp.finfo(x.dtype).bits == to.bits:
    return x
  return jax.lax.reduce_precision(x, to.nexp, to.nmant)


def _difference(w: jax.Array, x: jax.Array) -> jax.Array:
  """The update from w to x."""
  wide = _validate.compute_dtype(w.dtype)
  return _rounded(x.astype(wide) - w.astype(wide), w.dtype).astype(w.dtype)


def _landed(w: jax.Array, x: jax.Array) -> jax.Array:
  """What w is after the update from it to x."""
  wide = _validate.compute_dtype(w.dtype)
  sum_ = w.astype(wide) + _difference(w, x).astype(wide)
  return _rounded(sum_, w.dtype).astype(w.dtype)
