"""The search for the largest entries: exact, in few passes, beyond 32 bits."""

from helpers import in_part
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rvsm_jax
from rvsm_jax import _ranking

RNG = np.random.default_rng(0)
ENTRIES = 2**18
DRAWN = {
  "normal": RNG.normal(0, 0.02, ENTRIES),
  "Laplace": RNG.laplace(0, 1e3, ENTRIES),
  "uniform": RNG.uniform(-1e-6, 1e-6, ENTRIES),
  "heavy tails": RNG.standard_t(1, ENTRIES),
  "decades": 10 ** RNG.uniform(-30, 30, ENTRIES),
  "mostly zeros": RNG.normal(0, 0.02, ENTRIES) * (RNG.random(ENTRIES) < 0.05),
  "three values": RNG.choice([0.0, 0.5, -2.0], ENTRIES),
  "equal": np.full(ENTRIES, 0.3),
  "two clusters": np.where(np.arange(ENTRIES) < 100, 1e30, RNG.normal(0, 1, ENTRIES)),
}


def passes(monkeypatch, x, sparsity):
  """The result, and how often all entries were counted."""
  found = []

  def loop(condition, body, carry):
    found.append(0)
    while condition(carry):
      carry = body(carry)
      found[-1] += 1
    return carry

  with monkeypatch.context() as patch:
    patch.setattr(jax.lax, "while_loop", loop)
    # Eager, because only then are the conditions numbers.
    with jax.disable_jit():
      kept = rvsm_jax.cardinality(sparsity).prox(x, 1.0)
  return kept, found


@pytest.mark.parametrize("sparsity", in_part([0.5, 0.9, 0.99], 0.9))
@pytest.mark.parametrize("name", in_part(DRAWN, "Laplace", "decades", "three values"))
def test_few_passes_whatever_the_weights(name, sparsity, monkeypatch):
  x = jnp.asarray(DRAWN[name], jnp.float32)
  kept, (search, *ties) = passes(monkeypatch, x, sparsity)
  order = np.argsort(-np.abs(np.asarray(x)), kind="stable")
  expected = np.zeros(ENTRIES, np.float32)
  first = order[: ENTRIES - int(np.ceil(sparsity * ENTRIES))]
  expected[first] = np.asarray(x)[first]
  np.testing.assert_array_equal(kept, expected)
  # Three bits a pass, as it was, are eleven; an eighth in every other one, 22.
  usual = name in ("normal", "Laplace", "uniform", "heavy tails")
  assert search <= (9 if usual else 22)
  assert not ties or ties[0] <= 10


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("sparsity", in_part([0.0, 0.3, 0.9, 1.0], 0.9))
def test_numbers_of_more_than_32_bits_rank_as_small_ones(dtype, sparsity, monkeypatch):
  tree = {
    "a": jnp.asarray(RNG.normal(size=(300, 300)), dtype),
    "b": jnp.asarray(RNG.choice([0.0, 0.5, -0.5], 500), dtype),
  }
  penalty = rvsm_jax.cardinality(sparsity, scope="all")

  def both(share):
    traced = rvsm_jax.cardinality(share, scope="all").prox(tree, 1.0)
    return penalty.prox(tree, 1.0), traced, penalty.value(traced)

  expected = jax.jit(both)(sparsity)
  monkeypatch.setattr(_ranking, "_SMALL", 4)
  jax.tree.map(np.testing.assert_array_equal, jax.jit(both)(sparsity), expected)


def test_seven_billion_weights_can_be_ranked_but_no_leaf_of_2_to_the_31():
  penalty = rvsm_jax.cardinality(0.9, scope="all")
  layers = {f"{i}": jax.ShapeDtypeStruct((2**15, 2**14), "bfloat16") for i in range(14)}
  jax.eval_shape(lambda tree: penalty.prox(tree, 1.0), layers)
  large = {"w": jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16)}
  with pytest.raises(ValueError, match="2147483648 entries, more than the 2147483647"):
    jax.eval_shape(lambda tree: penalty.prox(tree, 1.0), large)


def test_arithmetic_of_large_numbers():
  a, b = 2**35 + 3, 2**33 + 2**16 - 1
  x, y = (_ranking.number(n, 2**36) for n in (a, b))
  difference = x.minus(y)
  assert int(difference.high) * 2**16 + int(difference.low) == a - b
  assert x.at_least(y)
  assert x.at_least(x)
  assert not y.at_least(x)
  assert int(y.minus(x).high) == int(y.minus(x).low) == 0
  counts = [jnp.int32(2**31 - 1)] * 5
  assert float(_ranking.total(counts, 2**36).as_float()) == pytest.approx(5 * 2**31)
