"""The committed reports are what the committed results say."""

import pathlib
import shutil

import pytest

from experiments import report, summary
from experiments.core import results

RESULTS = results.DIRECTORY
EXPERIMENTS = sorted(path.name for path in RESULTS.iterdir() if path.is_dir())


@pytest.mark.parametrize("file", sorted(RESULTS.rglob("*.json")), ids=lambda f: f.stem)
def test_every_result_has_the_schema(file):
  assert results.read(file)["experiment"] == file.relative_to(RESULTS).parts[0]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_report_is_rebuilt(name, tmp_path, monkeypatch):
  # Rendering the figures would take most of the time.
  monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *args, **kwargs: None)
  shutil.copytree(RESULTS / name, tmp_path / name)
  written = {file: file.read_text() for file in tmp_path.rglob("*.md")}
  for file in written:
    file.unlink()
  files = set(report.rebuilt(tmp_path))
  assert written
  assert {file: file.read_text() for file in tmp_path.rglob("*.md")} == written
  figures = {file for file in tmp_path.rglob("*.png") if file.parent.name != "path"}
  assert figures <= files


@pytest.mark.slow
def test_all_of_it_is_rebuilt_by_one_command(tmp_path, capsys):
  shutil.copytree(RESULTS / "convergence", tmp_path / "convergence")
  for name in ("convergence.md", "outside.png"):
    (tmp_path / "convergence" / name).unlink()
  report.main(tmp_path)
  assert "convergence.md" in capsys.readouterr().out.replace("\n", "")
  for name in ("convergence.md", "outside.png"):
    rebuilt = tmp_path / "convergence" / name
    committed = pathlib.Path(RESULTS, "convergence", name)
    assert rebuilt.read_bytes() == committed.read_bytes()


def test_the_summary_is_that_of_the_committed_results():
  written = (RESULTS / "summary.md").read_text(encoding="utf-8")
  assert summary.markdown(RESULTS) == written, "python -m experiments report"


def test_no_more_results_of_code_that_is_in_no_commit():
  # These were measured before the code was committed; docs/reproducibility.md says so.
  known = {
    "accelerators/tpu.json",
    "compaction/trained.json",
    "convergence/convergence.json",
    "curves/tuned/planar_shapes-l0-rvsm-ramped-seed1.json",
    "curves/tuned/planar_shapes-none-seed0.json",
  }
  dirty = {
    str(file.relative_to(RESULTS))
    for file in RESULTS.rglob("*.json")
    if str(results.read(file)["git_revision"]).endswith("-dirty")
  }
  assert dirty <= known
