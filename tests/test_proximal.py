"""The proximal gradient step and the penalised gradient."""

import chex
from helpers import LeastSquares, converge, find_state, in_part
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import rvsm_jax

DTYPES = [jnp.float32, jnp.bfloat16, jnp.float16]


def tree(dtype=jnp.float32, seed=1):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  return {
    "conv": {"kernel": draw(3, 3, 2, 4), "bias": draw(4)},
    "dense": {"kernel": draw(16, 5), "bias": draw(5)},
    "temperature": draw(),
  }


def grads_like(params, seed):
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda p: jnp.asarray(0.1 * rng.normal(size=p.shape), p.dtype), params
  )


# Against references


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.5])
def test_lasso_agrees_with_scikit_learn(x64, alpha):
  linear_model = pytest.importorskip("sklearn.linear_model")
  problem = LeastSquares()
  lasso = linear_model.Lasso(alpha, fit_intercept=False, tol=1e-14, max_iter=100_000)
  expected = lasso.fit(problem.design, problem.target).coef_
  tx = rvsm_jax.proximal_sgd(1 / problem.lipschitz, rvsm_jax.l1(), lam=alpha)
  w, _ = converge(tx, problem, 3000)
  np.testing.assert_allclose(w, expected, atol=1e-8)
  np.testing.assert_array_equal(np.asarray(w) == 0, expected == 0)
  assert 0 < np.count_nonzero(w) < w.size


def test_elastic_net_agrees_with_scikit_learn(x64):
  linear_model = pytest.importorskip("sklearn.linear_model")
  problem, lam, alpha = LeastSquares(), 0.1, 0.7
  # scikit-learn: a r |w|_1 + a (1 - r)/2 |w|^2; ours: lam (|w|_1 + alpha/2 |w|^2).
  strength, ratio = lam * (1 + alpha), 1 / (1 + alpha)
  net = linear_model.ElasticNet(
    strength, l1_ratio=ratio, fit_intercept=False, tol=1e-14, max_iter=100_000
  )
  expected = net.fit(problem.design, problem.target).coef_
  tx = rvsm_jax.proximal_sgd(
    1 / problem.lipschitz, rvsm_jax.elastic_net(alpha), lam=lam
  )
  w, _ = converge(tx, problem, 3000)
  np.testing.assert_allclose(w, expected, atol=1e-8)


def test_the_iterates_are_ista(x64):
  problem, lam = LeastSquares(), 0.2
  lr = 0.5 / problem.lipschitz
  tx = rvsm_jax.proximal_sgd(lr, rvsm_jax.l1(), lam=lam)
  w, expected = jnp.asarray(problem.start), problem.start
  state = tx.init(w)
  for step in range(20):
    updates, state = jax.jit(tx.update)(problem.gradient(w), state, w)
    w = optax.apply_updates(w, updates)
    expected = reference.soft(expected - lr * problem.gradient(expected), lr * lam)
    np.testing.assert_allclose(w, expected, rtol=1e-11, atol=1e-14)
    assert find_state(state, rvsm_jax.ProximalState).count == step + 1


def test_a_group_lasso_solution_satisfies_its_optimality_condition(x64):
  problem, lam = LeastSquares(features=24), 0.3

  def grouped(w):
    return w.reshape(4, 6)

  penalty = rvsm_jax.group_lasso("out")
  flat = rvsm_jax.Penalty(
    lambda w: penalty.value(grouped(w)),
    lambda w, step: penalty.prox(grouped(w), step).reshape(-1),
  )
  tx = rvsm_jax.proximal_sgd(1 / problem.lipschitz, flat, lam=lam)
  w, _ = converge(tx, problem, 4000)
  gradient, w = grouped(problem.gradient(w)), grouped(np.asarray(w))
  norms = np.linalg.norm(w, axis=0)
  assert 0 < np.count_nonzero(norms) < 6
  for g, group in enumerate(w.T):
    if norms[g]:
      np.testing.assert_allclose(
        gradient[:, g], -lam * group / norms[g], atol=1e-9, err_msg=f"group {g}"
      )
    else:
      assert np.linalg.norm(gradient[:, g]) <= lam + 1e-9


