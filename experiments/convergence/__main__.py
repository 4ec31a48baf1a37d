"""`python -m experiments.convergence` is `python -m experiments convergence`."""

from experiments import convergence
from experiments.core import cli

cli.run("convergence", convergence.main)
