"""ADMM: its iterates, what it converges to, and that it keeps Optax's manners."""

import chex
from helpers import LeastSquares, converge, find_state
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
penalties = pytest.mark.parametrize("name", list(PENALTIES))


def sgd_admm(learning_rate=LR, penalty=PENALTIES["l1"][0], rho=RHO, mask=None):
  return optax.chain(
    optax.sgd(learning_rate),
    rvsm_jax.admm(learning_rate, penalty, rho=rho, mask=mask),
  )


def small_tree(dtype=jnp.float32):
  rng = np.random.default_rng(3)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  return {
    "conv": {"kernel": draw(2, 2, 3, 4), "bias": draw(4)},
    "dense": {"kernel": draw(6, 5), "bias": draw(5)},
    "scale": draw(),
  }


def small_grads(params, seed=0):
  rng = np.random.default_rng(seed)
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), params)


def train(tx, params, steps=3, jit=False):
  update = jax.jit(tx.update) if jit else tx.update
  state = tx.init(params)
  for seed in range(steps):
    updates, state = update(small_grads(params, seed), state, params)
    params = optax.apply_updates(params, updates)
  return params, state


# Iterates and limits


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("momentum", [None, 0.9])
@penalties
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


@pytest.mark.parametrize("sparsity", [0.0, 0.6, 0.9])
def test_cardinality_keeps_the_exact_count_at_every_step(sparsity):
  params = small_tree()
  tx = sgd_admm(penalty=rvsm_jax.cardinality(sparsity), mask=rvsm_jax.kernels)
  state, update = tx.init(params), jax.jit(tx.update)
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
  params = small_tree()
  penalty = PENALTIES["l0"][0]
  state = rvsm_jax.admm(LR, penalty, rho=RHO).init(params)
  assert isinstance(state, rvsm_jax.ADMMState)
  assert state._fields == ("count", "u", "dual")
  assert state.count == 0
  assert state.count.dtype == jnp.int32
  expected = jax.tree.map(lambda w: penalty.prox(w, 1 / RHO), params)
  chex.assert_trees_all_equal(state.u, expected)
  chex.assert_trees_all_equal(state.dual, jax.tree.map(jnp.zeros_like, params))


