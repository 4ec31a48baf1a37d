"""Bad input: each error names the argument, its value, and what to do."""

import re

from cases import ALIASES, LR, RVSM, TRANSFORMATIONS, typical
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax

L0 = rvsm_jax.l0()
PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
ROWS = (*TRANSFORMATIONS, *ALIASES)


def rows(*arguments, mask=False, costly=False):
  """Parametrizes `case` over those that take all of these arguments.

  If the test is `costly`, those that are not typical are slow.
  """
  found = [
    case
    for case in ROWS
    if case.arguments.keys() >= set(arguments) and (case.has("mask") or not mask)
  ]
  found = typical(found) if costly else found
  return pytest.mark.parametrize("case", found, ids=str)


every = rows()
typical_rows = rows(costly=True)
with_penalty = rows("penalty")
with_mask = rows(mask=True)


def update(case, tx, params=PARAMS):
  state = tx.init(params)
  return tx.update(params, state, params, **case.extra(params, params))


@pytest.mark.parametrize(
  "value",
  [-1.0, -1, float("nan"), jnp.float32(-0.5), np.array(np.nan), jnp.array([0.1, -0.1])],
  ids=repr,
)
@every
def test_numbers_out_of_range(case, value):
  for argument in (*case.numbers, *case.shares):
    with pytest.raises(ValueError, match=argument) as raised:
      case.bare(**{argument: value})
    message = str(raised.value)
    assert str(value) in message or repr(value) in message
    assert re.search(r">=? ?0|positive|non-?negative|\[0, 1\]|bounds", message), message


@pytest.mark.parametrize("value", [0.0, 0, -0.0, jnp.zeros(()), float("inf")], ids=repr)
@every
def test_numbers_that_must_be_positive(case, value):
  for argument in case.positive:
    with pytest.raises(ValueError, match=argument):
      case.bare(**{argument: value})


@pytest.mark.parametrize("value", [1.5, 90, np.float32(1.01)], ids=repr)
@every
def test_shares_above_one(case, value):
  for argument in case.shares:
    with pytest.raises(ValueError, match=argument):
      case.bare(**{argument: value})


@pytest.mark.parametrize("value", ["0.1", None, True, 1j], ids=repr)
@every
def test_numbers_of_another_type(case, value):
  for argument in (*case.numbers, *case.shares):
    with pytest.raises((TypeError, ValueError), match=argument) as raised:
      case.bare(**{argument: value})
    assert repr(value) in str(raised.value)


@typical_rows
def test_good_numbers_of_every_kind_are_accepted(case):
  numbers = (1, 0.5, np.float64(0.5), np.array(0.5, np.float32), jnp.float32(0.5))
  for argument in (*case.numbers, *case.shares):
    for value in (*numbers, *(() if argument in case.positive else (0,))):
      tx = case.bare(**{argument: value})
      jax.eval_shape(lambda tx=tx: update(case, tx))
  for argument in case.scheduled:
    for schedule in (optax.constant_schedule(0.5), lambda count: 0.5):
      tx = case.bare(**{argument: schedule})
      jax.eval_shape(lambda tx=tx: update(case, tx))


@typical_rows
def test_tracers_are_not_checked_but_used(case):
  names = (*case.numbers, *case.shares)
  got = jax.jit(lambda numbers: update(case, case.bare(**numbers))[0])(
    {name: case.arguments[name] for name in names}
  )
  expected, _ = jax.jit(lambda: update(case, case.bare()))()
  np.testing.assert_allclose(
    got["dense"]["kernel"], expected["dense"]["kernel"], rtol=1e-6
  )


@pytest.mark.parametrize(
  "penalty",
  [
    rvsm_jax.l0,
    rvsm_jax.transformed_l1,
    "l0",
    None,
    0.1,
    (),
    (abs,),
    L0.prox,
    object(),
  ],
  ids=lambda p: getattr(p, "__name__", type(p).__name__),
)
@with_penalty
def test_a_penalty_that_is_none(case, penalty):
  with pytest.raises(TypeError, match="penalty") as raised:
    update(case, case.bare(penalty=penalty))
  assert "Penalty" in str(raised.value)
  if penalty is rvsm_jax.l0:
    # It is told to be called.
    assert "l0()" in str(raised.value)


@with_penalty
def test_a_penalty_of_ones_own_is_one(case):
  own = rvsm_jax.Penalty(lambda x: jnp.sum(x**2) / 2, lambda x, step: x / (1 + step))
  update(case, case.bare(penalty=own))


@pytest.mark.parametrize("make", [rvsm_jax.rvsm, rvsm_jax.rvsm_sgd])
@pytest.mark.parametrize(
  ("argument", "value"),
  [
    ("normalize", "layer"),
    ("normalize", True),
    ("normalize", ""),
    ("ordering", "gauss-seidel"),
    ("ordering", "Jacobi"),
    ("ordering", None),
  ],
)
def test_unknown_choices_list_the_known_ones(make, argument, value):
  with pytest.raises(ValueError, match=argument) as raised:
    make(**RVSM | {argument: value})
  message = str(raised.value)
  assert repr(value) in message
  for known in {
    "normalize": ["leaf", "global"],
    "ordering": ["gauss_seidel", "jacobi"],
  }[argument]:
    assert known in message


