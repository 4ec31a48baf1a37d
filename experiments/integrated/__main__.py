"""`python -m experiments.integrated` is `python -m experiments integrated`."""

from experiments import integrated
from experiments.core import cli

cli.run("integrated", integrated.main)
