"""Bad input to penalties: an error that names the argument, its value and a remedy."""

from collections.abc import Callable
import re
from typing import Any

from cases import CASES, SHAPE, Case
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rvsm_jax

pytestmark = pytest.mark.filterwarnings("error")

X = np.ones(SHAPE, np.float32)
NAN = float("nan")

every = pytest.mark.parametrize("case", CASES, ids=str)


def _assert_names(error: pytest.ExceptionInfo, argument: str, value: Any):
  """The message names both and has a third thing to say."""
  message = str(error.value)
  shown = value if isinstance(value, str) else f"{value:g}"
  assert re.search(rf"\b{argument}\b", message), message
  assert shown in message, message
  assert len(message.replace(argument, "").replace(shown, "").split()) >= 4, message


# Constructor, the argument that is wrong, and values that are.
_HYPERPARAMETERS: dict[str, tuple[Callable[[Any], Any], str, tuple[float, ...]]] = {
  "transformed_l1": (rvsm_jax.transformed_l1, "a", (-1.0, 0.0, NAN)),
  "scad lam": (lambda v: rvsm_jax.scad(v), "lam", (-1.0, NAN)),
  "scad gamma": (lambda v: rvsm_jax.scad(1.0, v), "gamma", (2.0, 1.5, -3.0, NAN)),
  "mcp lam": (lambda v: rvsm_jax.mcp(v), "lam", (-1.0, NAN)),
  "mcp gamma": (lambda v: rvsm_jax.mcp(1.0, v), "gamma", (1.0, 0.5, -3.0, NAN)),
  "log_penalty": (rvsm_jax.log_penalty, "gamma", (-1.0, 0.0, NAN)),
  "capped_l1": (rvsm_jax.capped_l1, "a", (-1.0, NAN)),
  "lp": (rvsm_jax.lp, "p", (0.3, 1.0, -0.5, NAN)),
  "elastic_net": (rvsm_jax.elastic_net, "alpha", (-1.0, NAN)),
  "group_l0": (
    lambda v: rvsm_jax.group_l0(weights=np.array([1.0, v])),
    "weights",
    (-1.0, NAN),
  ),
  "group_lasso": (
    lambda v: rvsm_jax.group_lasso(weights=np.array([1.0, v])),
    "weights",
    (-1.0, NAN),
  ),
  "sparse_group_lasso": (
    lambda v: rvsm_jax.sparse_group_lasso(v, "out"),
    "mu",
    (-0.1, 1.1, NAN),
  ),
  "combined_group_exclusive": (
    lambda v: rvsm_jax.combined_group_exclusive(v, "out"),
    "mu",
    (-0.1, 1.1, NAN),
  ),
  "integrated_tl1 a": (
    lambda v: rvsm_jax.integrated_tl1(v, 0.5),
    "a",
    (-1.0, 0.0, NAN),
  ),
  "integrated_tl1 mu": (
    lambda v: rvsm_jax.integrated_tl1(1.0, v),
    "mu",
    (-0.1, 1.1, NAN),
  ),
  "cardinality": (rvsm_jax.cardinality, "sparsity", (-0.1, 1.1, 60.0, NAN)),
  "scaled": (lambda v: rvsm_jax.scaled(rvsm_jax.l1(), v), "lam", (-1.0, NAN)),
  "hard_threshold": (lambda v: rvsm_jax.hard_threshold(X, v), "gamma", (-1.0, NAN)),
  "soft_threshold": (lambda v: rvsm_jax.soft_threshold(X, v), "gamma", (-1.0, NAN)),
  "transformed_l1_threshold gamma": (
    lambda v: rvsm_jax.transformed_l1_threshold(X, v, 1.0),
    "gamma",
    (-1.0, NAN),
  ),
  "transformed_l1_threshold a": (
    lambda v: rvsm_jax.transformed_l1_threshold(X, 0.1, v),
    "a",
    (-1.0, 0.0, NAN),
  ),
  "block_soft_threshold": (
    lambda v: rvsm_jax.block_soft_threshold(X, v),
    "gamma",
    (-1.0, NAN),
  ),
}


@pytest.mark.parametrize(
  ("make", "argument", "value"),
  [
    pytest.param(make, argument, value, id=f"{name} {value}")
    for name, (make, argument, values) in _HYPERPARAMETERS.items()
    for value in values
  ],
)
def test_hyperparameters_out_of_range(make: Any, argument: str, value: float):
  with pytest.raises(ValueError, match=argument) as error:
    make(value)
  _assert_names(error, argument, value)


def test_one_wrong_number_of_an_array_is_enough():
  with pytest.raises(ValueError, match="a must"):
    rvsm_jax.transformed_l1(np.array([1.0, -1.0]))
  with pytest.raises(ValueError, match="step"):
    rvsm_jax.l1().prox(X[0], np.array([0.1, 0.1, -0.1, 0.1]))


