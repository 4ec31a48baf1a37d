"""RVSM against the papers: iterates, fixed points, energy, and its options."""

import functools

import chex
from helpers import converge, find_state, is_masked, tree
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import rvsm_jax

LR, LAM, BETA = 0.05, 0.02, 0.3
DIM = 12


def hard(x, gamma):
  return np.where(np.abs(x) > np.sqrt(2 * gamma), x, 0.0)


def transformed(x, gamma, a=0.5):
  """Xue & Xin eqs (2.3)-(2.4), in float64, where the arccos form is exact enough."""
  if gamma <= a**2 / (2 * (a + 1)):
    threshold = gamma * (a + 1) / a
  else:
    threshold = np.sqrt(2 * gamma * (a + 1)) - a / 2
  r = np.abs(x)
  cosine = np.clip(1 - 27 * gamma * a * (a + 1) / (2 * (a + r) ** 3), -1, 1)
  g = 2 / 3 * (a + r) * np.cos(np.arccos(cosine) / 3) - 2 * a / 3 + r / 3
  return np.where(r > threshold, np.sign(x) * g, 0.0)


PENALTIES = {
  "l0": (rvsm_jax.l0(), hard),
  "l1": (rvsm_jax.l1(), reference.soft),
  "transformed_l1": (rvsm_jax.transformed_l1(a=0.5), transformed),
}
penalties = pytest.mark.parametrize("name", list(PENALTIES))


class Quadratic:
  """f(w) = 1/2 (w - c)' A (w - c), eigenvalues of A in [0.5, 4]."""

  lipschitz = 4.0

  def __init__(self, seed=0, dim=DIM):
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(dim, dim)))
    self.matrix = basis @ np.diag(np.linspace(0.5, self.lipschitz, dim)) @ basis.T
    self.centre = rng.normal(size=dim) * (rng.random(dim) < 0.5)
    self.start = rng.normal(size=dim)

  def value(self, w):
    return 0.5 * (w - self.centre) @ (self.matrix @ (w - self.centre))

  def gradient(self, w):
    return self.matrix @ (w - self.centre)


def iterate(tx, problem, steps, start=None):
  """Runs `tx`; lists of the states (u_0 ... u_n) and of the params (w_0 ... w_n)."""
  w = jnp.asarray(problem.start if start is None else start)
  state = tx.init(w)
  params, states = [w], [state]

  @jax.jit
  def step(w, state):
    updates, state = tx.update(problem.gradient(w), state, w)
    return optax.apply_updates(w, updates), state

  for _ in range(steps):
    w, state = step(w, state)
    params.append(w)
    states.append(state)
  return params, states


def small_grads(params, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)


# The iterates of the two papers


@penalties
@pytest.mark.parametrize("carry_u", [True, False])
def test_gauss_seidel_is_algorithm_1_of_xue_and_xin(x64, name, carry_u):
  penalty, prox = PENALTIES[name]
  problem = Quadratic()
  tx = rvsm_jax.rvsm_sgd(LR, penalty, lam=LAM, beta=BETA, carry_u=carry_u)
  params, states = iterate(tx, problem, 40)

  w = problem.start
  for t in range(41):
    np.testing.assert_allclose(params[t], w, rtol=1e-11, err_msg=f"w at step {t}")
    u = prox(w, LAM / BETA)
    if carry_u:
      carried = rvsm_jax.sparse_params(states[t], params[t])
      np.testing.assert_allclose(carried, u, rtol=1e-11, err_msg=f"u at step {t}")
    w = w - LR * problem.gradient(w) - LR * BETA * (w - u)
  # The pull has done something, and some but not all entries are zero.
  assert 0 < np.count_nonzero(u) < DIM


@penalties
def test_jacobi_is_algorithm_1_of_dinh_and_xin(x64, name):
  penalty, prox = PENALTIES[name]
  problem = Quadratic()
  tx = rvsm_jax.rvsm_sgd(LR, penalty, lam=LAM, beta=BETA, ordering="jacobi")
  params, states = iterate(tx, problem, 40)

  w, u = problem.start, prox(problem.start, LAM / BETA)
  for t in range(41):
    np.testing.assert_allclose(params[t], w, rtol=1e-11, err_msg=f"w at step {t}")
    carried = rvsm_jax.sparse_params(states[t], params[t])
    np.testing.assert_allclose(carried, u, rtol=1e-11, err_msg=f"u at step {t}")
    new_w = w - LR * problem.gradient(w) - LR * BETA * (w - u)
    w, u = new_w, prox(w, LAM / BETA)


