"""`python -m experiments.curves` is `python -m experiments curves`."""

import sys

from experiments.__main__ import main

main("curves", *sys.argv[1:])
