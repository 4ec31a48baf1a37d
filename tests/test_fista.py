"""FISTA finds what scikit-learn finds, keeps Optax's contract, and ends well."""

import functools
import warnings

from helpers import in_part
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import sklearn
from sklearn import datasets, linear_model

import rvsm_jax

pytestmark = pytest.mark.usefixtures("x64")

LAMS = np.array([0.5, 0.1, 0.02])  # Of the smallest lam for which all is zero.


def step_of(tx, loss):
  """One update, as `(params, state) -> (params, state)`."""
  value_and_grad = optax.value_and_grad_from_state(loss)

  def step(carry):
    params, state = carry
    value, grad = value_and_grad(params, state=state)
    updates, state = tx.update(
      grad, state, params, value=value, grad=grad, value_fn=loss
    )
    return optax.apply_updates(params, updates), state

  return step


def solve(loss, penalty, lam, params, tol=1e-9, limit=20_000, **options):
  """The iterate and the state at a residual of `tol`."""
  tx = rvsm_jax.fista(penalty, lam=lam, **options)
  params, state = jax.lax.while_loop(
    lambda c: ~(c[1].residual <= tol) & (c[1].count < limit),
    step_of(tx, loss),
    (params, tx.init(params)),
  )
  return rvsm_jax.sparse_params(state, params), state


def iterate(tx, loss, params, number):
  """The states of so many updates, stacked, and the last params."""
  step = step_of(tx, loss)

  def body(carry, _):
    carry = step(carry)
    return carry, carry[1]

  run = jax.jit(lambda p: jax.lax.scan(body, (p, tx.init(p)), length=number))
  (params, _), states = run(params)
  return params, states


def standardised(x):
  x = x[:, np.std(x, 0) > 0]
  return (x - x.mean(0)) / x.std(0)


@functools.cache
def regression(name):
  if name == "diabetes":
    x, y = datasets.load_diabetes(return_X_y=True)
  else:
    x, y = datasets.make_regression(60, 100, n_informative=8, noise=5, random_state=0)
  return standardised(x), y - y.mean()


@functools.cache
def classification(name):
  if name == "breast_cancer":
    x, y = datasets.load_breast_cancer(return_X_y=True)
  else:
    x, y = datasets.make_classification(150, 40, random_state=0)
  return standardised(x), 2.0 * y - 1


@functools.cache
def several_tasks(name):
  if name == "digits":
    x, labels = datasets.load_digits(return_X_y=True)
    x, y = x[:500], np.eye(10)[labels[:500]]
  else:
    x, y = datasets.make_regression(80, 40, n_targets=5, noise=9, random_state=0)
  return standardised(x), y - y.mean(0)


def squares(x, y):
  return lambda w: jnp.sum((y - x @ w) ** 2) / (2 * len(y))


def logistic(x, y):
  return lambda w: jnp.mean(jnp.logaddexp(0, -y * (x @ w)))


def path(loss, penalty, lams, shape):
  """The solutions for all lams at once, which have converged."""
  one = functools.partial(solve, loss, penalty, params=jnp.zeros(shape))
  found, state = jax.jit(jax.vmap(lambda lam: one(lam)))(jnp.asarray(lams))
  assert np.all(state.residual <= 1e-9)
  return np.asarray(found)


def assert_same(objective, found, reference):
  """Equal objectives, to 1e-8 of them, and supports."""
  ours, theirs = objective(jnp.asarray(found)), objective(jnp.asarray(reference))
  np.testing.assert_allclose(ours, theirs, rtol=1e-8)
  np.testing.assert_array_equal(found != 0, reference != 0)


# Against scikit-learn


