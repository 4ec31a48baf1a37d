"""What every transformation keeps inside Optax, and its traps for a proximal step.

The traps are prevented, refused or documented.
"""

import functools
import inspect

from cases import (
  L1,
  LR,
  RVSM,
  TRANSFORMATIONS,
  every_transformation,
  with_invariant,
)
import chex
from helpers import find_state, find_states, gradients, in_part, is_masked, run, tree
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax

PARAMS = tree()
GRADS = gradients(PARAMS, 6)
ROWS = {case.name: case for case in TRANSFORMATIONS}


@functools.cache
def compiled(case):
  """The optimizer, one compiled step of it, and a list with an entry per trace.

  Every test of the case uses the same, because to compile is what takes time.
  """
  tx, traces = case.make(), []

  @jax.jit
  def step(params, state, grads):
    traces.append(None)
    extra = case.extra(params, grads)
    updates, state = tx.update(grads, state, params, unexpected="argument", **extra)
    return optax.apply_updates(params, updates), state

  return tx, step, traces


@functools.cache
def trained(case, number):
  """Params and state after the first `number` of `GRADS`."""
  tx, step, _ = compiled(case)
  params, state = PARAMS, tx.init(PARAMS)
  for g in GRADS[:number]:
    params, state = step(params, state, g)
  return params, state


def after(case, grads):
  """Params and state after some gradients."""
  tx, step, _ = compiled(case)
  params, state = PARAMS, tx.init(PARAMS)
  for g in grads:
    params, state = step(params, state, g)
  return params, state


def assert_close(got, expected, tolerance=1e-5):
  chex.assert_trees_all_close(got, expected, rtol=tolerance, atol=tolerance)


# Extra arguments, compilation, buffers


@with_invariant(costly=True)
def test_unexpected_arguments_and_no_second_compilation(case):
  tx, step, traces = compiled(case)
  assert isinstance(tx, optax.GradientTransformationExtraArgs)
  params, state = trained(case, 1)
  number = len(traces)
  step(params, state, GRADS[1])
  assert len(traces) == number


@with_invariant(costly=True)
def test_compiled_it_is_the_same(case):
  eager = run(case.make(), PARAMS, GRADS[:2], jit=False, extra=case.extra)
  assert_close(trained(case, 2), eager)


@with_invariant("acts", costly=True)
def test_it_does_something(case):
  """Else what follows would hold of the identity as well."""
  params, _ = trained(case, 2)
  moved = jax.tree.map(lambda a, b: jnp.any(a != b), params, PARAMS)
  assert all(jax.tree.leaves(moved))
  if case.factory.__module__ == "cases" or case.place in ("whole", "around"):
    return
  plain, _ = run(case.base(LR), PARAMS, GRADS[:2])
  ours = [leaf for leaf in jax.tree.leaves(params)]
  assert any(jnp.any(a != b) for a, b in zip(ours, jax.tree.leaves(plain), strict=True))


@with_invariant(costly=True)
def test_params_and_state_can_both_be_donated_from_the_first_step(case):
  """A first u that is the params' own buffer makes the runtime refuse."""
  tx, step, _ = compiled(case)
  params = jax.tree.map(jnp.copy, PARAMS)
  state = tx.init(params)
  leaves = jax.tree.leaves((params, state))
  assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)
  step = jax.jit(step.__wrapped__, donate_argnums=(0, 1))
  for g in GRADS[:2]:
    params, state = step(params, state, g)
  assert_close((params, state), trained(case, 2), 1e-6)


@pytest.mark.parametrize(
  "case", [c for c in TRANSFORMATIONS if c.carries == "u"], ids=str
)
def test_u_is_a_copy_also_if_the_map_returns_what_it_is_given(case):
  identity = rvsm_jax.Penalty(lambda x: jnp.zeros(()), lambda x, step: x)
  state = case.make(penalty=identity).init(PARAMS)
  leaves = jax.tree.leaves((PARAMS, state))
  assert len({leaf.unsafe_buffer_pointer() for leaf in leaves}) == len(leaves)


