"""N:M sparsity: the projection, its use in transformations, and the packed form."""

import functools
import itertools

from helpers import in_part
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rvsm_jax
from rvsm_jax import export

DTYPES = ["bfloat16", "float16", "float32", "float64"]


def nearest(block, n):
  """The largest n by hand: one by one, of equal ones the first."""
  kept = np.zeros_like(block)
  for _ in range(n):
    free = np.where(kept != 0, -1, np.abs(block))
    at = int(np.argmax(free))
    kept[at] = block[at]
  return kept


@functools.cache
def projection(n, m, axis=-2):
  return jax.jit(lambda x: rvsm_jax.nm_sparsity(n, m, axis).prox(x, 1.0))


@given(
  st.sampled_from([(1, 2), (2, 4), (3, 4), (4, 4), (1, 5)]),
  st.data(),
)
def test_the_largest_of_each_block_and_of_equal_ones_the_first(nm, data):
  n, m = nm
  few = st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, 1e-42])
  x = data.draw(hnp.arrays(np.float32, (2 * m, 3), elements=few))
  got = np.asarray(projection(n, m)(x))
  for block, column in itertools.product(range(2), range(3)):
    part = slice(block * m, (block + 1) * m)
    np.testing.assert_array_equal(got[part, column], nearest(x[part, column], n))
  assert rvsm_jax.nm_sparsity(n, m).value(got) == 0


@pytest.mark.parametrize("axis", in_part([0, 1, 2, -1, -2, -3], 0, -2))
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_axis_and_dtype(axis, dtype):
  with jax.enable_x64(dtype == "float64"):
    x = np.random.default_rng(0).normal(size=(4, 8, 12)).astype(jnp.dtype(dtype))
    penalty = rvsm_jax.nm_sparsity(2, 4, axis)
    got = projection(2, 4, axis)(x)
    assert got.dtype == x.dtype
    assert penalty.value(x) == np.inf
    assert penalty.value(got) == 0
  moved, kept = np.moveaxis(x, axis, -1), np.moveaxis(np.asarray(got), axis, -1)
  expected = [nearest(block, 2) for block in moved.reshape(-1, 4)]
  np.testing.assert_array_equal(kept.reshape(-1, 4), expected)


def test_numbers_that_are_none_pass():
  x = jnp.array([jnp.nan, 1.0, -jnp.inf, 2.0, 1.0, 2.0, 3.0, 4.0])
  got = rvsm_jax.nm_sparsity(2, 4, axis=0).prox(x, 1.0)
  np.testing.assert_array_equal(got, [np.nan, 0, -np.inf, 0, 0, 0, 3, 4])
  np.testing.assert_array_equal(rvsm_jax.nm_sparsity(1, 4, 0).prox(x, 0.0), x)


def test_gradients_reach_what_is_kept():
  x = jnp.array([3.0, 1.0, 2.0, 0.0])
  penalty = rvsm_jax.nm_sparsity(2, 4, axis=0)
  got = jax.grad(lambda x: jnp.sum(penalty.prox(x, 1.0) * jnp.arange(1.0, 5)))(x)
  np.testing.assert_array_equal(got, [1, 0, 3, 0])


@pytest.mark.parametrize("spec", [("d", None), (None, "d")])
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded(spec, kind):
  kinds = (jax.sharding.AxisType[kind],)
  mesh = jax.make_mesh((4,), ("d",), axis_types=kinds, devices=jax.devices()[:4])
  x = np.random.default_rng(1).normal(size=(16, 8)).astype(np.float32)
  place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
  with jax.set_mesh(mesh):
    got = projection(2, 4)(jax.device_put(x, place))
  np.testing.assert_array_equal(got, projection(2, 4)(x))


LR = 0.2


@pytest.mark.parametrize(
  "tx",
  [
    rvsm_jax.rvsm_sgd(LR, rvsm_jax.nm_sparsity(2, 4), lam=1.0, beta=0.1),
    rvsm_jax.proximal_sgd(LR, rvsm_jax.nm_sparsity(2, 4), lam=1.0),
    rvsm_jax.straight_through(optax.sgd(LR), rvsm_jax.nm_sparsity(2, 4), step=1.0),
    optax.chain(optax.sgd(LR), rvsm_jax.admm(LR, rvsm_jax.nm_sparsity(2, 4), rho=0.1)),
    rvsm_jax.fista(rvsm_jax.nm_sparsity(2, 4), lam=1.0, monotone=True),
  ],
  ids=["rvsm", "proximal", "straight_through", "admm", "fista"],
)
def test_trains_to_two_of_four(tx):
  target = jnp.asarray(np.random.default_rng(0).normal(size=(8, 3)), jnp.float32)

  def loss(w):
    return jnp.sum((w - target) ** 2) / 2

  def step(carry, _):
    params, state = carry
    value, grad = jax.value_and_grad(loss)(params)
    extra = {"value": value, "grad": grad, "value_fn": loss}
    updates, state = optax.with_extra_args_support(tx).update(
      grad, state, params, **extra
    )
    return (optax.apply_updates(params, updates), state), None

  start = jnp.zeros((8, 3))
  (params, state), _ = jax.jit(
    lambda: jax.lax.scan(step, (start, tx.init(start)), length=300)
  )()
  got = rvsm_jax.sparse_params(state, params)
  np.testing.assert_array_equal(np.sum(got.reshape(2, 4, 3) != 0, axis=1), 2)
  assert loss(got) < loss(start)


