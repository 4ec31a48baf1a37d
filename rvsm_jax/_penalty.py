r"""Penalties: pairs of pure functions, a value and its proximal map.

A penalty acts on one array. Transformations apply it to every selected leaf of a
pytree, or, if it is one of a whole pytree, to all of them together. `prox(x, step)` is
:math:`\arg\min_u step\, P(u) + \tfrac12\|u - x\|^2`; where the minimiser is not unique,
one of the minimisers.
"""

from collections.abc import Callable, Iterable
import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rvsm_jax import _thresholds, _validate


class Penalty(NamedTuple):
  r"""A penalty P, the twin of `optax.GradientTransformation(init, update)`.

  Attributes:
    value: `value(x)` is P(x), a scalar of the dtype of `x`, float32 for half
      precisions.
    prox: `prox(x, step)` is
      :math:`\arg\min_u step\,P(u) + \tfrac12\|u-x\|^2`, with the shape and dtype
      of `x`. `step >= 0` may be a tracer and, for separable penalties and those
      with group norms, an array that broadcasts to `x`, a diagonal metric:
      :math:`\arg\min_u P(u) + \sum_i (u_i-x_i)^2 / (2\,step_i)`. `prox(x, 0)` is
      `x`; NaN and infinities pass through.

  A penalty of your own needs only these two functions:

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> ridge = rvsm_jax.Penalty(
    ...   value=lambda x: jnp.sum(jnp.square(x)) / 2,
    ...   prox=lambda x, step: x / (1 + step),
    ... )
    >>> print(ridge.prox(jnp.array([2.0, 4.0]), 1.0))
    [1. 2.]
  """

  value: Callable[[jax.Array], jax.Array]
  prox: Callable[[jax.Array, ArrayLike], jax.Array]


class Cutoff(NamedTuple):
  """The threshold of a proximal map, up to which it sends magnitudes to zero.

  Attributes:
    of_step: from a step to the threshold.
    to_step: from a threshold to the step that has it.
  """

  of_step: Callable[..., jax.Array]
  to_step: Callable[..., jax.Array]


class Passes(NamedTuple):
  """A proximal map in two passes over x, for a step that is a scalar.

  Attributes:
    first: from `(x, step)` to some numbers of the whole array.
    second: from `(x, step, numbers)` to the proximal map.
    heavy: whether both take so many operations that a CPU does better to keep what they
      share.
  """

  first: Callable[[jax.Array, ArrayLike], jax.Array]
  second: Callable[[jax.Array, ArrayLike, jax.Array], jax.Array]
  heavy: bool = False


@dataclasses.dataclass(frozen=True)
class ProximalMap:
  """A proximal map of this library, and what is known of it.

  Kept with the map itself, so that it is there in any `Penalty` made of it.

  Attributes:
    function: the map of `(x, step)`.
    cutoff: its threshold, None if it has none.
    cheap: whether it takes so few operations that a pass over memory costs more.
    joint: whether it, and the value beside it, take a whole pytree.
    passes: it as two passes, where it is no single one.
  """

  function: Callable[..., Any]
  cutoff: Cutoff | None = None
  cheap: bool = False
  joint: bool = False
  passes: Passes | None = None

  def __call__(self, x: Any, step: ArrayLike) -> Any:
    return self.function(x, step)


def is_cheap(penalty: Penalty) -> bool:
  """Whether it costs less to repeat the proximal map than to keep its result."""
  return isinstance(penalty.prox, ProximalMap) and penalty.prox.cheap


def is_joint(penalty: Penalty) -> bool:
  """Whether the penalty is one of a whole pytree."""
  return isinstance(penalty.prox, ProximalMap) and penalty.prox.joint


def passes(penalty: Penalty) -> Passes | None:
  """Its proximal map in two passes over memory, if it is one that needs them."""
  return penalty.prox.passes if isinstance(penalty.prox, ProximalMap) else None


def wide_value(function: Callable[..., Any]) -> Callable[[jax.Array], jax.Array]:
  """`function` evaluated in float32 or better."""

  def value(x: ArrayLike) -> jax.Array:
    x = _validate.float_array("x", x)
    return function(x.astype(_validate.compute_dtype(x.dtype)))

  return value


def whole_prox(
  function: Callable[[jax.Array, jax.Array], jax.Array], scalar_for: str = ""
) -> ProximalMap:
  """`function(x, step)` of a whole array, in float32 or better.

  The step is a scalar or has one value per entry; if `scalar_for` names a penalty, it
  is a scalar.
  """

  def prox(x: ArrayLike, step: ArrayLike) -> jax.Array:
    x = _validate.float_array("x", x)
    z, step = checked(x, step, scalar_for)
    out = function(z, step).astype(x.dtype)
    return jnp.where((step > 0) & jnp.isfinite(x), out, x)

  return ProximalMap(prox)


