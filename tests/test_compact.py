"""Compaction by the model's own jaxpr: smaller networks, equal in output."""

import functools
import itertools

import equinox as eqx
from flax import linen, nnx
import haiku as hk
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax
from rvsm_jax import compaction


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def fill(model, seed=0):
  """Random numbers in place of initial values, positive ones for variances."""
  rng = np.random.default_rng(seed)
  graph, state = nnx.split(model)

  def values(path, leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return leaf
    scale = np.sqrt(2 / np.prod(leaf.shape[:-1])) if leaf.ndim > 1 else 1
    x = scale * rng.normal(size=leaf.shape)
    if any(getattr(key, "key", None) == "var" for key in path):
      x = 0.5 + x**2
    return jnp.asarray(x, leaf.dtype)

  return nnx.merge(graph, jax.tree_util.tree_map_with_path(values, state))


def zero(variable, *index):
  """Sets entries of a variable to zero."""
  variable[...] = variable[...].at[index].set(0)


def outputs(model, *inputs):
  model = nnx.clone(model)
  model.eval()
  graph, state = nnx.split(model)
  return np.asarray(
    jax.jit(lambda state, *xs: nnx.merge(graph, state)(*xs))(state, *inputs)
  )


def close(actual, expected):
  actual, expected = (np.asarray(array, np.float64) for array in (actual, expected))
  assert actual.shape == expected.shape
  assert np.max(np.abs(actual - expected)) <= 1e-5 * np.max(np.abs(expected))


def shrunk(model, *inputs):
  """The compacted model, whose outputs are those of the model."""
  before = jax.tree.map(np.asarray, nnx.state(model))
  smaller = compaction.compact(model, *inputs)
  assert type(smaller) is type(model)
  jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)
  close(outputs(smaller, *inputs), outputs(model, *inputs))
  return smaller


def planned(model, *inputs):
  model = nnx.clone(model)
  model.eval()
  graph, state = nnx.split(model)
  return compaction.plan(lambda s, *xs: nnx.merge(graph, s)(*xs), state, *inputs)


def widths(model):
  return [
    module.kernel.shape[-1]
    for _, module in nnx.iter_modules(model)
    if isinstance(module, nnx.Linear | nnx.Conv)
  ]


# Perceptrons


def perceptron(*sizes, act=nnx.relu, bias=True):
  layers = []
  for inputs, out in itertools.pairwise(sizes):
    layers += [nnx.Linear(inputs, out, use_bias=bias, rngs=nnx.Rngs(0)), act]
  return fill(nnx.Sequential(*layers[:-1]))


def sizes(model):
  return [layer.out_features for layer in model.layers[::2]]


@pytest.mark.parametrize("act", [nnx.relu, jnp.tanh, nnx.sigmoid, nnx.gelu])
def test_neurons_of_constant_value_go_into_the_next_bias(act):
  model = perceptron(5, 8, 7, 3, act=act)
  zero(model.layers[0].kernel, ..., jnp.array([0, 3, 7]))
  zero(model.layers[2].kernel, ..., 1)
  smaller = shrunk(model, draw(6, 5))
  assert sizes(smaller) == [5, 6, 3]
  assert [layer.in_features for layer in smaller.layers[::2]] == [5, 5, 6]


def test_without_a_bias_one_constant_neuron_stands_for_all():
  model = perceptron(5, 8, 3, act=nnx.sigmoid, bias=False)
  zero(model.layers[0].kernel, ..., jnp.array([0, 3, 7]))
  assert sizes(shrunk(model, draw(6, 5))) == [6, 3]
  # Zeros need no one.
  model = perceptron(5, 8, 3, bias=False)
  zero(model.layers[0].kernel, ..., jnp.array([0, 3, 7]))
  assert sizes(shrunk(model, draw(6, 5))) == [5, 3]


def test_neurons_without_use_go_and_those_that_feed_them():
  model = perceptron(4, 5, 5, 5, 2)
  _, second, third, last = model.layers[::2]
  # Neuron 0 feeds two neurons, these feed one, and nothing uses that one.
  zero(second.kernel, 0, slice(2, None))
  zero(third.kernel, slice(2), slice(1, None))
  zero(last.kernel, 0)
  assert sizes(shrunk(model, draw(6, 4))) == [4, 3, 4, 2]


def test_neurons_that_see_only_constants_go():
  model = perceptron(4, 5, 5, 5, 2)
  first, second, third, _ = model.layers[::2]
  zero(first.kernel, ..., 3)
  zero(second.kernel, jnp.array([0, 1, 2, 4]), 0)
  zero(third.kernel, slice(1, None), 2)
  assert sizes(shrunk(model, draw(6, 4))) == [4, 4, 4, 2]


def test_a_dead_layer_keeps_one_neuron():
  model = perceptron(4, 5, 6, 2)
  zero(model.layers[2].kernel)
  assert sizes(shrunk(model, draw(6, 4))) == [1, 1, 2]
  zero(model.layers[4].kernel)
  smaller = shrunk(model, draw(6, 4))
  assert sizes(smaller) == [1, 1, 2]
  # What is compacted once is compacted.
  assert sizes(shrunk(smaller, draw(6, 4))) == [1, 1, 2]


def test_inputs_and_outputs_stay():
  model = perceptron(4, 5, 3)
  zero(model.layers[0].kernel, 1)
  zero(model.layers[2].kernel, ..., 0)
  assert sizes(shrunk(model, draw(6, 4))) == [5, 3]


@hypothesis.given(st.data())
def test_random_perceptrons(data):
  depth = data.draw(st.integers(2, 4))
  # Few sizes, for few compilations.
  width = [3, *(data.draw(st.sampled_from([2, 5])) for _ in range(depth - 1)), 2]
  act = data.draw(st.sampled_from([nnx.relu, nnx.sigmoid]))
  seed = data.draw(st.integers(0, 2**16))
  skip = data.draw(st.booleans())
  rng = np.random.default_rng(seed)
  params = []
  for a, b in itertools.pairwise(width):
    w = rng.normal(size=(a, b)) * (rng.random((a, b)) < data.draw(st.sampled_from([0.3, 0.6])))
    w *= rng.random((a, 1)) < 0.7
    w *= rng.random(b) < 0.7
    params.append({"w": w, "b": rng.normal(size=b) * (rng.random(b) < 0.5)})

  def network(params, x):
    for k, layer in enumerate(params):
      y = x @ layer["w"] + layer["b"]
      y = act(y) if k < len(params) - 1 else y
      x = y + x if skip and x.shape == y.shape else y
    return x

  x = rng.normal(size=(4, 3))
  plan = compaction.plan(network, params, x)
  smaller = compaction.apply(plan, params)
  expected = network(params, x)
  np.testing.assert_allclose(
    network(smaller, x), expected, atol=1e-5 * max(np.max(np.abs(expected)), 1)
  )
  again = compaction.plan(network, smaller, x)
  assert again.parameters[1] <= plan.parameters[1]
  for (before, after), layer in zip(
    itertools.pairwise([3, *(len(p["b"]) for p in smaller)]), smaller, strict=True
  ):
    assert layer["w"].shape == (before, after)
