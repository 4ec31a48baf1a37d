"""Accuracy of the transformed-l1 proximal map against mpmath with 50 digits.

Errors are counted in units in the last place (ulp) of x. The map has a double root at
the threshold where both of its formulas meet, so that the worst case is taken outside a
relative distance of 1e-3 from the threshold.
"""

from collections.abc import Iterator
import functools

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import reference

import rvsm_jax

pytestmark = pytest.mark.filterwarnings("error")

POINTS = 4000

_exact_prox = np.vectorize(reference.tl1_prox, otypes=[object])
_exact_threshold = np.vectorize(reference.tl1_threshold, otypes=[object])
_PROX = jax.jit(rvsm_jax.transformed_l1_threshold)
_as_mpf = np.vectorize(mpmath.mpf, otypes=[object])


def _points(dtype: type, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """x of both signs, gamma and a, all log-uniform."""
  rng = np.random.default_rng(seed)
  x, gamma, a = (
    10 ** rng.uniform(*ends, POINTS) for ends in [(-6, 2), (-10, 0), (-3, 2)]
  )
  x = x * rng.choice([-1, 1], POINTS)
  return x.astype(dtype), gamma.astype(dtype), a.astype(dtype)


@functools.cache
def _problem(dtype: type) -> tuple[np.ndarray, ...]:
  """x, gamma, a, the exact map as mpmath numbers, and the exact thresholds."""
  x, gamma, a = _points(dtype)
  return x, gamma, a, _exact_prox(x, gamma, a), _exact_threshold(gamma, a)


def _ulps(u: np.ndarray, exact: np.ndarray, x: np.ndarray) -> np.ndarray:
  """abs(u - exact) in ulp of x."""
  with mpmath.workdps(50):
    error = np.abs(_as_mpf(u) - exact).astype(np.float64)
  return error / np.spacing(np.abs(x)).astype(np.float64)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> Iterator[type]:
  with jax.enable_x64(request.param is np.float64):
    yield request.param


def test_error_in_ulp_of_x(dtype: type):
  x, gamma, a, exact, thresholds = _problem(dtype)
  u = np.asarray(_PROX(x, gamma, a))
  assert u.dtype == dtype
  far = np.abs(np.abs(x) / thresholds.astype(np.float64) - 1) > 1e-3
  kept = far & (exact != 0)
  assert np.count_nonzero(kept) > POINTS / 2
  errors = _ulps(u, exact, x)
  np.testing.assert_array_equal(u[far] == 0, exact[far] == 0)
  assert np.median(errors[kept]) <= 0.5
  assert np.quantile(errors[kept], 0.99) <= 2.5
  assert np.max(errors[far]) <= 8


def test_error_close_to_the_double_root(dtype: type):
  """Where both formulas meet or nearly so, du/dx is 20 at a distance of 1e-3."""
  rng = np.random.default_rng(1)
  a = (10 ** rng.uniform(-3, 2, 2000)).astype(dtype)
  gamma = a**2 / (2 * (a + 1)) * (10 ** rng.uniform(-1, 1, 2000) ** 3).astype(dtype)
  thresholds = _exact_threshold(gamma, a).astype(np.float64)
  x = (thresholds * (1 + 10 ** rng.uniform(-2.99, 0, 2000))).astype(dtype)
  exact = _exact_prox(x, gamma, a)
  condition = 1 / (1 - 2 * gamma * a * (a + 1) / (a + exact.astype(np.float64)) ** 3)
  assert np.max(condition) > 10
  errors = _ulps(np.asarray(_PROX(x, gamma, a)), exact, x)
  assert np.max(errors if dtype == np.float32 else errors / condition) <= 16


def test_never_larger_never_of_the_other_sign(dtype: type):
  x, gamma, a, _, thresholds = _problem(dtype)
  ulps = np.arange(-4, 5) * np.spacing(thresholds.astype(dtype))[:, None]
  near = thresholds.astype(dtype)[:, None] + ulps
  x = np.concatenate([x[:, None], near, -near], axis=1)
  u = np.asarray(_PROX(x, gamma[:, None], a[:, None]))
  assert np.all(np.abs(u) <= np.abs(x))
  assert np.all(u * np.sign(x) >= 0)


def test_threshold_within_two_ulp(dtype: type):
  """The largest x that becomes 0, against the largest that should."""
  _, gamma, a, _, thresholds = (array[:1000] for array in _problem(dtype))
  largest = thresholds.astype(dtype)
  largest = np.where(_as_mpf(largest) > thresholds, np.nextafter(largest, 0), largest)
  ulps = np.arange(-8, 9)
  x = largest[:, None] + (ulps * np.spacing(largest)[:, None]).astype(dtype)
  kept = np.asarray(_PROX(x, gamma[:, None], a[:, None])) != 0
  np.testing.assert_array_equal(kept, np.maximum.accumulate(kept, axis=1))
  assert not np.any(kept[:, ulps <= -2])
  assert np.all(kept[:, ulps > 2])


@pytest.mark.parametrize(
  ("dtype", "bits", "lowest"), [(jnp.float16, 11, -24), (jnp.bfloat16, 8, -133)]
)
def test_half_precision_is_correctly_rounded(dtype: type, bits: int, lowest: int):
  x, gamma, a = _points(np.float32, seed=1)
  half = np.asarray(jnp.asarray(x).astype(dtype))
  u = np.asarray(_PROX(half, gamma, a))
  assert u.dtype == dtype
  wide, got = half.astype(np.float64), u.astype(np.float64)
  exact = _exact_prox(wide, gamma, a)
  expected = np.array([reference.rounded(e, bits, lowest) for e in exact])
  assert np.array_equal(np.asarray(expected, dtype).astype(np.float64), expected)
  one = np.abs(np.spacing(u)).astype(np.float64)
  if dtype == jnp.bfloat16:  # A bfloat16 subnormal is a float32 one: XLA flushes it.
    expected = np.where(np.abs(expected) < 2.0**-126, 0, expected)
  assert np.all(np.abs(got - expected) <= one)
  assert np.mean(got == expected) > 0.99


def test_limits_of_a(dtype: type):
  """Between the soft threshold gamma and the hard threshold sqrt(2 gamma)."""
  x = np.linspace(-3, 3, 101).astype(dtype)
  gamma = dtype(0.5)
  np.testing.assert_allclose(
    _PROX(x, gamma, dtype(1e7)), reference.soft(x, 0.5), atol=1e-6
  )
  np.testing.assert_allclose(
    _PROX(x, gamma, dtype(1e-7)), np.where(np.abs(x) > 1, x, 0), atol=1e-6
  )


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_special_inputs(dtype: type):
  special = [0.0, -0.0, np.inf, -np.inf, np.nan, float(jnp.finfo(dtype).max)]
  x = jnp.asarray([*special, float(jnp.finfo(dtype).smallest_subnormal)], dtype)
  u = _PROX(x, 0.1, 1.0)
  expected = np.asarray(jnp.asarray([*special, 0.0], dtype), np.float32)
  np.testing.assert_array_equal(np.asarray(u, np.float32), expected)
