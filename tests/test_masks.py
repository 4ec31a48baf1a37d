"""Masks and labels: what is selected, on which kind of tree, in which order."""

import re

import chex
import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax


def zeros(*shape):
  return jnp.zeros(shape)


def model():
  return {
    "Conv_0": {"kernel": zeros(3, 3, 1, 4), "bias": zeros(4)},
    "Conv_2": {"kernel": zeros(3, 3, 4, 4), "bias": zeros(4)},
    "Conv_10": {"kernel": zeros(3, 3, 4, 4)},
    "BatchNorm_0": {"scale": zeros(4), "bias": zeros(4)},
    "Embed_0": {"embedding": zeros(10, 4)},
    "Attention": {
      "query": {"kernel": zeros(4, 2, 2), "bias": zeros(2, 2)},
      "norm": {"scale": zeros(2, 2)},
    },
    "temperature": zeros(),
  }


KERNELS = {
  "Conv_0": {"kernel": True, "bias": False},
  "Conv_2": {"kernel": True, "bias": False},
  "Conv_10": {"kernel": True},
  "BatchNorm_0": {"scale": False, "bias": False},
  "Embed_0": {"embedding": False},
  "Attention": {
    "query": {"kernel": True, "bias": False},
    "norm": {"scale": False},
  },
  "temperature": False,
}


def leaves_are_python(tree, kind):
  return all(type(leaf) is kind for leaf in jax.tree.leaves(tree))


# kernels


def test_kernels_takes_matrices_and_filters_only():
  mask = rvsm_jax.kernels(model())
  assert mask == KERNELS
  # Static under jit: Python bools, not arrays.
  assert leaves_are_python(mask, bool)


def test_kernels_judges_the_leaf_by_its_own_name():
  params = {
    "bias": {"kernel": zeros(2, 2)},
    "scale_head": {"w": zeros(2, 2), "bias_init": zeros(2, 2)},
    "embedding": [zeros(2, 2), zeros(2)],
  }
  assert rvsm_jax.kernels(params) == {
    "bias": {"kernel": True},
    "scale_head": {"w": True, "bias_init": True},
    "embedding": [True, False],
  }


def test_kernels_of_one_array_lists_none_and_nothing():
  assert rvsm_jax.kernels(zeros(2, 2)) is True
  assert rvsm_jax.kernels(zeros(2)) is False
  assert rvsm_jax.kernels([zeros(2, 2), None, zeros(1)]) == [True, None, False]
  assert rvsm_jax.kernels({}) == {}


def test_kernels_under_transformations():
  abstract = jax.eval_shape(model)
  assert rvsm_jax.kernels(abstract) == KERNELS
  seen = []
  jax.jit(lambda params: seen.append(rvsm_jax.kernels(params)))(model())
  assert seen == [KERNELS]


def test_kernels_of_a_frozen_dict():
  flax_core = pytest.importorskip("flax.core")
  mask = rvsm_jax.kernels(flax_core.freeze(model()))
  assert flax_core.unfreeze(mask) == KERNELS


# by_path


@pytest.mark.parametrize(
  ("pattern", "selected"),
  [
    ("kernel", ["Attention/query/kernel"] + [f"Conv_{i}/kernel" for i in (0, 10, 2)]),
    ("^Conv_2/", ["Conv_2/bias", "Conv_2/kernel"]),
    (r"query/kernel$", ["Attention/query/kernel"]),
    (r"^(?!.*norm).*(scale|temperature)$", ["BatchNorm_0/scale", "temperature"]),
    (re.compile("EMBED", re.IGNORECASE), ["Embed_0/embedding"]),
  ],
  ids=str,
)
def test_by_path_searches_the_joined_path(pattern, selected):
  mask = rvsm_jax.by_path(pattern)(model())
  assert leaves_are_python(mask, bool)
  chex.assert_trees_all_equal_structs(mask, model())
  got = [
    jax.tree_util.keystr(path, simple=True, separator="/")
    for path, leaf in jax.tree.leaves_with_path(mask)
    if leaf
  ]
  assert got == selected


