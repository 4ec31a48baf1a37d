"""The recommended recipe, with every choice made."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from rvsm_jax import _masks, _sets, _straight_through, _validate


class Recipe(NamedTuple):
  """The choices of :func:`sparsify`, all in one place.

  Attributes:
    begin: when the ramp begins, as a share of the steps.
    end: when it ends, likewise.
    settle: when the support is chosen for the last time, likewise.
    power: that of the ramp.
    feedback: factor of the updates of weights that are zero.
    floor: share that each leaf keeps of what it would if all had the same sparsity.
  """

  begin: float = 0.1
  end: float = 0.5
  settle: float = 0.9
  power: float = 3.0
  feedback: float = 0.5
  floor: float = 0.1


RECIPE = Recipe()


def sparsify(
  optimizer: optax.GradientTransformation,
  sparsity: ArrayLike,
  *,
  steps: ArrayLike,
  mask: _masks.Mask = _masks.kernels,
) -> optax.GradientTransformationExtraArgs:
  r"""Trains to a share of exact zeros with any optimizer: start here.

  It wraps your optimizer, and all it needs is the number of updates of the training.
  Learning rate schedules and the rest stay as they are. The params are the sparse
  network at any time; after `steps` updates, the share `sparsity` of the selected
  weights is exactly 0.0.

  It is :func:`straight_through` with a :func:`cardinality` that grows:

  - The gradient is taken at the sparse params, and moves dense latent weights. A weight
    that was dropped moves by half of its update, and comes back if it grows.
  - All layers share one budget: their weights are ranked together by magnitude. Each
    layer keeps at least about a tenth of what it would have with the same share
    everywhere, so that none is lost.
  - The share grows by :func:`sparsity_schedule`, from 0 after a tenth of the steps to
    `sparsity` after half of them. The support is chosen anew in every update.
  - After nine tenths of the steps, the support is chosen for the last time. From then
    on zeros stay zero, whatever momentum or weight decay do, and the rest settles, as
    with :func:`keep_zeros`.

  .. note::
    Wrap `optax.MultiSteps` and `optax.apply_if_finite` around it; `steps` counts
    updates, not mini-steps. A training that ends early does not reach the share.
    Let the learning rate fall to zero within the steps, so that the weights settle.

  Args:
    optimizer: any optimizer, or chain of transformations. Its params are the latent
      weights, so that weight decay acts there.
    sparsity: the share of zeros at the end, in [0, 1].
    steps: the number of updates of the training, `>= 1`.
    mask: a pytree of bools, a prefix of one, or a function from params to one:
      which leaves are made sparse. Others train by the optimizer alone.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state
    :class:`StraightThroughState`.

  Raises:
    TypeError: if `optimizer` is not an optimizer, or a selected leaf is not of a
      floating-point type.
    ValueError: for arguments out of range, or if `update` is called without params.

  Examples:
    >>> import jax
    >>> import optax
    >>> import rvsm_jax
    >>> goal = {"kernel": jax.random.normal(jax.random.key(0), (20, 50))}
    >>> tx = rvsm_jax.sparsify(optax.adamw(1e-2), 0.95, steps=200)
    >>> def step(carry, _):
    ...   params, state = carry
    ...   grads = jax.tree.map(lambda w, g: w - g, params, goal)
    ...   updates, state = tx.update(grads, state, params)
    ...   return (optax.apply_updates(params, updates), state), None
    >>> (params, state), _ = jax.lax.scan(step, (goal, tx.init(goal)), length=200)
    >>> print(rvsm_jax.sparsity(rvsm_jax.sparse_params(state, params)))
    0.95

  References:
    Lin et al., *Dynamic Model Pruning with Feedback*, 2020. Glandorf et al.,
    *Feather: An Elegant Solution to Effective DNN Sparsification*, 2023, for the ramp
    and the half. Zhu & Gupta, *To prune, or not to prune*, 2017.
  """
  return with_recipe(optimizer, sparsity, steps, mask, RECIPE)


def with_recipe(
  optimizer: optax.GradientTransformation,
  sparsity: ArrayLike,
  steps: ArrayLike,
  mask: _masks.Mask,
  recipe: Recipe,
) -> optax.GradientTransformationExtraArgs:
  """:func:`sparsify` by another recipe."""
  _validate.check_share("sparsity", sparsity)
  _validate.check_count("steps", steps)

  def last_choice() -> jax.Array:
    return jnp.ceil(recipe.settle * (_float32(steps) - 1))

  def share(count: jax.Array) -> jax.Array:
    begin, end = (x * _float32(steps) for x in (recipe.begin, recipe.end))
    left = jnp.clip((end - count) / (end - begin), 0, 1)
    ramp = _float32(sparsity) * (1 - left**recipe.power)
    return jnp.where(count >= last_choice(), _float32(sparsity), ramp)

  def sparse(latent: Any, params: optax.Params, count: jax.Array) -> Any:
    count = _float32(count)
    return jax.lax.cond(
      count <= last_choice(),
      lambda: _sets.largest(latent, share(count), recipe.floor),
      lambda: jax.tree.map(_on_support, params, latent),
    )

  inner = _straight_through.by_latent(
    "sparsify", optimizer, sparse, mask, recipe.feedback
  )

  def update_fn(
    updates: optax.Updates,
    state: _straight_through.StraightThroughState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, _straight_through.StraightThroughState]:
    _masks.require_params("sparsify", params)
    settled = _float32(state.count) > last_choice()

    # So that norms of all gradients are those of the weights that still train.
    def on_support(w: jax.Array, g: jax.Array | None) -> jax.Array | None:
      if g is None:
        return None
      return jnp.where(settled & (w == 0) & ~jnp.isnan(g), 0, g)

    updates = _masks.map_selected(on_support, _masks.keep, mask, params, updates)
    return inner.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def _float32(x: Any) -> jax.Array:
  return jnp.asarray(x, jnp.float32)


def _on_support(w: jax.Array, v: Any) -> Any:
  return v if isinstance(v, optax.MaskedNode) else jnp.where(w == 0, 0, v)
