"""Dinh & Xin (2020), the theory: Theorem 1 and what belongs to it, in numbers.

The population loss of the non-overlap network and its gradient have closed forms, so
RVSM can be run on them exactly, in double precision: it is the library's own `rvsm`,
after `optax.sgd`. What the paper claims is counted over a grid inside the conditions
of Theorem 1; outside them, a scan shows what breaks first. Everywhere ‖w*‖ = 1.

`python -m experiments.convergence --help` shows what can be set.
"""
