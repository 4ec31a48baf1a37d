"""What the transformations share: schedules, and steps for one leaf."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from rvsm_jax import _penalty, _validate


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


def proximal_update(
  penalty: _penalty.Penalty, w: jax.Array, d: jax.Array, step: ArrayLike
) -> jax.Array:
  """The update that leads from w to the prox of w + d."""
  dtype = _validate.compute_dtype(w.dtype)
  new = penalty.prox(w.astype(dtype) + d.astype(dtype), step)
  # Rounded before the difference is taken, which is then exact at zeros.
  return (new.astype(w.dtype).astype(dtype) - w.astype(dtype)).astype(w.dtype)
