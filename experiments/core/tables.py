"""Markdown tables and the numbers in them, the same for all experiments."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# By the header of each column the format, or a function, of a row.
Columns = Mapping[str, str | Callable[[Any], str]]


def percent(share: float | None, decimals: int = 2) -> str:
  """A share in per cent; a dash for what there is not.

  What is not all, or not none, is never rounded to 100 or 0.
  """
  if share is None:
    return "–"
  text = f"{100 * share:.{decimals}f}"
  while share not in (0.0, 1.0) and float(text) in (0.0, 100.0) and decimals < 9:
    decimals += 1
    text = f"{100 * share:.{decimals}f}"
  return f"{text}%"


def with_error(values: np.ndarray, decimals: int) -> str:
  """The mean and its standard error; of a single number, that alone."""
  text = f"{np.mean(values):.{decimals}f}"
  if len(values) == 1:
    return text
  return f"{text} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.{decimals}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table whose columns are aligned as text, too."""
  widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

  def line(cells: Sequence[str]) -> str:
    first, *rest = cells
    padded = [first.ljust(widths[0])]
    padded += [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
    return f"| {' | '.join(padded)} |"

  rule = [":" + "-" * (widths[0] - 1), *("-" * (w - 1) + ":" for w in widths[1:])]
  return "\n".join(map(line, [header, rule, *rows]))


def of_rows(columns: Columns, rows: Iterable[Any]) -> str:
  """A table with a line for each row, such as a dictionary for the formats."""
  kinds = columns.values()
  cells = [
    [kind.format(**row) if isinstance(kind, str) else kind(row) for kind in kinds]
    for row in rows
  ]
  return table([*columns], cells)


def of_cells(rows: Sequence[Mapping[str, str]]) -> str:
  """A table of rows that have their cells by the header of the column."""
  return table([*rows[0]], [[*row.values()] for row in rows])
