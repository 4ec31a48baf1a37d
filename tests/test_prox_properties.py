"""What every penalty keeps: symmetries, limits, dtypes, transformations, odd inputs."""

import functools
from typing import Any

from cases import CASES, SHAPE, Case, prox, sample, to_numpy, typical, value
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import rvsm_jax

pytestmark = pytest.mark.filterwarnings("error")

STEPS = (1e-3, 0.05, 0.3, 2.0)
X = sample().astype(np.float32)

every = pytest.mark.parametrize("case", CASES, ids=str)
typical_case = pytest.mark.parametrize("case", typical(CASES), ids=str)
separable = pytest.mark.parametrize("case", [c for c in CASES if c.separable], ids=str)
scalar = pytest.mark.parametrize("case", [c for c in CASES if not c.diagonal], ids=str)


def _apply(case: Case, x: Any, step: Any) -> np.ndarray:
  return np.asarray(prox(case)(x, step, dict(case.hyper)))


def _assert_close(actual: Any, desired: Any, ulps: float = 16):
  """Within some ulp of float32 of the largest desired number."""
  desired = to_numpy(desired)
  finite = np.abs(desired[np.isfinite(desired)])
  atol = ulps * 2.0**-24 * np.max(finite, initial=0.0)
  np.testing.assert_allclose(to_numpy(actual), desired, rtol=0, atol=atol)


# ------------------------------------------------------------------------------------
# Shapes of the map.
# ------------------------------------------------------------------------------------
@every
def test_step_zero_is_the_identity(case: Case):
  np.testing.assert_array_equal(_apply(case, X, 0.0), X)


@every
def test_zero_is_a_fixed_point(case: Case):
  for step in (0.0, *STEPS):
    np.testing.assert_array_equal(_apply(case, np.zeros_like(X), step), 0)


@every
def test_odd(case: Case):
  if not case.odd:
    pytest.skip("an indicator of one sign")
  for step in STEPS:
    _assert_close(_apply(case, -X, step), -_apply(case, X, step))


@every
def test_shrinks(case: Case):
  for step in STEPS:
    u = _apply(case, X, step)
    if case.shrinks:
      assert np.all(np.abs(u) <= np.abs(X))
    assert np.linalg.norm(u) <= np.linalg.norm(X)


@separable
def test_increasing(case: Case):
  """Also across the thresholds: each decade is sampled finely, in float64."""
  with jax.enable_x64(True):
    x = np.geomspace(1e-3, 10, 20001)
    x = np.concatenate([-x[::-1], [0.0], x])
    for step in STEPS:
      u = _apply(case, x, step)
      assert np.all(np.diff(u) >= -1e-14 * np.abs(x[1:]))


@pytest.mark.parametrize("case", [c for c in CASES if c.convex], ids=str)
def test_convex_is_firmly_nonexpansive(case: Case):
  """norm(p - q)^2 <= <p - q, x - y>, which implies norm(p - q) <= norm(x - y)."""
  for step in STEPS:
    for seed in range(8):
      y = sample(seed=seed + 1).astype(np.float32)
      moved = _apply(case, X, step) - _apply(case, y, step)
      scale = np.sum((X - y) ** 2)
      assert np.sum(moved**2) <= np.sum(moved * (X - y)) + 1e-6 * scale


@pytest.mark.parametrize("name", ["l0", "group_lasso-weights", "exclusive_lasso-out"])
def test_scaling_law(name: str):
  """A factor of the penalty is a factor of the step."""
  case = next(case for case in CASES if case.name == name)
  scaled = jax.jit(
    lambda x, step, lam: rvsm_jax.scaled(case.penalty, lam).prox(x, step)
  )
  for lam, step in ((2.0, 0.05), (0.25, 2.0)):
    _assert_close(scaled(X, step, lam), _apply(case, X, lam * step))
  u = _apply(case, X, 0.3)
  expected = 3.0 * to_numpy(case.penalty.value(u))
  actual = rvsm_jax.scaled(case.penalty, 3.0).value(u)
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


