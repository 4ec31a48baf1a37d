"""Metrics against counting by hand and by brute force."""

import itertools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rvsm_jax

ENTRIES = st.sampled_from([0.0, -0.0, 1e-12, -1e-8, 1e-5, -1e-3, 0.1, -2.0])
# One shape each, so that every draw after the first runs what is compiled.
matrices = hnp.arrays(np.float32, (3, 4), elements=ENTRIES)
vectors = hnp.arrays(np.float32, (5,), elements=ENTRIES)
trees = st.fixed_dictionaries({"a": matrices, "b": st.tuples(vectors, vectors)})
# Compiled: outside of jit each call makes a reduction of its own.
sparsity = jax.jit(rvsm_jax.sparsity)
sparsity_by_scale = jax.jit(rvsm_jax.sparsity_by_scale, static_argnums=1)
parameter_ratio = jax.jit(rvsm_jax.parameter_ratio)


def flattened(tree):
  return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)])


# sparsity


@hypothesis.given(trees, st.sampled_from([0.0, 1e-9, 1e-4, 1.0]))
def test_sparsity_is_the_share_at_or_below_the_threshold(tree, threshold):
  flat = flattened(tree)
  expected = np.mean(np.abs(flat) <= np.float32(threshold))
  value = sparsity(tree, threshold)
  assert jnp.shape(value) == ()
  np.testing.assert_allclose(value, expected, rtol=1e-6)


@hypothesis.given(trees)
def test_sparsity_by_scale_is_strictly_below_each_power_of_ten(tree):
  exponents = (1, 3, 4, 6, 10)
  flat = np.abs(flattened(tree))
  expected = [np.mean(flat < np.float32(10.0**-n)) for n in exponents]
  shares = sparsity_by_scale(tree, exponents)
  assert shares.shape == (5,)
  np.testing.assert_allclose(shares, expected, rtol=1e-6)


@hypothesis.given(trees)
def test_parameter_ratio_is_the_nonzero_share(tree):
  flat = flattened(tree)
  ratio = parameter_ratio(tree)
  np.testing.assert_allclose(ratio, np.count_nonzero(flat) / flat.size, rtol=1e-6)
  np.testing.assert_allclose(ratio, 1 - sparsity(tree), atol=1e-6)


