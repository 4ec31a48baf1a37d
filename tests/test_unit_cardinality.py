"""The penalty of the units of a plan: groups that reach over many leaves."""

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
UNITS = compaction.unit_l0(PLAN.groups)
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


@hypothesis.given(
  st.integers(0, 2**31), st.floats(0, 20), st.floats(0, 3), st.floats(0, 3)
)
def test_a_unit_goes_as_a_whole_up_to_its_threshold(seed, step, outer, inner):
  weights = {OUTER: outer, INNER: inner}
  penalty = compaction.unit_l0(PLAN.groups, [weights[g.name] for g in PLAN.groups])
  x = tree(seed)
  u = penalty.prox(x, step)
  expected = 0.0
  for before, after, weight in zip(parts(x), parts(u), (outer, inner), strict=True):
    squares = np.sum(before**2, axis=1)
    clear = np.abs(squares - 2 * step * weight) > 1e-4 * squares
    gone = squares <= 2 * step * weight
    np.testing.assert_array_equal(np.all(after == 0, axis=1)[clear], gone[clear])
    stays = np.any(after != 0, axis=1)
    np.testing.assert_array_equal(after[stays], before[stays])
    expected += weight * np.sum(stays)
  np.testing.assert_allclose(penalty.value(u), expected, rtol=1e-6, atol=1e-6)


