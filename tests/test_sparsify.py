"""The recipe: its share with every optimizer and in every wrapper, and its promises."""

import functools

import chex
from flax import nnx
from helpers import in_part
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import rvsm_jax
from rvsm_jax import _sets

LR = 0.05
STEPS = 40
OPTIMIZERS = {
  "momentum": optax.sgd(LR, momentum=0.9, nesterov=True),
  "adam": optax.adam(LR),
  "adamw": optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(optax.cosine_decay_schedule(LR, STEPS), weight_decay=0.1),
  ),
  "lion": optax.lion(LR, weight_decay=0.1),
}
if hasattr(optax.contrib, "muon"):
  OPTIMIZERS["muon"] = optax.contrib.muon(LR)


def network(params, x):
  hidden = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"])
  return hidden @ params["b"]["kernel"] + params["b"]["bias"]


def draw(seed=0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)

  def array(*shape):
    return jnp.asarray(rng.normal(size=shape) / 4, dtype)

  return {
    "a": {"kernel": array(16, 40), "bias": array(40)},
    "b": {"kernel": array(40, 4), "bias": array(4)},
  }


def gradients(params, batch):
  """Of a network that has to follow another one."""
  x = jax.random.normal(jax.random.fold_in(jax.random.key(0), batch), (16, 16))

  def loss(params):
    return jnp.mean((network(params, x) - network(draw(1), x)) ** 2)

  return jax.grad(loss)(params)


def train(tx, params, steps=STEPS, gradients=gradients):
  """All params, by one compiled program."""

  def step(carry, batch):
    params, state = carry
    updates, state = tx.update(gradients(params, batch), state, params)
    params = optax.apply_updates(params, updates)
    return (params, state), params

  def run(params):
    return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(steps))

  (params, state), history = jax.jit(run)(params)
  return params, state, history


def kernels(params):
  return [params["a"]["kernel"], params["b"]["kernel"]]


def zeros(params):
  return sum(int(jnp.sum(w == 0)) for w in kernels(params))


@pytest.mark.parametrize(
  ("optimizer", "dtype"),
  in_part(
    [*((name, "float32") for name in OPTIMIZERS), ("momentum", "bfloat16")],
    ("momentum", "bfloat16"),
  ),
)
def test_the_share_is_reached_and_no_zero_comes_back(optimizer, dtype):
  tx = rvsm_jax.sparsify(OPTIMIZERS[optimizer], 0.9, steps=STEPS)

  def cast(params, batch):
    return optax.tree.cast(gradients(params, batch), dtype)

  params, state, history = train(tx, draw(dtype=dtype), STEPS + 5, cast)
  chex.assert_trees_all_equal_shapes_and_dtypes(params, draw(dtype=dtype))
  sparse = rvsm_jax.sparse_params(state, params)
  chex.assert_trees_all_equal(sparse, params)
  # In half precision a weight can come to be zero by itself.
  assert 720 <= zeros(sparse) <= 720 + (dtype == "bfloat16")
  assert all(rvsm_jax.sparsity(sparse[layer]["bias"]) == 0 for layer in "ab")
  revived = 0
  for w in kernels(history):
    assert jnp.all((w[36] == 0) == (w[-1] == 0))
    # The rest still trains.
    assert jnp.any(w[36] != w[-1])
    revived += jnp.sum((w[:35] == 0) & (w[1:36] != 0))
  assert revived


@functools.cache
def with_adam():
  return train(rvsm_jax.sparsify(OPTIMIZERS["adam"], 0.9, steps=STEPS), draw())


@pytest.mark.parametrize("sparsity", [0.99, 1.0])
@pytest.mark.slow
def test_every_share(sparsity):
  params, *_ = train(
    rvsm_jax.sparsify(OPTIMIZERS["adam"], sparsity, steps=8), draw(), 8
  )
  assert zeros(params) == np.ceil(800 * sparsity * (1 - 1e-6))


@pytest.mark.parametrize("steps", in_part([1, 3], 1))
def test_as_short_as_one_step(steps):
  tx = rvsm_jax.sparsify(OPTIMIZERS["momentum"], 0.9, steps=steps)
  assert zeros(train(tx, draw(), steps)[0]) == 720