@pytest.mark.parametrize("make", [rvsm_jax.rvsm, rvsm_jax.rvsm_sgd])
def test_jacobi_needs_a_carried_u(make):
  with pytest.raises(ValueError, match="carry_u") as raised:
    make(**RVSM, ordering="jacobi", carry_u=False)
  assert "jacobi" in str(raised.value)
  assert "gauss_seidel" in str(raised.value)


@pytest.mark.parametrize("make", [rvsm_jax.rvsm, rvsm_jax.rvsm_sgd])
@pytest.mark.parametrize("u_dtype", [jnp.int32, jnp.int8, bool, jnp.complex64])
def test_u_of_no_real_floating_type(make, u_dtype):
  with pytest.raises((TypeError, ValueError), match="u_dtype"):
    make(**RVSM, u_dtype=u_dtype)


@every
def test_params_not_passed_to_update(case):
  tx = case.bare()
  state = tx.init(PARAMS)
  extra = case.extra(PARAMS, PARAMS)
  for update in (
    lambda: tx.update(PARAMS, state, **extra),
    lambda: tx.update(PARAMS, state, None, **extra),
    lambda: tx.update(PARAMS, state, params=None, **extra),
  ):
    with pytest.raises(ValueError, match="params") as raised:
      update()
    assert "update" in str(raised.value)


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
@rows(mask=True, costly=True)
def test_params_that_are_not_real_name_the_leaf(case, dtype):
  params = {"embed": {"table": jnp.ones((2, 2), dtype)}, "w": jnp.ones(2)}
  with pytest.raises(TypeError, match="embed/table") as raised:
    update(case, case.bare(), params)
  assert jnp.dtype(dtype).name in str(raised.value)
  assert "mask" in str(raised.value)
  # Masked out they are no trouble.
  updates, _ = update(case, case.bare(mask={"embed": False, "w": True}), params)
  base = optax.identity()
  if case.place in ("whole", "around"):
    # What Adam makes of a moment of integers is no update.
    if case.name == "proximal_adam" and not jnp.issubdtype(dtype, jnp.inexact):
      pass
    else:
      base = case.base(LR)
  expected, _ = base.update(params, base.init(params))
  np.testing.assert_array_equal(updates["embed"]["table"], expected["embed"]["table"])


MASKS = {
  "static_args": {
    "false": False,
    "numpy": np.False_,
    "array": np.array(False),
    "jax": jnp.array(False),
  },
  "mask": {
    # It selects nothing.
    "all false": {"dense": {"kernel": False, "bias": False}},
    "prefix false": {"dense": False},
    "callable false": lambda params: jax.tree.map(lambda _: False, params),
    "path of nothing": rvsm_jax.by_path("attention"),
    "callable prefix false": lambda params: {"dense": False},
    # It does not fit.
    "other layer": {"conv": True},
    "leaf missing": {"dense": {"kernel": True}},
    "leaf too many": {"dense": {"kernel": True, "bias": True, "scale": True}},
    "layer too many": {"dense": True, "conv": True},
    "too deep": {"dense": {"kernel": {"a": True}, "bias": True}},
    "list": [True, False],
    "empty dict": {},
    "empty tuple": (),
    "name": "kernel",
    "number": 1,
    "number inside": {"dense": 1},
    "text inside": {"dense": "yes"},
    "callable none": lambda params: None,
    "callable other": lambda params: {"conv": True},
    "entries": {"dense": {"kernel": np.ones((2, 3), bool), "bias": True}},
    "labels": rvsm_jax.layer_index(),
  },
}


@with_mask
def test_masks_that_are_wrong(case):
  for words, masks in MASKS.items():
    for name, mask in masks.items():
      with pytest.raises((ValueError, TypeError), match="mask") as raised:
        # Without u the mask is not needed before the first update.
        update(case, case.bare(mask=mask))
      assert words in str(raised.value), name
      if words == "static_args":
        assert "False" in str(raised.value)


@rows("penalty", costly=True)
def test_groups_on_a_vector_name_the_leaf_and_the_remedy(case):
  penalty = rvsm_jax.group_lasso("in")
  with pytest.raises(ValueError, match="groups") as raised:
    update(case, case.bare(penalty=penalty))
  report = str(raised.value) + "".join(getattr(raised.value, "__notes__", []))
  assert "dense/bias" in report
  if case.has("mask"):
    update(case, case.bare(penalty=penalty, mask=rvsm_jax.kernels))


def test_positional_hyperparameters_are_refused():
  # lam and beta in the wrong order would be a silent error.
  with pytest.raises(TypeError):
    rvsm_jax.rvsm(0.1, L0, 0.1, 1.0)
  with pytest.raises(TypeError):
    rvsm_jax.proximal(0.1, L0, 0.1)
  with pytest.raises(TypeError):
    rvsm_jax.proximal_adam(0.1, L0, 0.1)


def test_by_path_with_a_broken_pattern():
  with pytest.raises((re.error, ValueError)):
    rvsm_jax.by_path("(")(PARAMS)
