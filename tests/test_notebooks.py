"""The notebooks of `colab/`: they run without a warning and show what they say."""

import copy
import pathlib
import platform
import re
import sys
import types

from IPython.core.inputtransformer2 import TransformerManager
import nbclient
import nbformat
import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))

# Stands in front of the first cell: a figure without titles and labels is an error.
LABELS = """
import matplotlib.pyplot as plt

def labelled(axis):
  numbers = [a for a in (axis.xaxis, axis.yaxis) if len(a.get_majorticklocs())]
  names = [a for a in numbers if not a.have_units()]
  return all(a.get_label_text() for a in names)

def show(draw=plt.show):
  for figure in map(plt.figure, plt.get_fignums()):
    for axis in figure.axes:
      assert axis.get_title() or axis.get_label() == "<colorbar>", "no title"
      assert labelled(axis) or axis.get_label() == "<colorbar>", axis.get_title()
  draw()

plt.show = show
"""


def read(path: pathlib.Path) -> nbformat.NotebookNode:
  return nbformat.read(path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
  return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell: nbformat.NotebookNode) -> list[str]:
  """What a cell put out: "stdout", "stderr", "error", or the types of its data."""
  return [
    output.get("name") or ", ".join(sorted(output.get("data", ["error"])))
    for output in cell.outputs
  ]


def test_all_four_are_there():
  names = [path.stem for path in NOTEBOOKS]
  assert names == ["curves", "integrated_tl1", "quickstart", "sparse_transformer"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
  @pytest.mark.slow
  def test_runs_without_warnings(self, path, monkeypatch):
    monkeypatch.setenv("RVSM_QUICK", "1")
    # On a busy machine XLA complains that compiling takes long.
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
    committed = read(path)
    ran = copy.deepcopy(committed)
    ran.cells.insert(0, nbformat.v4.new_code_cell(LABELS))
    resources = {"metadata": {"path": str(FOLDER)}}
    nbclient.NotebookClient(
      ran, timeout=600, resources=resources, coalesce_streams=True
    ).execute()
    for there, now in zip(code_cells(committed), code_cells(ran)[1:], strict=True):
      assert "stderr" not in kinds(now), now.outputs
      # What is committed came out of these cells.
      assert kinds(there) == kinds(now), now.source

  def test_is_committed_with_the_outputs_of_one_run(self, path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    shown = [kind for cell in cells for kind in kinds(cell)]
    assert not {"stderr", "error"} & set(shown)
    assert sum("image/png" in kind for kind in shown) >= 3
    assert path.stat().st_size < 1_000_000

  def test_says_nothing_of_the_machine(self, path):
    cells = read(path).cells
    texts = [cell.source for cell in cells]
    for output in (
      output for cell in code_cells(read(path)) for output in cell.outputs
    ):
      texts += [output.get("text", ""), output.get("data", {}).get("text/plain", "")]
    for text in texts:
      assert not re.search(rf"\b{re.escape(platform.node())}\b", text)
      assert not re.search(r"(?<![\w./])/(home|root|tmp|work|Users|content)\b", text)

  def test_first_cell_installs_on_colab_alone(self, path, monkeypatch):
    code = TransformerManager().transform_cell(code_cells(read(path))[0].source)
    called = []
    shell = types.SimpleNamespace(
      run_line_magic=lambda *args: called.append(" ".join(args)),
      system=lambda line: called.append(line),
    )
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    exec(code, {"get_ipython": lambda: shell})
    assert not called
    monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("colab"))
    exec(code, {"get_ipython": lambda: shell})
    assert any(re.match(r"pip install .*(rvsm_jax|\./repository)", c) for c in called)
