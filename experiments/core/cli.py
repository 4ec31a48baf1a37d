"""The command line of all experiments: the same words for the same options."""

from collections.abc import Callable, Mapping
import dataclasses
import pathlib
import sys
from typing import Annotated, Any

import tyro

from experiments.core import results


@dataclasses.dataclass(frozen=True)
class Places:
  """Where an experiment reads and writes.

  Attributes:
    output: run directory; by default below runs/.
    results: where tables and figures go; by default experiments/results/.
    data_dir: where prepared data sets are; by default RVSM_DATA_DIR.
    source: a folder with a data set's original files.
    quick: small sizes, in about two minutes on two cores; all stays in the run.
    checkpoint_seconds: at most about so much work is lost to a kill.
  """

  output: pathlib.Path | None = None
  results: pathlib.Path | None = None
  data_dir: pathlib.Path | None = None
  source: pathlib.Path | None = None
  quick: bool = False
  checkpoint_seconds: float = 20.0

  def run(self, *names: str) -> pathlib.Path:
    """The run directory; its default is `runs/`, the names, and -quick."""
    *folders, last = names
    name = f"{last}-quick" if self.quick else last
    return self.output or pathlib.Path("runs", *folders, name)

  def report(self, experiment: str, run: pathlib.Path) -> pathlib.Path:
    """Where the report goes; that of a quick run stays in its directory."""
    if self.results is not None:
      return self.results
    return run if self.quick else results.DIRECTORY / experiment


Common = Annotated[Places, tyro.conf.OmitArgPrefixes]
Command = Callable[..., Any]


def run(
  name: str,
  commands: Command | Mapping[str, Command],
  arguments: list[str] | None = None,
) -> None:
  """Runs an experiment's command; errors that explain themselves end with one line."""
  arguments = sys.argv[1:] if arguments is None else arguments
  prog = f"python -m experiments {name}"
  if isinstance(commands, Mapping):
    word = arguments[0] if arguments and arguments[0] in commands else ""
    if word:
      prog, arguments = f"{prog} {word}", arguments[1:]
    command = commands[word]
  else:
    command = commands
  try:
    tyro.cli(command, prog=prog, args=arguments)
  except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
    sys.exit(str(error))
