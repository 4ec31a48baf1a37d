"""Adam with its proximal step in Adam's own metric."""

import functools

import chex
from helpers import converge, in_part
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import optax
import pytest
import reference

import rvsm_jax

LR = 0.1


# Ill-conditioned problems, with curvatures of the coordinates from 1e2 to 1e-2


class LeastSquares:
  """f(w) = 1/(2n) |X w - y|^2 of a matrix w, whose columns are the groups."""

  SHAPE = (4, 6)

  def __init__(self, seed=0, samples=60):
    rng = np.random.default_rng(seed)
    size = int(np.prod(self.SHAPE))
    curvature = rng.permutation(np.geomspace(1e2, 1e-2, size))
    basis, _ = np.linalg.qr(rng.normal(size=(samples, size)))
    mixed = basis @ (np.eye(size) + 0.02 * rng.normal(size=(size, size)))
    self.samples = samples
    self.design = np.sqrt(samples * curvature) * mixed
    scale = np.sqrt(curvature).reshape(self.SHAPE)
    truth = rng.normal(size=self.SHAPE) * (np.arange(self.SHAPE[1]) % 2) / scale
    noise = 0.05 * rng.normal(size=samples)
    self.target = self.design @ truth.ravel() + noise
    self.start = rng.normal(size=self.SHAPE)

  def gradient(self, w):
    residual = self.design @ w.reshape(-1) - self.target
    return (self.design.T @ residual / self.samples).reshape(self.SHAPE)

  def loss(self, w):
    residual = self.design @ np.asarray(w).ravel() - self.target
    return residual @ residual / (2 * self.samples)


def minimise(tx, problem):
  return np.asarray(converge(tx, problem, 3000)[0])


def both(penalty, lam, problem):
  """Where the step in Adam's metric ends, and the Euclidean one after Adam."""
  rate = optax.exponential_decay(LR, 3000, 1e-2)
  ours = rvsm_jax.proximal_adam(rate, penalty, lam=lam)
  euclidean = optax.chain(optax.adam(rate), rvsm_jax.proximal(rate, penalty, lam=lam))
  return minimise(ours, problem), minimise(euclidean, problem)


@pytest.mark.parametrize("alpha", [0.01, 0.1])
def test_lasso_agrees_with_scikit_learn(x64, alpha):
  linear_model = pytest.importorskip("sklearn.linear_model")
  problem = LeastSquares()
  lasso = linear_model.Lasso(alpha, fit_intercept=False, tol=1e-15, max_iter=10**6)
  best = lasso.fit(problem.design, problem.target).coef_.reshape(problem.SHAPE)
  assert 0 < np.count_nonzero(best) < best.size

  def objective(w):
    return problem.loss(w) + alpha * reference.norm1(w)

  ours, euclidean = both(rvsm_jax.l1(), alpha, problem)
  assert objective(ours) - objective(best) < 1e-9
  np.testing.assert_array_equal(ours == 0, best == 0)
  assert objective(euclidean) - objective(best) > 1e-3
  assert np.count_nonzero(euclidean) > np.count_nonzero(best)


def fista(problem, prox, steps=3000):
  """Accelerated proximal gradient descent in numpy, restarted where it overshoots."""
  hessian = problem.design.T @ problem.design / problem.samples
  rate = 1 / np.linalg.eigvalsh(hessian)[-1]
  w = point = problem.start
  momentum = 1.0
  for _ in range(steps):
    new = prox(point - rate * problem.gradient(point), rate)
    if np.sum((point - new) * (new - w)) > 0:
      momentum = 1.0
    following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
    point = new + (momentum - 1) / following * (new - w)
    w, momentum = new, following
  return w


@pytest.mark.parametrize(
  ("mu", "lam"), in_part([(0.0, 0.1), (0.0, 0.3), (0.5, 0.1)], (0.5, 0.1))
)
def test_group_lasso_agrees_with_accelerated_descent(x64, mu, lam):
  problem = LeastSquares()

  def prox(w, rate):
    soft = reference.soft(w, rate * lam * mu)
    shrink = functools.partial(reference.block_soft, threshold=rate * lam * (1 - mu))
    return reference.by_group(soft, "out", shrink)

  def objective(w):
    groups = reference.group_sum(w, "out", reference.norm2)
    return problem.loss(w) + lam * (mu * reference.norm1(w) + (1 - mu) * groups)

  best = fista(problem, prox)
  assert 0 < np.count_nonzero(np.any(best != 0, axis=0)) < best.shape[1]
  penalty = rvsm_jax.sparse_group_lasso(mu) if mu else rvsm_jax.group_lasso()
  ours, euclidean = both(penalty, lam, problem)
  assert abs(objective(ours) - objective(best)) < 1e-9
  np.testing.assert_array_equal(ours == 0, best == 0)
  assert objective(euclidean) - objective(best) > 1e-3
  assert np.count_nonzero(euclidean) > np.count_nonzero(best)


