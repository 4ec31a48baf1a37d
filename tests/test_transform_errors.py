"""Bad input: each error names the argument, its value, and what to do."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax

L0 = rvsm_jax.l0()
PARAMS = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}

# Each factory with its good arguments.
GOOD = {
  "rvsm": (rvsm_jax.rvsm, {"learning_rate": 0.1, "lam": 0.1, "beta": 1.0}),
  "rvsm_sgd": (rvsm_jax.rvsm_sgd, {"learning_rate": 0.1, "lam": 0.1, "beta": 1.0}),
  "proximal": (rvsm_jax.proximal, {"learning_rate": 0.1, "lam": 0.1}),
  "proximal_sgd": (rvsm_jax.proximal_sgd, {"learning_rate": 0.1, "lam": 0.1}),
  "proximal_adam": (rvsm_jax.proximal_adam, {"learning_rate": 0.1, "lam": 0.1}),
  "add_penalty_gradient": (rvsm_jax.add_penalty_gradient, {"lam": 0.1}),
}
every_factory = pytest.mark.parametrize("name", GOOD)


def build(name, **kwargs):
  function, good = GOOD[name]
  return function(**({"penalty": L0} | good | kwargs))


def numbers():
  for name, (_, good) in GOOD.items():
    for argument in good:
      for value in (-1.0, -1, float("nan"), jnp.float32(-0.5), np.array(np.nan)):
        yield name, argument, value
      yield name, argument, jnp.array([0.1, -0.1])
    if "beta" in good:
      for value in (0.0, 0, -0.0, jnp.zeros(()), float("inf")):
        yield name, "beta", value


@pytest.mark.parametrize(("name", "argument", "value"), list(numbers()))
def test_numbers_out_of_range(name, argument, value):
  with pytest.raises(ValueError, match=argument) as raised:
    build(name, **{argument: value})
  message = str(raised.value)
  assert str(value) in message or repr(value) in message
  assert re.search(r">=? ?0|positive|non-?negative", message), "no remedy"


@every_factory
def test_numbers_of_another_type(name):
  for argument in GOOD[name][1]:
    for value in ("0.1", None, True, 1j):
      with pytest.raises((TypeError, ValueError), match=argument) as raised:
        build(name, **{argument: value})
      assert repr(value) in str(raised.value)


@every_factory
def test_good_numbers_of_every_kind_are_accepted(name):
  for argument in GOOD[name][1]:
    for value in (
      1,
      0.5,
      np.float64(0.5),
      np.array(0.5, np.float32),
      jnp.float32(0.5),
      optax.constant_schedule(0.5),
      lambda count: 0.5,
    ):
      tx = build(name, **{argument: value})
      tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  for argument in set(GOOD[name][1]) - {"beta"}:
    tx = build(name, **{argument: 0})
    tx.update(PARAMS, tx.init(PARAMS), PARAMS)


@every_factory
def test_tracers_are_not_checked_but_used(name):
  arguments = GOOD[name][1]

  @jax.jit
  def update(numbers):
    tx = build(name, **numbers)
    return tx.update(PARAMS, tx.init(PARAMS), PARAMS)[0]

  tx = build(name)
  expected, _ = tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  got = update(arguments)
  np.testing.assert_allclose(
    got["dense"]["kernel"], expected["dense"]["kernel"], rtol=1e-6
  )


@every_factory
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
def test_a_penalty_that_is_none(name, penalty):
  with pytest.raises(TypeError, match="penalty") as raised:
    build(name, penalty=penalty)
  assert "Penalty" in str(raised.value)


@every_factory
def test_an_uncalled_constructor_is_told_to_be_called(name):
  with pytest.raises(TypeError, match="penalty") as raised:
    build(name, penalty=rvsm_jax.l0)
  assert "l0" in str(raised.value)
  assert re.search(r"call|\(\)", str(raised.value))


@every_factory
def test_a_penalty_of_ones_own_is_one(name):
  own = rvsm_jax.Penalty(lambda x: jnp.sum(x**2) / 2, lambda x, step: x / (1 + step))
  tx = build(name, penalty=own)
  tx.update(PARAMS, tx.init(PARAMS), PARAMS)


@pytest.mark.parametrize("name", ["rvsm", "rvsm_sgd"])
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
def test_unknown_choices_list_the_known_ones(name, argument, value):
  with pytest.raises(ValueError, match=argument) as raised:
    build(name, **{argument: value})
  message = str(raised.value)
  assert repr(value) in message
  for known in {
    "normalize": ["leaf", "global"],
    "ordering": ["gauss_seidel", "jacobi"],
  }[argument]:
    assert known in message


@pytest.mark.parametrize("name", ["rvsm", "rvsm_sgd"])
def test_jacobi_needs_a_carried_u(name):
  with pytest.raises(ValueError, match="carry_u") as raised:
    build(name, ordering="jacobi", carry_u=False)
  assert "jacobi" in str(raised.value)
  assert "gauss_seidel" in str(raised.value)


@pytest.mark.parametrize("name", ["rvsm", "rvsm_sgd"])
@pytest.mark.parametrize("u_dtype", [jnp.int32, jnp.int8, bool, jnp.complex64])
def test_u_of_no_real_floating_type(name, u_dtype):
  with pytest.raises((TypeError, ValueError), match="u_dtype"):
    build(name, u_dtype=u_dtype)


@every_factory
def test_params_not_passed_to_update(name):
  tx = build(name)
  state = tx.init(PARAMS)
  for update in (
    lambda: tx.update(PARAMS, state),
    lambda: tx.update(PARAMS, state, None),
    lambda: tx.update(PARAMS, state, params=None),
  ):
    with pytest.raises(ValueError, match="params") as raised:
      update()
    assert "update" in str(raised.value)


def test_rvsm_without_params_after_another_optimizer():
  tx = optax.chain(optax.adam(0.1), build("rvsm"), optax.clip(1.0))
  with pytest.raises(ValueError, match="params"):
    tx.update(PARAMS, tx.init(PARAMS))


@every_factory
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8, jnp.bool_, jnp.complex64])
def test_params_that_are_not_real_name_the_leaf(name, dtype):
  params = {"embed": {"table": jnp.ones((2, 2), dtype)}, "w": jnp.ones(2)}
  with pytest.raises(TypeError, match="embed/table") as raised:
    build(name).init(params)
  assert jnp.dtype(dtype).name in str(raised.value)
  assert "mask" in str(raised.value)
  # Masked out they are no trouble.
  ours = build(name, mask={"embed": False, "w": True})
  state = ours.init(params)
  updates, _ = ours.update(params, state, params)
  base = optax.identity()
  if name.endswith("sgd"):
    base = optax.sgd(0.1)
  elif name.endswith("adam") and jnp.issubdtype(dtype, jnp.inexact):
    base = optax.adam(0.1)
  expected, _ = base.update(params, base.init(params))
  np.testing.assert_array_equal(updates["embed"]["table"], expected["embed"]["table"])


@every_factory
@pytest.mark.parametrize(
  "mask", [False, np.False_, np.array(False), jnp.array(False)], ids=repr
)
def test_a_bare_false(name, mask):
  with pytest.raises(ValueError, match="mask") as raised:
    build(name, mask=mask).init(PARAMS)
  assert "False" in str(raised.value)
  assert "static_args" in str(raised.value)


@every_factory
@pytest.mark.parametrize(
  "mask",
  [
    {"dense": {"kernel": False, "bias": False}},
    {"dense": False},
    lambda params: jax.tree.map(lambda _: False, params),
    rvsm_jax.by_path("attention"),
    lambda params: {"dense": False},
  ],
  ids=["tree", "prefix", "callable", "by_path", "callable prefix"],
)
def test_a_mask_that_selects_nothing(name, mask):
  with pytest.raises(ValueError, match="mask"):
    build(name, mask=mask).init(PARAMS)


@every_factory
@pytest.mark.parametrize(
  "mask",
  [
    {"conv": True},
    {"dense": {"kernel": True}},
    {"dense": {"kernel": True, "bias": True, "scale": True}},
    {"dense": True, "conv": True},
    {"dense": {"kernel": {"a": True}, "bias": True}},
    [True, False],
    {},
    (),
    "kernel",
    1,
    {"dense": 1},
    {"dense": "yes"},
    lambda params: None,
    lambda params: {"conv": True},
    {"dense": {"kernel": np.ones((2, 3), bool), "bias": True}},
    rvsm_jax.layer_index(),
  ],
)
def test_a_mask_that_does_not_fit(name, mask):
  with pytest.raises((ValueError, TypeError), match="mask"):
    build(name, mask=mask).init(PARAMS)


@every_factory
def test_groups_on_a_vector_name_the_leaf_and_the_remedy(name):
  penalty = rvsm_jax.group_lasso("in")
  tx = build(name, penalty=penalty)
  with pytest.raises(ValueError, match="groups") as raised:
    tx.update(PARAMS, tx.init(PARAMS), PARAMS)
  report = str(raised.value) + "".join(getattr(raised.value, "__notes__", []))
  assert "dense/bias" in report
  tx = build(name, penalty=penalty, mask=rvsm_jax.kernels)
  tx.update(PARAMS, tx.init(PARAMS), PARAMS)


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