def test_the_ramp_is_cubic_and_ends_at_half():
  *_, history = with_adam()
  ramp = rvsm_jax.sparsity_schedule(0.9, round(0.4 * STEPS), begin=round(0.1 * STEPS))
  for count in range(STEPS):
    got = zeros(jax.tree.map(lambda w, count=count: w[count], history))
    assert abs(got - 800 * float(ramp(count))) < 1.01


def test_half_of_the_update_for_weights_that_are_zero():
  tx = rvsm_jax.sparsify(optax.sgd(1.0), 0.5, steps=1000)
  params = {"kernel": jnp.array([[2.0, 0.0]])}
  state = tx.init(params)._replace(count=jnp.asarray(500))
  grads = {"kernel": jnp.array([[0.5, 0.5]])}
  updates, state = tx.update(grads, state, params)
  np.testing.assert_array_equal(updates["kernel"], [[-0.5, 0]])
  np.testing.assert_array_equal(state.latent["kernel"], [[1.5, -0.25]])


@pytest.mark.slow
def test_a_layer_that_starts_at_zero_trains():
  params = draw() | {"b": {"kernel": jnp.zeros((40, 4)), "bias": jnp.zeros(4)}}
  params, *_ = train(rvsm_jax.sparsify(OPTIMIZERS["adam"], 0.9, steps=STEPS), params)
  assert zeros(params) == 720
  assert jnp.sum(params["b"]["kernel"] != 0) >= 2


@pytest.mark.slow
def test_no_layer_loses_all_of_its_weights():
  params = draw()
  params["a"]["kernel"] *= 1e-6
  tx = rvsm_jax.sparsify(optax.sgd(1e-9), 0.9, steps=4)
  params, *_ = train(tx, params, 4)
  # A tenth of the tenth that it would have of 640.
  assert jnp.sum(params["a"]["kernel"] != 0) == 7
  assert zeros(params) == 720


@pytest.mark.parametrize("sparsity", [0.0, 0.9, 0.995])
@pytest.mark.slow
def test_the_floor_changes_no_share_and_keeps_the_largest_of_each(sparsity):
  rng = np.random.default_rng(0)
  scales = (1.0, 1e-3, 1e-6)
  x = [jnp.asarray(s * rng.normal(size=200), jnp.float32) for s in scales]
  floor = 0.25
  kept = jax.jit(lambda x: _sets.largest(x, sparsity, floor))(x)
  total = 600 - np.ceil(600 * sparsity * (1 - 1e-9))
  assert sum(int(jnp.sum(y != 0)) for y in kept) == total
  own = np.ceil(floor * total / 3) if (1 - floor) * total >= 3 else 0
  for before, after in zip(x, kept, strict=True):
    number = int(jnp.sum(after != 0))
    assert number >= own
    order = jnp.argsort(-abs(before))
    np.testing.assert_array_equal(after[order[:number]], before[order[:number]])
  without = jax.jit(lambda x: _sets.largest(x, sparsity, 0.0))(x)
  expected = jax.jit(rvsm_jax.cardinality(sparsity, scope="all").prox)(x, 1.0)
  chex.assert_trees_all_equal(without, expected)


# Inside Optax and Flax


