"""The threshold of a proximal map from its step, and the step from the threshold."""

from cases import CASES, CONSTRUCTORS, typical
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax

SEPARABLE = [case for case in CASES if case.separable and case.name != "nonnegative"]
every = pytest.mark.parametrize("case", SEPARABLE, ids=str)
STEPS = np.geomspace(1e-4, 50, 40).astype(np.float32)
WITHOUT = (
  "nonnegative",
  "cardinality",
  "nuclear",
  "l1_minus_l2",
  "sparse_group_lasso-out",
  "exclusive_lasso-out",
  "combined_group_exclusive-out",
  "exclusive_lasso_one_step",
  "integrated_tl1",
)
OWN = rvsm_jax.Penalty(
  value=lambda x: jnp.sum(jnp.abs(x)) * 2,
  prox=lambda x, step: x - jnp.clip(x, -2 * step, 2 * step),
)


@pytest.mark.parametrize("case", typical(SEPARABLE), ids=str)
def test_the_map_is_zero_up_to_the_threshold_and_not_above(case):
  threshold = rvsm_jax.threshold_for_step(case.penalty, STEPS)
  assert np.all(case.penalty.prox(threshold * (1 - 1e-5), STEPS) == 0)
  assert np.all(case.penalty.prox(threshold * (1 + 1e-5), STEPS) > 0)


@every
def test_the_step_has_the_threshold(case):
  step = rvsm_jax.step_for_threshold(case.penalty, STEPS)
  threshold = rvsm_jax.threshold_for_step(case.penalty, step)
  np.testing.assert_allclose(threshold, STEPS, rtol=2e-5)


@every
def test_traced_hyperparameters_steps_and_thresholds(case):
  @jax.jit
  def both(step, hyper):
    penalty = case.make(**hyper)
    threshold = rvsm_jax.threshold_for_step(penalty, step)
    return threshold, rvsm_jax.step_for_threshold(penalty, threshold)

  threshold, step = both(STEPS, dict(case.hyper))
  expected = rvsm_jax.threshold_for_step(case.penalty, STEPS)
  np.testing.assert_allclose(threshold, expected, rtol=1e-5)
  np.testing.assert_allclose(step, STEPS, rtol=1e-4)


@pytest.mark.parametrize("name", ["l0", "l1", "transformed_l1", "log_penalty"])
def test_double_precision(name):
  case = CONSTRUCTORS[name]
  with jax.enable_x64(True):
    threshold = rvsm_jax.threshold_for_step(case.penalty, 0.01)
    assert threshold.dtype == jnp.float64
    step = rvsm_jax.step_for_threshold(case.penalty, threshold)
    np.testing.assert_allclose(step, 0.01, rtol=1e-12)


@every
def test_nothing_is_zero_without_a_step(case):
  assert rvsm_jax.step_for_threshold(case.penalty, 0.0) == 0
  # The smallest number that is not zero, at most.
  assert rvsm_jax.threshold_for_step(case.penalty, 0.0) < 1e-37


@pytest.mark.parametrize(
  ("make", "of_weights"),
  [(rvsm_jax.group_lasso, [0.1, 0.4]), (rvsm_jax.group_l0, [0.2**0.5, 0.8**0.5])],
)
def test_the_threshold_of_a_group_is_that_of_its_norm(make, of_weights):
  penalty, norms = make("out"), jnp.array([0.4, 0.6])
  x = norms / 2 * jnp.ones((4, 2))
  step = rvsm_jax.step_for_threshold(penalty, 0.5)
  assert [bool(jnp.any(column)) for column in penalty.prox(x, step).T] == [False, True]
  weighted = make("out", weights=jnp.array([1.0, 4.0]))
  thresholds = rvsm_jax.threshold_for_step(weighted, 0.1)
  np.testing.assert_allclose(thresholds, of_weights, rtol=1e-6)
  steps = rvsm_jax.step_for_threshold(weighted, thresholds)
  np.testing.assert_allclose(steps, 0.1, rtol=1e-6)


def test_a_penalty_of_ones_own_is_bisected():
  assert rvsm_jax.threshold_for_step(OWN, 0.25) == 0.5
  assert rvsm_jax.step_for_threshold(OWN, 0.5) == pytest.approx(0.25)
  nothing = rvsm_jax.Penalty(lambda x: jnp.zeros(()), lambda x, step: x)
  assert rvsm_jax.threshold_for_step(nothing, 1.0) < 1e-37
  assert rvsm_jax.step_for_threshold(nothing, 1e-3) == jnp.inf


def test_scaled_and_rebuilt_penalties_keep_it():
  scaled = rvsm_jax.scaled(rvsm_jax.l0(), 4.0)
  assert rvsm_jax.threshold_for_step(scaled, 0.5) == 2
  assert rvsm_jax.step_for_threshold(scaled, 2.0) == 0.5
  rebuilt = rvsm_jax.Penalty(*rvsm_jax.l0())._replace(value=jnp.sum)
  assert rvsm_jax.step_for_threshold(rebuilt, 1.0) == 0.5
  assert rvsm_jax.threshold_for_step(rvsm_jax.scaled(OWN, 2.0), 0.25) == 1


def test_a_ramp_of_the_threshold_in_rvsm():
  penalty, beta = rvsm_jax.transformed_l1(0.1), 0.5
  ramp = optax.linear_schedule(0.0, 1.0, 10)
  tx = rvsm_jax.rvsm(
    0.1,
    penalty,
    lam=lambda count: beta * rvsm_jax.step_for_threshold(penalty, ramp(count)),
    beta=beta,
  )
  w = jnp.linspace(0.05, 1.15, 12)
  state, update = tx.init(w), jax.jit(tx.update)
  for count in range(1, 11):
    _, state = update(jnp.zeros_like(w), state, w)
    np.testing.assert_array_equal(state.u != 0, w > count / 10)


@pytest.mark.parametrize("name", WITHOUT)
def test_penalties_without_a_threshold_are_refused(name):
  for function in (rvsm_jax.step_for_threshold, rvsm_jax.threshold_for_step):
    with pytest.raises(ValueError, match="penalty has no threshold"):
      function(CONSTRUCTORS[name].penalty, 0.1)


def test_arguments_are_checked():
  with pytest.raises(TypeError, match=r"Did you mean l0\(\)\?"):
    rvsm_jax.step_for_threshold(rvsm_jax.l0, 0.1)
  with pytest.raises(ValueError, match="threshold must be a number >= 0, got -1"):
    rvsm_jax.step_for_threshold(rvsm_jax.l0(), -1)
  with pytest.raises(ValueError, match="step must be a number >= 0, got nan"):
    rvsm_jax.threshold_for_step(rvsm_jax.l0(), float("nan"))
