"""`python -m experiments.frontier` is `python -m experiments frontier`."""

from experiments import frontier
from experiments.core import cli

cli.run("frontier", frontier.main)
