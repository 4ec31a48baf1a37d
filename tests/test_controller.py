"""A target sparsity: the ramp, and the feedback that finds lam for it."""

import itertools
import types

import chex
from flax import nnx
from helpers import in_part
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax

LR = 0.1
STEPS = 1000
KERNELS = {"mask": rvsm_jax.kernels}
L0, L1 = rvsm_jax.l0(), rvsm_jax.l1()
MAKERS = {
  "rvsm l0": lambda lam: rvsm_jax.rvsm_sgd(
    LR, L0, lam=lam, beta=0.1, momentum=0.9, **KERNELS
  ),
  "rvsm l1": lambda lam: rvsm_jax.rvsm_sgd(
    LR, L1, lam=lam, beta=0.1, momentum=0.9, **KERNELS
  ),
  "proximal l1": lambda lam: rvsm_jax.proximal_sgd(
    LR, L1, lam=lam, momentum=0.9, **KERNELS
  ),
  "proximal group_lasso": lambda lam: rvsm_jax.proximal_sgd(
    LR, rvsm_jax.group_lasso("out"), lam=lam, momentum=0.9, **KERNELS
  ),
  "proximal_adam l1": lambda lam: rvsm_jax.proximal_adam(1e-2, L1, lam=lam, **KERNELS),
  "admm l0": lambda lam: optax.chain(
    optax.sgd(LR, 0.9),
    rvsm_jax.admm(LR, rvsm_jax.scaled(L0, lam), rho=0.1, **KERNELS),
  ),
}
every_maker = pytest.mark.parametrize("name", MAKERS)
# Where each is a program to compile.
costly_maker = pytest.mark.parametrize("name", in_part(MAKERS, "rvsm l1"))


def target(maker, sparsity=0.9, **kwargs):
  return rvsm_jax.target_sparsity(MAKERS[maker], sparsity, **(KERNELS | kwargs))


@pytest.fixture(scope="module")
def problem():
  """A perceptron on labels of which a fifth is wrong, so that weights have a use."""
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(256, 32)), jnp.float32)
  right = np.argmax(x @ rng.normal(size=(32, 4)), axis=-1)
  y = np.where(rng.random(256) < 0.2, rng.integers(0, 4, 256), right)

  def draw(*shape):
    kernel = np.sqrt(2 / shape[0]) * rng.normal(size=shape)
    return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.zeros(shape[1])}

  def loss(params):
    first, last = params["first"], params["last"]
    hidden = jax.nn.relu(x @ first["kernel"] + first["bias"])
    logits = hidden @ last["kernel"] + last["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

  params = {"first": draw(32, 64), "last": draw(64, 4)}
  return types.SimpleNamespace(params=params, gradient=jax.jit(jax.grad(loss)))


def zeros(params):
  return rvsm_jax.sparsity([layer["kernel"] for layer in params.values()])


def sparse_network(name, state, params):
  carried = name.startswith(("rvsm", "admm"))
  return rvsm_jax.sparse_params(state, params) if carried else params


def train(name, tx, problem, steps):
  """The share of zeros after each step, and the last params and state."""

  @jax.jit
  def run(params):
    def step(carry, _):
      params, state = carry
      updates, state = tx.update(problem.gradient(params), state, params)
      params = optax.apply_updates(params, updates)
      return (params, state), zeros(sparse_network(name, state, params))

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)

  (params, state), shares = run(problem.params)
  return np.asarray(shares), params, state


# The ramp


@pytest.mark.parametrize("initial", [0.0, 0.25])
@pytest.mark.parametrize("begin", [0, 10])
@pytest.mark.parametrize("power", [1.0, 3.0])
def test_ramp_is_monotone_and_exact_at_its_ends(initial, begin, power):
  schedule = rvsm_jax.sparsity_schedule(
    0.875, 50, begin=begin, initial=initial, power=power
  )
  shares = np.array([float(schedule(step)) for step in range(100)])
  np.testing.assert_array_equal(shares[: begin + 1], initial)
  np.testing.assert_array_equal(shares[begin + 50 :], 0.875)
  assert np.all(np.diff(shares[begin : begin + 51]) > 0)
  # Zhu & Gupta (2017), equation (1).
  t = np.arange(51)
  expected = 0.875 + (initial - 0.875) * (1 - t / 50) ** power
  np.testing.assert_allclose(shares[begin : begin + 51], expected, atol=1e-6)


