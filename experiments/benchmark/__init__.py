"""Speed and memory of the transformations, as ratios to plain SGD in one process."""

import dataclasses
import os
import shlex
import sys
import time
from typing import Annotated, Any, Literal

import tyro

from experiments.benchmark import maps, report, steps, subjects, updates
from experiments.core import cli, results, timing

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
  places: cli.Common,
  torch: bool = False,
) -> None:
  """Measures speed and memory: JSON and a Markdown table.

  Args:
    config: what is measured.
    places: where it writes.
    torch: compare the training step with that of PyTorch, which must be installed.
  """
  if places.quick:
    config = dataclasses.replace(QUICK, parts=config.parts, clock=config.clock)
  began = time.monotonic()
  flags = os.environ.get("XLA_FLAGS")
  options = [word for word in sys.argv[1:] if word != "benchmark"]
  arguments = ["python", "-m", "experiments", "benchmark", *options]
  measured = measure(config, torch)
  result = results.result(
    "benchmark",
    config,
    time.monotonic() - began,
    command=shlex.join([f"XLA_FLAGS={flags}", *arguments] if flags else arguments),
    **measured,
  )
  folder = places.report("benchmark", places.run("benchmark"))
  results.write_json(folder / "benchmark.json", result)
  results.show(report.write(folder))


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
      results.console.print(f"Updates of the weights: {tree}")
      out["updates"][tree] = updates.measure(tree, config.optimizers, pairs, clock)
  if "steps" in config.parts:
    results.console.print("Training steps of the curves CNN")
    out["steps"] = steps.measure(
      config.step_optimizers, config.batch_size, config.step_pairs, clock
    )
  if "maps" in config.parts:
    results.console.print("Proximal maps")
    out["maps"] = maps.measure(config.map_size, pairs, clock)
  return out


rebuild = report.rebuild

COMMANDS = main
