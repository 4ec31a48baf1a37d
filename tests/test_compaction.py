"""Networks without their dead units: smaller, and equal in output."""

import itertools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compaction
from experiments.networks import cifar, cnn
from experiments.networks.layers import max_pool


def outputs(model, x):
  model = nnx.clone(model)
  model.eval()
  graph, state = nnx.split(model)
  return np.asarray(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, x))


def shrunk(model, chains=compaction.sequential, *, x):
  """The compacted model, whose outputs are those of the model."""
  smaller = compaction.compact(model, chains)
  assert type(smaller) is type(model)
  expected = outputs(model, x)
  error = np.abs(outputs(smaller, x) - expected)
  assert np.max(error) <= 1e-5 * np.max(np.abs(expected))
  return smaller


def units(model, chains=compaction.sequential):
  """The number of outputs of each layer with weights."""
  return [
    layer.kernel.shape[-1]
    for chain in chains(model)
    for layer in chain
    if isinstance(layer, nnx.Conv | nnx.Linear)
  ]


def images(*shape):
  return jax.random.normal(jax.random.key(7), shape)


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def perceptron(*sizes, act=nnx.relu, bias=True):
  layers = []
  for k, (inputs, out) in enumerate(itertools.pairwise(sizes)):
    layers += [nnx.Linear(inputs, out, use_bias=bias, rngs=nnx.Rngs(k)), act]
    if bias:
      layers[-2].bias[...] = draw(out, seed=k)
  return nnx.Sequential(*layers[:-1])


def conv(inputs, out, padding="SAME", bias=True, size=3, strides=1):
  layer = nnx.Conv(
    inputs,
    out,
    (size, size),
    padding=padding,
    strides=strides,
    use_bias=bias,
    rngs=nnx.Rngs(out),
  )
  if bias:
    layer.bias[...] = draw(out)
  return layer


def norm(features, seed=0):
  layer = nnx.BatchNorm(features, rngs=nnx.Rngs(0))
  layer.mean[...], layer.var[...] = draw(features), jnp.square(draw(features)) + 0.1
  layer.scale[...], layer.bias[...] = draw(features, seed=1), draw(features, seed=2)
  return layer


def set_zero(variable, *index, shape=None):
  values = np.array(variable[...])
  values.reshape(shape or values.shape)[index] = 0
  variable[...] = jnp.asarray(values)


def without_inputs(layer, *dead):
  set_zero(layer.kernel, ..., list(dead))


def without_use(layer, *dead, units):
  shape = (-1, units, layer.kernel.shape[-1])
  set_zero(layer.kernel, slice(None), list(dead), shape=shape)


# Dense layers


@pytest.mark.parametrize(
  ("act", "bias"),
  [(nnx.relu, True), (jnp.tanh, False), (nnx.sigmoid, False), (nnx.softplus, True)],
)
def test_neurons_without_inputs_go_into_the_next_bias(act, bias):
  # sigmoid(0) is 1/2: without a bias in the model there is one afterwards.
  model = perceptron(5, 8, 7, 3, act=act, bias=bias)
  without_inputs(model.layers[0], 0, 3, 7)
  without_inputs(model.layers[2], 1)
  smaller = shrunk(model, x=images(6, 5))
  assert units(smaller) == [5, 6, 3]
  assert [layer.in_features for layer in smaller.layers[::2]] == [5, 5, 6]
  folded = bias or act not in (nnx.relu, jnp.tanh)
  assert (smaller.layers[2].bias is not None) == folded


def test_neurons_without_use_go():
  model = perceptron(5, 8, 7, 3)
  without_use(model.layers[2], 1, 2, units=8)
  without_use(model.layers[4], 0, units=7)
  assert units(shrunk(model, x=images(6, 5))) == [6, 6, 3]