def test_the_orderings_differ(x64):
  problem = Quadratic()
  ends = [
    iterate(
      rvsm_jax.rvsm_sgd(LR, rvsm_jax.l1(), lam=LAM, beta=BETA, ordering=ordering),
      problem,
      10,
    )[0][-1]
    for ordering in ("gauss_seidel", "jacobi")
  ]
  assert np.max(np.abs(ends[0] - ends[1])) > 1e-6


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("ordering", ["gauss_seidel", "jacobi"])
def test_the_pull_is_outside_momentum(x64, ordering, nesterov):
  problem = Quadratic()
  tx = rvsm_jax.rvsm_sgd(
    LR,
    rvsm_jax.l0(),
    lam=LAM,
    beta=BETA,
    momentum=0.9,
    nesterov=nesterov,
    ordering=ordering,
  )
  params, _ = iterate(tx, problem, 30)

  w, u = problem.start, hard(problem.start, LAM / BETA)
  trace = np.zeros_like(w)
  for t in range(31):
    np.testing.assert_allclose(params[t], w, rtol=1e-10, err_msg=f"w at step {t}")
    gradient = problem.gradient(w)
    trace = gradient + 0.9 * trace
    direction = gradient + 0.9 * trace if nesterov else trace
    new_w = w - LR * direction - LR * BETA * (w - u)
    u = hard(new_w if ordering == "gauss_seidel" else w, LAM / BETA)
    w = new_w


@pytest.mark.parametrize(
  "base",
  [
    optax.sgd(LR, momentum=0.9),
    optax.adam(LR),
    optax.adamw(LR, weight_decay=0.1),
    optax.rmsprop(LR),
    optax.lion(LR),
    optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(LR)),
  ],
  ids=["momentum", "adam", "adamw", "rmsprop", "lion", "clipped_sgd"],
)
def test_any_base_gets_minus_lr_beta_w_minus_u(x64, base):
  problem = Quadratic()
  prox = rvsm_jax.l1().prox
  tx = optax.chain(base, rvsm_jax.rvsm(LR, rvsm_jax.l1(), lam=LAM, beta=BETA))
  w = jnp.asarray(problem.start)
  state, base_state = tx.init(w), base.init(w)
  for _ in range(5):
    gradient = problem.gradient(w)
    updates, state = tx.update(gradient, state, w)
    base_updates, base_state = base.update(gradient, base_state, w)
    pull = -LR * BETA * (w - prox(w, LAM / BETA))
    assert np.max(np.abs(pull)) > 1e-4
    np.testing.assert_allclose(updates - base_updates, pull, rtol=1e-10, atol=1e-16)
    w = optax.apply_updates(w, updates)


@pytest.mark.parametrize("carry_u", [True, False])
def test_lam_zero_is_the_base_optimizer_bit_for_bit(carry_u):
  params = tree(seed=3)
  base = optax.adam(1e-2)
  tx = optax.chain(
    base, rvsm_jax.rvsm(1e-2, rvsm_jax.l0(), lam=0.0, beta=0.5, carry_u=carry_u)
  )
  state, base_state, base_params = tx.init(params), base.init(params), params
  update, base_update = jax.jit(tx.update), jax.jit(base.update)
  for seed in range(3):
    grads = small_grads(params, seed)
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    updates, base_state = base_update(grads, base_state, base_params)
    base_params = optax.apply_updates(base_params, updates)
  chex.assert_trees_all_equal(params, base_params)


def test_tiny_beta_at_a_fixed_threshold_is_the_base_optimizer(x64):
  problem, beta = Quadratic(), 1e-11
  tx = rvsm_jax.rvsm_sgd(LR, rvsm_jax.l1(), lam=0.3 * beta, beta=beta)
  params, states = iterate(tx, problem, 20)
  base_params, _ = iterate(optax.sgd(LR), problem, 20)
  np.testing.assert_allclose(params[-1], base_params[-1], rtol=0, atol=1e-9)
  u = rvsm_jax.sparse_params(states[-1], params[-1])
  np.testing.assert_allclose(u, reference.soft(np.asarray(params[-1]), 0.3), atol=1e-12)


