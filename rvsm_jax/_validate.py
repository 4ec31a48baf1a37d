"""Checks of arguments: every message names the argument, its value, a remedy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def concrete(value: Any) -> np.ndarray | None:
  """The value as a NumPy array, or None if it is only known inside `jit`."""
  if isinstance(value, jax.core.Tracer):
    return None
  if isinstance(value, jax.Array) and not value.is_fully_addressable:
    return None
  return np.asarray(value)


def check(
  name: str, value: Any, requirement: str, holds: Callable[[np.ndarray], Any]
) -> None:
  """Raises unless `value` is a real number (or array) for which `holds`.

  Comparisons with NaN are false, so that `holds` written as a comparison
  refuses NaN. Tracers are not checked: their values are not known.

  Raises:
    TypeError: if `value` is no real number.
    ValueError: if `holds` is false for any element.
  """
  if isinstance(value, str) or value is None:
    raise TypeError(f"{name} must be {requirement}, got {value!r}.")
  number = concrete(value)
  if number is None:
    return
  if not (jnp.issubdtype(number.dtype, jnp.floating) or number.dtype.kind in "iu"):
    raise TypeError(f"{name} must be {requirement}, got {value!r}.")
  if not np.all(holds(number.astype(np.float64))):
    raise ValueError(f"{name} must be {requirement}, got {value!r}.")


def check_nonnegative(name: str, value: Any) -> None:
  """Raises unless `value >= 0`."""
  check(name, value, "a number >= 0", lambda v: v >= 0)


def check_positive(name: str, value: Any) -> None:
  """Raises unless `0 < value < inf`."""
  check(name, value, "a finite number > 0", lambda v: (v > 0) & np.isfinite(v))


def check_share(name: str, value: Any) -> None:
  """Raises unless `0 <= value <= 1`."""
  check(name, value, "a number in [0, 1]", lambda v: (v >= 0) & (v <= 1))


def check_count(name: str, value: Any) -> None:
  """Raises unless `value` is a whole number >= 1."""
  check(name, value, "a whole number >= 1", lambda v: (v >= 1) & (v % 1 == 0))


def check_choice(name: str, value: Any, choices: tuple) -> None:
  """Raises unless `value` is one of `choices`."""
  if value not in choices:
    raise ValueError(f"{name} must be one of {choices}, got {value!r}.")


def check_nm(n: Any, m: Any, axis: Any) -> None:
  """Raises unless these are integers, and `1 <= n <= m`."""
  for name, value in (("n", n), ("m", m), ("axis", axis)):
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
      raise TypeError(f"{name} must be an integer, got {value!r}.")
  if not 1 <= n <= m:
    raise ValueError(f"n must be from 1 to m, got n = {n} and m = {m}.")


def blocks(x: Any, m: int, axis: int) -> Any:
  """x with this axis at the end and split into blocks of m, for NumPy and JAX."""
  if not -x.ndim <= axis < x.ndim:
    raise ValueError(
      f"axis must be one of x, shape {x.shape}, got {axis}: mask out leaves without it,"
      " such as biases."
    )
  if x.shape[axis] % m:
    raise ValueError(
      f"m must divide the length of the axis {axis} of x, shape {x.shape}, got {m}:"
      " mask this leaf out, or take another axis."
    )
  order = [i for i in range(x.ndim) if i != axis % x.ndim] + [axis % x.ndim]
  last = x.transpose(order)
  return last.reshape(*last.shape[:-1], x.shape[axis] // m, m)


def float_array(name: str, x: Any) -> jax.Array:
  """`x` as a JAX array of real floating point numbers.

  Raises:
    TypeError: if `x` has any other type; integers are not promoted, because
      the result could then not have the dtype of `x`.
  """
  x = jnp.asarray(x)
  check_floating(name, x.dtype)
  return x


def check_floating(name: str, dtype: Any) -> None:
  """Raises TypeError unless `dtype` is a real floating point type."""
  if not jnp.issubdtype(dtype, jnp.floating):
    raise TypeError(
      f"{name} must be an array of real floating point numbers, got dtype {dtype}:"
      " cast it, or mask it out."
    )


def compute_dtype(dtype: Any) -> Any:
  """float32 for half precisions, otherwise `dtype` itself."""
  return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32
