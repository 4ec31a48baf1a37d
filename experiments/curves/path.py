"""Regularisation paths: accuracy against zeros, for a grid of thresholds and betas.

The points of a path share one compiled step, whose a, threshold and beta are
arguments, and the warm-up, in which nothing is penalised yet.
"""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from experiments.core import measure, results, training
from experiments.core.training import Data, Examples
from experiments.curves import config as configs
from experiments.curves import train
from experiments.curves.config import Config, PenaltyName

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


def grid(data: configs.Data) -> list[list[Config]]:
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

  Returns:
    The result of each point: "final" has accuracy and zeros of w and u.
  """
  files = {directory / f"{_name(point)}.json": point for point in points}
  left = {f: point for f, point in files.items() if results.stored(f, point) is None}
  if left:
    _train(points[0], left, train.load_data(points[0], data_dir))
  return [results.read(file) for file in files]


def _train(first: Config, left: dict[pathlib.Path, Config], data: Data) -> None:
  _, params = train.initial_params(first)
  order = [
    batch
    for epoch in range(first.epochs)
    for batch in training.epoch_order(
      first.seed, epoch, len(data.train.x), first.batch_size
    )
  ]
  one = train.trainer(first, len(order))
  examples = Examples(*map(jnp.asarray, data.train))
  evaluate = train.evaluator(first, data.test)
  warm_up = 0 if first.penalty == "none" else int(first.ramp[0] * len(order))

  def advance(state: Any, point: Config, batches: Sequence[Any]) -> Any:
    traced = {name: getattr(point, name) for name in ("a", "threshold", "beta")}
    step = one.compiled(examples, traced, whole_epochs=False)
    for batch in batches:
      state = step.call(state, batch)
    return state

  warm = advance(one.init(params, {}), first, order[:warm_up])
  for file, point in left.items():
    state = advance(jax.tree.map(jnp.copy, warm), point, order[warm_up:])
    training.require_finite((state.params, state.sparse), file.stem)
    networks = {"w": state.params, "u": state.sparse}
    found = {
      "accuracy": measure.of_each(networks, lambda p: evaluate(p)[1]),
      "zeros": measure.of_each(
        networks, lambda p: float(measure.zeros(p, configs.SPARSE))
      ),
    }
    results.write_json(file, results.result("curves", point, None, final=found))
    results.console.print(
      f"{file.stem}: u {found['accuracy']['u']:.1%}, zeros {found['zeros']['u']:.2%}"
    )


def chosen(points: Sequence[dict[str, Any]], penalty: str, a: float) -> dict[str, Any]:
  """The point of a penalty's path whose threshold and beta are used in full size.

  It is that whose u is the most accurate on validated images among those with at
  least 99% zeros; the one with the most zeros if none has so many.
  """
  path = [
    result
    for result in points
    if result["config"]["penalty"] == penalty and result["config"]["a"] == a
  ]

  def of_u(measure: str) -> Callable[[dict[str, Any]], float]:
    return lambda result: result["final"][measure]["u"]

  zeros = of_u("zeros")
  sparse = [result for result in path if zeros(result) >= _TARGET]
  return max(sparse, key=of_u("accuracy")) if sparse else max(path, key=zeros)


def _name(point: Config) -> str:
  if point.penalty == "none":
    return point.name
  return f"{point.name}-threshold{point.threshold:g}-beta{point.beta:g}"