@pytest.mark.parametrize(
  ("base", "penalty"),
  [
    (optax.sgd(0.1, momentum=0.9, nesterov=True), rvsm_jax.transformed_l1(0.5)),
    (optax.adam(0.1), rvsm_jax.l0()),
  ],
  ids=["nesterov, tl1", "adam, l0"],
)
def test_after_any_base_it_is_the_prox_of_the_base_step(x64, base, penalty):
  params = tree(jnp.float64)
  tx = optax.chain(base, rvsm_jax.proximal(0.1, penalty, lam=0.5))
  state, base_state = tx.init(params), base.init(params)
  prox = jax.jit(lambda tree: jax.tree.map(lambda w: penalty.prox(w, 0.05), tree))
  update, base_update = jax.jit(tx.update), jax.jit(base.update)
  for seed in range(2):
    grads = grads_like(params, seed)
    updates, state = update(grads, state, params)
    base_updates, base_state = base_update(grads, base_state, params)
    stepped = optax.apply_updates(params, base_updates)
    params = optax.apply_updates(params, updates)
    expected = prox(stepped)
    chex.assert_trees_all_close(params, expected, rtol=1e-12, atol=1e-15)
    chex.assert_trees_all_equal(
      jax.tree.map(lambda w: w == 0, params), jax.tree.map(lambda w: w == 0, expected)
    )


def test_schedules_of_learning_rate_and_lam(x64):
  problem = LeastSquares()
  # Tables, because Optax's own schedules compute in float32.
  etas, strengths = np.linspace(0.2, 0.02, 12), np.linspace(0.0, 0.6, 12)
  tx = rvsm_jax.proximal_sgd(
    lambda count: jnp.asarray(etas)[count],
    rvsm_jax.l1(),
    lam=lambda count: jnp.asarray(strengths)[count],
  )
  w, expected = jnp.asarray(problem.start), problem.start
  state = tx.init(w)
  for t in range(12):
    updates, state = jax.jit(tx.update)(problem.gradient(w), state, w)
    w = optax.apply_updates(w, updates)
    eta, strength = etas[t], strengths[t]
    expected = reference.soft(
      expected - eta * problem.gradient(expected), eta * strength
    )
    np.testing.assert_allclose(w, expected, rtol=1e-10, atol=1e-13)


def test_proximal_sgd_is_the_chain():
  params = tree()
  alias = rvsm_jax.proximal_sgd(
    0.1, rvsm_jax.l1(), lam=0.1, momentum=0.9, nesterov=True, mask=rvsm_jax.kernels
  )
  chain = optax.chain(
    optax.sgd(0.1, momentum=0.9, nesterov=True),
    rvsm_jax.proximal(0.1, rvsm_jax.l1(), lam=0.1, mask=rvsm_jax.kernels),
  )
  ends = []
  for tx in (alias, chain):
    w, state = params, tx.init(params)
    for seed in range(3):
      updates, state = tx.update(grads_like(params, seed), state, w)
      w = optax.apply_updates(w, updates)
    ends.append(w)
  chex.assert_trees_all_equal(*ends)


# Exact zeros


@pytest.mark.parametrize("jit", in_part([False, True], True))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
  ("penalty", "lam"),
  [
    (rvsm_jax.l0(), 0.5),
    (rvsm_jax.l1(), 0.5),
    (rvsm_jax.transformed_l1(0.5), 0.5),
    (rvsm_jax.group_lasso("out"), 5.0),
  ],
  ids=["l0", "l1", "tl1", "group"],
)
def test_zeros_are_exactly_zero_after_apply_updates(dtype, penalty, lam, jit):
  rng = np.random.default_rng(0)
  # Magnitudes over nine powers of two, and groups of every size of norm.
  scale = 2.0 ** rng.integers(-8, 1, size=(1, 512))
  params = {"kernel": jnp.asarray(rng.normal(size=(32, 512)) * scale, dtype)}
  lr = 0.1
  base = optax.sgd(lr)
  tx = optax.chain(base, rvsm_jax.proximal(lr, penalty, lam=lam))
  state = tx.init(params)

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  for seed in range(3):
    grads = grads_like(params, seed)
    updates, _ = base.update(grads, base.init(params))
    # The point of which the prox is taken is not rounded to a half precision first.
    point = params["kernel"].astype(jnp.float32) + updates["kernel"]
    after, state = (jax.jit(step) if jit else step)(params, state, grads)
    exact = np.asarray(penalty.prox(point, lr * lam))
    got = np.asarray(after["kernel"], np.float32) == 0
    assert after["kernel"].dtype == dtype
    if jit:
      # A fused kernel may round the point differently next to the threshold.
      assert np.mean(got == (exact == 0)) > 0.995
    else:
      assert np.all(got[exact == 0])
      # w + (new - w) loses a new value below the precision of w, and nothing else.
      unit = float(jnp.finfo(dtype).eps) * np.abs(np.asarray(params["kernel"]))
      assert np.all((np.abs(exact) <= unit)[got])
    params = after
    assert 0.05 < np.mean(got) < 0.95


