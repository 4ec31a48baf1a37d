"""Run directories, checkpoints and the epoch loop that the experiments share."""

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import _run

EPOCHS, STEPS = 3, 4


@dataclasses.dataclass(frozen=True)
class Settings:
  seed: int = 0
  rate: float = 0.1


class KilledError(Exception):
  pass


def _batches(epoch):
  return _run.epoch_order(0, epoch, 20, 5)


def _fit(run, *, die_at=None, checkpoint_seconds=-1.0, rate=0.1):
  tx = optax.sgd(rate, momentum=0.9)
  values = jnp.linspace(-1, 1, 20)

  @jax.jit
  def update(state, batch):
    loss, grads = jax.value_and_grad(lambda w: jnp.mean((w - values[batch]) ** 2))(
      state.params
    )
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    totals = state.totals | {
      "loss": state.totals["loss"] + loss * len(batch),
      "seen": state.totals["seen"] + len(batch),
    }
    params = optax.apply_updates(state.params, updates)
    return state._replace(
      step=state.step + 1, params=params, opt_state=opt_state, totals=totals
    )

  def step(state, batch):
    if die_at is not None and int(state.step) == die_at:
      raise KilledError
    return update(state, batch)

  return _run.fit(
    run,
    _run.TrainState.create(jnp.array(2.0), tx),
    epochs=EPOCHS,
    batches=_batches,
    step=step,
    evaluate=lambda state: {"w": float(state.params)},
    live=lambda state: {"zeros": float(state.params == 0)},
    checkpoint_seconds=checkpoint_seconds,
  )


def _undisturbed(directory):
  with _run.Run(directory, Settings()) as run:
    return _fit(run)


@pytest.mark.parametrize("die_at", [3, 4, 11])
def test_a_resumed_run_ends_with_the_same_numbers(tmp_path, die_at):
  state, record = _undisturbed(tmp_path / "whole")
  with _run.Run(tmp_path / "killed", Settings()) as run, pytest.raises(KilledError):
    _fit(run, die_at=die_at)
  with _run.Run(tmp_path / "killed", Settings()) as run:
    resumed, again = _fit(run)
  assert again.epochs == record.epochs
  assert len(record.epochs) == EPOCHS
  assert float(resumed.params) == float(state.params)
  assert int(resumed.step) == EPOCHS * STEPS


def test_a_finished_run_is_not_trained_again(tmp_path):
  _, record = _undisturbed(tmp_path)
  with _run.Run(tmp_path, Settings()) as run:
    _, again = _fit(run, die_at=EPOCHS * STEPS - 1)
  assert again.epochs == record.epochs


def _checkpoints(directory):
  return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys, damage):
  _, record = _undisturbed(tmp_path / "whole")
  with _run.Run(tmp_path / "run", Settings()) as run, pytest.raises(KilledError):
    _fit(run, die_at=7)
  steps = _checkpoints(tmp_path / "run")
  assert steps == [6, 7]
  newest = tmp_path / "run" / "checkpoints" / "7"
  largest = max(
    newest.rglob("*"), key=lambda path: path.stat().st_size * path.is_file()
  )
  content = bytearray(largest.read_bytes())
  match damage:
    case "truncated":
      largest.write_bytes(content[: len(content) // 2])
    case "flipped":
      content[len(content) // 2] ^= 0xFF
      largest.write_bytes(content)
    case "missing":
      largest.unlink()
  with _run.Run(tmp_path / "run", Settings()) as run:
    _, again = _fit(run)
  out = capsys.readouterr().out
  assert "step 7 is damaged" in out
  assert "Resumed from step 6" in out
  assert again.epochs == record.epochs


def test_without_an_intact_checkpoint_training_starts_anew(tmp_path):
  _, record = _undisturbed(tmp_path / "whole")
  with _run.Run(tmp_path / "run", Settings()) as run, pytest.raises(KilledError):
    _fit(run, die_at=7)
  shutil.rmtree(tmp_path / "run" / "digests")
  with _run.Run(tmp_path / "run", Settings()) as run:
    _, again = _fit(run)
  assert again.epochs == record.epochs


def test_two_checkpoints_are_kept(tmp_path):
  _undisturbed(tmp_path)
  assert _checkpoints(tmp_path) == [EPOCHS * STEPS - 1, EPOCHS * STEPS]


def test_checkpoints_are_written_by_the_clock(tmp_path):
  with _run.Run(tmp_path, Settings()) as run:
    _fit(run, checkpoint_seconds=3600)
  assert _checkpoints(tmp_path) == [EPOCHS * STEPS]


def test_another_configuration_is_refused_with_the_difference(tmp_path):
  with _run.Run(tmp_path, Settings()):
    pass
  with pytest.raises(_run.ConfigMismatchError, match=r"rate: there 0\.1, now 0\.2"):
    _run.Run(tmp_path, Settings(rate=0.2))


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  with (
    _run.Run(tmp_path, Settings()) as run,
    pytest.raises(FloatingPointError, match="lower the learning rate"),
  ):
    _fit(run, rate=1e30)


def test_json_has_no_nan_and_no_partial_file(tmp_path):
  file = tmp_path / "new" / "result.json"
  _run.write_json(
    file,
    {"nan": math.nan, 1: np.float32(0.5), "array": jnp.arange(2), "path": tmp_path},
  )
  assert json.loads(file.read_text()) == {
    "nan": None,
    "1": 0.5,
    "array": [0, 1],
    "path": str(tmp_path),
  }
  assert list(file.parent.iterdir()) == [file]


def test_epoch_order_is_a_function_of_seed_and_epoch():
  order = _run.epoch_order(1, 2, 103, 10)
  assert order.shape == (10, 10)
  assert len(np.unique(order)) == 100
  np.testing.assert_array_equal(order, _run.epoch_order(1, 2, 103, 10))
  assert not np.array_equal(order, _run.epoch_order(1, 3, 103, 10))
  assert not np.array_equal(order, _run.epoch_order(2, 2, 103, 10))
  with pytest.raises(ValueError, match="batch_size=10 is more than the 9 examples"):
    _run.epoch_order(0, 0, 9, 10)


def test_environment_names_versions_and_hardware():
  found = _run.environment()
  assert found["versions"]["jax"] == jax.__version__
  assert {"python", "flax", "optax", "numpy"} <= found["versions"].keys()
  assert found["hardware"]["cores"] >= 1
  assert found["hardware"]["backend"] == jax.default_backend()
