"""The README is executed, and its numbers are those of the committed results."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
((CODE, PRINTED),) = re.findall(
  r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL
)
LINE = re.compile(r"(.+?)  +test accuracy ([0-9.]+)%, zeros ([0-9.]+%)")


@pytest.mark.slow
def test_the_example_prints_what_it_says(capsys: pytest.CaptureFixture):
  exec(compile(CODE, "README.md", "exec"), {})
  written = [LINE.fullmatch(line).groups() for line in PRINTED.splitlines()]
  printed = [
    LINE.fullmatch(line).groups() for line in capsys.readouterr().out.splitlines()
  ]
  assert [(name, zeros) for name, _, zeros in printed] == [
    (name, zeros) for name, _, zeros in written
  ]
  # The processor may move an accuracy by some digits, and more that of the cut network.
  for (name, now, _), (_, there, _) in zip(printed, written, strict=True):
    assert abs(float(now) - float(there)) < (10 if name == "dense, cut" else 2)


def test_is_two_screens_and_its_tables_are_narrow():
  assert len(README.splitlines()) <= 150
  for row in README.splitlines():
    assert row.count("|") <= 7


def cells(text: str) -> list[list[str]]:
  """The rows of all tables, without the space that aligns them."""
  rows = [line for line in text.splitlines() if line.startswith("|")]
  split = [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]
  return [row for row in split if not all(set(cell) <= set(":-") for cell in row)]


def test_speed_is_that_of_a_committed_result():
  file = ROOT / "experiments/results/compaction/trained.json"
  networks = json.loads(file.read_text(encoding="utf-8"))["tasks"]["text"]["networks"]
  dense = networks["dense"]["accuracy"]
  known = {
    (f"{one['speedup']:.1f}", f"{100 * (dense - one['accuracy']):.1f}")
    for one in networks.values()
  }
  claim = r"([\d.]+) times faster on CPU and ([\d.]+) points less accurate"
  assert re.search(claim, " ".join(README.split())).groups() in known


def test_tables_stand_in_a_committed_result():
  summary = cells((ROOT / "experiments/results/summary.md").read_text(encoding="utf-8"))
  rows = cells(README)
  assert rows
  assert not [row for row in rows if row not in summary]
