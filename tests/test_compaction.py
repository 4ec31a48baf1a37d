"""The experiment: what is killed, and what is measured of it."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

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


@pytest.mark.parametrize(
  ("name", "size", "left"),
  [
    ("fashion_mnist", (28, 28, 1), [16, 32, 64, 32, 10]),
    ("text", (4,), 3 * [5, 160, 640]),
  ],
)
def test_half_of_the_filters_heads_and_neurons_die(name, size, left):
  task = tasks.WIDE[name]
  params = nnx.state(task.network_of(nnx.Rngs(0)), nnx.Param)
  x = jnp.zeros((1, *size), int if task.in_nats else float)
  tx = compaction.grouped(task, params, x, steps=10, share=0.5)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(7):
    params, state = step(params, state)
  smaller = rvsm_jax.compaction.compact(tasks.plain(task, params), x)
  sizes = [
    module.num_heads
    if isinstance(module, nnx.MultiHeadAttention)
    else module.out_features
    for _, module in nnx.iter_modules(smaller)
    if isinstance(module, nnx.Conv | nnx.Linear | nnx.MultiHeadAttention)
  ]
  assert sizes == left
