"""Tables 1 to 4 of Xue & Xin (2019): what is trained for them, and how they look.

The paper leaves open how it trained, so there are two protocols. *As printed*: its
lam and beta throughout, plain SGD. With He initialisation all weights would start
below the threshold 0.1 of l0 and u would stay zero, so the dense layer starts with a
standard deviation of 0.07, at which 15% of the weights start above it; the learning
rate is about the largest at which training is stable, because a weight without a
gradient decays with the sum of all learning rates times beta. *Tuned*: the protocol
of the main job, with the threshold and beta at which, on a path of reduced trainings,
u was most accurate on validation images with at least 99% zeros, and lam lowered as
the training is longer: with that of the path as it is, transformed l1 with a >= 1 and
l1 left a network without a function. *Shifted*: for alphabets, where 5,000 letters
leave the tuned networks at 99%, three times as many epochs on images that are moved by
up to 4 pixels at random. Nothing else was tried there, and nothing is chosen by it.
"""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
import itertools
import pathlib
from typing import Any, Literal

import numpy as np

from experiments import datasets
from experiments.core import cli, measure, results
from experiments.core import jobs as jobs_
from experiments.core.run import Run
from experiments.core.tables import percent, table
from experiments.curves import config as configs
from experiments.curves import figures, paper, path, report, train
from experiments.curves.config import Config, Data
import rvsm_jax

DATA: tuple[Data, ...] = ("alphabets", "planar_shapes")
SEEDS = 3

# The same for both data sets.
_TRAIN_SIZE = datasets.PLANAR_SHAPES.splits["train"]

_PRINTED: dict[str, Any] = {
  "lam_schedule": "constant",
  "lam": configs.PAPER_LAM,
  "beta": configs.PAPER_BETA,
  "momentum": 0.0,
  "learning_rate": 0.25,
  "batch_size": 16,
  "epochs": 7,
  "ink": 1.0,
  "dense_std": 0.07,
}
_SHIFTED: dict[str, Any] = {"shift": 4, "epochs": 30}
_TABLE_3: tuple[Data, tuple[float, ...]] = ("planar_shapes", (0.01, 100.0))
_TABLE_4 = (0.01, 1.0, 100.0)


def printed_rows(data: Data) -> list[Config]:
  """Tables 1 and 2 as printed: every penalty, l0 with three seeds, and none."""
  base = Config(data=data, **_PRINTED)
  rows = [dataclasses.replace(base, penalty="none")]
  rows += [dataclasses.replace(base, penalty=p, a=a) for p, a in path.PENALTIES]
  rows += [dataclasses.replace(base, seed=seed) for seed in range(1, SEEDS)]
  if data == _TABLE_3[0]:
    rows += [
      dataclasses.replace(base, penalty="transformed_l1", a=a, **change)
      for a in _TABLE_3[1]
      for change in (
        {"overwrite": True},
        {"method": "sgd"},
        {"method": "sgd", "schedule": "constant"},
      )
    ]
  return rows


def tuned_rows(data: Data, points: Sequence[dict[str, Any]]) -> list[Config]:
  """Tables 1 and 2, tuned, from the results of the path.

  l0 does not pull on a weight above its threshold, and keeps that of the path. The
  other penalties pull with a force of about lam at every step: they get the lam of
  the path times the ratio of the numbers of steps.
  """
  base = Config(data=data)
  rows = [dataclasses.replace(base, penalty="none")]
  for penalty, a in path.PENALTIES:
    best = Config(**path.chosen(points, penalty, a)["config"])
    threshold = best.threshold
    if penalty != "l0":
      shorter = best.epochs * best.train_size / (base.epochs * _TRAIN_SIZE)
      chosen = configs.penalty(best)
      step = shorter * float(rvsm_jax.step_for_threshold(chosen, threshold))
      threshold = float(f"{float(rvsm_jax.threshold_for_step(chosen, step)):.3g}")
    rows.append(
      dataclasses.replace(
        base, penalty=penalty, a=a, threshold=threshold, beta=best.beta
      )
    )
  rows += [
    dataclasses.replace(row, seed=seed)
    for row in rows
    if row.penalty == "l0"
    for seed in range(1, SEEDS)
  ]
  return rows


