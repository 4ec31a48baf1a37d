"""Sharded params: same numbers, same sharding, with and without jit."""

import chex
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import rvsm_jax

LR = 0.1
RVSM = {"lam": 0.1, "beta": 1.0}
SPECS = {
  "both": P("x", "y"),
  "conv": P(None, None, "y", "x"),
  "bias": P("x"),
  "replicated": P(),
}
SHAPES = {"both": (8, 6), "conv": (1, 2, 4, 8), "bias": (8,), "replicated": (4, 4)}
KERNELS = ("both", "conv")

# Separable ones, those that reduce within a group, those that need a leaf whole.
PENALTIES = {
  "l0": rvsm_jax.l0(),
  "transformed_l1": rvsm_jax.transformed_l1(0.5),
  "lp": rvsm_jax.lp(0.5),
  "group_lasso out": rvsm_jax.group_lasso("out"),
  "group_lasso in": rvsm_jax.group_lasso("in"),
  "integrated_tl1": rvsm_jax.integrated_tl1(a=0.5, mu=0.5),
  "l1_minus_l2": rvsm_jax.l1_minus_l2(),
  "exclusive_lasso": rvsm_jax.exclusive_lasso("out"),
  "combined_group_exclusive": rvsm_jax.combined_group_exclusive(0.5, "out"),
  "cardinality": rvsm_jax.cardinality(0.5),
}


def mesh(axis_type):
  # On a machine with an accelerator the default device is not one of the eight.
  devices = jax.devices("cpu")
  assert len(devices) == 8, "tests/conftest.py asks JAX for eight CPU devices."
  return jax.make_mesh((4, 2), ("x", "y"), (axis_type, axis_type), devices=devices)


def arrays(seed=0, names=tuple(SHAPES)):
  rng = np.random.default_rng(seed)
  return {name: rng.normal(size=SHAPES[name]).astype(np.float32) for name in names}


def place(tree, grid, dtype=jnp.float32):
  return {
    name: jax.device_put(jnp.asarray(leaf, dtype), NamedSharding(grid, SPECS[name]))
    for name, leaf in tree.items()
  }


def transformations(penalty, **kwargs):
  return {
    "rvsm": rvsm_jax.rvsm_sgd(LR, penalty, momentum=0.9, **RVSM, **kwargs),
    "jacobi": rvsm_jax.rvsm_sgd(LR, penalty, ordering="jacobi", **RVSM, **kwargs),
    "no u": rvsm_jax.rvsm_sgd(LR, penalty, carry_u=False, **RVSM, **kwargs),
    "proximal": rvsm_jax.proximal_sgd(LR, penalty, lam=1.0, **kwargs),
    "proximal adam": rvsm_jax.proximal_adam(LR, penalty, lam=0.1, **kwargs),
    "penalty gradient": rvsm_jax.add_penalty_gradient(penalty, 0.1, **kwargs),
  }


def run(tx, params, grads, jit=True, steps=2):
  def train(params, grads):
    state = tx.init(params)
    for _ in range(steps):
      updates, state = tx.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    return params, state, updates

  return (jax.jit(train) if jit else train)(params, grads)


@pytest.mark.parametrize("name", PENALTIES)
def test_explicit_mesh_every_penalty(name):
  params, grads = arrays(0, KERNELS), arrays(1, KERNELS)
  tx = rvsm_jax.rvsm(LR, PENALTIES[name], **RVSM)
  expected = run(tx, jax.tree.map(jnp.asarray, params), grads)
  grid = mesh(AxisType.Explicit)
  with jax.set_mesh(grid):
    params, grads = place(params, grid), place(grads, grid)
    got = after, state, updates = run(tx, params, grads)
    for tree in (after, updates, state.u):
      assert jax.tree.map(jax.typeof, tree) == jax.tree.map(jax.typeof, params)
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", transformations(rvsm_jax.l0()))
def test_explicit_mesh_every_transformation(name):
  tx = transformations(rvsm_jax.group_lasso("out"), mask=rvsm_jax.kernels)[name]
  grid = mesh(AxisType.Explicit)
  with jax.set_mesh(grid):
    params = place(arrays(0), grid, jnp.bfloat16)
    grads = place(arrays(1), grid, jnp.bfloat16)
    types = jax.tree.map(jax.typeof, params)
    state = tx.init(params)
    state_types = jax.tree.map(jax.typeof, state)
    assert jax.tree.map(jax.typeof, jax.jit(tx.init)(params)) == state_types
    for update in (tx.update, jax.jit(tx.update)):
      updates, new_state = update(grads, state, params)
      assert jax.tree.map(jax.typeof, updates) == types
      assert jax.tree.map(jax.typeof, new_state) == state_types


