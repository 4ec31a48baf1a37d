"""Data, training, grid search and measurement."""

from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib
import shutil
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
import optax
import rich.progress

from experiments import _run
from experiments.datasets import cifar, mnist, tabular
from experiments.integrated import config as configs
from experiments.integrated import models, paper
import rvsm_jax

_DIGITS = 5


class Data(NamedTuple):
  """Examples, as images of mean 0 and deviation 1 in training.

  Attributes:
    x: for training, (n, height, width, channels) float32.
    y: their labels, (n,) int32.
    test_x: for testing.
    test_y: their labels.
    note: what is to be said about them.
  """

  x: NDArray[np.float32]
  y: NDArray[np.int32]
  test_x: NDArray[np.float32]
  test_y: NDArray[np.int32]
  note: str


def load_data(
  problem: configs.Problem,
  data_dir: pathlib.Path | None,
  source: pathlib.Path | None,
) -> Data:
  """The examples of a data set; see `tabular.load`, `mnist.load`, `cifar.load`."""
  note = f"{problem.title} as published"
  if problem.name in tabular.TABLES:
    (x, y), (test_x, test_y) = (
      tabular.load(problem.name, split, data_dir, source) for split in ("train", "test")
    )
    if problem.name == "digits":
      note = "DIGITS as scikit-learn has it, a random fifth for testing"
    elif problem.name == "sdd":
      note = "all 58,509 rows of SDD, a random fifth for testing"
    elif problem.name == "sdd_subset":
      note = (
        "a subset of SDD, 200 rows of each class, of which a random fifth is for"
        " testing: not comparable with the paper's"
      )
  elif problem.name == "cifar10":
    (x, y), (test_x, test_y) = (
      cifar.load(split, source or data_dir) for split in ("train", "test")
    )
    note = cifar.test_set_note(test_x, test_y)
  else:
    (x, y), (test_x, test_y) = (
      mnist.load(problem.name, split, data_dir, source) for split in ("train", "test")
    )
  size = problem.train_size or None
  x, y = x[:size], y[:size]
  x, test_x = scaled(problem, x.astype(np.float64), test_x.astype(np.float64))
  return Data(x, y, test_x, test_y, note)


def scaled(
  problem: configs.Problem, *sets: NDArray[np.float64]
) -> list[NDArray[np.float32]]:
  """Sets of examples as images, standardised with the first of them.

  Pixels by channel, other features each by itself. Those of SDD, some of which are
  a thousand times their median, are compressed before: arsinh of the distance from
  the median, over the median of that.
  """
  first = sets[0]
  if problem.name.startswith("sdd"):
    middle = np.median(first, axis=0)
    spread = np.median(np.abs(first - middle), axis=0)
    sets = tuple(np.arcsinh((x - middle) / spread) for x in sets)
  if problem.name.startswith("sdd"):
    mean, deviation = sets[0].mean(axis=0), sets[0].std(axis=0)
  else:
    sets = tuple(x.reshape(-1, *problem.shape) for x in sets)
    mean, deviation = (f(sets[0], axis=(0, 1, 2)) for f in (np.mean, np.std))
  return [
    ((x - mean) / deviation).astype(np.float32).reshape(-1, *problem.shape)
    for x in sets
  ]


class Split(NamedTuple):
  """What one training uses: the same shapes for search and final trainings.

  Attributes:
    x: examples that the batches index.
    y: their labels.
    chosen: numbers of those that are trained on.
    held_x: examples to measure on.
    held_y: their labels; those with the label -1 do not count.
  """

  x: jax.Array
  y: jax.Array
  chosen: NDArray[np.int64]
  held_x: jax.Array
  held_y: jax.Array