def shifted_rows(rows: Sequence[Config]) -> list[Config]:
  """Of the tuned rows of alphabets, the dense one and l0, longer on shifted images."""
  return [
    dataclasses.replace(row, **_SHIFTED)
    for row in rows
    if row.data == "alphabets" and row.penalty in ("none", "l0") and row.seed == 0
  ]


def train_row(
  config: Config,
  runs: pathlib.Path,
  folder: pathlib.Path,
  data_dir: pathlib.Path | None,
) -> dict[str, Any]:
  """Trains a row, unless its result is there, and writes the result."""
  file = folder / f"{config.name}.json"
  result = results.stored(file, config)
  if result is None:
    with Run(runs / config.name, config) as run:
      result = train.train(config, run, data_dir)
    results.write_json(file, result)
  return result


def train_all(
  runs: pathlib.Path,
  folder: pathlib.Path,
  data_dir: pathlib.Path | None = None,
  jobs: int = 1,
  only: Literal["path", "all"] = "all",
) -> None:
  """Trains all that the tables need and `folder` lacks; goes on where it stopped."""
  for data in DATA:
    train.load_data(Config(data=data), data_dir)

  with jobs_.pool(jobs) as pool:

    def submit(block: str, row: Config) -> concurrent.futures.Future:
      return pool.submit(train_row, row, runs / block, folder / block, data_dir)

    paths = {
      data: [
        pool.submit(path.train_path, points, folder / "path", data_dir)
        for points in path.grid(data)
      ]
      for data in DATA
    }
    rows = {data: printed_rows(data) if only == "all" else [] for data in DATA}
    waiting = [submit("printed", row) for data in DATA for row in rows[data]]
    for data in DATA:
      points = [point for part in paths[data] for point in part.result()]
      if only == "all":
        tuned = tuned_rows(data, points)
        waiting += [submit("tuned", row) for row in tuned]
        waiting += [submit("shifted", row) for row in shifted_rows(tuned)]
    for future in concurrent.futures.as_completed(waiting):
      final = future.result()["final"]
      results.console.print(f"{future.result()['name']}: {final['accuracy']}")


