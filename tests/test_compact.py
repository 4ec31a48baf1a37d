"""Compaction by the model's own jaxpr: smaller networks, equal in output."""

import functools
import itertools
import re
import time
import tracemalloc

import equinox as eqx
from flax import linen, nnx
import haiku as hk
from helpers import in_part
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.networks.cnn import CNN
import rvsm_jax
from rvsm_jax import compaction


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def fill(make, seed=0):
  """A model with random numbers, positive ones for variances.

  Its own initial values are never drawn, because their programs take long to compile.
  """
  rng = np.random.default_rng(seed)
  graph, state = nnx.split(nnx.eval_shape(make))

  def values(path, leaf):
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return jnp.zeros(leaf.shape, leaf.dtype)
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
  def make():
    layers = []
    for inputs, out in itertools.pairwise(sizes):
      layers += [nnx.Linear(inputs, out, use_bias=bias, rngs=nnx.Rngs(0)), act]
    return nnx.Sequential(*layers[:-1])

  return fill(make)


def sizes(model):
  return [layer.out_features for layer in model.layers[::2]]


@pytest.mark.parametrize(
  "act", in_part([nnx.relu, jnp.tanh, nnx.sigmoid, nnx.gelu], nnx.relu, nnx.sigmoid)
)
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
    w = rng.normal(size=(a, b)) * (
      rng.random((a, b)) < data.draw(st.sampled_from([0.3, 0.6]))
    )
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


# Convolutional networks


class Residual(nnx.Module):
  """Two convolutions beside a connection, as in ResNet-18."""

  def __init__(self, ins, outs, stride, rngs):
    conv = functools.partial(nnx.Conv, use_bias=False, padding="SAME", rngs=rngs)
    self.conv1 = conv(ins, outs, (3, 3), strides=stride)
    self.norm1 = nnx.BatchNorm(outs, rngs=rngs)
    self.conv2 = conv(outs, outs, (3, 3))
    self.norm2 = nnx.BatchNorm(outs, rngs=rngs)
    self.short = conv(ins, outs, (1, 1), strides=stride) if ins != outs else None

  def __call__(self, x):
    y = nnx.relu(self.norm1(self.conv1(x)))
    y = self.norm2(self.conv2(y))
    return nnx.relu(y + (x if self.short is None else self.short(x)))


class ResNet(nnx.Module):
  def __init__(self, rngs):
    self.stem = nnx.Conv(3, 6, (3, 3), use_bias=False, rngs=rngs)
    self.norm = nnx.BatchNorm(6, rngs=rngs)
    self.blocks = nnx.List(
      [Residual(6, 6, 1, rngs), Residual(6, 6, 1, rngs), Residual(6, 8, 2, rngs)]
    )
    self.head = nnx.Linear(8, 4, rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.stem(x)))
    for block in self.blocks:
      x = block(x)
    return self.head(jnp.mean(x, (1, 2)))


def kill(conv, norm, *channels):
  """Makes channels constant zeros: no weights, no offset."""
  for channel in channels:
    zero(conv.kernel, ..., channel)
    norm.mean[...] = norm.mean[...].at[channel].set(0)
    zero(norm.bias, channel)


def test_channels_go_across_residual_connections():
  model = fill(lambda: ResNet(nnx.Rngs(0)))
  kill(model.stem, model.norm, 1, 4)
  kill(model.blocks[0].conv1, model.blocks[0].norm1, 0)
  for block in model.blocks[:2]:
    kill(block.conv2, block.norm2, 1, 4)
  x = draw(2, 8, 8, 3)
  smaller = shrunk(model, x)
  assert smaller.stem.out_features == 4
  assert [block.conv1.kernel.shape[2:] for block in smaller.blocks] == [
    (4, 5),
    (4, 6),
    (4, 8),
  ]
  assert smaller.blocks[2].short.kernel.shape == (1, 1, 4, 8)
  # A channel that is alive in one block stays in all.
  model.blocks[0].conv2.kernel[...] = (
    model.blocks[0].conv2.kernel[...].at[..., 1].set(1)
  )
  assert compaction.compact(model, x).stem.out_features == 5


