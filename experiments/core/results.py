"""Results: JSON files of one schema, and what each says of where it was made.

Every result has the keys `schema`, `experiment`, `config`, `seconds`, `versions`,
`hardware` and `git_revision`, and besides them what its experiment measures. The same
measure has the same name everywhere: `accuracy` and `loss` of the networks `w`, `u`
and `w_cut`; `zeros`, the share of exact zeros among the weights that are made sparse,
and `zeros_all`, among all.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax
import numpy as np
import rich.console

SCHEMA = 1
DIRECTORY = pathlib.Path(__file__).parents[1] / "results"

console = rich.console.Console(highlight=False, soft_wrap=True)

PARTIAL = ".partial"
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_KEYS = ("experiment", "config", "seconds", "versions", "hardware", "git_revision")


def announce(files: Iterable[pathlib.Path]) -> None:
  """Says which files were written."""
  for file in files:
    console.print(f"Wrote {file}", markup=False)


def show(files: Sequence[pathlib.Path]) -> None:
  """Prints the first of these files, a report, and says which were written."""
  console.print(files[0].read_text(encoding="utf-8"), markup=False)
  announce(files)


def publish(
  file: pathlib.Path,
  result: Mapping[str, Any],
  rebuild: Callable[[pathlib.Path], Sequence[pathlib.Path]],
) -> None:
  """Writes a result, and the report of its folder, which is printed."""
  write_json(file, result)
  show(rebuild(file.parent))


def result(
  experiment: str, config: Any, seconds: float | None, **measures: Any
) -> dict[str, Any]:
  """A result, as JSON stores it.

  Args:
    experiment: its name, that of its folder of results.
    config: all that determines the numbers.
    seconds: that it took; None where that says nothing.
    **measures: what else there is.
  """
  return plain(
    {
      "schema": SCHEMA,
      "experiment": experiment,
      "config": config,
      "seconds": seconds,
      **measures,
      **environment(),
    }
  )


def read(file: pathlib.Path) -> dict[str, Any]:
  """A result from its file.

  Raises:
    ValueError: if it is none, or has another schema.
  """
  try:
    found = json.loads(file.read_text(encoding="utf-8"))
  except json.JSONDecodeError as error:
    raise ValueError(f"{file} is no result: {error}.") from error
  schema = found.get("schema") if isinstance(found, dict) else None
  if schema != SCHEMA:
    raise ValueError(
      f"{file} has the schema {schema!r}, not {SCHEMA}: run the experiment again."
    )
  missing = [key for key in _KEYS if key not in found]
  if missing:
    raise ValueError(f"{file} lacks {', '.join(missing)}: run the experiment again.")
  return found


def read_all(folder: pathlib.Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
  """The results of these names that a folder has."""
  files = {name: folder / f"{name}.json" for name in names}
  return {name: read(file) for name, file in files.items() if file.exists()}


def stored(file: pathlib.Path, config: Any) -> dict[str, Any] | None:
  """The result in a file; None if there is none, or that of another configuration."""
  if not file.exists():
    return None
  found = read(file)
  if found["config"] == plain(config):
    return found
  console.print(f"{file} is of another configuration: trained anew.", markup=False)
  return None


def environment() -> dict[str, Any]:
  """What a result depends on besides its configuration: versions and hardware."""
  versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {
    "versions": {"python": platform.python_version(), **versions},
    "hardware": {
      "backend": jax.default_backend(),
      "devices": [device.device_kind for device in jax.devices()],
      "processor": _processor(),
      "cores": cores(),
      "platform": platform.platform(),
    },
    "git_revision": _git_revision(),
  }


def footer(found: Sequence[Mapping[str, Any]]) -> str:
  """One sentence: where results were made, how long it took, and at which revision."""

  def listed(values: Iterable[str]) -> str:
    return " and ".join(dict.fromkeys(values))

  seconds = sum(one["seconds"] or 0 for one in found)
  time = f"{seconds:.0f} s" if seconds < 600 else f"{seconds / 3600:.1f} h"
  hardware = [one["hardware"] for one in found]
  machines = listed(
    f"{h['cores']} core{'s' * (h['cores'] > 1)} of {h['processor']}"
    if h["backend"] == "cpu"
    else f"{len(h['devices'])} × {h['devices'][0]}"
    for h in hardware
  )
  versions = listed(
    f"JAX {v['jax']}, Flax {v['flax']}, Optax {v['optax']}, Python {v['python']}"
    for v in (one["versions"] for one in found)
  )
  revisions = ", ".join(sorted({str(one["git_revision"]) for one in found}))
  took = f"Time: {time} on {machines}" if seconds else f"On {machines}"
  return f"{took}; {versions}; revision {revisions}."


def cores() -> int:
  """How many processors this process may use."""
  if hasattr(os, "sched_getaffinity"):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _processor() -> str:
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
  return names[0] if names else platform.processor()


def _git_revision() -> str | None:
  """The commit, with "-dirty" if code differs from it; None without git."""
  root = DIRECTORY.parents[1]

  def git(*arguments: str) -> str:
    done = subprocess.run(
      ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()

  try:
    revision = git("rev-parse", "HEAD")
    # Results may be written while others are still being computed.
    code = git("status", "--porcelain", "--untracked-files=no", ":!experiments/results")
  except (OSError, subprocess.CalledProcessError):
    return None
  return f"{revision}-dirty" if code else revision


def write_atomically(path: pathlib.Path, text: str) -> pathlib.Path:
  """Writes a file that is never seen half written, whatever is killed when.

  Raises:
    OSError: if it cannot be written; what was there before is kept.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
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
  return path


def write_json(path: pathlib.Path, value: Any) -> pathlib.Path:
  """Writes JSON atomically; what is not finite becomes null, as JSON has no NaN."""
  text = json.dumps(plain(value), indent=1, allow_nan=False)
  return write_atomically(path, text + "\n")


def plain(value: Any) -> Any:
  """A value as JSON stores it."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    value = dataclasses.asdict(value)
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [plain(item) for item in value]
  if isinstance(value, pathlib.Path):
    return str(value)
  if isinstance(value, jax.Array | np.ndarray | np.generic):
    return plain(value.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
