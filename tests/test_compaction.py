"""The experiment: what is killed, and what is measured of it."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import compaction
from experiments.core import tasks
from experiments.networks.perceptron import perceptron
import rvsm_jax.compaction


def test_dead_units_lose_what_goes_in_or_out():
  model = perceptron([6, 20, 4], nnx.Rngs(0))
  first, _, second = model.layers
  compaction.kill(compaction.sequential(model.layers), 0.5, seed=0)
  silent = ~np.any(first.kernel[...], axis=0)
  unused = ~np.any(second.kernel[...], axis=1)
  assert (silent.sum(), unused.sum(), (silent & unused).sum()) == (5, 5, 0)


def test_sizes_times_and_the_difference_are_measured():
  model = perceptron([16, 32, 32, 4], nnx.Rngs(0))
  compaction.kill(compaction.sequential(model.layers), 0.5, seed=0)
  x = jax.random.normal(jax.random.key(0), (8, 16))
  smaller = rvsm_jax.compaction.compact(model, x)
  report = compaction.measure(model, smaller, x, repeats=3)
  assert report["before"]["units"] == 32 + 32 + 4
  assert report["after"]["units"] < 40
  assert report["after"]["parameters"] < report["before"]["parameters"]
  assert report["speedup"] > 0
  assert report["difference"] < 1e-5


def test_groups_die_in_the_first_part_and_stay_dead():
  task = tasks.TASKS["fashion_mnist"]
  tx = compaction.grouped(task, 10, lam=1000.0)
  params = {
    "conv": {"0": {"kernel": jnp.ones((3, 3, 2, 4))}},
    "dense": {"0": {"bias": jnp.ones(3)}, "1": {"kernel": jnp.ones((3, 2))}},
  }
  state = tx.init(params)
  for _ in range(9):
    updates, state = tx.update(params, state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_array_equal(params["conv"]["0"]["kernel"], 0)
  # The last layer's units are the classes.
  assert np.all(params["dense"]["1"]["kernel"] != 0)
  assert np.all(params["dense"]["0"]["bias"] != 0)