@every
def test_value_is_the_definition(case: Case):
  for x in (X, np.abs(X), np.zeros_like(X), _apply(case, X, 0.3)):
    actual = value(case)(x, dict(case.hyper))
    assert actual.shape == ()
    assert actual.dtype == jnp.float32
    expected = case.value(x.astype(np.float64), **case.hyper)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-30)


@scalar
def test_only_a_scalar_step(case: Case):
  """No map is known for a step per component; the error says whose."""
  if case.name.endswith("-metric"):
    pytest.skip("has one of its own")
  steps = np.full(SHAPE, 0.1, np.float32)
  with pytest.raises(ValueError, match=rf"step .*\b{case.name.split('-')[0]}\b"):
    case.penalty.prox(X, steps)


@pytest.mark.parametrize("case", typical(c for c in CASES if c.diagonal), ids=str)
def test_a_constant_step_per_component_is_a_scalar_step(case: Case):
  for step in (0.0, *STEPS):
    u = _apply(case, X, np.full(SHAPE, step, np.float32))
    _assert_close(u, _apply(case, X, step))


@pytest.mark.parametrize("make", [rvsm_jax.group_lasso, rvsm_jax.group_l0])
@pytest.mark.parametrize("groups", ["out", (0,)])
def test_one_norm_per_group_takes_a_step_per_group(make: Any, groups: reference.Groups):
  penalty = make(groups)
  steps = np.array([0.0, 0.05, 0.3, 2.0], np.float32)
  u = penalty.prox(X, steps)
  for k, step in enumerate(steps):
    _assert_close(u[:, k], penalty.prox(X, step)[:, k])
  np.testing.assert_array_equal(u[:, 0], X[:, 0])


# ------------------------------------------------------------------------------------
# Components and groups are independent, and one formula serves any array.
# ------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", typical(c for c in CASES if c.separable), ids=str)
def test_scalar_vmap_and_array_agree(case: Case):
  for step in STEPS:
    u = _apply(case, X, step)
    each = jax.jit(jax.vmap(case.penalty.prox, (0, None)))(X.ravel(), step)
    _assert_close(np.ravel(u), each, ulps=4)
    np.testing.assert_allclose(_apply(case, X[1, 2], step), u[1, 2], rtol=1e-6)


@pytest.mark.parametrize("case", typical(c for c in CASES if c.separable), ids=str)
def test_step_and_hyperparameters_may_be_arrays(case: Case):
  """As for a metric that differs between coordinates, or a weight of each."""
  rng = np.random.default_rng(0)
  steps = rng.choice(np.array([0.0, *STEPS], np.float32), SHAPE)
  u = _apply(case, X, steps)
  assert u.dtype == X.dtype
  for step in np.unique(steps):
    _assert_close(u[steps == step], _apply(case, X, step)[steps == step], ulps=4)
  np.testing.assert_array_equal(u[steps == 0], X[steps == 0])

  factor = rng.choice(np.array([1.0, 1.5], np.float32), SHAPE)
  for name, default in case.hyper.items():
    mixed = prox(case)(X, 0.3, {**case.hyper, name: factor * np.float32(default)})
    for k in (1.0, 1.5):
      one = prox(case)(X, 0.3, {**case.hyper, name: np.float32(k * default)})
      _assert_close(np.asarray(mixed)[factor == k], np.asarray(one)[factor == k])


@pytest.mark.parametrize("shape", [SHAPE, (2, 2, 3, 5)])
@pytest.mark.parametrize("case", typical(c for c in CASES if c.groups), ids=str)
def test_groups_are_independent(case: Case, shape: tuple[int, ...]):
  """One group after the other gives the same, so no group sees another."""
  if not case.any_shape and shape != SHAPE:
    pytest.skip("made for one shape")
  x = sample(shape).astype(np.float32)
  u = _apply(case, x, 0.3)
  for index in reference.group_slices(shape, case.groups):
    alone = np.zeros_like(x)
    alone[index] = x[index]
    expected = np.zeros_like(x)
    expected[index] = u[index]
    _assert_close(_apply(case, alone, 0.3), expected)