def test_a_group_ties_the_layers_of_a_residual_connection():
  model = fill(lambda: ResNet(nnx.Rngs(0)))
  groups = {group.name: group for group in planned(model, draw(2, 8, 8, 3)).groups}
  places = {(place.path, place.axis) for place in groups["stem/kernel"].places}
  assert places >= {
    ("stem/kernel", 3),
    ("norm/scale", 0),
    ("blocks/0/conv1/kernel", 2),
    ("blocks/0/conv2/kernel", 3),
    ("blocks/1/conv2/kernel", 3),
    ("blocks/2/short/kernel", 2),
  }
  assert ("blocks/0/conv1/kernel", 3) not in places
  np.testing.assert_array_equal(groups["stem/kernel"].places[0].labels, np.arange(6))


def vgg():
  layers, ins = [], 3
  for k, outs in enumerate((4, 6, 6, 8)):
    layers += [
      nnx.Conv(ins, outs, (3, 3), padding="SAME", rngs=nnx.Rngs(k)),
      nnx.BatchNorm(outs, rngs=nnx.Rngs(k)),
      nnx.relu,
    ]
    if k % 2:
      layers.append(
        functools.partial(nnx.max_pool, window_shape=(2, 2), strides=(2, 2))
      )
    ins = outs
  # Flattened: a channel is four inputs of the classifier.
  layers += [lambda x: x.reshape(len(x), -1), nnx.Linear(4 * ins, 5, rngs=nnx.Rngs(0))]
  return nnx.Sequential(*layers)


def test_a_vgg_loses_channels_through_pooling_and_flattening():
  model = fill(vgg)
  first, second, last = model.layers[0], model.layers[3], model.layers[10]
  for conv, norm, channels in (
    (first, model.layers[1], (0,)),
    (second, model.layers[4], (2, 5)),
    (last, model.layers[11], (1, 3)),
  ):
    kill(conv, norm, *channels)
    zero(conv.bias, jnp.array(channels))
  # A constant, through pooling into the bias of the classifier.
  zero(last.kernel, ..., 6)
  smaller = shrunk(model, draw(2, 8, 8, 3))
  assert widths(smaller) == [3, 4, 6, 5, 5]
  assert smaller.layers[-1].in_features == 20


def test_channels_go_through_pooling_by_slices_of_an_odd_image():
  """What pads is infinite, and never wins; the convolution is a product of patches."""
  model = fill(lambda: CNN((7, 7, 2), (6,), (0,), (8, 3), rngs=nnx.Rngs(0)))
  zero(model.conv[0].kernel, ..., jnp.array([1, 4]))
  smaller = shrunk(model, draw(2, 7, 7, 2))
  assert smaller.conv[0].kernel.shape == (3, 3, 2, 4)
  assert smaller.dense[0].in_features == 4 * 4 * 4


def test_dead_channels_go_where_constants_before_them_vary_at_the_border():
  """Of a product of patches too wide for pairs of its factors to be looked at."""
  model = fill(lambda: CNN((8, 8, 2), (8, 256), (1,), (3,), rngs=nnx.Rngs(0)))
  first, second = model.conv
  zero(first.kernel, ..., jnp.arange(3))
  first.bias[...] = first.bias[...].at[:3].set(0.5)
  zero(second.kernel, ..., jnp.arange(10, 250))
  smaller = shrunk(model, draw(2, 8, 8, 2))
  assert smaller.conv[1].kernel.shape[-1] == 16
  assert smaller.dense[0].in_features == 4 * 4 * 16


class Depthwise(nnx.Module):
  """A block of MobileNet."""

  def __init__(self, rngs):
    self.expand = nnx.Conv(3, 8, (1, 1), rngs=rngs)
    self.depth = nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=rngs)
    self.norm = nnx.BatchNorm(8, rngs=rngs)
    self.project = nnx.Conv(8, 4, (1, 1), rngs=rngs)

  def __call__(self, x):
    x = nnx.relu(self.norm(self.depth(nnx.relu(self.expand(x)))))
    return self.project(x).sum((1, 2))