@with_invariant(costly=True)
def test_under_scan_and_cond(case):
  tx, _, _ = compiled(case)
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *GRADS[:4])

  def step(carry, inputs):
    index, g = inputs

    def act(params, state):
      updates, state = tx.update(g, state, params, **case.extra(params, g))
      return optax.apply_updates(params, updates), state

    return jax.lax.cond(index % 2 == 0, act, lambda *carry: carry, *carry), None

  got, _ = jax.jit(jax.lax.scan, static_argnums=0)(
    step, (PARAMS, tx.init(PARAMS)), (jnp.arange(4), stacked)
  )
  assert_close(got, after(case, [GRADS[0], GRADS[2]]))


@with_invariant("vmap", costly=True)
def test_an_ensemble_by_vmap(case):
  tx, step, _ = compiled(case)
  members = [PARAMS, tree(seed=7)]

  def train(params, grads):
    state = tx.init(params)
    for _ in range(2):
      params, state = step(params, state, grads)
    return params, state

  def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)

  got = jax.jit(jax.vmap(train))(stack(members), stack(GRADS[:2]))
  expected = [train(p, g) for p, g in zip(members, GRADS[:2], strict=True)]
  assert_close(got, stack(expected))


# MultiSteps


@every_transformation
def test_the_third_argument_is_params(case):
  # MultiSteps passes it by keyword.
  for tx in (case.bare(), case.make()):
    names = list(inspect.signature(tx.update).parameters)
    assert names[:3] == ["updates", "state", "params"]
  tx, extra = case.bare(), case.extra(PARAMS, GRADS[0])
  jax.eval_shape(lambda: tx.update(GRADS[0], tx.init(PARAMS), params=PARAMS, **extra))


@with_invariant("MultiSteps", costly=True)
def test_multisteps_is_one_big_batch_and_one_shrinkage(case):
  tx, _, _ = compiled(case)
  means = [jax.tree.map(lambda a, b: (a + b) / 2, *GRADS[i : i + 2]) for i in (0, 2)]
  wrapped = optax.MultiSteps(tx, 2)
  update = jax.jit(wrapped.update)
  params, state = PARAMS, wrapped.init(PARAMS)
  for index, g in enumerate(GRADS[:4]):
    updates, state = update(g, state, params)
    params = optax.apply_updates(params, updates)
    if index == 0:
      # Between the big steps nothing moves: neither params, nor u, nor the count.
      chex.assert_trees_all_equal(params, PARAMS)
      chex.assert_trees_all_equal(state.inner_opt_state, tx.init(PARAMS))
  assert_close((params, state.inner_opt_state), after(case, means), 1e-4)


@pytest.mark.parametrize("skipped", [jnp.nan, jnp.inf])
def test_multisteps_skips_what_is_not_finite(skipped):
  case = ROWS["rvsm"]
  bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, skipped), GRADS[0])
  wrapped = optax.MultiSteps(
    case.make(), 2, should_skip_update_fn=optax.skip_not_finite
  )
  got, state = run(wrapped, PARAMS, [GRADS[0], bad, GRADS[0]])
  assert_close((got, state.inner_opt_state), trained(case, 1))


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


def test_what_cannot_be_prevented_is_documented():
  first, second = jnp.array([0.0, 1.0]), jnp.array([1.0, 0.0])
  assert rvsm_jax.sparsity((first + second) / 2) == 0
  assert "average" in rvsm_jax.proximal.__doc__
  assert "Adam" in rvsm_jax.proximal.__doc__


# apply_if_finite and divergence


@with_invariant(costly=True)
def test_apply_if_finite_keeps_params_and_state(case):
  tx, _, _ = compiled(case)
  wrapped = optax.apply_if_finite(tx, 5)
  bad = [
    GRADS[0] | {"dense": {**GRADS[0]["dense"], "bias": jnp.full(5, value)}}
    for value in (jnp.nan, jnp.inf)
  ]
  grads = [GRADS[0], *bad, GRADS[1]]
  got, state = run(wrapped, PARAMS, grads, extra=case.extra)
  assert state.total_notfinite == 2
  assert_close((got, state.inner_state), trained(case, 2))


