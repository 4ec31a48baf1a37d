"""`python -m experiments.frontier` is `python -m experiments frontier`."""

import sys

from experiments.__main__ import main

main("frontier", *sys.argv[1:])
