"""The transformer of the scale on paper, at toy size: on many devices as on one."""

import dataclasses
import functools
import sys

import chex
import jax
import numpy as np
import pytest
from test_devices import in_two_processes

from experiments.accelerators import scale, transformer
import rvsm_jax

TOY = dataclasses.replace(transformer.TOY, layers=1)
STEPS = 3
SPARSE = ("straight-through cardinality of all", "proximal integrated TL1")


@functools.cache
def on_one_device(name):
  grid = scale.mesh(jax.devices("cpu")[:1], 1, 1)
  return jax.device_get(scale.train(name, TOY, grid, STEPS))


@pytest.mark.slow
@pytest.mark.parametrize("name", [*SPARSE, "rvsm l0"])
def test_eight_devices_give_the_numbers_of_one(name):
  grid = scale.mesh(jax.devices("cpu")[:8], 4, 2)
  got = scale.train(name, TOY, grid, STEPS)
  chex.assert_trees_all_close(got, on_one_device(name), rtol=0, atol=1e-5)
  params, losses = got
  assert losses[0] == pytest.approx(np.log(TOY.vocabulary), abs=1)
  expected = transformer.placed(TOY, grid)
  for leaf, like in zip(*map(jax.tree.leaves, (params, expected)), strict=True):
    assert leaf.sharding.is_equivalent_to(like.sharding, leaf.ndim)


@pytest.mark.slow
def test_the_share_of_zeros_is_that_of_all_layers_together():
  params, _ = on_one_device(SPARSE[0])
  kernels = [leaf["kernel"] for leaf in params["layers"].values() if "kernel" in leaf]
  assert rvsm_jax.sparsity(kernels) == pytest.approx(0.9, abs=1e-3)
  assert not rvsm_jax.sparsity(params["logits"])


def test_scanned_layers_are_those_written_out():
  shape = dataclasses.replace(TOY, layers=2)
  grid = scale.mesh(jax.devices("cpu")[:1], 1, 1)
  params, batch = transformer.draw(shape, grid, 0)
  one, other = (
    jax.jit(
      lambda p, scan=scan: transformer.loss(
        p, batch, dataclasses.replace(shape, scan=scan), grid
      )
    )(params)
    for scan in (True, False)
  )
  assert one == pytest.approx(float(other), rel=1e-6)


def test_no_position_sees_a_later_one():
  rng = np.random.default_rng(0)
  q, k, v = rng.normal(size=(3, 1, 6, 2, 4)).astype(np.float32)
  expected = transformer._attention(q, k, v)
  k[:, 4:], v[:, 4:] = 1.0, 5.0
  got = transformer._attention(q, k, v)
  np.testing.assert_array_equal(got[:, :4], expected[:, :4])
  assert not np.allclose(got[:, 4:], expected[:, 4:])


def test_seven_billion():
  assert transformer.count(transformer.Shape()) == pytest.approx(6.74e9, rel=0.01)


def worker(arguments):
  """Trains in one of several processes; process 0 writes the params."""
  _, coordinator, _, processes, _, process, file = arguments
  jax.distributed.initialize(coordinator, int(processes), int(process))
  grid = scale.mesh(jax.devices(), 2, 2)
  params, _ = scale.train(SPARSE[0], TOY, grid, STEPS)
  whole = jax.sharding.NamedSharding(grid, jax.P())
  leaves = [jax.device_put(leaf, whole) for leaf in jax.tree.leaves(params)]
  if jax.process_index() == 0:
    np.savez(file, *jax.device_get(leaves))


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_device(tmp_path):
  in_two_processes("test_scale", [str(tmp_path / "params.npz")], tmp_path)
  expected, _ = on_one_device(SPARSE[0])
  with np.load(tmp_path / "params.npz") as found:
    got = [found[name] for name in found.files]
  chex.assert_trees_all_close(got, jax.tree.leaves(expected), rtol=0, atol=1e-5)


if __name__ == "__main__":
  worker(sys.argv[1:])
