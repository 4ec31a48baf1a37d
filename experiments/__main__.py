"""`python -m experiments NAME ...` runs an experiment; `NAME --help` says how.

Each is a module whose command is `main`, or several in `COMMANDS`, by name.
"""

import importlib
import sys

from experiments.core import cli

EXPERIMENTS = {
  "curves": "Xue & Xin (2019): planar shapes and alphabets",
  "convergence": "Dinh & Xin (2020), the theory",
  "cifar": "Dinh & Xin (2020), section 6: VGG-16 and ResNet-18 on CIFAR-10",
  "integrated": "Ma et al. (2019): integrated transformed l1",
  "frontier": "accuracy against zeros, ours and pruning",
  "paths": "whole regularisation paths by one compiled program",
  "benchmark": "speed and memory of the transformations",
  "accelerators": "what the compilers of TPUs and GPUs make of the library",
  "compaction": "networks without their dead units",
  "export": "sizes of sparse checkpoints, and when BCOO is faster",
  "fista": "convex problems: FISTA against others",
  "two_of_four": "half of the weights zero, anywhere or two of any four",
  "distributed": "weights spread over devices and hosts",
  "survival": "kills experiments and compares what they end with",
  "report": "rebuilds every table and figure from its JSON",
}


def main(*arguments: str) -> None:
  """Runs the experiment that the first argument names."""
  if not arguments or arguments[0] not in EXPERIMENTS:
    lines = [f"  {name:12} {text}" for name, text in EXPERIMENTS.items()]
    known = "\n".join(["python -m experiments NAME --help", "", *lines])
    helped = not arguments or arguments[0] in ("--help", "-h")
    sys.exit(print(known) if helped else known)
  name, *rest = arguments
  module = importlib.import_module(f"experiments.{name}")
  cli.run(name, getattr(module, "COMMANDS", module.main), rest)


if __name__ == "__main__":
  main(*sys.argv[1:])