def test_depthwise_channels_go_with_their_filters():
  model = fill(lambda: Depthwise(nnx.Rngs(0)))
  zero(model.expand.kernel, ..., 2)
  zero(model.expand.bias, 2)
  zero(model.depth.kernel, ..., 5)
  zero(model.project.kernel, ..., 7, slice(None))
  smaller = shrunk(model, draw(2, 6, 6, 3))
  assert smaller.depth.feature_group_count == smaller.expand.out_features == 5
  assert smaller.project.in_features == 5


class Fire(nnx.Module):
  """Two convolutions side by side, concatenated."""

  def __init__(self, rngs):
    self.one = nnx.Conv(3, 4, (1, 1), rngs=rngs)
    self.two = nnx.Conv(3, 6, (3, 3), rngs=rngs)
    self.last = nnx.Conv(10, 2, (1, 1), rngs=rngs)

  def __call__(self, x):
    return self.last(nnx.relu(jnp.concatenate([self.one(x), self.two(x)], -1)))


def test_channels_of_a_concatenation_go_from_their_own_branch():
  model = fill(lambda: Fire(nnx.Rngs(0)))
  zero(model.last.kernel, ..., jnp.array([1, 4, 9]), slice(None))
  smaller = shrunk(model, draw(2, 5, 5, 3))
  assert smaller.one.out_features == 3
  assert smaller.two.out_features == 4


# Transformers


