"""The command line: `python -m experiments.convergence --help`."""

import dataclasses
import pathlib
import time
from typing import Annotated, Any

import jax
import rich.progress
import tyro

from experiments import _run
from experiments.convergence import counterexamples, figures, lemmas, report, studies

_RESULTS = pathlib.Path(__file__).parents[1] / "results" / "convergence"


def main(
  config: Annotated[studies.Config, tyro.conf.OmitArgPrefixes],
  results: pathlib.Path = _RESULTS,
  quick: bool = False,
) -> None:
  """Checks the theory of Dinh & Xin (2020): JSON, Markdown and figures.

  Args:
    config: what is run.
    results: where the report goes.
    quick: a smaller grid, in a minute on two cores, whatever else is set but the
      seed; its report goes to runs/convergence-quick.
  """
  if quick:
    config = dataclasses.replace(studies.QUICK, seed=config.seed)
    results = pathlib.Path("runs", "convergence-quick")
  began = time.monotonic()
  # Before the figures, which git knows, are written.
  environment = _run.environment()
  with jax.enable_x64(True), rich.progress.Progress(console=_run.console) as bar:
    task = bar.add_task("convergence", total=3 * len(studies.PENALTIES) + 3)

    def done(value: Any) -> Any:
      bar.advance(task)
      return value

    result: dict[str, Any] = {
      "experiment": "convergence",
      "config": dataclasses.asdict(config),
      "lemmas": done(lemmas.check(config.samples, config.seed)),
      "inside": [
        done(studies.inside(config, penalty, ordering))
        for penalty in studies.PENALTIES
        for ordering in studies.ORDERINGS
      ],
      "counterexamples": done(
        [counterexamples.summary(example) for example in counterexamples.EXAMPLES]
      ),
      "error_against_beta": done(studies.error_against_beta(config)),
      "outside": {
        penalty: done(studies.outside(config, penalty)) for penalty in studies.PENALTIES
      },
    }
    figures.draw_descent(results / "descent.png", config)
    figures.draw_error(results / "error.png", result["error_against_beta"])
    figures.draw_shrinkage(results / "shrinkage.png", config)
    figures.draw_outside(results / "outside.png", result["outside"])
  result |= {**environment, "seconds": time.monotonic() - began}
  _run.write_json(results / "convergence.json", result)
  _run.write_atomically(results / "convergence.md", report.markdown(result))
  _run.announce([results])


if __name__ == "__main__":
  tyro.cli(main, prog="python -m experiments.convergence")
