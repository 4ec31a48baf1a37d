"""Reads the sparse network out of an optimizer state."""

from typing import Any

import jax
import optax

from rvsm_jax import _admm, _fista, _masks, _rvsm


def _is_carrier(node: Any) -> bool:
  return isinstance(node, _rvsm.RVSMState | _admm.ADMMState | _fista.FistaState)


def sparse_params(opt_state: optax.OptState, params: optax.Params) -> optax.Params:
  """Reads the sparse network after training, to evaluate, save or export it.

  Returns the params, with u in place of every leaf that has one. Where the params are
  already the sparse network, as with :func:`proximal`, it returns them as they are, so
  that the same line of code works for every algorithm.

  Args:
    opt_state: a state of an optimizer, in which states of :func:`rvsm`, :func:`admm`
      or :func:`fista` are found at any depth and in any wrapper (chain, masked,
      partition, MultiSteps, apply_if_finite, inject_hyperparams, `nnx.Optimizer`).
    params: the current params.

  Returns:
    A pytree of the structure and dtypes of `params`; leaves without u, such as those
    that a mask left out, are those of `params`.

  Raises:
    ValueError: if the state is that of `rvsm(carry_u=False)`, two states claim one
      leaf, or a u does not fit `params`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> tx = rvsm_jax.rvsm_sgd(0.1, rvsm_jax.l0(), lam=0.5, beta=1.0)
    >>> params = {"kernel": jnp.array([[2.0, 0.5]])}
    >>> print(rvsm_jax.sparse_params(tx.init(params), params)["kernel"])
    [[2. 0.]]
  """
  found: dict[tuple[str, ...], jax.Array] = {}
  for state in jax.tree.leaves(opt_state, is_leaf=_is_carrier):
    if not _is_carrier(state):
      continue
    if state.u is None:
      raise ValueError(
        "opt_state comes from rvsm(carry_u=False) and holds no u: take"
        " penalty.prox(w, lam / beta) of the params instead, or carry_u=True."
      )
    names = _masks.leaf_names(state.u)
    for path, u in jax.tree_util.tree_leaves_with_path(state.u):
      if names[path] in found:
        raise ValueError(
          f"Two states in opt_state claim the params leaf {'/'.join(names[path])!r}:"
          " give them disjoint masks."
        )
      found[names[path]] = u

  places = _masks.leaf_names(params)

  def replace(path: tuple, w: Any) -> Any:
    u = found.pop(places[path], w)
    if u.shape != w.shape:
      raise ValueError(
        f"u of the params leaf {'/'.join(places[path])!r} has shape"
        f" {u.shape}, the leaf {w.shape}: pass the params that opt_state belongs to."
      )
    return u.astype(w.dtype)

  out = jax.tree_util.tree_map_with_path(replace, params)
  if found:
    unknown = ["/".join(place) for place in found]
    raise ValueError(
      f"opt_state has u for the leaves {unknown}, which params have not: pass the"
      " params that opt_state belongs to."
    )
  return out