@pytest.mark.slow
def test_mini_steps_do_not_count_and_a_refused_step_changes_nothing():
  tx = rvsm_jax.sparsify(OPTIMIZERS["adam"], 0.9, steps=STEPS)
  steps = optax.MultiSteps(tx, 2).gradient_transformation()

  def twice(params, batch):
    return gradients(params, batch // 2)

  got, *_ = train(steps, draw(), 2 * STEPS, twice)
  assert zeros(got) == 720

  def sometimes_nan(params, batch):
    return jax.tree.map(
      lambda g: jnp.where(batch % 2 == 0, jnp.nan, g), gradients(params, batch // 2)
    )

  guarded, *_ = train(optax.apply_if_finite(tx, 3), draw(), 2 * STEPS, sometimes_nan)
  expected, *_ = with_adam()
  for params in (got, guarded):
    for a, b in zip(kernels(params), kernels(expected), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_injected_hyperparameters():
  injected = optax.inject_hyperparams(rvsm_jax.sparsify, static_args=("mask",))
  adam = optax.inject_hyperparams(optax.adam)(LR)
  tx = injected(adam, 0.9, steps=STEPS, mask=rvsm_jax.kernels)
  params, state, _ = train(tx, draw())
  assert zeros(rvsm_jax.sparse_params(state, params)) == 720
  chex.assert_trees_all_close(params, with_adam()[0], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_flax_model():
  model = nnx.Sequential(
    nnx.Linear(16, 40, rngs=nnx.Rngs(0)), nnx.Linear(40, 4, rngs=nnx.Rngs(1))
  )
  tx = rvsm_jax.sparsify(optax.adamw(LR), 0.9, steps=10)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

  @nnx.jit
  def step(model, optimizer, x):
    optimizer.update(model, nnx.grad(lambda m: jnp.mean((m(x) - 1) ** 2))(model))

  for seed in range(10):
    step(model, optimizer, jax.random.normal(jax.random.key(seed), (8, 16)))
  params = rvsm_jax.sparse_params(optimizer.opt_state, nnx.state(model, nnx.Param))
  leaves = [w for w in jax.tree.leaves(params) if w.ndim == 2]
  assert sum(int(jnp.sum(w == 0)) for w in leaves) == 720


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_and_donated_as_on_one_device(axis_type):
  grid = jax.make_mesh((4, 2), ("x", "y"), (axis_type,) * 2, devices=jax.devices("cpu"))
  specs = {
    "a": {"kernel": P("x", "y"), "bias": P("y")},
    "b": {"kernel": P(None, "x"), "bias": P()},
  }
  tx = rvsm_jax.sparsify(OPTIMIZERS["adam"], 0.9, steps=4)

  @jax.jit(donate_argnums=(0, 1))
  def step(params, state):
    updates, state = tx.update(params, state, params)
    return optax.apply_updates(params, updates), state

  def run(params):
    state = tx.init(params)
    types = jax.tree.map(jax.typeof, (params, state))
    for _ in range(4):
      params, state = step(params, state)
    assert jax.tree.map(jax.typeof, (params, state)) == types
    return params

  expected = run(draw())
  with jax.set_mesh(grid):
    placed = jax.tree.map(
      lambda w, spec: jax.device_put(w, NamedSharding(grid, spec)), draw(), specs
    )
    got = run(placed)
  assert zeros(got) == 720
  chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


def test_map_params_empty_params_and_leaves_without_a_gradient():
  tx = rvsm_jax.sparsify(optax.sgd(LR, momentum=0.9), 0.5, steps=1)
  state = tx.init(draw())
  marked = optax.tree.map_params(
    tx, lambda _: "param", state, transform_non_params=lambda _: "other"
  )
  assert jax.tree.leaves(marked) == ["other"] + ["param"] * 6
  assert tx.update({}, tx.init({}), {})[0] == {}
  plain = rvsm_jax.sparsify(optax.sgd(LR), 0.5, steps=1)
  grads = draw(1) | {"b": {"kernel": None, "bias": None}}
  for count in (0, 1):
    state = plain.init(draw())._replace(count=jnp.asarray(count))
    updates, _ = plain.update(grads, state, draw())
    assert updates["b"]["kernel"] is None
    share = jnp.mean(draw()["a"]["kernel"] + updates["a"]["kernel"] == 0)
    assert share == (0.5 if count == 0 else 0)


def test_no_implicit_promotion_in_half_precision():
  tx, params = rvsm_jax.sparsify(optax.sgd(LR), 0.9, steps=9), draw(dtype=jnp.bfloat16)
  with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
    jax.eval_shape(tx.update, params, tx.init(params), params)


def test_bad_arguments():
  sgd = optax.sgd(LR)
  for sparsity in (-0.1, 95, float("nan")):
    with pytest.raises(ValueError, match=r"sparsity must be a number in \[0, 1\]"):
      rvsm_jax.sparsify(sgd, sparsity, steps=10)
  for steps in (0, 2.5):
    with pytest.raises(ValueError, match="steps must be a whole number >= 1"):
      rvsm_jax.sparsify(sgd, 0.9, steps=steps)
  with pytest.raises(TypeError, match=r"optimizer must be .* got 0\.1"):
    rvsm_jax.sparsify(0.1, 0.9, steps=10)
  tx = rvsm_jax.sparsify(sgd, 0.9, steps=10)
  with pytest.raises(ValueError, match="sparsify needs params"):
    tx.update(draw(), tx.init(draw()))
  with pytest.raises(ValueError, match="mask selects none"):
    tx.init({"bias": jnp.ones(3)})
