"""The defects found in other libraries, each as the test that would have caught it.

Those of optimizers around a proximal map are in the tests of the transformations; what
is here concerns the maps. The first tests show that this suite's oracles can fail.
"""

from collections.abc import Callable
from typing import Any

from cases import CASES, SHAPE, Case, prox, sample, value
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import rvsm_jax

pytestmark = pytest.mark.filterwarnings("error")

X = sample().astype(np.float32)


# scico and pyproximal threshold l0 at lam and at lam itself times sigma.
@pytest.mark.parametrize(("lam", "x", "kept"), [(1.0, 1.2, False), (3.0, 2.8, True)])
def test_l0_threshold_is_the_square_root_of_two_lam(lam: float, x: float, kept: bool):
  u = rvsm_jax.l0().prox(np.float32(x), lam)
  assert u == (np.float32(x) if kept else 0)


@pytest.mark.parametrize(("lam", "x"), [(1.0, 1.2), (3.0, 2.8)])
def test_the_oracle_refutes_the_wrong_l0(lam: float, x: float):
  """It searches everywhere: one that starts at the answer under test accepts both."""
  l0 = reference.SEPARABLE[0]
  wrong = np.array([x if x >= lam else 0.0])
  _, best = reference.scalar_minimum(l0.density, np.array([x]), lam)
  objective = reference.scalar_objective(l0.density, wrong, np.array([x]), lam)
  assert objective > best + 0.1


def test_the_oracle_refutes_a_local_minimiser_of_mcp():
  """Beyond gamma * lam the penalty is flat, so that x itself is stationary there."""
  mcp = reference.SEPARABLE[4]
  assert mcp.name == "mcp"
  density = lambda u: mcp.density(u, lam=1.0, gamma=2.0)  # noqa: E731
  x = np.array([2.5])
  _, best = reference.scalar_minimum(density, x, 10.0)
  assert reference.scalar_objective(density, x, x, 10.0) > best + 1.0


# pyproximal derives most conjugates' maps from the map under test, so that its Moreau
# check is an identity. Here the conjugates are projections written down on their own.
_CONJUGATES: dict[str, tuple[Callable[[], Any], Callable[[np.ndarray], np.ndarray]]] = {
  "l1": (rvsm_jax.l1, lambda z: np.clip(z, -1, 1)),
  "group_lasso": (
    rvsm_jax.group_lasso,
    lambda z: z / np.maximum(np.linalg.norm(z, axis=0), 1),
  ),
  "nuclear": (
    rvsm_jax.nuclear,
    lambda z: (lambda u, s, v: (u * np.minimum(s, 1)) @ v)(
      *np.linalg.svd(z, full_matrices=False)
    ),
  ),
}


@pytest.mark.parametrize("name", _CONJUGATES)
def test_moreau_with_an_independent_conjugate(name: str):
  """x = prox(x, s) + s * projection(x / s) onto the dual norm's unit ball."""
  make, project = _CONJUGATES[name]
  for step in (0.1, 1.0, 10.0):
    u = make().prox(X, step)
    np.testing.assert_allclose(u + step * project(X / step), X, atol=2e-5)


# jaxopt: NaN in the Jacobian of the group lasso at 0; the whole tree is one group; the
# case of a vanishing group is computed in its test, but never compared.
def test_group_lasso_has_a_jacobian_at_zero():
  jacobian = jax.jit(jax.jacobian(lambda x: rvsm_jax.group_lasso().prox(x, 0.1)))
  np.testing.assert_array_equal(jacobian(jnp.zeros((3, 2))), 0)


def test_each_filter_is_a_group():
  x = np.array([[3.0, 0.3], [4.0, 0.4]], np.float32)
  u = jax.jit(rvsm_jax.group_lasso("out").prox)(x, 1.0)
  np.testing.assert_allclose(u, [[2.4, 0], [3.2, 0]], rtol=1e-6)
  u = jax.jit(rvsm_jax.group_lasso("in").prox)(x, 1.0)
  scale = 1 - 1 / np.linalg.norm(x, axis=1, keepdims=True)
  np.testing.assert_allclose(u, x * scale, rtol=1e-6)


