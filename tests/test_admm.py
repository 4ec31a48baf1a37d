"""ADMM: its iterates, and what it converges to."""

import chex
from helpers import LeastSquares, converge, find_state, tree
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import rvsm_jax

LR, LAM, RHO = 0.05, 0.1, 0.7
DIM = 12


def hard(x, gamma):
  return np.where(np.abs(x) > np.sqrt(2 * gamma), x, 0.0)


def largest_half(x, _):
  return np.where(np.abs(x) >= np.sort(np.abs(x))[len(x) // 2], x, 0.0)


# Penalties, and their proximal maps as `prox(x, 1 / rho)` in NumPy.
PENALTIES = {
  "l1": (rvsm_jax.scaled(rvsm_jax.l1(), LAM), lambda x, s: reference.soft(x, LAM * s)),
  "l0": (rvsm_jax.scaled(rvsm_jax.l0(), LAM), lambda x, s: hard(x, LAM * s)),
  "cardinality": (rvsm_jax.cardinality(0.5), largest_half),
}


def sgd_admm(learning_rate=LR, penalty=PENALTIES["l1"][0], rho=RHO, mask=None):
  return optax.chain(
    optax.sgd(learning_rate),
    rvsm_jax.admm(learning_rate, penalty, rho=rho, mask=mask),
  )


def small_grads(params, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)


def train(tx, params):
  state = tx.init(params)
  for seed in range(3):
    updates, state = tx.update(small_grads(params, seed), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


# Iterates and limits


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  ("name", "momentum"), [*((name, None) for name in PENALTIES), ("l1", 0.9)]
)
def test_the_iterates_are_those_of_the_formula(name, momentum):
  penalty, prox = PENALTIES[name]
  problem = LeastSquares(features=DIM)
  tx = optax.chain(
    optax.sgd(LR, momentum=momentum), rvsm_jax.admm(LR, penalty, rho=RHO)
  )
  params = jnp.asarray(problem.start)
  state = tx.init(params)
  update = jax.jit(tx.update)

  w, y, trace = problem.start, np.zeros(DIM), np.zeros(DIM)
  u = prox(w, 1 / RHO)
  for t in range(40):
    ours = find_state(state, rvsm_jax.ADMMState)
    for actual, expected in ((params, w), (ours.u, u), (ours.dual, y)):
      np.testing.assert_allclose(
        actual, expected, rtol=1e-11, atol=1e-14, err_msg=f"at step {t}"
      )
    assert ours.count == t
    updates, state = update(problem.gradient(params), state, params)
    params = optax.apply_updates(params, updates)

    trace = problem.gradient(w) + (momentum or 0.0) * trace
    # The pull is outside the momentum.
    w = w - LR * trace - LR * RHO * (w - u + y)
    u = prox(w + y, 1 / RHO)
    y = y + w - u
  assert 0 < np.count_nonzero(u) < DIM


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("rho", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("alpha", [0.02, 0.2])
def test_lasso_is_that_of_scikit_learn(alpha, rho):
  linear_model = pytest.importorskip("sklearn.linear_model")
  problem = LeastSquares(features=DIM)
  lasso = linear_model.Lasso(alpha, fit_intercept=False, tol=1e-14, max_iter=100_000)
  expected = lasso.fit(problem.design, problem.target).coef_

  lipschitz = np.linalg.eigvalsh(problem.design.T @ problem.design / 40)[-1]
  tx = sgd_admm(1 / (lipschitz + rho), rvsm_jax.scaled(rvsm_jax.l1(), alpha), rho)

  w, state = converge(tx, problem, 3000)
  u = rvsm_jax.sparse_params(state, w)
  np.testing.assert_allclose(u, expected, atol=1e-9)
  # Unlike with RVSM, w and u meet, and the dual variable is a subgradient over rho.
  np.testing.assert_allclose(w, u, atol=1e-9)
  np.testing.assert_allclose(
    rho * find_state(state, rvsm_jax.ADMMState).dual, -problem.gradient(w), atol=1e-9
  )
  np.testing.assert_array_equal(u == 0, expected == 0)
  assert 0 < np.count_nonzero(u) < DIM


@pytest.mark.parametrize("sparsity", [0.6])
def test_cardinality_keeps_the_exact_count_at_every_step(sparsity):
  params = tree(seed=3)
  tx = sgd_admm(penalty=rvsm_jax.cardinality(sparsity), mask=rvsm_jax.kernels)
  state, update = jax.jit(tx.init)(params), jax.jit(tx.update)
  for seed in range(4):
    sparse = rvsm_jax.sparse_params(state, params)
    for layer in ("conv", "dense"):
      kernel = sparse[layer]["kernel"]
      zeros = int(np.ceil(sparsity * kernel.size - 1e-6))
      assert np.sum(np.asarray(kernel) == 0) == zeros, (layer, seed)
    updates, state = update(small_grads(params, seed), state, params)
    params = optax.apply_updates(params, updates)


# The state


def test_the_state_at_the_start():
  params = tree(seed=3)
  penalty = PENALTIES["l0"][0]
  state = rvsm_jax.admm(LR, penalty, rho=RHO).init(params)
  assert isinstance(state, rvsm_jax.ADMMState)
  assert state._fields == ("count", "u", "dual")
  assert state.count == 0
  assert state.count.dtype == jnp.int32
  expected = jax.tree.map(lambda w: penalty.prox(w, 1 / RHO), params)
  chex.assert_trees_all_equal(state.u, expected)
  chex.assert_trees_all_equal(state.dual, jax.tree.map(jnp.zeros_like, params))


# Masks and schedules


MASKS = {
  "tree": rvsm_jax.kernels(tree(seed=3)),
  "prefix": {"conv": False, "dense": True, "scale": False},
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
def test_leaves_that_are_not_selected_get_the_inner_optimizer(mask):
  params = tree(seed=3)
  after, state = train(sgd_admm(mask=mask), params)
  plain, _ = train(optax.sgd(LR), params)
  full, _ = train(sgd_admm(), params)
  ours = find_state(state, rvsm_jax.ADMMState)
  picked = jax.tree.map(lambda m, part: jax.tree.map(lambda _: m, part), mask, params)
  sparse = rvsm_jax.sparse_params(state, after)

  def check(pick, w, expected, base, u, dual, s):
    np.testing.assert_array_equal(w, expected if pick else base)
    assert isinstance(u, optax.MaskedNode) != pick
    assert isinstance(dual, optax.MaskedNode) != pick
    np.testing.assert_array_equal(s, u if pick else w)

  jax.tree.map(check, picked, after, full, plain, ours.u, ours.dual, sparse)


def test_learning_rate_schedules():
  params = tree(seed=3)
  tx = rvsm_jax.admm(lambda count: LR / (1 + count), PENALTIES["l1"][0], rho=RHO)
  state, update = tx.init(params), jax.jit(tx.update)
  zero = jax.tree.map(jnp.zeros_like, params)
  for rate in (LR, LR / 2, LR / 3):
    updates, new = update(zero, state, params)
    expected = jax.tree.map(
      lambda w, u, y, rate=rate: -rate * RHO * (w - u + y), params, state.u, state.dual
    )
    chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-7)
    params, state = optax.apply_updates(params, updates), new


def test_rvsm_and_admm_share_a_model():
  params = tree(seed=3)
  layer = {"conv": False, "dense": False, "scale": False}
  tx = optax.chain(
    optax.sgd(LR),
    rvsm_jax.rvsm(LR, rvsm_jax.l0(), lam=0.1, beta=RHO, mask={**layer, "conv": True}),
    rvsm_jax.admm(LR, PENALTIES["l0"][0], rho=RHO, mask={**layer, "dense": True}),
  )
  after, state = train(tx, params)
  sparse = rvsm_jax.sparse_params(state, after)
  for name in ("conv", "dense"):
    assert rvsm_jax.sparsity(sparse[name]) > rvsm_jax.sparsity(after[name])
  both = sgd_admm()
  with pytest.raises(ValueError, match="disjoint masks"):
    rvsm_jax.sparse_params((both.init(params), both.init(params)), params)
