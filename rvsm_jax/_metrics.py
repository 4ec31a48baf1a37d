"""How sparse a pytree is, and what that saves; pure functions."""

from collections.abc import Callable, Sequence
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np

from rvsm_jax import _masks


def _share(tree: Any, holds: Callable[[jax.Array], jax.Array]) -> jax.Array:
  leaves = jax.tree.leaves(tree)
  if not any(leaf.size for leaf in leaves):
    raise ValueError(f"tree must have at least one array entry, got {tree!r}.")
  # With its complement, because XLA's CPU backend writes a single mask to memory.
  pairs = [count(mask, ~mask) for mask in map(holds, leaves)]
  yes, no = jnp.sum(jnp.array(pairs, jnp.float32), axis=0)
  return yes / (yes + no)


def _add_all(a: tuple, b: tuple) -> tuple:
  # Not a lambda in `count`, which JAX would compile anew at every call.
  return tuple(map(jnp.add, a, b))


def count(*masks: jax.Array) -> tuple[jax.Array, ...]:
  """Numbers of true entries of several masks, in one pass."""
  ones = tuple(jnp.asarray(mask).astype(int) for mask in masks)
  zero = jnp.zeros((), ones[0].dtype)
  return jax.lax.reduce(
    ones,
    (zero,) * len(ones),
    _add_all,
    tuple(range(masks[0].ndim)),
  )


def _below(bound: float, x: jax.Array) -> jax.Array:
  return jnp.abs(x) < bound


def sparsity(tree: Any, threshold: ArrayLike = 0.0) -> jax.Array:
  """The share of exact zeros, or of entries of magnitude at most `threshold`.

  Args:
    tree: a pytree of arrays.
    threshold: magnitude, `>= 0`.

  Returns:
    A float32 scalar in [0, 1].

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.sparsity({"w": jnp.array([0.0, 2.0]), "b": jnp.zeros(2)}))
    0.75
  """
  return _share(tree, lambda x: jnp.abs(x) <= threshold)


def sparsity_by_scale(tree: Any, exponents: Sequence[int]) -> jax.Array:
  r"""Shares of entries below :math:`10^{-n}`, to compare with papers that count them.

  Xue & Xin (2019), table 3.

  Args:
    tree: a pytree of arrays.
    exponents: the n.

  Returns:
    A float32 array with one share per exponent.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.sparsity_by_scale(jnp.array([0.0, 0.005, 1.0, 1.0]), (2, 3)))
    [0.5  0.25]
  """
  return jnp.stack(
    [_share(tree, functools.partial(_below, 10.0**-n)) for n in exponents]
  )


def sign_changes(a: Any, b: Any) -> jax.Array:
  """How many entries change sign between two pytrees, to see whether they settle.

  Args:
    a: a pytree of arrays, such as the initial weights.
    b: a pytree of the same structure, such as the trained weights.

  Returns:
    An int32 scalar.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> before, after = jnp.array([1.0, -1.0, 1.0]), jnp.array([-2.0, -1.0, 0.0])
    >>> print(rvsm_jax.sign_changes(before, after))
    1
  """
  counts = jax.tree.map(lambda x, y: jnp.sum(jnp.sign(x) * jnp.sign(y) < 0), a, b)
  return sum(jax.tree.leaves(counts), jnp.zeros([], jnp.int32))


def neurons_removed(tree: Any) -> jax.Array:
  """How many hidden units are gone: all ingoing or all outgoing weights are zero.

  The kernels of `tree` (see :func:`kernels`) are taken as a feed-forward network in
  natural order of their paths: name layers so that this is their depth, or pass a
  list of kernels. A dense layer on flattened feature maps counts for the channels
  of the convolution before it. Output units are not hidden.

  Args:
    tree: a pytree of arrays.

  Returns:
    An int32 scalar.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> first = jnp.array([[1.0, 0.0, 1.0]])
    >>> second = jnp.array([[1.0], [1.0], [0.0]])
    >>> print(rvsm_jax.neurons_removed([first, second]))
    2
  """
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  chosen = jax.tree.leaves(_masks.kernels(tree))
  names = _masks.leaf_names(tree)
  ordered = sorted(
    ((path, x) for (path, x), pick in zip(leaves, chosen, strict=True) if pick),
    key=lambda item: _masks.natural_order(names[item[0]]),
  )
  total = jnp.zeros([], jnp.int32)
  for (_, layer), (_, following) in itertools.pairwise(ordered):
    units, inputs = layer.shape[-1], following.shape[-2]
    dead = jnp.all(layer == 0, axis=tuple(range(layer.ndim - 1)))
    if inputs % units == 0:
      if inputs != units:
        following = following.reshape(-1, units, following.shape[-1])
      others = tuple(
        axis for axis in range(following.ndim) if axis != following.ndim - 2
      )
      dead = dead | jnp.all(following == 0, axis=others)
    total = total + jnp.sum(dead)
  return total


