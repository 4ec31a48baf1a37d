"""Half of the weights: the axis of the pattern, and a cut whose zeros stay."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import two_of_four
from experiments.core import tasks
from experiments.core.training import Data, Examples

WIDTH, HEADS, SIZE = 160, 5, 32


def test_four_weights_are_those_of_one_sum():
  task = tasks.TASKS["text"]
  params = nnx.state(nnx.eval_shape(lambda: task.network_of(nnx.Rngs(0))), nnx.Param)
  attention, up = params["blocks"][0]["attention"], params["blocks"][0]["up"]
  kernels = {
    (WIDTH, HEADS, SIZE): attention["query"]["kernel"],
    (HEADS, SIZE, WIDTH): attention["out"]["kernel"],
    (WIDTH, 4 * WIDTH): up["kernel"],
  }
  found = [two_of_four.axis(kernels[shape]) % len(shape) for shape in kernels]
  assert found == [0, 1, 0]


def test_a_first_layer_of_one_channel_stays_dense():
  network = tasks.TASKS["fashion_mnist"].network_of
  params = nnx.state(nnx.eval_shape(lambda: network(nnx.Rngs(0))), nnx.Param)
  picked = two_of_four.chosen(params)
  kernels = [picked["conv"][k]["kernel"] for k in range(3)]
  assert [bool(jax.tree.leaves(kernel)[0]) for kernel in kernels] == [False, True, True]
  assert not jax.tree.leaves(picked["conv"][1]["bias"])[0]


@pytest.mark.parametrize("pattern", two_of_four.PATTERNS)
def test_a_cut_in_mid_training_keeps_its_zeros(pattern):
  penalty = two_of_four.PATTERNS[pattern]
  params = {"kernel": jax.random.normal(jax.random.key(0), (8, 6)), "bias": jnp.ones(6)}
  tx = optax.chain(optax.sgd(0.5, momentum=0.9), two_of_four.cut_at(penalty, 2))
  state, update, supports = tx.init(params), jax.jit(tx.update), []
  for k in range(5):
    grads = jax.tree.map(
      lambda w, k=k: jax.random.normal(jax.random.key(k), w.shape), params
    )
    updates, state = update(grads, state, params)
    params = optax.apply_updates(params, updates)
    supports.append(np.asarray(params["kernel"] != 0))
  assert supports[1].all()
  assert supports[2].sum() == 24
  if pattern == "two of four":
    assert np.all(supports[2].reshape(2, 4, 6).sum(1) == 2)
  np.testing.assert_array_equal(supports[4], supports[2])
  assert np.all(params["bias"] != 0)


@pytest.mark.slow
def test_all_methods_end_with_half_of_the_weights():
  task = tasks.Task("fashion_mnist", "small", (8, 16, 3), 1.0, 3, 10, 0.1)
  rng = np.random.default_rng(0)
  y = rng.integers(0, 3, 60).astype(np.int32)
  x = np.eye(8, dtype=np.float32)[y] + 0.1 * rng.normal(size=(60, 8)).astype("f")
  data = Data(Examples(x, y), Examples(x, y))
  found = {}
  for method in two_of_four.optimizers(task, 1):
    found |= two_of_four.train(task, data, method, 0, task.epochs)
  assert set(found) == {"dense"} | {
    f"{how}, {pattern}"
    for how in ("cut once", "cut and tuned", "straight-through")
    for pattern in two_of_four.PATTERNS
  }
  for name, one in found.items():
    assert one["zeros"] == (0 if name == "dense" else 0.5)
    assert one["accuracy"] > 0.6