@pytest.mark.parametrize(
  ("arguments", "error", "message"),
  [
    ((0, 4), ValueError, "n must be from 1 to m, got n = 0 and m = 4"),
    ((5, 4), ValueError, "n must be from 1 to m"),
    ((2.0, 4), TypeError, r"n must be an integer, got 2\.0"),
    ((2, "4"), TypeError, "m must be an integer"),
    ((2, 4, None), TypeError, "axis must be an integer"),
  ],
)
def test_arguments(arguments, error, message):
  with pytest.raises(error, match=message):
    rvsm_jax.nm_sparsity(*arguments)


@pytest.mark.parametrize(
  ("shape", "message"),
  [
    ((6, 2), r"m must divide the length of the axis -2 of x, shape \(6, 2\), got 4"),
    ((8,), r"axis must be one of x, shape \(8,\), got -2: mask out"),
  ],
)
def test_arrays_that_do_not_fit(shape, message):
  tx = rvsm_jax.proximal_sgd(0.1, rvsm_jax.nm_sparsity(2, 4), lam=1.0)
  params = {"w": jnp.zeros(shape)}
  with pytest.raises(ValueError, match=message) as caught:
    jax.eval_shape(lambda p: tx.update(p, tx.init(p), p), params)
  assert "'w'" in "".join(caught.value.__notes__)


# Packed


@pytest.mark.parametrize("dtype", [*DTYPES, "int8", "complex64"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 2), (2, 4), (3, 5), (2, 16), (4, 4)])
@pytest.mark.parametrize("axis", [0, -1])
def test_packed_reads_back_the_same_bits(n, m, axis, dtype):
  rng = np.random.default_rng(m)
  x = np.zeros((2 * m, 3, m), jnp.dtype(dtype))
  blocks = np.moveaxis(x, axis, -1)
  special = np.array([1, -3, 7, 0, 5])
  if dtype != "int8":
    special = np.array([-0.0, np.nan, np.inf, 1e-7, 0, -2])
  for at in np.ndindex(blocks.shape[:-1]):
    for start in range(0, blocks.shape[-1], m):
      places = start + rng.choice(m, n, replace=False)
      blocks[at][places] = rng.choice(special, n).astype(x.dtype)
  values, indices = export.pack_nm(x, n, m, axis)
  assert values.size * m == x.size * n
  assert indices.nbytes == -(-values.size * int(np.ceil(np.log2(m))) // 8)
  got = export.unpack_nm(values, indices, n, m, axis)
  assert (got.dtype, got.shape, got.tobytes()) == (x.dtype, x.shape, x.tobytes())


def test_the_format_that_is_described():
  x = np.array([[0, 5], [7, 0], [0, 6], [0, 0]], np.float32)
  values, indices = export.pack_nm(x, 2, 4)
  np.testing.assert_array_equal(values, [[0, 5], [7, 6]])
  # Places 0, 0, 1, 2 in two bits each, from the lowest on.
  np.testing.assert_array_equal(indices, [0b10_01_00_00])


@given(hnp.arrays(np.float32, (8, 6), elements=st.floats(width=32)))
def test_what_is_projected_packs(x):
  x = np.asarray(projection(2, 4)(np.nan_to_num(x)))
  assert export.unpack_nm(*export.pack_nm(x, 2, 4), 2, 4).tobytes() == x.tobytes()


def test_what_does_not_pack():
  x = np.ones((4, 2), np.float32)
  with pytest.raises(ValueError, match=r"at most 2 of 4 entries .* got 4: take rvsm"):
    export.pack_nm(x, 2, 4)
  with pytest.raises(ValueError, match="m must divide the length of the axis"):
    export.pack_nm(x, 1, 3)
  with pytest.raises(TypeError, match="array of numbers"):
    export.pack_nm(np.array([["a"]]), 1, 1)
  values, indices = export.pack_nm(x, 4, 4)
  with pytest.raises(ValueError, match="do not fit values"):
    export.unpack_nm(values, indices[1:], 4, 4)
  with pytest.raises(ValueError, match="indices must be below m = 3, got 3"):
    export.unpack_nm(np.ones((1, 4)), np.array([255], np.uint8), 1, 3)
