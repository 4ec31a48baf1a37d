"""A share of the units of a plan: groups that reach over many leaves."""

import itertools

import chex
from flax import nnx
from helpers import both_axis_types
import hypothesis
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from experiments.networks import cifar
from experiments.networks.transformer import Transformer
import rvsm_jax
from rvsm_jax import compaction


def residual(params, x):
  """Two dense layers that add to the same six units, with three of its own between."""
  h = jax.nn.relu(x @ params["stem"]["kernel"] + params["stem"]["bias"])
  inner = jax.nn.relu(h @ params["first"]["kernel"])
  return (h + inner @ params["second"]["kernel"]) @ params["out"]["kernel"]


def tree(seed=0, dtype=np.float32):
  rng = np.random.default_rng(seed)
  shapes = {"stem": (4, 6), "first": (6, 3), "second": (3, 6), "out": (6, 2)}
  params = {
    name: {"kernel": jnp.asarray(rng.normal(size=shape), dtype)}
    for name, shape in shapes.items()
  }
  params["stem"]["bias"] = jnp.asarray(rng.normal(size=6), dtype)
  return params


PLAN = compaction.plan(residual, tree(), jnp.ones((1, 4)))
GROUPS = {group.name: group for group in PLAN.groups}
OUTER, INNER = "stem/kernel", "first/kernel"


def parts(params):
  """Matrices with a row for each unit: of both layers, and of those between."""
  outer = [
    params["stem"]["kernel"].T,
    params["stem"]["bias"][:, None],
    params["second"]["kernel"].T,
    params["out"]["kernel"],
  ]
  return [
    np.concatenate([np.asarray(x, np.float64) for x in outer], axis=1),
    np.asarray(params["first"]["kernel"], np.float64).T,
  ]


def plan_of(model, x):
  """The plan for inference, and the params."""
  model.eval()
  graph, state = nnx.split(model)
  plan = compaction.plan(lambda state, x: nnx.merge(graph, state)(x), state, x)
  return plan, nnx.state(model, nnx.Param)


def test_units_are_those_of_all_layers_that_a_residual_connection_joins():
  assert {name: group.size for name, group in GROUPS.items()} == {OUTER: 6, INNER: 3}


def half(tree, step=1.0):
  return compaction.unit_cardinality(PLAN.groups, 0.5).prox(tree, step)


@jax.jit
def with_share(tree, share):
  return compaction.unit_cardinality(PLAN.groups, share).prox(tree, 1.0)


@hypothesis.given(st.integers(0, 2**31), st.integers(0, 64).map(lambda k: k / 64))
def test_the_largest_units_stay_as_they_are(seed, share):
  x = tree(seed)
  u = with_share(x, share)
  for before, after in zip(parts(x), parts(u), strict=True):
    size = len(before)
    # To the precision of the share, in float32.
    count = {int(np.ceil(share * size * (1 + e))) for e in (-1e-6, 1e-6)}
    gone = np.all(after == 0, axis=1)
    assert np.sum(gone) in count
    np.testing.assert_array_equal(after[~gone], before[~gone])
    norms = np.linalg.norm(before, axis=1)
    assert np.max(norms[gone], initial=0) <= np.min(norms[~gone], initial=np.inf)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_the_value_is_that_of_an_indicator(share):
  penalty, x = compaction.unit_cardinality(PLAN.groups, share), tree()
  u = penalty.prox(x, 1.0)
  chex.assert_trees_all_equal(u, with_share(x, share))
  assert penalty.value(u) == 0
  assert penalty.value(x) == (0 if share == 0 else np.inf)


