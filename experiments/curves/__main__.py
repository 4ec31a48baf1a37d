"""`python -m experiments.curves` is `python -m experiments curves`."""

from experiments import curves
from experiments.core import cli

cli.run("curves", curves.COMMANDS)
