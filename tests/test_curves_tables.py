"""The tables and paths of the experiment on curves: rows, choices, what is written."""

import copy
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_curves import CONSTANT, MICRO, _fake_load

from experiments import datasets
from experiments.core import measure, results
from experiments.core.run import Run
from experiments.core.training import Examples, epoch_order
from experiments.curves import config as configs
from experiments.curves import details, paper, path, tables, train
import rvsm_jax


@pytest.fixture
def no_test_set(monkeypatch):
  def load(name, split, data_dir=None, **options):
    assert split == "train", "A path is chosen from: it must not see the test set."
    return _fake_load(name, split, data_dir)

  monkeypatch.setattr(datasets, "load", load)


def _points(kind):
  """Two points of a tiny path, with thresholds that zero much of the layer."""
  point = dataclasses.replace(MICRO, penalty=kind, validation_size=8)
  changes = ({"a": 1.0, "threshold": 0.01, "beta": 4.0}, {"threshold": 0.03, "a": 0.1})
  return [dataclasses.replace(point, **change) for change in changes]


@pytest.mark.slow
def test_a_point_of_a_path_is_a_training_of_its_own(no_test_set, tmp_path):
  points = _points("transformed_l1")
  ours = path.train_path(points, tmp_path)
  for config, result in zip(points, ours, strict=True):
    data = train.load_data(config, None)
    _, params = train.initial_params(config)
    order = [
      epoch_order(config.seed, epoch, len(data.train.x), 8)
      for epoch in range(config.epochs)
    ]
    one = train.trainer(config, sum(map(len, order)))
    step = one.compiled(Examples(*map(jnp.asarray, data.train)), {}, whole_epochs=False)
    state = one.init(params, {})
    for batch in np.concatenate(order):
      state = step.call(state, batch)
    found = result["final"]["zeros"]["u"]
    assert 0.1 < found < 1
    zeros = measure.zeros(state.sparse, configs.SPARSE)
    np.testing.assert_allclose(found, zeros, atol=1e-4)


@pytest.mark.slow
def test_a_path_goes_on_where_it_stopped(no_test_set, tmp_path, monkeypatch):
  points = _points("l0")
  first = path.train_path(points[:1], tmp_path)
  both = path.train_path(points, tmp_path)
  assert both[0] == first[0]
  monkeypatch.setattr(train, "trainer", None)
  assert path.train_path(points, tmp_path) == both


@pytest.mark.slow
def test_overwriting_makes_w_equal_to_u_at_the_end_of_every_epoch(
  monkeypatch, tmp_path
):
  monkeypatch.setattr(datasets, "load", _fake_load)
  config = dataclasses.replace(
    MICRO, **CONSTANT, beta=0.1, momentum=0.9, dense_std=0.07, overwrite=True
  )
  with Run(tmp_path, config) as run:
    result = train.train(config, run)
    _, params = train.initial_params(config)
    state, _ = run.restore(train.trainer(config, 12).init(params, {}))
  np.testing.assert_array_equal(
    details.layer(state.params), details.layer(state.sparse)
  )
  assert result["final"]["zeros"]["w"] == result["final"]["zeros"]["u"] > 0.7
  momentum = optax.tree.get(state.opt_state, "trace")
  assert all(not jnp.any(leaf) for leaf in jax.tree.leaves(momentum))


def _validated(accuracy, zeros, penalty="l0", a=1.0):
  config = {"penalty": penalty, "a": a}
  return {
    "config": config,
    "final": {"accuracy": {"u": accuracy}, "zeros": {"u": zeros}},
  }


def test_chosen_is_the_most_accurate_that_is_sparse_enough():
  points = (0.99, 0.98), (0.9, 0.999), (0.95, 0.99)
  found = [_validated(*point) for point in points]
  found.append(_validated(1.0, 1.0, "l1"))
  assert path.chosen(found, "l0", 1.0) == _validated(0.95, 0.99)
  assert path.chosen(found[:1], "l0", 1.0) == _validated(0.99, 0.98)


@pytest.mark.parametrize("data", tables.DATA)
def test_the_printed_rows_are_the_papers(data):
  rows = tables.printed_rows(data)
  assert len({row.name for row in rows}) == len(rows)
  trained = [row for row in rows if row.penalty != "none"]
  assert {(row.lam, row.beta) for row in trained} == {(5e-4, 0.1)}
  for printed in paper.TABLES[data][1]:
    a = {} if printed.penalty != "transformed_l1" else {"a": printed.a}
    seeds = [
      row.seed
      for row in trained
      if row.penalty == printed.penalty
      and row.method == "rvsm"
      and not row.overwrite
      and (not a or row.a == printed.a)
    ]
    assert seeds == list(range(3 if printed.penalty == "l0" else 1))