@pytest.mark.parametrize(
  ("arguments", "name"),
  [
    ({"target": 1.5}, "target"),
    ({"target": 90}, "target"),
    ({"target": None}, "target"),
    ({"initial": -0.1}, "initial"),
    ({"steps": 0}, "steps"),
    ({"begin": -1}, "begin"),
    ({"power": 0}, "power"),
  ],
  ids=str,
)
def test_arguments_of_the_ramp_are_named(arguments, name):
  with pytest.raises((ValueError, TypeError), match=name):
    rvsm_jax.sparsity_schedule(**({"target": 0.9, "steps": 10} | arguments))


@pytest.mark.slow
def test_cardinality_follows_the_ramp_exactly_by_injection():
  @optax.inject_hyperparams
  def tx(sparsity):
    return rvsm_jax.rvsm_sgd(
      LR, rvsm_jax.cardinality(sparsity), lam=1.0, beta=0.1, **KERNELS
    )

  schedule = rvsm_jax.sparsity_schedule(0.75, 8)
  tx = tx(sparsity=schedule)
  params = {"kernel": jax.random.normal(jax.random.key(0), (16, 16))}
  state = tx.init(params)
  update = jax.jit(tx.update)
  for step in range(12):
    updates, state = update(params, state, params)
    params = optax.apply_updates(params, updates)
    share = rvsm_jax.sparsity(rvsm_jax.sparse_params(state, params))
    np.testing.assert_allclose(share, np.ceil(256 * schedule(step)) / 256, atol=1e-6)


# The feedback


@costly_maker
def test_reaches_90_per_cent_within_one_point_and_stays(name, problem):
  tx = target(name, rvsm_jax.sparsity_schedule(0.9, STEPS))
  shares, _, state = train(name, tx, problem, STEPS + STEPS // 2)
  # A group is one column, of 32 or 64 entries out of 2,304; the dual variables of ADMM
  # hold on to zeros.
  slack = {"proximal group_lasso": 64 / 2304, "admm l0": 0.01}
  tolerance = 0.01 + slack.get(name, 0)
  np.testing.assert_allclose(shares[STEPS - 1], 0.9, atol=tolerance)
  np.testing.assert_allclose(shares[STEPS:], 0.9, atol=2 * tolerance)
  np.testing.assert_allclose(state.sparsity, 0.9, atol=tolerance)


@pytest.mark.parametrize("lam", [1e-8, 1e-2])
def test_finds_lam_from_another_scale(problem, lam):
  tx = target("rvsm l1", rvsm_jax.sparsity_schedule(0.9, STEPS), lam=lam)
  shares, _, _ = train("rvsm l1", tx, problem, STEPS)
  np.testing.assert_allclose(shares[-1], 0.9, atol=0.01)


def test_high_sparsity_and_a_constant_target(problem):
  shares, _, _ = train("rvsm l1", target("rvsm l1", 0.99), problem, STEPS)
  np.testing.assert_allclose(shares[-1], 0.99, atol=0.005)


def test_no_penalty_before_the_ramp_begins(problem):
  schedule = rvsm_jax.sparsity_schedule(0.9, 100, begin=20)
  # Zeros that are there from the start do not make lam fall in the meantime.
  dead = problem.params | {"last": jax.tree.map(jnp.zeros_like, problem.params["last"])}
  tx = target("proximal l1", schedule, lam=1e-3)
  state = tx.init(dead)
  assert state.lam == 0
  plain = MAKERS["proximal l1"](0.0)
  plain_state = plain.init(dead)
  params, expected = dead, dead
  update, plain_update = jax.jit(tx.update), jax.jit(plain.update)
  for _ in range(20):
    updates, state = update(problem.gradient(params), state, params)
    params = optax.apply_updates(params, updates)
    updates, plain_state = plain_update(
      problem.gradient(expected), plain_state, expected
    )
    expected = optax.apply_updates(expected, updates)
  chex.assert_trees_all_close(params, expected, rtol=1e-6)
  assert state.lam == 0
  np.testing.assert_allclose(state.log_lam, np.log(1e-3), rtol=1e-6)
  updates, state = update(problem.gradient(params), state, params)
  updates, state = update(problem.gradient(params), state, params)
  assert state.lam > 0


def test_lam_moves_against_the_error_by_the_law_that_is_documented():
  tx = rvsm_jax.target_sparsity(
    lambda lam: rvsm_jax.proximal(1.0, L1, lam=lam), 0.5, lam=0.01, gain=2.0
  )
  params = jnp.array([0.0, 0.0, 0.0, 1.0])
  state = tx.init(params)
  average, log_lam = 0.0, np.log(0.01)
  for _ in range(80):
    average += (0.75 - average) / 20
    error = np.log((1.0001 - average) / (1.0001 - 0.5))
    log_lam += 2 * error / 50
    _, state = tx.update(jnp.zeros(4), state, params)
    np.testing.assert_allclose(state.lam, np.exp(log_lam + 2 * error), rtol=1e-3)
    np.testing.assert_allclose(state.sparsity, average, rtol=1e-5)
  assert state.lam < 0.01


@pytest.mark.parametrize(("wanted", "bound"), [(1.0, 0.1), (0.01, 1e-4)])
def test_lam_stays_within_bounds(wanted, bound):
  tx = rvsm_jax.target_sparsity(
    lambda lam: rvsm_jax.add_penalty_gradient(L1, lam),
    wanted,
    lam=1e-3,
    bounds=(1e-4, 0.1),
  )
  params = jnp.array([1.0, 0.0])
  state = tx.init(params)
  update = jax.jit(tx.update)
  for _ in range(400):
    _, state = update(jnp.zeros(2), state, params)
    assert 0.99e-4 <= state.lam <= 0.101
  np.testing.assert_allclose(state.lam, bound, rtol=1e-5)


def test_only_selected_leaves_count():
  params = {"kernel": jnp.ones((4, 4)), "bias": jnp.zeros(16)}
  for mask, expected in ((None, 0.5), (rvsm_jax.kernels, 0.0)):
    tx = rvsm_jax.target_sparsity(
      lambda lam: rvsm_jax.proximal(1.0, L1, lam=lam), 0.5, mask=mask
    )
    _, state = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(20 * state.sparsity, expected, atol=1e-6)


# Optax's invariants


def few_steps(tx, params, grads, **extra):
  update = jax.jit(tx.update)
  state = tx.init(params)
  for g in grads:
    updates, state = update(g, state, params, **extra)
    params = optax.apply_updates(params, updates)
  return params, state


def gradients(params, number):
  rng = np.random.default_rng(1)
  return [
    jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), params)
    for _ in range(number)
  ]


