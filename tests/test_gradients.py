"""Derivatives: finite everywhere, and those of finite differences almost everywhere."""

from collections.abc import Callable
import functools
from typing import Any

from cases import CASES, INDICATORS, SHAPE, Case, prox, sample, typical, value
from helpers import in_part
import hypothesis
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rvsm_jax

pytestmark = pytest.mark.filterwarnings("error")

STEP = 0.3
# How the groups lie in the array makes no difference to derivatives.
DISTINCT = [case for case in CASES if case.groups in (None, "out")]
every = pytest.mark.parametrize("case", typical(DISTINCT), ids=str)


@functools.cache
def _derivatives(case: Case) -> Callable[..., dict[str, Any]]:
  """Forward and reverse mode of prox and value in one compiled function."""

  @jax.jit
  def compute(x: jax.Array, step: Any, hyper: Any, v: jax.Array, c: jax.Array) -> Any:
    def prox(x: jax.Array, step: jax.Array, hyper: Any) -> jax.Array:
      return case.make(**hyper).prox(x, step)

    def value(x: jax.Array, hyper: Any) -> jax.Array:
      return case.make(**hyper).value(x)

    zeros = jax.tree.map(jnp.zeros_like, hyper)
    unit = {k: {**zeros, k: jnp.ones_like(h)} for k, h in hyper.items()}
    one, none = jnp.ones_like(step), jnp.zeros_like(step)
    still = jnp.zeros_like(x)
    at = (x, step, hyper)
    _, back = jax.vjp(prox, *at)
    return {
      "prox, x": jax.jvp(prox, at, (v, none, zeros))[1],
      "prox, step": jax.jvp(prox, at, (still, one, zeros))[1],
      **{f"prox, {k}": jax.jvp(prox, at, (still, none, h))[1] for k, h in unit.items()},
      "prox, back": back(c),
      "value, x": jax.jvp(value, (x, hyper), (v, zeros))[1],
      **{
        f"value, {k}": jax.jvp(value, (x, hyper), (still, h))[1]
        for k, h in unit.items()
      },
      "value, back": jax.grad(value, (0, 1))(x, hyper),
    }

  return compute


def _run(case: Case, x: np.ndarray, step: float, seed: int = 0) -> dict[str, Any]:
  """All derivatives at x, in the precision of x, with the directions v and c."""
  rng = np.random.default_rng(seed)
  v, c = rng.normal(size=(2, *SHAPE)).astype(x.dtype)
  hyper = {k: x.dtype.type(h) for k, h in case.hyper.items()}
  found = _derivatives(case)(x, x.dtype.type(step), hyper, v, c)
  return jax.tree.map(np.asarray, {**found, "v": v, "c": c})


def _assert_difference(
  f: Callable[[float], np.ndarray], derivative: np.ndarray, share: float = 0.9
):
  """Against central differences where those of two widths agree: no kink is near."""
  h = 1e-6
  wide, narrow = ((f(k) - f(-k)) / (2 * k) for k in (h, h / 2))
  smooth = np.abs(wide - narrow) <= 1e-5 * (1 + np.abs(wide))
  assert np.mean(smooth) >= share
  error = np.abs(derivative - narrow) / (1 + np.abs(narrow))
  assert np.max(error[smooth]) <= 2e-6


def _points(case: Case) -> np.ndarray:
  """A sample with a zero and a zero column, unless the map has a kink there."""
  x = sample(seed=3)
  kink = case.name == "nonnegative" or case.name.startswith("exclusive")
  return np.where(x == 0, -0.1, x) if kink else x


@every
def test_prox_derivatives_are_finite_differences(case: Case):
  with jax.enable_x64(True):
    x, hyper = _points(case), dict(case.hyper)
    found = _run(case, x, STEP)
    f = lambda *at: np.asarray(prox(case)(*at))  # noqa: E731
    _assert_difference(lambda t: f(x + t * found["v"], STEP, hyper), found["prox, x"])
    _assert_difference(lambda t: f(x, STEP + t, hyper), found["prox, step"])
    for k, h in hyper.items():
      _assert_difference(
        lambda t, k=k, h=h: f(x, STEP, {**hyper, k: h + t}), found[f"prox, {k}"]
      )


@every
def test_value_derivatives_are_finite_differences(case: Case):
  """A symmetric difference at 0 is 0, and so must be the derivative there."""
  if case.name in INDICATORS:
    pytest.skip("0 or infinite")
  with jax.enable_x64(True):
    x, hyper = _points(case), dict(case.hyper)
    found = _run(case, x, STEP)
    f = lambda *at: np.atleast_1d(value(case)(*at))  # noqa: E731
    if case.name != "l0":
      _assert_difference(
        lambda t: f(x + t * found["v"], hyper), np.atleast_1d(found["value, x"]), 1
      )
    for k, h in hyper.items():
      _assert_difference(
        lambda t, k=k, h=h: f(x, {**hyper, k: h + t}),
        np.atleast_1d(found[f"value, {k}"]),
        1,
      )


@every
def test_reverse_mode_is_the_transpose_of_forward_mode(case: Case):
  with jax.enable_x64(True):
    found = _run(case, _points(case), STEP)
    x_bar, step_bar, hyper_bar = found["prox, back"]
    c = found["c"]
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9)
    close(np.sum(x_bar * found["v"]), np.sum(c * found["prox, x"]))
    close(step_bar, np.sum(c * found["prox, step"]))
    for k, bar in hyper_bar.items():
      close(bar, np.sum(c * found[f"prox, {k}"]))
    x_bar, hyper_bar = found["value, back"]
    close(np.sum(x_bar * found["v"]), found["value, x"])
    for k, bar in hyper_bar.items():
      close(bar, found[f"value, {k}"])


