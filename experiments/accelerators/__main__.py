"""`python -m experiments.accelerators` is `python -m experiments accelerators`."""

import sys

from experiments.__main__ import main

main("accelerators", *sys.argv[1:])