def splits(config: configs.Config, data: Data) -> tuple[Split, Split]:
  """For the grid search, which never sees a test example, and for the final."""
  order = np.random.default_rng(0).permutation(len(data.x))
  size = round(config.validation_share * len(data.x))
  held, searched = order[:size], order[size:]
  padding = len(data.test_x) - size
  x, y = jnp.asarray(data.x), jnp.asarray(data.y)
  test_x, test_y = data.test_x, data.test_y
  held_x, held_y = data.x[held], data.y[held]
  # Both padded to the same size, so that one compiled program serves both.
  if padding > 0:
    held_x, held_y = _padded(held_x, held_y, padding)
  else:
    test_x, test_y = _padded(test_x, test_y, -padding)
  return (
    Split(x, y, searched, jnp.asarray(held_x), jnp.asarray(held_y)),
    Split(x, y, order, jnp.asarray(test_x), jnp.asarray(test_y)),
  )


def _padded(x: NDArray, y: NDArray, padding: int) -> tuple[NDArray, NDArray]:
  zeros = np.zeros((padding, *x.shape[1:]), x.dtype)
  return np.concatenate([x, zeros]), np.concatenate([y, np.full(padding, -1, y.dtype)])


def batches(
  config: configs.Config, split: Split, epochs: int, seed: int
) -> NDArray[np.int32]:
  """Numbers of the examples of every step, (epochs, steps, batch_size).

  An epoch has as many steps as one on all examples, also where fewer are chosen:
  these are gone through more often, shuffled each time.
  """
  size = config.problem.batch_size
  steps = len(split.x) // size
  rounds = -(-epochs * steps * size // len(split.chosen))
  rng = np.random.default_rng((seed, 1))
  order = np.concatenate([rng.permutation(split.chosen) for _ in range(rounds)])
  return order[: epochs * steps * size].astype(np.int32).reshape(epochs, steps, size)


class Point(NamedTuple):
  """What a training depends on, besides its configuration."""

  lam: float
  a: float
  seed: int = 0


class Trainer:
  """Trains a network with any lam, a and seed, by one compiled program.

  Args:
    config: what to train.
    steps: updates of a training.
  """

  def __init__(self, config: configs.Config, steps: int):
    self.config = config
    self.steps = steps
    self.graph, params = self.initial(0)
    self.plain, _ = self.initial(0, fused=False)
    self.whole = jax.jit(self._whole)
    self.whole_grid = jax.jit(jax.vmap(self._whole, (0, 0, None, None, None)))
    self.step = jax.jit(self._update, donate_argnums=0)
    self.check = jax.jit(self.metrics)
    self.costs = self._costs(params)

  def initial(self, seed: int, fused: bool = True) -> tuple[nnx.GraphDef, nnx.State]:
    """The network and its weights before training: a function of the seed alone."""
    p = self.config.problem
    rngs = nnx.Rngs(params=jax.random.key(seed))
    model = models.CNN(p.shape, p.convs, p.pooled, p.dense, fused=fused, rngs=rngs)
    return nnx.split(model, nnx.Param)

  def optimizer(self, lam: Any, a: Any) -> optax.GradientTransformationExtraArgs:
    """See `config.optimizer`."""
    return configs.optimizer(self.config, self.steps, lam, a)

  def _update(
    self,
    state: _run.TrainState,
    batch: jax.Array,
    lam: Any,
    a: Any,
    x: jax.Array,
    y: jax.Array,
  ) -> _run.TrainState:
    def objective(params: Any) -> tuple[jax.Array, jax.Array]:
      logits = nnx.merge(self.graph, params)(x[batch])
      loss = optax.softmax_cross_entropy_with_integer_labels(logits, y[batch])
      return jnp.mean(loss), jnp.sum(jnp.argmax(logits, axis=-1) == y[batch])

    (loss, found), grads = jax.value_and_grad(objective, has_aux=True)(state.params)
    tx, seen = self.optimizer(lam, a), len(batch)
    return state.updated(tx, grads, loss=seen * loss, found=found, seen=seen)

  def state(self, lam: Any, a: Any, params: Any) -> _run.TrainState:
    """The state before the first update."""
    return _run.TrainState.create(params, self.optimizer(lam, a))

  def metrics(
    self, params: Any, held_x: jax.Array, held_y: jax.Array
  ) -> dict[str, jax.Array]:
    """Accuracy on what is held out, share of non-zeros of all and of each kernel."""
    parts = max(1, len(held_x) // 1000)
    # In parts, since the activations of all images would fill the memory.
    found = jax.lax.map(
      lambda x: jnp.argmax(nnx.merge(self.graph, params)(x), axis=-1),
      held_x[: len(held_x) // parts * parts].reshape(parts, -1, *held_x.shape[1:]),
    ).ravel()
    rest = held_x[len(found) :]
    if len(rest):
      last = jnp.argmax(nnx.merge(self.graph, params)(rest), axis=-1)
      found = jnp.concatenate([found, last])
    right = jnp.sum(found == held_y) / jnp.sum(held_y >= 0)
    return {
      "accuracy": right,
      "parameters": rvsm_jax.parameter_ratio(params),
      "densities": jnp.stack([rvsm_jax.parameter_ratio(k) for k in kernels(params)]),
    }

  def _whole(
    self, lam: Any, a: Any, params: Any, order: jax.Array, split: Sequence[jax.Array]
  ) -> tuple[Any, dict[str, jax.Array]]:
    x, y, held_x, held_y = split

    def epoch(
      state: _run.TrainState, order: jax.Array
    ) -> tuple[_run.TrainState, dict[str, jax.Array]]:
      state, _ = jax.lax.scan(
        lambda state, batch: (self._update(state, batch, lam, a, x, y), None),
        state,
        order,
      )
      return state, self.metrics(state.params, held_x, held_y)

    state, history = jax.lax.scan(epoch, self.state(lam, a, params), order)
    return state.params, history

  def train(self, point: Point, split: Split, order: NDArray) -> tuple[Any, dict]:
    """The trained params, and the metrics after each epoch, as one call."""
    arrays = (split.x, split.y, split.held_x, split.held_y)
    lam, a = jnp.float32(point.lam), jnp.float32(point.a)
    params, history = self.whole(
      lam, a, self.initial(point.seed)[1], jnp.asarray(order), arrays
    )
    return params, {name: np.asarray(value) for name, value in history.items()}

  def train_all(
    self, points: Sequence[Point], split: Split, order: NDArray
  ) -> list[tuple[Any, dict]]:
    """`train` for many points with one seed at once, for an accelerator."""
    arrays = (split.x, split.y, split.held_x, split.held_y)
    lams, shapes = (
      jnp.array([getattr(point, name) for point in points], jnp.float32)
      for name in ("lam", "a")
    )
    params = self.initial(points[0].seed)[1]
    out = self.whole_grid(lams, shapes, params, jnp.asarray(order), arrays)
    return [
      (params, {name: np.asarray(value) for name, value in history.items()})
      for params, history in (
        jax.tree.map(lambda leaf, i=i: leaf[i], out) for i in range(len(points))
      )
    ]

  def train_resumably(
    self,
    point: Point,
    split: Split,
    order: NDArray,
    directory: pathlib.Path,
    checkpoint_seconds: float,
  ) -> tuple[Any, dict]:
    """`train` by single steps, with checkpoints in a directory.

    For large images on CPU, where convolutions are slow inside a scan, and where a
    training takes minutes.
    """
    lam, a = jnp.float32(point.lam), jnp.float32(point.a)

    def evaluate(state: _run.TrainState) -> dict[str, float]:
      found = self.check(state.params, split.held_x, split.held_y)
      shares = {
        f"density{i}": float(share) for i, share in enumerate(found["densities"])
      }
      return {
        "held_accuracy": float(found["accuracy"]),
        "parameters": float(found["parameters"]),
        **shares,
      }

    with _run.Run(directory, self.config) as run:
      state, record = _run.fit(
        run,
        self.state(lam, a, self.initial(point.seed)[1]),
        epochs=len(order),
        batches=lambda epoch: order[epoch],
        step=lambda state, batch: self.step(state, batch, lam, a, split.x, split.y),
        evaluate=evaluate,
        live=lambda state: {"zeros": 1 - float(rvsm_jax.parameter_ratio(state.params))},
        checkpoint_seconds=checkpoint_seconds,
      )
    rows = record.epochs
    layers = range(self.config.problem.layers)
    return state.params, {
      "accuracy": np.array([row["held_accuracy"] for row in rows]),
      "parameters": np.array([row["parameters"] for row in rows]),
      "densities": np.array([[row[f"density{i}"] for i in layers] for row in rows]),
    }

  def _costs(self, params: Any) -> NDArray[np.float64]:
    """The share of each layer in the multiplications of the dense network."""
    leaves, structure = jax.tree.flatten(params)
    picked = jax.tree.leaves(rvsm_jax.kernels(params))
    costs = []
    for chosen in np.flatnonzero(picked):
      alone = [
        jnp.ones_like(leaf) if number == chosen else jnp.zeros_like(leaf)
        for number, leaf in enumerate(leaves)
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
      "densities", the share of non-zeros in each kernel; "history" of the first
      three after each epoch.

    Raises:
      FloatingPointError: if the training diverged.
    """
    name, method = self.config.problem.name, self.config.method.name
    _run.require_finite(params, f"{name}, {method}, {point}")
    layers = kernels(params)
    removed = [
      int(rvsm_jax.neurons_removed(list(layers[i : i + 2])))
      for i in range(len(layers) - 1)
    ]
    flops = history["densities"] @ self.costs
    return {
      **point._asdict(),
      "accuracy": float(history["accuracy"][-1]),
      "flops": self.flops(params),
      "parameters": float(rvsm_jax.parameter_ratio(params)),
      "neurons_removed": int(rvsm_jax.neurons_removed(params)),
      "removed": removed,
      "densities": _rounded(history["densities"][-1]),
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
  picked = jax.tree.leaves(rvsm_jax.kernels(params))
  leaves = jax.tree.leaves(params)
  return [leaf for leaf, pick in zip(leaves, picked, strict=True) if pick]


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

  def density(point: dict[str, Any]) -> float:
    return point["densities"][-2]

  sparse = [point for point in points if density(point) <= 0.5]
  if not sparse:
    return min(points, key=density)
  return max(sparse, key=lambda point: (point["accuracy"], -density(point)))


def cell(
  config: configs.Config,
  data: Data,
  seeds: Sequence[int],
  reference: float | None,
  directory: pathlib.Path,
  checkpoint_seconds: float = 20.0,
  budget: tuple[float, float] | None = None,
) -> dict[str, Any]:
  """Grid search and final trainings of one method on one data set.

  What is finished stands in files of the directory, and is not trained again.

  Args:
    config: what to train.
    data: its examples.
    seeds: of the final trainings; the search has seed 0.
    reference: see `choose`.
    directory: for results and, during long trainings, checkpoints.
    checkpoint_seconds: see `_run.fit`.
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
  with _run.Run(directory, config) as run:
    return _cell(
      config, data, seeds, reference, run.directory, checkpoint_seconds, budget
    )


def _cell(
  config: configs.Config,
  data: Data,
  seeds: Sequence[int],
  reference: float | None,
  directory: pathlib.Path,
  checkpoint_seconds: float,
  budget: tuple[float, float] | None,
) -> dict[str, Any]:
  search, final = splits(config, data)

  @functools.cache
  def trainer(epochs: int) -> Trainer:
    return Trainer(config, epochs * (len(data.x) // config.problem.batch_size))

  at_once = jax.default_backend() != "cpu"
  small = at_once or np.prod(config.problem.shape[:2]) <= models.SMALL

  def trained(point: Point, split: Split, epochs: int, name: str) -> dict[str, Any]:
    order = batches(config, split, epochs, point.seed)
    one = trainer(epochs)
    if small:
      out = one.train(point, split, order)
    else:
      place = directory / name
      out = one.train_resumably(point, split, order, place, checkpoint_seconds)
    result = one.measured(point, *out)
    if split is final:
      first = np.asarray(kernels(out[0])[0])
      result["first_layer"] = np.round(first, _DIGITS).tolist()
    return result

  file = directory / "grid.json"
  points = json.loads(file.read_text()) if file.exists() else []
  wanted = [Point(lam, a) for lam, a in config.grid][len(points) :]
  if at_once and wanted:
    order = batches(config, search, config.search_epochs, 0)
    one = trainer(config.search_epochs)
    for point, out in zip(wanted, one.train_all(wanted, search, order), strict=True):
      points.append(one.measured(point, *out))
    _run.write_json(file, points)
  else:
    for point in progress(wanted, config):
      points.append(trained(point, search, config.search_epochs, "search"))
      _run.write_json(file, points)
      shutil.rmtree(directory / "search", ignore_errors=True)

  accurate = config.method.penalty == "l2"
  best = functools.partial(choose, reference=None if accurate else reference)
  chosen = choose_sparse(points) if config.method.in_table_3_alone else best(points)

  def finals(chosen: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for seed in seeds:
      point = Point(chosen["lam"], chosen["a"], seed)
      name = f"lam{point.lam:g}-a{point.a:g}-seed{seed}"
      file = directory / f"{name}.json"
      if not file.exists():
        _run.write_json(file, trained(point, final, config.problem.epochs, name))
        shutil.rmtree(directory / name, ignore_errors=True)
      out.append(json.loads(file.read_text()))
    return out

  shapes = sorted({point["a"] for point in points})
  result: dict[str, Any] = {
    "points": [_without_history(point) for point in points],
    "chosen": _without_history(chosen),
    "finals": finals(chosen),
    "by_a": [best([p for p in points if p["a"] == a]) for a in shapes],
  }
  if budget:
    within = choose_within(points, budget)
    result["within"] = within and {
      "chosen": _without_history(within),
      "finals": finals(within),
    }
  return result


def _without_history(point: dict[str, Any]) -> dict[str, Any]:
  return {name: value for name, value in point.items() if name != "history"}


def progress(points: Sequence[Point], config: configs.Config) -> Any:
  """The points, with a progress bar."""
  title = f"{config.problem.title}, {config.method.title}: grid"
  return rich.progress.track(
    points, title, console=_run.console, transient=True, disable=not points
  )


def train(
  problem: configs.Problem,
  methods: Sequence[str],
  seeds: Sequence[int],
  data: Data,
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
    runs: directory with one for the data set, and in it one for each method.
    checkpoint_seconds: see `_run.fit`.

  Returns:
    The result: "methods", by name, and what they depend on.
  """
  cells: dict[str, Any] = {}
  reference = None
  for name in ("l2", *(name for name in methods if name != "l2")):
    method = configs.METHODS[name]
    _run.console.rule(f"{problem.title}: {method.title}")
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
        _run.console.print(
          f"lam {last['lam']:g}, a {last['a']:g}: accuracy {last['accuracy']:.4f},"
          f" FLOPs {last['flops']:.4f}, parameters {last['parameters']:.4f}"
        )
  rules = {
    field.name: getattr(config, field.name)
    for field in dataclasses.fields(config)
    if field.name not in ("problem", "method")
  }
  return {
    "problem": dataclasses.asdict(problem),
    "rules": {**rules, "tolerance": configs.TOLERANCE},
    "seeds": list(seeds),
    "data": {
      "train": len(data.x),
      "test": len(data.test_x),
      "note": data.note,
    },
    "methods": cells,
    **_run.environment(),
  }
