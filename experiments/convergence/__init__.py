"""Dinh & Xin (2020), the theory: Theorem 1 and what belongs to it, in numbers.

The population loss of the non-overlap network and its gradient have closed forms, so
RVSM can be run on them exactly, in double precision: it is the library's own `rvsm`,
after `optax.sgd`. What the paper claims is counted over a grid inside the conditions
of Theorem 1; outside them, a scan shows what breaks first. Everywhere ‖w*‖ = 1.

`python -m experiments convergence --help` shows what can be set.
"""

from collections.abc import Callable
import dataclasses
import functools
import time
from typing import Annotated, Any

import jax
import rich.progress
import tyro

from experiments.convergence import counterexamples, problem, studies
from experiments.convergence.report import rebuild
from experiments.core import cli, results
from experiments.core.run import Run


def parts(config: studies.Config) -> dict[str, Callable[[], Any]]:
  """All that is run, by name; each is finished before the next one begins."""
  found: dict[str, Callable[[], Any]] = {
    "lemmas": lambda: problem.check(config.samples, config.seed),
    "counterexamples": counterexamples.summaries,
  }
  for study in (studies.error_against_beta, studies.descent, studies.shrinkage):
    found[study.__name__] = functools.partial(study, config)
  for penalty in studies.PENALTIES:
    for ordering in studies.ORDERINGS:
      found[f"inside-{penalty}-{ordering}"] = functools.partial(
        studies.inside, config, penalty, ordering
      )
    found[f"outside-{penalty}"] = functools.partial(studies.outside, config, penalty)
  return found


def main(
  config: Annotated[studies.Config, tyro.conf.OmitArgPrefixes], places: cli.Common
) -> None:
  """Checks the theory of Dinh & Xin (2020): JSON, Markdown and figures.

  Args:
    config: what is run.
    places: where it reads and writes.
  """
  if places.quick:
    config = dataclasses.replace(studies.QUICK, seed=config.seed)
  directory = places.run("convergence")
  folder = places.report("convergence", directory)
  began = time.monotonic()
  with Run(directory, config) as run, jax.enable_x64(True):
    shown = rich.progress.track(
      list(parts(config).items()), "convergence", console=results.console
    )
    found = {name: run.once(name, compute) for name, compute in shown}
  inside = [found.pop(name) for name in list(found) if name.startswith("inside")]
  outside = {p: found.pop(f"outside-{p}") for p in studies.PENALTIES}
  result = results.result(
    "convergence",
    config,
    time.monotonic() - began,
    **found,
    inside=inside,
    outside=outside,
  )
  results.publish(folder / "convergence.json", result, rebuild)
