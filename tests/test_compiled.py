"""What XLA makes of an update: one pass in place, and nothing else of its size."""

from collections.abc import Callable
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import rvsm_jax

SHAPE = (256, 512)
BYTES = 4 * SHAPE[0] * SHAPE[1]
# Small arrays, such as one number per group.
SLACK = BYTES // 16


def _rvsm(penalty: rvsm_jax.Penalty, carry_u: bool) -> Any:
  return rvsm_jax.rvsm(0.1, penalty, lam=1e-3, beta=0.1, carry_u=carry_u)


def _proximal(penalty: rvsm_jax.Penalty) -> Any:
  return rvsm_jax.proximal(0.1, penalty, lam=1e-2)


def _target(make: Callable[..., Any]) -> Any:
  return rvsm_jax.target_sparsity(lambda lam: make(0.1, rvsm_jax.l1(), lam=lam), 0.9)


# The transformation, how many arrays of the size of the params it keeps, and how many
# passes over memory it takes.
CASES = {
  "rvsm l0, no u": (lambda: _rvsm(rvsm_jax.l0(), False), 0, 1),
  "rvsm l1, no u": (lambda: _rvsm(rvsm_jax.l1(), False), 0, 1),
  "rvsm TL1, no u": (lambda: _rvsm(rvsm_jax.transformed_l1(), False), 0, 1),
  "rvsm l0": (lambda: _rvsm(rvsm_jax.l0(), True), 1, 2),
  "rvsm l1": (lambda: _rvsm(rvsm_jax.l1(), True), 1, 2),
  "rvsm TL1": (lambda: _rvsm(rvsm_jax.transformed_l1(), True), 1, 2),
  "proximal l1": (lambda: _proximal(rvsm_jax.l1()), 0, 1),
  "proximal TL1": (lambda: _proximal(rvsm_jax.transformed_l1()), 0, 1),
}
# The same, with lam in the state.
TARGETS = {
  "target sparsity, rvsm": (
    lambda: _target(functools.partial(rvsm_jax.rvsm, beta=0.1)),
    1,
    2,
  ),
  "target sparsity, proximal": (lambda: _target(rvsm_jax.proximal), 0, 1),
}
ALL = CASES | TARGETS

every = pytest.mark.parametrize("name", ALL)
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="counts CPU loops")


@functools.cache
def _compiled(name: str) -> Any:
  tx = optax.chain(optax.sgd(0.1), ALL[name][0]())
  params = {"kernel": jax.ShapeDtypeStruct(SHAPE, jnp.float32)}
  state = jax.eval_shape(tx.init, params)

  def step(params: Any, state: Any, grads: Any) -> Any:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()


def _entry(text: str) -> list[str]:
  """The instructions of the entry computation."""
  return re.search(r"^ENTRY .*?^}", text, re.DOTALL | re.MULTILINE)[0].splitlines()


@every
def test_no_temporary_of_the_size_of_the_params(name: str):
  assert _compiled(name).memory_analysis().temp_size_in_bytes < SLACK


@every
def test_params_and_state_are_written_in_place(name: str):
  """Whatever is donated is used again: no second copy of anything."""
  memory = _compiled(name).memory_analysis()
  arrays = 1 + ALL[name][1]
  assert arrays * BYTES <= memory.alias_size_in_bytes < arrays * BYTES + SLACK
  assert memory.output_size_in_bytes < arrays * BYTES + SLACK


@pytest.mark.parametrize("name", CASES)
def test_no_copies_and_no_double_precision(name: str):
  text = _compiled(name).as_text()
  assert not re.search(r"\bcopy(-start)?\(", text)
  assert "f64[" not in text


@pytest.mark.parametrize("name", TARGETS)
def test_target_sparsity_copies_no_array(name: str):
  """Single numbers of its state it may."""
  text = _compiled(name).as_text()
  assert not re.search(r"\[\d[\d,]*\]\S* copy(-start)?\(", text)
  assert "f64[" not in text


@on_cpu
@every
def test_passes_over_memory(name: str):
  """Instructions of the size of the params that are not parameters."""
  size = ",".join(map(str, SHAPE))
  made = [
    line for line in _entry(_compiled(name).as_text()) if f"= f32[{size}]" in line
  ]
  passes = [line for line in made if " parameter(" not in line]
  assert len(passes) == ALL[name][2]


def _penalty(name: str) -> rvsm_jax.Penalty:
  return getattr(rvsm_jax, name)(
    **({"a": 1.0, "mu": 0.5} if name == "integrated_tl1" else {})
  )


keeps_none = pytest.mark.skipif(
  jax.__version_info__ < (0, 10, 2), reason="XLA kept the weights before the map"
)
grouped = pytest.mark.parametrize("name", ["group_lasso", "integrated_tl1"])


@on_cpu
@keeps_none
@grouped
def test_group_maps_take_no_array_besides(name: str):
  prox = _penalty(name).prox

  def step(params: jax.Array, grads: jax.Array) -> jax.Array:
    return prox(params - 0.1 * grads, 1e-3)

  x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
  compiled = jax.jit(step, donate_argnums=0).lower(x, x).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < SLACK


def _in_a_chain(transformation: Any) -> Any:
  """Of two leaves of one shape, which share the learning rate and the step."""
  x = (jax.ShapeDtypeStruct((SHAPE[0] // 2, SHAPE[1]), jnp.float32),) * 2
  tx = optax.chain(optax.sgd(0.1), transformation)
  state = jax.eval_shape(tx.init, x)

  def update(params: Any, state: Any, grads: Any) -> Any:
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  return jax.jit(update, donate_argnums=(0, 1)).lower(x, state, x).compile()


@on_cpu
@keeps_none
@pytest.mark.parametrize("name", ["group_lasso", "group_l0"])
def test_group_norms_in_a_chain_take_the_sum_again(name: str):
  """They are needed before the first weight can be written."""
  compiled = _in_a_chain(_proximal(_penalty(name)))
  assert compiled.memory_analysis().temp_size_in_bytes < SLACK
  assert compiled.cost_analysis()["bytes accessed"] < 5 * BYTES + SLACK


@on_cpu
@keeps_none
@pytest.mark.parametrize("name", ["group_lasso", "group_l0"])
def test_group_norms_of_rvsm_read_the_weights_again(name: str):
  compiled = _in_a_chain(_rvsm(_penalty(name), True))
  assert compiled.memory_analysis().temp_size_in_bytes < SLACK
  assert compiled.cost_analysis()["bytes accessed"] < 7 * BYTES + SLACK


@on_cpu
@keeps_none
def test_integrated_tl1_in_a_chain_takes_one_array_besides():
  compiled = _in_a_chain(_proximal(_penalty("integrated_tl1")))
  assert compiled.memory_analysis().temp_size_in_bytes < BYTES + SLACK


@on_cpu
@pytest.mark.parametrize("name", ["rvsm l0", "rvsm l1"])
def test_the_old_u_is_not_read_where_it_costs_less_to_compute_it(name: str):
  """Weights and gradients read, weights written; weights read, u written."""
  found = _compiled(name).cost_analysis()["bytes accessed"]
  assert found < 5 * BYTES + SLACK