@pytest.mark.parametrize("data", in_part(["diabetes", "random"], "random"))
def test_lasso_and_elastic_net(data):
  x, y = regression(data)
  lams = LAMS * np.max(np.abs(x.T @ y)) / len(y)
  alphas = np.array([0.0, 0.3])

  def one(alpha, lam):
    penalty = rvsm_jax.elastic_net(alpha)
    return solve(squares(x, y), penalty, lam, jnp.zeros(x.shape[1]))

  found, state = jax.jit(jax.vmap(jax.vmap(one, (None, 0)), (0, None)))(alphas, lams)
  assert np.all(state.residual <= 1e-9)
  for alpha, several in zip(alphas, np.asarray(found), strict=True):
    for lam, w in zip(lams, several, strict=True):
      model = linear_model.ElasticNet(
        lam * (1 + alpha),
        l1_ratio=1 / (1 + alpha),
        fit_intercept=False,
        tol=1e-14,
        max_iter=10**6,
      ).fit(x, y)
      value = rvsm_jax.elastic_net(alpha).value
      assert_same(
        lambda w, lam=lam, value=value: squares(x, y)(w) + lam * value(w),
        w,
        model.coef_,
      )


@pytest.mark.parametrize("data", in_part(["breast_cancer", "random"], "random"))
def test_logistic_regression(data):
  x, y = classification(data)
  loss, penalty = logistic(x, y), rvsm_jax.l1()
  lams = LAMS * np.max(np.abs(jax.grad(loss)(jnp.zeros(x.shape[1]))))
  old = int(sklearn.__version__.split(".")[1]) < 8
  l1 = {"penalty": "l1"} if old else {"l1_ratio": 1}
  for lam, found in zip(lams, path(loss, penalty, lams, x.shape[1]), strict=True):
    model = linear_model.LogisticRegression(
      C=1 / (lam * len(y)),
      solver="liblinear",
      fit_intercept=False,
      tol=1e-10,
      max_iter=10**5,
      **l1,
    ).fit(x, y)
    assert_same(
      lambda w, lam=lam: loss(w) + lam * penalty.value(w), found, model.coef_[0]
    )


@pytest.mark.parametrize("data", in_part(["digits", "random"], "random"))
def test_multi_task_lasso(data):
  x, y = several_tasks(data)
  penalty = rvsm_jax.group_lasso("in")
  lams = LAMS * np.max(np.linalg.norm(x.T @ y, axis=1)) / len(y)
  shape = (x.shape[1], y.shape[1])
  for lam, found in zip(lams, path(squares(x, y), penalty, lams, shape), strict=True):
    model = linear_model.MultiTaskLasso(
      lam, fit_intercept=False, tol=1e-14, max_iter=10**5
    ).fit(x, y)
    assert_same(
      lambda w, lam=lam: squares(x, y)(w) + lam * penalty.value(w), found, model.coef_.T
    )


def test_group_lasso_is_optimal():
  """Logistic regression with pixels in the groups of their rows, weighted by size."""
  images, labels = datasets.load_digits(n_class=2, return_X_y=True)
  x, y = (images - 8) / 8, 2.0 * labels - 1
  weights = np.linspace(1, 3, 8)
  penalty = rvsm_jax.group_lasso((1,), weights)
  loss = logistic(x, y)

  def of_groups(w):
    return loss(w.reshape(-1))

  slope = np.linalg.norm(jax.grad(of_groups)(jnp.zeros((8, 8))), axis=1)
  lams = LAMS * np.max(slope / weights)
  for lam, found in zip(lams, path(of_groups, penalty, lams, (8, 8)), strict=True):
    g = np.asarray(jax.grad(of_groups)(jnp.asarray(found)))
    alive = np.any(found != 0, axis=1)
    assert 0 < alive.sum() < 8
    assert np.all(np.linalg.norm(g[~alive], axis=1) <= lam * weights[~alive])
    unit = found[alive] / np.linalg.norm(found[alive], axis=1, keepdims=True)
    np.testing.assert_allclose(g[alive], -lam * weights[alive, None] * unit, atol=1e-8)


# The method


def quadratic(condition=1000.0, size=50):
  """A quadratic with these eigenvalues, whose minimum is far from zero."""
  scales = jnp.geomspace(1, condition, size)
  return lambda w: jnp.sum(scales * (w - 1) ** 2) / 2


