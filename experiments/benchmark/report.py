"""The benchmark as Markdown."""

import pathlib
from typing import Any

from experiments.core import results, tables


def write(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the tables of the result in a folder, and returns their path."""
  text = markdown(results.read(folder / "benchmark.json"))
  return [results.write_atomically(folder / "benchmark.md", text)]


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the tables of all results below a folder again."""
  files = sorted(folder.rglob("benchmark.json"))
  return [path for file in files for path in write(file.parent)]


def markdown(result: dict[str, Any]) -> str:
  """The report of one run of the benchmark."""
  config = result["config"]
  parts = [
    "# Speed and memory",
    f"`{result['command']}`. Medians over {config['pairs']} pairs of neighbouring"
    f" calls, {config['step_pairs']} of training steps, {config['clock']} time, all as"
    " ratios to plain `optax.sgd` in the same process.",
    results.footer([result]),
    "A bandwidth column above 100% is possible: the least bytes are counted as if"
    " nothing stayed in a cache, and so are those of the axpy, `x - c y` in place.",
  ]
  for tree, found in result["updates"].items():
    parts += [f"## The update alone: {tree}", _updates(found)]
  if "steps" in result:
    parts += [_step_title(result["steps"]), _steps(result["steps"])]
  if "torch" in result:
    parts += [_against_torch(result["torch"])]
  if "maps" in result:
    parts += [
      f"## The proximal maps on {result['maps']['size']:,} float32 numbers",
      _maps(result["maps"]),
    ]
  return "\n\n".join(parts) + "\n"


def _updates(found: dict[str, Any]) -> str:
  header = [
    "optimizer",
    "ratio to sgd",
    "bytes compiled",
    "bytes at least",
    "of the axpy's bandwidth",
    "state bytes",
    "temporary bytes",
    "page faults",
  ]
  rows = [
    [
      name,
      f"{row['ratio']:.2f}",
      f"{row['bytes']:.1f}",
      str(row["least_bytes"]),
      tables.percent(row["of_bandwidth"], 0),
      f"{row['state_bytes']:.1f}",
      f"{row['temporary_bytes']:.1f}",
      f"{row['page_faults']:.0f}",
    ]
    for name, row in found["rows"].items()
  ]
  return (
    f"{found['parameters']:,} parameters; bytes are per parameter; the axpy in place"
    f" moves {found['axpy_bytes_per_second'] / 1e9:.1f} GB/s.\n\n"
    + tables.table(header, rows)
  )


def _step_title(steps: dict[str, Any]) -> str:
  return f"## The training step of the curves CNN at batch size {steps['batch_size']}"


def _steps(steps: dict[str, Any]) -> str:
  rows = [
    [name, f"{row['ratio']:.3f}"]
    + [f"{1e3 * row[key]:.0f} ms" for key in ("seconds", "base_seconds")]
    for name, row in steps["rows"].items()
  ]
  header = ["optimizer", "ratio to sgd", "step", "step of sgd beside it"]
  return (
    f"{tables.table(header, rows)}\n\nThe machine is not equally fast all the time:"
    " compare a step with the one of sgd that was measured in turn with it, not with"
    " another row. The ratio is the median of the ratios of the pairs."
  )


def _against_torch(torch: dict[str, Any]) -> str:
  return (
    f"Against PyTorch {torch['torch']}, eager, plain SGD, the same threads: JAX takes"
    f" {torch['ratio']:.2f} times as long, the median of the pairs of calls; their"
    f" medians are {1e3 * torch['seconds']:.0f} ms and"
    f" {1e3 * torch['base_seconds']:.0f} ms."
  )


def _maps(maps: dict[str, Any]) -> str:
  rows = [
    [name, f"{row['ratio']:.2f}", f"{row['nanoseconds_per_number']:.2f}"]
    for name, row in maps["rows"].items()
  ]
  return tables.table(["map", "ratio to soft", "ns per number"], rows)