def test_the_tuned_rows_take_what_the_path_chose():
  points = {
    kind: configs.Config(
      penalty=kind[0],
      a=kind[1],
      threshold=0.01 * number,
      beta=float(number),
      epochs=5,
      train_size=2000,
    )
    for number, kind in enumerate(path.PENALTIES, 1)
  }
  found = [
    _validated(0.9, 0.9) | {"config": dataclasses.asdict(point)}
    for point in points.values()
  ]
  rows = tables.tuned_rows("alphabets", found)
  assert len({row.name for row in rows}) == len(rows) == 9
  assert all(row.lam is None and not row.validation_size for row in rows)
  for row in rows:
    if row.penalty == "none":
      continue
    point = points[row.penalty, row.a]
    assert row.beta == point.beta
    if row.penalty == "l0":
      assert row.threshold == point.threshold
      continue
    # 10 epochs of 5,000 images are five times 5 epochs of 2,000.
    ours, theirs = (
      rvsm_jax.step_for_threshold(configs.penalty(one), one.threshold)
      for one in (row, point)
    )
    np.testing.assert_allclose(5 * ours, theirs, rtol=0.02)


@pytest.fixture(scope="module")
def final():
  """What is measured on a layer of normal numbers."""
  w = jax.random.normal(jax.random.key(0), (5408, 128))
  params = {"dense": {"kernel": w}}
  params |= {f"conv{n}": {"kernel": jnp.ones((3, 3, 1, 2))} for n in (1, 2, 3)}
  return details.final(params, params, params, lambda params: (0.5, 0.5))


@pytest.fixture
def make(final):
  """Makes what a training returns, with numbers that are easy to find."""

  def result(config, accuracy=0.98765, zeros=0.87654):
    found = copy.deepcopy(final)
    found["accuracy"] = dict.fromkeys(("w", "u", "w_cut"), accuracy)
    found["zeros"]["u"] = zeros if config.splits else None
    return results.result("curves", config, 1.0, name=config.name, final=found)

  return result


def test_a_row_is_trained_once(make, monkeypatch, tmp_path):
  trained = []

  def fake(config, run, data_dir):
    trained.append(config)
    return make(config)

  monkeypatch.setattr(train, "train", fake)
  row = configs.Config()
  for changed in ({}, {}, {"beta": 2.0}):
    config = dataclasses.replace(row, **changed)
    runs = tmp_path / f"runs{config.beta}"
    tables.train_row(config, runs, tmp_path / "results", None)
  assert [config.beta for config in trained] == [4.0, 2.0]


def test_the_tables_say_what_the_results_say(make):
  rows = [row for data in tables.DATA for row in tables.printed_rows(data)]
  found = [make(row) for row in rows]
  for result, zeros in zip(found, np.linspace(0.5, 0.9, len(found)), strict=True):
    if result["final"]["zeros"]["u"] is not None:
      result["final"]["zeros"]["u"] = zeros
  text = tables.markdown({"path": [], "printed": found, "tuned": []})
  l0, _ = [  # The shares of w have a table of their own.
    line for line in text.split("## Table 2")[1].split("\n") if "l0, 3 s" in line
  ]
  zeros = [r["final"]["zeros"]["u"] for r in found if "shapes-l0" in r["name"]]
  mean, deviation = 100 * np.mean(zeros), 100 * np.std(zeros, ddof=1)
  assert f"{mean:.2f}% ± {deviation:.2f}" in l0
  assert "99.9%" in l0
  assert "90.2%" in l0
  assert "98.8%" in l0
  assert "RVSM, ours" in text
  assert "RVSM, w replaced by u each epoch, ours" in text
  assert "SGD, ours" in text


def test_a_verdict_needs_both_zeros_and_accuracy(make):
  dense = make(configs.Config(penalty="none"), accuracy=0.995)
  sparse = [
    make(configs.Config(seed=seed), accuracy, zeros)
    for seed, (accuracy, zeros) in enumerate(
      [(0.992, 0.99), (0.991, 0.999), (1.0, 0.98), (0.999, 0.903)]
    )
  ]
  text = tables.markdown({"path": [], "printed": [], "tuned": [dense, *sparse]})
  (verdict,) = [line for line in text.split("\n") if "0.3 points" in line]
  kept, beaten = verdict.split(". u with more")
  names = [f"`{result['name']}`" for result in sparse]
  assert [name in kept for name in names] == [True, False, False, False]
  assert [name in beaten for name in names] == [False, False, True, True]
