"""`python -m experiments.convergence` is `python -m experiments convergence`."""

from experiments.__main__ import main

main("convergence")
