"""The command line: `python -m experiments.benchmark --help`."""

import dataclasses
import os
import pathlib
import shlex
import sys
import time
from typing import Annotated, Any, Literal

import tyro

from experiments import _run
from experiments.benchmark import maps, report, steps, subjects, timing, updates

_RESULTS = pathlib.Path(__file__).parents[1] / "results" / "benchmark"
Part = Literal["updates", "steps", "maps"]


@dataclasses.dataclass(frozen=True)
class Config:
  """What is measured, and how often."""

  parts: tuple[Part, ...] = ("updates", "steps", "maps")
  """Of what."""
  trees: tuple[str, ...] = ("ResNet-18", "dense layer", "curves CNN")
  """Weights of the updates; "nine times ResNet-18" has 100 million, for a GPU."""
  optimizers: tuple[str, ...] = tuple(subjects.SUBJECTS)
  """Names of those whose update is compared with that of sgd."""
  step_optimizers: tuple[str, ...] = (
    "sgd, momentum",
    "rvsm l0",
    "proximal TL1",
    "proximal integrated TL1",
  )
  """Names of those whose training step is."""
  pairs: int = 21
  """Pairs of neighbouring calls of each update and map."""
  step_pairs: int = 5
  """Pairs of training steps."""
  batch_size: int = 64
  """Images in a training step."""
  map_size: int = 2**24
  """Numbers that the proximal maps are applied to."""
  clock: timing.Clock = "wall"
  """"processor" counts the time of this process alone: for a busy machine."""


QUICK = Config(
  trees=("dense layer",),
  step_optimizers=("rvsm l0",),
  pairs=5,
  step_pairs=2,
  batch_size=8,
  map_size=2**20,
)


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes],
  results: pathlib.Path = _RESULTS,
  torch: bool = False,
  quick: bool = False,
) -> None:
  """Measures speed and memory: JSON and a Markdown table.

  Args:
    config: what is measured.
    results: where the report goes.
    torch: compare the training step with that of PyTorch, which must be installed.
    quick: small sizes, in a minute on two cores; the report goes to
      runs/benchmark-quick.
  """
  if quick:
    config = dataclasses.replace(QUICK, parts=config.parts, clock=config.clock)
    results = pathlib.Path("runs", "benchmark-quick")
  began = time.monotonic()
  flags = os.environ.get("XLA_FLAGS")
  arguments = ["python", "-m", "experiments.benchmark", *sys.argv[1:]]
  command = shlex.join([f"XLA_FLAGS={flags}", *arguments] if flags else arguments)
  result: dict[str, Any] = {
    "experiment": "benchmark",
    "command": command,
    "config": dataclasses.asdict(config),
    **_run.environment(),
    **measure(config, torch),
  }
  result["seconds"] = time.monotonic() - began
  file = results / "benchmark.json"
  _run.write_json(file, result)
  _run.announce([file, *report.write(results)])


def measure(config: Config, torch: bool) -> dict[str, Any]:
  """The numbers of all parts."""
  # PyTorch first: a missing package is told before minutes of work.
  out: dict[str, Any] = {}
  pairs, clock = config.pairs, config.clock
  if torch:
    out["torch"] = steps.measure_torch(config.batch_size, config.step_pairs, clock)
  out["updates"] = {}
  if "updates" in config.parts:
    for tree in config.trees:
      _run.console.print(f"Updates of the weights: {tree}")
      out["updates"][tree] = updates.measure(tree, config.optimizers, pairs, clock)
  if "steps" in config.parts:
    _run.console.print("Training steps of the curves CNN")
    out["steps"] = steps.measure(
      config.step_optimizers, config.batch_size, config.step_pairs, clock
    )
  if "maps" in config.parts:
    _run.console.print("Proximal maps")
    out["maps"] = maps.measure(config.map_size, pairs, clock)
  return out


if __name__ == "__main__":
  tyro.cli(main, prog="python -m experiments.benchmark")
