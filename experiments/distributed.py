"""Trains a network whose weights are spread over devices, on one host or on many.

`python -m experiments.distributed` uses all devices of this machine. With
`--coordinator auto`, the same command is started on every host of a TPU pod, or by
`srun` once per GPU; see docs/multi_device.md. The numbers are those of one device, up
to rounding.
"""

import contextlib
import dataclasses
import functools
import pathlib
import sys
from typing import Annotated, Any, Literal

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import orbax.checkpoint as ocp
import tyro

from experiments import _run
from experiments.datasets import tabular
import rvsm_jax


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained: all that determines the numbers, up to rounding.

  Attributes:
    method: rvsm with l0, or proximal with integrated transformed l1.
    lam: weight of the penalty, once it is ramped up; by default that of the method.
    beta: stiffness of rvsm.
    hidden: units of the hidden layer.
    epochs: passes over DIGITS.
    batch_size: examples of a step, on all devices together.
    learning_rate: at the start, of SGD with momentum.
    seed: of the weights and of the batches.
  """

  method: Literal["rvsm", "proximal"] = "rvsm"
  lam: float | None = None
  beta: float = 0.5
  hidden: int = 256
  epochs: int = 20
  batch_size: int = 64
  learning_rate: float = 0.05
  seed: int = 0


def network(config: Config) -> nnx.Module:
  """Two dense layers, for the 64 pixels and 10 classes of DIGITS."""
  rngs = nnx.Rngs(config.seed)
  return nnx.Sequential(
    nnx.Linear(64, config.hidden, rngs=rngs),
    nnx.relu,
    nnx.Linear(config.hidden, 10, rngs=rngs),
  )


def optimizer(config: Config, steps: int) -> optax.GradientTransformationExtraArgs:
  """SGD with momentum, and lam ramped up during the first half of the steps."""
  rate = optax.cosine_decay_schedule(config.learning_rate, steps)
  lam = config.lam
  if lam is None:
    lam = {"rvsm": 1e-2, "proximal": 2e-2}[config.method]
  options: dict[str, Any] = {
    "lam": optax.linear_schedule(0.0, lam, steps // 2),
    "momentum": 0.9,
    "mask": rvsm_jax.kernels,
  }
  if config.method == "rvsm":
    return rvsm_jax.rvsm_sgd(rate, rvsm_jax.l0(), beta=config.beta, **options)
  return rvsm_jax.proximal_sgd(rate, rvsm_jax.integrated_tl1(a=1.0, mu=0.5), **options)


def placement(mesh: Mesh, leaf: jax.ShapeDtypeStruct) -> NamedSharding:
  """Splits the longest axis that the devices divide; a leaf without one is copied."""
  divided = [axis for axis, size in enumerate(leaf.shape) if size % mesh.size == 0]
  longest = max(divided, key=lambda axis: leaf.shape[axis], default=None)
  names = ["data" if axis == longest else None for axis in range(len(leaf.shape))]
  return NamedSharding(mesh, P(*names))


def spread(mesh: Mesh, array: np.ndarray) -> jax.Array:
  """The rows of an array that every process has, split among all devices."""
  sharding = NamedSharding(mesh, P("data"))
  return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])


def train(
  config: Config,
  mesh: Mesh,
  data_dir: pathlib.Path | None = None,
  checkpoints: pathlib.Path | None = None,
) -> dict[str, Any]:
  """Trains on DIGITS; every process of the mesh calls it with the same arguments.

  Args:
    config: what is trained.
    mesh: all devices, along the explicit axis "data".
    data_dir: where prepared data sets are kept.
    checkpoints: a directory that all processes share, from whose newest checkpoint
      training goes on, also on another number of devices.

  Returns:
    "params", the sparse network, on the devices; its "accuracy" on the test examples
    and the "sparsity" of its kernels.

  Raises:
    ValueError: if the devices do not divide the batch, or the checkpoint belongs to
      another configuration.
  """
  if config.batch_size % mesh.size:
    raise ValueError(
      f"batch_size={config.batch_size} does not divide among {mesh.size} devices:"
      " pass a multiple of their number."
    )
  x, y = tabular.load("digits", "train", data_dir)
  test_x, test_y = tabular.load("digits", "test", data_dir)
  x, test_x = (pixels.astype(np.float32) / 16 for pixels in (x, test_x))
  # Padded until the devices divide it; a label of -1 is never found.
  padding = -len(test_x) % mesh.size
  held_x = spread(mesh, np.pad(test_x, ((0, padding), (0, 0))))
  held_y = spread(mesh, np.pad(test_y, (0, padding), constant_values=-1))

  graph, shapes = nnx.split(nnx.eval_shape(lambda: network(config)), nnx.Param)
  places = jax.tree.map(functools.partial(placement, mesh), shapes)
  steps = len(x) // config.batch_size
  tx = optimizer(config, config.epochs * steps)

  def logits(params: Any, x: jax.Array) -> jax.Array:
    # Gathered here for the forward and the backward pass alone; the gradients come
    # back split as the weights are.
    whole = jax.tree.map(lambda w: jax.sharding.reshard(w, P()), params)
    return nnx.merge(graph, whole)(x)

  @jax.jit
  def begin() -> _run.TrainState:
    params = nnx.state(network(config), nnx.Param)
    params = jax.tree.map(jax.sharding.reshard, params, places)
    return _run.TrainState.create(params, tx)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state: _run.TrainState, x: jax.Array, y: jax.Array) -> _run.TrainState:
    def objective(params: Any) -> tuple[jax.Array, jax.Array]:
      out = logits(params, x)
      chosen = jax.nn.one_hot(y, out.shape[-1])
      losses = optax.softmax_cross_entropy(out, chosen)
      return jnp.mean(losses), jnp.sum(jnp.argmax(out, axis=-1) == y)

    (loss, found), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    seen = len(x)
    return state.updated(tx, grads, loss=seen * loss, found=found, seen=seen)

  def sparse(state: _run.TrainState) -> Any:
    if config.method == "proximal":
      return state.params
    return rvsm_jax.sparse_params(state.opt_state, state.params)

  @jax.jit
  def metrics(params: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    found = jnp.sum(jnp.argmax(logits(params, x), axis=-1) == y)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    return found / len(test_y), rvsm_jax.sparsity(kernels)

  with jax.set_mesh(mesh), contextlib.ExitStack() as stack:
    state, manager = begin(), None
    if checkpoints is not None:
      options = ocp.CheckpointManagerOptions(
        max_to_keep=2,
        # The next step overwrites the arrays in place, so writing must not lag.
        enable_async_checkpointing=False,
      )
      manager = stack.enter_context(
        ocp.CheckpointManager(checkpoints.resolve(), options=options)
      )
      state = restored(manager, config, state)
    for epoch in range(int(state.step) // steps, config.epochs):
      state = state._replace(totals=jax.tree.map(jnp.zeros_like, state.totals))
      for batch in _run.epoch_order(config.seed, epoch, len(x), config.batch_size):
        state = step(state, spread(mesh, x[batch]), spread(mesh, y[batch]))
      # All processes compute what one of them prints.
      accuracy, sparsity = map(float, metrics(sparse(state), held_x, held_y))
      loss = float(state.totals["loss"] / state.totals["seen"])
      _run.console.print(
        f"epoch {epoch + 1}/{config.epochs}: loss {loss:.4f}, test accuracy"
        f" {accuracy:.4f}, sparsity {sparsity:.4f}"
      )
      if manager is not None:
        manager.save(
          int(state.step),
          args=ocp.args.Composite(
            state=ocp.args.StandardSave(state._asdict()),
            config=ocp.args.JsonSave(dataclasses.asdict(config)),
          ),
        )
    params = sparse(state)
    accuracy, sparsity = map(float, metrics(params, held_x, held_y))
    return {"params": params, "accuracy": accuracy, "sparsity": sparsity}


def restored(
  manager: ocp.CheckpointManager, config: Config, state: _run.TrainState
) -> _run.TrainState:
  """The newest checkpoint, placed as `state` is; `state` if there is none.

  Raises:
    ValueError: if it belongs to another configuration.
  """
  newest = manager.latest_step()
  if newest is None:
    return state
  stored = manager.restore(
    newest,
    args=ocp.args.Composite(
      state=ocp.args.StandardRestore(state._asdict()),
      config=ocp.args.JsonRestore(),
    ),
  )
  if stored.config != dataclasses.asdict(config):
    raise ValueError(
      f"{manager.directory} has checkpoints of another configuration,"
      f" {stored.config}: pass another directory, or delete that one."
    )
  return _run.TrainState(**stored.state)


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes],
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
  output: pathlib.Path | None = None,
  data_dir: pathlib.Path | None = None,
) -> None:
  """Trains on all devices of all processes; process 0 prints.

  Args:
    config: what is trained.
    coordinator: where there are several processes: auto, if JAX finds out by itself
      (Slurm, TPU pods, Open MPI, Kubernetes), or host:port of process 0.
    processes: how many there are, with host:port.
    process: which this one is, from 0, with host:port.
    output: a directory that all processes share, for the result and for checkpoints
      after each epoch, from which the same command goes on, also with another number
      of devices; by default nothing is written.
    data_dir: where prepared data sets are kept.
  """
  if coordinator == "auto":
    jax.distributed.initialize()
  elif coordinator is not None:
    jax.distributed.initialize(coordinator, processes, process)
  _run.console.quiet = jax.process_index() > 0
  _run.console.print(
    f"{jax.process_count()} processes, {jax.device_count()} devices of kind"
    f" {jax.devices()[0].device_kind}"
  )
  mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Explicit,))
  checkpoints = output and output / "checkpoints"
  result = train(config, mesh, data_dir, checkpoints)
  if output is not None and jax.process_index() == 0:
    del result["params"]
    details = {"config": dataclasses.asdict(config), "processes": jax.process_count()}
    _run.write_json(output / "result.json", {**details, **result, **_run.environment()})
    _run.announce([output / "result.json"])


if __name__ == "__main__":
  try:
    tyro.cli(main, prog="python -m experiments.distributed")
  except ValueError as error:
    sys.exit(str(error))