@every_transformation
def test_divergence_stays_visible(case):
  """Where the gradient is NaN, the params are; and it is not spread further."""
  bad = GRADS[0] | {"scale": jnp.float32(jnp.nan)}
  params, _ = after(case, [bad])
  assert jnp.isnan(params["scale"])


# inject_hyperparams


def injected(case, **overrides):
  """The case with its hyperparameters in the state."""
  given = case.given(**overrides)
  static = {*case.static, "mask"} & inspect.signature(case.factory).parameters.keys()
  factory = optax.inject_hyperparams(case.factory, static_args=tuple(static))
  return case.beside(factory(**given))


def without_hyperparams(state):
  """The state with that of `inject_hyperparams` replaced by the one within."""

  def is_injected(node):
    return hasattr(node, "hyperparams")

  return jax.tree.map(
    lambda node: node.inner_state if is_injected(node) else node,
    state,
    is_leaf=is_injected,
  )


@pytest.mark.parametrize("dtype", in_part([jnp.float32, jnp.bfloat16], jnp.float32))
@with_invariant("inject", costly=True)
def test_injected_is_equal(case, dtype):
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
  grads = gradients(params, 2)
  got, state = run(injected(case), params, grads, extra=case.extra)
  expected = (
    trained(case, 2)
    if dtype == jnp.float32
    else run(case.make(), params, grads, extra=case.extra)
  )
  got = got, without_hyperparams(state)
  assert_close(got, expected, 1e-6 if dtype == jnp.float32 else 2**-6)
  chex.assert_trees_all_equal_dtypes(got, expected)


@with_invariant("inject", "integers", costly=True)
def test_integer_hyperparameters_become_tracers(case):
  names = {*case.numbers, *case.shares, "momentum"} & case.arguments.keys()
  integers = {k: int(case.arguments[k] > 0.2) for k in names - {"b1", "b2"}}
  integers |= {k: 1 for k in case.positive}
  floats = {k: float(v) for k, v in integers.items()}
  grads = GRADS[:1]
  got, state = run(injected(case, **integers), PARAMS, grads, extra=case.extra)
  tx = case.beside(case.bare(**floats), LR)
  expected = run(tx, PARAMS, grads, extra=case.extra)
  assert_close((got, without_hyperparams(state)), expected, 1e-6)


def test_a_decay_that_rounds_to_one_is_refused():
  tx = optax.inject_hyperparams(rvsm_jax.proximal_adam)(LR, L1, lam=0.5)
  with pytest.raises(ValueError, match="b2"):
    tx.init(tree(jnp.bfloat16))
  tx.init(tree())


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
  case = ROWS["rvsm without u"]
  native, _ = run(case.make(lam=lam), PARAMS, GRADS[:4])
  got, _ = run(injected(case, lam=lam), PARAMS, GRADS[:4])
  assert_close(got, native, 1e-6)


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
@with_invariant("inject", "mask")
def test_an_injected_callable_mask_is_refused(case, mask):
  # inject_hyperparams takes the mask for a schedule, and its value is a bare False:
  # every leaf would silently be left out.
  factory = optax.inject_hyperparams(case.factory, static_args=case.static)
  tx = factory(**case.given(mask=mask))
  for jit in (False, True):

    def init_and_update(jit=jit):
      # Without u the mask is not needed before the update.
      state = (jax.jit(tx.init) if jit else tx.init)(PARAMS)
      tx.update(GRADS[0], state, PARAMS)

    with pytest.raises(ValueError, match=r"static_args") as raised:
      init_and_update()
    assert "mask" in str(raised.value)


