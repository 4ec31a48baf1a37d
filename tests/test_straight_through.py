"""Latent weights and their sparse image: exact params, and methods it is equal to."""

import functools

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
STEP = 0.3
# Maps that keep an entry or send it to zero.
KEEPING = {
  "l0": rvsm_jax.l0(),
  "group_l0": rvsm_jax.scaled(rvsm_jax.group_l0(), 20.0),
  "cardinality": rvsm_jax.cardinality(0.6),
  "cardinality of all": rvsm_jax.cardinality(0.6, scope="all"),
  "a user's": rvsm_jax.Penalty(
    lambda x: jnp.zeros(()), lambda x, step: jnp.where(abs(x) > step, x, 0)
  ),
}
SHRINKING = {
  "l1": rvsm_jax.l1(),
  "transformed_l1": rvsm_jax.transformed_l1(0.5),
  "group_lasso": rvsm_jax.group_lasso(),
}
OPTIMIZERS = {
  "sgd": optax.sgd(LR),
  "momentum": optax.sgd(LR, momentum=0.9),
  "adamw": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LR)),
  "lion": optax.lion(LR),
}


def wrap(optimizer, penalty=KEEPING["l0"], mask=rvsm_jax.kernels, step=STEP):
  return rvsm_jax.straight_through(optimizer, penalty, step=step, mask=mask)


