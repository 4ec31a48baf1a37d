"""Each trap of Optax for a proximal step: prevented, refused or documented."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax

LR = 0.1
RVSM = {"lam": 0.05, "beta": 1.0}
L1 = rvsm_jax.l1()
CHAINS = {
  "rvsm": rvsm_jax.rvsm_sgd(LR, L1, momentum=0.9, **RVSM),
  "jacobi": rvsm_jax.rvsm_sgd(LR, L1, ordering="jacobi", **RVSM),
  "no u": rvsm_jax.rvsm_sgd(LR, L1, carry_u=False, **RVSM),
  "rvsm after adam": optax.chain(optax.adam(LR), rvsm_jax.rvsm(LR, L1, **RVSM)),
  "normalized": rvsm_jax.rvsm_sgd(LR, L1, normalize="global", **RVSM),
  "proximal": rvsm_jax.proximal_sgd(LR, L1, lam=0.5, momentum=0.9),
  "proximal after adam": optax.chain(
    optax.adam(LR), rvsm_jax.proximal(LR, L1, lam=1.0)
  ),
  "proximal adam": rvsm_jax.proximal_adam(LR, L1, lam=1.0),
  "penalty gradient": optax.chain(
    rvsm_jax.add_penalty_gradient(L1, 0.1), optax.sgd(LR, momentum=0.9)
  ),
}
every_chain = pytest.mark.parametrize("name", CHAINS)


def tree(seed=0, dtype=jnp.float32):
  rng = np.random.default_rng(seed)
  return {
    "a": {
      "kernel": jnp.asarray(rng.normal(size=(4, 6)), dtype),
      "bias": jnp.asarray(rng.normal(size=6), dtype),
    },
    "b": {"kernel": jnp.asarray(rng.normal(size=(6, 2)), dtype)},
  }


def run(tx, params, grads):
  update = jax.jit(tx.update)
  state = tx.init(params)
  for g in grads:
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def states_of(state, kind=rvsm_jax.RVSMState):
  def is_ours(x):
    return isinstance(x, kind)

  return [x for x in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(x)]


# Extra arguments and compilation


@every_chain
def test_unexpected_arguments_jit_and_no_second_compilation(name):
  tx, params = CHAINS[name], tree()
  assert isinstance(tx, optax.GradientTransformationExtraArgs)
  traces = []

  @jax.jit
  def step(params, state, grads):
    traces.append(None)
    updates, state = tx.update(grads, state, params, value=1.0, unexpected="argument")
    return optax.apply_updates(params, updates), state

  jitted, state = params, tx.init(params)
  eager, eager_state = params, tx.init(params)
  for seed in (1, 2, 3):
    jitted, state = step(jitted, state, tree(seed))
    updates, eager_state = tx.update(tree(seed), eager_state, eager, value=1.0)
    eager = optax.apply_updates(eager, updates)
  chex.assert_trees_all_close(
    (jitted, state), (eager, eager_state), rtol=1e-5, atol=1e-6
  )
  assert len(traces) == 1


@every_chain
def test_under_scan_and_cond(name):
  tx, params = CHAINS[name], tree()
  grads = [tree(seed) for seed in range(4)]
  expected = run(tx, params, [grads[0], grads[2]])
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *grads)

  def step(carry, inputs):
    index, g = inputs

    def act(params, state):
      updates, state = tx.update(g, state, params)
      return optax.apply_updates(params, updates), state

    return jax.lax.cond(index % 2 == 0, act, lambda *carry: carry, *carry), None

  got, _ = jax.jit(jax.lax.scan, static_argnums=0)(
    step, (params, tx.init(params)), (jnp.arange(4), stacked)
  )
  chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
  "name", ["rvsm", "jacobi", "normalized", "proximal", "proximal adam"]
)
def test_an_ensemble_by_vmap(name):
  tx = CHAINS[name]
  members, grads = [tree(0), tree(1)], [tree(2), tree(3)]
  expected = [run(tx, p, [g, g]) for p, g in zip(members, grads, strict=True)]

  def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

  got = jax.vmap(lambda p, g: run(tx, p, [g, g]))(stack(members), stack(grads))
  chex.assert_trees_all_close(got, stack(expected), rtol=1e-5, atol=1e-6)


# MultiSteps


@pytest.mark.parametrize(
  "tx",
  [
    rvsm_jax.rvsm(LR, L1, **RVSM),
    rvsm_jax.proximal(LR, L1, lam=0.1),
    rvsm_jax.add_penalty_gradient(L1, 0.1),
    rvsm_jax.rvsm_sgd(LR, L1, **RVSM),
    rvsm_jax.proximal_sgd(LR, L1, lam=0.1),
    rvsm_jax.proximal_adam(LR, L1, lam=0.1),
  ],
)
def test_the_third_argument_is_params(tx):
  # MultiSteps passes it by keyword.
  assert list(inspect.signature(tx.update).parameters)[:3] == [
    "updates",
    "state",
    "params",
  ]
  w = jnp.ones(3)
  tx.update(w, tx.init(w), params=w)


@every_chain
def test_multisteps_is_one_big_batch_and_one_shrinkage(name):
  tx, params = CHAINS[name], tree()
  small = [tree(seed) for seed in range(6)]
  means = [
    jax.tree.map(lambda *leaves: sum(leaves) / 3, *small[i : i + 3]) for i in (0, 3)
  ]
  expected, expected_state = run(tx, params, means)
  wrapped = optax.MultiSteps(tx, 3)
  got, state = run(wrapped, params, small)
  chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-6)
  chex.assert_trees_all_close(
    state.inner_opt_state, expected_state, rtol=1e-4, atol=1e-6
  )
  # Between the big steps nothing moves: neither params, nor u, nor the count.
  middle, middle_state = run(wrapped, params, small[:2])
  chex.assert_trees_all_equal(middle, params)
  chex.assert_trees_all_equal(middle_state.inner_opt_state, tx.init(params))


@pytest.mark.parametrize("skipped", [jnp.nan, jnp.inf])
def test_multisteps_skips_what_is_not_finite(skipped):
  tx = CHAINS["rvsm"]
  params, good = tree(), tree(1)
  bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, skipped), good)
  wrapped = optax.MultiSteps(tx, 2, should_skip_update_fn=optax.skip_not_finite)
  got, state = run(wrapped, params, [good, bad, good])
  expected, expected_state = run(tx, params, [good])
  chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)
  chex.assert_trees_all_close(
    state.inner_opt_state, expected_state, rtol=1e-5, atol=1e-6
  )


def test_a_prox_after_multisteps_shrinks_at_every_mini_step_and_says_so():
  # Not preventable from inside: the prox cannot see that the update is a zero.
  w = jnp.array([1.0])
  zero = jnp.zeros(1)
  prox = rvsm_jax.proximal(1.0, L1, lam=0.1)
  inside = optax.MultiSteps(optax.chain(optax.sgd(1.0), prox), 4)
  outside = optax.chain(
    optax.MultiSteps(optax.sgd(1.0), 4).gradient_transformation(), prox
  )
  np.testing.assert_allclose(run(inside, w, [zero] * 4)[0], [0.9], rtol=1e-6)
  np.testing.assert_allclose(run(outside, w, [zero] * 4)[0], [0.6], rtol=1e-6)
  for documented in (rvsm_jax.proximal, rvsm_jax.rvsm):
    assert "MultiSteps" in documented.__doc__


def test_an_average_of_sparse_params_is_not_sparse_and_the_docstring_says_so():
  first, second = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
  assert rvsm_jax.sparsity((first + second) / 2) == 0
  assert "average" in rvsm_jax.proximal.__doc__


def test_that_the_prox_after_adam_is_no_minimiser_is_documented():
  assert "Adam" in rvsm_jax.proximal.__doc__


# apply_if_finite and divergence


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
@pytest.mark.parametrize(
  "name", ["rvsm", "no u", "normalized", "proximal after adam", "proximal adam"]
)
def test_apply_if_finite_keeps_params_and_state(name, bad):
  tx, params, good = CHAINS[name], tree(), tree(1)
  poisoned = good | {"b": {"kernel": good["b"]["kernel"].at[0, 0].set(bad)}}
  wrapped = optax.apply_if_finite(tx, 5)
  got, state = run(wrapped, params, [good, poisoned, poisoned, good])
  expected, expected_state = run(tx, params, [good, good])
  assert state.total_notfinite == 2
  chex.assert_trees_all_close(
    (got, state.inner_state), (expected, expected_state), rtol=1e-5, atol=1e-6
  )
  chex.assert_tree_all_finite((got, state.inner_state))


# inject_hyperparams


# Exact in each precision: Optax rounds what it injects to that of the params, and the
# usual 0.999 is 1 in bfloat16.
DECAYS = {"b1": 7 / 8, "b2": 63 / 64, "eps": 2.0**-24}
FACTORIES = {
  "rvsm": (rvsm_jax.rvsm, {"penalty": L1, **RVSM}),
  "rvsm_sgd": (rvsm_jax.rvsm_sgd, {"penalty": L1, "momentum": 0.9, **RVSM}),
  "proximal": (rvsm_jax.proximal, {"penalty": L1, "lam": 0.5}),
  "proximal_sgd": (rvsm_jax.proximal_sgd, {"penalty": L1, "lam": 0.5}),
  "proximal_adam": (rvsm_jax.proximal_adam, {"penalty": L1, "lam": 0.5, **DECAYS}),
  "add_penalty_gradient": (rvsm_jax.add_penalty_gradient, {"penalty": L1, "lam": 0.5}),
}


def factory(name):
  """The factory and its keyword arguments."""
  function, kwargs = FACTORIES[name]
  has_rate = "learning_rate" in inspect.signature(function).parameters
  return function, ({"learning_rate": LR} if has_rate else {}) | kwargs


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("name", FACTORIES)
def test_injected_is_equal(name, dtype):
  function, kwargs = factory(name)
  params, grads = tree(0, dtype), [tree(1, dtype), tree(2, dtype)]
  expected, expected_state = run(function(**kwargs), params, grads)
  got, state = run(optax.inject_hyperparams(function)(**kwargs), params, grads)
  tolerance = 1e-6 if dtype == jnp.float32 else 2**-6
  chex.assert_trees_all_close(
    (got, state.inner_state), (expected, expected_state), rtol=tolerance, atol=tolerance
  )
  chex.assert_trees_all_equal_dtypes(
    (got, state.inner_state), (expected, expected_state)
  )


@pytest.mark.parametrize("name", FACTORIES)
def test_integer_hyperparameters_become_tracers(name):
  function, kwargs = factory(name)
  numbers = {"learning_rate", "lam", "beta", "momentum"}
  integers = {k: int(v > 0.2) if k in numbers else v for k, v in kwargs.items()}
  floats = {k: float(v) if k in numbers else v for k, v in integers.items()}
  if "beta" in integers:
    assert integers["beta"] == 1
  injected = optax.inject_hyperparams(function)(**integers)
  got, state = run(injected, tree(), [tree(1)])
  expected, expected_state = run(function(**floats), tree(), [tree(1)])
  chex.assert_trees_all_close(
    (got, state.inner_state), (expected, expected_state), rtol=1e-6
  )


def test_a_decay_that_rounds_to_one_is_refused():
  injected = optax.inject_hyperparams(rvsm_jax.proximal_adam)(LR, L1, lam=0.5)
  with pytest.raises(ValueError, match="b2"):
    injected.init(tree(0, jnp.bfloat16))
  injected.init(tree())


def test_a_hyperparameter_changed_by_hand_takes_effect_without_recompiling():
  function = optax.inject_hyperparams(rvsm_jax.proximal)
  tx = function(1.0, L1, lam=0.0)
  w = jnp.array([1.0, -1.0])
  state = tx.init(w)
  update = jax.jit(tx.update)
  for lam in (0.0, 0.25):
    state.hyperparams["lam"] = jnp.asarray(lam, jnp.float32)
    updates, state = update(jnp.zeros(2), state, w)
    np.testing.assert_allclose(updates, [-lam, lam], atol=1e-7)
  assert update._cache_size() == 1


def test_a_scheduled_lam_may_be_injected_or_native():
  lam = optax.linear_schedule(0.0, 0.4, 4)
  kwargs = {"beta": 1.0, "carry_u": False}
  native = rvsm_jax.rvsm(LR, L1, lam=lam, **kwargs)
  injected = optax.inject_hyperparams(rvsm_jax.rvsm)(LR, L1, lam=lam, **kwargs)
  grads = [tree(seed) for seed in range(4)]
  chex.assert_trees_all_close(
    run(native, tree(), grads)[0], run(injected, tree(), grads)[0], rtol=1e-6
  )


@pytest.mark.parametrize(
  "mask",
  [
    rvsm_jax.kernels,
    rvsm_jax.by_path("kernel"),
    lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    lambda params: False,
  ],
  ids=["kernels", "by_path", "ndim", "false"],
)
@pytest.mark.parametrize("name", FACTORIES)
def test_an_injected_callable_mask_is_refused_and_static_args_cures_it(name, mask):
  # inject_hyperparams takes the mask for a schedule, and its value is a bare False:
  # every leaf would silently be left out.
  function, kwargs = factory(name)
  kwargs = kwargs | {"mask": mask}
  for init in (lambda tx: tx.init(tree()), lambda tx: jax.jit(tx.init)(tree())):
    with pytest.raises(ValueError, match=r"static_args") as raised:
      init(optax.inject_hyperparams(function)(**kwargs))
    assert "mask" in str(raised.value)
  if mask(tree()) is False:
    return
  cured = optax.inject_hyperparams(function, static_args=("mask",))(**kwargs)
  got, state = run(cured, tree(), [tree(1)])
  expected, expected_state = run(function(**kwargs), tree(), [tree(1)])
  chex.assert_trees_all_close(
    (got, state.inner_state), (expected, expected_state), rtol=1e-6
  )


@pytest.mark.filterwarnings("ignore:Implicit conversion of an array to a dtype")
def test_u_dtype_under_injection():
  kwargs = {"u_dtype": jnp.bfloat16, **RVSM}
  # A scalar type is callable, hence a schedule, hence an array.
  with pytest.raises((TypeError, ValueError), match="dtype"):
    optax.inject_hyperparams(rvsm_jax.rvsm)(LR, L1, **kwargs).init(tree())
  tx = optax.inject_hyperparams(rvsm_jax.rvsm, static_args=("u_dtype",))
  for leaf in jax.tree.leaves(tx(LR, L1, **kwargs).init(tree()).inner_state.u):
    assert leaf.dtype == jnp.bfloat16


# masked and partition


def test_leaves_without_penalty_descend_the_gradient():
  # With optax.masked(sgd) alone the others would get +gradient, which is ascent.
  params, grads = tree(), tree(1)
  for tx in (
    rvsm_jax.rvsm_sgd(LR, L1, mask=rvsm_jax.kernels, **RVSM),
    rvsm_jax.proximal_sgd(LR, L1, lam=0.1, mask=rvsm_jax.kernels),
    optax.chain(
      optax.sgd(LR), optax.masked(rvsm_jax.rvsm(LR, L1, **RVSM), rvsm_jax.kernels)
    ),
  ):
    updates, _ = tx.update(grads, tx.init(params), params)
    np.testing.assert_array_equal(updates["a"]["bias"], -LR * grads["a"]["bias"])


def test_masked_by_optax_is_the_mask_argument():
  params, grads = tree(), [tree(1), tree(2)]
  prefix = {"a": {"kernel": True, "bias": False}, "b": True}
  for mask in (rvsm_jax.kernels, prefix):
    ends = []
    for tx in (
      rvsm_jax.rvsm(LR, L1, mask=mask, **RVSM),
      optax.masked(rvsm_jax.rvsm(LR, L1, **RVSM), mask),
      # Nested, the inner mask sees what the outer has left.
      optax.masked(rvsm_jax.rvsm(LR, L1, mask=rvsm_jax.kernels, **RVSM), mask),
    ):
      got, state = run(optax.chain(optax.adam(LR), tx), params, grads)
      (ours,) = states_of(state)
      ends.append((got, ours))
    chex.assert_trees_all_equal(ends[0], ends[1])
    chex.assert_trees_all_equal(ends[0], ends[2])


def test_partition_of_a_regularised_and_a_plain_part():
  params, grads = tree(), [tree(1), tree(2)]
  tx = optax.partition(
    {
      "sparse": CHAINS["rvsm after adam"],
      "plain": optax.adam(LR),
      "frozen": optax.set_to_zero(),
    },
    {"a": {"kernel": "sparse", "bias": "plain"}, "b": {"kernel": "frozen"}},
  )
  got, _ = run(tx, params, grads)
  sparse, _ = run(CHAINS["rvsm after adam"], params, grads)
  plain, _ = run(optax.adam(LR), params, grads)
  chex.assert_trees_all_close(got["a"]["kernel"], sparse["a"]["kernel"], rtol=1e-6)
  chex.assert_trees_all_close(got["a"]["bias"], plain["a"]["bias"], rtol=1e-6)
  chex.assert_trees_all_equal(got["b"], params["b"])


def test_a_mask_that_is_a_callable_tree_is_a_tree():
  # A module of bools is callable, as every Equinox module with __call__ is.
  equinox = pytest.importorskip("equinox")
  linear = equinox.nn.Linear(3, 2, key=jax.random.key(0))
  mask = equinox.tree_at(lambda m: (m.weight, m.bias), linear, (True, False))
  assert callable(mask)
  tx = rvsm_jax.rvsm(LR, L1, mask=mask, **RVSM)
  u = tx.init(linear).u
  np.testing.assert_allclose(u.weight, L1.prox(linear.weight, 0.05))
  assert u.bias == optax.MaskedNode()


# dtypes of updates


@every_chain
def test_updates_have_the_dtype_of_the_params(name):
  tx, params = CHAINS[name], tree(0, jnp.float16)
  state = tx.init(params)
  updates, new_state = jax.jit(tx.update)(tree(1, jnp.float16), state, params)
  chex.assert_trees_all_equal_dtypes(updates, params)
  chex.assert_trees_all_equal_dtypes(new_state, state)
  chex.assert_trees_all_equal_dtypes(optax.apply_updates(params, updates), params)


@pytest.mark.parametrize(
  "tx",
  [
    rvsm_jax.rvsm(jnp.float32(LR), L1, lam=jnp.float32(0.05), beta=jnp.float32(1.0)),
    rvsm_jax.rvsm(LR, L1, normalize="leaf", **RVSM),
    rvsm_jax.proximal(jnp.float32(LR), L1, lam=jnp.float32(0.05)),
    rvsm_jax.proximal_adam(jnp.float32(LR), L1, lam=jnp.float32(0.05)),
  ],
)
@pytest.mark.parametrize("grad_dtype", [jnp.float32, jnp.bfloat16])
def test_strongly_typed_hyperparameters_and_mixed_gradients(tx, grad_dtype):
  params = tree(0, jnp.bfloat16)
  updates, state = tx.update(tree(1, grad_dtype), tx.init(params), params)
  chex.assert_trees_all_equal_dtypes(updates, params)
  for ours in states_of(state):
    chex.assert_trees_all_equal_dtypes(ours.u, params)


# optax.adam itself promotes an integer.
@pytest.mark.parametrize("name", [name for name in CHAINS if "adam" not in name])
def test_no_leak_and_no_implicit_promotion_of_dtype_or_rank(name):
  tx, params = CHAINS[name], tree(0, jnp.bfloat16)
  with (
    jax.numpy_dtype_promotion("strict"),
    jax.numpy_rank_promotion("raise"),
    jax.checking_leaks(),
  ):
    state = tx.init(params)
    jax.jit(tx.update)(tree(1, jnp.bfloat16), state, params)


# States in a tree


@every_chain
def test_counts_start_at_zero_and_step_by_one(name):
  tx, params = CHAINS[name], tree()
  kinds = (
    rvsm_jax.RVSMState,
    rvsm_jax.ProximalState,
    rvsm_jax.ProximalAdamState,
    rvsm_jax.PenaltyGradientState,
  )
  state = tx.init(params)
  for expected in range(3):
    (ours,) = states_of(state, kinds)
    assert (ours.count.dtype, int(ours.count)) == (jnp.int32, expected)
    _, state = tx.update(tree(1), state, params)


@every_chain
def test_flatten_and_unflatten_resume_bit_for_bit(name):
  # What a checkpoint does.
  tx, params = CHAINS[name], tree()
  grads = [tree(seed) for seed in range(4)]
  expected = run(tx, params, grads)
  middle, state = run(tx, params, grads[:2])
  leaves = [np.array(leaf) for leaf in jax.tree.leaves((middle, state))]
  middle, state = jax.tree.unflatten(jax.tree.structure((middle, state)), leaves)
  for g in grads[2:]:
    updates, state = jax.jit(tx.update)(g, state, middle)
    middle = optax.apply_updates(middle, updates)
  chex.assert_trees_all_equal((middle, state), expected)


def test_optax_finds_u_by_name_as_well():
  params = tree()
  state = CHAINS["rvsm after adam"].init(params)
  chex.assert_trees_all_equal(
    optax.tree.get(state, "u"), rvsm_jax.sparse_params(state, params)
  )
  with pytest.raises(KeyError):
    optax.tree.get(optax.chain(*[rvsm_jax.rvsm(LR, L1, **RVSM)] * 2).init(params), "u")


@pytest.mark.parametrize(
  "tx",
  [
    rvsm_jax.proximal(LR, L1, lam=0.1),
    rvsm_jax.add_penalty_gradient(L1, 0.1),
    rvsm_jax.rvsm(LR, L1, carry_u=False, **RVSM),
  ],
  ids=["proximal", "penalty gradient", "no u"],
)
@pytest.mark.parametrize("mask", [None, rvsm_jax.kernels], ids=["all", "kernels"])
def test_a_state_without_arrays_comes_from_abstract_params(tx, mask):
  state = tx.init({"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32)})
  assert state.count == 0


@every_chain
def test_init_under_jit_and_eval_shape_agrees(name):
  tx, params = CHAINS[name], tree()
  state = tx.init(params)
  chex.assert_trees_all_close(jax.jit(tx.init)(params), state, rtol=1e-6)
  chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, params), state)
