"""Kills experiments at random moments and compares what they end with.

`python -m experiments survival --help`. Each experiment is trained once undisturbed.
Then the same command is started again and again, in one directory, and ended with
SIGKILL at a random moment, until it gets to its end: its results must be the same
numbers, and its directory have the same files.
"""

from collections.abc import Callable
import dataclasses
import functools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro

from experiments.core import cli, results
from experiments.core.tables import Columns, of_rows

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


class Outcome(NamedTuple):
  """What came of an experiment.

  Attributes:
    seconds: that it took undisturbed.
    kills: "seconds" after the start of the process, and the "step" of the newest
      checkpoint there was, if any.
    trainings: how many trainings these were spread over, each run to its end.
    differences: between their files and those of the undisturbed one; none if all
      is well.
  """

  seconds: float
  kills: list[dict[str, Any]]
  trainings: int
  differences: list[str]


def survive(
  start: Callable[[pathlib.Path], Any],
  directory: pathlib.Path,
  kills: int,
  rng: np.random.Generator,
) -> Outcome:
  """Kills a training at random moments, uniform in the time that it takes."""
  whole = directory / "undisturbed"
  began = time.monotonic()
  _require_success(start(whole).wait(), whole)
  seconds = time.monotonic() - began
  done: list[dict[str, Any]] = []
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
      done.append({"seconds": moment, "step": _newest_step(killed)})
      child = start(killed)
    _require_success(child.wait(), killed)
    differences += compare(whole, killed)
  return Outcome(seconds, done, trainings, differences)


def _kill_after(child: Any, seconds: float) -> bool:
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
    if numbers(killed / name) != numbers(whole / name):
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


def numbers(file: pathlib.Path) -> Any:
  """What a JSON file says, without what is of the process alone."""
  return json.loads(
    file.read_text(),
    object_hook=lambda found: {k: v for k, v in found.items() if k not in _VOLATILE},
  )


def start(
  name: Name, compiled: pathlib.Path, directory: pathlib.Path
) -> subprocess.Popen:
  """A process with an experiment, reduced in size, that keeps compiled programs."""
  text = _COMMANDS[name].format(results=directory / "results", output=directory)
  environ = {
    "JAX_COMPILATION_CACHE_DIR": str(compiled),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  return subprocess.Popen(
    [sys.executable, "-m", *text.split()],
    cwd=_ROOT,
    env=os.environ | environ,
    stdout=subprocess.DEVNULL,
  )


_COLUMNS: Columns = {
  "experiment": lambda item: item[0],
  "kills": lambda item: str(len(item[1]["kills"])),
  "with a checkpoint": lambda item: str(
    sum(kill["step"] is not None for kill in item[1]["kills"])
  ),
  "trainings": lambda item: str(item[1]["trainings"]),
  "differences": lambda item: "; ".join(item[1]["differences"]) or "none",
}


def markdown(result: dict[str, Any]) -> str:
  """The table of a result."""
  found = result["experiments"]
  steps = [kill["step"] for one in found.values() for kill in one["kills"]]
  resumed = sum(step is not None for step in steps)
  parts = [
    "# Runs that survive",
    f"{len(steps)} kills with SIGKILL, seed {result['config']['seed']}, at moments"
    " drawn uniformly from the time that the undisturbed training takes."
    f" {resumed} of them came when there was a checkpoint to resume from; after the"
    f" other {len(steps) - resumed} the training, or what of it was not finished, began"
    " again. After each kill the same command was run again in the same directory;"
    " one that got to its end was compared with the undisturbed training: the same"
    " names of files, so that nothing is left over, and the same content of every"
    f" JSON file but for {', '.join(_VOLATILE)}. The trainings are reduced in size.",
    of_rows(_COLUMNS, found.items()),
    results.footer([result]),
  ]
  return "\n\n".join(parts) + "\n"


def rebuild(directory: pathlib.Path) -> list[pathlib.Path]:
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
      command = functools.partial(start, name, root / "compiled")
      found[name] = survive(command, root / name, count, rng)._asdict()
      # After every experiment, since all of them take long.
      result = results.result("survival", config, None, experiments=found)
      results.write_json(folder / "survival.json", result)
      files = rebuild(folder)
  results.show(files)
  if any(one["differences"] for one in found.values()):
    sys.exit("A training that was killed ended otherwise than one that was not.")


if __name__ == "__main__":
  cli.run("survival", main)