@pytest.mark.parametrize("alpha", [1, 10])
def test_group_lasso_below_the_threshold_is_zero(alpha: int):
  x = np.array([[0.3], [0.4]], np.float32)
  np.testing.assert_array_equal(rvsm_jax.group_lasso().prox(x, alpha), 0)


# jaxopt: `type(h) == float` refuses integers and whatever jit makes of a number.
@pytest.mark.parametrize("number", [1, 1.0, np.float64(1), np.int32(1), jnp.float32(1)])
def test_any_real_number_is_a_hyperparameter(number: Any):
  expected = (X - np.clip(X, -1, 1)) / 2
  u = rvsm_jax.elastic_net(number).prox(X, number)
  np.testing.assert_allclose(u, expected, rtol=1e-6)
  traced = jax.jit(lambda n: rvsm_jax.elastic_net(n).prox(X, n))(number)
  np.testing.assert_allclose(traced, expected, rtol=1e-6)


# jaxopt: the ridge term is documented without, and computed with, the factor 1/2.
# proxssi: the logged penalty weights groups otherwise than the map does.
@pytest.mark.parametrize(
  "case",
  # Not exact as their docstrings say, or exact in another metric than this one.
  [
    case
    for case in CASES
    if case.name
    not in (
      "exclusive_lasso_one_step",
      "integrated_tl1",
      "sparse_group_lasso-metric",
    )
  ],
  ids=str,
)
def test_the_value_is_the_one_that_prox_minimises(case: Case):
  """No neighbour, near or far, has a lower step * value(u) + norm(u - x)^2 / 2."""
  step, rng = 0.3, np.random.default_rng(0)
  u = np.asarray(prox(case)(X, step, dict(case.hyper)))
  noise = rng.normal(size=(20, *SHAPE)) * rng.choice([0, 1], (20, *SHAPE))
  widths = np.array([1e-2, 0.1, 1.0, 10.0])[:, None, None, None]
  others = (u + (widths * noise)).reshape(-1, *SHAPE)
  stretched = u * np.array([0.0, 0.9, 0.99, 1.01, 1.1])[:, None, None]
  candidates = np.concatenate([[u], [X], others, stretched]).astype(np.float32)
  distance = np.sum((candidates - X).astype(np.float64) ** 2, axis=(1, 2))
  penalties = np.array([value(case)(v, dict(case.hyper)) for v in candidates], float)
  objective = step * penalties + distance / 2
  assert np.isfinite(objective[0])
  assert np.all(objective[0] <= objective[1:] * (1 + 1e-6))


# skglm divides by the norm of a zero block, torchao by abs(0) at a threshold of 0, CGES
# multiplies 0 by the infinite reciprocal of a zero group's norm.
@pytest.mark.parametrize("case", CASES, ids=str)
def test_zero_groups_with_zero_steps(case: Case):
  zero = np.zeros(SHAPE, np.float32)
  for step in (0.0, 1.0):
    u = prox(case)(zero, step, dict(case.hyper))
    np.testing.assert_array_equal(u, 0)


# skglm shipped a weighted sum of l1 and groups whose two maps were composed wrongly.
def test_sparse_group_lasso_thresholds_entries_first():
  x = np.array([[3.0], [1.0]], np.float32)
  u = rvsm_jax.sparse_group_lasso(0.5, "out").prox(x, 2.0)
  np.testing.assert_allclose(u, [[1.0], [0.0]], rtol=1e-6)


# nemos keeps a mask of the leaf's shape for every group.
@pytest.mark.parametrize(
  "case",
  [c for c in CASES if c.groups == "out" and c.any_shape],
  ids=str,
)
def test_groups_take_no_memory_of_their_own(case: Case):
  """A mask for each of 256 groups would be 256 times the leaf."""
  x = np.ones((64, 256), np.float32)
  compiled = jax.jit(case.penalty.prox).lower(x, 0.1).compile()
  assert compiled.memory_analysis().temp_size_in_bytes <= 16 * x.nbytes