class Block(nnx.Module):
  """Attention and an MLP before which layers are normalised."""

  def __init__(self, rngs, norm=nnx.LayerNorm):
    self.norm1, self.norm2 = norm(12, rngs=rngs), norm(12, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(3, 12, decode=False, rngs=rngs)
    self.up = nnx.Linear(12, 10, rngs=rngs)
    self.down = nnx.Linear(10, 12, rngs=rngs)

  def __call__(self, x):
    x = x + self.attention(self.norm1(x))
    return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Transformer(nnx.Module):
  def __init__(self, rngs, norm=nnx.LayerNorm):
    self.embed = nnx.Embed(7, 12, rngs=rngs)
    self.blocks = nnx.List([Block(rngs, norm) for _ in range(2)])
    self.out = nnx.Linear(12, 7, rngs=rngs)

  def __call__(self, tokens):
    x = self.embed(tokens)
    for block in self.blocks:
      x = block(x)
    return self.out(x)


TOKENS = jnp.arange(10).reshape(2, 5) % 7


@pytest.mark.parametrize("norm", in_part([nnx.LayerNorm, nnx.RMSNorm], nnx.LayerNorm))
def test_heads_go_as_heads_and_neurons_as_neurons(norm):
  model = fill(lambda: Transformer(nnx.Rngs(0), norm))
  first, second = model.blocks
  zero(first.attention.out.kernel, 1)
  # Without values, a head adds nothing.
  zero(second.attention.value.kernel, ..., 0, slice(None))
  zero(second.attention.value.bias, 0)
  zero(first.down.kernel, jnp.array([2, 3]))
  zero(second.up.kernel, ..., 7)
  # Channels of a norm stay: a mean over fewer is another.
  zero(model.out.kernel, 5)
  smaller = shrunk(model, TOKENS)
  assert [block.attention.num_heads for block in smaller.blocks] == [2, 2]
  assert [block.up.out_features for block in smaller.blocks] == [8, 9]
  for kernel in ("query", "key", "value"):
    assert getattr(smaller.blocks[0].attention, kernel).kernel.shape == (12, 2, 4)
  assert smaller.embed.embedding.shape == (7, 12)


def test_a_report_says_what_stays_and_why():
  text = str(planned(fill(lambda: Transformer(nnx.Rngs(0))), TOKENS))
  assert "as in a mean or a norm" in text
  assert "embed/embedding[1]" in text
  assert "an output of the network" in text


# Sharing, loops, and what has no rule


def shared(params, x):
  x = jnp.tanh(x @ params["in"])
  x = jnp.tanh(x @ params["shared"])
  return jnp.tanh(x @ params["shared"]) @ params["out"]


def test_a_shared_kernel_loses_rows_and_columns_together():
  dead = jnp.array([1, 4])
  params = {
    "in": draw(3, 6).at[:, dead].set(0),
    "shared": draw(6, 6, seed=1).at[:, dead].set(0),
    "out": draw(6, 2, seed=2),
  }
  x = draw(5, 3)
  smaller = compaction.apply(compaction.plan(shared, params, x), params)
  assert smaller["shared"].shape == (4, 4)
  close(shared(smaller, x), shared(params, x))


def recurrent(params, x):
  def turn(state, x):
    return jnp.tanh(state @ params["state"] + x @ params["in"]), None

  zeros = jnp.zeros((x.shape[1], params["in"].shape[1]))
  state, _ = jax.lax.scan(jax.checkpoint(turn), zeros, x)
  return state @ params["out"]


def test_a_scan_couples_the_turns():
  params = {
    "state": draw(6, 6, seed=1).at[3].set(0),
    "in": draw(3, 6),
    "out": draw(6, 2, seed=2).at[3].set(0),
  }
  x = draw(4, 5, 3)
  smaller = compaction.apply(compaction.plan(recurrent, params, x), params)
  assert smaller["state"].shape == (5, 5)
  close(recurrent(smaller, x), recurrent(params, x))
  # It is alive through the next turn.
  params["state"] = params["state"].at[3, 0].set(1.0)
  assert compaction.plan(recurrent, params, x).parameters == (66, 66)


@jax.custom_vjp
def gate(x):
  return jax.nn.relu(x)


gate.defvjp(lambda x: (gate(x), x > 0), lambda positive, g: (g * positive,))


def test_custom_derivatives_and_jit_are_looked_through():
  def network(params, x):
    return jax.jit(gate)(x @ params["in"]) @ params["out"]

  params = {"in": draw(3, 6).at[:, 2].set(0), "out": draw(6, 2, seed=1)}
  plan = compaction.plan(network, params, draw(4, 3))
  assert plan.parameters == (30, 25)


def test_what_no_rule_covers_comes_back_unchanged_with_the_reason():
  def network(params, x):
    x = jnp.fft.fft(x @ params["in"]).real
    return x @ params["out"]

  params = {"in": draw(3, 6).at[:, 2].set(0), "out": draw(6, 2, seed=1).at[4].set(0)}
  x = draw(4, 3)
  plan = compaction.plan(network, params, x)
  assert plan.parameters[0] == plan.parameters[1]
  assert "no rule for the primitive 'fft'" in str(plan)
  jax.tree.map(np.testing.assert_array_equal, compaction.apply(plan, params), params)


def test_sizes_that_the_code_reads_or_fixes_are_never_wrong():
  def scaled(params, x):
    x = jax.nn.relu(x @ params["in"])
    return x @ params["out"] / np.sqrt(x.shape[-1])

  params = {"in": draw(3, 6).at[:, 2].set(0), "out": draw(6, 2, seed=1)}
  x = draw(4, 3)
  plan = compaction.plan(scaled, params, x)
  close(scaled(compaction.apply(plan, params), x), scaled(params, x))
  assert "the code" in str(plan)


# Training goes on


def test_training_goes_on_with_the_optimizer_of_before():
  def network(params, x):
    x = jnp.tanh(x @ params["in"] + params["b"])
    return x @ params["out"]

  params = {
    "in": draw(3, 8).at[:, 2].set(0),
    "b": draw(8, seed=3).at[2].set(0),
    "out": draw(8, 2, seed=1).at[2].set(0),
  }
  x, y = draw(16, 3, seed=4), draw(16, 2, seed=5)

  def loss(params):
    return jnp.mean((network(params, x) - y) ** 2)

  tx = optax.chain(
    optax.clip_by_global_norm(1.0), optax.adam(1e-2), rvsm_jax.keep_zeros()
  )
  state = tx.init(params)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(3):
    params, state = step(params, state)
  plan = compaction.plan(network, params, x)
  small, small_state = compaction.apply(plan, params), compaction.apply(plan, state)
  assert small["in"].shape == (3, 7)
  assert jax.tree.structure(small_state) == jax.tree.structure(state)
  np.testing.assert_array_equal(small_state[1][0].mu["in"].shape, (3, 7))
  for _ in range(3):
    params, state = step(params, state)
    small, small_state = step(small, small_state)
    assert float(loss(small)) == pytest.approx(float(loss(params)), rel=1e-5)


def test_u_and_momentum_of_rvsm():
  params = {"in": draw(3, 8), "out": draw(8, 2, seed=1)}
  tx = rvsm_jax.rvsm_sgd(0.1, rvsm_jax.l0(), lam=1.0, beta=1.0, momentum=0.9)
  state = tx.init(params)
  u = {"in": draw(3, 8).at[:, 2].set(0), "out": draw(8, 2, seed=1)}
  plan = compaction.plan(lambda p, x: jnp.tanh(x @ p["in"]) @ p["out"], u, draw(4, 3))
  smaller = compaction.apply(plan, state)
  shapes = {leaf.shape for leaf in jax.tree.leaves(smaller) if leaf.ndim == 2}
  assert shapes == {(3, 7), (7, 2)}


# Other frameworks


@pytest.mark.slow
def test_linen_models_are_made_anew():
  def model(width):
    return linen.Sequential([linen.Dense(width), linen.relu, linen.Dense(2)])

  x = draw(4, 3)
  variables = model(5).init(jax.random.key(0), x)
  dead = variables["params"]["layers_0"]
  dead["kernel"] = dead["kernel"].at[:, 1].set(0)
  plan = compaction.plan(model(5).apply, variables, x)
  smaller = compaction.apply(plan, variables)
  assert smaller["params"]["layers_0"]["kernel"].shape == (3, 4)
  close(model(4).apply(smaller, x), model(5).apply(variables, x))
  # The part that an optimizer sees.
  part = compaction.apply(plan, variables["params"])
  jax.tree.map(np.testing.assert_array_equal, part, smaller["params"])
  assert "make the model anew" in " ".join(plan.notes)


def test_equinox_models_run_as_they_come_back():
  model = eqx.nn.MLP(3, 2, 5, 2, key=jax.random.key(0))
  weight = model.layers[1].weight.at[:, 3].set(0)
  model = eqx.tree_at(lambda m: m.layers[1].weight, model, weight)
  x = draw(3)
  plan = compaction.plan(lambda m, x: m(x), model, x)
  smaller = compaction.apply(plan, model)
  assert smaller.layers[0].weight.shape == (4, 3)
  close(smaller(x), model(x))


@pytest.mark.slow
def test_haiku_models_are_made_anew():
  def transformed(width):
    return hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([width, 2])(x)))

  x = draw(4, 3)
  params = transformed(5).init(jax.random.key(0), x)
  first = params["mlp/~/linear_0"]
  first["w"] = first["w"].at[:, 1].set(0)
  plan = compaction.plan(transformed(5).apply, params, x)
  smaller = compaction.apply(plan, params)
  assert smaller["mlp/~/linear_0"]["w"].shape == (3, 4)
  close(transformed(4).apply(smaller, x), transformed(5).apply(params, x))


