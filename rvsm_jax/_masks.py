"""Masks, labels, and the map over the leaves that a mask selects."""

import collections
from collections.abc import Callable
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rvsm_jax import _validate

Mask = Any | Callable[[optax.Params], Any] | None

_VALUE = jax.tree_util.GetAttrKey("value")
_NOT_KERNELS = frozenset({"bias", "scale", "embedding"})


def leaf_names(tree: Any) -> dict[tuple, tuple[str, ...]]:
  """The names along the key path of each leaf, whatever containers it leads through.

  The last step of NNX, from a variable to its only child `value`, is left out: the
  same leaf is there without it inside `nnx.Optimizer.update`.
  """
  paths = [
    path for path, _ in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_absent)
  ]
  children = collections.Counter(path[:-1] for path in paths)

  def names(path: tuple) -> tuple[str, ...]:
    if path[1:] and path[-1] == _VALUE and children[path[:-1]] == 1:
      path = path[:-1]
    return tuple(
      str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key))))
      for key in path
    )

  return {path: names(path) for path in paths}


def _is_absent(node: Any) -> bool:
  return node is None or isinstance(node, optax.MaskedNode)


def _natural(name: str) -> tuple:
  """Sort key by which `Conv_10` comes after `Conv_2`."""
  parts = re.split(r"(\d+)", name)
  return tuple((int(p), "") if p.isdigit() else (-1, p) for p in parts)


def natural_order(names: tuple[str, ...]) -> tuple:
  """Sort key for names along a path: natural order."""
  return tuple(_natural(name) for name in names)


def kernels(params: optax.Params) -> Any:
  """The usual mask: weight matrices and filters, not biases, scales or embeddings.

  A leaf is selected if it has at least two axes and is not called `bias`, `scale` or
  `embedding`.

  Args:
    params: a pytree of arrays.

  Returns:
    A pytree of bools with the structure of `params`.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> rvsm_jax.kernels({"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)})
    {'bias': False, 'kernel': True}
  """
  names = leaf_names(params)
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: (
      jnp.ndim(leaf) >= 2 and _NOT_KERNELS.isdisjoint(names[path][-1:])
    ),
    params,
  )


def by_path(regex: str) -> Callable[[optax.Params], Any]:
  """Chooses layers by name: a mask of the leaves whose path matches `regex`.

  Args:
    regex: searched in the names of the path, joined by "/", such as
      `"dense/kernel"`.

  Returns:
    A function from params to a pytree of bools.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    >>> rvsm_jax.by_path("dense/k")(params)
    {'dense': {'bias': False, 'kernel': True}}
  """
  pattern = re.compile(regex)

  def mask(params: optax.Params) -> Any:
    names = leaf_names(params)
    return jax.tree_util.tree_map_with_path(
      lambda path, _: pattern.search("/".join(names[path])) is not None, params
    )

  return mask


def layer_index(*order: str) -> Callable[[optax.Params], Any]:
  """Labels each leaf with its layer's depth, to give each layer its own penalty.

  The first layer is 0.

  Use the labels with `optax.partition`, and as indices into
  :func:`integrated_tl1_schedule`.

  Args:
    *order: regexes of the layers from input to output, searched as in
      :func:`by_path`; each leaf belongs to the first that it matches. Without
      any, layers are the containers of the leaves in natural order of their
      names, `Conv_10` after `Conv_2`, which is right only if it is their depth.

  Returns:
    A function from params to a pytree of ints.

  Raises:
    ValueError: when called, if a leaf matches none of `order`.

  Examples:
    >>> import rvsm_jax
    >>> params = {"out": {"kernel": 1.0}, "conv": {"kernel": 1.0}}
    >>> rvsm_jax.layer_index("conv", "out")(params)
    {'conv': {'kernel': 0}, 'out': {'kernel': 1}}
  """
  patterns = [re.compile(regex) for regex in order]

  def labels(params: optax.Params) -> Any:
    names = leaf_names(params)
    layers = sorted({n[:-1] for n in names.values()}, key=natural_order)

    def label(path: tuple, _: Any) -> int:
      if not patterns:
        return layers.index(names[path][:-1])
      name = "/".join(names[path])
      for index, pattern in enumerate(patterns):
        if pattern.search(name):
          return index
      raise ValueError(
        f"layer_index: the leaf {name!r} matches none of {order}: add a regex for"
        " its layer."
      )

    return jax.tree_util.tree_map_with_path(label, params)

  return labels


