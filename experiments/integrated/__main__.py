"""`python -m experiments.integrated` is `python -m experiments integrated`."""

import sys

from experiments.__main__ import main

main("integrated", *sys.argv[1:])