def _corners() -> dict[str, np.ndarray]:
  """Where textbook formulas divide by zero: ties, zeros, norms equal to the step."""
  rng = np.random.default_rng(0)
  tie = rng.choice([-1.0, 1.0], SHAPE)
  one_entry = np.zeros(SHAPE)
  one_entry[2] = STEP
  two_entries = np.zeros(SHAPE)
  two_entries[2:4] = STEP / np.sqrt(2)
  orthogonal = np.linalg.qr(rng.normal(size=SHAPE))[0]
  return {
    "zero": np.zeros(SHAPE),
    "a zero column": sample(),
    "ties": tie,
    "ties at the step": STEP * tie,
    "a group's norm is the step": one_entry,
    "up to rounding": two_entries,
    "repeated singular values": orthogonal,
    "singular values at the step": STEP * orthogonal,
    "rank one": np.outer(rng.normal(size=6), rng.normal(size=4)),
    "tiny": 1e-30 * tie,
    "subnormal": 1e-40 * tie,
    "large": 1e15 * tie,
    "scales": tie * np.geomspace(1e-30, 1e15, tie.size).reshape(SHAPE),
  }


def _assert_finite(case: Case, x: np.ndarray, step: float):
  found = _run(case, x, step)
  for path, leaf in jax.tree.leaves_with_path(found):
    if np.ndim(leaf) == 0 and "value" in str(path) and case.name in INDICATORS:
      continue
    assert np.all(np.isfinite(leaf)), (jax.tree_util.keystr(path), leaf)


@every
def test_finite_at_corners(case: Case):
  for x in _corners().values():
    for step in (0.0, 1e-30, np.nextafter(np.float32(STEP), 0), STEP, 5.0):
      _assert_finite(case, x.astype(np.float32), step)


@pytest.mark.parametrize("case", typical(c for c in CASES if c.separable), ids=str)
@pytest.mark.parametrize("step", [1e-6, 0.02, 0.3, 3.0])
def test_finite_at_the_threshold(case: Case, step: float):
  """From 12 ulp below the largest number that becomes 0 to 11 ulp above."""
  apply = lambda x: np.asarray(prox(case)(x, np.float32(step), dict(case.hyper)))  # noqa: E731
  low, high = np.float32(0), np.float32(1e6)
  while np.nextafter(low, high) < high:
    grid = np.linspace(low, high, 24, dtype=np.float32).reshape(SHAPE)
    zeros = np.ravel(apply(grid)) == 0
    last = int(np.flatnonzero(zeros)[-1])
    low, high = grid.flat[last], grid.flat[last + 1]
    if last == 0 and low == 0 and high < 1e-30:
      break
  ulps = np.arange(-12, 12).reshape(SHAPE)
  x = (low + ulps * np.spacing(low)).astype(np.float32)
  _assert_finite(case, x, step)
  _assert_finite(case, -x, step)


@every
@hypothesis.given(
  x=hnp.arrays(np.float32, SHAPE, elements=st.floats(-1e10, 1e10, width=32)),
  step=st.floats(0, 2.0**20, width=32),
)
def test_finite_anywhere(case: Case, x: np.ndarray, step: float):
  _assert_finite(case, x, step)


@every
def test_value_has_gradient_zero_at_zero(case: Case):
  """Else weights that are 0 drift away, all to one side."""
  zero = np.zeros(SHAPE, np.float32)
  np.testing.assert_array_equal(_run(case, zero, STEP)["value, back"][0], 0)
  x = sample(seed=5).astype(np.float32)
  x = np.abs(x) if case.name == "nonnegative" else x
  gradient = _run(case, x, STEP)["value, back"][0]
  if case.name != "nuclear":
    np.testing.assert_array_equal(gradient[x == 0], 0)


@pytest.mark.parametrize("kind", ["orthogonal", "rank one", "zero", "square"])
def test_nuclear_prox_is_differentiable_where_singular_values_meet(kind: str):
  """As at an orthogonal initialisation; the singular vectors alone are not."""
  rng = np.random.default_rng(0)
  x = {
    "orthogonal": np.linalg.qr(rng.normal(size=(5, 3)))[0],
    "rank one": np.outer(rng.normal(size=5), rng.normal(size=3)),
    "zero": np.zeros((5, 3)),
    "square": np.diag([1.0, 1.0, 0.5]),
  }[kind]
  v = rng.normal(size=x.shape)
  with jax.enable_x64(True):
    f = jax.jit(rvsm_jax.nuclear().prox)
    _, forward = jax.jvp(lambda x: f(x, STEP), (x,), (v,))
    _assert_difference(lambda t: np.asarray(f(x + t * v, STEP)), forward, 1)


@pytest.mark.parametrize(
  "name",
  in_part(["transformed_l1", "group_lasso-out", "nuclear"], "group_lasso-out"),
)
def test_gradients_under_vmap(name: str):
  """Of a batch of arrays and steps, as in an unrolled, batched optimization."""
  case = next(case for case in CASES if case.name == name)
  gradient = jax.grad(lambda x, step: jnp.sum(case.penalty.prox(x, step) ** 2), (0, 1))
  xs = np.stack([sample(seed=k) for k in range(3)]).astype(np.float32)
  steps = np.array([0.05, 0.3, 2.0], np.float32)
  batched = jax.jit(jax.vmap(gradient))(xs, steps)
  looped = [jax.jit(gradient)(x, step) for x, step in zip(xs, steps, strict=True)]
  expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *looped)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5),
    batched,
    expected,
  )
