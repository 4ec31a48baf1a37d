"""What the compilers of TPUs and GPUs make of the library, without a TPU or a GPU."""

import os
import pathlib
import time
from typing import Any

import jax

from experiments.accelerators import config as configs
from experiments.accelerators import report, scale, targets, transformer, updates
from experiments.core import cli, results


def main(places: cli.Common, platform: configs.Platform = "tpu") -> None:
  """Compiles the update of every transformation: JSON and a Markdown table.

  Args:
    places: where it writes.
    platform: whose compiler, which has to be installed: see `make accelerators`.
  """
  only_compile()
  config = {"tpu": configs.Config(), "cuda": configs.CUDA}[platform]
  if places.quick:
    config = configs.QUICK[platform]
  folder = places.report("accelerators", places.run("accelerators"))
  measure(config, folder / f"{platform}.json")
  results.show(report.rebuild(folder))


def many_chips(places: cli.Common) -> None:
  """Compiles a training step of seven billion weights for 256 chips of a TPU.

  Args:
    places: where it writes.
  """
  only_compile()
  config = configs.QUICK_SCALE if places.quick else configs.Scale()
  folder = places.report("accelerators", places.run("accelerators"))
  file = folder / "scale.json"
  chips = targets.devices(targets.TARGETS[config.target])
  grid = scale.mesh(chips, config.data, config.model)
  # A whole step takes minutes to compile: those there are stay.
  before = results.stored(file, config) or {"seconds": 0, "rows": []}
  rows = before["rows"]
  done = {(row["update"], row["alone"]) for row in rows}
  began = time.monotonic() - before["seconds"]
  every = [(name, False) for name in config.whole]
  every += [(name, True) for name in config.subjects]
  for name, alone in every:
    if (name, alone) in done:
      continue
    rows.append(scale.row(name, config.shape, grid, alone))
    results.console.print(f"{name}: {rows[-1]}", markup=False)
    result = results.result(
      "accelerators",
      config,
      time.monotonic() - began,
      compiler=targets.release("tpu"),
      weights=transformer.count(config.shape),
      sparse_weights=transformer.count(config.shape, "layers"),
      rows=rows,
    )
    results.write_json(file, result)
  results.show(report.rebuild(folder)[::-1])


def only_compile() -> None:
  """Lets JAX look for no TPU or GPU to run on; before anything that asks for one."""
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  jax.config.update("jax_platforms", "cpu")


def measure(config: configs.Config, file: pathlib.Path) -> dict[str, Any]:
  """What each update costs, for each target and dtype, the promised ones first.

  Each is written as it comes, and what is there already stays: some programs take half
  a minute to compile.
  """
  promised = ("sgd", *updates.PROMISED)
  every = [
    (target, dtype, name)
    for target in (*config.all_for, *config.some_for)
    for dtype in config.dtypes
    for name in config.subjects
    if name in promised or (target in config.all_for and dtype == config.dtypes[0])
  ]
  before = results.stored(file, config) or {"rows": [], "seconds": 0}
  found = {(r["target"], r["dtype"], r["update"]): r for r in before["rows"]}
  began = time.monotonic() - before["seconds"]
  result = before
  for one in sorted(every, key=lambda one: one[-1] not in promised):
    if one in found:
      continue
    target, dtype, name = one
    row = updates.row(name, targets.TARGETS[target], dtype, config.side)
    found[one] = {"target": target, "dtype": dtype, "update": name, **row}
    results.console.print(f"{', '.join(one)}: {row['bytes']:.1f} bytes a weight")
    result = results.result(
      "accelerators",
      config,
      time.monotonic() - began,
      compiler=targets.release(config.platform),
      rows=[found[key] for key in every if key in found],
    )
    results.write_json(file, result)
  return result


rebuild = report.rebuild

COMMANDS = {"": main, "scale": many_chips}
