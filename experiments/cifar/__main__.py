"""`python -m experiments.cifar` is `python -m experiments cifar`."""

from experiments import cifar
from experiments.core import cli

cli.run("cifar", cifar.main)