def test_by_path_names_list_entries_and_attributes():
  equinox = pytest.importorskip("equinox")
  mlp = equinox.nn.MLP(2, 2, 3, 2, key=jax.random.key(0))
  params = equinox.filter(mlp, equinox.is_array)
  mask = rvsm_jax.by_path(r"layers/1/weight$")(params)
  assert [layer.weight for layer in mask.layers] == [False, True, False]
  assert [layer.bias for layer in mask.layers] == [False, False, False]
  nested = {"a": [zeros(1), (zeros(1), zeros(1))]}
  assert rvsm_jax.by_path("^a/1/0$")(nested) == {"a": [False, (True, False)]}


def test_a_field_called_value_is_an_ordinary_name():
  # An NNX variable keeps its array in an attribute of that name, others a weight.
  equinox = pytest.importorskip("equinox")

  class Attention(equinox.Module):
    query: jax.Array
    key: jax.Array
    value: jax.Array

  params = {"attention": Attention(zeros(2, 2), zeros(2, 2), zeros(2, 2))}
  mask = rvsm_jax.by_path("attention/value$")(params)["attention"]
  assert (mask.query, mask.key, mask.value) == (False, False, True)
  assert set(jax.tree.leaves(rvsm_jax.layer_index()(params))) == {0}


def test_masks_are_the_same_for_an_nnx_state_and_its_arrays():
  # nnx.Optimizer calls init with Variables and update with bare arrays: a mask that
  # saw "kernel/value" in one and "kernel" in the other would select differently.
  nnx = pytest.importorskip("flax.nnx")

  class Model(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(1, 2, (3, 3), rngs=rngs)
      self.layers = nnx.List([nnx.Linear(2, 2, rngs=rngs) for _ in range(11)])
      self.norm = nnx.BatchNorm(2, rngs=rngs)
      self.embed = nnx.Embed(3, 2, rngs=rngs)

  state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
  arrays = nnx.as_pure(state)
  for choose in (
    rvsm_jax.kernels,
    rvsm_jax.by_path("kernel$"),
    rvsm_jax.layer_index(),
    rvsm_jax.layer_index("conv/kernel$", "."),
  ):
    assert jax.tree.leaves(choose(state)) == jax.tree.leaves(choose(arrays))
  assert sum(jax.tree.leaves(rvsm_jax.kernels(state))) == 12
  assert rvsm_jax.kernels(arrays)["embed"]["embedding"] is False
  depth = rvsm_jax.layer_index()(arrays)["layers"]
  indices = [depth[i]["kernel"] for i in range(11)]
  assert np.all(np.diff(indices) == 1)


# layer_index and its schedule


def test_layer_index_sorts_naturally_not_alphabetically():
  params = {f"Conv_{i}": {"kernel": zeros(1, 1), "bias": zeros(1)} for i in range(12)}
  index = rvsm_jax.layer_index()(params)
  assert index == {f"Conv_{i}": {"kernel": i, "bias": i} for i in range(12)}
  assert leaves_are_python(index, int)


def test_layer_index_counts_layers_not_leaves():
  params = {
    "block_2": {"a": {"kernel": zeros(1)}, "b": {"kernel": zeros(1)}},
    "block_10": {"a": {"kernel": zeros(1), "bias": zeros(1)}},
    "block_1": {"a": {"kernel": zeros(1), "bias": zeros(1)}},
  }
  assert rvsm_jax.layer_index()(params) == {
    "block_1": {"a": {"kernel": 0, "bias": 0}},
    "block_2": {"a": {"kernel": 1}, "b": {"kernel": 2}},
    "block_10": {"a": {"kernel": 3, "bias": 3}},
  }


def test_layer_index_of_lists():
  params = {"layers": [{"w": zeros(1), "b": zeros(1)} for _ in range(11)]}
  index = rvsm_jax.layer_index()(params)
  assert index == {"layers": [{"w": i, "b": i} for i in range(11)]}


def test_layer_index_in_a_stated_order():
  params = {
    "head": {"kernel": zeros(1)},
    "body": {"Dense_1": {"kernel": zeros(1)}, "Dense_0": {"kernel": zeros(1)}},
    "stem": {"kernel": zeros(1), "bias": zeros(1)},
  }
  index = rvsm_jax.layer_index("^stem", "Dense_0", "body", ".")
  # "body" matches Dense_0 too; the first pattern that matches wins.
  assert index(params) == {
    "head": {"kernel": 3},
    "body": {"Dense_1": {"kernel": 2}, "Dense_0": {"kernel": 1}},
    "stem": {"kernel": 0, "bias": 0},
  }


@hypothesis.given(st.permutations(range(25)))
def test_layer_index_is_blind_to_the_order_of_insertion(order):
  params = {f"layer{i}": {"kernel": zeros(1)} for i in order}
  index = rvsm_jax.layer_index()(params)
  assert index == {f"layer{i}": {"kernel": i} for i in order}


@hypothesis.given(st.integers(2, 30), st.floats(0, 1, allow_subnormal=False).map(float))
def test_integrated_tl1_schedule(num_layers, s):
  mus = rvsm_jax.integrated_tl1_schedule(num_layers, s)
  assert len(mus) == num_layers
  expected = [s + (1 - 2 * s) * i / (num_layers - 1) for i in range(num_layers)]
  np.testing.assert_allclose(mus, expected, atol=1e-6)
  assert mus[0] == pytest.approx(s)
  assert mus[-1] == pytest.approx(1 - s, abs=1e-6)
  # Each is a share that the penalty accepts, also after rounding.
  for mu in mus:
    rvsm_jax.integrated_tl1(a=1.0, mu=mu)


def test_each_layer_its_own_mu():
  rng = np.random.default_rng(0)
  params = {
    f"Dense_{i}": {"kernel": jnp.asarray(rng.normal(size=(6, 6)), jnp.float32)}
    for i in range(3)
  }
  mus = rvsm_jax.integrated_tl1_schedule(3, 0.1)
  penalties = [rvsm_jax.integrated_tl1(a=0.5, mu=mu) for mu in mus]
  tx = optax.partition(
    {i: rvsm_jax.proximal(0.1, p, lam=2.0) for i, p in enumerate(penalties)},
    rvsm_jax.layer_index(),
  )
  zero = jax.tree.map(jnp.zeros_like, params)
  updates, _ = jax.jit(tx.update)(zero, tx.init(params), params)
  after = optax.apply_updates(params, updates)
  results = []
  for i, penalty in enumerate(penalties):
    kernel = params[f"Dense_{i}"]["kernel"]
    expected = jax.jit(penalty.prox)(kernel, 0.2)
    np.testing.assert_allclose(after[f"Dense_{i}"]["kernel"], expected, atol=1e-6)
    results.append(float(np.mean(expected == 0)))
  assert len(set(results)) > 1


# Masks as an argument


class TestMaskArgument:
  """The forms a mask may take are those of optax.masked."""

  params = {"a": {"kernel": jnp.ones((2, 2))}, "b": {"kernel": jnp.ones((2, 2))}}  # noqa: RUF012

  def selected(self, mask):
    tx = rvsm_jax.proximal(1.0, rvsm_jax.l1(), lam=0.25, mask=mask)
    zero = jax.tree.map(jnp.zeros_like, self.params)
    updates, _ = jax.jit(tx.update)(zero, tx.init(self.params), self.params)
    return {name: bool(updates[name]["kernel"][0, 0] != 0) for name in self.params}

  @pytest.mark.parametrize(
    "mask",
    [
      {"a": {"kernel": True}, "b": {"kernel": False}},
      {"a": True, "b": False},
      {"a": np.bool_(True), "b": np.bool_(False)},
      {"a": jnp.array(True), "b": jnp.array(False)},
      rvsm_jax.by_path("^a/"),
      lambda params: {"a": True, "b": False},
    ],
    ids=["tree", "prefix", "numpy", "jax", "by_path", "callable that gives a prefix"],
  )
  def test_selects_a(self, mask):
    assert self.selected(mask) == {"a": True, "b": False}

  @pytest.mark.parametrize("mask", [None, True, np.True_, lambda _: True])
  def test_selects_all(self, mask):
    assert self.selected(mask) == {"a": True, "b": True}
