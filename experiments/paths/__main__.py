"""`python -m experiments.paths` is `python -m experiments paths`."""

import sys

from experiments.__main__ import main

main(["paths", *sys.argv[1:]])