def draw(seed, dtype=np.float32):
  rng = np.random.default_rng(seed)

  def array(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  return {
    "a": {"kernel": array(80, 6), "bias": array(6)},
    "b": {"kernel": array(6, 8)},
  }


def path(tx, params, steps=4, dtype=np.float32, *, jit=True):
  """The params and states after each update."""

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  step, state = jax.jit(step) if jit else step, tx.init(params)
  for seed in range(1, steps + 1):
    params, state = step(params, state, draw(seed, dtype))
    yield params, state


def end(tx, params, steps=4, dtype=np.float32):
  *_, last = path(tx, params, steps, dtype)
  return last


@functools.partial(jax.jit, static_argnums=0)
def image(penalty, latent):
  """The map of the selected leaves, of all together where it takes them so."""
  leaves = jax.tree.leaves(latent)
  if penalty is KEEPING["cardinality of all"]:
    return penalty.prox(leaves, STEP)
  return [penalty.prox(leaf, STEP) for leaf in leaves]


def kernels(params):
  return [params["a"]["kernel"], params["b"]["kernel"]]


# The params are the image of the latent weights


@pytest.mark.parametrize(
  ("penalty", "dtype"),
  [
    ("l0", "float16"),
    ("l0", "float64"),
    pytest.param("group_l0", "bfloat16", marks=pytest.mark.slow),
    pytest.param("cardinality", "bfloat16", marks=pytest.mark.slow),
    ("cardinality of all", "float32"),
    pytest.param("a user's", "float32", marks=pytest.mark.slow),
  ],
)
def test_params_are_exactly_the_image_of_the_latent_weights(penalty, dtype):
  with jax.enable_x64(dtype == "float64"):
    tx = wrap(OPTIMIZERS["momentum"], KEEPING[penalty])
    for params, state in path(tx, draw(0, dtype), 4, dtype):
      chex.assert_trees_all_equal(
        kernels(params), image(KEEPING[penalty], state.latent)
      )
      assert 0 < rvsm_jax.sparsity(kernels(params)) < 1
      chex.assert_trees_all_equal_shapes_and_dtypes(params, draw(0, dtype))


@pytest.mark.parametrize("optimizer", in_part(OPTIMIZERS, "sgd"))
def test_so_with_every_optimizer_compiled_or_not(optimizer):
  for jit in (True, False):
    for params, state in path(wrap(OPTIMIZERS[optimizer]), draw(0), 3, jit=jit):
      chex.assert_trees_all_equal(kernels(params), image(KEEPING["l0"], state.latent))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_number_that_an_update_leads_to_it_leads_to_again(dtype):
  # What makes the params exact, over six decades of weights and of updates.
  rng = np.random.default_rng(0)
  old, new = 10 ** rng.uniform(-3, 3, (2, 200_000)) * rng.choice([-1, 1], (2, 200_000))
  old, new = jnp.asarray(old, dtype), jnp.asarray(new, dtype)
  everything = rvsm_jax.straight_through(
    optax.sgd(1.0), rvsm_jax.l0(), step=0.0, mask=None
  )

  @jax.jit
  def to(target, w):
    state = everything.init(w)
    updates, state = everything.update(w - target, state, w)
    return optax.apply_updates(w, updates), state.latent

  got, latent = to(new, old)
  assert jnp.any(got != new)
  np.testing.assert_array_equal(got, latent)
  np.testing.assert_allclose(
    np.asarray(got, float),
    np.asarray(new, float),
    rtol=float(jnp.finfo(dtype).eps),
    atol=2 * float(jnp.finfo(dtype).eps) * 1e3,
  )


@pytest.mark.parametrize(
  ("penalty", "dtype"),
  in_part(
    [*((p, "float32") for p in SHRINKING), ("l1", "bfloat16")],
    *(("transformed_l1", "float32"), ("l1", "bfloat16")),
  ),
)
def test_maps_that_shrink_agree_to_one_rounding(penalty, dtype):
  tx, old = wrap(OPTIMIZERS["momentum"], SHRINKING[penalty]), draw(0, dtype)
  for params, state in path(tx, old, 4, dtype):
    expected = image(SHRINKING[penalty], state.latent)
    for w, u, before in zip(kernels(params), expected, kernels(old), strict=True):
      np.testing.assert_array_equal(w == 0, u == 0)
      ulp = float(jnp.finfo(dtype).eps) * np.maximum(abs(before), abs(u))
      assert np.all(np.asarray(abs(w - u), float) <= 1.01 * np.asarray(ulp, float))
    old = params


def test_the_first_update_leads_from_dense_params_to_sparse_ones():
  params = draw(0)
  tx = wrap(optax.sgd(0.0))
  state = tx.init(params)
  chex.assert_trees_all_equal(kernels(state.latent), kernels(params))
  assert rvsm_jax.sparse_params(state, params) == params
  expected = image(KEEPING["l0"], kernels(params))
  params, _ = end(tx, params, 1)
  chex.assert_trees_all_equal(kernels(params), expected)


# Methods that it is


def test_sgd_and_l1_are_the_linearized_bregman_iteration():
  rng = np.random.default_rng(0)
  design = rng.normal(size=(20, 50)) / np.sqrt(20)
  target = design @ (rng.normal(size=50) * (rng.random(50) < 0.1))
  rate, threshold = 0.2, 1.0
  tx = rvsm_jax.straight_through(optax.sgd(rate), rvsm_jax.l1(), step=threshold)
  u = jnp.zeros(50)
  state, update = tx.init(u), jax.jit(tx.update)
  latent, sparse = np.zeros(50), np.zeros(50)
  for _ in range(300):
    latent = latent - rate * design.T @ (design @ sparse - target)
    sparse = np.sign(latent) * np.maximum(abs(latent) - threshold, 0)
    gradient = jnp.asarray(design, u.dtype).T @ (design @ u - target).astype(u.dtype)
    updates, state = update(gradient, state, u)
    u = optax.apply_updates(u, updates)
  np.testing.assert_allclose(u, sparse, atol=1e-6)
  assert 0 < np.sum(sparse != 0) < 25


def test_without_a_step_it_is_the_optimizer():
  for optimizer in (OPTIMIZERS["momentum"], OPTIMIZERS["adamw"]):
    got, _ = end(wrap(optimizer, step=0.0), draw(0))
    expected, _ = end(optimizer, draw(0))
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_leaves_outside_the_mask_are_those_of_the_optimizer_bit_for_bit(optimizer):
  inner = OPTIMIZERS[optimizer]
  ours = path(wrap(inner, mask=rvsm_jax.by_path("b/kernel")), draw(0))
  for (got, state), (expected, _) in zip(ours, path(inner, draw(0)), strict=True):
    chex.assert_trees_all_equal(got["a"], expected["a"])
    assert len(jax.tree.leaves(state.latent)) == 1


def test_the_optimizer_sees_the_latent_weights_and_what_else_update_is_given():
  seen = []

  def update(updates, state, params=None, **extra_args):
    seen.append((params, extra_args))
    return updates, state

  inner = optax.GradientTransformationExtraArgs(lambda params: (), update)
  tx, params = wrap(inner), draw(0)
  state = tx.init(params)
  updates, state = tx.update(draw(1), state, params, value=3.0)
  params = optax.apply_updates(params, updates)
  _, old = tx.update(draw(2), state, params, value=4.0)
  (first, extra), (second, _) = seen
  chex.assert_trees_all_equal(first, draw(0))
  chex.assert_trees_all_equal(kernels(second), kernels(state.latent))
  chex.assert_trees_all_equal(second["a"]["bias"], params["a"]["bias"])
  assert extra == {"value": 3.0}
  assert old.count == 2


def test_a_dropped_weight_comes_back_by_its_gradient():
  tx = rvsm_jax.straight_through(optax.sgd(0.25), rvsm_jax.l0(), step=0.5)
  params = jnp.array([0.75])
  state = tx.init(params)
  values = []
  for _ in range(3):
    updates, state = tx.update(jnp.array([-1.0]), state, params)
    params = optax.apply_updates(params, updates)
    values.append(float(params[0]))
  assert values == [0.0, 1.25, 1.5]


def test_a_schedule_is_taken_at_the_updates_before():
  schedule = optax.linear_schedule(0.0, 0.4, 4)
  for count, (params, state) in enumerate(
    path(wrap(optax.sgd(LR), step=schedule), draw(0))
  ):
    assert state.count == count + 1
    expected = [rvsm_jax.l0().prox(v, schedule(count)) for v in kernels(state.latent)]
    chex.assert_trees_all_equal(kernels(params), expected)


# Inside Optax


WRAPPERS = {
  "MultiSteps": lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
  "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 3),
  "masked": lambda tx: optax.masked(tx, True),
  "partition": lambda tx: optax.partition(
    {"a": tx, "b": tx},
    lambda p: jax.tree.map_with_path(lambda path, _: path[0].key, p),
  ),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_same_in_every_wrapper(wrapper):
  tx = wrap(OPTIMIZERS["momentum"])
  for (got, state), (expected, _) in zip(
    path(WRAPPERS[wrapper](tx), draw(0)), path(tx, draw(0)), strict=True
  ):
    chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-7)
    chex.assert_trees_all_equal(rvsm_jax.sparse_params(state, got), got)
    latent = [
      leaf
      for at, leaf in jax.tree.leaves_with_path(state)
      if "latent" in jax.tree_util.keystr(at)
    ]
    chex.assert_trees_all_equal(kernels(got), image(KEEPING["l0"], latent))


def test_mini_steps_leave_the_params_and_a_step_that_is_refused_the_latent_weights():
  tx = wrap(OPTIMIZERS["momentum"])
  first, second = (
    p for p, _ in path(optax.MultiSteps(tx, 2).gradient_transformation(), draw(0), 2)
  )
  chex.assert_trees_all_equal(first, draw(0))
  mean = jax.tree.map(lambda a, b: (a + b) / 2, draw(1), draw(2))
  updates, _ = tx.update(mean, tx.init(draw(0)), draw(0))
  chex.assert_trees_all_close(second, optax.apply_updates(draw(0), updates), rtol=1e-5)

  guarded, params = optax.apply_if_finite(tx, 3), draw(0)
  state = guarded.init(params)
  bad = jax.tree.map(lambda g: g * jnp.nan, draw(1))
  updates, new = guarded.update(bad, state, params)
  chex.assert_trees_all_equal(optax.apply_updates(params, updates), params)
  chex.assert_trees_all_equal(new.inner_state, state.inner_state)


def test_injected_hyperparameters():
  injected = optax.inject_hyperparams(rvsm_jax.straight_through, static_args=("mask",))
  schedule = optax.linear_schedule(0.0, 0.4, 4)
  tx = injected(
    OPTIMIZERS["momentum"], rvsm_jax.l0(), step=schedule, mask=rvsm_jax.kernels
  )
  got, _ = end(tx, draw(0))
  expected, _ = end(wrap(OPTIMIZERS["momentum"], step=schedule), draw(0))
  chex.assert_trees_all_close(got, expected, rtol=1e-6)


def test_params_and_state_can_be_donated():
  tx, params = wrap(optax.adam(LR)), draw(0)

  @jax.jit(donate_argnums=(0, 1))
  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  expected, _ = end(tx, params, 2)
  for seed in (1, 2):
    params, state = step(params, state, draw(seed))
  chex.assert_trees_all_close(params, expected, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_as_on_one_device(axis_type):
  grid = jax.make_mesh((4, 2), ("x", "y"), (axis_type,) * 2, devices=jax.devices("cpu"))
  specs = {"a": {"kernel": P("x", "y"), "bias": P("y")}, "b": {"kernel": P(None, "x")}}
  tx = wrap(optax.adam(LR), KEEPING["cardinality of all"])

  def step(params, state):
    updates, state = tx.update(params, state, params)
    return optax.apply_updates(params, updates), state

  expected, _ = jax.jit(step)(draw(0), tx.init(draw(0)))
  with jax.set_mesh(grid):
    placed = jax.tree.map(
      lambda w, spec: jax.device_put(w, NamedSharding(grid, spec)), draw(0), specs
    )
    state = tx.init(placed)
    got, new = jax.jit(step)(placed, state)
    assert jax.tree.map(jax.typeof, new) == jax.tree.map(jax.typeof, state)
    assert jax.tree.map(jax.typeof, got) == jax.tree.map(jax.typeof, placed)
  chex.assert_trees_all_close(got, expected, rtol=1e-6)


def test_map_params():
  tx, params = wrap(optax.sgd(LR, momentum=0.9)), draw(0)
  marked = optax.tree.map_params(
    tx,
    lambda _: "param",
    tx.init(params),
    transform_non_params=lambda _: "other",
  )
  assert marked.count == "other"
  assert jax.tree.leaves(marked.latent) == ["param"] * 2
  assert jax.tree.leaves(marked.inner_state) == ["param"] * 3


def test_empty_params_and_leaves_without_a_gradient():
  tx = wrap(optax.sgd(LR), KEEPING["cardinality of all"])
  assert tx.update({}, tx.init({}), {})[0] == {}
  params = draw(0)
  state = tx.init(params)
  grads = draw(1) | {"b": {"kernel": None}}
  updates, new = tx.update(grads, state, params)
  assert updates["b"]["kernel"] is None
  chex.assert_trees_all_equal(new.latent["b"], state.latent["b"])
  assert jnp.sum(params["a"]["kernel"] + updates["a"]["kernel"] == 0) == 288


def test_nan_is_not_hidden():
  params, state = draw(0), wrap(optax.sgd(LR)).init(draw(0))
  grads = jax.tree.map(lambda g: g.at[0].set(jnp.nan), draw(1))
  updates, _ = wrap(optax.sgd(LR)).update(grads, state, params)
  assert jnp.all(jnp.isnan(updates["a"]["kernel"][0]))


# Cost


def test_an_update_takes_two_passes_in_place():
  shape = (512, 1024)

  def compiled(tx):
    params = {"kernel": jax.ShapeDtypeStruct(shape, jnp.float32)}
    state = jax.eval_shape(tx.init, params)

    def step(params, state, grads):
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params)
    return lowered.compile()

  plain, ours = compiled(optax.sgd(LR)), compiled(wrap(optax.sgd(LR)))
  size = 4 * np.prod(shape)
  assert ours.memory_analysis().temp_size_in_bytes < size // 16
  assert ours.memory_analysis().alias_size_in_bytes >= 2 * size
  # Each reads and writes what it must: the CPU's compiler makes one output in a pass.
  ratio = (
    ours.cost_analysis()["bytes accessed"] / plain.cost_analysis()["bytes accessed"]
  )
  assert ratio <= 2.01


# Errors


def test_bad_arguments():
  with pytest.raises(TypeError, match=r"optimizer must be .* got 0\.1"):
    wrap(0.1)
  with pytest.raises(TypeError, match=r"Did you mean l0\(\)\?"):
    wrap(optax.sgd(LR), rvsm_jax.l0)
  with pytest.raises(ValueError, match="step must be a number >= 0, got -1"):
    wrap(optax.sgd(LR), step=-1)
  tx, params = wrap(optax.sgd(LR)), draw(0)
  with pytest.raises(ValueError, match="straight_through needs params"):
    tx.update(params, tx.init(params))
  with pytest.raises(ValueError, match="mask selects none"):
    tx.init({"bias": jnp.ones(3)})
  with pytest.raises(TypeError, match="int32"):
    tx.init({"kernel": jnp.ones((2, 2), jnp.int32)})
  with pytest.raises(ValueError, match="bare False"):
    wrap(optax.sgd(LR), mask=False).init(params)
