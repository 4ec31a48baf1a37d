"""A function's jaxpr as one flat list of equations between nodes.

Calls (jit, custom derivatives, checkpoints) and the bodies of scans are inlined, so
that what follows (:mod:`rvsm_jax.compaction._units` and others) needs one rule for each
primitive and none for nesting. A scan becomes its body, once, between equations that
tie the body to what is around it:

- `carry_in`: the initial carry enters the body, of which nothing but its shape is used;
- `carry_out`: the carry that leaves the body has the axes of the one that entered;
- `scan_slice` and `scan_stack`: take the leading axis away, and put it back.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend import core
import numpy as np

# Primitives that stand for a jaxpr of the same inputs and outputs.
_CALLS = frozenset(
  {
    "checkpoint",
    "closed_call",
    "core_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "jit",
    "pjit",
    "remat",
    "remat2",
  }
)


class Node:
  """An array of the computation; `value` is that of a literal or a constant."""

  __slots__ = ("dtype", "shape", "value")

  def __init__(self, aval: Any, value: Any = None):
    self.shape: tuple[int, ...] = tuple(getattr(aval, "shape", ()))
    self.dtype = getattr(aval, "dtype", None)
    self.value = value


class Equation(NamedTuple):
  """One primitive, which is run `times` times."""

  name: str
  inputs: Sequence[Node]
  outputs: Sequence[Node]
  params: dict[str, Any]
  times: int
  primitive: Any = None


class Program(NamedTuple):
  """Equations in the order of computation, those without use left out."""

  params: Sequence[Node]
  inputs: Sequence[Node]
  equations: Sequence[Equation]
  outputs: Sequence[Node]

  def nodes(self) -> list[Node]:
    """All nodes, each once."""
    found = dict.fromkeys((*self.params, *self.inputs))
    for equation in self.equations:
      found.update(dict.fromkeys((*equation.inputs, *equation.outputs)))
    return list(found)


def is_array(leaf: Any) -> bool:
  """Whether a leaf has a shape and a dtype: what has not is static, a function say."""
  return hasattr(leaf, "shape") and hasattr(leaf, "dtype")


def trace(apply_fn: Callable[..., Any], params: Any, inputs: Sequence[Any]) -> Program:
  """The program of `apply_fn(params, *inputs)`, from shapes and dtypes alone.

  The program's params are the arrays among the leaves of `params`, in their order.
  """
  leaves, treedef = jax.tree.flatten((params, tuple(inputs)))
  at = [i for i, leaf in enumerate(leaves) if is_array(leaf)]

  def flat(*arrays: Any) -> list[Any]:
    filled = list(leaves)
    for i, array in zip(at, arrays, strict=True):
      filled[i] = array
    params, inputs = jax.tree.unflatten(treedef, filled)
    outputs = jax.tree.leaves(apply_fn(params, *inputs))
    return [output for output in outputs if is_array(output)]

  shapes = [jax.ShapeDtypeStruct(leaves[i].shape, leaves[i].dtype) for i in at]
  closed = jax.make_jaxpr(flat)(*shapes)
  nodes = [Node(var.aval) for var in closed.jaxpr.invars]
  equations: list[Equation] = []
  outputs = _inline(closed, nodes, equations, 1)
  count = sum(map(is_array, jax.tree.leaves(params)))
  return Program(nodes[:count], nodes[count:], _used(equations, outputs), outputs)


def _inline(
  closed: Any, inputs: Sequence[Node], equations: list[Equation], times: int
) -> list[Node]:
  """Appends the equations of a jaxpr, open or closed; returns its outputs."""
  jaxpr = getattr(closed, "jaxpr", closed)
  consts = [Node(jax.typeof(c), c) for c in getattr(closed, "consts", ())]
  known = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *inputs), strict=True))

  def read(atom: Any) -> Node:
    return Node(atom.aval, atom.val) if isinstance(atom, core.Literal) else known[atom]

  for eqn in jaxpr.eqns:
    name, arguments = eqn.primitive.name, [read(atom) for atom in eqn.invars]
    inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
    if name in _CALLS and inner is not None:
      outputs = _inline(inner, arguments, equations, times)
    elif name == "scan":
      outputs = _inline_scan(eqn, arguments, equations, times)
    else:
      outputs = [Node(var.aval) for var in eqn.outvars]
      equations.append(
        Equation(name, arguments, outputs, eqn.params, times, eqn.primitive)
      )
    known.update(zip(eqn.outvars, outputs, strict=True))
  return [read(atom) for atom in jaxpr.outvars]


def _inline_scan(
  eqn: Any, arguments: Sequence[Node], equations: list[Equation], times: int
) -> list[Node]:
  body = eqn.params["jaxpr"]
  consts, carries = eqn.params["num_consts"], eqn.params["num_carry"]
  times *= eqn.params["length"]
  entered = [Node(var.aval) for var in body.jaxpr.invars]
  entered[:consts] = arguments[:consts]
  for k, (outer, inner) in enumerate(zip(arguments, entered, strict=True)):
    if k >= consts:
      name = "carry_in" if k < consts + carries else "scan_slice"
      equations.append(Equation(name, [outer], [inner], {}, 1))
  left = _inline(body, entered, equations, times)
  outputs = [Node(var.aval) for var in eqn.outvars]
  for k, (inner, outer) in enumerate(zip(left, outputs, strict=True)):
    if k < carries:
      pair = [entered[consts + k], inner]
      equations.append(Equation("carry_out", pair, [outer], {}, 1))
    else:
      equations.append(Equation("scan_stack", [inner], [outer], {}, 1))
  return outputs


def _used(equations: Sequence[Equation], outputs: Sequence[Node]) -> list[Equation]:
  """The equations on which the outputs depend."""
  needed = set(outputs)
  kept = []
  for equation in reversed(equations):
    # What leaves the body of a scan may be needed by the next turn alone.
    if equation.name == "carry_out" or not needed.isdisjoint(equation.outputs):
      needed.update(equation.inputs)
      kept.append(equation)
  return kept[::-1]


def blocks(
  before: Sequence[int], after: Sequence[int]
) -> list[tuple[list[int], list[int]]]:
  """The axes that a reshape merges or splits, axes of size 1 left out.

  Args:
    before: a shape without zeros.
    after: a shape of the same size.

  Returns:
    Pairs of lists of axes with the same product of sizes, in order, as short as they
    can be.
  """
  left = [i for i, n in enumerate(before) if n != 1]
  right = [j for j, n in enumerate(after) if n != 1]
  found = []
  while left:
    ins, outs = [left.pop(0)], [right.pop(0)]
    while True:
      a = int(np.prod([before[i] for i in ins]))
      b = int(np.prod([after[j] for j in outs]))
      if a == b:
        break
      if a < b:
        ins.append(left.pop(0))
      else:
        outs.append(right.pop(0))
    found.append((ins, outs))
  return found
