"""A training step of a transformer on many chips, with and without sparse training."""

from collections.abc import Callable
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax

from experiments.accelerators import programs, transformer
from experiments.accelerators.transformer import Shape
import rvsm_jax

_RATE, _LAM, _BETA = 3e-4, 1e-7, 1e-2

# The kernels of the layers; each column of each layer is a group.
_MASK = rvsm_jax.by_path(r"layers/.*kernel")
_COLUMNS = (1,)

Make = Callable[[], optax.GradientTransformation]


def _after(
  factory: Callable[..., optax.GradientTransformation],
  penalty: rvsm_jax.Penalty,
  **options: Any,
) -> Make:
  return lambda: optax.chain(
    optax.adamw(_RATE), factory(_RATE, penalty, lam=_LAM, mask=_MASK, **options)
  )


def _through(penalty: rvsm_jax.Penalty) -> Make:
  return lambda: rvsm_jax.straight_through(
    optax.adamw(_RATE), penalty, step=_LAM / _BETA, mask=_MASK
  )


_l0 = rvsm_jax.l0()
_all = rvsm_jax.cardinality(0.9, scope="all")
_rvsm = functools.partial(_after, rvsm_jax.rvsm, beta=_BETA)
SUBJECTS: dict[str, Make] = {
  "adamw": lambda: optax.adamw(_RATE),
  "rvsm l0, no u": _rvsm(_l0, carry_u=False),
  "rvsm l0, u in bfloat16": _rvsm(_l0, u_dtype=jnp.bfloat16),
  "straight-through cardinality of all": _through(_all),
  "proximal integrated TL1": _after(
    rvsm_jax.proximal, rvsm_jax.integrated_tl1(1.0, 0.5, _COLUMNS)
  ),
  "rvsm l0": _rvsm(_l0),
  "proximal group lasso": _after(rvsm_jax.proximal, rvsm_jax.group_lasso(_COLUMNS)),
  "straight-through l0": _through(_l0),
}


def mesh(devices: Any, data: int, model: int) -> Mesh:
  """Devices as a grid: FSDP along its first axis, tensor parallel along the other."""
  return Mesh(np.array(devices).reshape(data, model), ("data", "model"))


def step(
  tx: optax.GradientTransformation, shape: Shape, grid: Mesh
) -> Callable[..., Any]:
  """From params, state and a batch to the next params, state and the loss."""

  def run(params: Any, state: Any, batch: jax.Array) -> tuple[Any, Any, jax.Array]:
    loss, grads = jax.value_and_grad(transformer.loss)(params, batch, shape, grid)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, loss

  return run


def state_of(tx: optax.GradientTransformation, params: Any, grid: Mesh) -> Any:
  """The optimizer's state without numbers, placed as the params are."""
  places = {
    path: leaf.sharding for path, leaf in jax.tree_util.tree_leaves_with_path(params)
  }

  def placed(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    # What belongs to a weight stands at the end of the same path.
    ends = (path[i:] for i in range(len(path)))
    found = (places[end] for end in ends if end in places)
    sharding = next(found, NamedSharding(grid, P()))
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  return jax.tree_util.tree_map_with_path(placed, jax.eval_shape(tx.init, params))


def compiled(name: str, shape: Shape, grid: Mesh, alone: bool) -> Any:
  """The training step, or its update alone, params and state donated, from shapes."""
  tx = SUBJECTS[name]()
  params = transformer.placed(shape, grid)
  state = state_of(tx, params, grid)
  if not alone:
    jitted = jax.jit(step(tx, shape, grid), donate_argnums=(0, 1))
    return jitted.lower(params, state, transformer.tokens(shape, grid)).compile()

  def update(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return jax.jit(update, donate_argnums=(0, 1)).lower(params, state, params).compile()


def row(name: str, shape: Shape, grid: Mesh, alone: bool) -> dict[str, Any]:
  """What it costs each chip."""
  cost = programs.cost(compiled(name, shape, grid, alone))
  return {"update": name, "alone": alone, **cost._asdict()}


def train(name: str, shape: Shape, grid: Mesh, steps: int) -> tuple[Any, jax.Array]:
  """The params after a training on one batch, and the losses on the way."""
  tx = SUBJECTS[name]()
  params, batch = transformer.draw(shape, grid, 0)
  state = jax.jit(tx.init)(params)
  update = jax.jit(step(tx, shape, grid), donate_argnums=(0, 1))
  losses = []
  for _ in range(steps):
    params, state, loss = update(params, state, batch)
    losses.append(loss)
  return params, jnp.stack(losses)