def test_neurons_that_die_with_others_go():
  # Backwards: neuron 0 feeds two neurons, these feed one, and nothing uses that one.
  model = perceptron(4, 5, 5, 5, 2)
  first, second, third, last = model.layers[::2]
  set_zero(second.kernel, 0, slice(2, None))
  set_zero(third.kernel, slice(2), slice(1, None))
  without_use(last, 0, units=5)
  assert units(shrunk(model, x=images(6, 4))) == [4, 3, 4, 2]
  # Forwards: neuron 0 of the second layer sees nothing but a constant.
  model = perceptron(4, 5, 5, 5, 2)
  first, second, third, last = model.layers[::2]
  without_inputs(first, 3)
  set_zero(second.kernel, [0, 1, 2, 4], 0)
  set_zero(third.kernel, slice(1, None), 2)
  assert units(shrunk(model, x=images(6, 4))) == [4, 4, 4, 2]


def test_a_dead_layer_keeps_one_unit_and_the_constant_it_makes():
  model = perceptron(4, 5, 6, 2)
  without_inputs(model.layers[2], *range(6))
  smaller = shrunk(model, x=images(6, 4))
  assert units(smaller) == [1, 1, 2]
  assert np.ptp(outputs(smaller, images(6, 4)), axis=0) == pytest.approx(0)


def test_inputs_and_outputs_stay_and_the_model_is_not_touched():
  model = perceptron(4, 5, 3)
  set_zero(model.layers[0].kernel, 1)
  without_inputs(model.layers[2], 0)
  before = jax.tree.map(np.array, nnx.state(model))
  smaller = shrunk(model, x=images(6, 4))
  assert units(smaller) == [5, 3]
  assert smaller.layers[0].in_features == 4
  jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


# Convolutions, batch normalisation, pooling, flattening


def convolutional(padding="SAME", act=nnx.relu, bias=True):
  return nnx.Sequential(
    conv(2, 6, padding, bias),
    norm(6),
    act,
    max_pool,
    conv(6, 5, padding, bias),
    norm(5),
    act,
    compaction.flatten,
    nnx.Linear(5 * (9 if padding == "SAME" else 1), 4, rngs=nnx.Rngs(3)),
  )


@pytest.mark.parametrize(
  ("padding", "act", "bias"),
  [
    ("SAME", nnx.relu, True),
    ("SAME", nnx.sigmoid, False),
    ("VALID", nnx.relu, False),
    ("VALID", nnx.sigmoid, True),
  ],
)
def test_filters(padding, act, bias):
  model = convolutional(padding, act, bias)
  without_inputs(model.layers[0], 1, 2, 3)
  without_use(model.layers[4], 0, units=6)
  without_inputs(model.layers[4], 4)
  without_use(model.layers[8], 2, units=5)
  x = images(3, 6, 6, 2) if padding == "SAME" else images(3, 8, 8, 2)
  smaller = shrunk(model, x=x)
  # With zero padding one filter stands for the constant ones of the first layer.
  plain = model.layers[0].bias[...] if bias else jnp.zeros(6)
  constant = model.layers[1](plain[None], use_running_average=True)[0, 1:4]
  stays = padding == "SAME" and np.any(act(constant) != 0)
  assert units(smaller) == [2 + stays, 3, 4]
  assert smaller.layers[1].num_features == 2 + stays
  assert smaller.layers[8].in_features == 3 * (9 if padding == "SAME" else 1)
  again = compaction.compact(smaller, compaction.sequential)
  assert units(again) == units(smaller)


def test_a_scale_of_zero_makes_a_constant():
  model = convolutional("VALID")
  set_zero(model.layers[1].scale, slice(2))
  model.layers[1].bias[...] = jnp.ones(6)
  assert units(shrunk(model, x=images(3, 8, 8, 2))) == [4, 5, 4]


@pytest.mark.parametrize(
  ("padding", "size", "strides", "kept"),
  [
    ("SAME", 3, 1, 3),
    ("SAME", 3, 2, 3),
    ("SAME", 1, 1, 2),
    ("VALID", 3, 2, 2),
    (0, 3, 1, 2),
    (1, 3, 1, 3),
    (((1, 0), (0, 0)), 3, 1, 3),
    ("CIRCULAR", 3, 1, 2),
    ("REFLECT", 3, 1, 2),
  ],
  ids=str,
)
def test_paddings(padding, size, strides, kept):
  model = nnx.Sequential(
    conv(2, 5), nnx.sigmoid, conv(5, 3, padding, size=size, strides=strides)
  )
  without_inputs(model.layers[0], 0, 2, 4)
  assert units(shrunk(model, x=images(3, 6, 6, 2))) == [kept, 3]


