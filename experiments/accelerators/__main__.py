"""`python -m experiments.accelerators` is `python -m experiments accelerators`."""

from experiments.__main__ import main

main("accelerators")