def test_a_large_beta_ties_w_to_u(x64):
  problem = Quadratic()
  gap = []
  for beta in (0.1, 10.0):
    w, state = converge(
      rvsm_jax.rvsm_sgd(0.05, rvsm_jax.l1(), lam=0.1, beta=beta), problem, 2000
    )
    gap.append(np.linalg.norm(w - rvsm_jax.sparse_params(state, w)))
  assert gap[1] < 0.05 * gap[0]


# Limits


@penalties
def test_the_limit_is_a_critical_point_with_the_right_sign(x64, name):
  penalty, prox = PENALTIES[name]
  problem = Quadratic()
  w, state = converge(
    rvsm_jax.rvsm_sgd(0.1, penalty, lam=LAM, beta=BETA), problem, 3000
  )
  u = rvsm_jax.sparse_params(state, w)
  np.testing.assert_allclose(u, prox(np.asarray(w), LAM / BETA), atol=1e-12)
  gradient = problem.gradient(w)
  np.testing.assert_allclose(gradient, BETA * (u - w), atol=1e-10)
  # Eq (2.5) of the paper has the other sign; this pins ours.
  assert np.linalg.norm(gradient - BETA * (w - u)) > 1e-3
  assert 0 < np.count_nonzero(u) < DIM

  residual = rvsm_jax.critical_point_residual(gradient, w, u, BETA)
  assert residual.shape == ()
  assert residual < 1e-9
  away = rvsm_jax.critical_point_residual(problem.gradient(w + 1), w + 1, u, BETA)
  expected = np.linalg.norm(problem.gradient(w + 1) + BETA * (w + 1 - u))
  np.testing.assert_allclose(away, expected, rtol=1e-12)


@penalties
@pytest.mark.parametrize("seed", range(3))
def test_the_energy_never_increases_for_a_small_step(x64, name, seed):
  penalty, _ = PENALTIES[name]
  problem = Quadratic(seed)
  step = 1 / (problem.lipschitz + BETA)
  tx = rvsm_jax.rvsm_sgd(step, penalty, lam=LAM, beta=BETA)
  params, states = iterate(tx, problem, 60)
  us = [rvsm_jax.sparse_params(s, w) for s, w in zip(states, params, strict=True)]
  energy = np.array(
    [
      rvsm_jax.lagrangian(problem.value, penalty, w, u, lam=LAM, beta=BETA)
      for w, u in zip(params, us, strict=True)
    ]
  )
  assert np.all(np.diff(energy) <= 1e-12)
  assert energy[-1] < energy[0] - 1e-2


def test_lagrangian_by_hand():
  params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([[3.0]])}
  u = {"a": jnp.array([1.0, 0.0]), "b": jnp.array([[2.5]])}

  def loss(p):
    return jnp.sum(p["a"]) + 10.0

  # f = 9, lam P(u) = 0.1 * (1 + 2.5), beta / 2 |w - u|^2 = 0.25 * (4 + 0.25)
  expected = 9.0 + 0.35 + 0.25 * 4.25
  for f in (loss, loss(params), 9.0):
    value = rvsm_jax.lagrangian(f, rvsm_jax.l1(), params, u, lam=0.1, beta=0.5)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert jnp.shape(value) == ()


def test_diagnostics_skip_masked_leaves():
  params = {"a": jnp.array([1.0, -2.0]), "b": jnp.array([7.0])}
  u = {"a": jnp.array([1.0, 0.0]), "b": optax.MaskedNode()}
  value = rvsm_jax.lagrangian(1.0, rvsm_jax.l1(), params, u, lam=0.1, beta=0.5)
  np.testing.assert_allclose(value, 1.0 + 0.1 + 0.25 * 4.0, rtol=1e-6)
  grads = {"a": jnp.array([0.0, 1.0]), "b": jnp.array([3.0])}
  residual = rvsm_jax.critical_point_residual(grads, params, u, 0.5)
  # An unselected leaf has no pull, but its gradient is part of the condition.
  np.testing.assert_allclose(residual, np.sqrt(0.0 + 0.0 + 9.0), rtol=1e-6)