def steps_to(tol, **options):
  _, state = jax.jit(
    lambda: solve(quadratic(), rvsm_jax.l1(), 0.1, jnp.zeros(50), tol, **options)
  )()
  return int(state.count)


@pytest.mark.slow
def test_momentum_and_restarts_pay():
  fast, published = steps_to(1e-8), steps_to(1e-8, restart=False)
  plain = steps_to(1e-8, accelerated=False)
  assert 1.5 * fast < published
  assert 5 * fast < plain


@pytest.mark.parametrize("accelerated", [True, False])
def test_a_first_step_far_off(accelerated):
  def one(step):
    options = {"step": step, "accelerated": accelerated}
    return solve(quadratic(10.0), rvsm_jax.l1(), 0.1, jnp.zeros(50), **options)[1]

  state = jax.vmap(one)(jnp.array([1e-7, 1e5]))
  assert np.all(state.residual <= 1e-9)
  assert np.all((state.step > 0.02) & (state.step <= 1))


@pytest.mark.slow
def test_the_rate_of_the_theory():
  """F(x_k) - F* <= 2 |x_0 - x*|^2 / (eta (k + 1)^2), Beck & Teboulle, Theorem 4.4."""
  loss, lam = quadratic(), 0.1
  options = {"restart": False, "increase_factor": 1.0, "step": 1e-3}
  tx = rvsm_jax.fista(rvsm_jax.l1(), lam=lam, **options)
  _, states = iterate(tx, loss, jnp.zeros(50), 200)
  best = 1 - lam / np.geomspace(1, 1000, 50)

  def objective(w):
    return loss(w) + lam * jnp.sum(jnp.abs(w))

  gaps = jax.vmap(objective)(states.u) - objective(jnp.asarray(best))
  bound = 2 * np.sum(best**2) / (1e-3 * np.arange(2, 202) ** 2)
  assert np.all(gaps <= bound)
  np.testing.assert_array_equal(states.step, 1e-3)


def test_monotone_descends_where_nothing_is_convex():
  x, y = regression("random")

  def loss(w):
    return jnp.mean(1 - jnp.exp(-((y - x @ w) ** 2) / 1e4))

  penalty = rvsm_jax.transformed_l1(1.0)

  def objectives(**options):
    tx = rvsm_jax.fista(penalty, lam=1e-3, **options)
    _, states = iterate(tx, loss, jnp.zeros(100), 300)
    return jax.vmap(lambda u: loss(u) + 1e-3 * penalty.value(u))(states.u), states

  descent, states = objectives(monotone=True)
  assert np.all(np.diff(descent) <= 1e-14)
  np.testing.assert_allclose(states.objective, descent, rtol=1e-12)
  assert descent[-1] < 0.9 * descent[0]
  free, _ = objectives(restart=False)
  assert np.any(np.diff(free) > 1e-9)


def test_to_the_last_digit_in_single_precision():
  """Where differences of the loss are rounding, steps neither shrink nor explode."""
  x, y = (jnp.asarray(a, jnp.float32) for a in regression("diabetes"))
  tx = rvsm_jax.fista(rvsm_jax.l1(), lam=jnp.float32(2.0))
  _, states = iterate(tx, squares(x, y), jnp.zeros(10, jnp.float32), 400)
  late = jax.tree.map(lambda s: s[200:], states)
  assert states.u.dtype == states.step.dtype == states.residual.dtype == jnp.float32
  assert np.min(late.step) > 0.05
  assert np.max(late.step) < 10
  assert np.mean(late.evaluations) < 1.2
  reference = linear_model.Lasso(2.0, fit_intercept=False, tol=1e-12).fit(x, y)
  np.testing.assert_allclose(states.u[-1], reference.coef_, rtol=1e-4, atol=1e-3)