@hypothesis.given(st.integers(0, 2**31), st.floats(0.1, 10))
def test_no_choice_of_units_has_a_lower_objective(seed, step):
  x = tree(seed)
  u = UNITS.prox(x, step)
  distance = sum(np.sum((a - b) ** 2) for a, b in zip(parts(x), parts(u), strict=True))
  # Each unit for itself: gone, or as it is.
  best = sum(np.sum(np.minimum(step, np.sum(p**2, axis=1) / 2)) for p in parts(x))
  objective = step * float(UNITS.value(u)) + distance / 2
  np.testing.assert_allclose(objective, best, rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_and_what_is_not_finite(dtype):
  x = tree(dtype=dtype)
  x["first"]["kernel"] = x["first"]["kernel"].at[0, 1].set(np.nan)
  x["stem"]["bias"] = x["stem"]["bias"].at[2].set(np.inf)
  u = jax.jit(UNITS.prox)(x, 1e4)
  chex.assert_trees_all_equal_shapes_and_dtypes(u, x)
  alive = [np.any(part != 0, axis=1) for part in parts(u)]
  np.testing.assert_array_equal(alive[0], np.arange(6) == 2)
  np.testing.assert_array_equal(alive[1], np.arange(3) == 1)
  chex.assert_trees_all_equal(UNITS.prox(x, 0.0), x)
  assert UNITS.value(tree(dtype=dtype)).dtype == np.float32


@pytest.mark.parametrize("scale", [1e-18, 1e18])
def test_tiny_and_huge_units(scale):
  x = jax.tree.map(lambda leaf: scale * jnp.sign(leaf), tree())
  # Of the units between, whose six weights lead into them.
  below, above = (
    UNITS.prox(x, 3 * (factor * scale) ** 2)["first"]["kernel"]
    for factor in (0.99, 1.01)
  )
  np.testing.assert_array_equal(below, x["first"]["kernel"])
  np.testing.assert_array_equal(above, 0)


def test_what_has_no_unit_stays_and_a_part_of_the_groups_is_enough():
  x = {**tree(), "other": jnp.ones((2, 2))}
  u = UNITS.prox(x, 1e4)
  assert rvsm_jax.sparsity(u["stem"]) == rvsm_jax.sparsity(u["out"]) == 1
  np.testing.assert_array_equal(u["other"], 1)
  u = compaction.unit_l0([GROUPS[INNER]]).prox(x, 1e4)
  assert rvsm_jax.sparsity([u["first"], u["second"]]) == 1
  assert rvsm_jax.sparsity([u["stem"], u["out"]]) == 0


def test_params_of_a_plan_of_variables():
  variables = {"params": tree(), "stats": {"count": jnp.ones(6)}}
  plan = compaction.plan(
    lambda v, x: residual(v["params"], x) + 0 * jnp.sum(v["stats"]["count"]),
    variables,
    jnp.ones((1, 4)),
  )
  penalty = compaction.unit_l0(plan.groups)
  chex.assert_trees_all_equal(penalty.prox(tree(), 3.0), UNITS.prox(tree(), 3.0))


@pytest.mark.parametrize(
  ("make", "error", "match"),
  [
    (lambda: compaction.unit_l0([]), TypeError, "plan.groups"),
    (lambda: compaction.unit_l0(PLAN), TypeError, None),
    (lambda: compaction.unit_l0(["stem"]), TypeError, "plan.groups"),
    (lambda: compaction.unit_l0(PLAN.groups, [1.0]), ValueError, "each of the 2"),
    (lambda: compaction.unit_l0(PLAN.groups, [1.0, -1.0]), ValueError, "weights"),
    (
      lambda: compaction.unit_l0(PLAN.groups, [np.ones(2), 1.0]),
      ValueError,
      r"shape \(6,\), got shape \(2,\)",
    ),
    (lambda: UNITS.prox({"w": jnp.ones((2, 2))}, 1.0), ValueError, "no leaf has units"),
    (lambda: UNITS.prox(tree(), -1.0), ValueError, "step"),
    (lambda: UNITS.prox(tree(), jnp.ones(6)), ValueError, "scalar for unit_l0"),
    (
      lambda: UNITS.prox({"stem": {"bias": jnp.ones(5)}}, 1.0),
      ValueError,
      r"'stem/bias' has shape \(5,\), but 6",
    ),
    (lambda: rvsm_jax.proximal_adam(0.1, UNITS, lam=1.0), ValueError, "one array"),
  ],
)
def test_errors(make, error, match):
  with pytest.raises(error, match=match):
    make()


TRANSFORMATIONS = {
  "straight_through": lambda lam: rvsm_jax.straight_through(
    optax.sgd(0.1), UNITS, step=lam
  ),
  "rvsm": lambda lam: rvsm_jax.rvsm_sgd(0.1, UNITS, lam=lam, beta=1.0),
  "proximal": lambda lam: rvsm_jax.proximal_sgd(0.1, UNITS, lam=10 * lam),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_training_prepares_what_compaction_removes(name):
  tx, x = TRANSFORMATIONS[name](4.0), tree()

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    return optax.apply_updates(params, updates), state

  params, state = step(x, tx.init(x))
  sparse = rvsm_jax.sparse_params(state, params)
  chex.assert_trees_all_equal(sparse, UNITS.prox(x, 4.0))
  plan = compaction.plan(residual, sparse, jnp.ones((1, 4)))
  alive = [int(np.sum(np.any(part != 0, axis=1))) for part in parts(sparse)]
  assert 0 < alive[0] < 6
  assert [int(np.sum(group.kept)) for group in plan.groups] == [
    max(1, n) for n in alive
  ]
  inputs = jnp.asarray(np.random.default_rng(1).normal(size=(5, 4)), jnp.float32)
  np.testing.assert_allclose(
    residual(compaction.apply(plan, sparse), inputs),
    residual(sparse, inputs),
    rtol=1e-5,
    atol=1e-5,
  )


def test_a_share_of_zeros():
  tx = rvsm_jax.target_sparsity(
    lambda lam: rvsm_jax.straight_through(optax.sgd(0.1), UNITS, step=lam), 0.5
  )

  def step(carry, _):
    params, state = carry
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    return (optax.apply_updates(params, updates), state), None

  start = (tree(), tx.init(tree()))
  (params, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, length=500))(start)
  assert 0.3 < rvsm_jax.sparsity(params) < 0.7


@both_axis_types
@pytest.mark.slow
def test_sharded_leaves_give_the_same(axis_type):
  mesh = jax.make_mesh((3, 2), ("x", "y"), (axis_type,) * 2, devices=jax.devices()[:6])
  specs = {"stem": P("y", "x"), "first": P("x"), "second": P(None, "y"), "out": P("y")}
  expected = UNITS.prox(tree(), 3.0)
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
    got = jax.jit(UNITS.prox)(placed, 3.0)
  chex.assert_trees_all_close(got, expected, rtol=1e-6)
  for name, spec in specs.items():
    leaf = got[name]["kernel"]
    assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)


@pytest.mark.slow
def test_channels_of_a_resnet():
  model = cifar.create("resnet18", width=1 / 8, seed=0)
  plan, params = plan_of(model, jnp.ones((1, 32, 32, 3)))
  nnx.update(model, compaction.unit_l0(plan.groups).prox(params, 1e6))
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
    nnx.update(model, compaction.unit_l0([groups[name]]).prox(params, 1e6))
  after, _ = plan_of(model, jnp.zeros((1, 8), int))
  kept = {group.name.split("/")[-2]: int(np.sum(group.kept)) for group in after.groups}
  assert kept == {"query": 1, "up": 1, "value": 32}
  assert np.all(params["character"]["embedding"][...] != 0)