def test_lagrangian_is_differentiable_and_its_gradient_is_the_w_step(x64):
  problem = Quadratic()
  w = jnp.asarray(problem.start)
  u = rvsm_jax.l1().prox(w, LAM / BETA)

  def energy(w):
    return rvsm_jax.lagrangian(problem.value, rvsm_jax.l1(), w, u, lam=LAM, beta=BETA)

  gradient = jax.jit(jax.grad(energy))(w)
  np.testing.assert_allclose(gradient, problem.gradient(w) + BETA * (w - u), rtol=1e-12)
  tx = rvsm_jax.rvsm_sgd(LR, rvsm_jax.l1(), lam=LAM, beta=BETA)
  updates, _ = tx.update(problem.gradient(w), tx.init(w), w)
  np.testing.assert_allclose(updates, -LR * gradient, rtol=1e-12)


# u: what is carried, and when


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_the_carried_u_is_the_prox_of_the_new_params(dtype):
  params = tree(dtype, seed=3)["dense"]
  penalty = rvsm_jax.transformed_l1(0.5)
  tx = rvsm_jax.rvsm_sgd(LR, penalty, lam=LAM, beta=BETA)
  state = tx.init(params)
  for seed in range(2):
    expected = jax.tree.map(lambda p: penalty.prox(p, LAM / BETA), params)
    chex.assert_trees_all_equal(rvsm_jax.sparse_params(state, params), expected)
    updates, state = tx.update(small_grads(params, seed), state, params)
    params = optax.apply_updates(params, updates)
  assert rvsm_jax.sparsity(rvsm_jax.sparse_params(state, params)) > 0


def test_the_state_is_a_count_and_u():
  params = tree(seed=3)
  tx = rvsm_jax.rvsm(LR, rvsm_jax.l0(), lam=LAM, beta=BETA)
  state = tx.init(params)
  assert isinstance(state, rvsm_jax.RVSMState)
  assert state._fields == ("count", "u")
  assert state.count == 0
  assert state.count.dtype == jnp.int32
  chex.assert_trees_all_equal_shapes_and_dtypes(state.u, params)
  _, state = tx.update(small_grads(params), state, params)
  assert isinstance(state, rvsm_jax.RVSMState)
  assert state.count == 1
  # As optax.safe_increment: the count saturates, it does not wrap.
  full = jnp.asarray(jnp.iinfo(jnp.int32).max, jnp.int32)
  _, state = tx.update(small_grads(params), state._replace(count=full), params)
  assert state.count == full


def test_without_carried_u_the_state_holds_a_count_only():
  params = tree(seed=3)
  tx = rvsm_jax.rvsm(LR, rvsm_jax.l0(), lam=LAM, beta=BETA, carry_u=False)
  state = tx.init(params)
  assert state.u is None
  assert [leaf.shape for leaf in jax.tree.leaves(state)] == [()]
  _, state = tx.update(small_grads(params), state, params)
  assert state.u is None
  assert state.count == 1


@pytest.mark.parametrize("u_dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_u_dtype_is_that_of_the_state_only(dtype, u_dtype):
  params = tree(dtype, seed=3)
  tx = rvsm_jax.rvsm_sgd(LR, rvsm_jax.l1(), lam=LAM, beta=BETA, u_dtype=u_dtype)
  state = tx.init(params)
  for seed in range(2):
    u = find_state(state, rvsm_jax.RVSMState).u
    assert all(leaf.dtype == u_dtype for leaf in jax.tree.leaves(u))
    expected = jax.tree.map(
      lambda p: rvsm_jax.l1().prox(p, LAM / BETA).astype(u_dtype), params
    )
    # Below float32 it is free where the rounding happens: one unit of 2^-8.
    chex.assert_trees_all_close(u, expected, rtol=2**-7)
    chex.assert_trees_all_equal_shapes_and_dtypes(
      rvsm_jax.sparse_params(state, params), params
    )
    updates, state = jax.jit(tx.update)(small_grads(params, seed), state, params)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, params)
    params = optax.apply_updates(params, updates)


