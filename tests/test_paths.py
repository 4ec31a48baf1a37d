"""Whole paths by one compiled program: traces are counted, and vmap equals the loop."""

import dataclasses
import functools

from helpers import in_part
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax

STEPS = 30
LAMS = jnp.array([0.0, 0.02, 0.1, 1.0])


def schedule(lam):
  return optax.linear_schedule(0.0, lam, STEPS // 2)


TRANSFORMATIONS = {
  "rvsm": lambda lam: rvsm_jax.rvsm_sgd(0.1, rvsm_jax.l0(), lam=lam, beta=1.0),
  "rvsm, beta": lambda lam: rvsm_jax.rvsm_sgd(
    0.1, rvsm_jax.transformed_l1(1.0), lam=0.1, beta=1 / (lam + 0.5)
  ),
  "rvsm, a": lambda lam: rvsm_jax.rvsm_sgd(
    0.1, rvsm_jax.transformed_l1(lam + 0.1), lam=0.1, beta=1.0
  ),
  "rvsm, schedule": lambda lam: rvsm_jax.rvsm_sgd(
    0.1, rvsm_jax.l0(), lam=schedule(lam), beta=1.0
  ),
  "proximal": lambda lam: rvsm_jax.proximal_sgd(0.1, rvsm_jax.l1(), lam=lam),
  "proximal, schedule": lambda lam: rvsm_jax.proximal_sgd(
    0.1, rvsm_jax.group_lasso(), lam=schedule(lam)
  ),
  "proximal adam": lambda lam: rvsm_jax.proximal_adam(0.1, rvsm_jax.l1(), lam=lam),
  "admm": lambda lam: optax.chain(
    optax.sgd(0.1),
    rvsm_jax.admm(0.1, rvsm_jax.scaled(rvsm_jax.l1(), lam), rho=lam + 1.0),
  ),
  "penalty gradient": lambda lam: optax.chain(
    rvsm_jax.add_penalty_gradient(rvsm_jax.l1(), schedule(lam)), optax.sgd(0.1)
  ),
}


def training(name, traces):
  """Trains a linear model from lam and a seed; `traces` grows with every trace."""

  def train(lam, seed):
    traces.append(name)
    tx = TRANSFORMATIONS[name](lam)
    target = jnp.arange(12.0).reshape(6, 2) % 5 / 4

    def step(carry, _):
      w, state = carry
      updates, state = tx.update(w - target, state, w)
      return (optax.apply_updates(w, updates), state), None

    w = 0.1 * jax.random.normal(jax.random.key(seed), target.shape)
    (w, state), _ = jax.lax.scan(step, (w, tx.init(w)), length=STEPS)
    if name.startswith(("rvsm", "admm")):
      w = rvsm_jax.sparse_params(state, w)
    return w

  return train


@pytest.mark.parametrize("name", in_part(TRANSFORMATIONS, "rvsm, a", "proximal adam"))
def test_a_path_is_traced_once_and_vmap_gives_what_the_loop_gives(name):
  traces = []
  one = jax.jit(training(name, traces))
  seeds = jnp.arange(2)
  loop = np.array([[one(lam, seed) for seed in seeds] for lam in LAMS])
  assert len(traces) == 1
  traces.clear()
  train = training(name, traces)
  grid = jax.jit(jax.vmap(jax.vmap(train, (None, 0)), (0, None)))
  together = grid(LAMS, seeds)
  grid(2 * LAMS, seeds)
  assert len(traces) == 1
  np.testing.assert_allclose(together, loop, rtol=1e-5, atol=1e-6)
  # The points differ, so that equality says something.
  assert not np.allclose(loop[0], loop[-1], atol=1e-2)


def test_a_constant_lam_is_traced_for_each_point():
  traces = []
  for lam in LAMS.tolist():
    jax.jit(functools.partial(training("rvsm", traces), lam))(0)
  assert len(traces) == len(LAMS)


class TestExperiment:
  """`experiments.paths`, small."""

  @pytest.fixture(scope="class")
  @classmethod
  def small(cls, tmp_path_factory):
    for module in ("flax", "matplotlib", "tensorflow_datasets", "tyro"):
      pytest.importorskip(module)
    from experiments import paths as train

    config = train.Config(
      hidden=8, epochs=1, long_epochs=2, points=3, seeds=2, rounds=1
    )
    return config, train.load_data(tmp_path_factory.mktemp("data"))

  @pytest.mark.slow
  def test_the_ways_agree(self, small):
    from experiments import paths as train

    config, data = small
    traces = []
    # The others are compared above, by the library's own loop.
    for method in train.METHODS[:1]:
      run = train.whole(method, config, epochs=2)

      def counted(*arguments, run=run):
        traces.append(1)
        return run(*arguments)

      lams = train.lams(method, config)
      params = train.initial_params(config, jnp.arange(config.points))
      ways = (train.in_a_loop, train.at_once, train.separately)
      loop, vmap, separate = (way(counted)(lams, params, data) for way in ways)
      assert len(traces) == 1 + 1 + config.points
      traces.clear()
      for name in ("accuracy", "zeros"):
        # A test example, or a weight, may be on the threshold.
        np.testing.assert_allclose(vmap[name], loop[name], atol=0.01)
        np.testing.assert_allclose(separate[name], loop[name], atol=0.01)
      assert loop["zeros"][0] < loop["zeros"][-1]

  def test_a_loop_on_cpu_unless_told(self, small, monkeypatch):
    from experiments import paths as train

    assert not train.uses_vmap(None)
    assert train.uses_vmap(True)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert train.uses_vmap(None)
    assert not train.uses_vmap(False)

  @pytest.mark.slow
  def test_the_command_writes_result_table_and_figure(
    self, small, monkeypatch, tmp_path
  ):
    from experiments import paths as command
    from experiments.core import cli, results

    config, data = small
    monkeypatch.setattr(command, "load_data", lambda data_dir: data)
    # The ways are timed above; here it is the report.
    monkeypatch.setattr(command, "METHODS", command.METHODS[:1])
    command.main(config, cli.Places(output=tmp_path / "run", results=tmp_path))
    result = results.read(tmp_path / "paths.json")
    assert result["config"] == dataclasses.asdict(config)
    assert [length["epochs"] for length in result["times"]] == [1, 2]
    for length in result["times"]:
      assert all(
        seconds > 0 for found in length["rounds"] for seconds in found.values()
      )
    for found in result["paths"].values():
      assert np.shape(found["accuracy"]) == np.shape(found["zeros"]) == (3, 2)
    assert (tmp_path / "paths.png").stat().st_size > 10_000
    assert "1/" in (tmp_path / "paths.md").read_text()
