"""`python -m experiments.cifar` is `python -m experiments cifar`."""

from experiments.__main__ import main

main("cifar")
