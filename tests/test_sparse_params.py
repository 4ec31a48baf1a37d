"""`sparse_params` finds u wherever an Optax wrapper has put it."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax

LR = 0.1
RVSM = {"lam": 0.05, "beta": 1.0}
PENALTY = rvsm_jax.l0()


def network(params, x):
  hidden = jax.nn.relu(x @ params["first"]["kernel"] + params["first"]["bias"])
  return hidden @ params["last"]["kernel"] + params["last"]["bias"]


@pytest.fixture(scope="module")
def params():
  rng = np.random.default_rng(0)

  def draw(*shape):
    return jnp.asarray(0.5 * rng.normal(size=shape), jnp.float32)

  return {
    "first": {"kernel": draw(6, 16), "bias": draw(16)},
    "last": {"kernel": draw(16, 3), "bias": draw(3)},
  }


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(1)
  return rng.normal(size=(32, 6)), rng.normal(size=(32, 3))


def train(tx, params, batch, steps=4):
  inputs, targets = (jnp.asarray(a, jnp.float32) for a in batch)

  def loss(params):
    return jnp.mean((network(params, inputs) - targets) ** 2)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  state = tx.init(params)
  for _ in range(steps):
    params, state = step(params, state)
  return params, state


def rvsm(mask=None, **kwargs):
  return rvsm_jax.rvsm(LR, PENALTY, mask=mask, **(RVSM | kwargs))


def labels(params):
  return jax.tree.map_with_path(lambda path, _: path[0].key, params)


def only(name):
  return {layer: layer == name for layer in ("first", "last")}


def injected(**kwargs):
  factory = optax.inject_hyperparams(rvsm_jax.rvsm_sgd, static_args=("mask",))
  return factory(LR, PENALTY, **RVSM, **kwargs)


def last_only(sgd):
  """The same, with RVSM on the last layer only, whatever the wrapper is."""
  return optax.chain(sgd, rvsm(only("last")))


sgd = optax.sgd(LR)
whole = optax.chain(sgd, rvsm())

# Every optimizer of a group trains the same parameters and carries the same u.
EVERYWHERE = {
  "chain": whole,
  "alias": rvsm_jax.rvsm_sgd(LR, PENALTY, **RVSM),
  "named_chain": optax.named_chain(("base", sgd), ("sparse", rvsm())),
  "chain in chain": optax.chain(optax.identity(), optax.chain(sgd, rvsm())),
  "two masked by argument": optax.chain(sgd, rvsm(only("first")), rvsm(only("last"))),
  "two masked by optax": optax.chain(
    sgd,
    optax.masked(rvsm(), only("first")),
    optax.masked(rvsm(), only("last")),
  ),
  "masked": optax.masked(whole, True),
  "partition": optax.partition({"first": whole, "last": whole}, labels),
  "partition, by reference": optax.partition(
    {0: whole, 1: whole}, rvsm_jax.layer_index("first", "last")
  ),
  "MultiSteps": optax.MultiSteps(whole, 1),
  "MultiSteps, as transformation": optax.MultiSteps(whole, 1).gradient_transformation(),
  "apply_if_finite": optax.apply_if_finite(whole, 3),
  "conditionally_mask": optax.conditionally_mask(whole, lambda step: step >= 0),
  "inject_hyperparams": injected(),
  "inject in a chain": optax.chain(optax.identity(), injected()),
  "MultiSteps of partition of inject": optax.MultiSteps(
    optax.apply_if_finite(
      optax.partition({"first": injected(), "last": injected()}, labels), 3
    ),
    1,
  ),
}
LAST_ONLY = {
  "mask": last_only(sgd),
  "mask callable": optax.chain(sgd, rvsm(rvsm_jax.by_path("^last"))),
  "masked by optax": optax.chain(sgd, optax.masked(rvsm(), only("last"))),
  "masked by optax, callable": optax.chain(
    sgd, optax.masked(rvsm(), rvsm_jax.by_path("^last"))
  ),
  "mask in masked": optax.chain(
    sgd, optax.masked(rvsm(rvsm_jax.by_path("^last")), rvsm_jax.by_path("last"))
  ),
  "partition": optax.partition({"first": sgd, "last": whole}, labels),
  "inject_hyperparams": injected(mask=rvsm_jax.by_path("^last")),
  "MultiSteps": optax.MultiSteps(last_only(sgd), 1),
  "apply_if_finite": optax.apply_if_finite(last_only(sgd), 3),
  "named_chain": optax.named_chain(("base", sgd), ("u", rvsm(only("last")))),
}


@pytest.fixture(scope="module")
def trained(params, batch):
  return train(whole, params, batch)


@pytest.fixture(scope="module")
def trained_last(params, batch):
  return train(last_only(sgd), params, batch)


@pytest.mark.parametrize("name", EVERYWHERE)
def test_the_network_of_u_is_the_same_from_every_wrapper(name, params, batch, trained):
  expected_params, state = trained
  expected = state[1].u
  assert 0.1 < rvsm_jax.sparsity(expected) < 0.9

  got_params, state = train(EVERYWHERE[name], params, batch)
  chex.assert_trees_all_close(got_params, expected_params, rtol=1e-5, atol=1e-7)
  sparse = rvsm_jax.sparse_params(state, got_params)
  chex.assert_trees_all_equal_shapes_and_dtypes(sparse, params)
  chex.assert_trees_all_close(sparse, expected, rtol=1e-5)
  np.testing.assert_allclose(
    network(sparse, batch[0]), network(expected, batch[0]), rtol=1e-4
  )


@pytest.mark.parametrize("name", LAST_ONLY)
def test_leaves_without_u_keep_the_params(name, params, batch, trained_last):
  expected_params, state = trained_last
  expected = expected_params | {"last": state[1].u["last"]}
  assert rvsm_jax.sparsity(expected["last"]) > 0.1
  assert rvsm_jax.sparsity(expected["first"]) == 0

  got_params, state = train(LAST_ONLY[name], params, batch)
  sparse = rvsm_jax.sparse_params(state, got_params)
  chex.assert_trees_all_equal(sparse["first"], got_params["first"])
  chex.assert_trees_all_close(sparse, expected, rtol=1e-5)


def test_under_jit(trained):
  params, state = trained
  chex.assert_trees_all_equal(
    jax.jit(rvsm_jax.sparse_params)(state, params),
    rvsm_jax.sparse_params(state, params),
  )


def test_params_and_state_are_not_changed(trained_last):
  params, state = trained_last
  before = jax.tree.map(np.array, trained_last)
  rvsm_jax.sparse_params(state, params)
  chex.assert_trees_all_equal(trained_last, before)


def test_between_the_steps_of_multisteps_it_is_the_last_u(params):
  every = 2
  tx = optax.MultiSteps(whole, every)
  update = jax.jit(tx.update)
  trained, state = params, tx.init(params)
  for mini_step in range(2 * every):
    sparse = rvsm_jax.sparse_params(state, trained)
    expected = jax.tree.map(lambda w: PENALTY.prox(w, 0.05), trained)
    chex.assert_trees_all_equal(sparse, expected)
    assert state.inner_opt_state[1].count == mini_step // every
    updates, state = update(trained, state, trained)
    trained = optax.apply_updates(trained, updates)


def test_dtype_and_structure_are_those_of_params():
  params = {
    "a": [jnp.ones((2, 2), jnp.bfloat16), None],
    "b": (jnp.ones((), jnp.float16), {}),
  }
  tx = rvsm(u_dtype=jnp.float32)
  sparse = rvsm_jax.sparse_params(tx.init(params), params)
  chex.assert_trees_all_equal_shapes_and_dtypes(sparse, params)
  assert isinstance(sparse["b"], tuple)
  assert sparse["a"][1] is None


def test_params_which_are_one_array():
  w = jnp.array([0.1, 2.0])
  tx = rvsm_jax.rvsm_sgd(LR, PENALTY, **RVSM)
  np.testing.assert_array_equal(
    rvsm_jax.sparse_params(tx.init(w), w), jnp.array([0.0, 2.0])
  )


def test_a_field_called_u_that_is_not_ours_is_no_u(params):
  foreign = optax.GradientTransformation(
    lambda params: {"u": jax.tree.map(jnp.zeros_like, params)},
    lambda updates, state, params=None: (updates, state),
  )
  tx = optax.chain(sgd, foreign, rvsm())
  state = tx.init(params)
  chex.assert_trees_all_equal(rvsm_jax.sparse_params(state, params), state[2].u)
  state = optax.chain(sgd, foreign).init(params)
  chex.assert_trees_all_equal(rvsm_jax.sparse_params(state, params), params)


@pytest.mark.parametrize(
  "tx",
  [sgd, optax.adam(LR), rvsm_jax.proximal_sgd(LR, PENALTY, lam=0.1)],
  ids=["sgd", "adam", "proximal"],
)
def test_without_a_u_the_params_are_the_sparse_network(tx, params):
  sparse = rvsm_jax.sparse_params(tx.init(params), params)
  chex.assert_trees_all_equal(sparse, params)


# What it refuses


def test_a_u_that_is_not_carried_names_the_remedy(params):
  tx = rvsm_jax.rvsm_sgd(LR, PENALTY, carry_u=False, **RVSM)
  with pytest.raises(ValueError, match="carry_u"):
    rvsm_jax.sparse_params(tx.init(params), params)


@pytest.mark.parametrize(
  "tx",
  [
    optax.chain(sgd, rvsm(), rvsm()),
    optax.chain(sgd, rvsm(), rvsm(only("last"))),
    optax.chain(sgd, rvsm(only("last")), optax.masked(rvsm(), only("last"))),
    optax.chain(sgd, rvsm(), optax.apply_if_finite(rvsm(), 2)),
  ],
  ids=["two", "one of them masked", "two masked", "nested"],
)
def test_two_states_that_claim_one_leaf(tx, params):
  with pytest.raises(ValueError, match=r"(?i)two|more than one|several|both|2"):
    rvsm_jax.sparse_params(tx.init(params), params)


def test_params_of_another_model(params):
  state = whole.init(params)
  for other in (
    {"first": params["first"]},
    {"one": params["first"], "two": params["last"]},
    [params["first"], params["last"]],
  ):
    with pytest.raises(ValueError, match="params"):
      rvsm_jax.sparse_params(state, other)


def test_params_of_other_shapes(params):
  state = whole.init(params)
  transposed = jax.tree.map(jnp.transpose, params)
  with pytest.raises(ValueError, match="shape"):
    rvsm_jax.sparse_params(state, transposed)
