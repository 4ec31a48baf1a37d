"""Removes dead units from a network: the same outputs, from smaller dense arrays.

`from rvsm_jax import compaction`. For Flax NNX you only need :func:`compact`. For other
pytrees, :func:`plan` finds what can go, and :func:`apply` removes it from the params
and from an optimizer's state. :func:`unit_cardinality` is a penalty of what can
go: training with it makes whole units die.

A unit (neuron, channel, head) is dead if all its outgoing weights are zero, or if its
value is a constant. Which axes of which leaves belong to it is derived from the jaxpr:
of both sides of a residual connection, of query, key, value and output of an attention.
What a mean or a norm sums over, what the data or the code fixes, and what reaches a
primitive without a rule all stay, and the report names them.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from rvsm_jax import _masks
from rvsm_jax.compaction import _plan
from rvsm_jax.compaction import _trace as tracing
from rvsm_jax.compaction._plan import Group, Place, Plan
from rvsm_jax.compaction._unit_cardinality import unit_cardinality

__all__ = ("Group", "Place", "Plan", "apply", "compact", "plan", "unit_cardinality")

Model = TypeVar("Model")

# Fields of optimizer states that hold values of params: `u` of RVSM and ADMM, and `z`
# of `optax.contrib.schedule_free`.
_VALUES = frozenset({"u", "z"})


def plan(apply_fn: Callable[..., Any], params: Any, *inputs: Any) -> Plan:
  r"""Finds what can be removed from params without changing the outputs.

  The function is traced, not run. It matters where the params are zero, and which
  shapes and dtypes the inputs have. Then it is traced with the smaller params: what it
  would compute differently stays, such as heads whose number the code fixes.

  Args:
    apply_fn: the network, called as `apply_fn(params, *inputs)`, in the mode in which
      the outputs must be equal: usually inference.
    params: a pytree of concrete arrays: all that is to become smaller, running
      statistics too. Leaves that are not arrays stay.
    *inputs: pytrees of arrays, or of `jax.ShapeDtypeStruct`; other leaves are passed
      as they are.

  Returns:
    A :class:`Plan`; `print(plan)` reports.

  Raises:
    TypeError: if a leaf of `params` is not a concrete array.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from rvsm_jax import compaction
    >>> params = {
    ...   "in": jnp.array([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]]),
    ...   "out": jnp.array([[1.0], [1.0], [0.0]]),
    ... }
    >>> def network(params, x):
    ...   return jax.nn.relu(x @ params["in"]) @ params["out"]
    >>> plan = compaction.plan(network, params, jnp.ones((1, 2)))
    >>> print(plan)
    units  before  after  found along
    in          3      1  in[1], out[0]
    parameters: 9 -> 3 (33.3%)
    multiplications: 9 -> 3 (33.3%)
    what stays, and why:
      an input of the network: in[0]
    >>> print(compaction.apply(plan, params))
    {'in': Array([[1.],
           [3.]], dtype=float32), 'out': Array([[1.]], dtype=float32)}
  """

  def retrace(shapes: Sequence[tuple[int, ...]]) -> tracing.Program:
    return tracing.trace(apply_fn, with_shapes(params, shapes), inputs)

  return _plan.make(apply_fn, params, inputs, retrace, may_be_rebuilt=True)


def with_shapes(params: Any, shapes: Sequence[tuple[int, ...]]) -> Any:
  """The params with abstract arrays of these shapes in place of arrays."""
  remaining = iter(shapes)
  return jax.tree.map(
    lambda leaf: (
      jax.ShapeDtypeStruct(next(remaining), leaf.dtype)
      if tracing.is_array(leaf)
      else leaf
    ),
    params,
  )


def compact(
  model: Model,
  *inputs: Any,
  verify: bool = False,
  report: Callable[[str], Any] | None = None,
) -> Model:
  """Makes a Flax NNX model smaller, and dense again, with the same outputs.

  The outputs are those of inference: with the running statistics of batch normalisation
  and without dropout. To continue training, or for other frameworks, see :func:`plan`.

  Args:
    model: an `nnx.Module`, which is not changed.
    *inputs: what it is called with, as in :func:`plan`.
    verify: whether to run both models on the inputs and compare their outputs.
    report: a function, such as `print`, that takes the report of the plan as text, with
      the measured times of both models on the inputs.

  Returns:
    A model of the same class, in the same mode, with sizes such as `out_features` and
    `num_heads` set in the layers of Flax.

  Raises:
    ImportError: without Flax.
    TypeError: if `model` is not an `nnx.Module`.
    ValueError: with `verify`, if outputs differ by more than rounding; with it or
      `report`, if the inputs are shapes instead of arrays.

  Examples:
    >>> from flax import nnx
    >>> import jax.numpy as jnp
    >>> from rvsm_jax import compaction
    >>> model = nnx.Sequential(
    ...   nnx.Linear(4, 8, rngs=nnx.Rngs(0)),
    ...   nnx.relu,
    ...   nnx.Linear(8, 2, rngs=nnx.Rngs(1)),
    ... )
    >>> model.layers[0].kernel[...] = model.layers[0].kernel[...].at[:, 3:].set(0.0)
    >>> smaller = compaction.compact(model, jnp.ones((1, 4)))
    >>> smaller.layers[0].out_features, smaller.layers[2].kernel.shape
    (3, (3, 2))
  """
  try:
    from rvsm_jax.compaction import _nnx
  except ImportError as error:
    raise ImportError("compact is for Flax NNX: pip install flax.") from error
  return _nnx.compact(model, inputs, verify, report)


def apply(plan: Plan, tree: Any, *, values: bool | None = None) -> Any:
  """Applies a plan to params, to u, or to an optimizer's state.

  It recognises leaves by the names that lead to them, anywhere in the tree. So you can
  pass any state that contains the structure of the params (momentum, moments of Adam,
  chains, masks), or only the part `variables["params"]` of what was planned. Leaves
  that belong to no param, such as counts, pass through.

  Args:
    plan: made by :func:`plan`.
    tree: a pytree of arrays, or of `jax.ShapeDtypeStruct`.
    values: whether the leaves are values of params, into which the constants of removed
      units are folded, rather than moments or gradients. None means that they are if
      `tree` is a tree of params, and in the fields `u` (RVSM, ADMM) and `z`
      (schedule-free) of an optimizer's state.

  Returns:
    A pytree of the same structure.

  Raises:
    ValueError: for a leaf of a param that has neither its shape nor a single entry;
      the message names it.

  Examples:
    See :func:`plan`.
  """
  found, treedef = jax.tree_util.tree_flatten_with_path(tree)
  names = _masks.leaf_names(tree)
  whole: dict[tuple[str, ...], dict[int, int]] = {}
  for place, (path, leaf) in enumerate(found):
    match = _match(plan, names[path])
    if match is not None and tracing.is_array(leaf) and np.prod(leaf.shape) != 1:
      prefix, index = match
      if tuple(leaf.shape) != plan.shapes[index]:
        raise ValueError(
          f"tree has {'/'.join(names[path])!r} of shape {tuple(leaf.shape)} for the"
          f" param {'/'.join(plan.paths[index])!r} of shape {plan.shapes[index]}:"
          " pass a tree that was not compacted yet; a state that factors its moments"
          " must be made anew, by the optimizer's init."
        )
      whole.setdefault(prefix, {})[index] = place
  leaves = [leaf for _, leaf in found]
  for prefix, places in whole.items():
    folds = values
    if folds is None:
      folds = not prefix or prefix[-1] in _VALUES
    arrays = {index: leaves[place] for index, place in places.items()}
    arrays = _folded(plan, arrays) if folds else arrays
    for index, place in places.items():
      leaves[place] = _taken(arrays[index], plan.keep[index])
  return jax.tree.unflatten(treedef, leaves)


def _match(plan: Plan, names: tuple[str, ...]) -> tuple[tuple[str, ...], int] | None:
  """The param on whose path a path ends, and what is in front of that."""
  for start in range(len(names) + 1):
    if (index := _plan.endings(plan.paths).get(names[start:])) is not None:
      return names[:start], index
  return None


def _taken(leaf: Any, keep: Sequence[np.ndarray | None]) -> Any:
  if isinstance(leaf, jax.ShapeDtypeStruct):
    sizes = zip(leaf.shape, keep, strict=True)
    shape = [size if kept is None else len(kept) for size, kept in sizes]
    return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype)
  for axis, kept in enumerate(keep):
    if kept is not None:
      take = np.take if isinstance(leaf, np.ndarray) else jnp.take
      leaf = take(leaf, kept, axis=axis)
  return leaf


def _folded(plan: Plan, arrays: dict[int, Any]) -> dict[int, Any]:
  """The arrays, with what constant units add to the next layer put elsewhere."""
  folded = dict(arrays)
  for fold in plan.folds:
    kernel, target = arrays.get(fold.kernel), folded.get(fold.target)
    if kernel is None or target is None or isinstance(kernel, jax.ShapeDtypeStruct):
      continue
    weights = jnp.asarray(kernel)
    weights = weights.astype(jnp.promote_types(weights.dtype, jnp.float32))
    added = jnp.tensordot(
      jnp.asarray(fold.coefficients, weights.dtype),
      weights,
      axes=(tuple(range(len(fold.axes))), fold.axes),
      precision=jax.lax.Precision.HIGHEST,
    )
    at: list[Any] = [slice(None)] * kernel.ndim
    rest = [axis for axis in range(kernel.ndim) if axis not in fold.axes]
    if fold.carrier is not None:
      for axis, index in zip(fold.axes, fold.carrier, strict=True):
        at[axis] = index
    else:
      order = [rest.index(axis) for axis in fold.places if axis is not None]
      # The others are of size 1.
      order += [k for k in range(len(rest)) if k not in order]
      added, at = added.transpose(order).reshape(target.shape), [...]
    total: Any = jnp.asarray(target)
    total = total.at[tuple(at)].add(added.astype(total.dtype))
    if isinstance(target, np.ndarray):
      total = np.asarray(total, target.dtype)
    folded[fold.target] = total
  return folded