@pytest.mark.parametrize("normalize", ["leaf", "global"])
def test_explicit_mesh_normalisation(normalize):
  tx = rvsm_jax.rvsm(LR, rvsm_jax.l1(), normalize=normalize, **RVSM)
  params, grads = arrays(0), arrays(1)
  expected, _, _ = run(tx, jax.tree.map(jnp.asarray, params), grads)
  grid = mesh(AxisType.Explicit)
  with jax.set_mesh(grid):
    params, grads = place(params, grid), place(grads, grid)
    for jit in (False, True):
      after, _, _ = run(tx, params, grads, jit, steps=1 + jit)
      assert jax.tree.map(jax.typeof, after) == jax.tree.map(jax.typeof, params)
    chex.assert_trees_all_close(after, expected, rtol=1e-5, atol=1e-6)


def test_a_group_that_is_spread_over_devices_has_one_norm():
  # Eight rows on four devices: each device sees a quarter of every group, far below
  # the threshold, while the whole group is above it.
  kernel = np.full((8, 2), 0.4, np.float32)
  kernel[:, 1] = 0.3
  penalty, step = rvsm_jax.group_lasso("out"), 1.0
  norms = np.linalg.norm(kernel, axis=0)
  assert norms[1] < step < norms[0]
  assert np.linalg.norm(kernel[:2], axis=0)[0] < step
  expected = kernel * np.maximum(0, 1 - step / norms)
  for axis_type in (AxisType.Explicit, AxisType.Auto):
    grid = mesh(axis_type)
    with jax.set_mesh(grid):
      sharded = jax.device_put(kernel, NamedSharding(grid, P("x", "y")))
      for prox in (penalty.prox, jax.jit(penalty.prox)):
        np.testing.assert_allclose(prox(sharded, step), expected, rtol=1e-5)
      np.testing.assert_allclose(penalty.value(sharded), norms.sum(), rtol=1e-6)


@pytest.mark.parametrize("name", transformations(rvsm_jax.l0()))
def test_auto_mesh_keeps_the_placement(name):
  tx = transformations(rvsm_jax.transformed_l1(0.5), mask=rvsm_jax.kernels)[name]
  params, grads = arrays(0), arrays(1)
  expected = run(tx, jax.tree.map(jnp.asarray, params), grads)
  grid = mesh(AxisType.Auto)
  params, grads = place(params, grid), place(grads, grid)
  after, state, updates = run(tx, params, grads)
  chex.assert_trees_all_close((after, state, updates), expected, rtol=1e-5, atol=1e-6)
  for trace in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, dict)):
    for name, leaf in trace.items() if isinstance(trace, dict) else ():
      if not isinstance(leaf, optax.MaskedNode):
        assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)
  for name, leaf in after.items():
    assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)


@pytest.mark.parametrize("axis_type", [AxisType.Explicit, AxisType.Auto])
def test_sparse_params_and_metrics_of_sharded_state(axis_type):
  tx = rvsm_jax.rvsm(LR, rvsm_jax.l0(), mask=rvsm_jax.kernels, **RVSM)

  def metrics(tree):
    return (
      rvsm_jax.sparsity(tree),
      rvsm_jax.parameter_ratio(tree),
      rvsm_jax.sparsity_by_scale(tree, (1, 2)),
      rvsm_jax.sign_changes(tree, jax.tree.map(jnp.negative, tree)),
      rvsm_jax.neurons_removed([tree["conv"], tree["both"]]),
    )

  plain = jax.tree.map(jnp.asarray, arrays(0))
  expected = rvsm_jax.sparse_params(tx.init(plain), plain)
  grid = mesh(axis_type)
  with jax.set_mesh(grid):
    params = place(arrays(0), grid)
    state = jax.jit(tx.init)(params)
    for function in (rvsm_jax.sparse_params, jax.jit(rvsm_jax.sparse_params)):
      sparse = function(state, params)
      chex.assert_trees_all_equal(sparse, expected)
      assert jax.tree.map(jax.typeof, sparse) == jax.tree.map(jax.typeof, params)
    got = jax.jit(metrics)(sparse)
  chex.assert_trees_all_close(got, metrics(expected), rtol=1e-6)


def test_lagrangian_and_residual_of_sharded_trees():
  penalty = rvsm_jax.l1()

  def both(params, grads):
    u = jax.tree.map(lambda w: penalty.prox(w, 0.1), params)
    return (
      rvsm_jax.lagrangian(1.0, penalty, params, u, lam=0.1, beta=1.0),
      rvsm_jax.critical_point_residual(grads, params, u, 1.0),
    )

  expected = both(arrays(0), arrays(1))
  grid = mesh(AxisType.Explicit)
  with jax.set_mesh(grid):
    params, grads = place(arrays(0), grid), place(arrays(1), grid)
    np.testing.assert_allclose(both(params, grads), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(both)(params, grads), expected, rtol=1e-5)