# The step of one update


def adam_step(grads, b1=0.9, b2=0.999, eps=1e-8):
  """Direction and step of each coordinate, from the definition."""
  m = v = 0.0
  for g in grads:
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
  m, v = m / (1 - b1 ** len(grads)), v / (1 - b2 ** len(grads))
  return m, LR / (np.sqrt(v) + eps)


@pytest.mark.parametrize("case", reference.SEPARABLE, ids=str)
def test_separable_updates_are_global_minimisers_in_the_metric(x64, case):
  rng = np.random.default_rng(0)
  # Gradients over six decades, and with them the metric.
  grads = rng.normal(size=(2, 60)) * 10 ** rng.uniform(-3, 3, 60)
  w = rng.normal(size=60)
  hyper = {k: 10 ** np.mean(ends) for k, ends in case.ranges.items()}
  penalty = getattr(rvsm_jax, case.name)(**case.static, **hyper)
  tx = rvsm_jax.proximal_adam(LR, penalty, lam=0.3)
  update = jax.jit(tx.update)
  _, state = update(grads[0], tx.init(w), w)
  updates, _ = update(grads[1], state, w)
  m, s = adam_step(grads)
  density = functools.partial(case.density, **case.static, **hyper)
  for x, step, got in zip(w - s * m, 0.3 * s, w + updates, strict=True):
    _, best = reference.scalar_minimum(density, np.array([x]), step)
    value = reference.scalar_objective(density, np.array([got]), np.array([x]), step)
    noise = 1e-12 * (step * density(np.abs(x)) + x**2 + w[0] ** 2)
    assert np.all(value - best <= np.maximum(noise, 1e-13)), (x, step, got)


def exact_shrinkage(x, gamma):
  """argmin ‖u‖ + sum (u - x)^2 / (2 gamma) of one group, by bisection in mpmath."""
  with mpmath.workdps(40):
    x, gamma = ([mpmath.mpf(float(v)) for v in values] for values in (x, gamma))
    pairs = [(v, g) for v, g in zip(x, gamma, strict=True) if v]

    def square(t):
      return mpmath.fsum((v / (t + g)) ** 2 for v, g in pairs)

    if all(g for _, g in pairs) and square(0) <= 1:
      return np.zeros(len(x))
    high = mpmath.sqrt(mpmath.fsum(v * v for v in x))
    low = high
    while square(low) <= 1:
      low /= 1024
    while high / low - 1 > mpmath.mpf(10) ** -20:
      middle = mpmath.sqrt(low * high)
      low, high = (middle, high) if square(middle) > 1 else (low, middle)
    return np.array([float(v * low / (low + g)) for v, g in zip(x, gamma, strict=True)])


GROUP = 7


@jax.jit
def metric_prox(x, gamma, mu=0.0):
  """Of one group, in the metric gamma."""
  return rvsm_jax.sparse_group_lasso(mu).prox(x[:, None], gamma[:, None])[:, 0]


@st.composite
def groups(draw):
  """A group and its steps, over up to 16 decades, near the threshold or not."""
  rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
  decades = draw(st.sampled_from([0, 1, 4, 8, 16]))
  gamma = 10 ** rng.uniform(-decades, 0, GROUP)
  if draw(st.booleans()):
    x = rng.normal(size=GROUP) * 10.0 ** rng.uniform(-decades, 0, GROUP)
  else:
    x = gamma * rng.uniform(-1, 1, GROUP)
  distance = draw(st.sampled_from([-1, 1])) * 10 ** draw(st.floats(-5, 0.5))
  x *= max(1 + distance, 0.05) / np.linalg.norm(x / gamma)
  scale = 10 ** draw(st.floats(-25, 25))
  return (scale * x).astype(np.float32), (scale * gamma).astype(np.float32)


@hypothesis.settings(max_examples=100)
@hypothesis.given(groups())
def test_metric_shrinkage_is_the_global_minimiser(problem):
  x, gamma = problem
  error = np.abs(np.asarray(metric_prox(x, gamma)) - exact_shrinkage(x, gamma))
  assert np.max(error) <= 6 * np.spacing(np.max(np.abs(x)))


