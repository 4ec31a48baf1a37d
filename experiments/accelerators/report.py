"""The tables of the accelerators, from JSON alone."""

from collections.abc import Sequence
import pathlib
from typing import Any

from experiments.core import results, tables

_SENT: tables.Columns = {
  "update": "{update}",
  "chips": "{target}",
  "dtype": "{dtype}",
  "sent": lambda row: ", ".join(
    f"{n} {kind}" for kind, n in row["collectives"].items()
  ),
  "largest, entries": "{sent_entries:,}",
}


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the tables of the results in a folder, and returns their path."""
  found = results.read_all(folder, ("tpu", "cuda", "scale"))
  scale = found.pop("scale", None)
  texts = {"accelerators": _page([*found.values()])} if found else {}
  texts |= {"scale": _scale(scale)} if scale else {}
  return [results.write_atomically(folder / f"{n}.md", t) for n, t in texts.items()]


def _page(found: Sequence[dict[str, Any]]) -> str:
  rows = [row for one in found for row in one["rows"]]
  compilers = " and ".join(one["compiler"] for one in found)
  parts = [
    "# What the compilers of accelerators make of an update",
    "The update of one square kernel a chip, with `optax.apply_updates`, params and"
    f" state donated, compiled by {compilers} from a description of the chips: none was"
    " there. `python -m experiments accelerators`.",
    results.footer(found),
    "Bytes that the update moves to and from the memory of a chip, per weight, and in"
    " brackets temporary memory, where there is any. An array is read or written by 4"
    " bytes, in bfloat16 by 2. Where a program loops, the body of the loop counts once:"
    " ≥.",
  ]
  for dtype in dict.fromkeys(row["dtype"] for row in rows):
    parts += [f"## Bytes per weight, {dtype}", bytes_table(rows, dtype)]
  parts += [
    "## Time of the update, estimated by the compiler, over that of sgd",
    _times([row for row in rows if row["seconds"] is not None]),
  ]
  if any(row["collectives"] for row in rows):
    parts += [
      "## What the update sends",
      "Of the weights each chip has rows, so that every column, a group, is split."
      " What is not in the table sends nothing.",
      tables.of_rows(_SENT, (row for row in rows if row["collectives"])),
    ]
  return "\n\n".join(parts) + "\n"


def _names(rows: Sequence[dict[str, Any]], key: str) -> list[str]:
  return list(dict.fromkeys(row[key] for row in rows))


def bytes_table(rows: Sequence[dict[str, Any]], dtype: str) -> str:
  """What each update moves, for each target."""
  rows = [row for row in rows if row["dtype"] == dtype]
  chips = _names(rows, "target")
  found = {(row["update"], row["target"]): row for row in rows}

  def cell(update: str, target: str) -> str:
    row = found.get((update, target))
    if row is None:
      return ""
    spare = row["temporary_bytes"]
    text = f"{'≥ ' * bool(row['loops'])}{row['bytes']:.1f}"
    return text + (f" ({spare:.1f})" if spare >= 0.1 else "")

  def least(update: str) -> str:
    known = next(row["least_bytes"] for row in rows if row["update"] == update)
    return "–" if known is None else str(known)

  return tables.table(
    ["update", "at least", *chips],
    [
      [name, least(name), *(cell(name, chip) for chip in chips)]
      for name in _names(rows, "update")
    ],
  )


def _times(rows: Sequence[dict[str, Any]]) -> str:
  found = {(row["update"], row["dtype"], row["target"]): row for row in rows}
  columns = list(dict.fromkeys((row["dtype"], row["target"]) for row in rows))

  def cell(update: str, column: tuple[str, str]) -> str:
    row = found.get((update, *column))
    if row is None:
      return ""
    ratio = row["seconds"] / found["sgd", *column]["seconds"]
    return f"{'≥ ' * bool(row['loops'])}{ratio:.2f}"

  return tables.table(
    ["update", *(f"{target}, {dtype}" for dtype, target in columns)],
    [
      [name, *(cell(name, column) for column in columns)]
      for name in _names(rows, "update")
    ],
  )


def _scale(found: dict[str, Any]) -> str:
  config = found["config"]
  shape, chips = config["shape"], config["data"] * config["model"]
  whole = [row for row in found["rows"] if not row["alone"]]
  base = whole[0]
  step = base["seconds"]
  held = base["argument_bytes"] + base["temporary_bytes"]

  def lines(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    base = rows[0]
    return [_on_top(row, base, chips / found["sparse_weights"], step) for row in rows]

  header = ["optimizer", "state, bytes a weight", "temporary, MiB a chip"]
  header += ["ms", "of the step, at most", "collectives"]
  alone = [row for row in found["rows"] if row["alone"]]
  return f"""# {found["weights"] / 1e9:.1f} billion weights on {chips} chips

A training step of a decoder transformer ({shape["layers"]} layers of width
{shape["width"]}, hidden {shape["hidden"]}; {shape["batch"]} sequences of
{shape["length"]} tokens), lowered from shapes alone and compiled by {found["compiler"]}
for {config["target"]}: FSDP along {config["data"]} chips, tensor parallel along
{config["model"]}, weights float32. {found["sparse_weights"] / 1e9:.1f} billion weights,
the kernels of the layers, are made sparse. `python -m experiments accelerators scale`.

The step with adamw takes {held / 2**30:.2f} GiB of each chip, and more than
{1e3 * step:.0f} ms: a loop counts once in the compiler's estimate, which so has one
layer for all. Shares of the step are of that, and at most what is said. A ≥ marks the
search of a rank, whose passes are about six. All numbers are what is on top of adamw.

{tables.table(["whole step", *header[1:]], lines(whole))}

The update alone, of the same weights on the same chips:

{tables.table(header, lines(alone)) if alone else ""}

{results.footer([found])}
"""


def _on_top(
  row: dict[str, Any], base: dict[str, Any], per_weight: float, step: float
) -> list[str]:
  """What a row of the table says."""
  more = row["seconds"] - base["seconds"]
  state = (row["argument_bytes"] - base["argument_bytes"]) * per_weight
  sent = {
    kind: row["collectives"].get(kind, 0) - base["collectives"].get(kind, 0)
    for kind in {**base["collectives"], **row["collectives"]}
  }
  loops = "≥ " * (row["loops"] > base["loops"])
  return [
    row["update"],
    f"{state:.1f}",
    f"{(row['temporary_bytes'] - base['temporary_bytes']) / 2**20:+.0f}",
    f"{loops}{1e3 * more:+.2f}",
    f"{loops}{100 * more / step:+.2f}%",
    ", ".join(f"{n:+} {kind}" for kind, n in sent.items() if n) or "none",
  ]
