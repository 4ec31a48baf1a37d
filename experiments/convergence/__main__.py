"""`python -m experiments.convergence` is `python -m experiments convergence`."""

import sys

from experiments.__main__ import main

main("convergence", *sys.argv[1:])
