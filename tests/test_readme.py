"""The README is executed, and its numbers are those of the committed results."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.slow
def test_python_blocks_run(block: str, capsys: pytest.CaptureFixture):
  exec(compile(block, "README.md", "exec"), {})
  (line,) = capsys.readouterr().out.splitlines()
  accuracy, text = line.split("%", 1)
  # The processor may move an accuracy by some digits, not the share of zeros.
  (printed,) = (row for row in README.splitlines() if row.endswith(text))
  assert abs(float(accuracy) - float(printed.split("%")[0])) < 2.0


def test_tables_stand_in_a_committed_result():
  rows = [line for line in README.splitlines() if line.startswith("|")]
  files = ROOT.glob("experiments/results/**/*.md")
  written = "\n".join(file.read_text(encoding="utf-8") for file in files)
  assert rows
  missing = [row for row in rows if row not in written]
  assert not missing


def test_links_lead_somewhere():
  for target in re.findall(r"\]\((?!https?://)([^)#]+)", README):
    assert (ROOT / target).exists(), target
