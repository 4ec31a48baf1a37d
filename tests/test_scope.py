"""One budget for all leaves: cardinality with scope="all" in every transformation."""

import re

import chex
from helpers import both_axis_types, in_part
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import rvsm_jax

LR = 0.1
ALL = rvsm_jax.cardinality(0.75, scope="all")
KERNELS = {"mask": rvsm_jax.kernels}
CHAINS = {
  "rvsm": rvsm_jax.rvsm_sgd(LR, ALL, lam=1.0, beta=1.0, **KERNELS),
  "jacobi": rvsm_jax.rvsm_sgd(LR, ALL, lam=1.0, beta=1.0, ordering="jacobi", **KERNELS),
  "proximal": rvsm_jax.proximal_sgd(LR, ALL, lam=1.0, **KERNELS),
  "scaled": rvsm_jax.proximal_sgd(LR, rvsm_jax.scaled(ALL, 2.0), lam=1.0, **KERNELS),
  "after adam": optax.chain(
    optax.adam(LR), rvsm_jax.proximal(LR, ALL, lam=1.0, **KERNELS)
  ),
  "admm": optax.chain(optax.sgd(LR), rvsm_jax.admm(LR, ALL, rho=1.0, **KERNELS)),
}


def tree(seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  return {
    "a": {
      "kernel": jnp.asarray(rng.normal(size=(4, 6)), dtype),
      "bias": jnp.asarray(rng.normal(size=6), dtype),
    },
    "b": {"kernel": jnp.asarray(3 * rng.normal(size=(6, 2)), dtype)},
  }


def kernels(params):
  return [params["a"]["kernel"], params["b"]["kernel"]]


def reference(leaves, sparsity):
  """The largest entries of all leaves, of equal ones the first."""
  flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])
  dropped = int(np.ceil(sparsity * flat.size * (1 - 1e-6)))
  order = np.argsort(-np.abs(flat), kind="stable")
  flat[order[flat.size - dropped :]] = 0
  ends = np.cumsum([x.size for x in leaves])[:-1]
  parts = np.split(flat, ends)
  return [part.reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]


@pytest.mark.parametrize(
  "dtype", in_part(["float16", "bfloat16", "float32", "float64"], "bfloat16")
)
def test_the_largest_of_all_leaves_are_kept_and_of_equal_ones_the_first(dtype):
  with jax.enable_x64(dtype == "float64"):
    prox = jax.jit(
      lambda x, share: rvsm_jax.cardinality(share, scope="all").prox(x, 1.0)
    )
    for levels in (3, 10**4):
      rng = np.random.default_rng(levels)
      x = [
        jnp.asarray(rng.integers(-levels, levels, shape) / 2, dtype)
        for shape in ((40,), (3, 5), (), (2, 3, 4))
      ]
      for share in (0.0, 0.1, 0.5, 0.77, 0.95, 1.0):
        got = prox(x, share)
        chex.assert_trees_all_equal_dtypes(got, x)
        for leaf, expected in zip(got, reference(x, share), strict=True):
          np.testing.assert_array_equal(np.asarray(leaf, np.float64), expected)


def test_leaves_of_different_precision_are_ranked_together():
  x = {"a": jnp.array([1.0, 3.0], jnp.bfloat16), "b": jnp.array([2.0, 1.001])}
  got = jax.jit(rvsm_jax.cardinality(0.25, scope="all").prox)(x, 1.0)
  chex.assert_trees_all_equal_dtypes(got, x)
  np.testing.assert_array_equal(np.asarray(got["a"], np.float32), [0, 3])
  np.testing.assert_array_equal(got["b"], x["b"])


def test_one_array_is_a_tree():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(30, 7)), jnp.float32)

  @jax.jit
  def both(share):
    leaf, joint = (
      rvsm_jax.cardinality(share, scope=scope) for scope in ("leaf", "all")
    )
    u = leaf.prox(x, 1.0)
    values = [(leaf.value(y), joint.value(y)) for y in (x, u)]
    return (u, joint.prox(x, 1.0)), *values

  for share in (0.0, 0.3, 0.9):
    for leaf, joint in both(share):
      np.testing.assert_array_equal(joint, leaf)


def test_value_counts_all_leaves():
  full, empty = jnp.ones(6), jnp.zeros(2)
  assert rvsm_jax.cardinality(0.25, scope="all").value([full, empty]) == 0
  assert rvsm_jax.cardinality(0.26, scope="all").value([full, empty]) == jnp.inf


