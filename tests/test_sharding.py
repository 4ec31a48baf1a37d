"""Sharded params: same numbers, same sharding, with and without jit."""

from cases import CASES, RVSM, TRANSFORMATIONS, typical, with_invariant
import chex
from helpers import both_axis_types, in_part
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import rvsm_jax

SPECS = {
  "both": P("x", "y"),
  "conv": P(None, None, "y", "x"),
  "bias": P("x"),
  "replicated": P(),
}
SHAPES = {"both": (8, 6), "conv": (1, 2, 4, 8), "bias": (8,), "replicated": (4, 4)}
KERNELS = ("both", "conv")
SHARDED = [c for c in TRANSFORMATIONS if c.has("sharding") and c.has("mask")]


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


def run(case, tx, params, grads):
  @jax.jit
  def train(params, grads):
    state = tx.init(params)
    for _ in range(2):
      updates, state = tx.update(grads, state, params, **case.extra(params, grads))
      params = optax.apply_updates(params, updates)
    return params, state, updates

  return train(params, grads)


@pytest.mark.parametrize("case", typical(c for c in CASES if c.any_shape), ids=str)
def test_explicit_mesh_every_penalty(case):
  params = arrays(0, KERNELS)
  penalty = case.penalty

  # JAX takes no singular values of a matrix that is split.
  value = jnp.sum if case.name == "nuclear" else penalty.value

  def maps(params):
    return {name: (penalty.prox(w, 0.1), value(w)) for name, w in params.items()}

  expected = jax.jit(maps)(params)
  grid = mesh(AxisType.Explicit)
  with jax.set_mesh(grid):
    params = place(params, grid)
    got = jax.jit(maps)(params)
    for name, (u, _) in got.items():
      assert jax.typeof(u) == jax.typeof(params[name])
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def check_explicit_mesh(case, compiled):
  tx = case.make(penalty=rvsm_jax.group_lasso("out"), mask=rvsm_jax.kernels)
  grid = mesh(AxisType.Explicit)
  with jax.set_mesh(grid):
    params = place(arrays(0), grid, jnp.bfloat16)
    grads = place(arrays(1), grid, jnp.bfloat16)
    types = jax.tree.map(jax.typeof, params)
    init, update = compiled(tx.init), compiled(tx.update)
    state = init(params)
    updates, new_state = update(grads, state, params, **case.extra(params, grads))
    assert jax.tree.map(jax.typeof, updates) == types
    return jax.tree.map(jax.typeof, state), jax.tree.map(jax.typeof, new_state)


@with_invariant("sharding", "mask", costly=True)
def test_explicit_mesh_every_transformation(case):
  before, after = check_explicit_mesh(case, jax.jit)
  assert after == before


@pytest.mark.slow
@with_invariant("sharding", "mask")
def test_explicit_mesh_without_jit(case):
  before, after = check_explicit_mesh(case, lambda function: function)
  assert after == before == check_explicit_mesh(case, jax.jit)[0]


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
      np.testing.assert_allclose(jax.jit(penalty.prox)(sharded, step), expected, 1e-5)
      np.testing.assert_allclose(jax.jit(penalty.value)(sharded), norms.sum(), 1e-6)


@pytest.mark.parametrize("case", in_part(SHARDED, SHARDED[0]), ids=str)
def test_auto_mesh_keeps_the_placement(case):
  tx = case.make(penalty=rvsm_jax.transformed_l1(0.5), mask=rvsm_jax.kernels)
  params, grads = arrays(0), arrays(1)
  expected = run(case, tx, jax.tree.map(jnp.asarray, params), grads)
  grid = mesh(AxisType.Auto)
  params, grads = place(params, grid), place(grads, grid)
  after, state, updates = run(case, tx, params, grads)
  chex.assert_trees_all_close((after, state, updates), expected, rtol=1e-5, atol=1e-6)
  for trace in jax.tree.leaves(state, is_leaf=lambda x: isinstance(x, dict)):
    for name, leaf in trace.items() if isinstance(trace, dict) else ():
      if not isinstance(leaf, optax.MaskedNode):
        assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)
  for name, leaf in after.items():
    assert leaf.sharding.is_equivalent_to(params[name].sharding, leaf.ndim)


@both_axis_types
def test_sparse_params_and_metrics_of_sharded_state(axis_type):
  tx = rvsm_jax.rvsm(mask=rvsm_jax.kernels, **RVSM | {"penalty": rvsm_jax.l0()})

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
    sparse = jax.jit(rvsm_jax.sparse_params)(state, params)
    chex.assert_trees_all_equal(sparse, expected)
    assert jax.tree.map(jax.typeof, sparse) == jax.tree.map(jax.typeof, params)
    got = jax.jit(metrics)(sparse)
  chex.assert_trees_all_close(got, jax.jit(metrics)(expected), rtol=1e-6)


def test_lagrangian_and_residual_of_sharded_trees():
  penalty = rvsm_jax.l1()

  def both(params, grads):
    u = jax.tree.map(lambda w: penalty.prox(w, 0.1), params)
    return (
      rvsm_jax.lagrangian(1.0, penalty, params, u, lam=0.1, beta=1.0),
      rvsm_jax.critical_point_residual(grads, params, u, 1.0),
    )

  both = jax.jit(both)
  expected = both(arrays(0), arrays(1))
  grid = mesh(AxisType.Explicit)
  with jax.set_mesh(grid):
    params, grads = place(arrays(0), grid), place(arrays(1), grid)
    np.testing.assert_allclose(both(params, grads), expected, rtol=1e-5)
