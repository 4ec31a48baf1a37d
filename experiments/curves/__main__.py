"""`python -m experiments.curves` is `python -m experiments curves`."""

from experiments.__main__ import main

main("curves")
