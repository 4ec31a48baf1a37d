"""What the compilers of TPUs and GPUs make of the library, without a TPU or a GPU."""

import os
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
  began = time.monotonic()
  rows = measure(config)
  result = results.result(
    "accelerators",
    config,
    time.monotonic() - began,
    compiler=targets.release(platform),
    rows=rows,
  )
  folder = places.report("accelerators", places.run("accelerators"))
  results.write_json(folder / f"{platform}.json", result)
  results.show(report.write(folder))


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
  # A step takes minutes to compile: those there are stay.
  before = results.stored(file, config) or {"seconds": 0, "rows": [], "step_seconds": 0}
  rows, seconds = before["rows"], before["step_seconds"]
  began = time.monotonic() - before["seconds"]

  def write() -> None:
    result = results.result(
      "accelerators",
      config,
      time.monotonic() - began,
      compiler=targets.release("tpu"),
      weights=transformer.count(config.shape),
      sparse_weights=transformer.count(config.shape, "layers"),
      step_seconds=seconds,
      rows=rows,
    )
    results.write_json(file, result)

  if not seconds:
    seconds = scale.step_seconds(config.shape, grid)
    write()
  for name in config.subjects[len(rows) :]:
    rows.append({"update": name, **scale.row(name, config.shape, grid)})
    results.console.print(f"{name}: {rows[-1]}", markup=False)
    write()
  results.show(report.write(folder)[::-1])


def only_compile() -> None:
  """Lets JAX look for no TPU or GPU to run on; before anything that asks for one."""
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  jax.config.update("jax_platforms", "cpu")


def measure(config: configs.Config) -> list[dict[str, Any]]:
  """What each update costs, for each target and dtype."""
  rows = []
  for target in (*config.all_for, *config.some_for):
    for dtype in config.dtypes:
      for name in config.subjects:
        few = target in config.some_for or dtype != config.dtypes[0]
        if few and name not in ("sgd", *updates.PROMISED):
          continue
        found = updates.row(name, targets.TARGETS[target], dtype, config.side)
        rows.append({"target": target, "dtype": dtype, "update": name, **found})
        results.console.print(
          f"{target}, {dtype}, {name}: {found['bytes']:.1f} bytes per weight"
        )
  return rows


rebuild = report.rebuild

COMMANDS = {"": main, "scale": many_chips}