@costly_maker
def test_jit_extra_arguments_and_no_second_compilation(name, problem):
  tx = target(name)
  assert isinstance(tx, optax.GradientTransformationExtraArgs)
  params, grads = problem.params, gradients(problem.params, 3)
  traces = []

  @jax.jit
  def step(params, state, g):
    traces.append(None)
    updates, state = tx.update(g, state, params, value=1.0, unexpected="argument")
    return optax.apply_updates(params, updates), state

  jitted, state = params, tx.init(params)
  eager, eager_state = params, tx.init(params)
  for g in grads:
    jitted, state = step(jitted, state, g)
    updates, eager_state = tx.update(g, eager_state, eager)
    eager = optax.apply_updates(eager, updates)
  chex.assert_trees_all_close(
    (jitted, state), (eager, eager_state), rtol=1e-4, atol=1e-6
  )
  assert len(traces) == 1


@pytest.mark.parametrize(
  ("name", "dtype"),
  list(itertools.product(MAKERS, ["float16", "bfloat16", "float32", "float64"])),
)
def test_dtypes_shapes_and_structure_are_kept(name, dtype):
  with jax.enable_x64(dtype == "float64"):
    tx = target(name, rvsm_jax.sparsity_schedule(0.9, 10))
    params = {"first": {"kernel": jnp.ones((4, 3), dtype), "bias": jnp.ones(3, dtype)}}
    state = jax.eval_shape(tx.init, params)
    updates, new_state = jax.eval_shape(tx.update, params, state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(new_state, state)
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(new_state))


@costly_maker
def test_multisteps_adapts_once_in_a_big_step(name, problem):
  params = problem.params
  small = gradients(params, 4)
  means = [jax.tree.map(lambda a, b: (a + b) / 2, *small[i : i + 2]) for i in (0, 2)]
  expected = few_steps(target(name), params, means)
  got, state = few_steps(optax.MultiSteps(target(name), 2), params, small)
  chex.assert_trees_all_close(
    (got, state.inner_opt_state), expected, rtol=1e-4, atol=1e-6
  )
  assert state.inner_opt_state.count == 2


