"""Every proximal map against brute force: the global minimiser, also at the jumps."""

from collections.abc import Callable
import functools
import itertools

from helpers import in_part
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

import rvsm_jax

pytestmark = [pytest.mark.usefixtures("x64"), pytest.mark.filterwarnings("error")]

MATRIX = (4, 3)
FILTERS = (2, 2, 3, 2)
ULPS = np.arange(-8, 9)


@functools.cache
def _separable_prox(case: reference.Separable) -> Callable[..., jax.Array]:
  make = getattr(rvsm_jax, case.name)
  return jax.jit(lambda x, step, hyper: make(**case.static, **hyper).prox(x, step))


@functools.cache
def _grouped_prox(name: str, groups: reference.Groups) -> Callable[..., jax.Array]:
  make = getattr(rvsm_jax, name)
  return jax.jit(lambda x, step, hyper: make(groups=groups, **hyper).prox(x, step))


def _last_zero(prox: Callable[[np.ndarray], np.ndarray], points: int = 63) -> float:
  """The largest positive number that an increasing map sends to 0, on the bits."""
  low, high = 0, int(np.float64(1e9).view(np.int64))
  while high - low > 1:
    bits = [low + (high - low) * k // (points + 1) for k in range(1, points + 1)]
    kept = np.flatnonzero(prox(np.array(bits, np.int64).view(np.float64)))
    first = kept[0] if len(kept) else points
    low, high = ([low, *bits][first], [*bits, high][first])
  return float(np.int64(low).view(np.float64))


@st.composite
def _problems(
  draw: st.DrawFn, case: reference.Separable
) -> tuple[dict[str, float], float, np.ndarray]:
  """Hyperparameters, a step on either side of the critical one, 31 positive numbers."""
  hyper = {k: 10 ** draw(st.floats(*ends)) for k, ends in case.ranges.items()}
  critical = case.critical(**hyper)
  scale = critical if 0 < critical < np.inf else 0.1
  step = scale * 10 ** draw(st.one_of(st.floats(-0.1, 0.1), st.floats(-2, 2)))
  exponents = draw(st.lists(st.floats(-1, 1.5), min_size=31, max_size=31))
  return hyper, step, 10 ** np.array(exponents)


@pytest.mark.parametrize("case", reference.SEPARABLE, ids=str)
@hypothesis.given(data=st.data())
def test_separable_prox_is_the_global_minimiser(
  case: reference.Separable, data: st.DataObject
):
  hyper, step, sizes = data.draw(_problems(case))
  prox = lambda x: np.asarray(_separable_prox(case)(x, step, hyper))  # noqa: E731
  density = functools.partial(case.density, **case.static, **hyper)
  slope = functools.partial(case.slope, **case.static, **hyper)

  threshold = _last_zero(prox)
  positive = np.abs(threshold + ULPS * np.spacing(threshold))
  positive = np.concatenate([positive, max(threshold, 1e-3) * sizes])
  x = np.concatenate([positive, -positive, np.zeros(1)])
  u = prox(x)

  arg, best = reference.scalar_minimum(density, x, step)
  noise = 2e-14 * (step * density(np.abs(x)) + x**2)
  excess = reference.scalar_objective(density, u, x, step) - best
  assert np.all(excess <= noise), f"not the minimum by {np.max(excess - noise)}"

  # Two minimisers may tie at a jump.
  moved = np.abs(u - arg) > 1e-3 * np.abs(x)
  tied = np.abs(excess) <= 1e-10 * (step * density(np.abs(x)) + x**2)
  assert np.all(~moved | tied)

  kept = u != 0
  residual = np.abs(u) - np.abs(x) + step * slope(np.where(kept, np.abs(u), 1.0))
  scale = np.abs(x) + step * slope(np.where(kept, np.abs(u), 1.0))
  assert np.all(np.abs(residual[kept]) <= 2e-14 * scale[kept])


def test_thresholds_at_the_critical_step():
  """TL1's two thresholds meet at gamma = a^2 / (2 (a + 1)), where both are a / 2."""
  a = 0.5
  gamma = a**2 / (2 * (a + 1))
  x = np.array([0.25 - 1e-12, 0.25 + 1e-12])
  u = jax.jit(rvsm_jax.transformed_l1(a).prox)(x, gamma)
  assert u[0] == 0
  assert 0 < u[1] < 1e-5


def _matrices(shape: tuple[int, ...]) -> st.SearchStrategy[np.ndarray]:
  """Arrays over two decades and both signs, with zeros."""
  size = int(np.prod(shape))
  element = st.one_of(
    st.just(0.0),
    st.tuples(st.sampled_from([-1.0, 1.0]), st.floats(-1, 1)).map(
      lambda p: p[0] * 10 ** p[1]
    ),
  )
  return st.lists(element, min_size=size, max_size=size).map(
    lambda values: np.reshape(np.array(values, np.float64), shape)
  )


@pytest.mark.parametrize(
  ("groups", "shape"),
  in_part(
    [("out", MATRIX), ("out", FILTERS), ("in", FILTERS), ((1, 2), FILTERS)],
    *(("out", MATRIX), ((1, 2), FILTERS)),
  ),
  ids=str,
)
@pytest.mark.parametrize("case", reference.GROUPED, ids=str)
@hypothesis.given(data=st.data())
def test_grouped_prox_is_stationary(
  case: reference.Grouped,
  groups: reference.Groups,
  shape: tuple[int, ...],
  data: st.DataObject,
):
  x = data.draw(_matrices(shape))
  share = st.one_of(st.sampled_from([0.0, 1.0]), st.floats(0.01, 0.99))
  hyper = {k: data.draw(share) for k in case.hyper}
  step = 10 ** data.draw(st.floats(-2, 1.5))
  u = np.asarray(_grouped_prox(case.name, groups)(x, step, hyper))
  for index in reference.group_slices(shape, groups):
    found = case.violation(np.ravel(u[index]), np.ravel(x[index]), step, **hyper)
    assert found <= 1e-12 * np.max(np.abs(x[index])), (index, found)


_VECTOR_PENALTIES = {
  "group_lasso": (lambda: rvsm_jax.group_lasso((0,)), reference.norm2),
  "sparse_group_lasso": (
    lambda: rvsm_jax.sparse_group_lasso(0.3, (0,)),
    lambda u: 0.3 * reference.norm1(u) + 0.7 * reference.norm2(u),
  ),
  "exclusive_lasso": (
    lambda: rvsm_jax.exclusive_lasso((0,)),
    lambda u: reference.norm1(u) ** 2 / 2,
  ),
  "combined_group_exclusive": (
    lambda: rvsm_jax.combined_group_exclusive(0.3, (0,)),
    lambda u: 0.3 * reference.norm1(u) ** 2 / 2 + 0.7 * reference.norm2(u),
  ),
  "group_l0": (lambda: rvsm_jax.group_l0((0,)), lambda u: float(np.any(u))),
  "l1_minus_l2": (
    rvsm_jax.l1_minus_l2,
    lambda u: reference.norm1(u) - reference.norm2(u),
  ),
}


@functools.cache
def _vector_prox(name: str) -> Callable[..., jax.Array]:
  return jax.jit(_VECTOR_PENALTIES[name][0]().prox)


@pytest.mark.parametrize("name", _VECTOR_PENALTIES)
@hypothesis.settings(max_examples=6)
@hypothesis.given(x=_matrices((3,)), exponent=st.floats(-1.5, 1.0))
def test_vector_prox_is_the_global_minimiser(name: str, x: np.ndarray, exponent: float):
  """Support by support, with a general-purpose solver."""
  density = _VECTOR_PENALTIES[name][1]
  step = 10**exponent * (np.max(np.abs(x)) or 1.0)
  u = np.asarray(_vector_prox(name)(x, step))
  arg, best = reference.vector_minimum(density, x, step)
  objective = step * density(u) + 0.5 * np.sum((u - x) ** 2)
  scale = step * density(x) + np.sum(x**2)
  assert objective <= best + 1e-13 * scale
  if name not in ("group_l0", "l1_minus_l2"):  # Strongly convex: one minimiser.
    np.testing.assert_allclose(u, arg, atol=1e-3 * np.sqrt(scale))


@pytest.mark.parametrize("scale", [0.5, 0.999, 1.0, 1.001, 2.0])
def test_l1_minus_l2_on_both_sides_of_the_largest_entry(scale: float):
  """Above max|x| the minimiser has one entry, below it is a stretched soft one."""
  x = np.array([0.3, -2.0, 1.5])
  u = np.asarray(_vector_prox("l1_minus_l2")(x, scale * 2.0))
  if scale >= 1:
    np.testing.assert_allclose(u, [0, -2, 0], atol=1e-13)
  else:
    shrunk = reference.soft(x, scale * 2.0)
    size = reference.norm2(shrunk)
    np.testing.assert_allclose(u, shrunk * (1 + scale * 2.0 / size), atol=1e-13)


def test_l1_minus_l2_keeps_one_entry_of_a_tie():
  x = np.array([1.0, -1.0, 1.0])
  u = np.asarray(_vector_prox("l1_minus_l2")(x, 3.0))
  assert np.count_nonzero(u) == 1
  assert u[u != 0] == x[u != 0]


@functools.cache
def _cardinality(sparsity: float) -> tuple[Callable[..., jax.Array], ...]:
  penalty = rvsm_jax.cardinality(sparsity)
  return jax.jit(penalty.prox), jax.jit(penalty.value)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.6, 0.99, 1.0])
