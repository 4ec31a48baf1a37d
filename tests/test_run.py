"""Run directories, checkpoints and the epoch loop that the experiments share."""

import dataclasses
import errno
import json
import math
import multiprocessing
import os
import pathlib
import shutil

from helpers import in_part
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments.core import results, training
from experiments.core import run as runs
from rvsm_jax import export

EPOCHS, STEPS = 3, 4


@dataclasses.dataclass(frozen=True)
class Settings:
  seed: int = 0
  rate: float = 0.1


class KilledError(Exception):
  pass


def _batches(epoch):
  return training.epoch_order(0, epoch, 20, 5)


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

  return training.fit(
    run,
    training.TrainState.create(jnp.array(2.0), tx),
    epochs=EPOCHS,
    batches=_batches,
    step=training.Step(step),
    evaluate=lambda state: {"w": float(state.params)},
    live=lambda state: {"zeros": float(state.params == 0)},
    checkpoint_seconds=checkpoint_seconds,
  )


def _undisturbed(directory):
  with runs.Run(directory, Settings()) as run:
    return _fit(run)


@pytest.mark.parametrize("die_at", in_part([3, 4, 11], 3))
def test_a_resumed_run_ends_with_the_same_numbers(tmp_path, die_at):
  state, record = _undisturbed(tmp_path / "whole")
  with runs.Run(tmp_path / "killed", Settings()) as run, pytest.raises(KilledError):
    _fit(run, die_at=die_at)
  with runs.Run(tmp_path / "killed", Settings()) as run:
    resumed, again = _fit(run)
  assert again.epochs == record.epochs
  assert len(record.epochs) == EPOCHS
  assert float(resumed.params) == float(state.params)
  assert int(resumed.step) == EPOCHS * STEPS


def test_a_finished_run_is_not_trained_again(tmp_path):
  _, record = _undisturbed(tmp_path)
  with runs.Run(tmp_path, Settings()) as run:
    _, again = _fit(run, die_at=EPOCHS * STEPS - 1)
  assert again.epochs == record.epochs


def _checkpoints(directory):
  return sorted(int(path.name) for path in (directory / "checkpoints").iterdir())


@pytest.mark.parametrize(
  "damage", in_part(["truncated", "flipped", "missing"], "truncated")
)
def test_a_damaged_checkpoint_is_passed_over(tmp_path, capsys, damage):
  _, record = _undisturbed(tmp_path / "whole")
  with runs.Run(tmp_path / "run", Settings()) as run, pytest.raises(KilledError):
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
  with runs.Run(tmp_path / "run", Settings()) as run:
    _, again = _fit(run)
  out = capsys.readouterr().out
  assert "step 7 is damaged" in out
  assert "Resumed from step 6" in out
  assert again.epochs == record.epochs


@pytest.mark.slow
def test_without_an_intact_checkpoint_training_starts_anew(tmp_path):
  _, record = _undisturbed(tmp_path / "whole")
  with runs.Run(tmp_path / "run", Settings()) as run, pytest.raises(KilledError):
    _fit(run, die_at=7)
  shutil.rmtree(tmp_path / "run" / "digests")
  with runs.Run(tmp_path / "run", Settings()) as run:
    _, again = _fit(run)
  assert again.epochs == record.epochs


def test_two_checkpoints_are_kept(tmp_path):
  _undisturbed(tmp_path)
  assert _checkpoints(tmp_path) == [EPOCHS * STEPS - 1, EPOCHS * STEPS]


def test_checkpoints_are_written_by_the_clock(tmp_path):
  with runs.Run(tmp_path, Settings()) as run:
    _fit(run, checkpoint_seconds=3600)
  assert _checkpoints(tmp_path) == [EPOCHS * STEPS]


def test_another_configuration_is_refused_with_the_difference(tmp_path):
  with runs.Run(tmp_path, Settings()):
    pass
  with pytest.raises(runs.ConfigMismatchError, match=r"rate: there 0\.1, now 0\.2"):
    runs.Run(tmp_path, Settings(rate=0.2))


@dataclasses.dataclass(frozen=True)
class Nested:
  settings: Settings = Settings()
  names: tuple[str, ...] = ("a", "b")


