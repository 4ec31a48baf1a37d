"""One style for the figures of all experiments."""

from collections.abc import Iterator
import contextlib
import pathlib
from typing import Any

from cycler import cycler
import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
import numpy as np

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW, GREY = COLORS = (
  "#0072B2",
  "#D55E00",
  "#009E73",
  "#CC79A7",
  "#56B4E9",
  "#E69F00",
  "#555555",
)

_STYLE: dict[Any, Any] = {
  "font.size": 10,
  "axes.titlesize": 11,
  "axes.titlelocation": "left",
  "axes.spines.top": False,
  "axes.spines.right": False,
  "axes.edgecolor": "#888888",
  "axes.grid": True,
  "axes.axisbelow": True,
  "axes.prop_cycle": cycler(color=COLORS),
  "grid.color": "#E6E6E6",
  "legend.frameon": False,
  "lines.linewidth": 1.8,
  "xtick.color": "#444444",
  "ytick.color": "#444444",
}


@contextlib.contextmanager
def figure(
  path: pathlib.Path,
  rows: int = 1,
  columns: int = 1,
  *,
  width: float = 4.6,
  height: float = 3.4,
) -> Iterator[np.ndarray]:
  """Yields (rows, columns) axes to draw on, each so large in inches; writes a PNG.

  The same drawing gives the same bytes.
  """
  with matplotlib.rc_context(_STYLE):
    drawing = Figure((width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(drawing)
    yield drawing.subplots(rows, columns, squeeze=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.savefig(path, dpi=150, metadata={"Software": None})


def percent_axis(axes: Axes, decimals: int | None = None) -> None:
  """Labels the y axis, of shares, in per cent."""
  axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals))
