"""What the experiments share: run directories, checkpoints, results, the epoch loop.

A run is one training with one configuration. Its directory holds the configuration,
the newest checkpoints and, at the end, the result; the same command run again after
a kill goes on from the newest checkpoint and ends with the same numbers. One process
at a time may have it open.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import ctypes
import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import time
from typing import Any, NamedTuple, Self

import filelock
from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import rich.console
import rich.progress

console = rich.console.Console(highlight=False, soft_wrap=True)

_PARTIAL = ".partial"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_REFRESH_SECONDS = 0.5

# What was killed may leave workers that notice it within a second.
_LOCK_SECONDS = 5.0


def reuse_freed_memory() -> None:
  """Makes glibc keep what XLA frees, instead of paging it in anew at every step.

  Activations of 100 MB otherwise cost a third of the time of a step on CPU. Does
  nothing elsewhere.
  """
  if sys.platform != "linux":
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(arena_max, 1)


def announce(files: Iterable[pathlib.Path]) -> None:
  """Says which files were written."""
  for file in files:
    console.print(f"Wrote {file}", markup=False)


def environment() -> dict[str, Any]:
  """What a result depends on besides its configuration: versions and hardware."""
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {
    "versions": {"python": platform.python_version(), **versions},
    "hardware": {
      "backend": jax.default_backend(),
      "devices": [device.device_kind for device in jax.devices()],
      "processor": _processor(),
      "cores": len(os.sched_getaffinity(0))
      if hasattr(os, "sched_getaffinity")
      else os.cpu_count(),
      "platform": platform.platform(),
    },
    "git_revision": _git_revision(),
  }


def _processor() -> str:
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
  return names[0] if names else platform.processor()


def _git_revision() -> str | None:
  """The commit, with "-dirty" if files that git knows differ; None without git."""
  command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
  try:
    done = subprocess.run(
      command,
      cwd=pathlib.Path(__file__).parent,
      capture_output=True,
      text=True,
      check=True,
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return done.stdout.strip()


def write_atomically(path: pathlib.Path, text: str) -> None:
  """Writes a file that is never seen half written, whatever is killed when.

  Raises:
    OSError: if it cannot be written; what was there before is kept.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.{os.getpid()}{_PARTIAL}")
  try:
    with partial.open("w", encoding="utf-8") as file:
      file.write(text)
      file.flush()
      os.fsync(file.fileno())
    partial.replace(path)
  except OSError as error:
    # A full disk has no name for the file.
    error.filename = str(path)
    raise
  finally:
    partial.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON atomically; what is not finite becomes null, as JSON has no NaN."""
  text = json.dumps(_plain(value), indent=1, allow_nan=False)
  write_atomically(path, text + "\n")


def _plain(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(key): _plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [_plain(item) for item in value]
  if isinstance(value, pathlib.Path):
    return str(value)
  if isinstance(value, jax.Array | np.ndarray | np.generic):
    return _plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def epoch_order(seed: int, epoch: int, size: int, batch_size: int) -> np.ndarray:
  """Shuffled indices of one epoch, (steps, batch_size); the remainder is left out.

  A function of its arguments alone, so that a resumed run sees the same batches.
  """
  steps = size // batch_size
  if not steps:
    raise ValueError(
      f"batch_size={batch_size} is more than the {size} examples: lower it."
    )
  order = np.random.default_rng((seed, epoch)).permutation(size)
  return order[: steps * batch_size].reshape(steps, batch_size)


@jax.jit
def _count_not_finite(tree: Any) -> jax.Array:
  return sum(
    (jnp.sum(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)), jnp.int32(0)
  )


def require_finite(numbers: Any, what: str) -> None:
  """Stops a training that diverged before its numbers are saved or reported.

  Args:
    numbers: a pytree.
    what: whose numbers these are.

  Raises:
    FloatingPointError: if one is infinite or not a number.
  """
  count = int(_count_not_finite(numbers))
  if count:
    raise FloatingPointError(
      f"{what}: {count} numbers are not finite; lower the learning rate."
    )


class TrainState(NamedTuple):
  """What `fit` trains.

  Attributes:
    step: number of updates so far, int32.
    params: the weights w.
    opt_state: the optimizer's, u included.
    totals: sums over the examples of the epoch so far; `"seen"` is their number.
    extra: what else there is, such as batch statistics.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  totals: dict[str, jax.Array]
  extra: Any = ()

  @classmethod
  def create(
    cls, params: Any, tx: optax.GradientTransformation, extra: Any = ()
  ) -> Self:
    """The state before the first update, with totals of loss and accuracy."""
    zero = jnp.zeros([], jnp.int32)
    totals = {"loss": jnp.zeros([]), "accuracy": jnp.copy(zero), "seen": jnp.copy(zero)}
    return cls(zero, params, tx.init(params), totals, extra)

  def updated(
    self,
    tx: optax.GradientTransformation,
    grads: Any,
    *,
    loss: jax.Array,
    found: jax.Array,
    seen: int,
  ) -> Self:
    """The state after one update.

    Args:
      tx: the optimizer.
      grads: of the params.
      loss: sum over the examples.
      found: how many of them were classified rightly.
      seen: how many there were.
    """
    updates, opt_state = tx.update(grads, self.opt_state, self.params)
    added: dict[str, Any] = {"loss": loss, "accuracy": found, "seen": seen}
    return self._replace(
      step=self.step + 1,
      params=optax.apply_updates(self.params, updates),
      opt_state=opt_state,
      totals={name: self.totals[name] + value for name, value in added.items()},
    )