def test_leaves_count_by_size_not_by_number():
  tree = {"a": jnp.zeros((3, 3)), "b": jnp.ones(1), "c": None, "d": {}}
  np.testing.assert_allclose(rvsm_jax.sparsity(tree), 0.9, rtol=1e-6)
  np.testing.assert_allclose(rvsm_jax.sparsity([jnp.zeros(()), jnp.ones(())]), 0.5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_counts_are_not_rounded(dtype):
  # 1 of 4096 is lost if the mean itself is taken in 8 or 11 bits.
  leaf = jnp.ones(4096, dtype).at[7].set(0)
  np.testing.assert_allclose(rvsm_jax.sparsity(leaf), 1 / 4096, rtol=1e-6)
  shares = rvsm_jax.sparsity_by_scale(leaf, (1,))
  np.testing.assert_allclose(shares, [1 / 4096], rtol=1e-6)
  np.testing.assert_allclose(rvsm_jax.parameter_ratio(leaf), 4095 / 4096, rtol=1e-6)


def test_nan_is_not_a_zero():
  leaf = jnp.array([jnp.nan, jnp.inf, -jnp.inf, 0.0])
  np.testing.assert_allclose(rvsm_jax.sparsity(leaf), 0.25)
  np.testing.assert_allclose(rvsm_jax.sparsity_by_scale(leaf, (1, 2)), [0.25, 0.25])


def test_metrics_under_jit_and_vmap():
  batch = jnp.asarray(np.random.default_rng(0).integers(-1, 2, (4, 10)), jnp.float32)
  by_hand = np.mean(np.asarray(batch) == 0, axis=1)
  np.testing.assert_allclose(jax.vmap(jax.jit(rvsm_jax.sparsity))(batch), by_hand)
  np.testing.assert_allclose(
    jax.jit(rvsm_jax.parameter_ratio)(batch), 1 - by_hand.mean()
  )


# sign_changes


def test_sign_changes_by_hand():
  a = {"x": jnp.array([1.0, -1.0, 1.0, 0.0, -0.0, 2.0, 0.0]), "y": jnp.array([-3.0])}
  b = {"x": jnp.array([-1.0, 1.0, 1.0, 1.0, -1.0, 0.0, -0.0]), "y": jnp.array([1e-30])}
  changes = rvsm_jax.sign_changes(a, b)
  assert jnp.shape(changes) == ()
  assert jnp.issubdtype(changes.dtype, jnp.integer)
  assert changes == 3


@hypothesis.given(vectors, vectors)
def test_sign_changes_is_symmetric_and_counts_products_below_zero(a, b):
  expected = np.sum(np.sign(a) * np.sign(b) < 0)
  assert rvsm_jax.sign_changes([a], [b]) == expected
  assert rvsm_jax.sign_changes([b], [a]) == expected


def test_sign_changes_does_not_underflow():
  # The product of the two entries is zero in float32.
  assert rvsm_jax.sign_changes(jnp.array([1e-30]), jnp.array([-1e-30])) == 1


# neurons_removed


def test_neurons_removed_by_hand():
  first, last = np.ones((3, 4)), np.ones((4, 2))
  first[:, 0] = 0  # nothing comes in
  last[1] = 0  # nothing goes out
  first[:, 2] = 0
  last[2] = 0  # neither, counted once
  first[1:, 3] = 0  # something does
  params = {"Dense_0": {"kernel": first, "bias": np.zeros(4)}, "Dense_1": last}
  params["Dense_1"] = {"kernel": last, "bias": np.zeros(2)}
  removed = rvsm_jax.neurons_removed(params)
  assert jnp.shape(removed) == ()
  assert removed == 3


def test_inputs_and_outputs_are_not_hidden_units():
  first, last = np.ones((3, 4)), np.ones((4, 2))
  first[0] = 0
  last[:, 1] = 0
  assert rvsm_jax.neurons_removed({"a": {"kernel": first}, "b": {"kernel": last}}) == 0
  assert rvsm_jax.neurons_removed({"a": {"kernel": np.zeros((3, 2))}}) == 0


def test_neurons_removed_goes_through_the_layers_in_depth_order():
  # In alphabetical order Dense_10 would follow Dense_1, and the sizes would not fit.
  sizes = list(range(3, 15))
  kernels = [np.ones((i, o)) for i, o in itertools.pairwise(sizes)]
  kernels[2][:, 1] = 0
  kernels[10][4] = 0
  params = {f"Dense_{i}": {"kernel": k} for i, k in enumerate(kernels)}
  assert rvsm_jax.neurons_removed(params) == 2


@hypothesis.given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_neurons_removed_of_a_random_network_by_brute_force(seed, depth):
  rng = np.random.default_rng(seed)
  sizes = (4, 3, 5, 2, 3)[: depth + 1]
  kernels = [
    (rng.random((i, o)) < 0.4).astype(np.float32) for i, o in itertools.pairwise(sizes)
  ]
  expected = sum(
    not before[:, unit].any() or not after[unit].any()
    for before, after in itertools.pairwise(kernels)
    for unit in range(before.shape[1])
  )
  params = [{"kernel": k} for k in kernels]
  assert rvsm_jax.neurons_removed(params) == expected


def test_neurons_removed_of_convolutions_and_a_flattened_dense_layer():
  conv_0, conv_1 = np.ones((3, 3, 1, 4)), np.ones((3, 3, 4, 3))
  dense = np.ones((2 * 2 * 3, 5))  # 2 x 2 pixels of 3 channels, flattened as NHWC
  out = np.ones((5, 2))
  conv_0[..., 0] = 0  # a filter
  conv_1[:, :, 1] = 0  # an input channel
  dense[0::3] = 0  # all pixels of channel 0
  dense[1] = 0  # one pixel of channel 1
  dense[6:9] = 0  # one pixel of every channel
  out[2] = 0
  params = {
    "Conv_0": {"kernel": conv_0},
    "Conv_1": {"kernel": conv_1},
    "Dense_0": {"kernel": dense},
    "Dense_1": {"kernel": out},
  }
  assert rvsm_jax.neurons_removed(params) == 4


# flop_ratio


def mlp(params, x):
  hidden = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"])
  return hidden @ params["b"]["kernel"]


def half_of(kernel):
  return jnp.asarray(kernel).ravel().at[::2].set(0).reshape(kernel.shape)


def test_flop_ratio_of_dense_layers_by_hand():
  params = {
    "a": {"kernel": half_of(np.ones((8, 16))), "bias": np.zeros(16)},
    "b": {"kernel": np.ones((16, 4))},
  }
  x = np.ones((3, 8), np.float32)
  ratio = rvsm_jax.flop_ratio(mlp, params, x)
  assert isinstance(ratio, float)
  assert ratio == pytest.approx((64 + 64) / (128 + 64))
  assert rvsm_jax.flop_ratio(jax.jit(mlp), params, x) == pytest.approx(2 / 3)
  dense = jax.tree.map(jnp.ones_like, params)
  assert rvsm_jax.flop_ratio(mlp, dense, x) == 1.0


def test_flop_ratio_of_convolutions_counts_pixels():
  def net(params, x):
    for name in ("a", "b"):
      x = jax.lax.conv_general_dilated(
        x, params[name], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
      )
    return x.reshape(x.shape[0], -1) @ params["c"]

  params = {
    "a": half_of(np.ones((3, 3, 1, 4))),
    "b": jnp.ones((3, 3, 4, 2)).at[..., 0].set(0),
    "c": jnp.ones((4 * 4 * 2, 5)),
  }
  macs = np.array([8 * 8 * 9 * 4, 4 * 4 * 9 * 4 * 2, 32 * 5])
  expected = macs @ [0.5, 0.5, 1.0] / macs.sum()
  ratio = rvsm_jax.flop_ratio(net, params, jnp.ones((1, 16, 16, 1)))
  assert ratio == pytest.approx(expected)


def test_flop_ratio_of_grouped_convolution():
  def net(params, x):
    x = jax.lax.conv_general_dilated(
      x,
      params["depthwise"],
      (1, 1),
      "SAME",
      dimension_numbers=("NHWC", "HWIO", "NHWC"),
      feature_group_count=4,
    )
    return jnp.einsum("bhwc,cd->bhwd", x, params["pointwise"])

  params = {"depthwise": half_of(np.ones((3, 3, 1, 4))), "pointwise": jnp.ones((4, 8))}
  macs = np.array([64 * 9 * 4, 64 * 4 * 8])
  ratio = rvsm_jax.flop_ratio(net, params, jnp.ones((1, 8, 8, 4)))
  assert ratio == pytest.approx(macs @ [0.5, 1.0] / macs.sum())


def with_custom_jvp(w, x):
  product = jax.custom_jvp(jnp.matmul)
  product.defjvps(None, None)
  return product(x, w)


@pytest.mark.parametrize(
  "layer",
  [
    lambda w, x: x @ w,
    lambda w, x: (w.T @ x.T).T,
    lambda w, x: jnp.einsum("io,bi->bo", w, x),
    lambda w, x: x.astype(jnp.bfloat16) @ w.astype(jnp.bfloat16),
    lambda w, x: x @ w.reshape(2, 4, 16).reshape(8, 16),
    lambda w, x: jax.vmap(lambda row: w.T @ row)(x),
    lambda w, x: jax.checkpoint(jnp.matmul)(x, w),
    with_custom_jvp,
  ],
  ids=["right", "left", "einsum", "cast", "reshape", "vmap", "remat", "custom_jvp"],
)
def test_flop_ratio_follows_the_parameter_to_its_product(layer):
  params = {"w": half_of(np.ones((8, 16))), "v": jnp.ones((16, 4))}

  def net(p, x):
    return layer(p["w"], x).astype(jnp.float32) @ p["v"]

  ratio = rvsm_jax.flop_ratio(net, params, jnp.ones((3, 8)))
  assert ratio == pytest.approx((64 + 64) / (128 + 64))


def test_flop_ratio_counts_products_without_parameters_as_dense():
  def attention(params, x):
    q = x @ params["q"]
    return q @ q.T  # 3 x 8 x 3, no parameter

  params = {"q": jnp.zeros((8, 8))}
  ratio = rvsm_jax.flop_ratio(attention, params, jnp.ones((3, 8)))
  assert ratio == pytest.approx(72 / (72 + 3 * 64))


def test_flop_ratio_does_not_run_the_network_or_count_the_batch():
  params = {
    "a": {"kernel": half_of(np.ones((8, 16))), "bias": np.zeros(16)},
    "b": {"kernel": np.ones((16, 4))},
  }
  ratios = [
    rvsm_jax.flop_ratio(mlp, params, jax.ShapeDtypeStruct((n, 8), jnp.float32))
    for n in (1, 1_000_000_000)
  ]
  assert ratios == pytest.approx([2 / 3, 2 / 3])