# Errors, and size


def test_errors_say_what_would_be_right():
  params = {"in": draw(3, 8).at[:, 2].set(0), "out": draw(8, 2)}

  def network(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]

  x = draw(4, 3)
  with pytest.raises(TypeError, match=r"'in' must be a concrete array"):
    compaction.plan(network, jax.eval_shape(lambda: params), x)
  with pytest.raises(TypeError, match=r"nnx.Module, got dict.*`plan` and `apply`"):
    compaction.compact(params, x)
  plan = compaction.plan(network, params, x)
  smaller = compaction.apply(plan, params)
  with pytest.raises(ValueError, match=r"'in' of shape \(3, 7\).*\(3, 8\)"):
    compaction.apply(plan, smaller)


def test_verify_runs_both_models_and_tells_when_they_differ(monkeypatch):
  model, x = perceptron(4, 8, 3), draw(5, 4)
  zero(model.layers[0].kernel, ..., jnp.arange(3))
  assert sizes(compaction.compact(model, x, verify=True)) == [5, 3]
  apply = compaction.apply
  monkeypatch.setattr(
    compaction,
    "apply",
    lambda *args: jax.tree.map(lambda leaf: 1.001 * leaf, apply(*args)),
  )
  assert sizes(compaction.compact(model, x)) == [5, 3]
  with pytest.raises(ValueError, match="outputs of the smaller model differ by"):
    compaction.compact(model, x, verify=True)
  with pytest.raises(ValueError, match=r"inputs must be arrays.*ShapeDtypeStruct"):
    compaction.compact(model, jax.eval_shape(lambda: x), verify=True)