@every_maker
def test_map_params(name, problem):
  tx = target(name)
  state = tx.init(problem.params)
  marked = optax.tree.map_params(
    tx, lambda _: "param", state, transform_non_params=lambda _: "other"
  )
  assert marked.count == marked.lam == marked.log_lam == marked.sparsity == "other"
  for mark, leaf in zip(jax.tree.leaves(marked), jax.tree.leaves(state), strict=True):
    assert mark == ("param" if leaf.ndim else "other")


@pytest.mark.slow
def test_vmap_over_targets(problem):
  grads = gradients(problem.params, 3)

  def run(sparsity):
    return few_steps(target("rvsm l1", lambda _: sparsity), problem.params, grads)

  got = jax.vmap(run)(jnp.array([0.5, 0.9]))
  last = jax.tree.map(lambda x: x[1], got)
  chex.assert_trees_all_close(last, run(0.9), rtol=1e-4, atol=1e-6)


def test_donation_and_a_mask_around_it(problem):
  tx = optax.chain(
    optax.clip_by_global_norm(1.0), optax.masked(target("rvsm l0"), rvsm_jax.kernels)
  )
  update = jax.jit(tx.update, donate_argnums=(1, 2))
  params = jax.tree.map(jnp.copy, problem.params)
  state = tx.init(params)
  for g in gradients(params, 2):
    updates, state = update(g, state, params)
    params = jax.tree.map(jnp.add, jax.tree.map(jnp.copy, problem.params), updates)
  sparse = rvsm_jax.sparse_params(state, params)
  np.testing.assert_array_equal(sparse["first"]["bias"], params["first"]["bias"])
  assert state[1].inner_state.count == 2


def test_apply_if_finite_keeps_lam(problem):
  grads = gradients(problem.params, 2)
  bad = jax.tree.map(lambda g: jnp.full_like(g, jnp.nan), grads[0])
  tx = target("proximal l1")
  expected = few_steps(tx, problem.params, grads)
  got, state = few_steps(
    optax.apply_if_finite(tx, 5), problem.params, [grads[0], bad, grads[1]]
  )
  chex.assert_trees_all_close((got, state.inner_state), expected, rtol=1e-5)


def test_nnx_optimizer_finds_u_and_lam():
  model = nnx.Linear(16, 16, rngs=nnx.Rngs(0))
  optimizer = nnx.Optimizer(model, target("rvsm l0", 0.5, lam=0.1), wrt=nnx.Param)
  optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(jnp.ones(16)) ** 2))(model))
  sparse = rvsm_jax.sparse_params(optimizer.opt_state, nnx.state(model, nnx.Param))
  assert rvsm_jax.sparsity(sparse["kernel"]) > 0
  np.testing.assert_array_equal(sparse["bias"], model.bias[...])
  assert optimizer.opt_state.lam[...] > 0


# Errors


@pytest.mark.parametrize(
  ("arguments", "name"),
  [
    ({"make_tx": optax.sgd(0.1)}, "make_tx"),
    ({"make_tx": lambda lam: lam}, "make_tx"),
    ({"sparsity": 90}, "sparsity"),
    ({"lam": 0.0}, "lam"),
    ({"lam": 1e9}, "lam"),
    ({"gain": 0.0}, "gain"),
    ({"gain": "large"}, "gain"),
    ({"bounds": (1.0, 0.1)}, "bounds"),
    ({"bounds": (0.0, 0.1)}, "bounds"),
    ({"bounds": 1.0}, "bounds"),
    ({"mask": lambda params: False}, "mask"),
  ],
  ids=[
    *("transformation", "no_transformation", "90", "lam_0", "lam_large", "gain_0"),
    *("gain_text", "bounds_order", "bounds_0", "bounds_one", "mask"),
  ],
)
def test_bad_arguments_are_named(arguments, name):
  good = {"make_tx": MAKERS["proximal l1"], "sparsity": 0.9}
  with pytest.raises((ValueError, TypeError), match=name):
    rvsm_jax.target_sparsity(**(good | arguments)).init({"kernel": jnp.ones((2, 2))})


def test_params_and_a_carried_u_are_needed():
  params = {"kernel": jnp.ones((2, 2))}
  tx = target("proximal l1")
  with pytest.raises(ValueError, match="target_sparsity needs params"):
    tx.update(params, tx.init(params))
  tx = rvsm_jax.target_sparsity(
    lambda lam: rvsm_jax.rvsm(LR, L0, lam=lam, beta=1.0, carry_u=False), 0.9
  )
  with pytest.raises(ValueError, match="carry_u"):
    tx.update(params, tx.init(params), params)
