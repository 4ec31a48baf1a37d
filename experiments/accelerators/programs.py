"""What a compiled program costs, read from the program.

The bytes are those of operands and results of the instructions that are run one after
another: what is fused into one stays on the chip.
"""

import math
import re
from typing import Any, NamedTuple

_BYTES = {"pred": 1, "bf16": 2} | {
  f"{kind}{8 * size}": size for kind in "suf" for size in (1, 2, 4, 8)
}
_ARRAY = re.compile(r"\b(" + "|".join(_BYTES) + r")\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*?)\)")
_FREE = {
  "parameter",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "constant",
  "partition-id",
}
# What a program sends from chip to chip.
_COLLECTIVE = re.compile(
  r"= (.*?) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
  r"(?:-start)?\("
)


class Cost(NamedTuple):
  """What one run of a program costs, on one chip.

  Attributes:
    bytes: from and to memory.
    temporary_bytes: of memory, besides arguments and results.
    argument_bytes: of memory.
    kernels: instructions that read or write an array of at least a tenth of the largest
      argument.
    copies: those of them that copy.
    collectives: instructions that send something, by their kind.
    sent_entries: of the largest array that is sent.
    loops: `while` instructions, whose bodies count once.
    seconds: the compiler's estimate, below one; None where it gives none.
  """

  bytes: float
  temporary_bytes: int
  argument_bytes: int
  kernels: int
  copies: int
  collectives: dict[str, int]
  sent_entries: int
  loops: int
  seconds: float | None


def cost(compiled: Any) -> Cost:
  """The cost of what `jax.jit(...).lower(...).compile()` returns."""
  text = compiled.as_text()
  sums = compiled.cost_analysis() or {}
  memory = compiled.memory_analysis()
  counted, kernels, copies = passes(text)
  collectives, sent = communication(text)
  return Cost(
    bytes=sums.get("bytes accessed") or counted,
    temporary_bytes=memory.temp_size_in_bytes,
    argument_bytes=memory.argument_size_in_bytes,
    kernels=kernels,
    copies=copies,
    collectives=collectives,
    sent_entries=sent,
    loops=len(re.findall(r"[^-]while\(", text)),
    seconds=_seconds(sums.get("optimal_seconds")),
  )


def _seconds(estimate: float | None) -> float | None:
  """The compiler's sum, in which what it cannot estimate is -1, without those."""
  return estimate if estimate is None else estimate - math.floor(min(estimate, 0.0))


def communication(text: str) -> tuple[dict[str, int], int]:
  """How many collectives of each kind, and the entries of the largest array sent."""
  kinds: dict[str, int] = {}
  largest = 0
  for types, kind in _COLLECTIVE.findall(text):
    kinds[kind] = kinds.get(kind, 0) + 1
    largest = max(largest, *(_entries(dims) for _, dims in _ARRAY.findall(types)), 0)
  return kinds, largest


def passes(text: str) -> tuple[int, int, int]:
  """Bytes of all instructions of ENTRY, and how many are large, or copy much."""
  sizes: dict[str, int] = {}
  moves: list[tuple[str, list[int]]] = []
  largest = 0
  for line in text[text.index("ENTRY") :].splitlines()[1:]:
    if not (found := _INSTRUCTION.match(line)):
      continue
    name, types, kind, arguments = found.groups()
    sizes[name] = sum(
      _BYTES[dtype] * _entries(dims) for dtype, dims in _ARRAY.findall(types)
    )
    if kind == "parameter":
      largest = max(largest, sizes[name])
    if kind not in _FREE:
      operands = [a.strip().split(" ")[-1].lstrip("%") for a in arguments.split(",")]
      moves.append((kind, [sizes[name], *(sizes.get(one, 0) for one in operands)]))
  large = [kind for kind, moved in moves if 10 * max(moved) >= largest]
  total = sum(sum(moved) for _, moved in moves)
  return total, len(large), sum(kind.startswith("copy") for kind in large)


def _entries(dims: str) -> int:
  return math.prod(int(n) for n in dims.split(",") if n)
