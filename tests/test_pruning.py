"""Gradual magnitude pruning, and training on a support."""

import itertools

import chex
from helpers import in_part
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import rvsm_jax

LR = 0.1
OPTIMIZERS = {
  "momentum": optax.sgd(LR, momentum=0.9),
  "adamw": optax.adamw(LR, weight_decay=0.1),
  "lion": optax.lion(LR, weight_decay=0.1),
}
OPTIMIZERS_AND_DTYPES = in_part(
  [*((name, "float32") for name in OPTIMIZERS), ("momentum", "bfloat16")],
  ("momentum", "bfloat16"),
)


def tree(seed=0, dtype=np.float32, shape=(8, 6)):
  rng = np.random.default_rng(seed)
  return {
    "a": {
      "kernel": jnp.asarray(rng.normal(size=shape), dtype),
      "bias": jnp.asarray(rng.normal(size=6), dtype),
    },
    "b": {"kernel": jnp.asarray(3 * rng.normal(size=(6, 2)), dtype)},
  }


def kernels(params):
  return [params["a"]["kernel"], params["b"]["kernel"]]


def train(tx, params, steps, dtype=np.float32):
  """The params after each update, by gradients that are different in each."""
  state, update = tx.init(params), jax.jit(tx.update)
  history = [params]
  for seed in range(1, steps + 1):
    updates, state = update(tree(seed, dtype), state, params)
    params = optax.apply_updates(params, updates)
    history.append(params)
  return history


# keep_zeros


@pytest.mark.parametrize(("optimizer", "dtype"), OPTIMIZERS_AND_DTYPES)
def test_zeros_stay_and_the_rest_trains_as_without(optimizer, dtype):
  halved = jax.jit(rvsm_jax.cardinality(0.5, scope="all").prox)
  params = halved(tree(dtype=dtype), 1.0)
  optimizer = OPTIMIZERS[optimizer]
  zeros = jax.tree.map(lambda w: w == 0, params)
  for new in train(optax.chain(optimizer, rvsm_jax.keep_zeros()), params, 4, dtype):
    chex.assert_trees_all_equal_dtypes(new, params)
    chex.assert_trees_all_equal(jax.tree.map(lambda w: w == 0, new), zeros)
  free = train(optimizer, params, 4, dtype)[-1]
  chex.assert_trees_all_equal(
    new, jax.tree.map(lambda w, zero: jnp.where(zero, 0, w), free, zeros)
  )


def test_keep_zeros_only_where_the_mask_says():
  params = jax.tree.map(jnp.zeros_like, tree())
  tx = optax.chain(optax.sgd(LR), rvsm_jax.keep_zeros(rvsm_jax.kernels))
  new = train(tx, params, 1)[-1]
  assert rvsm_jax.sparsity(kernels(new)) == 1
  assert rvsm_jax.sparsity(new["a"]["bias"]) == 0


def test_keep_zeros_hides_no_nan_and_lets_none_pass():
  tx = rvsm_jax.keep_zeros()
  params = {"w": jnp.zeros(2), "none": jnp.zeros(2)}
  updates = {"w": jnp.array([jnp.nan, 1.0]), "none": None}
  got, _ = tx.update(updates, tx.init(params), params)
  np.testing.assert_array_equal(got["w"], [jnp.nan, 0])
  assert got["none"] is None


# magnitude_pruning