@hypothesis.given(st.integers(0, 2**31))
def test_no_other_choice_of_units_is_nearer(seed):
  x = tree(seed)
  u = with_share(x, 0.5)
  for before, after in zip(parts(x), parts(u), strict=True):
    squares = np.sum(before**2, axis=1)
    nearest = min(
      sum(squares[list(gone)])
      for gone in itertools.combinations(range(len(squares)), (len(squares) + 1) // 2)
    )
    np.testing.assert_allclose(np.sum((before - after) ** 2), nearest, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_and_what_is_not_finite(dtype):
  x = tree(dtype=dtype)
  x["first"]["kernel"] = x["first"]["kernel"].at[0, 1].set(np.nan)
  x["stem"]["bias"] = x["stem"]["bias"].at[2].set(np.inf)
  all_ = compaction.unit_cardinality(PLAN.groups, 1.0)
  u = jax.jit(all_.prox)(x, 1.0)
  chex.assert_trees_all_equal_shapes_and_dtypes(u, x)
  alive = [np.any(part != 0, axis=1) for part in parts(u)]
  np.testing.assert_array_equal(alive[0], np.arange(6) == 2)
  np.testing.assert_array_equal(alive[1], np.arange(3) == 1)
  chex.assert_trees_all_equal(all_.prox(x, 0.0), x)
  assert all_.value(tree(dtype=dtype)).dtype == np.float32


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_tiny_and_huge_units(scale):
  got = half(jax.tree.map(lambda leaf: scale * leaf, tree()))
  chex.assert_trees_all_close(
    jax.tree.map(lambda leaf: leaf / scale, got), half(tree()), rtol=1e-6
  )


def test_of_equal_units_the_first_stay():
  u = half(jax.tree.map(jnp.ones_like, tree()))
  np.testing.assert_array_equal(u["stem"]["bias"], [1, 1, 1, 0, 0, 0])
  np.testing.assert_array_equal(u["first"]["kernel"][0], [1, 0, 0])


def test_what_has_no_unit_stays_and_a_part_of_the_groups_is_enough():
  x = {**tree(), "other": jnp.ones((2, 2))}
  u = compaction.unit_cardinality(PLAN.groups, 1.0).prox(x, 1.0)
  assert rvsm_jax.sparsity([layer for name, layer in u.items() if name != "other"]) == 1
  np.testing.assert_array_equal(u["other"], 1)
  u = compaction.unit_cardinality([GROUPS[INNER]], 1.0).prox(x, 1.0)
  assert rvsm_jax.sparsity([u["first"], u["second"]]) == 1
  assert rvsm_jax.sparsity([u["stem"], u["out"]]) == 0


def test_a_state_is_told_from_its_params():
  tx = rvsm_jax.rvsm_sgd(
    0.1, compaction.unit_cardinality(PLAN.groups, 0.5), lam=1.0, beta=1.0
  )
  doubled = optax.tree.map_params(tx, lambda leaf: 2 * leaf, tx.init(tree()))
  chex.assert_trees_all_equal(
    rvsm_jax.sparse_params(doubled, tree()),
    jax.tree.map(lambda leaf: 2 * leaf, half(tree())),
  )


def test_params_of_a_plan_of_variables():
  variables = {"params": tree(), "stats": {"count": jnp.ones(6)}}
  plan = compaction.plan(
    lambda v, x: residual(v["params"], x) + 0 * jnp.sum(v["stats"]["count"]),
    variables,
    jnp.ones((1, 4)),
  )
  penalty = compaction.unit_cardinality(plan.groups, 0.5)
  chex.assert_trees_all_equal(penalty.prox(tree(), 1.0), half(tree()))
  # A name that several layers have says nothing of which is meant.
  with pytest.raises(ValueError, match="no leaf has units"):
    half({"kernel": jnp.ones((6, 2))})


@pytest.mark.parametrize(
  ("make", "error", "match"),
  [
    (lambda: compaction.unit_cardinality([], 0.5), TypeError, "plan.groups"),
    (lambda: compaction.unit_cardinality(PLAN, 0.5), TypeError, "plan.groups"),
    (lambda: compaction.unit_cardinality(["stem"], 0.5), TypeError, "plan.groups"),
    (lambda: compaction.unit_cardinality(PLAN.groups, 1.5), ValueError, "sparsity"),
    (lambda: half({"w": jnp.ones((2, 2))}), ValueError, "no leaf has units"),
    (lambda: half(tree(), -1.0), ValueError, "step"),
    (lambda: half(tree(), jnp.ones(6)), ValueError, "scalar for unit_cardinality"),
    (
      lambda: half({"stem": {"bias": jnp.ones(5)}}),
      ValueError,
      r"'stem/bias' has shape \(5,\), but 6",
    ),
    (
      lambda: rvsm_jax.proximal_adam(
        0.1, compaction.unit_cardinality(PLAN.groups, 0.5), lam=1.0
      ),
      ValueError,
      "one array at a time",
    ),
  ],
)
def test_errors(make, error, match):
  with pytest.raises(error, match=match):
    make()


TRANSFORMATIONS = {
  "straight_through": lambda units: rvsm_jax.straight_through(
    optax.sgd(0.1), units, step=1.0
  ),
  "rvsm": lambda units: rvsm_jax.rvsm_sgd(0.1, units, lam=1.0, beta=1.0),
  "proximal": lambda units: rvsm_jax.proximal_sgd(0.1, units, lam=1.0),
  "admm": lambda units: optax.chain(optax.sgd(0.1), rvsm_jax.admm(0.1, units, rho=1.0)),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_training_prepares_what_compaction_removes(name):
  @optax.inject_hyperparams
  def ramped(sparsity):
    return TRANSFORMATIONS[name](compaction.unit_cardinality(PLAN.groups, sparsity))

  tx, x = ramped(rvsm_jax.sparsity_schedule(0.5, 2)), tree()

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    return optax.apply_updates(params, updates), state

  params, state = x, tx.init(x)
  for _ in range(4):
    params, state = step(params, state)
  sparse = rvsm_jax.sparse_params(state, params)
  plan = compaction.plan(residual, sparse, jnp.ones((1, 4)))
  assert [int(np.sum(group.kept)) for group in plan.groups] == [3, 1]
  inputs = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)), jnp.float32)
  np.testing.assert_allclose(
    residual(compaction.apply(plan, sparse), inputs),
    residual(sparse, inputs),
    rtol=1e-5,
    atol=1e-5,
  )