def test_no_step_nan_and_infinity_pass_through():
  x = [jnp.array([jnp.nan, 1.0, 2.0]), jnp.array([-jnp.inf, 0.5])]
  prox = jax.jit(rvsm_jax.cardinality(0.4, scope="all").prox)
  chex.assert_trees_all_equal(prox(x, 0.0), x)
  nan, infinite = prox(x, 1.0)
  np.testing.assert_array_equal(nan, [jnp.nan, 0, 2])
  np.testing.assert_array_equal(infinite, [-jnp.inf, 0])


def test_a_path_of_shares_by_vmap():
  x = kernels(tree())
  shares = jnp.array([0.0, 0.25, 0.75])
  prox = jax.vmap(lambda s: rvsm_jax.cardinality(s, scope="all").prox(x, 1.0))
  got = jax.jit(prox)(shares)
  for i, share in enumerate(shares):
    zeros = rvsm_jax.sparsity([leaf[i] for leaf in got])
    assert zeros == share


@pytest.mark.parametrize(
  ("name", "dtype"),
  in_part(
    [*((name, "float32") for name in CHAINS), ("rvsm", "bfloat16")],
    *(("after adam", "float32"), ("rvsm", "bfloat16")),
  ),
)
def test_every_transformation_keeps_the_budget_of_all_leaves(name, dtype):
  tx, params = CHAINS[name], tree(dtype=dtype)
  state, update = tx.init(params), jax.jit(tx.update)
  for seed in (1, 2):
    updates, state = update(tree(seed, dtype), state, params)
    params = optax.apply_updates(params, updates)
  chex.assert_trees_all_equal_dtypes(params, tree(dtype=dtype))
  sparse = params
  if name in ("rvsm", "jacobi", "admm"):
    sparse = rvsm_jax.sparse_params(state, params)
  assert rvsm_jax.sparsity(kernels(sparse)) == 0.75
  shares = [rvsm_jax.sparsity(leaf) for leaf in kernels(sparse)]
  # The smaller weights of the first layer pay.
  assert shares[0] > 0.75 > shares[1]
  assert rvsm_jax.sparsity(sparse["a"]["bias"]) == 0


@pytest.mark.slow
def test_rvsm_keeps_u_the_map_of_w():
  tx, params = CHAINS["rvsm"], tree()
  updates, state = jax.jit(tx.update)(tree(1), jax.jit(tx.init)(params), params)
  params = optax.apply_updates(params, updates)
  u = rvsm_jax.sparse_params(state, params)
  chex.assert_trees_all_equal(kernels(u), jax.jit(ALL.prox)(kernels(params), 1.0))


@pytest.mark.slow
def test_without_u_as_with_it():
  params, grads = tree(), tree(1)
  results = []
  for carry_u in (True, False):
    tx = rvsm_jax.rvsm_sgd(LR, ALL, lam=1.0, beta=1.0, carry_u=carry_u, **KERNELS)
    results.append(
      jax.jit(lambda tx=tx: tx.update(grads, tx.init(params), params))()[0]
    )
  chex.assert_trees_all_close(*results, rtol=1e-6)


def test_leaves_without_an_update_stay_out_of_it():
  tx, params = CHAINS["proximal"], tree()
  grads = tree(1) | {"b": {"kernel": None}}
  updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  assert updates["b"]["kernel"] is None
  assert jnp.sum(params["a"]["kernel"] + updates["a"]["kernel"] == 0) == 18


def test_the_gradient_of_the_indicator_is_zero():
  tx = rvsm_jax.add_penalty_gradient(ALL, 1.0, **KERNELS)
  updates, _ = tx.update(tree(1), tx.init(tree()), tree())
  chex.assert_trees_all_equal(updates, tree(1))


def test_the_lagrangian_has_one_value_for_all():
  w, kwargs = kernels(tree()), {"lam": 1.0, "beta": 2.0}
  u = jax.jit(ALL.prox)(w, 1.0)
  distance = sum(jnp.sum(jnp.square(a - b)) for a, b in zip(w, u, strict=True))
  got = rvsm_jax.lagrangian(3.0, ALL, w, u, **kwargs)
  np.testing.assert_allclose(got, 3 + distance, rtol=1e-6)
  assert rvsm_jax.lagrangian(3.0, ALL, w, w, **kwargs) == jnp.inf