def selected(mask: Mask, params: optax.Params) -> Any:
  """Which leaves of `params` the mask selects, as a pytree of bools.

  Raises:
    ValueError: if the mask does not fit `params`, or selects nothing.
    TypeError: if a selected leaf is no array of floating point numbers.
  """
  size = len(jax.tree.leaves(params))
  # Trees without leaves are empty, or placeholders of `optax.tree.map_params`.
  if not size:
    return params
  picked = _resolve(mask, params)
  if not any(jax.tree.leaves(picked)):
    raise ValueError(
      f"mask selects none of the {size} leaves of params: got {mask!r}; pass a mask"
      " that is True for at least one leaf, or leave the transformation out."
    )

  names = leaf_names(params)

  def check(path: tuple, leaf: Any, pick: bool) -> None:
    if pick:
      dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
      _validate.check_floating(f"params leaf {'/'.join(names[path])!r}", dtype)

  jax.tree_util.tree_map_with_path(check, params, picked)
  return picked


def _resolve(mask: Mask, params: optax.Params) -> Any:
  if mask is None:
    mask = True
  # A pytree of bools that is callable, an Equinox module for one, is a tree.
  if callable(mask) and not _is_bool_tree(mask):
    mask = mask(params)
  if not _is_bool_tree(mask):
    raise ValueError(f"mask must be a pytree of bools, got {mask!r}.")
  if _is_bool(mask) and (isinstance(mask, jax.core.Tracer) or not mask):
    raise ValueError(
      f"mask is a bare {mask!r}, which selects nothing. Under optax.inject_hyperparams"
      ' a callable mask is taken for a schedule: pass static_args=("mask",) there.'
    )
  try:
    return jax.tree.map(
      lambda m, subtree: jax.tree.map(lambda _: bool(m), subtree), mask, params
    )
  except (ValueError, TypeError) as error:
    raise ValueError(
      "mask does not fit params: it must be a pytree of bools with the structure of"
      f" params, a prefix of it, or a function from params to one. {error}"
    ) from error


def _is_bool_tree(tree: Any) -> bool:
  leaves = jax.tree.leaves(tree)
  return bool(leaves) and all(map(_is_bool, leaves))


def _is_bool(leaf: Any) -> bool:
  return isinstance(leaf, bool | np.bool_) or (
    isinstance(leaf, jax.Array | np.ndarray) and leaf.dtype == bool and leaf.ndim == 0
  )


def map_selected(
  function: Callable[..., Any],
  otherwise: Callable[..., Any],
  mask: Mask,
  params: optax.Params,
  *trees: Any,
) -> Any:
  """Maps `function` over the selected leaves, and `otherwise` over the others.

  Both are called with the leaf of `params` and what stands at its place in each of
  `trees`, a leaf, None or `optax.MaskedNode()`. An error is told which leaf it
  comes from.
  """

  def apply(leaf: Any, pick: bool, *rest: Any) -> Any:
    return (function if pick else otherwise)(leaf, *rest)

  return map_named(apply, params, selected(mask, params), *trees)


def map_named(function: Callable[..., Any], params: optax.Params, *trees: Any) -> Any:
  """Maps `function` over the leaves of `params`; an error is told which it is of."""
  names = leaf_names(params)

  def apply(path: tuple, *leaves: Any) -> Any:
    try:
      return function(*leaves)
    except (ValueError, TypeError) as error:
      error.add_note(f"At the params leaf {'/'.join(names[path])!r}.")
      raise

  return jax.tree_util.tree_map_with_path(apply, params, *trees)


def pick(mask: Mask, params: optax.Params) -> Any:
  """The selected leaves of `params`, and `optax.MaskedNode()` for the others."""
  return map_selected(lambda leaf: leaf, drop, mask, params)


def keep(_: Any, update: Any, *__: Any) -> Any:
  """For leaves that are not selected: the update as it is."""
  return update


def drop(*_: Any) -> optax.MaskedNode:
  """For leaves that are not selected: nothing in the state."""
  return optax.MaskedNode()


def require_params(name: str, params: optax.Params | None) -> None:
  """Raises ValueError unless `params` were passed to update."""
  if params is None:
    raise ValueError(
      f"{name} needs params, got None: call `update(updates, state, params)`."
    )
