"""What exact export is worth: sizes of checkpoints, and when BCOO is faster.

`python -m experiments export` measures both.
"""

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
import tempfile
import time
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
import tyro

from experiments.core import backend, cli, plots, results, tables, timing
from rvsm_jax import export


@dataclasses.dataclass(frozen=True)
class Config:
  """What is measured.

  Attributes:
    shapes: of the kernels (in, out).
    batches: numbers of rows that a kernel is multiplied with.
    shares: of zeros, ascending.
    repeats: of each product.
    seed: of the numbers and of the places of zeros.
  """

  shapes: tuple[tuple[int, int], ...] = ((256, 256), (1024, 1024), (10816, 64))
  batches: tuple[int, ...] = (1, 64)
  shares: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
  repeats: int = 9
  seed: int = 0


_QUICK = Config(shapes=((256, 256),), shares=(0.9, 0.99, 0.999), repeats=5)


def kernel(shape: tuple[int, int], share: float, seed: int) -> np.ndarray:
  """Normal numbers, of which that share, anywhere, is zero."""
  rng = np.random.default_rng(seed)
  x = rng.normal(size=shape).astype(np.float32)
  x.reshape(-1)[rng.permutation(x.size)[: round(share * x.size)]] = 0
  return x


def sizes(config: Config) -> list[dict[str, Any]]:
  """Bytes of a checkpoint of the last kernel and a bias, over those of a dense one."""
  shape = config.shapes[-1]
  rows = []
  with tempfile.TemporaryDirectory() as folder:
    dense, sparse = (pathlib.Path(folder, name) for name in ("dense", "sparse"))
    for dtype in (jnp.float32, jnp.bfloat16):
      for share in config.shares:
        params = {
          "kernel": kernel(shape, share, config.seed).astype(dtype),
          "bias": np.ones(shape[1], dtype),
        }
        safetensors.numpy.save_file(params, dense)
        export.save(sparse, params)
        bytes_ = {file.name: file.stat().st_size for file in (dense, sparse)}
        rows.append({"dtype": jnp.dtype(dtype).name, "share": share, **bytes_})
  return rows


def products(config: Config) -> list[dict[str, Any]]:
  """How much faster `x @ kernel` is with BCOO than with the dense kernel.

  The two are run in turns; the speedup is the median over the turns of the ratio of
  the processor times.
  """
  rows = []
  for shape in config.shapes:
    for batch in config.batches:
      rng = np.random.default_rng(config.seed)
      x = jnp.asarray(rng.normal(size=(batch, shape[0])), jnp.float32)
      for share in config.shares:
        dense = jnp.asarray(kernel(shape, share, config.seed))
        sparse = export.to_bcoo(dense, min_sparsity=0.0)
        found = _speedup(dense, sparse, x, config.repeats)
        rows.append({"shape": shape, "batch": batch, "share": share, **found})
        results.console.print(rows[-1])
  return rows


def _speedup(dense: Any, sparse: Any, x: jax.Array, repeats: int) -> dict[str, Any]:
  """Processor time of the dense product over that of the sparse one."""
  multiply = jax.jit(lambda x, w: x @ w)

  def several(w: Any) -> tuple[Callable[[], None], int]:
    jax.block_until_ready(multiply(x, w))
    start = time.process_time()
    jax.block_until_ready([multiply(x, w) for _ in range(3)])
    once = (time.process_time() - start) / 3
    # As many products in one measurement as take the clock some milliseconds.
    number = max(1, round(5e-3 / once))

    def products() -> None:
      for _ in range(number):
        jax.block_until_ready(multiply(x, w))

    return products, number

  (before, m), (after, n) = several(dense), several(sparse)
  found = timing.compare(after, before, repeats, "processor")
  return {
    "speedup": found.ratio * n / m,
    "quartiles": [quartile * n / m for quartile in found.quartiles],
  }


def break_even(shares: Sequence[float], speedups: Sequence[float]) -> float | None:
  """The share of zeros from which on BCOO is faster; None if it never is.

  Between the measured shares both logarithms, that of the speedup and that of the
  share of non-zeros, are taken as linear.
  """
  kept, gain = np.log1p(-np.asarray(shares)), np.log(speedups)
  slower = np.flatnonzero(gain <= 0)
  if not slower.size:
    return float(shares[0])
  last = slower[-1]
  if last == len(shares) - 1:
    return None
  part = -gain[last] / (gain[last + 1] - gain[last])
  return float(-np.expm1(kept[last] + part * (kept[last + 1] - kept[last])))