@hypothesis.given(x=_matrices((5,)))
def test_cardinality_is_the_nearest_feasible_array(sparsity: float, x: np.ndarray):
  prox, value = _cardinality(sparsity)
  u = np.asarray(prox(x, 0.1))
  zeros = int(np.ceil(sparsity * 5))
  assert np.all((u == x) | (u == 0))
  assert np.count_nonzero(u == 0) >= zeros
  assert np.count_nonzero(u) == min(5 - zeros, np.count_nonzero(x))
  assert value(u) == 0
  dropped = min(
    float(np.sum(x[list(drop)] ** 2))
    for drop in itertools.combinations(range(5), zeros)
  )
  assert np.sum((u - x) ** 2) == pytest.approx(dropped, rel=1e-14)


@pytest.mark.parametrize("size", [10, 100])
@pytest.mark.parametrize("dtype", in_part([np.float32, np.float64], np.float32))
def test_cardinality_is_feasible_whatever_the_rounding(size: int, dtype: type):
  """0.55 * 100 is 55.000000000000007 in floating point, yet 55 zeros are enough."""
  x = np.random.default_rng(0).normal(size=size).astype(dtype)

  @jax.jit
  @jax.vmap
  def both(sparsity: jax.Array) -> tuple[jax.Array, jax.Array]:
    penalty = rvsm_jax.cardinality(sparsity)
    u = penalty.prox(x, 1.0)
    return penalty.value(u), (u == 0).sum()

  wanted = np.arange(size + 1)
  violation, zeros = both((wanted / size).astype(dtype))
  np.testing.assert_array_equal(violation, 0)
  assert np.all(np.abs(zeros - wanted) <= 1)
  assert np.mean(zeros == wanted) > 0.5


