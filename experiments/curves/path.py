"""Regularisation paths: accuracy against zeros, for a grid of thresholds and betas.

The points of a path share one compiled step, whose a, threshold and beta are
arguments, and the warm-up, in which nothing is penalised yet.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments import _run
from experiments.curves import config as configs
from experiments.curves import measure, train
from experiments.curves.config import Config, Data, PenaltyName
import rvsm_jax

# The convex penalties, and those near to them, pull on all weights, and need the
# smaller threshold the more so.
_THRESHOLDS: dict[tuple[PenaltyName, float], tuple[float, ...]] = {
  ("l0", 1.0): (0.015, 0.03, 0.045, 0.06),
  ("transformed_l1", 0.01): (0.015, 0.03, 0.045, 0.06),
  ("transformed_l1", 0.1): (0.004, 0.008, 0.012, 0.016),
  ("transformed_l1", 1.0): (0.002, 0.004, 0.008, 0.012),
  ("transformed_l1", 100.0): (0.002, 0.004, 0.008, 0.012),
  ("l1", 1.0): (0.002, 0.004, 0.008, 0.012),
}
PENALTIES = tuple(_THRESHOLDS)

# A reduced training, validated on images that it does not see. It never sees test
# images: the settings of Tables 1 and 2, tuned, are chosen by it.
REDUCED: dict[str, Any] = {"epochs": 5, "train_size": 2000, "validation_size": 500}

# The share of zeros in u that the tuned rows are to have.
_TARGET = 0.99


def grid(data: Data) -> list[list[Config]]:
  """The dense network, and the points of the path of each kind of penalty."""
  base = Config(data=data, **REDUCED)
  kinds: dict[str, list[Config]] = {}
  for penalty, a in PENALTIES:
    kinds.setdefault(penalty, []).extend(
      dataclasses.replace(base, penalty=penalty, a=a, threshold=threshold, beta=beta)
      for threshold, beta in _grid(_THRESHOLDS[penalty, a])
    )
  return [[dataclasses.replace(base, penalty="none")], *kinds.values()]


def _grid(thresholds: Sequence[float]) -> list[tuple[float, float]]:
  """Thresholds with the beta of the main job, and one point with a smaller beta."""
  return [*((threshold, 4.0) for threshold in thresholds), (thresholds[2], 1.0)]


def train_path(
  points: Sequence[Config],
  directory: pathlib.Path,
  data_dir: pathlib.Path | None = None,
) -> list[dict[str, Any]]:
  """Trains configurations that differ in a, threshold and beta alone.

  Args:
    points: the configurations.
    directory: where the result of each point is written, from which it is read if
      the path is trained again with the same configuration.
    data_dir: see `datasets.load`.

  Returns:
    For each point its configuration, the accuracies of w and u, and the zeros of u.

  Raises:
    FloatingPointError: if a training diverged.
  """
  first = points[0]
  files = [directory / f"{_name(point)}.json" for point in points]
  left = [
    (point, file)
    for point, file in zip(points, files, strict=True)
    if train.stored(file, point) is None
  ]
  if not left:
    return [json.loads(file.read_text()) for file in files]
  data = train.load_data(first, data_dir)
  graph, params = train.initial_params(first)
  steps = len(data.images) // first.batch_size * first.epochs
  warm_up = 0 if first.penalty == "none" else int(first.ramp[0] * steps)

  @functools.partial(jax.jit, donate_argnums=0)
  def update(
    state: _run.TrainState,
    batch: jax.Array,
    images: jax.Array,
    labels: jax.Array,
    traced: dict[str, Any],
  ) -> _run.TrainState:
    tx = configs.optimizer(dataclasses.replace(first, **traced), steps)
    return train.advance(graph, tx, state, images[batch], labels[batch])

  batches = [
    batch
    for epoch in range(first.epochs)
    for batch in _run.epoch_order(first.seed, epoch, len(data.images), first.batch_size)
  ]
  images, labels = jnp.asarray(data.images), jnp.asarray(data.labels)
  evaluate = train.evaluator(graph, data.test_images, data.test_labels)

  def run(state: _run.TrainState, point: Config, start: int, stop: int) -> Any:
    traced = {name: getattr(point, name) for name in ("a", "threshold", "beta")}
    for batch in batches[start:stop]:
      state = update(state, batch, images, labels, traced)
    return state

  start = _run.TrainState.create(params, configs.optimizer(first, steps))
  start = run(start, first, 0, warm_up)
  for point, file in left:
    state = run(jax.tree.map(jnp.copy, start), point, warm_up, steps)
    sparse = train.sparse_params(point, state)
    _run.require_finite((state.params, sparse), file.stem)
    result = {
      "config": dataclasses.asdict(point),
      "accuracy_w": evaluate(state.params)[1],
      "accuracy_u": evaluate(sparse)[1],
      "zeros_u": float(rvsm_jax.sparsity(measure.layer(sparse))),
      **_run.environment(),
    }
    _run.write_json(file, result)
    _run.console.print(
      f"{file.stem}: u {result['accuracy_u']:.1%}, zeros {result['zeros_u']:.2%}"
    )
  return [json.loads(file.read_text()) for file in files]


def chosen(results: Sequence[dict[str, Any]], penalty: str, a: float) -> dict[str, Any]:
  """The point of a penalty's path whose threshold and beta are used in full size.

  It is that whose u is the most accurate on validated images among those with at
  least 99% zeros; the one with the most zeros if none has so many.
  """
  path = [
    result
    for result in results
    if result["config"]["penalty"] == penalty and result["config"]["a"] == a
  ]
  sparse = [result for result in path if result["zeros_u"] >= _TARGET]
  if not sparse:
    return max(path, key=lambda result: result["zeros_u"])
  return max(sparse, key=lambda result: result["accuracy_u"])


def _name(point: Config) -> str:
  if point.penalty == "none":
    return point.name
  return f"{point.name}-threshold{point.threshold:g}-beta{point.beta:g}"