def test_a_difference_deep_in_the_configuration_is_shown_alone(tmp_path):
  with runs.Run(tmp_path, Nested()):
    pass
  with pytest.raises(runs.ConfigMismatchError) as raised:
    runs.Run(tmp_path, Nested(Settings(rate=0.2)))
  assert "\n  settings.rate: there 0.1, now 0.2\nPass" in str(raised.value)


def _hold(directory, opened, end):
  with runs.Run(directory, Settings()):
    opened.set()
    end.wait()


@pytest.mark.slow
def test_a_directory_in_use_is_refused_and_free_after_a_kill(tmp_path, monkeypatch):
  monkeypatch.setattr(runs, "_LOCK_SECONDS", 0.1)
  context = multiprocessing.get_context("spawn")
  opened, end = context.Event(), context.Event()
  other = context.Process(target=_hold, args=(tmp_path, opened, end))
  other.start()
  assert opened.wait(240)
  message = rf"{tmp_path} is in use by process {other.pid}: wait"
  with pytest.raises(runs.RunInUseError, match=message):
    runs.Run(tmp_path, Settings())
  other.kill()
  other.join()
  with runs.Run(tmp_path, Settings()):
    assert (tmp_path / "process").read_text() == str(os.getpid())


def test_one_that_is_refused_leaves_the_directory_free(tmp_path, monkeypatch):
  monkeypatch.setattr(runs, "_LOCK_SECONDS", 0.1)
  with runs.Run(tmp_path, Settings()):
    pass
  with pytest.raises(runs.ConfigMismatchError) as raised:
    runs.Run(tmp_path, Settings(rate=0.2))
  assert raised.tb is not None  # which would keep a lock alive
  with runs.Run(tmp_path, Settings()), pytest.raises(runs.RunInUseError):
    runs.Run(tmp_path, Settings())


def test_what_a_kill_left_half_written_is_removed(tmp_path):
  left = tmp_path / "result.json.1.partial"
  left.write_text('{"half')
  with runs.Run(tmp_path, Settings()) as run:
    assert not left.exists()
    assert run.result() is None


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
  with (
    runs.Run(tmp_path, Settings()) as run,
    pytest.raises(FloatingPointError, match="lower the learning rate"),
  ):
    _fit(run, rate=1e30)
  assert not (tmp_path / "result.json").exists()


def test_a_checkpoint_is_always_finite(tmp_path):
  with runs.Run(tmp_path, Settings()) as run:
    with pytest.raises(FloatingPointError, match=rf"{tmp_path}, epoch 1, loss inf"):
      _fit(run, rate=1e15)
    tx = optax.sgd(1e15, momentum=0.9)
    state, _ = run.restore(training.TrainState.create(jnp.array(2.0), tx))
  assert jnp.isfinite(state.params)


def test_require_finite_counts_what_is_not():
  numbers = {"a": jnp.array([1.0, jnp.nan, -jnp.inf]), "b": (2, None), "c": math.nan}
  with pytest.raises(FloatingPointError, match="u: 3 numbers are not finite"):
    training.require_finite(numbers, "u")
  training.require_finite({"a": jnp.ones(3, jnp.bfloat16), "b": 1, "c": ()}, "u")


# --- full disks ---


class Full:
  """Makes every write into a directory fail as on a full disk, until it is freed."""

  def __init__(self, directory, monkeypatch):
    self.full = False
    self._opened = pathlib.Path.open

    def open_unless_full(path, mode="r", *args, **kwargs):
      if self.full and "w" in mode and directory in path.parents:
        path.touch()  # A name takes no block: it is the content that fails.
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      return self._opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(pathlib.Path, "open", open_unless_full)


def test_a_full_disk_keeps_what_was_written_before(tmp_path, monkeypatch):
  disk, file = Full(tmp_path, monkeypatch), tmp_path / "result.json"
  results.write_json(file, {"before": 1})
  disk.full = True
  with pytest.raises(OSError, match=rf"No space left on device: '{file}'") as raised:
    results.write_json(file, {"after": 2})
  assert raised.value.errno == errno.ENOSPC
  assert json.loads(file.read_text()) == {"before": 1}
  assert list(tmp_path.iterdir()) == [file]