@pytest.mark.parametrize(
  "dtype", in_part(["float16", "bfloat16", "float32", "float64"], "bfloat16")
)
@pytest.mark.parametrize("levels", [3, 10**6])
def test_cardinality_keeps_the_largest_and_of_equal_ones_the_first(levels, dtype):
  rng = np.random.default_rng(0)
  prox = jax.jit(lambda x, sparsity: rvsm_jax.cardinality(sparsity).prox(x, 1.0))
  for size in (0, 1, 7, 1000):
    # Of many magnitudes, so that cuts differ in all their digits.
    integers = rng.integers(-levels, levels + 1, size)
    x = jnp.asarray(np.ldexp(integers, rng.integers(-20, 3)), dtype)
    order = np.argsort(-np.abs(np.asarray(x, np.float64)), kind="stable")
    for sparsity in (0.0, 0.01, 0.5, 0.9, 1.0):
      expected = np.asarray(x).copy()
      expected[order[size - int(np.ceil(sparsity * size)) :]] = 0
      np.testing.assert_array_equal(prox(x, sparsity), expected)


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 2, 3)])
@hypothesis.given(data=st.data())
def test_nuclear_prox_is_stationary(shape: tuple[int, ...], data: st.DataObject):
  """(x - u) / step has spectral norm at most 1 and is aligned with u."""
  x = data.draw(_matrices(shape))
  step = 10 ** data.draw(st.floats(-1.5, 1.0))
  u = np.asarray(rvsm_jax.nuclear().prox(x, step))
  matrix = u.reshape(-1, shape[-1])
  dual = (x - u).reshape(matrix.shape) / step
  assert np.linalg.norm(dual, 2) <= 1 + 1e-12 * (1 + np.linalg.norm(x) / step)
  size = np.linalg.svd(matrix, compute_uv=False).sum()
  assert np.sum(dual * matrix) == pytest.approx(
    size, abs=1e-11 * (1 + np.linalg.norm(x) / step) * np.linalg.norm(x)
  )