def test_the_ramp_by_injection():
  @optax.inject_hyperparams
  def pruned(sparsity):
    penalty = rvsm_jax.cardinality(sparsity, scope="all")
    return rvsm_jax.proximal_sgd(LR, penalty, lam=1.0, **KERNELS)

  tx, params = pruned(rvsm_jax.sparsity_schedule(0.75, 4)), tree()
  state, update = tx.init(params), jax.jit(tx.update)
  for count in range(6):
    updates, state = update(tree(count + 1), state, params)
    params = optax.apply_updates(params, updates)
    share = rvsm_jax.sparsity_schedule(0.75, 4)(count)
    zeros = sum(jnp.sum(leaf == 0) for leaf in kernels(params))
    assert zeros == np.ceil(36 * float(share) * (1 - 1e-6))


# What travels between devices, and what the program makes

SPECS = {"w1": P("x", "y"), "w2": P(None, "x"), "w3": P()}
SHAPES = {"w1": (64, 32), "w2": (16, 64), "w3": (32, 8)}
COLLECTIVE = re.compile(
  r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
)


@both_axis_types
@pytest.mark.slow
def test_sharded_leaves_give_the_same_and_only_counts_travel(axis_type):
  rng = np.random.default_rng(0)
  arrays = {
    name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()
  }
  grid = jax.make_mesh((4, 2), ("x", "y"), (axis_type,) * 2, devices=jax.devices("cpu"))
  tx = rvsm_jax.rvsm(LR, ALL, lam=1.0, beta=1.0)

  def step(params):
    updates, state = tx.update(params, tx.init(params), params)
    return optax.apply_updates(params, updates), state

  expected = jax.jit(step)(arrays)
  with jax.set_mesh(grid):
    placed = {
      name: jax.device_put(leaf, NamedSharding(grid, SPECS[name]))
      for name, leaf in arrays.items()
    }
    compiled = jax.jit(step).lower(placed).compile()
    got = compiled(placed)
  chex.assert_trees_all_close(got, expected, rtol=1e-6)
  for name, leaf in got[0].items():
    assert leaf.sharding.is_equivalent_to(placed[name].sharding, leaf.ndim)
  found = COLLECTIVE.findall(compiled.as_text())
  assert found
  for types, _ in found:
    for shape in re.findall(r"\[([\d,]*)\]", types):
      assert np.prod([int(n) for n in re.findall(r"\d+", shape)]) <= 32


def test_no_array_of_all_weights_is_made():
  params = {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in SHAPES.items()}
  tx = CHAINS["admm"]
  state = jax.eval_shape(tx.init, params)
  text = jax.jit(tx.update).lower(params, state, params).compile().as_text()
  sizes = [
    int(np.prod([int(n) for n in shape.split(",")]))
    for shape in re.findall(r"\w+\[([\d,]+)\]", text)
  ]
  assert max(sizes) == max(map(np.prod, SHAPES.values()))
  assert " sort(" not in text
  joined = re.findall(r"\w+\[(\d+)\]\S* concatenate\(", text)
  assert len(joined) == text.count(" concatenate(")
  assert all(int(size) < 10 for size in joined)


# Errors


def test_errors_name_what_is_wrong():
  with pytest.raises(ValueError, match=r"scope must be one of .* got 'whole'"):
    rvsm_jax.cardinality(0.5, scope="whole")
  with pytest.raises(ValueError, match=r"step must be a scalar .* got shape \(2,\)"):
    ALL.prox([jnp.ones(2)], jnp.ones(2))
  with pytest.raises(ValueError, match="step must be a number >= 0, got -1"):
    ALL.prox([jnp.ones(2)], -1.0)
  with pytest.raises(TypeError, match="got dtype int32"):
    ALL.prox([jnp.ones(2), jnp.ones(2, jnp.int32)], 1.0)
  with pytest.raises(ValueError, match="one array at a time for proximal_adam"):
    rvsm_jax.proximal_adam(LR, rvsm_jax.scaled(ALL, 2.0), lam=1.0)
  huge = [jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)]
  with pytest.raises(ValueError, match=r"2147483648 entries.*jax_enable_x64"):
    jax.eval_shape(lambda x: ALL.prox(x, 1.0), huge)