def test_metric_shrinkage_is_relatively_accurate_in_the_stiff_coordinates():
  # The largest entry alone would be zero, and t is 1e-7 of it.
  x, gamma = np.float32([0.99, 2e-8]), np.float32([1.0, 1e-8])
  np.testing.assert_allclose(
    metric_prox(x, gamma), exact_shrinkage(x, gamma), rtol=1e-4
  )


@pytest.mark.parametrize("seed", range(4))
def test_zero_if_and_only_if_the_dual_norm_is_small(seed):
  rng = np.random.default_rng(seed)
  gamma = (10 ** rng.uniform(-8, 0, GROUP)).astype(np.float32)
  x = gamma * rng.normal(size=GROUP).astype(np.float32)
  x /= np.float32(np.linalg.norm(x / gamma))
  assert not np.any(metric_prox(np.float32(1 - 1e-5) * x, gamma))
  outside = metric_prox(np.float32(1 + 1e-5) * x, gamma)
  np.testing.assert_array_equal(np.sign(outside), np.sign(x))


def test_steps_spread_over_all_of_float32_end_in_a_finite_number():
  decades = np.arange(-37, 0, dtype=np.float32)
  gamma = np.float32(10) ** decades
  for factor in (0.1, 0.16, 0.17, 0.3, 1.0, 10.0):
    x = np.float32(factor) * gamma
    expected = exact_shrinkage(x, gamma)
    np.testing.assert_allclose(metric_prox(x, gamma), expected, rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize(
  "penalty",
  [
    rvsm_jax.group_lasso("in"),
    rvsm_jax.group_lasso((0, 1)),
    rvsm_jax.sparse_group_lasso(0.3),
    rvsm_jax.integrated_tl1(0.5, 0.3),
  ],
  ids=["in", "axes", "sparse_group_lasso", "integrated_tl1"],
)
def test_a_constant_metric_is_the_scalar_step(penalty):
  x = np.random.default_rng(0).normal(size=(3, 3, 4, 5)).astype(np.float32)

  @jax.jit
  def steps(step):
    full = jnp.full(x.shape, step)
    return [penalty.prox(x, s) for s in (step, full, full[:1, :1, :1, :1])]

  for step in (0.0, 0.5, 2.0, 6.0):
    scalar, full, broadcast = steps(jnp.float32(step))
    np.testing.assert_allclose(full, scalar, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(broadcast, full, rtol=1e-6, atol=1e-6)


def test_weights_of_groups_scale_the_metric():
  rng = np.random.default_rng(0)
  x, gamma = rng.normal(size=(2, 6, 4)).astype(np.float32)
  gamma, weights = gamma**2, np.float32([0.0, 0.5, 1.0, 2.0])
  u = rvsm_jax.group_lasso(weights=weights).prox(x, gamma)
  np.testing.assert_allclose(u, rvsm_jax.group_lasso().prox(x, weights * gamma))
  np.testing.assert_array_equal(u[:, 0], x[:, 0])


@hypothesis.given(groups(), st.floats(0, 1))
def test_sparse_group_lasso_satisfies_its_optimality_condition(problem, mu):
  x, gamma = np.float64(problem[0]), np.float64(problem[1])
  with jax.enable_x64(True):
    u = np.asarray(metric_prox(x, gamma, mu))
  # (x - u) / gamma is a subgradient of mu |u|_1 + (1 - mu) ‖u‖.
  slope = (x - u) / gamma
  if not np.any(u):
    assert np.linalg.norm(reference.soft(slope, mu)) <= 1 - mu + 1e-9
    return
  rest = slope - (1 - mu) * u / reference.norm2(u)
  # What the rounding of x - u, and of u, is worth after the division.
  noise = 1e-12 + 1e-14 * (np.abs(x) / gamma)
  at_zero = np.maximum(np.abs(rest) - mu, 0)
  error = np.where(u != 0, np.abs(rest - mu * np.sign(u)), at_zero)
  assert np.all(error <= np.maximum(noise, 1e-7 * (np.abs(u) > 0)))


# What is Adam, and stays Adam


def tree(dtype=jnp.float32, seed=1):
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  return {"dense": {"kernel": draw(6, 4), "bias": draw(4)}, "temperature": draw()}


def run(tx, params, steps=4):
  state = tx.init(params)
  update = jax.jit(tx.update)
  for seed in range(steps):
    grads = tree(params["temperature"].dtype, seed + 10)
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


@pytest.mark.parametrize(
  ("dtype", "tolerance", "rate"),
  [
    (jnp.float32, 1e-6, optax.linear_schedule(0.1, 0.0, 4)),
    (jnp.float64, 1e-14, LR),
  ],
  ids=["float32-schedule", "float64"],
)
def test_without_a_penalty_it_is_adam_step_for_step(dtype, tolerance, rate):
  decays = {"b1": 0.8, "b2": 0.95, "eps": 1e-6}
  with jax.enable_x64(dtype == jnp.float64):
    params = tree(dtype)
    tx = rvsm_jax.proximal_adam(rate, rvsm_jax.transformed_l1(), lam=0.0, **decays)
    for steps in (1, 3):
      got, state = run(tx, params, steps)
      expected, (adam_state, *_) = run(optax.adam(rate, **decays), params, steps)
      chex.assert_trees_all_close(got, expected, rtol=tolerance, atol=tolerance)
      chex.assert_trees_all_equal(tuple(state), tuple(adam_state))


def test_masked_leaves_are_adam_bit_for_bit():
  params = tree()
  tx = rvsm_jax.proximal_adam(LR, rvsm_jax.l1(), lam=1.0, mask=rvsm_jax.kernels)
  got, state = run(tx, params)
  expected, adam_state = run(optax.adam(LR), params)
  chex.assert_trees_all_equal(state.mu, adam_state[0].mu)
  chex.assert_trees_all_equal(got["dense"]["bias"], expected["dense"]["bias"])
  chex.assert_trees_all_equal(got["temperature"], expected["temperature"])
  assert np.any(got["dense"]["kernel"] == 0)
  assert np.all(expected["dense"]["kernel"] != 0)


def test_schedules_of_lam_and_of_the_learning_rate_see_the_old_count():
  w, g = jnp.array([1.0, -1.0]), jnp.array([0.5, 0.5])
  tables = jnp.array([0.1, 0.2]), jnp.array([0.0, 1.0])
  tx = rvsm_jax.proximal_adam(
    lambda count: tables[0][count], rvsm_jax.l1(), lam=lambda count: tables[1][count]
  )
  state = tx.init(w)
  updates, state = tx.update(g, state, w)
  np.testing.assert_allclose(updates, [-0.1, -0.1], rtol=1e-5)
  # The step is 0.2 / 0.5, and so is its soft threshold.
  updates, _ = tx.update(g, state, w)
  np.testing.assert_allclose(updates, [-0.6, 0.2], rtol=1e-5)


# State, dtypes, structure


def test_the_state():
  params = tree(jnp.bfloat16)
  tx = rvsm_jax.proximal_adam(LR, rvsm_jax.l1(), lam=0.1)
  state = tx.init(params)
  assert isinstance(state, rvsm_jax.ProximalAdamState)
  assert state._fields == ("count", "mu", "nu")
  assert (state.count.dtype, int(state.count)) == (jnp.int32, 0)
  for moments in (state.mu, state.nu):
    chex.assert_trees_all_equal(moments, jax.tree.map(jnp.zeros_like, params))
  # Gradients of another precision change the dtype of nothing.
  updates, new_state = tx.update(tree(jnp.float32), state, params)
  chex.assert_trees_all_equal_dtypes(updates, params)
  chex.assert_trees_all_equal_dtypes(new_state, state)
  last = state._replace(count=jnp.array(2**31 - 1, jnp.int32))
  assert tx.update(params, last, params)[1].count == 2**31 - 1


def test_a_leaf_without_update_keeps_its_moments():
  params = {"w": jnp.ones(3), "frozen": jnp.ones(2)}
  tx = rvsm_jax.proximal_adam(LR, rvsm_jax.l1(), lam=0.1)
  _, state = tx.update(params, tx.init(params), params)
  updates, later = tx.update({"w": jnp.ones(3), "frozen": None}, state, params)
  assert updates["frozen"] is None
  chex.assert_trees_all_equal(later.mu["frozen"], state.mu["frozen"])
  chex.assert_trees_all_equal(later.nu["frozen"], state.nu["frozen"])
  assert np.all(later.mu["w"] != state.mu["w"])


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.float32])
@pytest.mark.parametrize(
  ("penalty", "lam"),
  [
    (rvsm_jax.l1(), 3.0),
    (rvsm_jax.group_lasso(), 30.0),
    (rvsm_jax.integrated_tl1(0.5, 0.5), 10.0),
  ],
  ids=["l1", "group_lasso", "integrated_tl1"],
)
def test_zeros_are_exact_and_dead_groups_no_nan(penalty, lam, dtype):
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(16, 32)) * 2.0 ** rng.integers(-6, 1, 32)
  kernel[:, 0] = 0
  params = {"kernel": jnp.asarray(kernel, dtype)}
  # A zero gradient, as of a dead unit, in a group of zeros and in another.
  grads = {"kernel": jnp.asarray(rng.normal(size=(16, 32)), dtype).at[:, :2].set(0)}
  tx = rvsm_jax.proximal_adam(0.01, penalty, lam=lam)
  state = tx.init(params)
  for _ in range(3):
    updates, state = jax.jit(tx.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
  chex.assert_tree_all_finite((params, state))
  zero = np.asarray(params["kernel"]) == 0
  # Without a gradient the penalty alone decides.
  assert np.all(zero[:, :2])
  assert 0.1 < np.mean(zero) < 0.9


def test_divergence_stays_visible():
  params = {"w": jnp.ones((3, 1))}
  grads = {"w": jnp.array([[jnp.nan], [jnp.inf], [1.0]])}
  for penalty in (rvsm_jax.l1(), rvsm_jax.group_lasso("in")):
    tx = rvsm_jax.proximal_adam(LR, penalty, lam=0.1)
    updates, _ = jax.jit(tx.update)(grads, tx.init(params), params)
    w = optax.apply_updates(params, updates)["w"]
    assert jnp.isnan(w[0, 0])
    assert not jnp.isfinite(w[1, 0])
    assert jnp.isfinite(w[2, 0])


def test_two_updates_have_a_gradient_in_lam(x64):
  problem = LeastSquares()

  @jax.jit
  def solve(lam):
    tx = rvsm_jax.proximal_adam(LR, rvsm_jax.group_lasso(), lam=lam)
    w = jnp.asarray(problem.start)
    state = tx.init(w)
    for _ in range(2):
      updates, state = tx.update(problem.gradient(w), state, w)
      w = optax.apply_updates(w, updates)
    return w

  eps = 1e-6
  expected = (solve(0.3 + eps) - solve(0.3 - eps)) / (2 * eps)
  np.testing.assert_allclose(
    jax.jit(jax.jacfwd(solve))(0.3), expected, rtol=1e-5, atol=1e-8
  )
  assert np.any(expected != 0)


# Errors


@pytest.mark.parametrize(
  ("name", "penalty"),
  [
    ("l1_minus_l2", rvsm_jax.l1_minus_l2()),
    ("nuclear", rvsm_jax.nuclear()),
    ("exclusive_lasso", rvsm_jax.exclusive_lasso()),
    ("exclusive_lasso_one_step", rvsm_jax.exclusive_lasso_one_step()),
    ("combined_group_exclusive", rvsm_jax.combined_group_exclusive(0.5)),
    ("cardinality", rvsm_jax.cardinality(0.5)),
    ("cardinality", rvsm_jax.scaled(rvsm_jax.cardinality(0.5), 2.0)),
  ],
)
def test_penalties_without_a_map_in_a_metric_are_named(name, penalty):
  params = tree()
  tx = rvsm_jax.proximal_adam(LR, penalty, lam=0.1, mask=rvsm_jax.kernels)
  with pytest.raises(ValueError, match=rf"\b{name}\b") as raised:
    jax.eval_shape(tx.update, params, tx.init(params), params)
  report = str(raised.value) + "".join(raised.value.__notes__)
  assert "metric" in report
  assert "dense/kernel" in report


@pytest.mark.parametrize(
  ("argument", "value"),
  [
    *((name, value) for name in ("b1", "b2") for value in (-0.1, 1.0, 2, np.nan)),
    *(("eps", value) for value in (-1e-8, np.nan)),
  ],
)
def test_decays_out_of_range(argument, value):
  with pytest.raises(ValueError, match=argument) as raised:
    rvsm_jax.proximal_adam(LR, rvsm_jax.l1(), lam=0.1, **{argument: value})
  assert str(value) in str(raised.value)


def test_a_step_of_another_shape_is_refused():
  x = np.ones((6, 4), np.float32)
  for penalty in (rvsm_jax.sparse_group_lasso(0.5), rvsm_jax.group_lasso("in")):
    for shape in ((4,), (6, 5), (1, 6, 4)):
      with pytest.raises(ValueError, match="step"):
        penalty.prox(x, np.ones(shape, np.float32))


def test_it_is_in_the_docstring_of_what_it_replaces():
  assert "proximal_adam" in rvsm_jax.proximal.__doc__