def test_a_run_goes_on_once_a_full_disk_is_freed(tmp_path, monkeypatch, capsys):
  _, record = _undisturbed(tmp_path / "whole")
  directory = tmp_path / "run"
  with runs.Run(directory, Settings()) as run, pytest.raises(KilledError):
    _fit(run, die_at=5)
  with runs.Run(directory, Settings()) as run:
    save = run._manager.save

    def fail(step, args):
      (directory / "checkpoints" / f"{step}.orbax-checkpoint-tmp").mkdir()
      raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(run._manager, "save", fail)
    with pytest.raises(OSError, match=rf"step 6 .* written to {directory}, where"):
      _fit(run)
    monkeypatch.setattr(run._manager, "save", save)
  assert "Resumed from step 5" in capsys.readouterr().out
  with runs.Run(directory, Settings()) as run:
    _, again = _fit(run)
  assert "Resumed from step 5" in capsys.readouterr().out
  assert again.epochs == record.epochs
  assert not list(directory.rglob("*tmp*"))


@pytest.mark.skipif(
  not hasattr(os, "geteuid") or os.geteuid() != 0 or not shutil.which("mount"),
  reason="only root can make a small file system",
)
# A thread of Orbax ends after the loop of events that it would tell.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_disk_that_is_full_in_truth(tmp_path):
  disk = tmp_path / "disk"
  disk.mkdir()
  if os.system(f"mount -t tmpfs -o size=1m tmpfs '{disk}' 2>/dev/null"):
    pytest.skip("cannot mount")
  try:
    tx = optax.sgd(0.1)
    key = jax.random.key(0)

    def state(step, size):
      created = training.TrainState.create(jax.random.normal(key, (size,)), tx)
      return created._replace(step=jnp.int32(step))

    with runs.Run(disk / "run", Settings()) as run:
      run.save(state(1, 1000), runs.Record([], 0.0))
      with pytest.raises(OSError, match="step 2 could not be written"):
        run.save(state(2, 500_000), runs.Record([], 0.0))
    with runs.Run(disk / "run", Settings()) as run:
      restored, _ = run.restore(state(0, 1000))
      assert int(restored.step) == 1
      np.testing.assert_array_equal(restored.params, state(1, 1000).params)
      run.save(state(2, 1000), runs.Record([], 0.0))
    assert _checkpoints(disk / "run") == [1, 2]
  finally:
    os.system(f"umount '{disk}'")


