"""Run directories: configuration, checkpoints, finished parts, result and network.

A run is one configuration of an experiment. The same command run again after a kill
goes on from what its directory has, and ends with the same numbers. One command at a
time may have it open; on several hosts that share the directory, all of its processes.
"""

from collections.abc import Callable
import hashlib
import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple, Self

import filelock
from flax import traverse_util
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from experiments.core import results
from rvsm_jax import export

# What was killed may leave workers that notice it within a second.
_LOCK_SECONDS = 5.0


class ConfigMismatchError(ValueError):
  """The directory belongs to a run of another configuration."""


class RunInUseError(ValueError):
  """Another process has the run directory open."""


class Record(NamedTuple):
  """What a training has measured so far.

  Attributes:
    epochs: the metrics of each finished epoch.
    seconds: time spent, that before a kill included, but for what it undid.
  """

  epochs: list[dict[str, float]]
  seconds: float


class Run:
  """A run directory, open for one command.

  Args:
    directory: where; made if necessary.
    config: a dataclass of JSON values, all that determines the numbers. None opens
      the directory for reading only: nothing is locked, checked, written or deleted.
    keep: how many checkpoints to keep.

  Raises:
    ConfigMismatchError: if the directory has a run of another configuration; to
      train on from its checkpoints would give numbers that belong to neither.
    RunInUseError: if it is open elsewhere; two would overwrite each other's files.
  """

  def __init__(self, directory: pathlib.Path, config: Any = None, keep: int = 2):
    self.directory = directory.resolve()
    self._read_only = config is None
    self._first = jax.process_index() == 0
    self._lock: filelock.BaseFileLock | None = None
    if self._read_only:
      self.config = json.loads((self.directory / "config.json").read_text())
      self._manager = self._checkpoints(read_only=True)
      return
    self.config = results.plain(config)
    if self._first:
      self._lock = _lock(self.directory)
    try:
      self._prepare()
      self._manager = self._checkpoints(
        max_to_keep=keep,
        cleanup_tmp_directories=True,
        # The next step overwrites the arrays in place, so writing must not lag.
        enable_async_checkpointing=False,
      )
    except BaseException:
      self._unlock()
      raise

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: Any) -> None:
    self._manager.close()
    self._unlock()

  def _unlock(self) -> None:
    if self._lock is not None:
      self._lock.release()

  def _checkpoints(self, **options: Any) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(
      self.directory / "checkpoints",
      options=ocp.CheckpointManagerOptions(**options),
    )

  def _prepare(self) -> None:
    file = self.directory / "config.json"
    if self._first:
      results.write_atomically(self.directory / "process", str(os.getpid()))
      for left in self.directory.rglob(f"*{results.PARTIAL}"):
        left.unlink()
      if not file.exists():
        results.write_json(file, self.config)
    self._wait("config")
    self._require_same(json.loads(file.read_text()))

  def _require_same(self, stored: dict[str, Any]) -> None:
    there, now = (
      traverse_util.flatten_dict(config, sep=".") for config in (stored, self.config)
    )
    lines = [
      f"  {name}: there {there.get(name)!r}, now {now.get(name)!r}"
      for name in sorted(there.keys() | now.keys())
      if there.get(name) != now.get(name)
    ]
    if lines:
      raise ConfigMismatchError(
        f"{self.directory} has a run of another configuration:\n"
        + "\n".join(lines)
        + "\nPass another --output, or delete that directory."
      )

  @staticmethod
  def _wait(name: str) -> None:
    """For the other hosts."""
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(name)

  @property
  def result_file(self) -> pathlib.Path:
    """Where the result stands, once the run is finished."""
    return self.directory / "result.json"

  def result(self) -> dict[str, Any] | None:
    """The result, or None before the end."""
    return results.read(self.result_file) if self.result_file.exists() else None

  def finished(self) -> dict[str, Any] | None:
    """As `result`, and says that the run is not trained again."""
    found = self.result()
    if found is not None:
      results.console.print(f"Finished before: {self.result_file}")
    return found

  def once(self, name: str, compute: Callable[[], Any]) -> Any:
    """A finished part of the run: computed, or read where it was finished before."""
    file = self.directory / "parts" / f"{name}.json"
    if not file.exists():
      results.write_json(file, compute())
    return json.loads(file.read_text())

  def keep(self, network: Any, name: str = "network") -> None:
    """Writes a network to `NAME.safetensors`, for `rvsm_jax.export.load`."""
    if jax.process_count() > 1:
      network = multihost_utils.process_allgather(network, tiled=True)
    if self._first:
      export.save(self.directory / f"{name}.safetensors", network)

  def finish(self, result: dict[str, Any], network: Any) -> dict[str, Any]:
    """Writes the sparse network of a training, and then its result."""
    self.keep(network)
    if self._first:
      results.write_json(self.result_file, result)
    return results.plain(result)

  def save(self, state: Any, record: Record) -> None:
    """Writes a checkpoint of a `training.TrainState`, unless there is one of its step.

    Raises:
      OSError: if it cannot be written; those before it are kept.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    items = ocp.args.Composite(
      state=ocp.args.StandardSave(state._asdict()),
      record=ocp.args.JsonSave(record._asdict()),
    )
    try:
      self._manager.save(step, args=items)
      if self._first:
        digest = _digest(self._step_directory(step))
        results.write_atomically(self._digest_file(step), digest)
    except Exception as error:
      # Orbax says by errors of many types what the file system told it.
      free = shutil.disk_usage(self.directory).free / 2**20
      raise OSError(
        f"The checkpoint of step {step} could not be written to {self.directory},"
        f" where {free:.0f} MB are free. The ones before it are kept: once there is"
        " room, the same command goes on from them."
      ) from error
    kept = {str(step) for step in self._manager.all_steps()}
    for file in self._digest_file(step).parent.iterdir() if self._first else ():
      if file.name not in kept:
        file.unlink()

  def restore(self, template: Any) -> tuple[Any, Record] | None:
    """The newest checkpoint that is intact, or None if there is none.

    Orbax does not notice every damage, so what it wrote is compared with a digest.

    Args:
      template: a `training.TrainState` like the one that was saved, with the same
        shardings; it is not changed.
    """
    step = self._newest_intact()
    if step is None:
      return None
    items = ocp.args.Composite(
      state=ocp.args.StandardRestore(template._asdict()),
      record=ocp.args.JsonRestore(),
    )
    found = self._manager.restore(step, args=items)
    return type(template)(**found.state), Record(**found.record)

  def _newest_intact(self) -> int | None:
    damaged, newest = [], None
    for step in sorted(self._manager.all_steps(), reverse=True):
      file = self._digest_file(step)
      if self._first and (
        not file.exists() or file.read_text() != _digest(self._step_directory(step))
      ):
        damaged.append(step)
        continue
      newest = step
      break
    if jax.process_count() > 1:
      # The first process alone reads all files to see whether they are intact.
      agreed = -1 if newest is None else newest
      agreed = int(multihost_utils.broadcast_one_to_all(np.int32(agreed)))
      newest = None if agreed < 0 else agreed
      damaged = [s for s in self._manager.all_steps() if newest is None or s > newest]
    for step in damaged:
      results.console.print(
        f"[yellow]The checkpoint of step {step} is damaged or incomplete: going"
        " back to the one before.[/yellow]"
      )
      if not self._read_only:
        self._manager.delete(step)
    return newest

  def _step_directory(self, step: int) -> pathlib.Path:
    return self.directory / "checkpoints" / str(step)

  def _digest_file(self, step: int) -> pathlib.Path:
    return self.directory / "digests" / str(step)


def _lock(directory: pathlib.Path) -> filelock.BaseFileLock:
  """The lock of a run directory, taken; the system frees it if this process ends."""
  directory.mkdir(parents=True, exist_ok=True)
  lock = filelock.FileLock(directory / "lock")
  holder = directory / "process"
  try:
    lock.acquire(timeout=_LOCK_SECONDS)
  except filelock.Timeout:
    pid = holder.read_text() if holder.exists() else "unknown"
    raise RunInUseError(
      f"{directory} is in use by process {pid}: wait for its end, or pass another"
      " --output."
    ) from None
  return lock


def _digest(directory: pathlib.Path) -> str:
  """SHA-256 of the names and contents of all files below."""
  total = hashlib.sha256()
  for file in sorted(path for path in directory.rglob("*") if path.is_file()):
    total.update(str(file.relative_to(directory)).encode())
    total.update(hashlib.sha256(file.read_bytes()).digest())
  return total.hexdigest()
