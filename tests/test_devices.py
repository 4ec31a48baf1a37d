"""Training on several devices and in several processes: the numbers of one device."""

import contextlib
import functools
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
import time

import chex
from helpers import both_axis_types
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

import rvsm_jax

ROOT = pathlib.Path(__file__).parents[1]
LR, STEPS = 0.1, 25
# Split FSDP-style along "data" and tensor-parallel along "model". The groups "out",
# columns, are split over devices, in each layer along another axis of the mesh.
SPECS = {"w1": P("data", "model"), "b1": P("model"), "w2": P("model", "data")}
SHAPES = {"w1": (8, 16), "b1": (16,), "w2": (16, 4)}
MASK = {"mask": rvsm_jax.kernels}
L1, TL1 = rvsm_jax.l1(), rvsm_jax.transformed_l1(0.5)
GROUPS = rvsm_jax.group_lasso("out")
INTEGRATED = rvsm_jax.integrated_tl1(a=0.5, mu=0.5)


def rvsm(penalty, lam, carry_u=True):
  split = {"lam": lam, "beta": 1.0, "carry_u": carry_u}
  return rvsm_jax.rvsm_sgd(LR, penalty, momentum=0.9, **split, **MASK)


def proximal(penalty, lam):
  return rvsm_jax.proximal_sgd(LR, penalty, lam=lam, momentum=0.9, **MASK)


# Each with a weight of the penalty that makes some weights or groups zero, not all.
# Functions, because no process may use JAX before it has joined the others.
TRANSFORMATIONS = {
  "rvsm l0": lambda: rvsm(rvsm_jax.l0(), 0.02),
  "rvsm TL1": lambda: rvsm(TL1, 0.02),
  "rvsm groups": lambda: rvsm(GROUPS, 0.7),
  "proximal l1": lambda: proximal(L1, 0.1),
  "proximal TL1": lambda: proximal(TL1, 0.05),
  "proximal groups": lambda: proximal(GROUPS, 0.45),
  "proximal integrated": lambda: proximal(INTEGRATED, 0.1),
  "proximal adam": lambda: rvsm_jax.proximal_adam(LR, INTEGRATED, lam=0.02, **MASK),
  "admm": lambda: optax.chain(
    optax.sgd(LR), rvsm_jax.admm(LR, rvsm_jax.scaled(TL1, 0.02), rho=1.0, **MASK)
  ),
  "rvsm l0 without u": lambda: rvsm(rvsm_jax.l0(), 0.02, carry_u=False),
  "rvsm TL1 without u": lambda: rvsm(TL1, 0.02, carry_u=False),
  "rvsm groups without u": lambda: rvsm(GROUPS, 0.7, carry_u=False),
  "penalty gradient": lambda: optax.chain(
    rvsm_jax.add_penalty_gradient(INTEGRATED, 0.1, **MASK), optax.sgd(LR, 0.9)
  ),
}
DENSE = tuple(TRANSFORMATIONS)[-4:]
# Each transformation once.
ONE_OF_EACH = (
  "rvsm groups",
  "proximal integrated",
  "proximal adam",
  "admm",
  "penalty gradient",
)


def place(mesh, array, spec):
  sharding = NamedSharding(mesh, spec)
  return jax.make_array_from_callback(array.shape, sharding, lambda i: array[i])


def train(mesh, name):
  """The params of a small network after training, and its u where there is one."""
  rng = np.random.default_rng(0)
  params = {
    key: place(mesh, rng.normal(0, 0.3, SHAPES[key]).astype(np.float32), spec)
    for key, spec in SPECS.items()
  }
  x = place(mesh, rng.normal(size=(16, 8)).astype(np.float32), P("data"))
  y = place(mesh, rng.normal(size=(16, 4)).astype(np.float32), P("data"))
  tx = TRANSFORMATIONS[name]()
  explicit = AxisType.Explicit in mesh.axis_types

  def loss(params, x, y):
    w1, w2, out = params["w1"], params["w2"], None
    if explicit:
      # FSDP: gathered along "data" to be used, and never along "model".
      w1 = jax.sharding.reshard(w1, P(None, "model"))
      w2, out = jax.sharding.reshard(w2, P("model", None)), P("data", None)
    hidden = jnp.tanh(x @ w1 + params["b1"])
    return jnp.mean(jnp.square(jnp.dot(hidden, w2, out_sharding=out) - y))

  @jax.jit
  def run(params, x, y):
    def step(carry, _):
      params, state = carry
      updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
      return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[0]

  with jax.set_mesh(mesh):
    params, state = run(params, x, y)
    sparse = params
    if name.startswith(("rvsm", "admm")) and name not in DENSE:
      sparse = rvsm_jax.sparse_params(state, params)
  return {"params": params, "sparse": sparse}