def test_the_count_saturates():
  params = small_tree()
  tx = rvsm_jax.admm(LR, rvsm_jax.l1(), rho=RHO)
  full = jnp.asarray(jnp.iinfo(jnp.int32).max, jnp.int32)
  state = tx.init(params)._replace(count=full)
  assert tx.update(small_grads(params), state, params)[1].count == full


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
@penalties
def test_dtypes_are_kept(name, dtype, jit):
  params = small_tree(dtype)
  tx = sgd_admm(penalty=PENALTIES[name][0], mask=rvsm_jax.kernels)
  before = tx.init(params)
  after, state = train(tx, params, jit=jit)
  chex.assert_trees_all_equal_shapes_and_dtypes(after, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(state, before)
  sparse = rvsm_jax.sparse_params(state, after)
  chex.assert_trees_all_equal_shapes_and_dtypes(sparse, params)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_dtypes_are_kept_in_double_precision_mode(dtype):
  params = small_tree(dtype)
  after, state = train(sgd_admm(), params, jit=True)
  chex.assert_trees_all_equal_shapes_and_dtypes(after, params)
  ours = find_state(state, rvsm_jax.ADMMState)
  chex.assert_trees_all_equal_shapes_and_dtypes(ours.u, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(ours.dual, params)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_follows_double_precision(dtype):
  params = small_tree(dtype)
  tx = sgd_admm()
  half, _ = train(tx, params, steps=5)
  single, _ = train(tx, jax.tree.map(lambda w: w.astype(jnp.float32), params), steps=5)
  # A few roundings per step, of numbers of size 1.
  tolerance = 10 * float(jnp.finfo(dtype).eps)
  chex.assert_trees_all_close(
    jax.tree.map(lambda w: w.astype(jnp.float32), half),
    single,
    rtol=tolerance,
    atol=tolerance,
  )


# Masks and None


MASKS = {
  "callable": rvsm_jax.kernels,
  "tree": rvsm_jax.kernels(small_tree()),
  "prefix": {"conv": False, "dense": True, "scale": False},
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=list(MASKS))
def test_leaves_that_are_not_selected_get_the_inner_optimizer(mask):
  params = small_tree()
  after, state = train(sgd_admm(mask=mask), params)
  plain, _ = train(optax.sgd(LR), params)
  full, _ = train(sgd_admm(), params)
  ours = find_state(state, rvsm_jax.ADMMState)
  picked = mask(params) if callable(mask) else mask
  picked = jax.tree.map(lambda m, tree: jax.tree.map(lambda _: m, tree), picked, params)
  sparse = rvsm_jax.sparse_params(state, after)

  def check(pick, w, expected, base, u, dual, s):
    np.testing.assert_array_equal(w, expected if pick else base)
    assert isinstance(u, optax.MaskedNode) != pick
    assert isinstance(dual, optax.MaskedNode) != pick
    np.testing.assert_array_equal(s, u if pick else w)

  jax.tree.map(check, picked, after, full, plain, ours.u, ours.dual, sparse)


def test_none_leaves_pass_through():
  params = {"w": jnp.array([1.0, -0.1]), "frozen": None}
  tx = sgd_admm()
  state = tx.init(params)
  updates, state = tx.update({"w": jnp.ones(2), "frozen": None}, state, params)
  assert updates["frozen"] is None
  assert find_state(state, rvsm_jax.ADMMState).u["frozen"] is None
  sparse = rvsm_jax.sparse_params(state, params)
  assert sparse["frozen"] is None


def test_an_update_of_none_leaves_the_params_where_they_are():
  # Equinox has such trees, and `eqx.apply_updates` takes them.
  params = {"w": jnp.array([1.0, -0.1]), "frozen": jnp.array([2.0, 0.01])}
  tx = rvsm_jax.admm(LR, PENALTIES["l1"][0], rho=RHO)
  updates, state = tx.update(
    {"w": jnp.ones(2), "frozen": None}, tx.init(params), params
  )
  assert updates["frozen"] is None
  only = {"w": params["w"]}
  expected, alone = tx.update({"w": jnp.ones(2)}, tx.init(only), only)
  np.testing.assert_array_equal(updates["w"], expected["w"])
  np.testing.assert_array_equal(state.u["w"], alone.u["w"])


# Inside Optax


def test_jit_changes_nothing():
  params = small_tree()
  plain, state = train(sgd_admm(), params)
  compiled, compiled_state = train(sgd_admm(), params, jit=True)
  chex.assert_trees_all_close(plain, compiled, rtol=1e-6, atol=1e-7)
  chex.assert_trees_all_close(state, compiled_state, rtol=1e-6, atol=1e-7)


def test_no_recompilation_on_the_second_call():
  params = small_tree()
  tx = sgd_admm()
  update = jax.jit(chex.assert_max_traces(tx.update, n=1))
  state = tx.init(params)
  for seed in range(3):
    updates, state = update(small_grads(params, seed), state, params)
    params = optax.apply_updates(params, updates)


def test_params_and_state_can_be_donated_from_the_first_step():
  params = small_tree()
  # No entry is below the threshold, so that u equals the params.
  tx = sgd_admm(penalty=rvsm_jax.scaled(rvsm_jax.l1(), 0.0))
  expected, _ = train(tx, params, steps=2)

  def step(params, state, grads):
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  step = jax.jit(step, donate_argnums=(0, 1))
  state = tx.init(params)
  pointers = [x.unsafe_buffer_pointer() for x in jax.tree.leaves((params, state))]
  assert len(set(pointers)) == len(pointers)
  grads = [small_grads(params, seed) for seed in range(2)]
  for grad in grads:
    params, state = step(params, state, grad)
  chex.assert_trees_all_close(params, expected, rtol=1e-6)


def test_multi_steps_are_one_big_batch():
  params = small_tree()
  inner = sgd_admm()
  tx = optax.MultiSteps(inner, 3)
  state = tx.init(params)
  grads = [small_grads(params, seed) for seed in range(3)]
  w = params
  for i, grad in enumerate(grads):
    updates, state = jax.jit(tx.update)(grad, state, w)
    w = optax.apply_updates(w, updates)
    if i < 2:
      chex.assert_trees_all_equal(w, params)
      chex.assert_trees_all_equal(
        rvsm_jax.sparse_params(state, w),
        rvsm_jax.sparse_params(inner.init(params), params),
      )
  mean = jax.tree.map(lambda *g: sum(g) / 3, *grads)
  updates, expected = inner.update(mean, inner.init(params), params)
  chex.assert_trees_all_close(w, optax.apply_updates(params, updates), rtol=1e-5)
  chex.assert_trees_all_close(
    rvsm_jax.sparse_params(state, w),
    rvsm_jax.sparse_params(expected, w),
    rtol=1e-5,
    atol=1e-6,
  )


@pytest.mark.parametrize("jit", [False, True])
def test_inject_hyperparams_gives_equal_results(jit):
  params = small_tree()
  penalty = PENALTIES["l1"][0]
  factory = optax.inject_hyperparams(rvsm_jax.admm, static_args=("mask",))
  tx = optax.chain(optax.sgd(LR), factory(LR, penalty, rho=RHO, mask=rvsm_jax.kernels))
  after, state = train(tx, params, jit=jit)
  expected, expected_state = train(sgd_admm(mask=rvsm_jax.kernels), params, jit=jit)
  chex.assert_trees_all_close(after, expected, rtol=1e-6, atol=1e-7)
  chex.assert_trees_all_close(
    rvsm_jax.sparse_params(state, after),
    rvsm_jax.sparse_params(expected_state, expected),
    rtol=1e-6,
    atol=1e-7,
  )


def test_a_callable_mask_that_inject_hyperparams_took_for_a_schedule():
  factory = optax.inject_hyperparams(rvsm_jax.admm)
  tx = factory(LR, rvsm_jax.l1(), rho=RHO, mask=rvsm_jax.kernels)
  with pytest.raises(ValueError, match="static_args"):
    tx.init(small_tree())


@pytest.mark.parametrize("jit", [False, True])
def test_learning_rate_schedules(jit):
  params = small_tree()
  tx = rvsm_jax.admm(lambda count: LR / (1 + count), PENALTIES["l1"][0], rho=RHO)
  update = jax.jit(tx.update) if jit else tx.update
  state = tx.init(params)
  zero = jax.tree.map(jnp.zeros_like, params)
  for rate in (LR, LR / 2, LR / 3):
    updates, new = update(zero, state, params)
    expected = jax.tree.map(
      lambda w, u, y, rate=rate: -rate * RHO * (w - u + y), params, state.u, state.dual
    )
    chex.assert_trees_all_close(updates, expected, rtol=1e-5, atol=1e-7)
    params, state = optax.apply_updates(params, updates), new


def test_vmap_over_rho():
  params = jnp.array([1.0, -0.2, 0.5])
  grads = jnp.array([0.3, 0.1, -0.2])

  def two_steps(rho):
    tx = sgd_admm(rho=rho)
    state, w = tx.init(params), params
    for _ in range(2):
      updates, state = tx.update(grads, state, w)
      w = optax.apply_updates(w, updates)
    return w, rvsm_jax.sparse_params(state, w)

  rhos = jnp.array([0.1, 0.5, 2.0])
  batched = jax.vmap(two_steps)(rhos)
  single = [two_steps(float(rho)) for rho in rhos]
  chex.assert_trees_all_close(
    batched, jax.tree.map(lambda *x: jnp.stack(x), *single), rtol=1e-6
  )


def test_tree_map_params_and_unknown_extra_args():
  params = small_tree()
  tx = sgd_admm(mask=rvsm_jax.kernels)
  state = tx.init(params)
  doubled = optax.tree.map_params(tx, lambda x: 2 * x, state)
  ours, twice = (
    find_state(state, rvsm_jax.ADMMState),
    find_state(doubled, rvsm_jax.ADMMState),
  )
  chex.assert_trees_all_equal(jax.tree.map(lambda x: 2 * x, ours.u), twice.u)
  assert twice.count == ours.count
  tx.update(small_grads(params), state, params, value=1.0, whatever=None)


def test_sparse_params_inside_wrappers():
  params = small_tree()
  tx = optax.apply_if_finite(
    optax.named_chain(
      ("base", optax.adam(LR)),
      ("admm", rvsm_jax.admm(LR, PENALTIES["l0"][0], rho=RHO, mask=rvsm_jax.kernels)),
    ),
    3,
  )
  after, state = train(tx, params)
  sparse = rvsm_jax.sparse_params(state, after)
  chex.assert_trees_all_equal_shapes_and_dtypes(sparse, params)
  kernels = [sparse[layer]["kernel"] for layer in ("conv", "dense")]
  assert 0 < rvsm_jax.sparsity(kernels) < 1
  chex.assert_trees_all_equal(sparse["conv"]["bias"], after["conv"]["bias"])
  # A step that is not finite is left out, u and dual included.
  bad = jax.tree.map(lambda g: g * jnp.nan, small_grads(params))
  _, skipped = tx.update(bad, state, after)
  ours, before = (find_state(s, rvsm_jax.ADMMState) for s in (skipped, state))
  chex.assert_trees_all_equal(ours, before)


def test_rvsm_and_admm_share_a_model():
  params = small_tree()
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


# Errors


def test_a_penalty_that_is_none():
  with pytest.raises(TypeError, match=r"rvsm_jax\.Penalty"):
    rvsm_jax.admm(LR, rvsm_jax.l1, rho=RHO)


@pytest.mark.parametrize("rho", [0.0, -1.0, np.nan, np.inf])
def test_a_rho_out_of_range(rho):
  with pytest.raises(ValueError, match="rho"):
    rvsm_jax.admm(LR, rvsm_jax.l1(), rho=rho)


def test_a_negative_learning_rate():
  with pytest.raises(ValueError, match="learning_rate"):
    rvsm_jax.admm(-LR, rvsm_jax.l1(), rho=RHO)


def test_update_needs_params():
  tx = rvsm_jax.admm(LR, rvsm_jax.l1(), rho=RHO)
  params = small_tree()
  with pytest.raises(ValueError, match="admm needs params"):
    tx.update(small_grads(params), tx.init(params))


@pytest.mark.parametrize(
  ("mask", "message"),
  [
    (False, "bare False"),
    (lambda params: jax.tree.map(lambda _: False, params), "selects none"),
    ({"conv": True}, "does not fit"),
    ("kernels", "pytree of bools"),
  ],
)
def test_masks_that_are_wrong(mask, message):
  tx = rvsm_jax.admm(LR, rvsm_jax.l1(), rho=RHO, mask=mask)
  with pytest.raises(ValueError, match=message):
    tx.init(small_tree())


def test_leaves_of_integers_are_refused_unless_masked():
  params = {"w": jnp.ones(3), "steps": jnp.arange(3)}
  with pytest.raises(TypeError, match="steps"):
    rvsm_jax.admm(LR, rvsm_jax.l1(), rho=RHO).init(params)
  mask = {"w": True, "steps": False}
  rvsm_jax.admm(LR, rvsm_jax.l1(), rho=RHO, mask=mask).init(params)
