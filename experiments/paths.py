"""Whole regularisation paths by one compiled program; see docs/paths.md.

One training is a pure function of lam and the first weights. A path is compiled for
each point, in which lam is then a constant; or once, and run for one point after
another; or once, and run for all points together.
"""

from collections.abc import Callable
import dataclasses
import functools
import pathlib
import statistics
import time
from typing import Annotated, Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from matplotlib.ticker import PercentFormatter
import numpy as np
import optax
import tyro

from experiments import datasets
from experiments.core import backend, cli, measure, methods, plots, results, training
from experiments.core import run as runs
from experiments.core.tables import of_cells
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
      beta = config.beta if method.splits else None
      return methods.ramped(rate, steps, method.penalty, lam, beta)

    one = training.Trainer(forward, optimizer)
    state, _ = one.whole(params, jnp.asarray(order), lam, data.train)
    return {
      "accuracy": training.means(forward, state.sparse, data.test)[1],
      "zeros": measure.zeros(state.sparse),
    }

  return run


def separately(run: Run) -> Path:
  """Compiles a program for each point, in which lam is a constant."""

  def one(lam: Any, first: Any, data: Data) -> dict[str, jax.Array]:
    return jax.jit(functools.partial(run, lam.item()))(first, data)

  return _each(one)


def in_a_loop(run: Run) -> Path:
  """Compiles one program, and runs it for one point after another."""
  # A new function each time: of `run` itself, JAX would remember the program.
  return _each(jax.jit(lambda *args: run(*args)))


def at_once(run: Run) -> Path:
  """Compiles one program, and runs it for all points together."""
  compiled = jax.jit(jax.vmap(run, (0, 0, None)))
  return lambda *args: jax.tree.map(np.asarray, compiled(*args))


def _each(run: Run) -> Path:
  def path(lams: jax.Array, params: Any, data: Data) -> dict[str, np.ndarray]:
    leaves, treedef = jax.tree.flatten(params)
    firsts = (jax.tree.unflatten(treedef, p) for p in zip(*leaves, strict=True))
    found = [run(lam, first, data) for lam, first in zip(lams, firsts, strict=True)]
    return {name: np.stack([one[name] for one in found]) for name in found[0]}

  return path


WAYS: dict[str, tuple[str, Callable[[Run], Path]]] = {
  "separate": ("a compilation for each point", separately),
  "loop": ("one compilation, one point after another", in_a_loop),
  "vmap": ("one compilation, all points together (vmap)", at_once),
}


def uses_vmap(vmap: bool | None) -> bool:
  """Whether to train all points together: as told, or if not on CPU."""
  return not backend.on_cpu() if vmap is None else vmap


def timed(config: Config, epochs: int, data: Data) -> list[dict[str, float]]:
  """Seconds that a path of the first method takes, in each way and each round.

  The ways take turns in one process, in another order each round, and each round
  compiles anew; a first round, which fills JAX's caches, is left out.

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
    way = WAYS[name][1](run)
    first = {name: seconds(way)}
    # What compiles each point has nothing left for a second time.
    return first if name == "separate" else {**first, f"{name} again": seconds(way)}

  names = list(WAYS)
  for way in (in_a_loop(run), at_once(run)):
    seconds(way)
  rounds = []
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


def rebuild(directory: pathlib.Path) -> list[pathlib.Path]:
  """Writes the report and the figure of the result in a directory."""
  result = results.read(directory / "paths.json")
  files = [directory / "paths.md", directory / "paths.png"]
  results.write_atomically(files[0], markdown(result))
  draw(result, files[1])
  return files


def markdown(result: dict[str, Any]) -> str:
  """Times of the ways to train a path, and how they were measured."""
  config = result["config"]
  way = "vmap" if result["vmap"] else "a loop over one compiled program"
  rows = [_row(length, name) for length in result["times"] for name in WAYS]
  weights = 64 * config["hidden"] + config["hidden"] * 10
  return f"""# Whole paths at once