class Record(NamedTuple):
  """What a run has measured so far.

  Attributes:
    epochs: the metrics of each finished epoch.
    seconds: time spent, that before a kill included, but for what it undid.
  """

  epochs: list[dict[str, float]]
  seconds: float


class ConfigMismatchError(ValueError):
  """The directory belongs to a run of another configuration."""


class RunInUseError(ValueError):
  """Another process has the run directory open."""


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


class Run:
  """A run directory, open for one process.

  Args:
    directory: where; made if necessary.
    config: a dataclass of JSON values, all that determines the numbers.
    keep: how many checkpoints to keep.

  Raises:
    ConfigMismatchError: if the directory has a run of another configuration; to
      train on from its checkpoints would give numbers that belong to neither.
    RunInUseError: if it is open elsewhere; two would overwrite each other's files.
  """

  def __init__(self, directory: pathlib.Path, config: Any, keep: int = 2):
    self.directory = directory.resolve()
    self.config = json.loads(json.dumps(_plain(dataclasses.asdict(config))))
    self._lock = _lock(self.directory)
    try:
      self._manager = self._open(keep)
    except BaseException:
      self._lock.release()
      raise

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *_: Any) -> None:
    self._manager.close()
    self._lock.release()

  def _open(self, keep: int) -> ocp.CheckpointManager:
    write_atomically(self.directory / "process", str(os.getpid()))
    for left in self.directory.glob(f"*{_PARTIAL}"):
      left.unlink()
    file = self.directory / "config.json"
    if file.exists():
      self._require_same(json.loads(file.read_text()))
    else:
      write_json(file, self.config)
    return ocp.CheckpointManager(
      self.directory / "checkpoints",
      options=ocp.CheckpointManagerOptions(
        max_to_keep=keep,
        cleanup_tmp_directories=True,
        # The next step overwrites the arrays in place, so writing must not lag.
        enable_async_checkpointing=False,
      ),
    )

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

  @property
  def result_file(self) -> pathlib.Path:
    """Where the result stands, once the run is finished."""
    return self.directory / "result.json"

  def result(self) -> dict[str, Any] | None:
    """The result, or None before the end."""
    if not self.result_file.exists():
      return None
    return json.loads(self.result_file.read_text())

  def save(self, state: TrainState, record: Record) -> None:
    """Writes a checkpoint, unless there is one of this step.

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
      write_atomically(self._digest_file(step), _digest(self._step_directory(step)))
    except Exception as error:
      # Orbax says by errors of many types what the file system told it.
      free = shutil.disk_usage(self.directory).free / 2**20
      raise OSError(
        f"The checkpoint of step {step} could not be written to {self.directory},"
        f" where {free:.0f} MB are free. The ones before it are kept: once there is"
        " room, the same command goes on from them."
      ) from error
    kept = {str(step) for step in self._manager.all_steps()}
    for file in self._digest_file(step).parent.iterdir():
      if file.name not in kept:
        file.unlink()

  def restore(self, template: TrainState) -> tuple[TrainState, Record] | None:
    """The newest checkpoint that is intact, or None if there is none.

    Orbax does not notice every damage, so what it wrote is compared with a digest.

    Args:
      template: a state like the one that was saved; it is not changed.
    """
    for step in sorted(self._manager.all_steps(), reverse=True):
      digest_file = self._digest_file(step)
      digest = _digest(self._step_directory(step))
      if not digest_file.exists() or digest_file.read_text() != digest:
        console.print(
          f"[yellow]The checkpoint of step {step} is damaged or incomplete: going"
          " back to the one before.[/yellow]"
        )
        self._manager.delete(step)
        continue
      items = ocp.args.Composite(
        state=ocp.args.StandardRestore(template._asdict()),
        record=ocp.args.JsonRestore(),
      )
      found = self._manager.restore(step, args=items)
      return TrainState(**found.state), Record(**found.record)
    return None

  def _step_directory(self, step: int) -> pathlib.Path:
    return self.directory / "checkpoints" / str(step)

  def _digest_file(self, step: int) -> pathlib.Path:
    return self.directory / "digests" / str(step)


def _digest(directory: pathlib.Path) -> str:
  """SHA-256 of the names and contents of all files below."""
  total = hashlib.sha256()
  for file in sorted(path for path in directory.rglob("*") if path.is_file()):
    total.update(str(file.relative_to(directory)).encode())
    total.update(hashlib.sha256(file.read_bytes()).digest())
  return total.hexdigest()


def fit(
  run: Run,
  state: TrainState,
  *,
  epochs: int,
  batches: Callable[[int], Sequence[Any] | np.ndarray],
  step: Callable[[TrainState, Any], TrainState],
  evaluate: Callable[[TrainState], dict[str, float]],
  live: Callable[[TrainState], dict[str, float]],
  checkpoint_seconds: float = 20.0,
) -> tuple[TrainState, Record]:
  """Trains, with a progress bar and checkpoints, from the newest checkpoint if any.

  Args:
    run: the open run directory.
    state: the initial state; `step` may donate its buffers.
    epochs: how many.
    batches: from the number of an epoch to its batches, always the same number.
    step: from a state and a batch to the next state; adds to `totals`.
    evaluate: metrics of a state, at the end of each epoch.
    live: what the progress bar shows besides the means of `totals`.
    checkpoint_seconds: at most about this much is lost to a kill.

  Returns:
    The final state, and the record of all epochs.

  Raises:
    FloatingPointError: if the loss, or a weight, is not finite; it is not saved.
  """
  record = Record([], 0.0)
  restored = run.restore(state)
  if restored is not None:
    state, record = restored
    console.print(f"Resumed from step {int(state.step)} in {run.directory}")
  per_epoch = len(batches(0))
  clock = time.monotonic() - record.seconds
  saved = refreshed = time.monotonic()

  with rich.progress.Progress(
    rich.progress.TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
    rich.progress.BarColumn(),
    rich.progress.TaskProgressColumn(),
    rich.progress.TextColumn("{task.fields[shown]}"),
    rich.progress.TimeRemainingColumn(),
    console=console,
    transient=True,
  ) as bar:
    task = bar.add_task(
      "training",
      total=epochs * per_epoch,
      completed=int(state.step),
      epoch=min(len(record.epochs) + 1, epochs),
      epochs=epochs,
      shown="",
    )
    for epoch in range(len(record.epochs), epochs):
      for batch in batches(epoch)[int(state.step) - epoch * per_epoch :]:
        state = step(state, batch)
        if time.monotonic() - refreshed > _REFRESH_SECONDS:
          shown = _format({**_means(state), **live(state)})
          done = int(state.step)
          bar.update(task, completed=done, epoch=epoch + 1, shown=shown)
          refreshed = time.monotonic()
        if time.monotonic() - saved > checkpoint_seconds:
          _require_finite(run, state, epoch)
          run.save(state, record._replace(seconds=time.monotonic() - clock))
          saved = time.monotonic()
      _require_finite(run, state, epoch)
      metrics = {"epoch": epoch + 1, **_means(state), **evaluate(state)}
      console.print(_format(metrics))
      state = state._replace(totals=jax.tree.map(jnp.zeros_like, state.totals))
      record = Record([*record.epochs, metrics], time.monotonic() - clock)
      if epoch + 1 == epochs:
        run.save(state, record)
  return state, record


def _require_finite(run: Run, state: TrainState, epoch: int) -> None:
  loss = _means(state)["loss"]
  where = f"{run.directory}, epoch {epoch + 1}, loss {loss:g}"
  require_finite((loss, state.params, state.extra), where)


def _means(state: TrainState) -> dict[str, float]:
  """Sums over the examples of the epoch, divided by their number."""
  totals = {name: float(total) for name, total in state.totals.items()}
  seen = totals.pop("seen")
  return {name: total / seen for name, total in totals.items()}


def _format(metrics: Mapping[str, float]) -> str:
  return "  ".join(
    f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items()
  )
