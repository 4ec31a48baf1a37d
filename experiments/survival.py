"""Kills experiments at random moments and compares what they end with.

`python -m experiments survival --help`. Each experiment is trained once undisturbed.
Then the same command is started again and again, in one directory, and ended with
SIGKILL at a random moment, until it gets to its end: its results must be the same
numbers, and its directory have the same files.
"""

from collections.abc import Callable
import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import numpy as np
import tyro

from experiments.core import cli, results
from experiments.core.tables import table

Name = Literal["curves", "integrated", "cifar", "convergence"]

_ROOT = pathlib.Path(__file__).parents[1]

# Sizes at which a training is about as long as the start of its process, which would
# otherwise be what most kills hit.
_COMMANDS: dict[Name, str] = {
  "curves": "experiments curves --train-size 200 --epochs 2 --batch-size 20"
  " --checkpoint-seconds 0 --results {results} --output {output}",
  "integrated": "experiments integrated --data digits --methods l1 --seeds 0"
  " --epochs 3 --search-epochs 1 --results {results} --output {output}",
  "cifar": "experiments cifar --rows resnet18-l0 --width 0.0625 --epochs 2"
  " --batch-size 20 --train-size 200 --test-size 100 --checkpoint-seconds 0"
  " --results {results} --output {output}",
  "convergence": "experiments convergence --samples 1000 --results {results}"
  " --output {output}",
}

# What a result says of the process that wrote it.
_VOLATILE = ("seconds", "git_revision", "hardware", "versions")


class Child(Protocol):
  """A process, as `subprocess.Popen` is one."""

  def wait(self, timeout: float | None = None) -> int:
    """The exit status; raises `subprocess.TimeoutExpired`."""

  def kill(self) -> None:
    """Sends SIGKILL."""


class Kill(NamedTuple):
  """One kill.

  Attributes:
    seconds: after the start of the process.
    step: of the newest checkpoint there was, of the newest directory of a run; None
      without one.
  """

  seconds: float
  step: int | None


class Outcome(NamedTuple):
  """What came of an experiment.

  Attributes:
    seconds: that it took undisturbed.
    kills: all there were.
    trainings: how many trainings these were spread over, each run to its end.
    differences: between their files and those of the undisturbed one; none if all
      is well.
  """

  seconds: float
  kills: list[Kill]
  trainings: int
  differences: list[str]


def survive(
  start: Callable[[pathlib.Path], Child],
  directory: pathlib.Path,
  kills: int,
  rng: np.random.Generator,
) -> Outcome:
  """Kills a training at random moments, uniform in the time that it takes."""
  whole = directory / "undisturbed"
  began = time.monotonic()
  _require_success(start(whole).wait(), whole)
  seconds = time.monotonic() - began
  done: list[Kill] = []
  differences: list[str] = []
  trainings = 0
  while len(done) < kills:
    trainings += 1
    killed = directory / f"killed{trainings}"
    child = start(killed)
    while len(done) < kills:
      moment = float(rng.uniform(0, seconds))
      if not _kill_after(child, moment):
        break
      done.append(Kill(moment, _newest_step(killed)))
      child = start(killed)
    _require_success(child.wait(), killed)
    differences += compare(whole, killed)
  return Outcome(seconds, done, trainings, differences)


def _kill_after(child: Child, seconds: float) -> bool:
  """Whether a process was still there after so many seconds, and was killed."""
  try:
    child.wait(seconds)
  except subprocess.TimeoutExpired:
    child.kill()
    return child.wait() == -signal.SIGKILL
  return False


def _require_success(status: int, directory: pathlib.Path) -> None:
  if status:
    raise RuntimeError(f"The training in {directory} ended with status {status}.")


def _newest_step(directory: pathlib.Path) -> int | None:
  steps = [
    int(path.name) for path in directory.rglob("checkpoints/*") if path.name.isdecimal()
  ]
  return max(steps, default=None)


def compare(whole: pathlib.Path, killed: pathlib.Path) -> list[str]:
  """How the files of two trainings differ, but for what is of the process alone.

  All names must be the same, and all contents of JSON files.
  """
  ours, theirs = files(killed), files(whole)
  lines = [f"{killed} lacks {name}" for name in sorted(theirs - ours)]
  lines += [f"{killed} has {name} left over" for name in sorted(ours - theirs)]
  for name in sorted(name for name in ours & theirs if name.endswith(".json")):
    pair = [numbers(json.loads((root / name).read_text())) for root in (killed, whole)]
    if pair[0] != pair[1]:
      lines.append(f"{killed / name} has other numbers")
  return lines


