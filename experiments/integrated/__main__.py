"""`python -m experiments.integrated` is `python -m experiments integrated`."""

from experiments.__main__ import main

main("integrated")
