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


def test_whole_filters_and_heads_die_and_nothing_else():
  def draw(*shape):
    return 0.1 * jax.random.normal(jax.random.key(0), shape)

  cnn = {
    "conv": {"0": {"kernel": draw(3, 3, 2, 32)}},
    "dense": {"0": {"kernel": jnp.ones((8, 3)), "bias": jnp.ones(3)}},
  }
  transformer = {
    "attention": {
      "query": {"kernel": draw(8, 4, 2)},
      "value": {"kernel": draw(8, 4, 2)},
    },
    "up": {"kernel": draw(8, 32)},
  }
  for name, params in (("fashion_mnist", cnn), ("text", transformer)):
    steps = 1000
    tx = compaction.grouped(tasks.TASKS[name], steps, 0.5)

    @jax.jit
    def train(params, tx=tx, steps=steps):
      def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return (optax.apply_updates(params, updates), state), None

      return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]

    trained = train(params)
    if name == "fashion_mnist":
      filters = np.any(np.asarray(trained["conv"]["0"]["kernel"]) != 0, (0, 1, 2))
      assert 14 <= filters.sum() <= 18
      assert np.all(trained["dense"]["0"]["kernel"] != 0)
    else:
      value = np.asarray(trained["attention"]["value"]["kernel"]) != 0
      np.testing.assert_array_equal(np.any(value, (0, 2)), np.all(value, (0, 2)))
      neurons = np.asarray(trained["up"]["kernel"]) != 0
      np.testing.assert_array_equal(np.any(neurons, 0), np.all(neurons, 0))
      assert 0.4 < rvsm_jax.sparsity([value, neurons]) < 0.6
      assert np.all(trained["attention"]["query"]["kernel"] != 0)