def test_problems_at_once_share_their_data():
  """No array of the program has the data once for each problem."""
  x, y = regression("diabetes")
  loss, tx = squares(x, y), rvsm_jax.fista(rvsm_jax.l1(), lam=1.0)

  def step(params, state):
    value, grad = jax.value_and_grad(loss)(params)
    return tx.update(grad, state, params, value=value, grad=grad, value_fn=loss)

  params = jnp.zeros((7, x.shape[1]))
  state = jax.vmap(tx.init)(params)
  program = str(jax.make_jaxpr(jax.vmap(step))(params, state))
  assert "442,10]" in program
  assert "7,442,10]" not in program


# Losses that are not well


def test_not_finite_at_the_first_trial():
  def loss(w):  # Infinite or NaN beyond 1.
    return jnp.sum(-jnp.log(1 - w) - 3 * w)

  found, state = solve(loss, rvsm_jax.l1(), 1.0, jnp.zeros(3), step=1e3)
  np.testing.assert_allclose(found, 0.5, rtol=1e-8)
  assert state.residual <= 1e-9


def test_flat():
  """The penalty alone decides, and without one the params stay and the step ends."""
  for lam, expected in ((1.0, 0.0), (0.0, 1.0)):
    tx = rvsm_jax.fista(rvsm_jax.l1(), lam=lam, step=0.01)
    _, states = iterate(tx, lambda w: 1 + 0 * jnp.sum(w), jnp.ones(3), 1500)
    np.testing.assert_array_equal(states.u[-1], expected)
    np.testing.assert_array_equal(states.residual[-1], 0)
    assert np.all(np.isfinite(states.step))


def test_without_a_penalty_it_is_a_gradient_method():
  found, _ = solve(quadratic(), rvsm_jax.l1(), 0.0, jnp.zeros(50))
  np.testing.assert_allclose(found, 1, rtol=1e-9)


@pytest.mark.parametrize("accelerated", [True, False])
def test_nan_is_not_hidden(accelerated):
  tx = rvsm_jax.fista(rvsm_jax.l1(), lam=1.0, accelerated=accelerated)
  params, states = iterate(tx, lambda w: jnp.sum(w) * jnp.nan, jnp.ones(3), 3)
  assert np.all(np.isnan(params))
  assert np.all(np.isnan(states.u))
  assert np.all(np.isnan(states.residual))


def test_where_no_step_descends_the_iterate_stays():
  def loss(w):  # Its gradient has the wrong sign.
    return jnp.sum(jax.lax.stop_gradient(-2 * w) + w)

  tx = rvsm_jax.fista(rvsm_jax.l1(), lam=0.0, max_backtracking_steps=5)
  _, states = iterate(tx, loss, jnp.ones(3), 2)
  np.testing.assert_array_equal(states.u, 1)
  np.testing.assert_array_equal(states.residual, np.inf)
  np.testing.assert_array_equal(states.evaluations, 6)
  assert np.all(np.diff(states.trial) < 0)


# Optax's contract


def test_as_few_evaluations_as_there_can_be():
  """One per update without acceleration, gradient included, and one beside it with."""
  calls = []

  def counted(w):
    jax.debug.callback(lambda: calls.append(1))
    return quadratic(4.0)(w)

  def run(accelerated):
    calls.clear()
    tx = rvsm_jax.fista(
      rvsm_jax.l1(), lam=0.1, step=0.1, increase_factor=1.0, accelerated=accelerated
    )
    iterate(tx, counted, jnp.zeros(50), 5)
    jax.effects_barrier()
    return len(calls)

  assert run(accelerated=False) == 1 + 5
  assert run(accelerated=True) == 2 * 5


