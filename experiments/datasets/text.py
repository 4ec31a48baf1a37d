"""English prose, character by character: the docstrings of SciPy.

SciPy comes with JAX, so the text is on every machine; its licence is BSD 3-clause, and
nothing of it is kept here. It is read from the installed source, and so depends on the
version of SciPy alone, which `note` names together with a digest of the text.
"""

import ast
import dataclasses
import functools
import hashlib
import importlib.metadata
import importlib.util
import pathlib
import re
from typing import Any
import zlib

import numpy as np
from numpy.typing import NDArray

from experiments.datasets._cache import Arrays

PACKAGE = "scipy"
# The end of a paragraph, and all printable characters.
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
CONTEXT = 128
_SHORTEST = 80
_UNDERLINED = re.compile(r"^.*\n *[-=~^]{3,} *$", re.MULTILINE)
_TEST_SHARE = 10


def paragraphs(docstring: str) -> list[str]:
  """The paragraphs of prose, each on one line: no lists, tables, formulas or code."""
  out = []
  for paragraph in re.split(r"\n\s*\n", docstring):
    line = " ".join(_UNDERLINED.sub("", paragraph).split())
    prose = re.fullmatch(r"[A-Z].*[.:]", line) and ">>>" not in line
    if prose and len(line) >= _SHORTEST:
      out.append("".join(filter(ALPHABET.__contains__, line)))
  return out


def documents(root: pathlib.Path) -> dict[str, list[str]]:
  """By the name of a module its paragraphs, in the order of the names.

  Args:
    root: the directory of a package; its tests are left out.
  """
  out = {}
  for file in sorted(root.rglob("*.py"), key=lambda f: f.relative_to(root).parts):
    name = file.relative_to(root).as_posix()
    if "tests" in file.parts:
      continue
    found = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
      if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
        found += paragraphs(ast.get_docstring(node) or "")
    if found:
      out[name] = found
  return out


def split(pages: dict[str, list[str]]) -> dict[str, str]:
  """The text for training, and for testing: a tenth of the documents, by their names.

  A paragraph that occurs more than once is taken once, and none that is trained on is
  tested on.
  """
  is_test = {name: zlib.crc32(name.encode()) % _TEST_SHARE == 0 for name in pages}
  seen: dict[str, None] = {}
  texts = {}
  for part, wanted in (("train", False), ("test", True)):
    lines = [p for name in pages if is_test[name] is wanted for p in pages[name]]
    new = [line for line in dict.fromkeys(lines) if line not in seen]
    seen |= dict.fromkeys(new)
    texts[part] = "".join(f"{line}\n" for line in new)
  return texts


@functools.cache
def texts() -> dict[str, str]:
  """Those of the installed package, by the name of the split."""
  found = importlib.util.find_spec(PACKAGE)
  assert found is not None
  assert found.origin is not None
  return split(documents(pathlib.Path(found.origin).parent))


def encoded(text: str) -> NDArray[np.uint8]:
  """The characters' numbers in `ALPHABET`."""
  codes = np.frombuffer(text.encode("ascii"), np.uint8)
  return np.where(codes == ord("\n"), 0, codes - 31).astype(np.uint8)


def windows(text: str) -> Arrays:
  """All pieces of a text that follow each other, and each character's next one.

  Returns:
    Numbers in `ALPHABET`, (n, 128) uint8, and (n, 128) int32.
  """
  codes = encoded(text)
  count = (len(codes) - 1) // CONTEXT
  x, y = (codes[k : k + count * CONTEXT].reshape(count, CONTEXT) for k in (0, 1))
  return x, y.astype(np.int32)


def counted_loss(train: str, test: str, order: int = 3) -> float:
  """The test loss of counting, in nats per character: what a network has to beat.

  The probability of a character after the `order` - 1 before it is its share of the
  counts, interpolated with that after one less (Witten & Bell 1991).
  """
  counted, seen = (encoded(text).astype(np.int64) for text in (train, test))
  base = len(ALPHABET)
  chance = np.full(len(seen), 1 / base)
  for length in range(1, order + 1):
    grams, asked = (_grams(codes, length, base) for codes in (counted, seen))
    known, counts = np.unique(grams, return_counts=True)
    contexts, member = np.unique(known // base, return_inverse=True)
    totals, kinds = np.bincount(member, counts), np.bincount(member)
    hits = _at(known, counts, asked)
    total, kind = (_at(contexts, of, asked // base) for of in (totals, kinds))
    lower = chance[length - 1 :]
    shared = (hits + kind * lower) / np.maximum(total + kind, 1)
    chance[length - 1 :] = np.where(total > 0, shared, lower)
  return float(-np.mean(np.log(chance)))


def _grams(codes: NDArray, length: int, base: int) -> NDArray:
  """All pieces of that many characters, each as one number."""
  size = len(codes) - length + 1
  return sum(codes[k : k + size] * base ** (length - 1 - k) for k in range(length))


def _at(keys: NDArray, values: NDArray, asked: NDArray) -> NDArray:
  """The values of sorted keys, 0 for what is not among them."""
  place = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
  return np.where(keys[place] == asked, values[place], 0)


@dataclasses.dataclass(frozen=True)
class TextSet:
  """The set for `datasets.load`: nothing to prepare, and nothing to cache."""

  name: str = "text"
  splits: tuple[str, ...] = ("train", "test")

  def load(self, split: str, root: Any = None, source: Any = None) -> Arrays:
    """One split; see `datasets.load`."""
    del root, source
    if split not in self.splits:
      raise ValueError(f"{self.name} has no split {split!r}, only {list(self.splits)}.")
    return windows(texts()[split])


SET = TextSet()


def note() -> str:
  """What the text is: of which version, how long, and its digest."""
  version = importlib.metadata.version(PACKAGE)
  found = texts()
  digest = hashlib.sha256("".join(found.values()).encode()).hexdigest()[:12]
  return (
    f"prose of the docstrings of SciPy {version} (BSD 3-clause),"
    f" {len(found['train']):,} characters for training and {len(found['test']):,} for"
    f" testing, SHA-256 {digest}; counts of trigrams have a test loss of"
    f" {counted_loss(found['train'], found['test']):.3f} nats"
  )