def test_a_report_has_the_sizes_and_the_measured_time():
  model, x, said = perceptron(4, 8, 3), draw(5, 4), []
  zero(model.layers[0].kernel, ..., jnp.arange(3))
  compaction.compact(model, x, report=said.append)
  (text,) = said
  assert re.search(r"layers/0/kernel +8 +5 ", text)
  assert re.search(r"milliseconds for these inputs: [\d.e-]+ -> [\d.e-]+ \(", text)


def test_a_plan_for_many_weights_takes_no_copy():
  n = 1024
  params = {f"layer{k}": np.ones((n, n), np.float32) for k in range(6)}
  params["layer1"][:, 100:200] = 0

  def network(params, x):
    for w in params.values():
      x = jax.nn.relu(x @ w)
    return x

  tracemalloc.start()
  start = time.perf_counter()
  plan = compaction.plan(network, params, jax.ShapeDtypeStruct((1, n), jnp.float32))
  seconds, (_, peak) = time.perf_counter() - start, tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert plan.parameters == (6 * n * n, 6 * n * n - 200 * n)
  assert peak < 6 * n * n * 4 / 2
  assert seconds < 10


@pytest.mark.slow
@hypothesis.settings(max_examples=40)
@hypothesis.given(
  st.lists(
    st.sampled_from(
      ["conv", "residual", "group", "affine", "max", "mean", "slices", "border"]
    ),
    max_size=4,
  ),
  st.integers(0, 2**16),
  st.booleans(),
)
def test_random_convolutional_networks(kinds, seed, flat):
  rng = np.random.default_rng(seed)

  def weights(*shape):
    array = rng.normal(size=shape)
    for axis in (-2, -1)[-len(shape) :]:
      ends = [1] * len(shape)
      ends[axis] = shape[axis]
      array = array * (rng.random(ends) < 0.65)
    return array.astype(np.float32)

  params = {"in": weights(3, 3, 2, 4), "out": weights(64 if flat else 4, 2)}
  for k, kind in enumerate(kinds):
    ins = 2 if kind == "group" else 4
    params[f"w{k}"], params[f"b{k}"] = weights(3, 3, ins, 4), weights(4)

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
      x,
      kernel,
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=x.shape[-1] // kernel.shape[2],
    )

  def network(params, x):
    x = jax.nn.sigmoid(conv(x, params["in"]))
    for k, kind in enumerate(kinds):
      w, b = params[f"w{k}"], params[f"b{k}"]
      if kind in ("conv", "group"):
        x = jax.nn.relu(conv(x, w) + b)
      elif kind == "residual":
        x = x + jax.nn.sigmoid(conv(x, w) + b)
      elif kind == "affine":
        x = x * b + b
      elif kind == "slices":
        padding = ((0, 0), (0, 3), (0, 3), (0, 0))
        padded = jnp.pad(x, padding, constant_values=-jnp.inf)
        x = jnp.maximum(padded[:, :4, :4], padded[:, 3:, ::2])
      elif kind == "border":
        x = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=0.5)[:, :4]
      else:
        pool = nnx.max_pool if kind == "max" else nnx.avg_pool
        x = pool(x, (3, 3), (1, 1), "SAME")
    x = x.reshape(len(x), -1) if flat else jnp.mean(x, (1, 2))
    return x @ params["out"]

  x = rng.normal(size=(2, 4, 4, 2)).astype(np.float32)
  plan = compaction.plan(network, params, x)
  expected = network(params, x)
  np.testing.assert_allclose(
    network(compaction.apply(plan, params), x),
    expected,
    atol=1e-5 * max(np.max(np.abs(expected)), 1),
  )