def grid(shape, axis_type):
  devices = jax.devices("cpu")[: math.prod(shape)]
  return jax.make_mesh(shape, ("data", "model"), (axis_type,) * 2, devices=devices)


@functools.cache
def on_one_device(name):
  return jax.device_get(train(grid((1, 1), AxisType.Auto), name))


@pytest.mark.parametrize("name", TRANSFORMATIONS)
@pytest.mark.slow
def test_the_training_makes_some_weights_zero(name):
  sparse = on_one_device(name)["sparse"]
  zeros = rvsm_jax.sparsity([sparse["w1"], sparse["w2"]])
  assert zeros == 0 if name in DENSE else 0.05 < zeros < 0.95, zeros


@pytest.mark.parametrize(
  ("name", "axis_type"),
  [
    *((name, AxisType.Auto) for name in TRANSFORMATIONS),
    *((name, AxisType.Explicit) for name in ONE_OF_EACH),
  ],
)
@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(name, axis_type):
  mesh = grid((4, 2), axis_type)
  got = train(mesh, name)
  chex.assert_trees_all_close(got, on_one_device(name), rtol=0, atol=1e-5)
  for key, leaf in got["params"].items():
    assert leaf.sharding.is_equivalent_to(NamedSharding(mesh, SPECS[key]), leaf.ndim)


# What a program sends from device to device: the types that it comes to, and how.
COLLECTIVE = re.compile(
  r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
  r"(?:-start)?\("
)
ROWS, COLUMNS = 64, 32
ELEMENTWISE = {
  "l0": rvsm_jax.l0(),
  "l1": L1,
  "transformed_l1": TL1,
  "scad": rvsm_jax.scad(0.1),
  "mcp": rvsm_jax.mcp(0.1),
  "log_penalty": rvsm_jax.log_penalty(5.0),
  "capped_l1": rvsm_jax.capped_l1(0.5),
  "lp": rvsm_jax.lp(0.5),
  "elastic_net": rvsm_jax.elastic_net(0.5),
  "nonnegative": rvsm_jax.nonnegative(),
}


def communication(tx, axis_type, spec=SPECS["w1"]):
  """The collectives of an update and what each holds: [(kind, entries), ...]."""
  mesh = grid((4, 2), axis_type)
  with jax.set_mesh(mesh):
    w = place(mesh, np.ones((ROWS, COLUMNS), np.float32), spec)
    state = jax.jit(tx.init)(w)

    @jax.jit
    def update(grads, state, params):
      updates, state = tx.update(grads, state, params)
      return optax.apply_updates(params, updates), state

    program = update.lower(w, state, w).compile().as_text()
  return [
    (kind, max(math.prod(map(int, re.findall(r"\d+", shape))) for shape in shapes))
    for types, kind in COLLECTIVE.findall(program)
    if (shapes := re.findall(r"\[([\d,]*)\]", types))
  ]


def every_step(penalty):
  """The steps of all transformations but `proximal_adam`, one after another."""
  return optax.chain(
    rvsm_jax.add_penalty_gradient(penalty, 0.1),
    rvsm_jax.rvsm_sgd(LR, penalty, lam=0.1, beta=1.0, momentum=0.9),
    rvsm_jax.rvsm(LR, penalty, lam=0.1, beta=1.0, carry_u=False),
    rvsm_jax.admm(LR, penalty, rho=1.0),
    rvsm_jax.proximal(LR, penalty, lam=0.1),
  )


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_elementwise_penalties_send_nothing(name):
  penalty = ELEMENTWISE[name]
  tx = optax.chain(
    rvsm_jax.add_penalty_gradient(penalty, 0.1),
    rvsm_jax.proximal(LR, penalty, lam=0.1),
  )
  assert not communication(tx, AxisType.Auto)


@both_axis_types
def test_no_transformation_sends_anything_for_an_elementwise_penalty(axis_type):
  assert not communication(every_step(TL1), axis_type)
  assert not communication(rvsm_jax.proximal_adam(LR, TL1, lam=0.1), axis_type)


