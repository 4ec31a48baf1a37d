"""Trainings that are killed at random moments end as if they had not been."""

import dataclasses
import multiprocessing
import pathlib
import subprocess
import sys

from flax import nnx
from helpers import in_part
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import survival
from experiments.core import results, training
from experiments.core.run import Run
import rvsm_jax

ROOT = pathlib.Path(__file__).parents[1]
EPOCHS, BATCH = 3, 16


@dataclasses.dataclass(frozen=True)
class Settings:
  seed: int = 0


def train(directory, compiled):
  """RVSM on a network of two layers; writes a checkpoint at every step."""
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_compilation_cache_dir", str(compiled))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(64, 16)), jnp.float32)
  y = jnp.argmax(x[:, :4], axis=1)
  rngs = nnx.Rngs(0)
  model = nnx.Sequential(
    nnx.Linear(16, 32, rngs=rngs), nnx.relu, nnx.Linear(32, 4, rngs=rngs)
  )
  graph, params = nnx.split(model, nnx.Param)
  tx = rvsm_jax.rvsm_sgd(
    0.1, rvsm_jax.l0(), lam=2e-2, beta=1.0, momentum=0.9, mask=rvsm_jax.kernels
  )

  step = training.Trainer(training.plain_forward(graph), lambda _: tx).compiled(
    training.Examples(x, y)
  )

  def zeros(state):
    return {"zeros": float(rvsm_jax.sparsity(state.sparse))}

  with Run(directory, Settings()) as run:
    state, record = training.fit(
      run,
      # On a named device, as what is restored is: one program for both.
      jax.device_put(training.TrainState.create(params, tx), jax.devices()[0]),
      epochs=EPOCHS,
      batches=lambda epoch: training.epoch_order(0, epoch, len(x), BATCH),
      step=step,
      evaluate=zeros,
      live=zeros,
      checkpoint_seconds=-1.0,
    )
    weights = jax.tree.leaves(state.params)
    result = {"epochs": record.epochs, "weights": weights, "seconds": record.seconds}
    results.write_json(run.result_file, result)


class Forked:
  """A process of a server that has imported JAX, as `survival` starts and ends it."""

  def __init__(self, context, *arguments):
    self._process = context.Process(target=train, args=arguments)
    self._process.start()

  def wait(self, timeout=None):
    self._process.join(timeout)
    if self._process.exitcode is None:
      raise subprocess.TimeoutExpired("train", timeout)
    return self._process.exitcode

  def kill(self):
    self._process.kill()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.parametrize("number", in_part([2, 20], 2))
def test_kills_change_nothing(tmp_path, number):
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload(["tests.test_survival"])

  def start(directory):
    return Forked(context, directory, tmp_path / "compiled")

  start(tmp_path / "compiles").wait()
  outcome = survival.survive(start, tmp_path, number, np.random.default_rng(0))
  assert outcome.differences == []
  assert len(outcome.kills) == number
  # Of many, not all were hit before they had trained at all.
  assert number < 20 or any(kill["step"] for kill in outcome.kills)


def test_every_difference_is_found(tmp_path):
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  for root, step in ((whole, 7), (killed, 8)):
    results.write_json(root / "run" / "result.json", {"accuracy": 0.5, "seconds": step})
    results.write_atomically(
      root / "run" / "checkpoints" / str(step) / "state", str(step)
    )
    results.write_atomically(root / "run" / "digests" / str(step), str(step))
  assert survival.compare(whole, killed) == []
  results.write_json(killed / "run" / "result.json", {"accuracy": 0.25, "seconds": 8})
  (killed / "run" / "result.json.9.partial").touch()
  (killed / "run" / "checkpoints" / "9.orbax-checkpoint-tmp").mkdir()
  (killed / "run" / "digests" / "8").unlink()
  assert survival.compare(whole, killed) == [
    f"{killed} lacks run/digests/STEP",
    f"{killed} has run/checkpoints/9.orbax-checkpoint-tmp left over",
    f"{killed} has run/result.json.9.partial left over",
    f"{killed / 'run' / 'result.json'} has other numbers",
  ]


def test_a_training_that_fails_is_no_survivor(tmp_path):
  class Failing:
    def wait(self, timeout=None):
      return 1

  with pytest.raises(RuntimeError, match="undisturbed ended with status 1"):
    survival.survive(lambda _: Failing(), tmp_path, 1, np.random.default_rng(0))


def test_a_report_tells_every_difference():
  kills = [{"seconds": 1.0, "step": 3}, {"seconds": 2.0, "step": None}]
  outcome = {"kills": kills, "trainings": 1, "differences": ["a lacks b"]}
  result = results.result(
    "survival", {"seed": 0}, None, experiments={"curves": outcome}
  )
  text = survival.markdown(result)
  assert "2 kills" in text
  (row,) = [line for line in text.splitlines() if line.startswith("| curves")]
  assert [cell.strip() for cell in row.split("|")[2:-1]] == ["2", "1", "1", "a lacks b"]
