"""Trains a network whose weights are spread over devices, on one host or on many.

`python -m experiments distributed` uses all devices of this machine. With
`--coordinator auto`, the same command is started on every host of a TPU pod, or by
`srun` once per GPU; see docs/multi_device.md. The numbers are those of one device, up
to rounding.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
import pathlib
from typing import Annotated, Any, Literal

from flax import nnx
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import tyro

from experiments import datasets
from experiments.core import cli, measure, methods, results, training
from experiments.core.run import Run
from experiments.core.training import Data, Examples
from experiments.networks.perceptron import perceptron
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


def optimizer(config: Config, steps: int) -> optax.GradientTransformation:
  """SGD with momentum, and lam ramped up during the first half of the steps."""
  rate = optax.cosine_decay_schedule(config.learning_rate, steps)
  penalty, lam, beta = {
    "rvsm": (rvsm_jax.l0(), 1e-2, config.beta),
    "proximal": (rvsm_jax.integrated_tl1(a=1.0, mu=0.5), 2e-2, None),
  }[config.method]
  lam = lam if config.lam is None else config.lam
  return methods.ramped(rate, steps, penalty, lam, beta)


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


def spread_network(
  mesh: Mesh, config: Config
) -> tuple[training.Forward, Callable[[], nnx.State]]:
  """Two dense layers, and what makes their weights, split among the devices."""

  def network() -> nnx.Module:
    return perceptron([64, config.hidden, 10], nnx.Rngs(config.seed))

  graph, shapes = nnx.split(nnx.eval_shape(network), nnx.Param)
  places = jax.tree.map(functools.partial(placement, mesh), shapes)

  def forward(params: Any, extra: Any, x: jax.Array) -> tuple[jax.Array, Any]:
    # Gathered here for the forward and the backward pass alone; the gradients come
    # back split as the weights are.
    whole = jax.tree.map(lambda w: jax.sharding.reshard(w, P()), params)
    return nnx.merge(graph, whole)(x), extra

  def initial_params() -> nnx.State:
    params = nnx.state(network(), nnx.Param)
    return jax.tree.map(jax.sharding.reshard, params, places)

  return forward, initial_params


def load(mesh: Mesh, data_dir: pathlib.Path | None) -> Data:
  """DIGITS: for training, every process has all; for testing, split among devices.

  The latter are padded until the devices divide them, with labels of -1.
  """
  x, y = datasets.load("digits", "train", data_dir)
  test_x, test_y = datasets.load("digits", "test", data_dir)
  x, test_x = (pixels.astype(np.float32) / 16 for pixels in (x, test_x))
  test = training.padded(Examples(test_x, test_y), mesh.size)
  return Data(Examples(x, y), Examples(*(spread(mesh, part) for part in test)))


def train(
  config: Config, mesh: Mesh, data_dir: pathlib.Path | None, run: Run
) -> dict[str, Any]:
  """Trains on DIGITS; every process of the mesh calls it with the same arguments.

  Its run directory is one that all processes share, from whose newest checkpoint it
  goes on, also on another number of devices.
  """
  if config.batch_size % mesh.size:
    raise ValueError(
      f"batch_size={config.batch_size} does not divide among {mesh.size} devices:"
      " pass a multiple of their number."
    )
  if (result := run.finished()) is not None:
    return result
  (x, y), held = load(mesh, data_dir)
  forward, initial_params = spread_network(mesh, config)
  tx = optimizer(config, config.epochs * (len(x) // config.batch_size))

  @jax.jit
  def begin() -> training.TrainState:
    return training.TrainState.create(initial_params(), tx)

  @functools.partial(jax.jit, donate_argnums=0)
  def update(state: training.TrainState, batch: Examples) -> training.TrainState:
    return training.updated(forward, tx, state, batch)

  @jax.jit
  def measured(state: training.TrainState, held: Examples) -> dict[str, jax.Array]:
    logits, _ = forward(state.sparse, (), held.x)
    found = jnp.sum(jnp.argmax(logits, axis=-1) == held.y) / jnp.sum(held.y >= 0)
    return {"test_accuracy": found, "zeros": measure.zeros(state.sparse)}

  def metrics(state: training.TrainState) -> dict[str, float]:
    # All processes compute what one of them prints.
    return jax.tree.map(float, measured(state, held))

  with jax.set_mesh(mesh):
    state, record = training.fit(
      run,
      begin(),
      epochs=config.epochs,
      batches=functools.partial(
        training.epoch_order, config.seed, size=len(x), batch_size=config.batch_size
      ),
      step=training.Step(
        lambda state, batch: update(
          state, Examples(spread(mesh, x[batch]), spread(mesh, y[batch]))
        )
      ),
      evaluate=metrics,
      live=lambda state: {},
      # By the clock, processes would not agree on the step.
      checkpoint_seconds=math.inf,
      checkpoint_epochs=1,
    )
    final = metrics(state)
    result = results.result(
      "distributed",
      run.config,
      record.seconds,
      processes=jax.process_count(),
      final={
        "accuracy": {"u": final["test_accuracy"]},
        "zeros": {"u": final["zeros"]},
      },
      epochs=record.epochs,
    )
    return run.finish(result, state.sparse)


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes],
  places: cli.Common,
  coordinator: str | None = None,
  processes: int | None = None,
  process: int | None = None,
) -> None:
  """Trains on all devices of all processes; process 0 prints.

  The same command goes on from the checkpoints of its run directory, which all
  processes share, also with another number of devices.

  Args:
    config: what is trained.
    places: where it reads and writes.
    coordinator: with several processes: auto, if JAX finds out by itself (Slurm, TPU
      pods, Open MPI, Kubernetes), or host:port of process 0.
    processes: how many there are, with host:port.
    process: which this one is, from 0, with host:port.
  """
  if coordinator == "auto":
    jax.distributed.initialize()
  elif coordinator is not None:
    jax.distributed.initialize(coordinator, processes, process)
  results.console.quiet = jax.process_index() > 0
  results.console.print(
    f"{jax.process_count()} processes, {jax.device_count()} devices of kind"
    f" {jax.devices()[0].device_kind}"
  )
  if places.quick:
    config = dataclasses.replace(config, epochs=2)
  mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Explicit,))
  with Run(places.run("distributed"), config) as run:
    result = train(config, mesh, places.data_dir, run)
  results.console.print(result["final"])


if __name__ == "__main__":
  cli.run("distributed", main)