def test_extra_arguments():
  def loss(w, x, y):
    return squares(x, y)(w)

  x, y = regression("diabetes")
  tx = rvsm_jax.fista(rvsm_jax.l1(), lam=1.0)
  w = jnp.zeros(10)
  value, grad = jax.value_and_grad(loss)(w, x, y)
  given = {"value": value, "grad": grad, "value_fn": loss, "x": x, "y": y}
  _, state = jax.jit(lambda g, w: tx.update(g, tx.init(w), w, **given))(grad, w)
  assert np.count_nonzero(state.u)
  with pytest.raises(TypeError, match=r"\['batch'\], which value_fn does not take"):
    tx.update(grad, tx.init(w), w, **given, batch=3)
  with pytest.raises(TypeError, match="value_fn"):
    tx.update(grad, tx.init(w), w)
  with pytest.raises(ValueError, match="fista needs params"):
    tx.update(grad, tx.init(w), **given)


@pytest.mark.slow
def test_data_sets_and_lams_at_once():
  """A cross-validation in one program is what its parts are one by one."""
  x, y = regression("diabetes")
  folds = jnp.asarray(np.stack([np.arange(442) % 3 != k for k in range(3)]), x.dtype)
  lams = jnp.array([1.0, 10.0])

  def one(fold, lam):
    def loss(w):
      return jnp.sum(fold * (y - x @ w) ** 2) / (2 * jnp.sum(fold))

    return solve(loss, rvsm_jax.l1(), lam, jnp.zeros(10))[0]

  grid = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
  for fold, several in zip(folds, jax.jit(grid)(folds, lams), strict=True):
    for lam, found in zip(lams, several, strict=True):
      model = linear_model.Lasso(float(lam), fit_intercept=False, tol=1e-12)
      model.fit(x[fold > 0], y[fold > 0])
      np.testing.assert_allclose(found, model.coef_, atol=1e-6)


def test_masked_leaves_are_in_the_smooth_problem():
  x, y = classification("breast_cancer")

  def loss(p):
    return logistic(x, y)(p["kernel"]) + jnp.mean((p["bias"] - 2) ** 2)

  zeros = {"kernel": jnp.zeros(30), "bias": jnp.zeros(1)}
  options = {"mask": {"kernel": True, "bias": False}}
  found, _ = jax.jit(lambda: solve(loss, rvsm_jax.l1(), 0.05, zeros, 1e-8, **options))()
  np.testing.assert_allclose(found["bias"], 2, atol=1e-7)
  w, g = found["kernel"], jax.grad(loss)(found)["kernel"]
  assert 0 < np.count_nonzero(w) < 15
  np.testing.assert_allclose(g[w != 0], -0.05 * np.sign(w[w != 0]), atol=1e-7)
  assert np.all(np.abs(g) <= 0.05 + 1e-7)


def test_mixed_dtypes_keep_theirs():
  params = {"a": jnp.zeros(3, jnp.bfloat16), "b": jnp.zeros(2, jnp.float32)}

  def loss(p):
    return sum(jnp.sum((w.astype(jnp.float32) - 1) ** 2) for w in p.values())

  tx = rvsm_jax.fista(rvsm_jax.l1(), lam=0.1)
  params, states = iterate(tx, loss, params, 20)
  assert states.u["a"].dtype == params["a"].dtype == jnp.bfloat16
  assert states.value.dtype == states.step.dtype == jnp.float32
  np.testing.assert_allclose(states.u["b"][-1], 0.95, rtol=1e-5)
  np.testing.assert_allclose(np.asarray(states.u["a"][-1], float), 0.95, rtol=0.01)


def test_one_penalty_of_all_leaves():
  penalty = rvsm_jax.cardinality(0.5, scope="all")
  target = {"a": jnp.array([3.0, 2.0]), "b": jnp.array([0.1, 0.2])}

  def loss(p):
    return optax.tree.norm(optax.tree.sub(p, target), squared=True) / 2

  found, _ = solve(loss, penalty, 1.0, optax.tree.zeros_like(target), monotone=True)
  np.testing.assert_allclose(found["a"], target["a"])
  np.testing.assert_array_equal(found["b"], 0)