# CGES replaces the map of the exclusive lasso by one soft threshold, with the norm of
# its input; and public codes disagree on whose share mu is.
def test_exclusive_lasso_is_not_its_one_step():
  x = np.array([[3.0], [1.0]], np.float32)
  exact = np.asarray(rvsm_jax.exclusive_lasso("out").prox(x, 1.0))
  one_step = np.asarray(rvsm_jax.exclusive_lasso_one_step("out").prox(x, 1.0))
  np.testing.assert_allclose(exact, [[1.5], [0.0]], rtol=1e-6)
  np.testing.assert_array_equal(one_step, 0)


def test_mu_is_the_share_of_the_exclusive_term():
  x = np.array([[3.0], [4.0]], np.float32)
  penalty = rvsm_jax.combined_group_exclusive(0.25, "out")
  assert penalty.value(x) == pytest.approx(0.25 * 49 / 2 + 0.75 * 5)
  assert "exclusive" in rvsm_jax.combined_group_exclusive.__doc__


# BUI takes the arccos of numbers outside [-1, 1] and relies on a mask afterwards; the
# book form in float32 enlarges 9% of the points.
def test_tl1_has_a_gradient_below_its_threshold():
  total = lambda x: jnp.sum(rvsm_jax.transformed_l1(0.1).prox(x, 1.0))  # noqa: E731
  gradient = jax.jit(jax.grad(total))
  np.testing.assert_array_equal(gradient(jnp.linspace(-1, 1, 101)), 0)


@pytest.mark.parametrize("a", [1.0, 10.0, 100.0])
def test_tl1_in_float32_never_enlarges(a: float):
  x = np.geomspace(1e-6, 1e2, 20001, dtype=np.float32)
  for gamma in (1e-8, 1e-6, 1e-4, 1e-2):
    assert np.all(rvsm_jax.transformed_l1(a).prox(x, gamma) <= x)


def test_tl1_in_float32_shrinks_by_what_a_small_step_asks():
  """The book form loses the whole shrinkage to cancellation."""
  x, gamma, a = np.float32(0.0625), 1e-6, 1.0
  shrinkage = float(x) - float(rvsm_jax.transformed_l1(a).prox(x, gamma))
  assert shrinkage == pytest.approx(gamma * a * (a + 1) / (a + 0.0625) ** 2, rel=1e-2)


# torchao thresholds by the sum of all learning rates so far.
def test_shrinkage_is_the_current_learning_rate_times_lam():
  tx = rvsm_jax.proximal(0.1, rvsm_jax.l1(), lam=0.5)
  params = {"w": jnp.full((2, 2), 1.0)}
  state = tx.init(params)
  for k in range(1, 5):
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["w"], 1 - 0.05 * k, rtol=1e-5)


# proxssi mutates its default keyword arguments, which all parameter groups share.
def test_penalties_share_nothing():
  first = rvsm_jax.transformed_l1(1.0).prox(X, 0.3)
  rvsm_jax.transformed_l1(0.01).prox(X, 0.3)
  rvsm_jax.group_lasso("out", weights=np.zeros(4, np.float32)).prox(X, 0.3)
  np.testing.assert_array_equal(rvsm_jax.transformed_l1(1.0).prox(X, 0.3), first)
  assert np.any(rvsm_jax.group_lasso("out").prox(X, 0.3) != X)


# jaxpruner passes extra arguments of an update on to its own hook only.
def test_inner_optimizers_get_their_extra_arguments():
  """A line search needs value, grad and value_fn; a plain optimizer ignores them."""

  def loss(w: jax.Array) -> jax.Array:
    return jnp.sum((w - 1.0) ** 2)

  tx = optax.chain(optax.polyak_sgd(), rvsm_jax.proximal(0.1, rvsm_jax.l1(), lam=1e-3))
  w = jnp.zeros(3)
  value, grad = jax.value_and_grad(loss)(w)
  updates, _ = tx.update(grad, tx.init(w), w, value=value)
  assert loss(optax.apply_updates(w, updates)) < value
