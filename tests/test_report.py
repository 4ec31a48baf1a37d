"""The committed tables are what the committed results say."""

import json
import pathlib
import shutil

import pytest

from experiments import report
from experiments.cifar import report as cifar
from experiments.convergence import report as convergence
from experiments.curves import report as curves
from experiments.curves import tables
from experiments.integrated import report as integrated

RESULTS = pathlib.Path(__file__).parents[1] / "experiments" / "results"


def _read(file):
  return json.loads(file.read_text(encoding="utf-8"))


@pytest.mark.parametrize(
  "file",
  sorted((RESULTS / "curves").glob("*.json")),
  ids=lambda file: file.stem,
)
def test_the_main_job(file):
  assert file.with_suffix(".md").read_text(encoding="utf-8") == curves.markdown(
    _read(file)
  )


def test_curves():
  written = (RESULTS / "curves" / "tables.md").read_text(encoding="utf-8")
  assert written == tables.markdown(tables.load(RESULTS / "curves"))


def test_convergence():
  folder = RESULTS / "convergence"
  written = (folder / "convergence.md").read_text(encoding="utf-8")
  assert written == convergence.markdown(_read(folder / "convergence.json"))


@pytest.mark.parametrize(
  ("name", "module"), [("cifar", cifar), ("integrated", integrated)]
)
def test_tables_of_a_folder(name, module, tmp_path, monkeypatch):
  # Rendering the figures would take most of the time.
  monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **kwargs: None)
  shutil.copytree(RESULTS / name, tmp_path / name)
  for file in sorted(tmp_path.glob(f"{name}/**/tables.md")):
    before = file.read_text(encoding="utf-8")
    file.unlink()
    module.write(file.parent)
    assert file.read_text(encoding="utf-8") == before


@pytest.mark.parametrize("name", report.MEASURED)
def test_what_was_measured(name, tmp_path, monkeypatch):
  monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **kwargs: None)
  shutil.copytree(RESULTS / name, tmp_path / name)
  written = {file: file.read_text() for file in tmp_path.rglob("*.md")}
  for file in written:
    file.unlink()
  for file in tmp_path.rglob(f"{name}.json"):
    report.MEASURED[name].write(file.parent)
  assert written
  assert {file: file.read_text() for file in tmp_path.rglob("*.md")} == written


def test_all_of_it_is_rebuilt_by_one_command(tmp_path, capsys):
  shutil.copytree(RESULTS / "convergence", tmp_path / "convergence")
  (tmp_path / "convergence" / "convergence.md").unlink()
  report.main(tmp_path)
  assert "convergence.md" in capsys.readouterr().out.replace("\n", "")
  assert (tmp_path / "convergence" / "convergence.md").exists()