@pytest.mark.parametrize("scope", ["leaf", "all"])
@pytest.mark.parametrize(("optimizer", "dtype"), OPTIMIZERS_AND_DTYPES)
def test_the_ramp_is_followed_and_no_zero_comes_back(optimizer, dtype, scope):
  ramp, every = rvsm_jax.sparsity_schedule(0.75, 6, begin=1), 2
  prune = rvsm_jax.magnitude_pruning(ramp, scope=scope, every=every)
  history = train(
    optax.chain(OPTIMIZERS[optimizer], prune), tree(dtype=dtype), 10, dtype
  )
  sizes = [60] if scope == "all" else [48, 12]
  for count, (old, new) in enumerate(itertools.pairwise(history)):
    share = float(ramp(count // every * every))
    zeros = [int(jnp.sum(w == 0)) for w in kernels(new)]
    expected = [np.ceil(size * share * (1 - 1e-6)) for size in sizes]
    assert ([sum(zeros)] if scope == "all" else zeros) == expected
    for before, after in zip(kernels(old), kernels(new), strict=True):
      assert jnp.all(jnp.where(before == 0, after == 0, True))
    assert rvsm_jax.sparsity(new["a"]["bias"]) == 0
  chex.assert_trees_all_equal_dtypes(new, tree(dtype=dtype))


def test_the_largest_after_the_step_are_kept():
  params, grads = tree(), tree(1)
  tx = optax.chain(optax.sgd(LR), rvsm_jax.magnitude_pruning(0.6))
  updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  got = optax.apply_updates(params, updates)
  dense = jax.tree.map(lambda w, g: w - LR * g, params, grads)
  largest = jax.jit(rvsm_jax.cardinality(0.6, scope="all").prox)
  expected = largest(kernels(dense), 1.0)
  chex.assert_trees_all_close(kernels(got), expected, rtol=1e-6)


def test_between_prunings_it_is_keep_zeros():
  params = jnp.arange(12.0).reshape(3, 4) - 5
  params = jnp.where(abs(params) < 2, 0, params)
  tx = rvsm_jax.magnitude_pruning(0.9, every=3)
  state = tx.init(params)._replace(count=jnp.asarray(1))
  updates, state = jax.jit(tx.update)(jnp.ones((3, 4)), state, params)
  np.testing.assert_array_equal(updates, params != 0)
  assert state.count == 2


WRAPPERS = {
  "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
  "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
  "masked": lambda tx: optax.masked(tx, True),
  "named_chain": lambda tx: optax.named_chain(("prune", tx)),
}


@pytest.mark.parametrize("wrapper", in_part(WRAPPERS, "MultiSteps"))
def test_the_same_in_every_wrapper(wrapper):
  ramp = rvsm_jax.sparsity_schedule(0.75, 3)
  tx = optax.chain(optax.sgd(LR), rvsm_jax.magnitude_pruning(ramp, every=1))
  got = train(WRAPPERS[wrapper](tx), tree(), 4)[-1]
  chex.assert_trees_all_close(got, train(tx, tree(), 4)[-1], rtol=1e-6)


def test_mini_steps_do_not_count():
  tx = optax.chain(optax.sgd(LR), rvsm_jax.magnitude_pruning(0.75))
  steps = optax.MultiSteps(tx, 2).gradient_transformation()
  _, first, second = train(steps, tree(), 2)
  chex.assert_trees_all_equal(first, tree())
  assert rvsm_jax.sparsity(kernels(second)) == 0.75


def test_injected_hyperparameters():
  injected = optax.inject_hyperparams(rvsm_jax.magnitude_pruning, static_args=("mask",))
  ramp = rvsm_jax.sparsity_schedule(0.75, 3)
  got = train(injected(ramp, every=2, mask=rvsm_jax.kernels), tree(), 4)
  expected = train(rvsm_jax.magnitude_pruning(ramp, every=2), tree(), 4)
  chex.assert_trees_all_close(got, expected, rtol=1e-6)


def test_a_share_of_one_by_injection_and_no_implicit_promotion():
  tx = optax.inject_hyperparams(rvsm_jax.magnitude_pruning, static_args=("mask",))(1)
  assert rvsm_jax.sparsity(kernels(train(tx, tree(), 1)[-1])) == 1
  tx, params = rvsm_jax.magnitude_pruning(0.9), tree(dtype=jnp.bfloat16)
  with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
    jax.eval_shape(tx.update, params, tx.init(params), params)


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_and_donated_as_on_one_device(axis_type):
  grid = jax.make_mesh((4, 2), ("x", "y"), (axis_type,) * 2, devices=jax.devices("cpu"))
  tx = optax.chain(
    optax.sgd(LR, momentum=0.9),
    rvsm_jax.magnitude_pruning(rvsm_jax.sparsity_schedule(0.75, 3), every=2),
    rvsm_jax.keep_zeros(rvsm_jax.kernels),
  )

  def step(params, state):
    updates, state = tx.update(params, state, params)
    return optax.apply_updates(params, updates), state

  params = tree()
  expected, state = params, tx.init(params)
  for _ in range(3):
    expected, state = jax.jit(step)(expected, state)
  specs = {"a": {"kernel": P("x", "y"), "bias": P("y")}, "b": {"kernel": P(None, "y")}}
  with jax.set_mesh(grid):
    got = jax.tree.map(
      lambda w, spec: jax.device_put(w, NamedSharding(grid, spec)), params, specs
    )
    state, run = tx.init(got), jax.jit(step, donate_argnums=(0, 1))
    for _ in range(3):
      got, state = run(got, state)
  chex.assert_trees_all_close(got, expected, rtol=1e-6)
  spec = got["a"]["kernel"].sharding
  assert spec.is_equivalent_to(NamedSharding(grid, P("x", "y")), 2)


def test_map_params():
  tx = optax.chain(rvsm_jax.magnitude_pruning(0.5), rvsm_jax.keep_zeros())
  state = tx.init(tree())
  marked = optax.tree.map_params(
    tx, lambda _: "param", state, transform_non_params=lambda _: "other"
  )
  assert jax.tree.leaves(marked) == ["other"]


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ({"sparsity": 1.5}, r"sparsity must be a number in \[0, 1\], got 1.5"),
    ({"sparsity": "most"}, r"sparsity must be a number in \[0, 1\], got 'most'"),
    ({"scope": "each"}, "scope must be one of .* got 'each'"),
    ({"every": 0}, "every must be a whole number >= 1, got 0"),
    ({"every": 1.5}, "every must be a whole number >= 1, got 1.5"),
  ],
)
def test_bad_arguments(arguments, message):
  with pytest.raises((ValueError, TypeError), match=message):
    rvsm_jax.magnitude_pruning(**{"sparsity": 0.5, **arguments})


@pytest.mark.parametrize(
  ("name", "tx"),
  [
    ("keep_zeros", rvsm_jax.keep_zeros()),
    ("magnitude_pruning", rvsm_jax.magnitude_pruning(0.5, mask=None)),
  ],
)
def test_bad_params(name, tx):
  params = tree()
  with pytest.raises(ValueError, match=f"{name} needs params"):
    tx.update(params, tx.init(params))
  with pytest.raises(TypeError, match="got dtype int32"):
    tx.init({"w": jnp.ones(2, jnp.int32)})


def test_a_mask_that_selects_nothing():
  for tx in (rvsm_jax.keep_zeros(rvsm_jax.kernels), rvsm_jax.magnitude_pruning(0.5)):
    with pytest.raises(ValueError, match="mask selects none"):
      tx.init({"bias": jnp.ones(3)})