def test_average_pooling_and_global_means():
  model = nnx.Sequential(
    conv(2, 5),
    nnx.sigmoid,
    lambda x: nnx.avg_pool(x, (2, 2), (2, 2)),
    lambda x: jnp.mean(x, axis=(1, 2)),
    nnx.Linear(5, 3, rngs=nnx.Rngs(0)),
  )
  without_inputs(model.layers[0], 0, 2)
  assert units(shrunk(model, x=images(3, 6, 6, 2))) == [3, 3]


# The networks of the experiments


def filled(create):
  """A model with random numbers in place of its slow initialisation."""
  rng = np.random.default_rng(0)
  graph, state = nnx.split(nnx.eval_shape(create))

  def fill(leaf):
    if len(leaf.shape) > 1:
      scale = np.sqrt(2 / np.prod(leaf.shape[:-1]))
      return jnp.asarray(scale * rng.normal(size=leaf.shape), leaf.dtype)
    return jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype)

  return nnx.merge(graph, jax.tree.map(fill, state))


def some_dead(model, chains):
  for seed, chain in enumerate(chains(model)):
    compaction.kill(chain, 0.5, seed)
  return model


def test_vgg16():
  model = filled(lambda: cifar.create("vgg16", width=0.0625, seed=0))
  some_dead(model, compaction.vgg16)
  before = units(model, compaction.vgg16)
  smaller = shrunk(model, compaction.vgg16, x=images(2, 32, 32, 3))
  after = units(smaller, compaction.vgg16)
  for old, new in zip(before[:-1], after[:-1], strict=True):
    # One filter may stand for the constant ones.
    assert old // 2 <= new <= old // 2 + 1
  assert after[-1] == 10


def test_resnet18_inside_its_blocks():
  model = filled(lambda: cifar.create("resnet18", width=0.0625, seed=0))
  some_dead(model, compaction.resnet18)
  smaller = shrunk(model, compaction.resnet18, x=images(2, 32, 32, 3))
  for old, new in zip(model.blocks, smaller.blocks, strict=True):
    inner = old.first.conv.out_features
    assert inner // 2 <= new.first.conv.out_features <= inner // 2 + 1
    assert new.first.conv.in_features == old.first.conv.in_features
    assert new.second.conv.out_features == old.second.conv.out_features


@pytest.mark.parametrize("convs", [(), (4, 6)], ids=["perceptron", "cnn"])
def test_the_networks_of_ma_et_al(convs):
  model = filled(lambda: cnn.CNN((7, 6, 2), convs, (0,), (12, 8, 3), rngs=nnx.Rngs(0)))
  some_dead(model, compaction.cnn)
  x = images(4, 7, 6, 2)
  smaller = shrunk(model, compaction.cnn, x=x)
  before, after = units(model, compaction.cnn), units(smaller, compaction.cnn)
  for old, new in zip(before[:-1], after[:-1], strict=True):
    assert new <= old // 2 + 1


# Errors and measurement


def test_what_cannot_be_compacted_is_refused():
  model = perceptron(4, 6, 3, act=nnx.softmax)
  without_inputs(model.layers[0], 0)
  with pytest.raises(ValueError, match="mixes channels"):
    compaction.compact(model, compaction.sequential)
  grouped = nnx.Conv(4, 4, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0))
  model = nnx.Sequential(conv(2, 4), nnx.relu, grouped)
  with pytest.raises(ValueError, match="groups"):
    compaction.compact(model, compaction.sequential)


def test_measure():
  model = some_dead(perceptron(16, 32, 32, 4), compaction.sequential)
  smaller = compaction.compact(model, compaction.sequential)
  report = compaction.measure(model, smaller, images(8, 16), repeats=3)
  assert report["before"]["parameters"] == 17 * 32 + 33 * 32 + 33 * 4
  assert report["after"]["parameters"] == 17 * 16 + 17 * 16 + 17 * 4
  for sizes in (report["before"], report["after"]):
    assert sizes["bytes"] == 4 * sizes["parameters"]
    assert sizes["milliseconds"] > 0
  assert (report["before"]["units"], report["after"]["units"]) == (68, 36)
  assert report["difference"] < 1e-5
  assert report["speedup"] > 0