A path of {config["points"]} values of lam on DIGITS (1,438 training and 359 test
examples), RVSM with l0; a network of {weights:,} weights, 64-{config["hidden"]}-10;
batches of {config["batch_size"]}. The first training, of {config["epochs"]} epochs, is
short against its compilation; the second is {config["long_epochs"]} epochs long.

{of_cells(rows)}

Medians of {config["rounds"]} rounds, in which the ways take turns in one process;
ratios are medians of the ratios in a round. Each round compiles anew, and compiling
includes tracing. The longer the training, the less there is to gain: n trainings of
a program that compiles in C and runs in R seconds take C + nR with one compilation in
place of n(C + R). The first weights are drawn before, and the batches are the same for
all points. What is chosen on this machine is {way}.

{results.footer([result])}

![Accuracy against sparsity](paths.png)

{len(result["paths"])} paths of the long training, each point the mean of
{config["seeds"]} seeds; bars reach from the lowest to the highest accuracy. Accuracy on
the test examples, and zeros among the weights, of the sparse network: u of RVSM, w of
the proximal step. lam is ramped up from zero during the first half of the steps.
"""


def _row(length: dict[str, Any], name: str) -> dict[str, str]:
  rounds = length["rounds"]

  def median(name: str) -> str:
    return f"{statistics.median(found[name] for found in rounds):.2f}"

  def ratio(name: str, to: str) -> str:
    value = statistics.median(found[name] / found[to] for found in rounds)
    return f"1/{1 / value:.1f}" if value < 0.5 else f"{value:.2f}"

  again = f"{name} again"
  is_again = again in rounds[0]
  return {
    "way": WAYS[name][0],
    "epochs": str(length["epochs"]),
    "seconds, first path": median(name),
    "seconds, one more path": median(again) if is_again else "–",
    "first path, to that of each point compiled": ratio(name, "separate"),
    "one more path, to the loop": ratio(again, "loop again") if is_again else "–",
  }


def draw(result: dict[str, Any], path: pathlib.Path) -> None:
  """Draws accuracy against sparsity for each path."""
  with plots.figure(path, width=6.4, height=4.2) as grid:
    axes = grid[0, 0]
    for marker, (title, found) in zip("osD", result["paths"].items(), strict=False):
      accuracy, sparsity = np.array(found["accuracy"]), np.array(found["zeros"])
      mean = accuracy.mean(axis=1)
      spread = np.abs(np.stack([accuracy.min(axis=1), accuracy.max(axis=1)]) - mean)
      style = {"marker": marker, "markersize": 4, "elinewidth": 0.8}
      axes.errorbar(sparsity.mean(axis=1), mean, spread, label=title, **style)
    axes.set_xlabel("zeros among the weights")
    axes.set_ylabel("accuracy on the test examples")
    axes.legend(loc="lower left")
    plots.percent_axis(axes)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes],
  places: cli.Common,
  vmap: bool | None = None,
) -> None:
  """Trains paths of lam on DIGITS by one compiled program, and measures what it saves.

  Args:
    config: what is trained and measured.
    places: where it reads and writes.
    vmap: whether the paths of the figure are trained all points together; by default
      not on CPU.
  """
  if places.quick:
    config = dataclasses.replace(config, points=4, seeds=1, rounds=1)
  directory = places.run("paths")
  folder = places.report("paths", directory)
  data = load_data(places.data_dir)

  def times(run: runs.Run, epochs: int) -> dict[str, Any]:
    rounds = run.once(f"times-{epochs}", lambda: timed(config, epochs, data))
    return {"epochs": epochs, "rounds": rounds}

  with runs.Run(directory, config) as run:
    result = results.result(
      "paths",
      config,
      None,
      times=[times(run, epochs) for epochs in (config.epochs, config.long_epochs)],
      vmap=uses_vmap(vmap),
      paths=run.once("paths", lambda: accuracies(config, data, vmap)),
    )
  results.publish(folder / "paths.json", result, rebuild)


if __name__ == "__main__":
  cli.run("paths", main)