def files(directory: pathlib.Path) -> set[str]:
  """Names of all files, in which the numbers of steps are left out.

  Which steps have a checkpoint is a matter of the clock.
  """
  found = set()
  for path in directory.rglob("*"):
    name = str(path.relative_to(directory))
    within = re.match(r"(.*\b(?:checkpoints|digests)/)\d+($|/)", name)
    found.add(within[1] + "STEP" if within else name)
  return found


def numbers(value: Any) -> Any:
  """A result without what is of the process alone."""
  if isinstance(value, dict):
    return {k: numbers(v) for k, v in value.items() if k not in _VOLATILE}
  if isinstance(value, list):
    return [numbers(item) for item in value]
  return value


def command(name: Name, compiled: pathlib.Path) -> Callable[[pathlib.Path], Child]:
  """Starts an experiment, reduced in size, in a process of its own."""

  def start(directory: pathlib.Path) -> Child:
    text = _COMMANDS[name].format(results=directory / "results", output=directory)
    arguments = [sys.executable, "-m", *text.split()]
    environ = {
      "JAX_COMPILATION_CACHE_DIR": str(compiled),
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
      arguments, cwd=_ROOT, env=os.environ | environ, stdout=subprocess.DEVNULL
    )

  return start


def markdown(result: dict[str, Any]) -> str:
  """The table of a result."""
  rows = []
  for name, found in result["experiments"].items():
    steps = [kill["step"] for kill in found["kills"]]
    rows.append(
      [
        name,
        str(len(steps)),
        str(sum(step is not None for step in steps)),
        str(found["trainings"]),
        "none" if not found["differences"] else "; ".join(found["differences"]),
      ]
    )
  head = ["experiment", "kills", "with a checkpoint", "trainings", "differences"]
  total = sum(int(row[1]) for row in rows)
  resumed = sum(int(row[2]) for row in rows)
  return (
    "\n\n".join(
      [
        "# Runs that survive",
        f"{total} kills with SIGKILL, seed {result['config']['seed']}, at moments drawn"
        " uniformly from the time that the undisturbed training takes."
        f" {resumed} of them came when there was a checkpoint to resume from; after the"
        f" other {total - resumed} the training, or what of it was not finished, began"
        " again. After each kill the same command was run again in the same directory;"
        " one that got to its end was compared with the undisturbed training: the same"
        " names of files, so that nothing is left over, and the same content of every"
        f" JSON file but for {', '.join(_VOLATILE)}. The trainings are reduced in"
        " size.",
        table(head, rows),
        results.footer([result]),
      ]
    )
    + "\n"
  )


def write(directory: pathlib.Path) -> list[pathlib.Path]:
  """Writes the table of the result in a directory, and returns its path."""
  text = markdown(results.read(directory / "survival.json"))
  return [results.write_atomically(directory / "survival.md", text)]


@dataclasses.dataclass(frozen=True)
class Config:
  """What is killed.

  Data sets, CIFAR-10 among them, are looked for in the directory that the environment
  variable RVSM_DATA_DIR names.

  Attributes:
    experiments: which.
    kills: of each of them.
    seed: of the moments.
  """

  experiments: tuple[Name, ...] = ("curves", "integrated", "cifar", "convergence")
  kills: tuple[int, ...] = (6, 6, 6, 2)
  seed: int = 0


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes], places: cli.Common
) -> None:
  """Kills experiments at random moments and compares what they end with.

  Args:
    config: what is killed.
    places: where it writes.
  """
  if places.quick:
    config = Config(("convergence",), (2,), config.seed)
  rng = np.random.default_rng(config.seed)
  folder = places.report("survival", places.run("survival"))
  found: dict[str, Any] = {}
  with tempfile.TemporaryDirectory() as scratch:
    root = pathlib.Path(scratch)
    for name, count in zip(config.experiments, config.kills, strict=True):
      results.console.rule(name)
      start = command(name, root / "compiled")
      outcome = survive(start, root / name, count, rng)
      found[name] = outcome._asdict() | {"kills": [k._asdict() for k in outcome.kills]}
      # After every experiment, since all of them take long.
      result = results.result("survival", config, None, experiments=found)
      results.write_json(folder / "survival.json", result)
      files = write(folder)
  results.show(files)
  if any(one["differences"] for one in found.values()):
    sys.exit("A training that was killed ended otherwise than one that was not.")


rebuild = write

COMMANDS = main

if __name__ == "__main__":
  cli.run("survival", COMMANDS, sys.argv[1:])