def test_u_dtype_rounds_the_pull_by_no_more_than_its_precision():
  params = {"w": jnp.linspace(-2.0, 2.0, 101)}
  zero = jax.tree.map(jnp.zeros_like, params)
  pulls = []
  for u_dtype in (None, jnp.bfloat16):
    tx = rvsm_jax.rvsm(1.0, rvsm_jax.l1(), lam=0.5, beta=1.0, u_dtype=u_dtype)
    pulls.append(tx.update(zero, tx.init(params), params)[0]["w"])
  error = np.abs(pulls[0] - pulls[1])
  assert 0 < np.max(error) <= 2.0 * 2**-8


def test_the_pull_is_not_computed_in_half_precision():
  # w - u is 1 - 2^-10, which is 1 in bfloat16.
  small = rvsm_jax.Penalty(jnp.sum, lambda x, step: x * 2.0**-10)
  tx = rvsm_jax.rvsm(1.0, small, lam=1.0, beta=1.0)
  w = jnp.ones(1, jnp.bfloat16)
  updates, _ = tx.update(w, tx.init(w), w)
  assert updates.dtype == w.dtype
  np.testing.assert_array_equal(updates.astype(jnp.float32), 2.0**-10)


# Schedules


def test_schedules_of_all_three_step_for_step(x64):
  problem = Quadratic()
  # Tables, because Optax's own schedules compute in float32.
  tables = np.linspace(0.1, 0.01, 27), np.linspace(0, 0.2, 27), np.geomspace(1, 0.1, 27)
  lr, lam, beta = (functools.partial(jnp.take, jnp.asarray(table)) for table in tables)
  kwargs = {"lam": lam, "beta": beta}
  carried, states = iterate(rvsm_jax.rvsm_sgd(lr, rvsm_jax.l0(), **kwargs), problem, 25)
  recomputed, _ = iterate(
    rvsm_jax.rvsm_sgd(lr, rvsm_jax.l0(), carry_u=False, **kwargs), problem, 25
  )

  w = problem.start
  for t in range(26):
    eta, strength, tie = (table[t] for table in tables)
    np.testing.assert_allclose(carried[t], w, rtol=1e-10, err_msg=f"w at step {t}")
    np.testing.assert_allclose(recomputed[t], carried[t], rtol=1e-14)
    u = hard(w, strength / tie)
    np.testing.assert_allclose(
      rvsm_jax.sparse_params(states[t], carried[t]), u, rtol=1e-10
    )
    w = w - eta * (problem.gradient(w) + tie * (w - u))
  assert np.count_nonzero(u) < DIM


@pytest.mark.parametrize("argument", ["learning_rate", "lam", "beta"])
@pytest.mark.parametrize("ordering", ["gauss_seidel", "jacobi"])
def test_a_constant_schedule_is_the_constant(argument, ordering):
  params = tree(seed=3)
  constants = {"learning_rate": LR, "lam": LAM, "beta": BETA}
  scheduled = constants | {argument: optax.constant_schedule(constants[argument])}
  ends = []
  for kwargs in (constants, scheduled):
    tx = rvsm_jax.rvsm(penalty=rvsm_jax.l0(), ordering=ordering, **kwargs)
    w, state = params, tx.init(params)
    for seed in range(3):
      updates, state = tx.update(small_grads(params, seed), state, w)
      w = optax.apply_updates(w, updates)
    ends.append((w, state))
  chex.assert_trees_all_close(*ends, rtol=1e-6)


def test_a_threshold_of_zero_at_first_leaves_w_and_u_equal():
  params = tree(seed=3)
  lam = optax.join_schedules(
    [optax.constant_schedule(0.0), optax.constant_schedule(0.5)], [3]
  )
  tx = rvsm_jax.rvsm_sgd(LR, rvsm_jax.l0(), lam=lam, beta=1.0)
  state = tx.init(params)
  zeros = []
  for seed in range(4):
    zeros.append(float(rvsm_jax.sparsity(rvsm_jax.sparse_params(state, params))))
    updates, state = tx.update(small_grads(params, seed), state, params)
    params = optax.apply_updates(params, updates)
  zeros.append(float(rvsm_jax.sparsity(rvsm_jax.sparse_params(state, params))))
  assert zeros[:3] == [0.0, 0.0, 0.0]
  assert zeros[3] > 0.2


# Normalisation