@every
def test_permutation_of_whatever_is_alike(case: Case):
  """Entries within a group, and groups among themselves, have no order."""
  if case.name == "sparse_group_lasso-metric":
    pytest.skip("has one step per entry")
  rng = np.random.default_rng(0)
  rows, columns = rng.permutation(SHAPE[0]), rng.permutation(SHAPE[1])
  if case.name.endswith("-weights"):
    columns = np.arange(SHAPE[1])
  shuffled = _apply(case, X[rows][:, columns], 0.3)
  _assert_close(shuffled, _apply(case, X, 0.3)[rows][:, columns], ulps=64)


@typical_case
def test_vmap_over_the_regularisation_path(case: Case):
  """Over steps and over each hyperparameter, as a loop would."""
  rows = [(step, dict(case.hyper)) for step in (0.0, *STEPS)]
  for name, default in case.hyper.items():
    rows += [(0.3, {**case.hyper, name: k * default}) for k in (1.2, 1.5)]

  def both(step: jax.Array, hyper: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    penalty = case.make(**hyper)
    return penalty.prox(X, step), penalty.value(X)

  stacked = jax.tree.map(lambda *leaves: np.array(leaves, np.float32), *rows)
  path = jax.jit(jax.vmap(both))(*stacked)
  for (step, hyper), u, p in zip(rows, *path, strict=True):
    _assert_close(u, prox(case)(X, step, hyper))
    np.testing.assert_allclose(p, value(case)(X, hyper), rtol=1e-6)


@pytest.mark.parametrize("name", ["transformed_l1", "group_lasso-out", "nuclear"])
def test_jit_with_tracers_is_eager_with_numbers(name: str):
  case = next(case for case in CASES if case.name == name)
  for step in (0, 0.3):
    _assert_close(case.penalty.prox(X, step), _apply(case, X, step))
  eager, traced = case.penalty.value(X), value(case)(X, dict(case.hyper))
  np.testing.assert_allclose(eager, traced, rtol=1e-6)


# ------------------------------------------------------------------------------------
# Limits and special cases of one penalty are another.
# ------------------------------------------------------------------------------------
_COLUMN = X[:, :1]
_LIMITS = {
  "mcp, gamma -> inf": (rvsm_jax.mcp(1.0, 1e8), rvsm_jax.l1(), X),
  "scad, gamma -> inf": (rvsm_jax.scad(1.0, 1e8), rvsm_jax.l1(), X),
  "capped_l1, a -> inf": (rvsm_jax.capped_l1(1e8), rvsm_jax.l1(), X),
  "log_penalty, gamma -> 0": (rvsm_jax.log_penalty(1e-9), rvsm_jax.l1(), X),
  "elastic_net, alpha = 0": (rvsm_jax.elastic_net(0.0), rvsm_jax.l1(), X),
  "groups of one": (rvsm_jax.group_lasso("in"), rvsm_jax.l1(), _COLUMN),
  "groups of a vector's components": (rvsm_jax.group_lasso(), rvsm_jax.l1(), X[:, 0]),
  "l0 of groups of one": (rvsm_jax.group_l0("in"), rvsm_jax.l0(), _COLUMN),
  "l0 of a vector's components": (rvsm_jax.group_l0(), rvsm_jax.l0(), X[:, 0]),
  "weights of one": (
    rvsm_jax.group_lasso(weights=np.ones(4, np.float32)),
    rvsm_jax.group_lasso(),
    X,
  ),
  "only l1": (rvsm_jax.sparse_group_lasso(1.0, "out"), rvsm_jax.l1(), X),
  "only groups": (
    rvsm_jax.sparse_group_lasso(0.0, "out"),
    rvsm_jax.group_lasso("out"),
    X,
  ),
  "only exclusive": (
    rvsm_jax.combined_group_exclusive(1.0, "out"),
    rvsm_jax.exclusive_lasso("out"),
    X,
  ),
  "not exclusive": (
    rvsm_jax.combined_group_exclusive(0.0, "out"),
    rvsm_jax.group_lasso("out"),
    X,
  ),
  "only tl1": (rvsm_jax.integrated_tl1(0.7, 1.0), rvsm_jax.transformed_l1(0.7), X),
  "no tl1": (rvsm_jax.integrated_tl1(0.7, 0.0), rvsm_jax.group_lasso(), X),
  "nuclear of one column": (rvsm_jax.nuclear(), rvsm_jax.group_lasso((0, 1)), _COLUMN),
  "default groups": (rvsm_jax.group_lasso(), rvsm_jax.group_lasso((0,)), X),
}


@pytest.mark.parametrize("name", _LIMITS)
def test_limits(name: str):
  penalty, other, x = _LIMITS[name]
  both = jax.jit(lambda step: (penalty.prox(x, step), other.prox(x, step)))
  for step in STEPS:
    _assert_close(*both(step), ulps=32)
  np.testing.assert_allclose(penalty.value(x), other.value(x), rtol=1e-5)


def test_exclusive_groups_of_one_are_a_ridge():
  x = X[:, 0]
  _assert_close(rvsm_jax.exclusive_lasso("out").prox(x, 0.25), x / 1.25)


def test_bare_maps_are_those_of_the_penalties():
  for gamma in STEPS:
    _assert_close(rvsm_jax.hard_threshold(X, gamma), rvsm_jax.l0().prox(X, gamma))
    _assert_close(rvsm_jax.soft_threshold(X, gamma), rvsm_jax.l1().prox(X, gamma))
    _assert_close(
      rvsm_jax.transformed_l1_threshold(X, gamma, 0.7),
      rvsm_jax.transformed_l1(0.7).prox(X, gamma),
    )
    for groups in ("out", "in", (0,)):
      _assert_close(
        rvsm_jax.block_soft_threshold(X, gamma, groups),
        rvsm_jax.group_lasso(groups).prox(X, gamma),
      )
    _assert_close(
      rvsm_jax.block_soft_threshold(X, gamma), rvsm_jax.group_lasso().prox(X, gamma)
    )


@pytest.mark.parametrize("a", [1e-2, 1.0, 1e2])
def test_l1_and_tl1_agree_at_one(a: float):
  """TL1 is 1 at abs(x) = 1 for every a, and `transformed_l1()` has a = 1."""
  assert rvsm_jax.transformed_l1(a).value(np.ones(1, np.float32)) == pytest.approx(1)
  np.testing.assert_array_equal(
    rvsm_jax.transformed_l1().prox(X, 0.1), rvsm_jax.transformed_l1(1.0).prox(X, 0.1)
  )


# ------------------------------------------------------------------------------------
# Dtypes and shapes.
# ------------------------------------------------------------------------------------
def _shapes(case: Case) -> tuple[tuple[int, ...], ...]:
  if case.separable:
    return ((), (3,), SHAPE, (2, 2, 3, 4))
  if not case.any_shape:
    return (SHAPE,)
  return (SHAPE, (2, 2, 3, 4))


@every
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64], ids=np.dtype)
def test_dtype_and_shape_are_kept(case: Case, dtype: Any):
  with jax.enable_x64(dtype == jnp.float64):
    for shape in _shapes(case):
      x = jnp.asarray(np.ones(shape), dtype)
      u = jax.eval_shape(case.penalty.prox, x, 0.1)
      assert (u.shape, u.dtype, u.weak_type) == (shape, dtype, False)
      p = jax.eval_shape(case.penalty.value, x)
      assert (p.shape, p.dtype) == ((), jnp.promote_types(dtype, jnp.float32))