@both_axis_types
@pytest.mark.slow
def test_sharded_leaves_give_the_same(axis_type):
  mesh = jax.make_mesh((3, 2), ("x", "y"), (axis_type,) * 2, devices=jax.devices()[:6])
  specs = {"stem": P("y", "x"), "first": P("x"), "second": P(None, "y"), "out": P("y")}
  expected = half(tree())
  with jax.set_mesh(mesh):
    placed = {
      name: {
        "kernel": jax.device_put(layer["kernel"], NamedSharding(mesh, specs[name]))
      }
      for name, layer in tree().items()
    }
    placed["stem"]["bias"] = jax.device_put(
      tree()["stem"]["bias"], NamedSharding(mesh, P("x"))
    )
    got = jax.jit(half)(placed)
  chex.assert_trees_all_close(got, expected, rtol=1e-6)
  for name, spec in specs.items():
    leaf = got[name]["kernel"]
    assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)


@pytest.mark.slow
def test_channels_of_a_resnet():
  model = cifar.create("resnet18", width=1 / 8, seed=0)
  plan, params = plan_of(model, jnp.ones((1, 32, 32, 3)))
  # Not the positions of a kernel, which a product with patches has as units.
  assert min(group.size for group in plan.groups) == 8
  nnx.update(model, compaction.unit_cardinality(plan.groups, 1.0).prox(params, 1.0))
  after, params = plan_of(model, jnp.ones((1, 32, 32, 3)))
  # A layer needs one.
  assert [int(np.sum(group.kept)) for group in after.groups] == [1] * len(after.groups)
  assert rvsm_jax.sparsity(params["out"]["kernel"]) == 1


def test_heads_and_neurons_of_a_transformer():
  sizes = {"width": 16, "heads": 2, "hidden": 8, "blocks": 1}
  model = Transformer(8, 8, **sizes, rngs=nnx.Rngs(0))
  plan, params = plan_of(model, jnp.zeros((1, 8), int))
  groups = {group.name.split("/")[-2]: group for group in plan.groups}
  # Its third is that of the numbers of a value, which all heads have in common.
  assert set(groups) == {"query", "up", "value"}
  for name in ("query", "up"):
    nnx.update(
      model, compaction.unit_cardinality([groups[name]], 1.0).prox(params, 1.0)
    )
  after, _ = plan_of(model, jnp.zeros((1, 8), int))
  kept = {group.name.split("/")[-2]: int(np.sum(group.kept)) for group in after.groups}
  assert kept == {"query": 1, "up": 1, "value": 32}
  assert np.all(params["character"]["embedding"][...] != 0)
