"""`python -m experiments.accelerators` is `python -m experiments accelerators`."""

from experiments import accelerators
from experiments.core import cli

cli.run("accelerators", accelerators.COMMANDS)