def reference_normalised(problem, prox, steps):
  w = problem.start
  for _ in range(steps):
    u = prox(w, LAM / BETA)
    w = w - LR * problem.gradient(w) - LR * BETA * (w - u)
    w = w / np.linalg.norm(w)
  return w


@penalties
@pytest.mark.parametrize("normalize", ["leaf", "global"])
def test_normalisation_of_one_vector_is_algorithm_1(x64, name, normalize):
  penalty, prox = PENALTIES[name]
  problem = Quadratic()
  tx = rvsm_jax.rvsm_sgd(LR, penalty, lam=LAM, beta=BETA, normalize=normalize)
  params, states = iterate(tx, problem, 20)
  np.testing.assert_allclose(
    params[-1], reference_normalised(problem, prox, 20), rtol=1e-10
  )
  np.testing.assert_allclose(
    rvsm_jax.sparse_params(states[-1], params[-1]),
    prox(np.asarray(params[-1]), LAM / BETA),
    rtol=1e-10,
  )


@pytest.mark.parametrize("carry_u", [True, False])
def test_normalisation_per_leaf_and_global_on_selected_leaves(carry_u):
  params = tree(seed=3)
  grads = small_grads(params)
  base, _ = optax.sgd(LR).update(grads, optax.sgd(LR).init(params))
  plain = rvsm_jax.rvsm_sgd(
    LR, rvsm_jax.l1(), lam=LAM, beta=BETA, mask=rvsm_jax.kernels, carry_u=carry_u
  )
  updates, _ = plain.update(grads, plain.init(params), params)
  stepped = optax.apply_updates(params, updates)
  kernels = [stepped["conv"]["kernel"], stepped["dense"]["kernel"]]
  norms = [float(jnp.linalg.norm(k.ravel())) for k in kernels]
  divisors = {"leaf": norms, "global": [np.hypot(*norms)] * 2}
  for normalize, by in divisors.items():
    tx = rvsm_jax.rvsm_sgd(
      LR,
      rvsm_jax.l1(),
      lam=LAM,
      beta=BETA,
      mask=rvsm_jax.kernels,
      normalize=normalize,
      carry_u=carry_u,
    )
    updates, _ = tx.update(grads, tx.init(params), params)
    after = optax.apply_updates(params, updates)
    for layer, kernel, divisor in zip(("conv", "dense"), kernels, by, strict=True):
      np.testing.assert_allclose(after[layer]["kernel"], kernel / divisor, rtol=1e-5)
      chex.assert_trees_all_equal(updates[layer]["bias"], base[layer]["bias"])
    chex.assert_trees_all_equal(updates["scale"], base["scale"])


@pytest.mark.parametrize("normalize", ["leaf", "global"])
def test_normalisation_of_a_zero_leaf_is_finite(normalize):
  params = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((0, 3))}
  tx = rvsm_jax.rvsm(LR, rvsm_jax.l1(), lam=LAM, beta=BETA, normalize=normalize)
  updates, _ = tx.update(params, tx.init(params), params)
  chex.assert_trees_all_equal(optax.apply_updates(params, updates), params)


def test_normalisation_does_not_overflow_in_half_precision():
  params = {"w": jnp.full((64, 64), 100.0, jnp.float16)}
  zero = jax.tree.map(jnp.zeros_like, params)
  tx = rvsm_jax.rvsm(LR, rvsm_jax.l1(), lam=LAM, beta=BETA, normalize="leaf")
  updates, _ = tx.update(zero, tx.init(params), params)
  w = optax.apply_updates(params, updates)["w"]
  assert w.dtype == jnp.float16
  # ||w|| = 6400, but its square overflows float16; update and sum round at 2^-11 of w.
  np.testing.assert_allclose(w, 1 / 64, rtol=0, atol=100 * 2**-11)
  assert np.all(np.isfinite(w))


# Masks


def masks(params):
  select = {
    "conv": {"kernel": True, "bias": False},
    "dense": {"kernel": True, "bias": False},
    "scale": False,
  }
  return {
    "tree": (select, select),
    "callable": (rvsm_jax.kernels, select),
    "prefix": (
      {"conv": False, "dense": True, "scale": False},
      {
        "conv": {"kernel": False, "bias": False},
        "dense": {"kernel": True, "bias": True},
        "scale": False,
      },
    ),
    "true": (True, jax.tree.map(lambda _: True, params)),
  }