Row = dict[str, Any]


def _grouped(rows: Sequence[Row], *keys: str) -> dict[tuple, list[Row]]:
  """The rows that agree in the values of some keys, by these values."""
  groups: dict[tuple, list[Row]] = {}
  for row in rows:
    key = (tuple(v) if isinstance(v, list) else v for v in map(row.get, keys))
    groups.setdefault(tuple(key), []).append(row)
  return groups


def draw(path: pathlib.Path, rows: Sequence[Row]) -> None:
  """Speedup against the share of zeros, one panel for each batch."""
  batches = sorted(_grouped(rows, "batch").items())
  ticks, times = Config.shares, (0.01, 0.1, 1, 10)
  with plots.figure(path, columns=len(batches)) as axes:
    for ax, ((batch,), of_batch) in zip(axes[0], batches, strict=True):
      for ((inputs, outputs),), line in _grouped(of_batch, "shape").items():
        kept = [1 - row["share"] for row in line]
        speedups = [row["speedup"] for row in line]
        style = {"marker": "o", "markersize": 3.5}
        ax.plot(kept, speedups, label=f"{inputs} x {outputs}", **style)
      ax.axhline(1, color=plots.GREY, linewidth=1, linestyle="--")
      ax.set(xscale="log", yscale="log", ylim=(0.01, 12))
      ax.set(xlabel="zeros", title=f"batch {batch}")
      ax.set_xticks([1 - share for share in ticks], [f"{100 * s:g}%" for s in ticks])
      ax.tick_params(axis="x", labelsize=8, rotation=45)
      ax.set_yticks(times, [f"{time:g}" for time in times])
      ax.minorticks_off()
      ax.invert_xaxis()
    axes[0, 0].set_ylabel("time of dense over BCOO")
    axes[0, 0].legend(title="kernel", loc="lower right")


_SIZES: tables.Columns = {
  "dtype": "{dtype}",
  "zeros": lambda row: tables.percent(row["share"], 1),
  "dense": "{dense:,}",
  "sparse": "{sparse:,}",
  "of dense": lambda row: tables.percent(row["sparse"] / row["dense"], 1),
}


def page(result: dict[str, Any]) -> str:
  """The report as Markdown."""
  shares = result["config"]["shares"]
  products = []
  for (shape, batch), rows in _grouped(result["products"], "shape", "batch").items():
    speedups = [row["speedup"] for row in rows]
    point = break_even(shares, speedups)
    products.append(
      [
        f"{shape[0]} x {shape[1]}, batch {batch}",
        *(f"{speedup:.2f}" for speedup in speedups),
        "never" if point is None else tables.percent(point, 1),
      ]
    )
  inputs, outputs = result["config"]["shapes"][-1]
  header = ["kernel", *(tables.percent(share, 1) for share in shares), "break-even"]
  return f"""# Exact export

## Checkpoints

Bytes of a kernel {inputs} x {outputs}, zeros anywhere, with its bias:
as plain safetensors, and as `rvsm_jax.export.save` writes them.

{tables.of_rows(_SIZES, result["sizes"])}

## BCOO

`x @ kernel` in float32: the time with the dense kernel over that with
`rvsm_jax.export.to_bcoo`, by the share of zeros; above 1, BCOO is faster.
Processor time on one core, median over {result["config"]["repeats"]} turns.
From the break-even on, BCOO is faster at every share measured.

{tables.table(header, products)}

![Speedup against zeros](bcoo.png)

{results.footer([result])}
Written by `python -m experiments export`.
"""


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the table and the figure of the result in a folder; returns their paths."""
  result = results.read(folder / "export.json")
  files = [folder / name for name in ("export.md", "bcoo.png")]
  results.write_atomically(files[0], page(result))
  draw(files[1], result["products"])
  return files


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes], places: cli.Common
) -> None:
  """Measures exact export: JSON, Markdown and a figure.

  Args:
    config: what is measured.
    places: where it writes.
  """
  if places.quick:
    config = _QUICK
  backend.on_one_core()
  result = results.result(
    "export", config, None, sizes=sizes(config), products=products(config)
  )
  folder = places.report("export", places.run("export"))
  results.publish(folder / "export.json", result, rebuild)


if __name__ == "__main__":
  cli.run("export", main)