@every
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64], ids=np.dtype)
def test_other_precisions_do_not_leak(case: Case, dtype: Any):
  """Those of the step and of hyperparameters."""
  with jax.enable_x64(True):
    for other in (jnp.bfloat16, jnp.float32, jnp.float64):
      hyper = {k: jnp.asarray(v, other) for k, v in case.hyper.items()}
      x, step = jnp.asarray(X, dtype), jnp.asarray(0.1, other)
      u = jax.eval_shape(prox(case), x, step, hyper)
      assert (u.dtype, u.weak_type) == (dtype, False)


@every
def test_strict_promotion(case: Case):
  """No operation mixes dtypes, which users may tell JAX to refuse."""
  hyper = {k: np.float32(v) for k, v in case.hyper.items()}
  with jax.numpy_dtype_promotion("strict"):
    for dtype in (jnp.bfloat16, jnp.float32):
      x = jnp.asarray(X, dtype)
      jax.eval_shape(lambda x: case.penalty.prox(x, 0.1), x)
      jax.eval_shape(case.penalty.value, x)
    jax.eval_shape(prox(case), X, np.float32(0.1), hyper)
    jax.eval_shape(value(case), X, hyper)


@separable
def test_weakly_typed_inputs(case: Case):
  for x in (1.5, jnp.asarray(1.5)):
    u = case.penalty.prox(x, 0.1)
    assert u.shape == ()
    assert u.dtype == jnp.float32
    assert case.penalty.value(x).dtype == jnp.float32
    np.testing.assert_allclose(u, case.penalty.prox(np.float32(1.5), 0.1), rtol=1e-6)


