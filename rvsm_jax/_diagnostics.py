"""What RVSM minimises, and how far it is from a critical point."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from rvsm_jax import _penalty, _transform


def _present(u: Any) -> bool:
  return u is not None and not isinstance(u, optax.MaskedNode)


def lagrangian(
  loss: ArrayLike | Callable[[optax.Params], jax.Array],
  penalty: _penalty.Penalty,
  params: optax.Params,
  u: Any,
  *,
  lam: ArrayLike,
  beta: ArrayLike,
) -> jax.Array:
  r"""The function that RVSM descends: plot it to follow or check a training.

  .. math::
    L_\beta(w, u) = f(w) + \lambda P(u) + \tfrac\beta2 \|w - u\|_2^2

  Xue & Xin (2019), section 2; Dinh & Xin (2020), equation (8).

  Args:
    loss: f(w), or the function f.
    penalty: the penalty P; summed over leaves, unless it takes them all together.
    params: the weights w.
    u: the auxiliary weights, in the structure of `params`; leaves that are None or
      `optax.MaskedNode()` do not count, as in `RVSMState.u`.
    lam: weight of the penalty.
    beta: stiffness.

  Returns:
    A scalar.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> w, u = jnp.array([1.0, 0.5]), jnp.array([1.0, 0.0])
    >>> print(rvsm_jax.lagrangian(3.0, rvsm_jax.l0(), w, u, lam=0.5, beta=2.0))
    3.75
  """
  _penalty.check_penalty(penalty)

  def distance(w: jax.Array, v: Any) -> Any:
    return jnp.sum(jnp.square(w - v.astype(w.dtype))) if _present(v) else None

  value = jnp.asarray(loss(params) if callable(loss) else loss)
  distances = jax.tree.leaves(jax.tree.map(distance, params, u))
  return value + lam * _transform.value(penalty, u) + beta / 2 * sum(distances)


def critical_point_residual(
  grads: optax.Updates, params: optax.Params, u: Any, beta: ArrayLike
) -> jax.Array:
  r"""How far RVSM is from a limit point: use it to see whether it has converged.

  It is the norm of the gradient of the Lagrangian in w.

  .. math::
    \| \nabla f(w) + \beta (w - u) \|_2

  At a limit :math:`\nabla f(w) = \beta (u - w)`; equation (2.5) of Xue & Xin (2019)
  prints the opposite sign.

  Args:
    grads: the gradient of f at w, in the structure of `params`.
    params: the weights w.
    u: the auxiliary weights; leaves that are None or `optax.MaskedNode()` are taken
      as equal to w, as in `RVSMState.u`.
    beta: stiffness.

  Returns:
    A scalar.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> w, u = jnp.array([1.0, 0.5]), jnp.array([1.0, 0.0])
    >>> print(rvsm_jax.critical_point_residual(jnp.array([3.0, -1.0]), w, u, 2.0))
    3.0
  """

  def residual(w: jax.Array, g: jax.Array | None, v: Any) -> jax.Array | None:
    if g is None or not _present(v):
      return g
    return g + beta * (w - v.astype(w.dtype))

  return optax.tree.norm(jax.tree.map(residual, params, grads, u))