@pytest.mark.filterwarnings("ignore:Implicit conversion of an array to a dtype")
def test_u_dtype_under_injection():
  kwargs = RVSM | {"u_dtype": jnp.bfloat16}
  # A scalar type is callable, hence a schedule, hence an array.
  with pytest.raises((TypeError, ValueError), match="dtype"):
    optax.inject_hyperparams(rvsm_jax.rvsm)(**kwargs).init(PARAMS)
  tx = optax.inject_hyperparams(rvsm_jax.rvsm, static_args=("u_dtype",))
  for leaf in jax.tree.leaves(tx(**kwargs).init(PARAMS).inner_state.u):
    assert leaf.dtype == jnp.bfloat16


# Masks


@functools.cache
def masked(case):
  """Params and state with a mask, and the params of the optimizer beside it alone."""
  ours = run(case.make(mask=rvsm_jax.kernels), PARAMS, GRADS[:2], extra=case.extra)
  plain, _ = run(case.base(LR), PARAMS, GRADS[:2])
  return *ours, plain


@with_invariant("mask", costly=True)
def test_leaves_that_a_mask_leaves_out_are_the_base_bit_for_bit(case):
  """Also not of a gradient ascent, which is what optax.masked(sgd) alone would do."""
  params, state, plain = masked(case)
  for layer in ("conv", "dense"):
    np.testing.assert_array_equal(params[layer]["bias"], plain[layer]["bias"])
    assert jnp.any(params[layer]["kernel"] != plain[layer]["kernel"])
  np.testing.assert_array_equal(params["scale"], plain["scale"])
  if case.carries:
    own = optax.tree.get(state, case.carries)
    selected = rvsm_jax.kernels(PARAMS)
    found = jax.tree.map(lambda x: not is_masked(x), own, is_leaf=is_masked)
    assert found == selected


@with_invariant("mask")
def test_an_update_keeps_the_structure_of_a_masked_state(case):
  """It also tells of a state that holds more, at first, than an update leaves there."""
  tx = case.make(mask=rvsm_jax.kernels)

  def update(params):
    state = tx.init(params)
    extra = case.extra(params, GRADS[0])
    return state, tx.update(GRADS[0], state, params, **extra)[1]

  before, after = jax.eval_shape(update, PARAMS)
  chex.assert_trees_all_equal_shapes_and_dtypes(before, after)


@with_invariant("mask", "inject", costly=True)
def test_a_mask_is_cured_by_static_args(case):
  got, state = run(
    injected(case, mask=rvsm_jax.kernels), PARAMS, GRADS[:2], extra=case.extra
  )
  params, expected, _ = masked(case)
  assert_close((got, without_hyperparams(state)), (params, expected), 1e-6)


@with_invariant("mask", "masked", costly=True)
def test_masked_by_optax_is_the_mask_argument(case):
  if case.place in ("whole", "around"):
    # What optax.masked leaves out gets the gradient as its update.
    pytest.skip("an optimizer of its own")
  params, _, _ = masked(case)
  # Nested, the inner mask sees what the outer has left.
  for tx in (case.bare(), case.bare(mask=rvsm_jax.kernels)):
    got, _ = run(case.beside(optax.masked(tx, rvsm_jax.kernels)), PARAMS, GRADS[:2])
    assert_close(got, params, 1e-6)


def test_partition_of_a_regularised_and_a_plain_part():
  case = ROWS["rvsm"]
  layers = {
    "conv": {"kernel": "sparse", "bias": "plain"},
    "dense": "frozen",
    "scale": "plain",
  }
  tx = optax.partition(
    {"sparse": case.make(), "plain": optax.adam(LR), "frozen": optax.set_to_zero()},
    lambda params: jax.tree.map(
      lambda label, part: jax.tree.map(lambda _: label, part), layers, params
    ),
  )
  got, _ = run(tx, PARAMS, GRADS[:2])
  sparse, _ = trained(case, 2)
  plain, _ = run(optax.adam(LR), PARAMS, GRADS[:2])
  assert_close(got["conv"]["kernel"], sparse["conv"]["kernel"], 1e-6)
  assert_close(got["conv"]["bias"], plain["conv"]["bias"], 1e-6)
  chex.assert_trees_all_equal(got["dense"], PARAMS["dense"])