@both_axis_types
@pytest.mark.parametrize(
  "penalty",
  [GROUPS, rvsm_jax.group_l0(), INTEGRATED],
  ids=["lasso", "l0", "integrated"],
)
def test_group_norms_send_one_number_per_group(penalty, axis_type):
  found = communication(every_step(penalty), axis_type)
  assert {kind for kind, _ in found} == {"all-reduce"}
  # In one program XLA may send the sums of several steps together.
  assert max(entries for _, entries in found) <= COLUMNS


@both_axis_types
def test_cardinality_sends_counts_alone(axis_type):
  found = communication(every_step(rvsm_jax.cardinality(0.5)), axis_type)
  assert found
  assert max(entries for _, entries in found) < COLUMNS


@both_axis_types
def test_the_check_sees_that_penalties_which_rank_entries_gather(axis_type):
  penalty = rvsm_jax.exclusive_lasso()
  found = communication(rvsm_jax.proximal(LR, penalty, lam=0.1), axis_type)
  assert max(entries for _, entries in found) >= ROWS * COLUMNS // 2


@both_axis_types
@pytest.mark.parametrize(
  "penalty",
  [
    rvsm_jax.exclusive_lasso(),
    pytest.param(rvsm_jax.combined_group_exclusive(0.5), marks=pytest.mark.slow),
  ],
  ids=["exclusive", "combined"],
)
def test_groups_that_are_whole_on_a_device_are_ranked_there(penalty, axis_type):
  tx = rvsm_jax.proximal(LR, penalty, lam=0.1)
  assert not communication(tx, axis_type, P(None, ("data", "model")))
  found = communication(tx, AxisType.Explicit)
  # Of a group that is split, what is gathered is no column of another device.
  assert max(entries for _, entries in found) == ROWS * COLUMNS // 2


# Its arguments: a module and those of it. A child of a killed parent is killed, too.
LAUNCH = """
import ctypes, runpy, sys
if sys.platform == "linux":
  ctypes.CDLL(None).prctl(1, 9)
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def in_two_processes(module, arguments, directory, timeout=400):
  """Runs a module in two processes of two devices that make one JAX cluster."""
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  env = os.environ | {
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "2",
    "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
  }
  logs = [directory / f"process-{index}.log" for index in range(2)]
  with contextlib.ExitStack() as stack:
    children = []
    for index, log in enumerate(logs):
      cluster = f"--coordinator localhost:{port} --processes 2 --process {index}"
      child = subprocess.Popen(
        [sys.executable, "-c", LAUNCH, module, *cluster.split(), *arguments],
        cwd=ROOT,
        env=env,
        stdout=stack.enter_context(log.open("w")),
        stderr=subprocess.STDOUT,
      )
      stack.callback(child.wait)
      stack.callback(child.kill)
      children.append(child)
    deadline = time.monotonic() + timeout
    # One that fails would leave the other waiting for it.
    while time.monotonic() < deadline:
      codes = [child.poll() for child in children]
      if any(codes) or None not in codes:
        break
      time.sleep(0.1)
  texts = [log.read_text() for log in logs]
  assert codes == [0, 0], f"exit codes {codes}:\n" + "\n".join(texts)
  return texts


def worker(arguments):
  """Trains by each transformation; process 0 writes the params."""
  _, coordinator, _, processes, _, process, file = arguments
  jax.distributed.initialize(coordinator, int(processes), int(process))
  mesh = grid((2, 2), AxisType.Auto)
  for name in ONE_OF_EACH:
    result = train(mesh, name)
    whole = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, P())), result)
    if jax.process_index() == 0:
      flat = {f"{k} {key}": v for k, tree in whole.items() for key, v in tree.items()}
      np.savez(f"{file} {name}.npz", **jax.device_get(flat))


@pytest.fixture(scope="module")
def trained_by_two_processes(tmp_path_factory):
  directory = tmp_path_factory.mktemp("two")
  in_two_processes("test_devices", [str(directory / "params")], directory)
  return directory


@pytest.mark.parametrize("name", ONE_OF_EACH)
@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one_device(name, trained_by_two_processes):
  with np.load(trained_by_two_processes / f"params {name}.npz") as found:
    for key, tree in on_one_device(name).items():
      for leaf, expected in tree.items():
        np.testing.assert_allclose(found[f"{key} {leaf}"], expected, rtol=0, atol=1e-5)


def test_errors_of_a_process_are_shown(tmp_path):
  with pytest.raises(AssertionError, match="no_such_module"):
    in_two_processes("no_such_module", [], tmp_path, timeout=60)


if __name__ == "__main__":
  worker(sys.argv[1:])
