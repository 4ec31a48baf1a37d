"""The numbers of Xue & Xin (2019), as printed; shares in per cent.

Their sparsity is the share of the weights w of the dense layer below a scale of
10^-n (10^-10 in Table 3), their accuracy the test accuracy of w.
"""

from typing import NamedTuple


class Row(NamedTuple):
  """A row of Tables 1 and 2, for lam = 0.0005 and beta = 0.1; a is TL1's, or 1."""

  penalty: str
  a: float
  sparsity: float
  accuracy: float


TABLES = {
  "alphabets": (
    1,
    (
      Row("l0", 1.0, 86.1, 99.4),
      Row("transformed_l1", 0.01, 87.6, 99.0),
      Row("transformed_l1", 0.1, 85.8, 99.7),
      Row("transformed_l1", 1.0, 78.1, 99.3),
      Row("transformed_l1", 100.0, 82.0, 99.3),
      Row("l1", 1.0, 76.5, 99.0),
    ),
  ),
  "planar_shapes": (
    2,
    (
      Row("l0", 1.0, 90.2, 99.9),
      Row("transformed_l1", 0.01, 83.5, 99.1),
      Row("transformed_l1", 0.1, 87.6, 99.8),
      Row("transformed_l1", 1.0, 74.9, 99.9),
      Row("transformed_l1", 100.0, 75.0, 99.9),
      Row("l1", 1.0, 74.6, 99.6),
    ),
  ),
}

# Shares below 1e-2, 1e-3, 1e-4, 1e-5 and 1e-10, and accuracy, by a and algorithm.
TABLE_3 = {
  (0.01, "RVSM"): (99.7, 96.0, 91.3, 88.6, 84.9, 99.5),
  (0.01, "SGD"): (99.9, 99.9, 45.9, 5.44, 1e-5, 96.7),
  (100.0, "RVSM"): (99.9, 97.5, 92.7, 88.5, 80.3, 99.3),
  (100.0, "SGD"): (99.9, 99.7, 48.1, 6.68, 1e-5, 99.0),
}

# Sign changes in each convolution, number and per cent, by a.
TABLE_4 = {
  0.01: ((72, 25.0), (1120, 12.2), (769, 8.34)),
  1.0: ((45, 15.6), (1133, 12.3), (784, 8.51)),
  100.0: ((35, 12.2), (1001, 10.9), (995, 10.8)),
}


def row(data: str, penalty: str, a: float) -> tuple[int, Row] | None:
  """The number of the table and the row of a penalty; None if there is none."""
  number, rows = TABLES.get(data, (0, ()))
  return next(((number, r) for r in rows if (r.penalty, r.a) == (penalty, a)), None)
