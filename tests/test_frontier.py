"""The frontier: every method is made, searched alike, and never given fewer zeros."""

import dataclasses

from helpers import in_part
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.core import measure, results, tasks
from experiments.core.run import Run
from experiments.core.training import Data, Examples
from experiments.frontier import config as configs
from experiments.frontier import report, train
import rvsm_jax

TASK = tasks.Task("digits", "DIGITS", (6, 16, 3), 1.0, 20, 20, 0.2)


@pytest.fixture(scope="module")
def data():
  rng = np.random.default_rng(0)
  # As many for testing as for validation: one program does both.
  y = rng.integers(0, 3, 144).astype(np.int32)
  x = rng.normal(size=(144, 6)).astype(np.float32)
  x[:, :3] += 3 * np.eye(3, dtype=np.float32)[y]
  return Data(Examples(x[:120], y[:120]), Examples(x[120:], y[120:]))


def config(name, **changes):
  values = configs.METHODS[name].values[:2]
  return configs.Config(TASK, name, values, shares=(0.5, 0.8), seeds=2, **changes)


def test_every_method_has_as_many_values():
  counts = {name: len(method.values) for name, method in configs.METHODS.items()}
  assert counts.pop("cut") == counts.pop("sparsify") == 1
  assert set(counts.values()) == {4}


@pytest.mark.parametrize("name", configs.METHODS)
def test_every_method_is_an_optimizer_of_traced_numbers(name):
  method = configs.METHODS[name]
  params = {"kernel": jnp.ones((4, 4)), "bias": jnp.ones(4)}
  rate = optax.cosine_onecycle_schedule(100, 0.1)

  def updated(share, value):
    tx = method.make(configs.Setting(rate, 0.9, 100, share, value))
    return tx.update(params, tx.init(params), params)[0]

  shapes = jax.eval_shape(updated, jnp.float32(0.5), jnp.float32(0.5))
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)


@pytest.mark.parametrize("name", in_part(["tuned", "sparsify", "rvsm-all"], "tuned"))
def test_a_method_is_searched_on_validation_examples_and_reaches_the_share(
  name, data, tmp_path
):
  with Run(tmp_path, config(name)) as run:
    result = train.train(config(name), data, run)
    assert train.train(config(name), data, run) == result
  for point in result["finals"]:
    assert point["finite"]
    assert point["zeros"] >= point["share"] - 1e-6
    assert point["zeros_found"] == pytest.approx(point["share"], abs=0.02)
    assert point["accuracy"] > 0.6
  values = config(name).values
  grid = [(share, value) for share in (0.5, 0.8) for value in values]
  assert [(p["share"], p["value"]) for p in result["search"]] == (
    [] if len(values) == 1 else grid
  )
  for share in (0.5, 0.8):
    search = [p for p in result["search"] if p["share"] == share]
    best = max(
      search, key=lambda point: point["accuracy"], default={"value": values[0]}
    )
    finals = [p for p in result["finals"] if p["share"] == share]
    assert [(p["value"], p["seed"]) for p in finals] == [
      (best["value"], 0),
      (best["value"], 1),
    ]


def test_the_search_sees_no_test_example(data):
  chosen, held = train.split(config("cut"), data)
  searched = {row.tobytes() for row in data.train.x[chosen]}
  assert searched.isdisjoint({row.tobytes() for row in held.x})
  assert len(searched) + len(held.y) == len(data.train.y)


def test_what_has_too_few_zeros_is_cut():
  params = {"kernel": jnp.arange(1.0, 11.0).reshape(5, 2), "bias": jnp.ones(2)}
  cut = measure.with_share(params, jnp.float32(0.7))
  assert float(measure.zeros(cut)) == pytest.approx(0.7)
  np.testing.assert_array_equal(cut["kernel"].ravel()[-3:], [8, 9, 10])
  np.testing.assert_array_equal(cut["bias"], params["bias"])
  assert rvsm_jax.sparsity(measure.with_share(cut, jnp.float32(0.2))["kernel"]) == 0.7


def result(name, accuracies):
  finals = [
    {"share": share, "value": 0.5, "seed": seed, "accuracy": accuracy}
    for share, of_seeds in zip((0.5, 0.8), accuracies, strict=True)
    for seed, accuracy in enumerate(of_seeds)
  ]
  return results.result("frontier", config(name), None, method=name, finals=finals)


