"""Data, training, grid search and measurement."""

from collections.abc import Sequence
import dataclasses
import functools
import pathlib
import shutil
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
import rich.progress

from experiments import datasets
from experiments.core import backend, measure, results, training
from experiments.core.run import Run
from experiments.core.training import Data, Examples, TrainState
from experiments.integrated import config as configs
from experiments.integrated import paper
from experiments.networks import layers
from experiments.networks.cnn import CNN
import rvsm_jax

_DIGITS = 5


def load_data(
  problem: configs.Problem,
  data_dir: pathlib.Path | None,
  source: pathlib.Path | None,
) -> tuple[Data, str]:
  """The examples of a data set, see `datasets.load`, and what is to be said of them.

  They are images, (n, height, width, channels) float32, of mean 0 and deviation 1 in
  training.
  """
  (x, y), (test_x, test_y) = (
    datasets.load(problem.name, split, data_dir, source) for split in ("train", "test")
  )
  note = datasets.note(problem.name, test_x, test_y)
  size = problem.train_size or None
  x, y = x[:size], y[:size]
  x, test_x = scaled(problem, x.astype(np.float64), test_x.astype(np.float64))
  return Data(Examples(x, y), Examples(test_x, test_y)), note


def scaled(
  problem: configs.Problem, *sets: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
  """Sets of examples as images, standardised with the first of them.

  Pixels by channel, other features each by itself. Those of SDD, some of which are
  a thousand times their median, are compressed before: arsinh of the distance from
  the median, over the median of that.
  """
  first = sets[0]
  axes: int | tuple[int, ...] = 0
  if problem.name.startswith("sdd"):
    middle = np.median(first, axis=0)
    spread = np.median(np.abs(first - middle), axis=0)
    sets = tuple(np.arcsinh((x - middle) / spread) for x in sets)
  else:
    sets = tuple(x.reshape(-1, *problem.shape) for x in sets)
    axes = (0, 1, 2)
  mean, deviation = (f(sets[0], axis=axes) for f in (np.mean, np.std))
  return [
    ((x - mean) / deviation).astype(np.float32).reshape(-1, *problem.shape)
    for x in sets
  ]


class Split(NamedTuple):
  """What one training uses: the same shapes for search and final trainings.

  Attributes:
    examples: that the batches index.
    chosen: numbers of those that are trained on.
    held: those to measure on.
  """

  examples: Examples
  chosen: NDArray[np.int64]
  held: Examples


def splits(config: configs.Config, data: Data) -> tuple[Split, Split]:
  """For the grid search, which never sees a test example, and for the final."""
  count = len(data.train.y)
  order = np.random.default_rng(0).permutation(count)
  size = round(config.validation_share * count)
  held, searched = order[:size], order[size:]
  examples = Examples(*map(jnp.asarray, data.train))
  validation = Examples(data.train.x[held], data.train.y[held])
  # Both padded to the same size, so that one compiled program serves both.
  most = max(size, len(data.test.y))
  validation, test = (
    Examples(*map(jnp.asarray, training.padded(part, most)))
    for part in (validation, data.test)
  )
  return Split(examples, searched, validation), Split(examples, order, test)


def batches(
  config: configs.Config, split: Split, epochs: int, seed: int, phase: int = 1
) -> NDArray[np.int32]:
  """Those of a training; an epoch has as many steps as one on all examples."""
  size = config.problem.batch_size
  shape = (epochs, len(split.examples.y) // size, size)
  return training.reshuffled((seed, phase), split.chosen, shape)


class Point(NamedTuple):
  """What a training depends on, besides its configuration."""

  lam: float
  a: float
  seed: int = 0

  @property
  def name(self) -> str:
    """Names files."""
    return f"lam{self.lam:g}-a{self.a:g}-seed{self.seed}"

  @property
  def hyper(self) -> tuple[jax.Array, jax.Array]:
    """lam and a, as compiled programs take them."""
    return jnp.float32(self.lam), jnp.float32(self.a)


# The params after a training, and what was measured after each epoch, along a first
# axis: see `Trainings.metrics`.
Trained = tuple[Any, dict[str, NDArray]]


class Trainings:
  """Trains the network of a data set with any lam, a and seed by one program.

  Args:
    config: what to train.
    steps: updates of a training.
    on_support: whether trainings start from a sparse network, and keep its zeros.
  """

  def __init__(self, config: configs.Config, steps: int, on_support: bool = False):
    self.config = config
    graph, params = self.initial(0)
    self.plain, _ = self.initial(0, fused=False)
    self.forward = training.plain_forward(graph)
    self.one = training.Trainer(
      self.forward,
      lambda hyper: (
        configs.on_support(config, steps)
        if on_support
        else configs.optimizer(config, steps, *hyper)
      ),
    )
    self.whole = jax.jit(self._whole)
    self.whole_grid = jax.jit(jax.vmap(self._whole, (None, None, 0, None, None)))
    self.check = jax.jit(self.metrics)
    self.costs = self._costs(params)

  def initial(self, seed: int, fused: bool = True) -> tuple[nnx.GraphDef, nnx.State]:
    """The network and its weights before training: a function of the seed alone."""
    p = self.config.problem
    rngs = nnx.Rngs(params=jax.random.key(seed))
    model = CNN(p.shape, p.convs, p.pooled, p.dense, fused=fused, rngs=rngs)
    return nnx.split(model, nnx.Param)

  def metrics(self, state: TrainState, held: Examples) -> dict[str, jax.Array]:
    """Accuracy on what is held out, share of non-zeros, and zeros of each kernel."""
    params = state.params
    return {
      "accuracy": training.means(self.forward, params, held)[1],
      "parameters": rvsm_jax.parameter_ratio(params),
      "zeros": jnp.stack([rvsm_jax.sparsity(k) for k in kernels(params)]),
    }

  def _whole(
    self, params: Any, order: Any, hyper: Any, examples: Examples, held: Examples
  ) -> tuple[Any, dict[str, jax.Array]]:
    measure = functools.partial(self.metrics, held=held)
    state, history = self.one.whole(params, order, hyper, examples, measure)
    return state.params, history

  def train(self, point: Point, params: Any, split: Split, order: NDArray) -> Trained:
    """One training as one call."""
    params, history = self.whole(
      *(params, order, point.hyper, split.examples, split.held)
    )
    return params, jax.tree.map(np.asarray, history)

  def train_all(
    self, points: Sequence[Point], split: Split, order: NDArray
  ) -> list[Trained]:
    """Trainings of many points with one seed at once, for an accelerator."""
    hyper = jax.tree.map(lambda *values: jnp.stack(values), *(p.hyper for p in points))
    params, history = self.whole_grid(
      *(self.initial(points[0].seed)[1], order, hyper, split.examples, split.held)
    )
    history = jax.tree.map(np.asarray, history)
    return [
      jax.tree.map(lambda a, i=i: a[i], (params, history)) for i in range(len(points))
    ]

  def train_resumably(
    self,
    point: Point,
    params: Any,
    split: Split,
    order: NDArray,
    directory: pathlib.Path,
    checkpoint_seconds: float,
  ) -> Trained:
    """`train` by single steps, with checkpoints in a directory.

    For large images on CPU, where convolutions are slow inside a scan, and where a
    training takes minutes.
    """

    def evaluate(state: TrainState) -> dict[str, float]:
      found = self.check(state, split.held)
      return {
        "held_accuracy": float(found["accuracy"]),
        "parameters": float(found["parameters"]),
        **{f"zeros{i}": float(share) for i, share in enumerate(found["zeros"])},
      }

    with Run(directory, self.config) as run:
      state, record = training.fit(
        run,
        self.one.init(params, point.hyper),
        epochs=len(order),
        batches=lambda epoch: order[epoch],
        step=self.one.compiled(split.examples, point.hyper),
        evaluate=evaluate,
        live=lambda state: {"zeros": float(measure.zeros(state.params))},
        checkpoint_seconds=checkpoint_seconds,
      )
    rows, count = record.epochs, range(self.config.problem.layers)
    return state.params, {
      "accuracy": np.array([row["held_accuracy"] for row in rows]),
      "parameters": np.array([row["parameters"] for row in rows]),
      "zeros": np.array([[row[f"zeros{i}"] for i in count] for row in rows]),
    }

  def _costs(self, params: Any) -> NDArray[np.float64]:
    """The share of each layer in the multiplications of the dense network."""
    leaves, structure = jax.tree.flatten(params)
    picked = jax.tree.leaves(rvsm_jax.kernels(params))
    costs = []
    for chosen in np.flatnonzero(picked):
      alone = [
        jnp.full_like(leaf, number == chosen) for number, leaf in enumerate(leaves)
      ]
      costs.append(self.flops(jax.tree.unflatten(structure, alone)))
    return np.array(costs)

  def flops(self, params: Any) -> float:
    """The FLOP ratio: see `rvsm_jax.flop_ratio`."""
    image = jax.ShapeDtypeStruct((1, *self.config.problem.shape), jnp.float32)
    return rvsm_jax.flop_ratio(
      lambda params, x: nnx.merge(self.plain, params)(x), params, image
    )

  def measured(self, point: Point, params: Any, history: dict) -> dict[str, Any]:
    """All that is reported of a trained network.

    Returns:
      "accuracy" on what was held out; "flops", "parameters", the ratios;
      "neurons_removed" in all, and "removed" of each layer but the last;
      "zeros", the share of them in each kernel; "history" of the first three after
      each epoch.

    Raises:
      FloatingPointError: if the training diverged.
    """
    name, method = self.config.problem.name, self.config.method.name
    training.require_finite(params, f"{name}, {method}, {point}")
    layers = kernels(params)
    removed = [
      int(rvsm_jax.neurons_removed(list(layers[i : i + 2])))
      for i in range(len(layers) - 1)
    ]
    flops = (1 - history["zeros"]) @ self.costs
    return {
      **point._asdict(),
      "accuracy": float(history["accuracy"][-1]),
      "flops": self.flops(params),
      "parameters": float(rvsm_jax.parameter_ratio(params)),
      "neurons_removed": int(rvsm_jax.neurons_removed(params)),
      "removed": removed,
      "zeros": _rounded(history["zeros"][-1]),
      "history": {
        "accuracy": _rounded(history["accuracy"]),
        "flops": _rounded(flops),
        "parameters": _rounded(history["parameters"]),
      },
    }


def _rounded(values: NDArray) -> list[float]:
  return [round(float(value), _DIGITS) for value in values]


def kernels(params: Any) -> list[jax.Array]:
  """The kernels among the params, in depth."""
  return list(measure.selected(params).values())


def choose(
  points: Sequence[dict[str, Any]],
  reference: float | None,
  tolerance: float = configs.TOLERANCE,
) -> dict[str, Any]:
  """The point of a grid that is trained anew and tested.

  Args:
    points: measured on validation examples.
    reference: accuracy of the best dense network on them; without it, the most
      accurate point is chosen.
    tolerance: how much lower the accuracy may be.

  Returns:
    Of the points that are accurate enough that with the smallest sum of the FLOP and
    the parameter ratio; if none is, the most accurate one.
  """
  good = [
    point
    for point in points
    if reference is not None and point["accuracy"] >= reference - tolerance
  ]
  if not good:
    return max(points, key=lambda point: point["accuracy"])
  return min(good, key=lambda point: point["flops"] + point["parameters"])


def choose_within(
  points: Sequence[dict[str, Any]], budget: tuple[float, float]
) -> dict[str, Any] | None:
  """The most accurate point of a grid with few enough multiplications and weights.

  Args:
    points: measured on validation examples.
    budget: the largest FLOP and parameter ratio.

  Returns:
    That point, or None if there is none.
  """
  flops, parameters = budget
  small = [
    point
    for point in points
    if point["flops"] <= flops and point["parameters"] <= parameters
  ]
  return max(small, key=lambda point: point["accuracy"], default=None)


def choose_sparse(points: Sequence[dict[str, Any]]) -> dict[str, Any]:
  """The most accurate point of a grid with many zeros, for Table 3.

  Of those with zeros in half of the last hidden layer's connections or more, about
  what the paper has at least. If there is none, that with the most zeros.
  """

  def zeros(point: dict[str, Any]) -> float:
    return point["zeros"][-2]

  sparse = [point for point in points if zeros(point) >= 0.5]
  if not sparse:
    return max(points, key=zeros)
  return max(sparse, key=lambda point: (point["accuracy"], zeros(point)))


class Cell:
  """Grid search and final trainings of one method on one data set.

  What is finished is a part of the run, and is not trained again.

  Args:
    run: its directory.
    config: what to train.
    data: its examples.
    checkpoint_seconds: see `training.fit`.
  """

  def __init__(
    self, run: Run, config: configs.Config, data: Data, checkpoint_seconds: float
  ):
    self.run, self.config = run, config
    self.search, self.final = splits(config, data)
    self._checkpoint_seconds = checkpoint_seconds
    per_epoch = len(data.train.y) // config.problem.batch_size
    self._trainings = functools.cache(
      lambda epochs, on_support: Trainings(config, epochs * per_epoch, on_support)
    )

  def points(self) -> list[dict[str, Any]]:
    """Those of the grid, trained with the seed 0 and measured on validation examples.

    One after another on CPU, and all at once elsewhere.
    """
    wanted = [Point(lam, a) for lam, a in self.config.grid]
    epochs = self.config.search_epochs
    if not backend.on_cpu():
      trainings = self._trainings(epochs, False)

      def at_once() -> list[dict[str, Any]]:
        order = batches(self.config, self.search, epochs, 0)
        found = trainings.train_all(wanted, self.search, order)
        return [
          trainings.measured(p, *one) for p, one in zip(wanted, found, strict=True)
        ]

      return self.run.once("grid", at_once)
    title = f"{self.config.problem.title}, {self.config.method.title}: grid"
    shown = rich.progress.track(wanted, title, console=results.console, transient=True)

    def point(one: Point) -> dict[str, Any]:
      return self._trained(one, self.search, epochs)[1]

    return [
      self.run.once(f"grid-{one.name}", functools.partial(point, one)) for one in shown
    ]

  def finals(
    self, chosen: dict[str, Any], seeds: Sequence[int]
  ) -> list[dict[str, Any]]:
    """A point of the grid, trained on all examples and tested, with each seed.

    Each is trained on without a penalty, on the support that it has: "settled".
    """

    def final(point: Point) -> dict[str, Any]:
      params, found = self._trained(point, self.final, self.config.problem.epochs)
      self.run.keep(params, point.name)
      first = np.asarray(kernels(params)[0])
      _, settled = self._trained(
        point, self.final, self.config.settle_epochs, support=params
      )
      return {
        **found,
        "first_layer": np.round(first, _DIGITS),
        "settled": {
          name: settled[name] for name in ("accuracy", "flops", "parameters")
        },
      }

    points = [Point(chosen["lam"], chosen["a"], seed) for seed in seeds]
    return [
      self.run.once(f"final-{point.name}", functools.partial(final, point))
      for point in points
    ]

  def _trained(
    self, point: Point, split: Split, epochs: int, support: Any = None
  ) -> tuple[Any, dict[str, Any]]:
    settles = support is not None
    phase = 2 if settles else 1
    order = batches(self.config, split, epochs, point.seed, phase)
    trainings = self._trainings(epochs, settles)
    start = support if settles else trainings.initial(point.seed)[1]
    if not backend.on_cpu() or layers.is_small(split.examples.x):
      out = trainings.train(point, start, split, order)
    else:
      directory = self.run.directory / "unfinished"
      name = f"{point.name}-phase{phase}"
      out = trainings.train_resumably(
        *(point, start, split, order, directory / name, self._checkpoint_seconds)
      )
      shutil.rmtree(directory)
    return out[0], trainings.measured(point, *out)


def cell(
  config: configs.Config,
  data: Data,
  seeds: Sequence[int],
  reference: float | None,
  directory: pathlib.Path,
  checkpoint_seconds: float = 20.0,
  budget: tuple[float, float] | None = None,
) -> dict[str, Any]:
  """Grid search and final trainings of one method on one data set; see `Cell`.

  Args:
    config: what to train.
    data: its examples.
    seeds: of the final trainings; the search has seed 0.
    reference: see `choose`.
    directory: of the run.
    checkpoint_seconds: see `training.fit`.
    budget: FLOP and parameter ratio for a second choice, see `choose_within`.

  Returns:
    "points" of the grid and "chosen", measured on validation examples; "finals", one
    for each seed, on the test examples; "by_a": for each a, the point that is chosen
    among those with it; with a budget, "within": "chosen" and "finals" of that choice,
    or None. Only "finals" and "by_a" have histories.

  Raises:
    ConfigMismatchError: if the directory has results of another configuration.
    RunInUseError: if another process trains there.
    FloatingPointError: if a training diverged.
  """
  with Run(directory, config) as run:
    one = Cell(run, config, data, checkpoint_seconds)
    points = one.points()
    accurate = config.method.penalty == "l2"
    best = functools.partial(choose, reference=None if accurate else reference)
    chosen = choose_sparse(points) if config.method.in_table_3_alone else best(points)
    shapes = sorted({point["a"] for point in points})
    result: dict[str, Any] = {
      "points": [_without_history(point) for point in points],
      "chosen": _without_history(chosen),
      "finals": one.finals(chosen, seeds),
      "by_a": [best([p for p in points if p["a"] == a]) for a in shapes],
    }
    if budget:
      within = choose_within(points, budget)
      result["within"] = within and {
        "chosen": _without_history(within),
        "finals": one.finals(within, seeds),
      }
    return result


def _without_history(point: dict[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in point.items() if name != "history"}


def train(
  problem: configs.Problem,
  methods: Sequence[str],
  seeds: Sequence[int],
  data: Data,
  note: str,
  runs: pathlib.Path,
  checkpoint_seconds: float = 20.0,
) -> dict[str, Any]:
  """All methods on one data set; see `cell`.

  Args:
    problem: the data set.
    methods: their names. l2 is always among them, since its accuracy is what the
      others must nearly reach.
    seeds: of the final trainings.
    data: the examples.
    note: what is to be said of them.
    runs: directory with one for the data set, and in it one for each method.
    checkpoint_seconds: see `training.fit`.

  Returns:
    The result: "methods", by name, and what they depend on.
  """
  cells: dict[str, Any] = {}
  reference = None
  for name in ("l2", *(name for name in methods if name != "l2")):
    method = configs.METHODS[name]
    results.console.rule(f"{problem.title}: {method.title}")
    config = configs.Config(problem, method)
    directory = runs / problem.name / name
    out = cell(
      *(config, data, seeds, reference, directory, checkpoint_seconds),
      budget=paper.budget(problem) if method.ranked else None,
    )
    if name == "l2":
      reference = out["chosen"]["accuracy"]
    cells[name] = out
    for choice in (out, out.get("within")):
      if choice:
        last = choice["finals"][-1]
        results.console.print(
          f"lam {last['lam']:g}, a {last['a']:g}: accuracy {last['accuracy']:.4f},"
          f" FLOPs {last['flops']:.4f}, parameters {last['parameters']:.4f}"
        )
  rules = {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if field.name not in ("problem", "method")
  }
  return results.result(
    "integrated",
    {
      "problem": problem,
      "rules": {**rules, "tolerance": configs.TOLERANCE},
      "seeds": seeds,
    },
    None,
    data={"train": len(data.train.y), "test": len(data.test.y), "note": note},
    methods=cells,
  )
