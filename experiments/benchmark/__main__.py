"""`python -m experiments.benchmark` is `python -m experiments benchmark`."""

import sys

from experiments.__main__ import main

main(["benchmark", *sys.argv[1:]])
