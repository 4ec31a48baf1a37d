"""The benchmark: its arithmetic on fake clocks, and a small run of every part."""

import dataclasses
import json
import re
import time
from typing import Any

import chex
import jax
import numpy as np
import pytest

from experiments import benchmark
from experiments.core import results, timing


def test_ratio_of_neighbours_is_not_moved_by_drift(monkeypatch: pytest.MonkeyPatch):
  """A machine that gets slower and slower, and an outlier."""
  clock = {"now": 0.0, "pace": 1.0}
  monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])

  def takes(seconds: float) -> Any:
    def run() -> None:
      clock["now"] += seconds * clock["pace"]
      clock["pace"] *= 1.001

    return run

  calls = iter(range(100))

  def other() -> None:
    takes(60.0 if next(calls) == 7 else 3.0)()

  found = timing.compare(takes(1.0), other, pairs=15)
  assert found.ratio == pytest.approx(3.0, rel=2e-3)
  assert found.seconds / found.base_seconds == pytest.approx(3.0, rel=2e-2)


def test_repeated_feeds_the_result_back():
  function = jax.jit(lambda state, x: state + x, donate_argnums=0)
  run = timing.Repeated(function, jax.numpy.zeros(3), jax.numpy.ones(3))
  for _ in range(4):
    run()
  assert run._state.tolist() == [4.0] * 3


@pytest.mark.parametrize(
  ("tree", "size"),
  [("ResNet-18", 11_173_962), ("dense layer", 692_224), ("curves CNN", 711_426)],
)
def test_trees_have_the_sizes_they_are_named_for(tree: str, size: int):
  assert benchmark.count(benchmark.TREES[tree]()) == size


@pytest.mark.parametrize("name", benchmark.SUBJECTS)
def test_least_bytes_are_those_of_params_gradients_and_state(name: str):
  """What is read and written once; what norms and counts are taken of is read twice."""
  subject = benchmark.SUBJECTS[name]
  params = {"kernel": jax.ShapeDtypeStruct((64, 32), "float32")}
  state = jax.eval_shape(subject.make().init, params)
  kept = sum(leaf.shape == (64, 32) for leaf in jax.tree.leaves(state))
  norms, counts = "group" in name or "integrated" in name, "target" in name
  twice = 2 * norms + counts
  assert subject.least_bytes == 4 * (3 + 2 * kept + twice)


def test_a_small_run(monkeypatch: pytest.MonkeyPatch):
  few = {name: benchmark.PENALTIES[name] for name in ("soft (l1)", "TL1")}
  monkeypatch.setattr(benchmark, "PENALTIES", few)
  config = dataclasses.replace(
    benchmark.QUICK,
    parts=("updates", "maps"),
    optimizers=("sgd", "rvsm l0", "proximal l1"),
    pairs=3,
    map_size=2**12,
  )
  result = json.loads(json.dumps(benchmark.measure(config, torch=False)))
  rows = result["updates"]["dense layer"]["rows"]
  assert rows["rvsm l0"]["state_bytes"] == pytest.approx(4, abs=0.1)
  assert rows["proximal l1"]["state_bytes"] == pytest.approx(0, abs=0.1)
  assert rows["proximal l1"]["temporary_bytes"] == pytest.approx(0, abs=0.1)
  assert all(row["ratio"] > 0 for row in rows.values())
  full = results.result("benchmark", config, 1.0, command="python", **result)
  text = benchmark.markdown(full)
  assert re.search(r"\| rvsm l0 +\| +\d+\.\d\d \|", text)
  assert "PyTorch" not in text
  assert re.search(r"\| TL1 +\| +\d+\.\d\d \|", text)


@pytest.mark.slow
def test_training_step_is_that_of_the_optimizer():
  run = benchmark.step_runner("proximal TL1", 1)
  before = jax.tree.map(np.asarray, run._state[0])
  run()
  after = jax.tree.map(np.asarray, run._state[0])
  chex.assert_tree_all_finite(after)
  assert np.any(after["dense"]["kernel"] == 0)
  assert not np.array_equal(before["out"]["bias"], after["out"]["bias"])


def test_torch_is_optional(monkeypatch: pytest.MonkeyPatch):
  monkeypatch.setitem(__import__("sys").modules, "torch", None)
  with pytest.raises(ModuleNotFoundError, match="pip install torch"):
    benchmark.measure_torch(1, 1, "wall")
