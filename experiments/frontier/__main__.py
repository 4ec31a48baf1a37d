"""`python -m experiments.frontier` is `python -m experiments frontier`."""

from experiments.__main__ import main

main("frontier")