@typical_case
def test_half_precision_is_computed_in_float32(case: Case):
  dtype = jnp.float16 if case.separable else jnp.bfloat16
  x = jnp.asarray(X, dtype)
  for step in STEPS:
    u = prox(case)(x, step, dict(case.hyper))
    wide = prox(case)(x.astype(jnp.float32), step, dict(case.hyper))
    np.testing.assert_array_equal(to_numpy(u), to_numpy(wide.astype(dtype)))
  actual = value(case)(x, dict(case.hyper))
  expected = value(case)(x.astype(jnp.float32), dict(case.hyper))
  np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("case", typical(c for c in CASES if not c.separable), ids=str)
def test_float32_is_float64_rounded(case: Case):
  """No hidden cancellation: 8 ulp of the largest entry."""
  with jax.enable_x64(True):
    for step in STEPS:
      wide = _apply(case, X.astype(np.float64), float(np.float32(step)))
      error = np.abs(_apply(case, X, np.float32(step)) - wide)
      assert np.max(error) <= 8 * np.spacing(np.max(np.abs(X)))


@pytest.mark.parametrize("case", typical(reference.SEPARABLE), ids=str)
@hypothesis.given(data=st.data())
def test_float32_error_in_ulp(case: reference.Separable, data: st.DataObject):
  """Over hyperparameters and steps, away from the jumps, in ulp of x."""
  draw = lambda low, high: np.float32(10 ** data.draw(st.floats(low, high)))  # noqa: E731
  hyper = {k: draw(*ends) for k, ends in case.ranges.items()}
  step = draw(-8, 0)
  rng = np.random.default_rng(data.draw(st.integers(0, 9)))
  x = (10 ** rng.uniform(-6, 2, 256)).astype(np.float32)
  with jax.enable_x64(True):
    narrow = _bare(case)(x, step, hyper)
    wide = _bare(case)(*jax.tree.map(np.float64, (x, step, hyper)))
  narrow, wide = np.asarray(narrow), np.asarray(wide)
  same = (narrow == 0) == (wide == 0)
  assert np.mean(same) > 0.98
  assert np.quantile(np.abs(narrow - wide)[same] / np.spacing(x)[same], 0.98) <= 8