@pytest.mark.parametrize("explicit", in_part([False, True], True))
def test_sharded_data_and_params(explicit):
  x, y = regression("random")
  x, y = x[:56], y[:56]
  kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
  mesh = jax.make_mesh((4,), ("d",), axis_types=(kind,), devices=jax.devices()[:4])
  spec = jax.sharding.PartitionSpec

  def place(a, *axes):
    return jax.device_put(jnp.asarray(a), jax.sharding.NamedSharding(mesh, spec(*axes)))

  def fit(x, y, w):
    def loss(w):
      return jnp.sum((y - jnp.sum(x * w, axis=1)) ** 2) / (2 * len(y))

    return solve(loss, rvsm_jax.l1(), 5.0, w)

  w = jnp.zeros(100)
  expected = linear_model.Lasso(5.0, fit_intercept=False, tol=1e-14).fit(x, y).coef_
  with jax.set_mesh(mesh):
    by_columns, state = jax.jit(fit)(place(x, None, "d"), place(y), place(w, "d"))
  np.testing.assert_allclose(by_columns, expected, atol=1e-6)
  np.testing.assert_array_equal(by_columns != 0, expected != 0)
  assert state.u.sharding.spec == spec("d")


def test_leaves_without_a_gradient_stay():
  params = {"a": jnp.zeros(2), "b": jnp.ones(2)}
  tx = rvsm_jax.fista(rvsm_jax.l1(), lam=0.1, accelerated=False)

  def loss(p):
    return jnp.sum((p["a"] - p["b"]) ** 2) / 2

  value, grad = jax.value_and_grad(loss)(params)
  updates, state = tx.update(
    {**grad, "b": None},
    tx.init(params),
    params,
    value=value,
    grad={**grad, "b": None},
    value_fn=loss,
  )
  assert updates["b"] is None
  np.testing.assert_allclose(state.u["a"], 0.9)
  np.testing.assert_array_equal(state.u["b"], 1)


@pytest.mark.parametrize(
  ("argument", "value", "message"),
  [
    ("lam", -1.0, "lam must be a number >= 0"),
    ("step", 0.0, "step must be a finite number > 0"),
    ("increase_factor", 0.5, "increase_factor must be a finite number >= 1"),
    ("decrease_factor", 1.0, r"decrease_factor must be a number in \(0, 1\)"),
    ("max_backtracking_steps", 1.5, "max_backtracking_steps must be an integer >= 0"),
  ],
)
def test_arguments_out_of_range(argument, value, message):
  with pytest.raises(ValueError, match=message):
    rvsm_jax.fista(rvsm_jax.l1(), **{"lam": 1.0, argument: value})


def test_a_schedule_of_lam():
  def loss(w):
    return jnp.sum((w - 3) ** 2) / 2

  tx = rvsm_jax.fista(rvsm_jax.l1(), lam=optax.linear_schedule(2.0, 1.0, 5))
  with warnings.catch_warnings():
    warnings.simplefilter("error")
    _, states = iterate(tx, loss, jnp.zeros(1), 30)
  np.testing.assert_allclose(states.u[0], 1, rtol=1e-9)
  np.testing.assert_allclose(states.u[-1], 2, rtol=1e-9)


def test_implicit_derivative():
  """That of the page on sparse regression, against finite differences."""
  x, y = regression("diabetes")
  loss, penalty = squares(x, y), rvsm_jax.l1()

  def solution(lam):
    def equation(w):
      return w - penalty.prox(w - jax.grad(loss)(w), lam)

    def find(_, w):
      return solve(loss, penalty, lam, w, 1e-10)[0]

    def linear(function, b):
      return jnp.linalg.solve(jax.jacobian(function)(b), b)

    return jax.lax.custom_root(equation, jnp.zeros(10), find, linear)

  def measure(lam):
    return jnp.sum(jnp.sin(solution(lam)))

  value, at = jax.jit(measure), 3.0
  found = jax.jit(jax.grad(measure))(at)
  expected = (value(at + 1e-4) - value(at - 1e-4)) / 2e-4
  np.testing.assert_allclose(found, expected, rtol=1e-6)
  assert abs(expected) > 0.1
