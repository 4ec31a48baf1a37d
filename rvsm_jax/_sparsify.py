"""The recommended recipe, with every choice made."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rvsm_jax import _masks, _pruning, _sets, _straight_through, _validate


class Recipe(NamedTuple):
  """The choices of :func:`sparsify`, all in one place.

  Attributes:
    begin: when the ramp begins, as a share of the steps.
    end: when it ends, likewise.
    settle: when the support is chosen for the last time, likewise.
    power: that of the ramp.
    every: number of updates from one choice of the support to the next, at most.
    choices: number of such choices in `steps` updates, at least.
    floor: share that each leaf keeps of what it had if all had the same sparsity.
  """

  begin: float = 0.0
  end: float = 0.5
  settle: float = 0.75
  power: float = 3.0
  every: int = 16
  choices: int = 100
  floor: float = 0.1


RECIPE = Recipe()


def sparsify(
  optimizer: optax.GradientTransformation,
  sparsity: float,
  *,
  steps: int,
  mask: _masks.Mask = _masks.kernels,
) -> optax.GradientTransformationExtraArgs:
  return with_recipe(optimizer, sparsity, steps, mask, RECIPE)


def with_recipe(
  optimizer: optax.GradientTransformation,
  sparsity: Any,
  steps: Any,
  mask: _masks.Mask,
  recipe: Recipe,
) -> optax.GradientTransformationExtraArgs:
  """:func:`sparsify` by another recipe."""
  _validate.check_share("sparsity", sparsity)
  _validate.check_count("steps", steps)
  steps = jnp.asarray(steps)
  every = jnp.clip(steps // recipe.choices, 1, recipe.every)
  # Of the choices of the support the last one.
  last = jnp.ceil(recipe.settle * (steps - 1)).astype(steps.dtype)

  def share(count: jax.Array) -> jax.Array:
    at = jnp.minimum(count, last) / steps
    left = jnp.clip((recipe.end - at) / (recipe.end - recipe.begin), 0, 1)
    return sparsity * (1 - left**recipe.power)

  def sparse(latent: Any, params: optax.Params, count: jax.Array) -> Any:
    renew = (count < last) & (count % every == 0) | (count == last)
    return jax.lax.cond(
      renew,
      lambda: _sets.largest(latent, share(count), recipe.floor),
      lambda: jax.tree.map(lambda v, w: jnp.where(w == 0, 0, v), latent, params),
    )

  inner = _straight_through.by_latent("sparsify", optimizer, sparse, mask)

  def update_fn(
    updates: optax.Updates,
    state: _straight_through.StraightThroughState,
    params: optax.Params | None = None,
    **extra_args: Any,
  ) -> tuple[optax.Updates, _straight_through.StraightThroughState]:
    _masks.require_params("sparsify", params)

    def settled(w: jax.Array, g: jax.Array | None) -> jax.Array | None:
      return (
        None
        if g is None
        else jnp.where(state.count > last, _pruning.stay_zero(w, g), g)
      )

    updates = _masks.map_selected(settled, _masks.keep, mask, params, updates)
    return inner.update(updates, state, params, **extra_args)

  return optax.GradientTransformationExtraArgs(inner.init, update_fn)