@functools.cache
def _bare(case: reference.Separable) -> Any:
  make = functools.partial(getattr(rvsm_jax, case.name), **case.static)
  return jax.jit(lambda x, step, hyper: make(**hyper).prox(x, step))


# ------------------------------------------------------------------------------------
# Inputs that training only has when something went wrong.
# ------------------------------------------------------------------------------------
@every
def test_nan_stays_nan(case: Case):
  """A map that turns NaN into 0 hides that training has diverged."""
  x = X.copy()
  x[3, 2] = np.nan
  for step in (0.0, 0.05, 2.0, 1e3):
    u = _apply(case, x, step)
    assert np.isnan(u[3, 2])
    if case.separable:
      others = np.ones(SHAPE, bool)
      others[3, 2] = False
    elif case.groups in ("out", (0,)):
      others = np.arange(SHAPE[1])[None, :] != 2
    elif case.groups == "in":
      others = np.arange(SHAPE[0])[:, None] != 3
    else:
      continue
    others = np.broadcast_to(others, SHAPE)
    _assert_close(u[others], _apply(case, X, step)[others])


@every
@pytest.mark.parametrize("sign", [1, -1])
def test_infinity_stays(case: Case, sign: int):
  if case.name == "nuclear":
    pytest.skip("an infinite matrix has no singular values")
  x = X.copy()
  x[3, 2] = sign * np.inf
  for step in (0.0, 0.05, 2.0):
    u = _apply(case, x, step)
    assert u[3, 2] == sign * np.inf
    assert not np.any(np.isnan(u))


@every
def test_zeros_of_both_signs_and_subnormals(case: Case):
  tiny = np.float32(1e-40)
  x = np.tile(np.array([0.0, -0.0, tiny, -tiny], np.float32), (6, 1))
  for step in (0.0, 0.1):
    u = _apply(case, x, step)
    assert np.all(np.abs(u) <= np.abs(x))  # XLA may flush subnormals to 0.
    np.testing.assert_array_equal(u[:, :2], 0)


@every
def test_huge_inputs_stay(case: Case):
  """Not sent to the wrong branch by an overflow in the comparison of two minima."""
  if not case.unbiased:
    pytest.skip("shrinks in proportion to x")
  x = np.where(X == 0, 1, np.sign(X)).astype(np.float32)
  x = np.abs(x) if case.name == "nonnegative" else x
  for size in (1e15, 1e25, 1e37):
    u = _apply(case, x * np.float32(size), 1.0)
    if case.name == "cardinality":
      u = np.where(u == 0, x * np.float32(size), u)
    np.testing.assert_allclose(u, x * np.float32(size), rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e20, 1e30])
@pytest.mark.parametrize("name", ["l1", "group_lasso-out", "nuclear", "l1_minus_l2"])
def test_homogeneous_at_any_scale(name: str, scale: float):
  """Of a norm: prox(c x, c step) = c prox(x, step), also where squares overflow."""
  case = next(c for c in CASES if c.name == name)
  c = np.float32(scale)
  for step in (0.05, 0.3):
    _assert_close(_apply(case, c * X, c * np.float32(step)) / c, _apply(case, X, step))


_FLOAT32 = hnp.arrays(
  np.float32, SHAPE, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)


@every
@hypothesis.given(
  x=_FLOAT32,
  step=st.floats(0, 2.0**100, width=32),
)
def test_no_nan_from_finite_inputs(case: Case, x: np.ndarray, step: float):
  u = _apply(case, x, np.float32(step))
  assert not np.any(np.isnan(u))
  if case.shrinks:
    assert np.all(np.abs(u) <= np.abs(to_numpy(x)) * (1 + 1e-6))
  assert not np.isnan(value(case)(x, dict(case.hyper)))
