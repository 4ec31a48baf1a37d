"""What the compilers of TPUs and GPUs make of an update, where they are installed.

`make accelerators` installs that of TPUs, `make accelerators-cuda` that of GPUs, and
runs the tests that need them.
"""

import jax
import jax.numpy as jnp
import pytest

from experiments.accelerators import config, programs, report, targets, updates

SIDE = 8192


def needs(target: str):
  platform = targets.TARGETS[target].platform
  return pytest.param(
    target,
    marks=[
      pytest.mark.accelerators,
      pytest.mark.skipif(
        targets.missing(platform),
        reason=f"the compiler for {platform} is not installed: see make accelerators",
      ),
    ],
  )


ON_ONE_TPU, ON_FOUR, ON_MANY = "v5e", "v5e:2x2", "v5e:16x16"
GROUPED = ("proximal group lasso", "proximal integrated TL1")


def check(name: str, target: str, dtype: str) -> None:
  """Least traffic, nothing beside params and state, and no more sent than norms."""
  row = updates.row(name, targets.TARGETS[target], dtype, SIDE)
  assert row["bytes"] <= 1.01 * row["least_bytes"]
  assert row["temporary_bytes"] < 0.1
  assert not row["copies"]
  if name in GROUPED and targets.TARGETS[target].chips > 1:
    assert row["collectives"] == {"all-reduce": 1}
    assert row["sent_entries"] == SIDE
  else:
    assert not row["collectives"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", [needs(ON_FOUR), needs("H100")])
@pytest.mark.parametrize("name", updates.PROMISED)
def test_the_promise(name, target, dtype):
  check(name, target, dtype)


@pytest.mark.parametrize(
  "target", [needs(one) for one in (ON_ONE_TPU, ON_MANY, "v5p", "v6e", *targets.GPUS)]
)
@pytest.mark.parametrize("name", ["rvsm l0", "proximal integrated TL1"])
def test_the_promise_elsewhere(name, target):
  check(name, target, "float32")


@pytest.mark.parametrize("target", [needs(ON_ONE_TPU), needs("H100")])
@pytest.mark.parametrize("name", ["rvsm l0, u in bfloat16", "rvsm TL1, u in bfloat16"])
def test_u_in_half_precision_costs_half(name, target):
  check(name, target, "float32")


# XLA copies what has two outputs on GPUs: Optax's momentum has 36 bytes there, too.
@pytest.mark.parametrize("target", [needs(ON_ONE_TPU), needs(ON_FOUR)])
def test_straight_through_moves_latent_weights_and_weights_once(target):
  check("straight-through l0", target, "float32")


@pytest.mark.parametrize("target", [needs(ON_FOUR)])
def test_without_u_a_step_is_as_long_as_that_of_sgd(target):
  seconds = [
    updates.row(name, targets.TARGETS[target], "float32", SIDE)["seconds"]
    for name in ("sgd", "rvsm TL1, no u", "proximal TL1")
  ]
  assert max(seconds) < 1.01 * min(seconds)


@pytest.mark.parametrize("target", [needs(ON_FOUR)])
def test_cardinality_sends_counts_alone(target):
  row = updates.row("rvsm cardinality", targets.TARGETS[target], "float32", SIDE)
  assert row["collectives"].keys() == {"all-reduce"}
  assert row["sent_entries"] < 16


@pytest.mark.parametrize("target", [needs(ON_ONE_TPU)])
def test_our_count_of_bytes_is_that_of_the_compiler(target):
  for name in ("sgd", "rvsm TL1", "proximal group lasso"):
    subject = updates.SUBJECTS[name]
    program, _ = updates.compiled(subject, targets.TARGETS[target], "float32", SIDE)
    counted, *_ = programs.passes(program.as_text())
    assert counted == pytest.approx(program.cost_analysis()["bytes accessed"], rel=0.01)


# What needs no other compiler than that of the CPU.


def test_a_program_is_read():
  x = jax.ShapeDtypeStruct((512, 512), jnp.float32)
  program = jax.jit(lambda x, y: x - 0.1 * y).lower(x, x).compile()
  counted, kernels, copies = programs.passes(program.as_text())
  assert counted == pytest.approx(3 * 4 * 512 * 512, rel=0.01)
  assert kernels == 1
  assert copies == 0


def test_collectives_are_read():
  text = """
  %a = f32[8,4]{1,0} all-reduce(%b), replica_groups={}
  %c = (f32[2]{0}, bf16[64]{0}) all-gather-start(%d)
  %e = f32[2]{0} all-reduce(%f)
  """
  found = programs.communication(text)
  assert found == ({"all-reduce": 2, "all-gather": 1}, 64)


def test_a_missing_compiler_is_told(monkeypatch):
  monkeypatch.setattr(targets.importlib.util, "find_spec", lambda name: None)
  with pytest.raises(ModuleNotFoundError, match="make accelerators"):
    targets.devices(targets.TARGETS["v5e"])


def test_the_names_of_configurations_are_known():
  for one in (config.Config(), config.CUDA, *config.QUICK.values()):
    assert {*one.all_for, *one.some_for} <= targets.TARGETS.keys()
    assert {targets.TARGETS[name].platform for name in one.all_for} <= {one.platform}
    assert set(one.subjects) <= updates.SUBJECTS.keys()


def test_every_state_is_counted():
  """The least traffic is that of the arrays that the state really has."""
  params = {"kernel": jax.ShapeDtypeStruct((64, 64), jnp.float32)}
  for name in updates.PROMISED:
    subject = updates.SUBJECTS[name]
    state = jax.eval_shape(subject.make().init, params)
    arrays = sum(leaf.shape == (64, 64) for leaf in jax.tree.leaves(state))
    again = 2 * (name in GROUPED)
    read = arrays - (name in ("rvsm l0", "rvsm l1"))
    assert subject.arrays == 3 + again + arrays + read


def test_the_table_says_what_loops_and_what_is_temporary():
  row = {
    "target": "v5e",
    "dtype": "float32",
    "update": "sgd",
    "bytes": 12.0,
    "least_bytes": 12,
    "temporary_bytes": 4.0,
    "loops": 1,
    "seconds": 1e-3,
    "collectives": {},
  }
  text = report.bytes_table([row], "float32")
  assert "≥ 12.0 (4.0)" in text
