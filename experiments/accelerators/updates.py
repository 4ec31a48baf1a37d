"""The update alone: every transformation, with every penalty, for an accelerator."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from experiments.accelerators import programs, targets
import rvsm_jax

_RATE, _LAM, _BETA = 0.1, 1e-3, 0.1

PENALTIES: dict[str, rvsm_jax.Penalty] = {
  "l0": rvsm_jax.l0(),
  "l1": rvsm_jax.l1(),
  "TL1": rvsm_jax.transformed_l1(1.0),
  "SCAD": rvsm_jax.scad(0.1),
  "MCP": rvsm_jax.mcp(0.1),
  "log": rvsm_jax.log_penalty(5.0),
  "capped l1": rvsm_jax.capped_l1(0.5),
  "lp, p = 1/2": rvsm_jax.lp(0.5),
  "lp, p = 2/3": rvsm_jax.lp(2 / 3),
  "elastic net": rvsm_jax.elastic_net(0.5),
  "nonnegative": rvsm_jax.nonnegative(),
  "group lasso": rvsm_jax.group_lasso("out"),
  "group lasso, in": rvsm_jax.group_lasso("in"),
  "sparse group lasso": rvsm_jax.sparse_group_lasso(0.5),
  "integrated TL1": rvsm_jax.integrated_tl1(1.0, 0.5),
  "l1 - l2": rvsm_jax.l1_minus_l2(),
  "2:4": rvsm_jax.nm_sparsity(2, 4),
  "cardinality": rvsm_jax.cardinality(0.9),
  "exclusive lasso": rvsm_jax.exclusive_lasso("out"),
  "exclusive lasso, one step": rvsm_jax.exclusive_lasso_one_step("out"),
  "group and exclusive": rvsm_jax.combined_group_exclusive(0.5),
}
COMPONENTWISE = tuple(PENALTIES)[:11]
NORMS = ("group lasso", "group lasso, in", "sparse group lasso", "integrated TL1")


class Subject(NamedTuple):
  """An optimizer.

  Attributes:
    make: builds it.
    arrays: what one update reads and writes at the least, in arrays of the size of the
      params: weights and gradients read, weights written, its state both; weights and
      gradients a second time for norms of groups. None where it is not known.
    half: likewise, arrays of bfloat16 whatever the params are.
  """

  make: Callable[[], optax.GradientTransformation]
  arrays: int | None
  half: int = 0


def _rvsm(
  name: str, **options: Any
) -> Callable[[], optax.GradientTransformationExtraArgs]:
  return lambda: rvsm_jax.rvsm_sgd(
    _RATE, PENALTIES[name], lam=_LAM, beta=_BETA, **options
  )


def _least(name: str) -> int | None:
  """Arrays of the proximal step of a penalty."""
  if name in COMPONENTWISE or name == "2:4":
    return 3
  return 5 if name in NORMS else None


def _target() -> optax.GradientTransformation:
  def make(lam: jax.Array) -> optax.GradientTransformation:
    return rvsm_jax.rvsm_sgd(_RATE, PENALTIES["l1"], lam=lam, beta=_BETA)

  return rvsm_jax.target_sparsity(make, 0.9)


def _subjects() -> dict[str, Subject]:
  sgd, l1 = functools.partial(optax.sgd, _RATE), PENALTIES["l1"]
  found = {
    "sgd": Subject(sgd, 3),
    "sgd, momentum": Subject(lambda: optax.sgd(_RATE, momentum=0.9), 5),
    "adam": Subject(lambda: optax.adam(_RATE), 7),
  }
  for name in PENALTIES:
    # The old u is not read where it costs less to compute it again. The norms of the
    # groups are those of the new weights, which are read once more.
    known = (
      dict.fromkeys(COMPONENTWISE, 5) | dict.fromkeys(NORMS, 6) | {"l0": 4, "l1": 4}
    )
    found[f"rvsm {name}"] = Subject(_rvsm(name), known.get(name))
  for name in ("l0", "l1", "TL1", "group lasso"):
    arrays = 3 if name in COMPONENTWISE else 4
    found[f"rvsm {name}, no u"] = Subject(_rvsm(name, carry_u=False), arrays)
  for name in ("l0", "TL1"):
    half = Subject(_rvsm(name, u_dtype=jnp.bfloat16), 3, 1 + (name == "TL1"))
    found[f"rvsm {name}, u in bfloat16"] = half
  found["rvsm l0, Jacobi"] = Subject(_rvsm("l0", ordering="jacobi"), 5)
  for name, penalty in PENALTIES.items():
    make = functools.partial(rvsm_jax.proximal_sgd, _RATE, penalty, lam=_LAM)
    found[f"proximal {name}"] = Subject(make, _least(name))
  for name in ("l1", "TL1", "group lasso"):
    adam = functools.partial(rvsm_jax.proximal_adam, _RATE, PENALTIES[name], lam=_LAM)
    found[f"proximal adam {name}"] = Subject(adam, 7 if name in COMPONENTWISE else None)
  for name in ("l0", "cardinality"):
    through = functools.partial(
      rvsm_jax.straight_through, optax.sgd(_RATE), PENALTIES[name], step=_LAM
    )
    found[f"straight-through {name}"] = Subject(through, 5 if name == "l0" else None)
  admm = functools.partial(rvsm_jax.admm, _RATE, PENALTIES["cardinality"], rho=0.1)
  gradient = rvsm_jax.add_penalty_gradient(l1, _LAM)
  found |= {
    "admm cardinality": Subject(lambda: optax.chain(sgd(), admm()), None),
    "target sparsity, rvsm l1": Subject(_target, 6),
    "sparsify": Subject(lambda: rvsm_jax.sparsify(sgd(), 0.9, steps=1000), None),
    "magnitude pruning": Subject(
      lambda: optax.chain(sgd(), rvsm_jax.magnitude_pruning(0.9)), None
    ),
    "keep zeros": Subject(lambda: optax.chain(sgd(), rvsm_jax.keep_zeros()), 3),
    "penalty gradient l1": Subject(lambda: optax.chain(gradient, sgd()), 3),
  }
  return found


SUBJECTS = _subjects()
# Those of the promise: tests compile them for every target.
PROMISED = (
  *(f"rvsm {name}" for name in ("l0", "l1", "TL1")),
  *(f"rvsm {name}, no u" for name in ("l0", "l1", "TL1")),
  *(f"proximal {name}" for name in ("l1", "TL1", "group lasso", "integrated TL1")),
)


def compiled(
  subject: Subject, target: targets.Target, dtype: str, side: int
) -> tuple[Any, float]:
  """An update with params and state donated, and the weights of a chip.

  Args:
    subject: the optimizer.
    target: what it is compiled for.
    dtype: of the params and gradients.
    side: the weights are one kernel with so many columns, and rows on each chip.
  """
  mesh = Mesh(np.array(targets.devices(target)), ("data",))
  rows, whole = (NamedSharding(mesh, spec) for spec in (P("data"), P()))
  shape = (side * target.chips, side)
  params = {"kernel": jax.ShapeDtypeStruct(shape, dtype, sharding=rows)}
  tx = subject.make()
  state = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(
      s.shape, s.dtype, sharding=rows if s.shape == shape else whole
    ),
    jax.eval_shape(tx.init, params),
  )

  def update(grads: Any, state: Any, params: Any) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  jitted = jax.jit(update, donate_argnums=(1, 2))
  return jitted.lower(params, state, params).compile(), side * side


def row(name: str, target: targets.Target, dtype: str, side: int) -> dict[str, Any]:
  """What the update of a subject costs; bytes are per weight."""
  subject = SUBJECTS[name]
  program, weights = compiled(subject, target, dtype, side)
  cost = programs.cost(program)
  size = jnp.dtype(dtype).itemsize
  known = subject.arrays is not None
  return cost._asdict() | {
    "bytes": cost.bytes / weights,
    "temporary_bytes": cost.temporary_bytes / weights,
    "argument_bytes": cost.argument_bytes / weights,
    "least_bytes": (subject.arrays or 0) * size + subject.half * 2 if known else None,
  }
