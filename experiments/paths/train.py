"""One training as a pure function of lam and seed, and three ways to train a path."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import time
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np
import optax

from experiments import datasets
from experiments.core import measure, training
from experiments.core.training import Data, Examples
from experiments.networks.perceptron import perceptron
import rvsm_jax


@dataclasses.dataclass(frozen=True)
class Config:
  """What is trained and measured.

  Attributes:
    hidden: units of the hidden layer.
    epochs: passes over DIGITS of a short training, next to whose compilation it is
      short.
    long_epochs: those of a long training, of which the figure is.
    batch_size: examples per step.
    learning_rate: at the start, of SGD with momentum.
    beta: stiffness of RVSM.
    points: how many lams a path has.
    seeds: trainings for each lam of the figure.
    rounds: how often each way is measured.
  """

  hidden: int = 32
  epochs: int = 10
  long_epochs: int = 80
  batch_size: int = 128
  learning_rate: float = 0.2
  beta: float = 0.5
  points: int = 16
  seeds: int = 3
  rounds: int = 3


class Method(NamedTuple):
  """A way to make a network sparse, and the path that it is trained on.

  Attributes:
    title: what figures and tables call it.
    penalty: its penalty.
    lams: the ends of the path.
    splits: whether by rvsm, of which u is the sparse network; else by proximal.
  """

  title: str
  penalty: rvsm_jax.Penalty
  lams: tuple[float, float]
  splits: bool = False


METHODS = (
  Method("RVSM, l0", rvsm_jax.l0(), (1e-3, 0.2), splits=True),
  Method("proximal, l1", rvsm_jax.l1(), (1e-4, 2e-2)),
  Method("proximal, TL1 (a = 1)", rvsm_jax.transformed_l1(1.0), (1e-4, 2e-2)),
)


Run = Callable[[ArrayLike, Any, Data], dict[str, jax.Array]]
Path = Callable[[jax.Array, Any, Data], dict[str, np.ndarray]]


def load_data(data_dir: Any = None) -> Data:
  """DIGITS, as scikit-learn has it, a fifth of it for testing; pixels in [0, 1]."""

  def load(split: str) -> Examples:
    x, y = datasets.load("digits", split, data_dir)
    return Examples(jnp.asarray(x.astype(np.float32) / 16), jnp.asarray(y))

  return Data(load("train"), load("test"))


def lams(method: Method, config: Config) -> jax.Array:
  """The path of a method: (points,), evenly spaced by ratio."""
  return jnp.geomspace(*method.lams, config.points, dtype=jnp.float32)


def network(config: Config, seed: ArrayLike) -> nnx.Module:
  """Two dense layers, for the 64 pixels and 10 classes of DIGITS."""
  rngs = nnx.Rngs(params=jax.random.key(seed))
  return perceptron([64, config.hidden, 10], rngs)


def initial_params(config: Config, seeds: jax.Array) -> nnx.State:
  """The weights before training for each of the seeds, along a first axis."""
  return jax.vmap(lambda seed: nnx.state(network(config, seed), nnx.Param))(seeds)


def whole(method: Method, config: Config, epochs: int) -> Run:
  """A whole training with its test, as a function that can be traced.

  Args:
    method: by which it is made sparse.
    config: its sizes.
    epochs: how long it is.

  Returns:
    A pure function of lam, the first params and data to the "accuracy" on the test
    examples and the "zeros" of the kernels, both of the sparse network.
  """
  graph = nnx.graphdef(nnx.eval_shape(lambda: network(config, 0)))
  forward = training.plain_forward(graph)

  def run(lam: ArrayLike, params: Any, data: Data) -> dict[str, jax.Array]:
    # The same for all points. A shuffle on the device would double the compilation.
    order = np.stack(
      [
        training.epoch_order(0, epoch, len(data.train.y), config.batch_size)
        for epoch in range(epochs)
      ]
    )
    steps = order.shape[0] * order.shape[1]
    rate = optax.cosine_decay_schedule(config.learning_rate, steps)

    def optimizer(lam: Any) -> optax.GradientTransformation:
      options: dict[str, Any] = {
        "lam": optax.linear_schedule(0.0, lam, steps // 2),
        "momentum": 0.9,
        "mask": rvsm_jax.kernels,
      }
      if method.splits:
        return rvsm_jax.rvsm_sgd(rate, method.penalty, beta=config.beta, **options)
      return rvsm_jax.proximal_sgd(rate, method.penalty, **options)

    one = training.Trainer(forward, optimizer)
    state, _ = one.whole(params, jnp.asarray(order), lam, data.train)
    return {
      "accuracy": training.accuracy(forward, state.sparse, data.test),
      "zeros": measure.zeros(state.sparse),
    }

  return run


def separately(run: Run) -> Path:
  """Compiles a program for each point, in which lam is a constant."""

  def path(lams: jax.Array, params: Any, data: Data) -> dict[str, np.ndarray]:
    points = zip(lams.tolist(), _unstacked(params), strict=True)
    return _stacked(
      [jax.jit(functools.partial(run, lam))(first, data) for lam, first in points]
    )

  return path


def in_a_loop(run: Run) -> Path:
  """Compiles one program, and runs it for one point after another."""
  # A new function each time: of `run` itself, JAX would remember the program.
  compiled = jax.jit(lambda *args: run(*args))

  def path(lams: jax.Array, params: Any, data: Data) -> dict[str, np.ndarray]:
    points = zip(lams, _unstacked(params), strict=True)
    return _stacked([compiled(lam, first, data) for lam, first in points])

  return path


def at_once(run: Run) -> Path:
  """Compiles one program, and runs it for all points together."""
  compiled = jax.jit(jax.vmap(run, (0, 0, None)))

  def path(lams: jax.Array, params: Any, data: Data) -> dict[str, np.ndarray]:
    return jax.tree.map(np.asarray, compiled(lams, params, data))

  return path


def _unstacked(params: Any) -> list[Any]:
  leaves, treedef = jax.tree.flatten(params)
  return [jax.tree.unflatten(treedef, point) for point in zip(*leaves, strict=True)]


def _stacked(results: Sequence[dict[str, jax.Array]]) -> dict[str, np.ndarray]:
  return {name: np.stack([found[name] for found in results]) for name in results[0]}


def uses_vmap(vmap: bool | None) -> bool:
  """Whether to train all points together: as told, or if not on CPU."""
  return jax.default_backend() != "cpu" if vmap is None else vmap


def timed(config: Config, epochs: int, data: Data) -> list[dict[str, float]]:
  """Seconds that a path of the first method takes, in each way and each round.

  The ways take turns in one process, in another order each round, and each round
  compiles anew; a first round, which fills JAX's caches, is left out.

  Args:
    config: its sizes.
    epochs: of each training.
    data: the examples.

  Returns:
    For each round the seconds by name: "separate" compiles and runs each point,
    "loop" and "vmap" compile and run the path, "loop again" and "vmap again" run it
    a second time.
  """
  run = whole(METHODS[0], config, epochs)
  path = lams(METHODS[0], config)
  params = initial_params(config, jnp.zeros(config.points, jnp.int32))

  def seconds(way: Path) -> float:
    began = time.perf_counter()
    way(path, params, data)
    return time.perf_counter() - began

  def measured(name: str) -> dict[str, float]:
    if name == "separate":
      return {name: seconds(separately(run))}
    way = {"loop": in_a_loop, "vmap": at_once}[name](run)
    return {name: seconds(way), f"{name} again": seconds(way)}

  rounds = []
  names = ["separate", "loop", "vmap"]
  for way in (in_a_loop(run), at_once(run)):
    seconds(way)
  for number in range(config.rounds):
    shift = number % len(names)
    found: dict[str, float] = {}
    for name in names[shift:] + names[:shift]:
      found |= measured(name)
    rounds.append(found)
  return rounds


def accuracies(
  config: Config, data: Data, vmap: bool | None = None
) -> dict[str, dict[str, list]]:
  """The paths of all methods, with the long training and several seeds.

  Args:
    config: their sizes.
    data: the examples.
    vmap: see `uses_vmap`.

  Returns:
    For each method by title "lam", (points,), and "accuracy" and "zeros", (points,
    seeds).
  """
  out = {}
  for method in METHODS:
    path = lams(method, config)
    run = whole(method, config, config.long_epochs)
    way = at_once(run) if uses_vmap(vmap) else in_a_loop(run)
    seeds = jnp.tile(jnp.arange(config.seeds), config.points)
    params = initial_params(config, seeds)
    found = way(jnp.repeat(path, config.seeds), params, data)
    shape = (config.points, config.seeds)
    shares = {name: share.reshape(shape).tolist() for name, share in found.items()}
    out[method.title] = {"lam": path.tolist(), **shares}
  return out
