"""`python -m experiments.cifar` is `python -m experiments cifar`."""

import sys

from experiments.__main__ import main

main("cifar", *sys.argv[1:])