def test_json_has_no_nan_and_no_partial_file(tmp_path):
  file = tmp_path / "new" / "result.json"
  results.write_json(
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
  order = training.epoch_order(1, 2, 103, 10)
  assert order.shape == (10, 10)
  assert len(np.unique(order)) == 100
  np.testing.assert_array_equal(order, training.epoch_order(1, 2, 103, 10))
  assert not np.array_equal(order, training.epoch_order(1, 3, 103, 10))
  assert not np.array_equal(order, training.epoch_order(2, 2, 103, 10))
  with pytest.raises(ValueError, match="batch_size=10 is more than the 9 examples"):
    training.epoch_order(0, 0, 9, 10)


def test_environment_names_versions_and_hardware():
  found = results.environment()
  assert found["versions"]["jax"] == jax.__version__
  assert {"python", "flax", "optax", "numpy"} <= found["versions"].keys()
  assert found["hardware"]["cores"] >= 1
  assert found["hardware"]["backend"] == jax.default_backend()


def test_a_finished_part_is_not_computed_again(tmp_path):
  def never():
    raise AssertionError

  with runs.Run(tmp_path, Settings()) as run:
    assert run.once("part", lambda: {"x": (1, math.nan)}) == {"x": [1, None]}
    with pytest.raises(KilledError):
      run.once("other", killed)
  with runs.Run(tmp_path, Settings()) as run:
    assert run.once("part", never) == {"x": [1, None]}
    assert run.once("other", lambda: 2) == 2


def killed():
  raise KilledError


def test_for_reading_nothing_is_locked_written_or_deleted(tmp_path):
  state, _ = _undisturbed(tmp_path)
  newest = tmp_path / "checkpoints" / str(EPOCHS * STEPS)
  largest = max(
    newest.rglob("*"), key=lambda path: path.stat().st_size * path.is_file()
  )
  largest.write_bytes(b"damaged")
  (tmp_path / "result.json.1.partial").touch()
  before = sorted(tmp_path.rglob("*"))
  with runs.Run(tmp_path, Settings()), runs.Run(tmp_path) as reading:
    assert reading.config == {"seed": 0, "rate": 0.1}
    restored, _ = reading.restore(state)
    assert int(restored.step) == EPOCHS * STEPS - 1
  with runs.Run(tmp_path) as reading:
    reading.restore(state)
  assert sorted(tmp_path.rglob("*")) == [p for p in before if p.suffix != ".partial"]


def test_the_network_stands_beside_the_result(tmp_path):
  network = {"kernel": jnp.eye(3), "bias": jnp.ones(3)}
  with runs.Run(tmp_path, Settings()) as run:
    assert run.finished() is None
    run.finish(results.result("a", run.config, 1.0), network)
    assert run.finished()["experiment"] == "a"
  found = export.load(tmp_path / "network.safetensors", like=network)
  jax.tree.map(np.testing.assert_array_equal, found, network)


class TestResults:
  def test_reads_what_it_wrote(self, tmp_path):
    written = results.result("a", Settings(), 1.5, zeros={"u": np.float32(0.5)})
    file = results.write_json(tmp_path / "a.json", written)
    assert results.read(file) == written
    assert results.stored(file, Settings()) == written
    assert results.stored(file, Settings(seed=1)) is None
    assert results.stored(tmp_path / "b.json", Settings()) is None

  @pytest.mark.parametrize(
    ("text", "message"),
    [
      ("{", "is no result"),
      ("{}", "has the schema None, not 1"),
      ('{"schema": 1, "config": {}}', "lacks experiment, seconds"),
    ],
  )
  def test_what_is_no_result_is_named(self, text, message, tmp_path):
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
      results.read(file)

  def test_the_footer_names_every_machine_and_revision(self):
    one = results.result("a", {}, 300.0)
    gpu = {**one["hardware"], "backend": "gpu", "devices": ["NVIDIA H200"]}
    other = {**one, "hardware": gpu, "git_revision": "f" * 40, "seconds": 3300.0}
    text = results.footer([one, other])
    assert text.startswith("Time: 1.0 h on ")
    assert "1 × NVIDIA H200" in text
    assert "f" * 40 in text
    assert one["versions"]["jax"] in text


def test_the_ways_to_train_agree():
  rng = np.random.default_rng(0)
  data = training.Examples(
    jnp.asarray(rng.normal(size=(40, 5)), jnp.float32),
    jnp.asarray(rng.integers(0, 3, 40)),
  )
  forward = lambda params, extra, x: (x @ params, extra)  # noqa: E731
  one = training.Trainer(forward, lambda rate: optax.sgd(rate, momentum=0.9))
  order = np.stack([training.epoch_order(0, epoch, 40, 8) for epoch in range(2)])
  rates = jnp.array([0.1, 0.01])
  params = jnp.zeros((5, 3))
  found = {}
  for whole in (False, True):
    step = one.compiled(data, rates[0], whole_epochs=whole)
    state = one.init(jnp.copy(params), rates[0])
    for epoch in order:
      for batch in [epoch] if whole else epoch:
        state = step.call(state, batch)
    found[whole] = state.params
  _, history = jax.vmap(
    lambda rate: one.whole(params, order, rate, data, lambda state: state.params)
  )(rates)
  assert history.shape == (2, 2, 5, 3)
  np.testing.assert_allclose(found[True], found[False], rtol=1e-5)
  np.testing.assert_allclose(history[0, -1], found[False], rtol=1e-5)
  assert not np.allclose(history[1, -1], found[False])


def test_the_mean_loss_does_not_count_padding():
  x, y = np.eye(5, 3, dtype=np.float32), np.array([0, 1, 1, 2, 0], np.int32)
  forward = lambda params, extra, x: (x @ params, extra)  # noqa: E731
  examples = training.Examples(x, y)
  whole = training.evaluator(forward, examples, 5)(jnp.eye(3))
  np.testing.assert_allclose(
    training.evaluator(forward, examples, 2)(jnp.eye(3)), whole
  )
  padded = training.Examples(
    np.pad(x, ((0, 3), (0, 0))), np.pad(y, (0, 3), constant_values=-1)
  )
  found = training.means(
    forward, jnp.eye(3), training.Examples(*map(jnp.asarray, padded))
  )
  assert float(found[1]) == pytest.approx(whole[1])