@hypothesis.given(x=_matrices(MATRIX), seed=st.integers(0, 99))
def test_group_l0_in_a_metric_is_the_global_minimiser(x: np.ndarray, seed: int):
  """Of all supports, within each of which the nearest array is x itself."""
  rng = np.random.default_rng(seed)
  steps, weights = 10 ** rng.uniform(-2, 2, MATRIX), rng.uniform(0, 2, MATRIX[1])
  u = np.asarray(rvsm_jax.group_l0(weights=weights).prox(x, steps))
  assert np.all((u == x) | (u == 0))
  distances = x**2 / (2 * steps)

  def objective(kept: np.ndarray) -> np.ndarray:
    return weights * np.any(kept, axis=0) + np.sum(distances, axis=0, where=~kept)

  supports = itertools.product([False, True], repeat=MATRIX[0])
  best = np.min([objective(np.array(kept)[:, None] & (x != 0)) for kept in supports], 0)
  assert np.all(objective(u != 0) <= best + 1e-14 * (weights + distances.sum(0)))


@hypothesis.given(x=_matrices(MATRIX), exponent=st.floats(-2, 1), mu=st.floats(0, 1))
def test_integrated_tl1_is_the_composition_of_ma_et_al(
  x: np.ndarray, exponent: float, mu: float
):
  """Equation (17): the map of TL1 first, then that of the groups, with their shares."""
  step, a = 10**exponent, 0.5
  u = _grouped_prox("integrated_tl1", "out")(x, step, {"a": a, "mu": mu})
  single = np.asarray(rvsm_jax.transformed_l1(a).prox(x, step * mu))
  expected = reference.by_group(
    single, "out", lambda g: reference.block_soft(g, step * (1 - mu))
  )
  np.testing.assert_allclose(u, expected, atol=1e-13 * np.max(np.abs(x)))


@hypothesis.given(x=_matrices(MATRIX), exponent=st.floats(-2, 1))
def test_exclusive_one_step_is_what_cges_published(x: np.ndarray, exponent: float):
  step = 10**exponent
  u = _grouped_prox("exclusive_lasso_one_step", "out")(x, step, {})
  expected = reference.by_group(
    x, "out", lambda g: reference.soft(g, step * reference.norm1(g))
  )
  np.testing.assert_allclose(u, expected, atol=1e-14 * np.max(np.abs(x)) * (1 + step))