@every
@pytest.mark.parametrize("step", [-0.1, NAN])
def test_steps_out_of_range(case: Case, step: float):
  for given in (step, np.float32(step), jnp.asarray(step)):
    with pytest.raises(ValueError, match="step") as error:
      case.penalty.prox(X, given)
    assert re.search(r"-0\.1|nan", str(error.value))


@every
def test_tracers_are_not_checked(case: Case):
  """Their values are not known: no error while tracing, and none about bools."""
  negative = {k: jnp.float32(-1) for k in case.hyper}

  @jax.jit
  def f(step: jax.Array, hyper: Any) -> Any:
    penalty = case.make(**hyper)
    return penalty.prox(X, step), penalty.value(X)

  jax.eval_shape(f, jnp.float32(-1), negative)


@every
@pytest.mark.parametrize("dtype", [np.int32, np.bool_, np.complex64])
def test_only_real_floating_point_arrays(case: Case, dtype: type):
  """Promoting integers would change their dtype; a complex weight has no sign."""
  x = np.ones(SHAPE, dtype)
  name = np.dtype(dtype).name
  for function in (lambda x: case.penalty.prox(x, 0.1), case.penalty.value):
    with pytest.raises(TypeError, match=name) as error:
      function(x)
    _assert_names(error, "x", name)


_GROUPED: dict[str, Callable[[Any], Any]] = {
  "group_l0": rvsm_jax.group_l0,
  "group_lasso": rvsm_jax.group_lasso,
  "sparse_group_lasso": lambda groups: rvsm_jax.sparse_group_lasso(0.5, groups),
  "exclusive_lasso": rvsm_jax.exclusive_lasso,
  "exclusive_lasso_one_step": rvsm_jax.exclusive_lasso_one_step,
  "combined_group_exclusive": lambda groups: rvsm_jax.combined_group_exclusive(
    0.5, groups
  ),
  "integrated_tl1": lambda groups: rvsm_jax.integrated_tl1(1.0, 0.5, groups),
  "block_soft_threshold": lambda groups: rvsm_jax.Penalty(
    value=lambda x: rvsm_jax.block_soft_threshold(x, 0.1, groups),
    prox=lambda x, step: rvsm_jax.block_soft_threshold(x, step, groups),
  ),
}


@pytest.mark.parametrize("make", _GROUPED.values(), ids=_GROUPED)
@pytest.mark.parametrize(
  ("groups", "shape"),
  [
    ("in", (4,)),
    ("in", ()),
    ("out", ()),
    ("rows", SHAPE),
    ((2,), SHAPE),
    ((-3,), SHAPE),
    ((0, 0), SHAPE),
  ],
  ids=str,
)
def test_groups_that_the_array_does_not_have(
  make: Any, groups: Any, shape: tuple[int, ...]
):
  x = np.ones(shape, np.float32)
  with pytest.raises(ValueError, match="groups") as error:
    make(groups).prox(x, 0.1)
  _assert_names(error, "groups", repr(groups))
  if groups != "rows":
    assert str(shape) in str(error.value)
  with pytest.raises(ValueError, match="groups"):
    make(groups).value(x)


@pytest.mark.parametrize("make", [rvsm_jax.group_lasso, rvsm_jax.group_l0])
def test_weights_that_fit_no_group(make: Any):
  penalty = make("out", weights=np.ones(3, np.float32))
  for function in (lambda: penalty.prox(X, 0.1), lambda: penalty.value(X)):
    with pytest.raises(ValueError, match="weights") as error:
      function()
    _assert_names(error, "weights", "(3,)")


def test_step_that_fits_no_array():
  for penalty in (rvsm_jax.l1(), rvsm_jax.transformed_l1(), rvsm_jax.group_lasso()):
    with pytest.raises(ValueError, match="step") as error:
      penalty.prox(X, np.ones(5, np.float32))
    _assert_names(error, "step", "(5,)")


def test_step_that_would_enlarge_the_array():
  with pytest.raises(ValueError, match="step"):
    rvsm_jax.l1().prox(X[0], np.ones(SHAPE, np.float32))
  with pytest.raises(ValueError, match="step"):
    rvsm_jax.group_lasso().prox(X, np.ones((1, *SHAPE), np.float32))


@pytest.mark.parametrize("shape", [(), (3,)])
def test_nuclear_needs_a_matrix(shape: tuple[int, ...]):
  for function in (
    lambda x: rvsm_jax.nuclear().prox(x, 0.1),
    rvsm_jax.nuclear().value,
  ):
    with pytest.raises(ValueError, match="nuclear") as error:
      function(np.ones(shape, np.float32))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize("impostor", [None, 0.1, "l1", rvsm_jax.l1, (abs,)])
def test_what_is_no_penalty(impostor: Any):
  """The constructor itself, not called, is the likeliest mistake."""
  with pytest.raises((TypeError, ValueError), match="penalty"):
    rvsm_jax.scaled(impostor, 1.0)


@pytest.mark.parametrize("value", ["0.1", None, True, 1j])
def test_hyperparameters_are_numbers(value: Any):
  with pytest.raises(TypeError, match="a must"):
    rvsm_jax.transformed_l1(value)