def load(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  """The results that there are, of each block."""
  return {
    block: [results.read(file) for file in sorted((folder / block).glob("*.json"))]
    for block in ("path", *_BLOCKS)
  }


def _order(config: dict[str, Any]) -> tuple[Any, ...]:
  kinds = [("none", None), *path.PENALTIES]
  a = config["a"] if config["penalty"] == "transformed_l1" else 1.0
  kind = (config["penalty"], None if config["penalty"] == "none" else a)
  algorithm = _ALGORITHMS.index(_algorithm(config))
  return (config["data"], kinds.index(kind), algorithm, config["seed"])


_ALGORITHMS = (
  "RVSM",
  "RVSM, w replaced by u each epoch",
  "SGD",
  "SGD, constant learning rate",
)


def _algorithm(config: dict[str, Any]) -> str:
  if config["method"] == "sgd":
    return _ALGORITHMS[3 if config["schedule"] == "constant" else 2]
  return _ALGORITHMS[1 if config["overwrite"] else 0]


def markdown(blocks: dict[str, list[dict[str, Any]]]) -> str:
  """Tables 1 to 4, and the protocols."""
  parts = ["# Curves: Tables 1 to 4 of Xue & Xin (2019)", _INTRODUCTION]
  for data in DATA:
    number, _ = paper.TABLES[data]
    parts.append(f"## Table {number}: {data.replace('_', ' ')}")
    for block, title in _BLOCKS.items():
      rows = [r for r in blocks.get(block, ()) if r["config"]["data"] == data]
      rows = [row for row in rows if _algorithm(row["config"]) == "RVSM"]
      if rows:
        parts += [f"**{title}**", _table_1_or_2(rows, block)]
        parts.append(_protocols(rows))
        if block != "printed":
          parts.append(_verdict(rows))
  printed = blocks["printed"]
  parts += ["## Table 3: RVSM against SGD on the penalised loss", _table_3(printed)]
  parts += ["## Table 4: sign changes in the convolutions", _table_4(printed)]
  return "\n\n".join(parts) + "\n"


_BLOCKS = {
  "printed": "As printed: lambda 0.0005, beta 0.1",
  "tuned": "Tuned: threshold and beta chosen on validation images",
  "shifted": "Tuned, three times as long on images shifted at random",
}

_INTRODUCTION = """\
Accuracies are test accuracies: of the trained weights w, of u, whose zeros are exact,
and of w with all weights below the middle of its gap set to zero. Zeros of u and shares
of w are those of the dense layer's 692,224 weights. The paper's sparsity is the share
of w below 1e-10, its accuracy that of w. Several seeds: mean ± standard deviation.
Each row comes from the JSON file of its name in `printed`, `tuned` or `shifted`, beside
this file; `python -m experiments curves tables` trains what is missing and writes this
again."""


def _groups(rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
  """The rows that differ in the seed alone, together."""
  rows = sorted(rows, key=lambda row: _order(row["config"]))
  groups = itertools.groupby(rows, key=lambda row: _order(row["config"])[:-1])
  return [list(group) for _, group in groups]


def _mean(results: Sequence[dict[str, Any]], *keys: str, decimals: int = 2) -> str:
  """The mean over seeds of a share in per cent, and its standard deviation."""
  values = []
  for result in results:
    value = result["final"]
    for key in keys:
      value = None if value is None else value[key]
    values.append(value)
  if None in values:
    return "–"
  mean = percent(float(np.mean(values)), decimals)
  if len(values) == 1:
    return mean
  return f"{mean} ± {100 * np.std(values, ddof=1):.{decimals}f}"


def _penalty(results: Sequence[dict[str, Any]]) -> str:
  name = report.penalty_name(results[0]["config"])
  return name if len(results) == 1 else f"{name}, {len(results)} seeds"


def _table_1_or_2(rows: Sequence[dict[str, Any]], block: str) -> str:
  unseen = rows[0]["config"]["data"] == "alphabets"
  header = ["penalty", "paper: accuracy", "paper: sparsity"]
  header += ["accuracy of w", "of u", "of w cut"]
  header += ["of u, unseen font"] if unseen else []
  header += ["zeros in u"]
  header += ["threshold", "beta"] if block != "printed" else []
  lines, shares = [], []
  for group in _groups(rows):
    config = group[0]["config"]
    printed = paper.row(config["data"], config["penalty"], config["a"])
    line = [_penalty(group)]
    line += (
      ["–", "–"]
      if printed is None
      else [
        percent(printed[1].accuracy / 100, 1),
        percent(printed[1].sparsity / 100, 1),
      ]
    )
    line += [_mean(group, "accuracy", n, decimals=1) for n in ("w", "u", "w_cut")]
    if unseen:
      sparse = "w" if config["penalty"] == "none" else "u"
      line.append(_mean(group, "unseen_font", "accuracy", sparse, decimals=1))
    line.append(_mean(group, "zeros", "u"))
    if block != "printed":
      line += (
        ["–", "–"]
        if config["penalty"] == "none"
        else [f"{config['threshold']:g}", f"{config['beta']:g}"]
      )
    lines.append(line)
    below = [_mean(group, "w_below", str(n)) for n in measure.EXPONENTS]
    shares.append([_penalty(group), *below])
  scales = ["w below", *(f"1e-{n}" for n in measure.EXPONENTS)]
  return f"{table(header, lines)}\n\n{table(scales, shares)}"


def _protocols(rows: Sequence[dict[str, Any]]) -> str:
  """How the rows were trained, and how long it took."""
  by_penalty = {row["config"]["penalty"]: row for row in reversed(rows)}
  texts = [
    f"{report.penalty_name(row['config'])}: {report.protocol(row['config'])}"
    for name, row in sorted(by_penalty.items())
    if name in ("none", "l0")
  ]
  seconds = [row["seconds"] for row in rows]
  return (
    "Protocol. "
    + " ".join(texts)
    + f" Median time of a row by the clock: {np.median(seconds):.0f} s, most of them"
    f" beside other work on two cores of {rows[0]['hardware']['processor']}."
  )


def _verdict(rows: Sequence[dict[str, Any]]) -> str:
  """Which rows are at least 99% zero without loss, and which beat the paper."""
  data = rows[0]["config"]["data"]
  sparse = [row for row in rows if row["config"]["penalty"] != "none"]
  dense = [row["final"]["accuracy"]["w"] for row in rows if row not in sparse]
  if not dense:
    return ""
  kept = [
    r["name"]
    for r in sparse
    if r["final"]["zeros"]["u"] >= 0.99
    and r["final"]["accuracy"]["u"] >= dense[0] - 0.003 - 1e-9
  ]
  printed = paper.TABLES[data][1]
  accuracy = max(row.accuracy for row in printed) / 100
  sparsity = max(row.sparsity for row in printed) / 100
  beaten = [
    r["name"]
    for r in sparse
    if r["final"]["zeros"]["u"] > sparsity
    and r["final"]["accuracy"]["u"] >= accuracy - 1e-9
  ]

  def listed(names: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "none"

  return (
    "u with at least 99% zeros, at most 0.3 points below the dense network:"
    f" {listed(kept)}. u with more zeros than the paper's sparsest row and an accuracy"
    f" of at least that of its most accurate: {listed(beaten)}."
  )


def _table_3(rows: Sequence[dict[str, Any]]) -> str:
  data, values = _TABLE_3
  header = ["a", "algorithm", *(f"below 1e-{n}" for n in measure.EXPONENTS)]
  header += ["1e-4 minus 1e-10", "accuracy of w"]
  lines = []

  def add(kind: str, shares: Sequence[float], accuracy: float) -> None:
    between = shares[2] - shares[4]
    cells = [*map(percent, [*shares, between]), percent(accuracy, 1)]
    lines.append([f"{a:g}", kind, *cells])

  for a, algorithm in itertools.product(values, _ALGORITHMS):
    printed = paper.TABLE_3.get((a, algorithm))
    if printed is not None:
      *shares, accuracy = (percentage / 100 for percentage in printed)
      add(f"{algorithm}, paper", shares, accuracy)
    for row in rows:
      config, final = row["config"], row["final"]
      kind = (config["data"], config["penalty"], config["a"], _algorithm(config))
      if kind == (data, "transformed_l1", a, algorithm):
        shares = [final["w_below_normalized"][str(n)] for n in measure.EXPONENTS]
        add(f"{algorithm}, ours", shares, final["accuracy"]["w"])
  return (
    f"{table(header, lines)}\n\nShares of the dense layer's weights, divided by their"
    f" norm as in the paper; {data.replace('_', ' ')}, transformed l1. In Algorithm 1 a"
    " weight whose u is zero settles at minus its gradient divided by beta, and is as"
    " small as that. The authors' released code replaces w by u at the end of every"
    " epoch, which is not in their Algorithm 1; those rows do so, too. SGD leaves the"
    " weights that the penalty pushes to zero oscillating, by the learning rate times"
    " lambda times the slope of the penalty. With one cycle, which ends near zero, so"
    " do they, unlike the paper's; with a constant rate they do not."
  )


def _table_4(rows: Sequence[dict[str, Any]]) -> str:
  lines = []
  for a in _TABLE_4:
    changes = [f"{n} ({s:.1f}%)" for n, s in paper.TABLE_4[a]]
    lines.append([f"{a:g}", "paper", *changes])
    for row in rows:
      config = row["config"]
      kind = (config["penalty"], config["a"], _algorithm(config))
      if kind != ("transformed_l1", a, "RVSM"):
        continue
      signs = row["final"]["sign_changes"].values()
      changes = [f"{s['count']} ({percent(s['share'], 1)})" for s in signs]
      lines.append([f"{a:g}", config["data"].replace("_", " "), *changes])
  return table(["a", "", "layer 1", "layer 2", "layer 3"], lines)


def write(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the tables and figures of all results, and returns their paths."""
  blocks = load(folder)
  files = [results.write_atomically(folder / "tables.md", markdown(blocks))]
  for data in DATA:
    of_data = {
      block: [result for result in found if result["config"]["data"] == data]
      for block, found in blocks.items()
    }
    files += figures.draw(data, of_data, folder)
  return files


def main(
  places: cli.Common,
  only: Literal["path", "all"] = "all",
  jobs: int = 1,
) -> None:
  """Trains what Tables 1 to 4 lack, and writes them and their figures.

  It takes hours on two cores. Run again after a kill, the same command goes on.

  Args:
    places: where it reads and writes.
    only: the regularisation paths alone, or all.
    jobs: how many trainings at the same time; each has one thread if there are more.
  """
  runs = places.output or pathlib.Path("runs", "curves")
  folder = places.report("curves", runs)
  train_all(runs, folder, places.data_dir, jobs, only)
  results.announce(write(folder))