def parameter_ratio(tree: Any) -> jax.Array:
  """The share of entries that are not zero: the size of a sparse network.

  Args:
    tree: a pytree of arrays.

  Returns:
    A float32 scalar in [0, 1].

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> print(rvsm_jax.parameter_ratio(jnp.array([0.0, 2.0, 0.0, 1.0])))
    0.5
  """
  return _share(tree, lambda x: x != 0)


def flop_ratio(apply_fn: Callable[..., Any], params: Any, *inputs: Any) -> float:
  """The share of multiplications that are left: what zeros could save at best.

  It is the number of multiplications by non-zero weights over that by all weights.

  Counted from the jaxpr: every product (matrix product or convolution) counts with
  its multiplications, times the share of non-zero entries of the weights in it.
  Products of activations with each other count in full.

  Args:
    apply_fn: the network, called as `apply_fn(params, *inputs)`.
    params: a pytree of concrete arrays.
    *inputs: arrays, or `jax.ShapeDtypeStruct`.

  Returns:
    A ratio in [0, 1].

  Raises:
    ValueError: if the network has no products, or a `while_loop`, whose length is
      unknown.

  Examples:
    >>> import jax.numpy as jnp
    >>> import rvsm_jax
    >>> params = {"w": jnp.array([[1.0, 0.0], [1.0, 0.0]]), "b": jnp.ones(2)}
    >>> rvsm_jax.flop_ratio(lambda p, x: x @ p["w"] + p["b"], params, jnp.ones((1, 2)))
    0.5
  """
  jaxpr = jax.make_jaxpr(apply_fn)(params, *inputs).jaxpr
  shares: list[float | None] = [
    float(parameter_ratio(w)) for w in jax.tree.leaves(params)
  ]
  shares += [None] * (len(jaxpr.invars) - len(shares))
  used, full, _ = _count(jaxpr, shares)
  if not full:
    raise ValueError("flop_ratio: apply_fn has no matrix product or convolution.")
  return used / full


# Operations through which zeros of the weights stay zeros.
_TRANSPARENT = frozenset(
  {
    "broadcast_in_dim",
    "convert_element_type",
    "copy",
    "copy_p",
    "dynamic_slice",
    "mul",
    "neg",
    "optimization_barrier",
    "reshape",
    "rev",
    "sharding_constraint",
    "slice",
    "squeeze",
    "transpose",
  }
)


def _count(jaxpr: Any, shares: Sequence[float | None]) -> tuple[float, float, list]:
  """Multiplications used, in full, and the non-zero shares of the outputs.

  A share of None stands for activations: dense, and not weights.
  """
  known = dict(zip(jaxpr.invars, shares, strict=True))
  used = full = 0.0

  def share(atom: Any) -> float | None:
    # Literals are not hashable.
    return None if hasattr(atom, "val") else known.get(atom)

  for eqn in jaxpr.eqns:
    name = eqn.primitive.name
    inputs = [share(atom) for atom in eqn.invars]
    weights = [s for s in inputs if s is not None]
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if name in ("dot_general", "conv_general_dilated"):
      products = _products(eqn)
      full += products
      used += products * float(np.prod(weights))
    elif name == "while":
      raise ValueError("flop_ratio: the length of a while_loop is not known.")
    elif name == "cond":
      counts = [_count(b.jaxpr, inputs[1:]) for b in eqn.params["branches"]]
      branch = max(counts, key=lambda count: count[1])
      used, full = used + branch[0], full + branch[1]
    elif inner is not None:
      part = _count(getattr(inner, "jaxpr", inner), inputs)
      times = eqn.params.get("length", 1) if name == "scan" else 1
      used, full = used + times * part[0], full + times * part[1]
      known.update(zip(eqn.outvars, part[2], strict=True))
    elif name in _TRANSPARENT and weights:
      known[eqn.outvars[0]] = float(np.prod(weights))
  return used, full, [share(atom) for atom in jaxpr.outvars]


def _products(eqn: Any) -> float:
  """Number of multiplications of a matrix product or convolution."""
  left, right = (atom.aval for atom in eqn.invars)
  out = eqn.outvars[0].aval
  numbers = eqn.params["dimension_numbers"]
  if eqn.primitive.name == "dot_general":
    (contracted, _), _ = numbers
    return float(out.size) * float(np.prod([left.shape[i] for i in contracted]))
  return float(out.size) * right.size / right.shape[numbers.rhs_spec[0]]