def test_a_mask_that_is_a_callable_tree_is_a_tree():
  # A module of bools is callable, as every Equinox module with __call__ is.
  equinox = pytest.importorskip("equinox")
  linear = equinox.nn.Linear(3, 2, key=jax.random.key(0))
  mask = equinox.tree_at(lambda m: (m.weight, m.bias), linear, (True, False))
  assert callable(mask)
  u = rvsm_jax.rvsm(mask=mask, **RVSM).init(linear).u
  np.testing.assert_allclose(u.weight, L1.prox(linear.weight, 0.05))
  assert u.bias == optax.MaskedNode()


# None, and nothing


@with_invariant("empty")
def test_empty_trees(case):
  for kwargs in ({}, {"mask": rvsm_jax.kernels}):
    tx = case.make(**kwargs)
    for params in ({}, (), {"a": {}, "b": None}):
      extra = case.extra(params, params)
      updates, _ = tx.update(params, tx.init(params), params, **extra)
      assert updates == params


@with_invariant("None", costly=True)
def test_none_leaves_pass_through(case):
  params = {"w": jnp.ones((2, 2)), "frozen": None}
  for kwargs in ({}, {"mask": rvsm_jax.kernels}):
    tx = case.make(**kwargs)
    extra = case.extra(params, params)
    updates, _ = jax.jit(
      lambda p, tx=tx, extra=extra: tx.update(p, tx.init(p), p, **extra)
    )(params)
    assert updates["frozen"] is None
    assert jnp.any(updates["w"] != 0)


@with_invariant("None", costly=True)
def test_a_leaf_without_gradient_has_no_update(case):
  """As eqx.filter_grad of a part of a module gives it; the rest is as if alone."""
  params = {"w": jnp.array([[1.0, -0.1]]), "frozen": jnp.array([[2.0, 0.01]])}
  grads = {"w": jnp.ones((1, 2)), "frozen": None}
  tx = case.bare()
  state = tx.init(params)
  updates, new_state = tx.update(grads, state, params, **case.extra(params, grads))
  assert updates["frozen"] is None
  assert jax.tree.structure(new_state) == jax.tree.structure(state)
  if case.has("zero learning rate") and case.name != "target sparsity":
    only, g = {"w": params["w"]}, {"w": grads["w"]}
    alone, _ = tx.update(g, tx.init(only), only, **case.extra(only, g))
    np.testing.assert_array_equal(updates["w"], alone["w"])


# dtypes