@pytest.mark.parametrize("kind", ["tree", "callable", "prefix", "true"])
@pytest.mark.parametrize("ordering", ["gauss_seidel", "jacobi"])
def test_a_mask_selects_and_the_rest_is_the_base_bit_for_bit(kind, ordering):
  params = tree(seed=3)
  mask, selected = masks(params)[kind]
  base = optax.adam(LR)
  tx = optax.chain(
    base,
    rvsm_jax.rvsm(LR, rvsm_jax.l1(), lam=LAM, beta=BETA, mask=mask, ordering=ordering),
  )
  whole = optax.chain(
    base, rvsm_jax.rvsm(LR, rvsm_jax.l1(), lam=LAM, beta=BETA, ordering=ordering)
  )
  state, base_state, whole_state = (t.init(params) for t in (tx, base, whole))
  for seed in range(2):
    grads = small_grads(params, seed)
    updates, state = tx.update(grads, state, params)
    base_updates, base_state = base.update(grads, base_state, params)
    whole_updates, whole_state = whole.update(grads, whole_state, params)
    chex.assert_trees_all_equal(
      updates,
      jax.tree.map(
        lambda m, ours, theirs: ours if m else theirs,
        selected,
        whole_updates,
        base_updates,
      ),
    )
    params = optax.apply_updates(params, updates)
    u = find_state(state, rvsm_jax.RVSMState).u

    got = jax.tree.map(lambda x: not is_masked(x), u, is_leaf=is_masked)
    assert got == selected


# The alias, buffers, gradients


def test_rvsm_sgd_is_the_chain():
  params = tree(seed=3)
  kwargs = {
    "lam": LAM,
    "beta": BETA,
    "normalize": "leaf",
    "ordering": "jacobi",
    "u_dtype": jnp.float32,
    "mask": rvsm_jax.kernels,
  }
  alias = rvsm_jax.rvsm_sgd(LR, rvsm_jax.l0(), momentum=0.9, nesterov=True, **kwargs)
  chain = optax.chain(
    optax.sgd(LR, momentum=0.9, nesterov=True),
    rvsm_jax.rvsm(LR, rvsm_jax.l0(), **kwargs),
  )
  ends = []
  for tx in (alias, chain):
    w, state = params, tx.init(params)
    for seed in range(3):
      updates, state = tx.update(small_grads(params, seed), state, w)
      w = optax.apply_updates(w, updates)
    ends.append((w, rvsm_jax.sparse_params(state, w)))
  chex.assert_trees_all_equal(*ends)


def test_init_makes_distinct_buffers():
  params = tree(seed=3)
  for init in (
    rvsm_jax.rvsm(LR, rvsm_jax.l0(), lam=0.0, beta=BETA).init,
    rvsm_jax.rvsm(LR, rvsm_jax.l1(), lam=0.0, beta=BETA, u_dtype=jnp.float32).init,
  ):
    leaves = jax.tree.leaves((params, init(params)))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in leaves]
    assert len(set(pointers)) == len(pointers)


def test_gradients_flow_through_an_update(x64):
  problem = Quadratic()
  w = jnp.asarray(problem.start)

  def loss_after(beta):
    tx = rvsm_jax.rvsm_sgd(LR, rvsm_jax.l1(), lam=LAM, beta=beta)
    updates, _ = tx.update(problem.gradient(w), tx.init(w), w)
    return problem.value(optax.apply_updates(w, updates))

  slope = jax.grad(loss_after)(BETA)
  eps = 1e-6
  expected = (loss_after(BETA + eps) - loss_after(BETA - eps)) / (2 * eps)
  np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_u_of_group_lasso_drops_whole_filters():
  kernel = jnp.ones((3, 3, 2, 4)) * jnp.array([0.01, 1.0, 0.02, 2.0])
  tx = rvsm_jax.rvsm(LR, rvsm_jax.group_lasso("out"), lam=0.5, beta=1.0)
  u = tx.init({"kernel": kernel}).u["kernel"]
  removed = np.all(np.asarray(u) == 0, axis=(0, 1, 2))
  np.testing.assert_array_equal(removed, [True, False, True, False])