def test_the_report_calls_equal_what_is_within_a_standard_error(tmp_path):
  found = {
    "pruning-all": result("pruning-all", [(0.9, 0.94), (0.7, 0.72)]),
    "rvsm-all": result("rvsm-all", [(0.89, 0.96), (0.8, 0.82)]),
  }
  text = report.markdown({"digits": found})
  rows = [line for line in text.splitlines() if line.startswith("|")]
  equal, better = (row for row in rows if "RVSM" in row and "pruning" in row)
  assert "equal within one standard error" in equal
  assert "+10.00 ± 1.41" in better
  assert better.rstrip(" |").endswith("ours")
  report.draw("DIGITS", found, tmp_path / "digits.png")
  assert (tmp_path / "digits.png").stat().st_size > 1000


@pytest.mark.slow
def test_trainings_one_by_one_are_those_at_once(data, tmp_path, monkeypatch):
  with Run(tmp_path / "at once", config("rvsm-l0")) as run:
    at_once = train.train(config("rvsm-l0"), data, run)
  monkeypatch.setattr(tasks.Task, "at_once", False)
  with Run(tmp_path / "one by one", config("rvsm-l0")) as run:
    one_by_one = train.train(config("rvsm-l0"), data, run)
  for pair in zip(at_once["finals"], one_by_one["finals"], strict=True):
    points = [(point["share"], point["seed"]) for point in pair]
    assert points[0] == points[1]
    assert pair[0]["accuracy"] == pytest.approx(pair[1]["accuracy"], abs=0.02)


def test_the_convolutional_task_is_a_network_of_its_images():
  task = configs.TASKS["fashion_mnist"]
  params = jax.eval_shape(lambda: train.initial_params(task, 0))
  config = configs.Config(task, "sparsify", (0.0,))
  forward = train.trainer(config, 10).forward
  logits, _ = jax.eval_shape(forward, params, (), jnp.zeros((2, 28, 28, 1)))
  assert logits.shape == (2, 10)


def test_text_is_reported_in_nats():
  """The best is the lowest, and a lower loss a positive difference."""
  task = configs.TASKS["text"]

  def of(name, losses):
    finals = [
      {"share": 0.9, "value": 0.5, "seed": k, "loss": loss, "accuracy": 0.1}
      for k, loss in enumerate(losses)
    ]
    found = dataclasses.replace(configs.config_of(task, name), shares=(0.9,))
    return results.result("frontier", found, None, search=[], finals=finals)

  found = {
    "pruning-all": of("pruning-all", (1.9, 1.92)),
    "through-all": of("through-all", (1.7, 1.72)),
  }
  text = report.markdown({"text": found})
  assert "| **1.710 ± 0.010** |" in text
  assert "| +0.200 ± 0.014 |" in text
  assert "not searched" in text


def test_a_large_task_has_the_methods_that_matter():
  task = configs.TASKS["text"]
  assert {configs.METHODS[name].group for name in configs.methods_of(task)} == {
    *("dense", "pruning", "ours")
  }
  for name in configs.methods_of(task):
    assert len(configs.config_of(task, name).values) == 1
  small = configs.TASKS["digits"]
  assert configs.methods_of(small) == tuple(configs.METHODS)
  assert configs.config_of(small, "rvsm-l0").values == configs.METHODS["rvsm-l0"].values


def test_the_dense_network_is_trained_once_for_all_shares(data, tmp_path, monkeypatch):
  task = dataclasses.replace(TASK, network="perceptron", epochs=2)
  monkeypatch.setattr(tasks.Task, "at_once", property(lambda task: False))
  one = dataclasses.replace(config("cut"), task=task)
  starts = []
  create = train.initial_params
  monkeypatch.setattr(
    train,
    "initial_params",
    lambda task, seed: starts.append(seed) or create(task, seed),
  )
  with Run(tmp_path, one) as run:
    result = train.train(one, data, run)
  assert sorted(starts) == [0, 1]
  assert [p["share"] for p in result["finals"]] == [0.5, 0.5, 0.8, 0.8]
  assert len({p["accuracy_w"] for p in result["finals"] if p["seed"] == 0}) == 1