@pytest.mark.parametrize("dtype", in_part([jnp.float16, jnp.bfloat16], jnp.bfloat16))
@with_invariant(costly=True)
def test_half_precision_keeps_dtypes_and_follows_single_precision(case, dtype):
  params = jax.tree.map(lambda leaf: leaf.astype(dtype), PARAMS)
  grads = [jax.tree.map(lambda leaf: leaf.astype(dtype), g) for g in GRADS[:2]]
  tx, _, _ = compiled(case)
  state = tx.init(params)
  got, new_state = run(tx, params, grads, extra=case.extra)
  chex.assert_trees_all_equal_dtypes(got, params)
  chex.assert_trees_all_equal_dtypes(new_state, state)
  wide = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), got)
  # A few roundings per step, of numbers of size 1.
  assert_close(wide, trained(case, 2)[0], 20 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize("grad_dtype", [jnp.float32, jnp.bfloat16])
@with_invariant("mixed")
def test_strongly_typed_hyperparameters_and_mixed_gradients(case, grad_dtype):
  params = jax.eval_shape(lambda: tree(jnp.bfloat16))
  grads = jax.eval_shape(lambda: tree(grad_dtype))
  strong = {k: jnp.float32(case.arguments[k]) for k in case.numbers}
  tx = case.bare(**strong)
  state = jax.eval_shape(tx.init, params)
  updates, new_state = jax.eval_shape(
    lambda g, s, p: tx.update(g, s, p, **case.extra(p, g)), grads, state, params
  )
  if case.place != "first":
    chex.assert_trees_all_equal_dtypes(updates, params)
  chex.assert_trees_all_equal_dtypes(new_state, state)


@with_invariant("strict", costly=True)
def test_no_leak_and_no_implicit_promotion_of_dtype_or_rank(case):
  params = tree(jnp.bfloat16)
  tx = case.bare()
  if case.place == "around":
    tx = case.bare(optimizer=optax.sgd(LR))
  with (
    jax.numpy_dtype_promotion("strict"),
    jax.numpy_rank_promotion("raise"),
    jax.checking_leaks(),
  ):
    state = tx.init(params)
    jax.jit(lambda g, s, p: tx.update(g, s, p, **case.extra(p, g))).lower(
      params, state, params
    )


# States in a tree


@with_invariant("count")
def test_counts_start_at_zero_step_by_one_and_saturate(case):
  tx, step, _ = compiled(case)
  state = tx.init(PARAMS)
  for expected in range(2):
    for count in counts(state):
      assert (count.dtype, count.shape, int(count)) == (jnp.int32, (), expected)
    _, state = step(PARAMS, state, GRADS[0])
  # As optax.safe_increment: it does not wrap.
  last = jnp.asarray(jnp.iinfo(jnp.int32).max, jnp.int32)
  state = jax.tree.map_with_path(lambda path, x: last if is_count(path) else x, state)
  _, state = step(PARAMS, state, GRADS[0])
  assert all(count == last for count in counts(state))


def is_count(path):
  return getattr(path[-1], "name", "") == "count"


def counts(state):
  found = [leaf for path, leaf in jax.tree.leaves_with_path(state) if is_count(path)]
  assert found
  return found


@every_transformation
def test_flatten_and_unflatten_resume_bit_for_bit(case):
  # What a checkpoint does.
  _, step, _ = compiled(case)
  middle = trained(case, 2)
  leaves = [np.array(leaf) for leaf in jax.tree.leaves(middle)]
  params, state = jax.tree.unflatten(jax.tree.structure(middle), leaves)
  for g in GRADS[2:4]:
    params, state = step(params, state, g)
  chex.assert_trees_all_equal((params, state), trained(case, 4))


@every_transformation
def test_init_under_jit_and_eval_shape_agrees(case):
  tx, _, _ = compiled(case)
  state = tx.init(PARAMS)
  chex.assert_trees_all_close(jax.jit(tx.init)(PARAMS), state, rtol=1e-6)
  chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(tx.init, PARAMS), state)
  if not case.carries and case.place in ("last", "first") and case.has("count"):
    # A state without arrays comes from abstract params.
    abstract = {"kernel": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    assert case.bare(mask=rvsm_jax.kernels).init(abstract).count == 0


@every_transformation
def test_the_sparse_network_is_what_the_state_carries(case):
  params, state = trained(case, 2)
  if case.carries is None:
    return
  own = optax.tree.get(state, case.carries)
  sparse = rvsm_jax.sparse_params(state, params)
  chex.assert_trees_all_equal_shapes_and_dtypes(sparse, params)
  if case.carries == "u":
    chex.assert_trees_all_equal(own, sparse)


@with_invariant("zero learning rate")
def test_a_learning_rate_of_zero_leaves_the_params(case):
  tx = case.make(0.0)
  updates, _ = tx.update(
    GRADS[0], tx.init(PARAMS), PARAMS, **case.extra(PARAMS, GRADS[0])
  )
  chex.assert_trees_all_equal(optax.apply_updates(PARAMS, updates), PARAMS)


def test_optax_finds_u_by_name_as_well():
  case = ROWS["rvsm"]
  state = case.make().init(PARAMS)
  chex.assert_trees_all_equal(
    optax.tree.get(state, "u"), rvsm_jax.sparse_params(state, PARAMS)
  )
  with pytest.raises(KeyError):
    optax.tree.get(optax.chain(case.bare(), case.bare()).init(PARAMS), "u")
  assert len(find_states(state, rvsm_jax.RVSMState)) == 1
  assert find_state(state, rvsm_jax.RVSMState).count == 0