def check_scalar(step: jax.Array, scalar_for: str) -> None:
  """Refuses a diagonal metric for the penalty that is named."""
  if step.ndim:
    raise ValueError(
      f"step must be a scalar for {scalar_for}, got shape {step.shape}: it has no"
      " proximal map in a diagonal metric, such as that of proximal_adam."
    )


def checked(
  x: jax.Array, step: ArrayLike, scalar_for: str = ""
) -> tuple[jax.Array, jax.Array]:
  """x and the step in float32 or better; see `whole_prox`."""
  _validate.check_nonnegative("step", step)
  z = x.astype(_validate.compute_dtype(x.dtype))
  step = jnp.asarray(step).astype(z.dtype)
  if scalar_for:
    check_scalar(step, scalar_for)
  if step.ndim and not _thresholds.is_per_entry(step, x):
    raise ValueError(
      f"step must be a scalar or have one value per entry of x, shape {x.shape}, got"
      f" shape {step.shape}."
    )
  return z, step


def unsharded(
  function: Callable[..., jax.Array], axes: Iterable[int] | None = None
) -> Callable[..., jax.Array]:
  """Lets a function that ranks entries along axes see all, under an explicit mesh.

  Args:
    function: of an array, and of whatever else.
    axes: those along which it ranks; None for all.
  """

  @functools.wraps(function)
  def wrapper(x: jax.Array, *args: Any) -> jax.Array:
    spec = jax.typeof(x).sharding.spec
    ranked = range(x.ndim) if axes is None else axes
    if all(spec[axis] is None for axis in ranked):
      return function(x, *args)
    whole = [None if axis in ranked else spec[axis] for axis in range(x.ndim)]
    x = jax.sharding.reshard(x, jax.sharding.PartitionSpec(*whole))
    return jax.sharding.reshard(function(x, *args), spec)

  return wrapper


def separable(
  value: Callable[..., jax.Array],
  prox: Callable[..., jax.Array],
  *hyperparams: Any,
  cutoff: Cutoff | None = None,
  cheap: bool = False,
) -> Penalty:
  """A penalty summed over components, from functions that take the hyperparameters.

  They follow x in `value`, the step in `prox`, and what `cutoff` is a function of.
  """

  def given(function: Callable[..., jax.Array]) -> Callable[[jax.Array], jax.Array]:
    return lambda x: function(x, *(jnp.asarray(h).astype(x.dtype) for h in hyperparams))

  if cutoff is not None:
    cutoff = Cutoff(*map(given, cutoff))
  entries = given(value)
  return Penalty(
    wide_value(lambda x: jnp.sum(entries(x))),
    ProximalMap(lambda x, step: prox(x, step, *hyperparams), cutoff, cheap),
  )


def scaled(penalty: Penalty, lam: ArrayLike) -> Penalty:
  r"""Gives a penalty a weight of its own, :math:`\lambda P`.

  Args:
    penalty: a penalty.
    lam: factor, `>= 0`.

  Returns:
    The penalty.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.scaled(rvsm_jax.l1(), 2.0).prox(jnp.array([5.0]), 1.0))
    [3.]
  """
  check_penalty(penalty)
  _validate.check_nonnegative("lam", lam)

  inner = penalty.prox

  def prox(x: jax.Array, step: ArrayLike) -> jax.Array:
    _validate.check_nonnegative("step", step)
    return inner(x, jnp.asarray(step) * lam)

  def value(x: jax.Array) -> jax.Array:
    return jnp.asarray(lam * penalty.value(x))

  if not isinstance(inner, ProximalMap):
    return Penalty(value, prox)
  known: dict[str, Any] = {}
  if inner.cutoff is not None:
    of_step, to_step = inner.cutoff
    known["cutoff"] = Cutoff(
      lambda step: of_step(step * lam), lambda t: to_step(t) / lam
    )
  if inner.passes is not None:
    first, second, heavy = inner.passes
    known["passes"] = Passes(
      lambda x, step: first(x, step * lam),
      lambda x, step, numbers: second(x, step * lam, numbers),
      heavy,
    )
  return Penalty(value, dataclasses.replace(inner, function=prox, **known))


def check_penalty(penalty: Any) -> None:
  """Raises TypeError unless `penalty` is a `Penalty`."""
  if not isinstance(penalty, Penalty):
    name = getattr(penalty, "__name__", None)
    hint = f" Did you mean {name}()?" if name else ""
    raise TypeError(
      "penalty must be a rvsm_jax.Penalty, such as rvsm_jax.l1(), got"
      f" {penalty!r}.{hint}"
    )
