"""What the transformations share: schedules, penalties of pytrees, steps of leaves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from rvsm_jax import _masks, _penalty, _validate


def as_schedule(
  name: str,
  value: optax.ScalarOrSchedule,
  check: Callable[[str, Any], None] = _validate.check_nonnegative,
) -> optax.Schedule:
  """A schedule from a number, which is checked, or from a schedule, which is not."""
  if callable(value):
    return value
  check(name, value)
  return lambda count: value


def pulled(
  w: jax.Array, d: jax.Array | None, target: jax.Array, rate: ArrayLike
) -> jax.Array | None:
  """The update d of w with a pull towards `target`; None where there is no d."""
  if d is None:
    return None
  dtype = _validate.compute_dtype(w.dtype)
  pull = jnp.asarray(rate).astype(dtype) * (w.astype(dtype) - target.astype(dtype))
  return (d.astype(dtype) - pull).astype(w.dtype)


def moved(params: optax.Params, updates: optax.Updates) -> optax.Params:
  """`optax.apply_updates` that lets leaves without an update stay."""
  return jax.tree.map(
    lambda w, d: w if d is None else optax.apply_updates(w, d), params, updates
  )


def prox(penalty: _penalty.Penalty, tree: Any, step: ArrayLike) -> Any:
  """The proximal map of each leaf of `tree`, or of all together."""
  if _penalty.is_joint(penalty):
    return penalty.prox(tree, step)
  if _penalty.passes(penalty) is None or jnp.ndim(step):
    return _masks.map_named(lambda x: penalty.prox(x, step), tree)
  return _masks.map_named(lambda x: penalty.prox(x, _own_one(x) * step), tree)


def prox_of_sum(
  penalty: _penalty.Penalty, w: jax.Array, d: jax.Array | None, step: ArrayLike
) -> jax.Array | optax.MaskedNode:
  """The proximal map of the sum of w and its update d; nothing without one."""
  passes = _penalty.passes(penalty)
  if d is None or passes is None or jnp.ndim(step):
    new = reached(w, d)
    return new if d is None else penalty.prox(new, step)

  def again(w: jax.Array, d: jax.Array, step: jax.Array) -> jax.Array:
    # XLA would keep the sum, or its map, in an array of its own until the numbers are
    # known. A factor that it does not know makes it take the sum again instead.
    d, one = d.astype(_validate.compute_dtype(w.dtype)), _own_one(w)
    numbers = passes.first(reached(w, one * d), one * step)
    one, numbers = jax.lax.optimization_barrier((one, numbers))
    return passes.second(reached(w, one * d), step, numbers)

  if not passes.heavy:
    return again(w, d, jnp.asarray(step))

  def kept(w: jax.Array, d: jax.Array, step: jax.Array) -> jax.Array:
    one = _own_one(w)
    return penalty.prox(reached(w, one * d), one * step)

  return jax.lax.platform_dependent(w, d, jnp.asarray(step), cpu=kept, default=again)


def _own_one(x: jax.Array) -> jax.Array:
  """A factor 1 that XLA does not know, and that no other leaf has.

  Ahead of a sum over groups XLA writes, on CPU, a number that several leaves share,
  such as the step, to an array as large as a leaf; but not its product with this one.
  """
  dtype = _validate.compute_dtype(x.dtype)
  return jax.lax.optimization_barrier((jnp.ones((), dtype), x))[0]


def value(penalty: _penalty.Penalty, tree: Any) -> jax.Array:
  """The penalty of `tree`: the sum over its leaves, or that of all together."""
  if _penalty.is_joint(penalty):
    return penalty.value(tree)
  return sum(jax.tree.leaves(_masks.map_named(penalty.value, tree)), jnp.zeros(()))


def reached(w: jax.Array, d: jax.Array | None) -> jax.Array | optax.MaskedNode:
  """The sum of w and its update d, in float32 or better; nothing without one."""
  if d is None:
    return optax.MaskedNode()
  dtype = _validate.compute_dtype(w.dtype)
  return w.astype(dtype) + d.astype(dtype)


def towards(w: jax.Array, new: jax.Array) -> jax.Array:
  """The update that leads from w to `new`, exactly where that is zero."""
  dtype = _validate.compute_dtype(w.dtype)
  # Rounded before the difference is taken, which is then exact at zeros.
  return (new.astype(w.dtype).astype(dtype) - w.astype(dtype)).astype(w.dtype)