def test_the_params_are_the_image_rounded_once():
  # It is nearer to 1 + 2^-7 than to 1; its rounded difference from 1 would be a tie.
  image = 1 + 2.0**-8 + 2.0**-18
  penalty = rvsm_jax.Penalty(jnp.sum, lambda x, step: jnp.full_like(x, image))
  w = jnp.ones(1, jnp.bfloat16)
  tx = rvsm_jax.proximal(1.0, penalty, lam=1.0)
  updates, _ = tx.update(w, tx.init(w), w)
  got = optax.apply_updates(w, updates)
  np.testing.assert_array_equal(got.astype(jnp.float32), 1 + 2.0**-7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_under_a_gradient_below_lam(dtype):
  lam, lr = 0.5, 0.1
  params = {"w": jnp.zeros((4, 4), dtype)}
  tx = rvsm_jax.proximal_sgd(lr, rvsm_jax.l1(), lam=lam)
  state = tx.init(params)
  for sign in (1, -1, 1):
    grads = {"w": jnp.full((4, 4), sign * 0.9 * lam, dtype)}
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    assert jnp.all(params["w"] == 0)
  grads = {"w": jnp.full((4, 4), 1.5 * lam, dtype)}
  updates, _ = tx.update(grads, state, params)
  assert jnp.all(optax.apply_updates(params, updates)["w"] < 0)


def test_the_plain_subgradient_does_not_reach_zero(x64):
  # The reason for a proximal step, as a test of both.
  problem, lam = LeastSquares(), 0.1
  lr = 0.5 / problem.lipschitz
  plain = optax.chain(rvsm_jax.add_penalty_gradient(rvsm_jax.l1(), lam), optax.sgd(lr))
  w_plain, _ = converge(plain, problem, 500)
  w_prox, _ = converge(rvsm_jax.proximal_sgd(lr, rvsm_jax.l1(), lam=lam), problem, 500)
  assert np.count_nonzero(w_plain) == w_plain.size
  assert np.count_nonzero(w_prox) < w_prox.size / 2


def test_lam_zero_is_the_base_step():
  params = tree()
  grads = grads_like(params, 0)
  tx = rvsm_jax.proximal_sgd(0.1, rvsm_jax.transformed_l1(), lam=0.0)
  updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
  base, _ = optax.sgd(0.1).update(grads, optax.sgd(0.1).init(params))
  chex.assert_trees_all_close(
    optax.apply_updates(params, updates),
    optax.apply_updates(params, base),
    rtol=1e-6,
    atol=1e-7,
  )


def test_cardinality_and_constraints_hold_after_every_step():
  params = tree()
  kwargs = {"lam": 1.0, "mask": rvsm_jax.kernels}
  sparse = rvsm_jax.proximal_sgd(0.1, rvsm_jax.cardinality(0.75), **kwargs)
  positive = rvsm_jax.proximal_sgd(0.1, rvsm_jax.nonnegative(), **kwargs)
  for tx, holds in (
    (sparse, lambda k: np.mean(k == 0) >= 0.75),
    (positive, lambda k: np.all(k >= 0)),
  ):
    w, state = params, tx.init(params)
    for seed in range(3):
      updates, state = jax.jit(tx.update)(grads_like(params, seed), state, w)
      w = optax.apply_updates(w, updates)
      for layer in ("conv", "dense"):
        kernel = np.asarray(w[layer]["kernel"])
        assert holds(kernel)
        assert np.any(kernel != 0)


@pytest.mark.parametrize(
  "penalty", [rvsm_jax.l0(), rvsm_jax.l1(), rvsm_jax.transformed_l1()]
)
def test_divergence_stays_visible(penalty):
  params = {"w": jnp.ones(3)}
  grads = {"w": jnp.array([jnp.nan, jnp.inf, 0.0])}
  for tx in (
    rvsm_jax.proximal_sgd(0.1, penalty, lam=0.1),
    rvsm_jax.rvsm_sgd(0.1, penalty, lam=0.1, beta=1.0),
  ):
    updates, _ = tx.update(grads, tx.init(params), params)
    w = optax.apply_updates(params, updates)["w"]
    assert jnp.isnan(w[0])
    assert not jnp.isfinite(w[1])
    assert jnp.isfinite(w[2])


# Masks and structure


def test_the_state_is_a_count():
  params = tree()
  tx = rvsm_jax.proximal(0.1, rvsm_jax.l1(), lam=0.1)
  state = tx.init(params)
  assert isinstance(state, rvsm_jax.ProximalState)
  assert state._fields == ("count",)
  assert (state.count.dtype, int(state.count)) == (jnp.int32, 0)
  _, state = tx.update(params, state, params)
  assert int(state.count) == 1


def test_a_whole_training_has_a_gradient_in_lam(x64):
  problem = LeastSquares()

  def solve(lam):
    tx = rvsm_jax.proximal_sgd(0.5 / problem.lipschitz, rvsm_jax.l1(), lam=lam)
    return converge(tx, problem, 300)[0]

  slope = jax.jacfwd(solve)(0.1)
  eps = 1e-6
  expected = (solve(0.1 + eps) - solve(0.1 - eps)) / (2 * eps)
  np.testing.assert_allclose(slope, expected, rtol=1e-5, atol=1e-8)
  assert np.any(slope != 0)


# add_penalty_gradient


@pytest.mark.parametrize(
  "penalty",
  [
    rvsm_jax.l1(),
    rvsm_jax.transformed_l1(0.5),
    rvsm_jax.group_lasso("out"),
    rvsm_jax.integrated_tl1(a=0.5, mu=0.3),
  ],
  ids=["l1", "tl1", "group", "integrated"],
)
def test_penalty_gradient_is_that_of_the_penalised_loss(x64, penalty):
  lam = 0.3
  params = {
    layer: {"kernel": leaves["kernel"]}
    for layer, leaves in tree(jnp.float64).items()
    if layer != "temperature"
  }

  def loss(params):
    return sum(jnp.sum(jnp.sin(w)) for w in jax.tree.leaves(params))

  def penalised(params):
    return loss(params) + lam * sum(penalty.value(w) for w in jax.tree.leaves(params))

  tx = rvsm_jax.add_penalty_gradient(penalty, lam)
  got, _ = jax.jit(tx.update)(jax.grad(loss)(params), tx.init(params), params)
  chex.assert_trees_all_close(got, jax.jit(jax.grad(penalised))(params), rtol=1e-12)


@pytest.mark.parametrize(
  "base", [optax.sgd(0.1, momentum=0.9), optax.adam(0.1)], ids=["momentum", "adam"]
)
def test_penalty_gradient_goes_through_the_optimizer(base):
  params = tree()
  penalty, lam = rvsm_jax.transformed_l1(), 0.1
  tx = optax.chain(rvsm_jax.add_penalty_gradient(penalty, lam), base)
  w, state = params, tx.init(params)
  expected, base_state = params, base.init(params)
  update, base_update = jax.jit(tx.update), jax.jit(base.update)
  slope = jax.jit(jax.grad(penalty.value))
  for seed in range(2):
    grads = grads_like(params, seed)
    updates, state = update(grads, state, w)
    w = optax.apply_updates(w, updates)
    penalised = jax.tree.map(lambda g, p: g + lam * slope(p), grads, expected)
    updates, base_state = base_update(penalised, base_state, expected)
    expected = optax.apply_updates(expected, updates)
  chex.assert_trees_all_close(w, expected, rtol=1e-5, atol=1e-6)


def test_penalty_gradient_with_schedule_mask_and_count():
  params = tree()
  zero = jax.tree.map(jnp.zeros_like, params)

  def lam(count):
    return 0.5 * count

  tx = rvsm_jax.add_penalty_gradient(rvsm_jax.l1(), lam, mask=rvsm_jax.kernels)
  state = tx.init(params)
  assert isinstance(state, rvsm_jax.PenaltyGradientState)
  assert state._fields == ("count",)
  for t in range(3):
    assert int(state.count) == t
    updates, state = tx.update(zero, state, params)
    kernel = params["dense"]["kernel"]
    np.testing.assert_allclose(updates["dense"]["kernel"], 0.5 * t * jnp.sign(kernel))
    chex.assert_trees_all_equal(updates["dense"]["bias"], zero["dense"]["bias"])
    chex.assert_trees_all_equal(updates["temperature"], zero["temperature"])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
  "penalty",
  [rvsm_jax.l1(), rvsm_jax.transformed_l1(), rvsm_jax.group_lasso("out")],
  ids=["l1", "tl1", "group"],
)
def test_penalty_gradient_at_zero_is_zero_not_nan(penalty, dtype):
  params = {"kernel": jnp.zeros((3, 4), dtype)}
  tx = rvsm_jax.add_penalty_gradient(penalty, 0.1)
  updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  assert updates["kernel"].dtype == dtype
  np.testing.assert_array_equal(np.asarray(updates["kernel"], np.float32), 0.0)
