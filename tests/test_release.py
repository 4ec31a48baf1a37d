"""The wheel and the source distribution: what is in them, and that they install."""

import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

from packaging import metadata, requirements, version
import pytest
import yaml

import rvsm_jax

ROOT = pathlib.Path(__file__).parents[1]
NAME = f"rvsm_jax-{rvsm_jax.__version__}"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
  "project"
]


def build(source, to, *formats):
  command = [sys.executable, "-m", "hatchling", "build", "--directory", str(to)]
  subprocess.run([*command, *formats], cwd=source, check=True, capture_output=True)


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
  directory = tmp_path_factory.mktemp("dist")
  build(ROOT, directory)
  return directory


@pytest.fixture(scope="module")
def wheel(dist):
  return zipfile.ZipFile(dist / f"{NAME}-py3-none-any.whl")


@pytest.fixture(scope="module")
def sdist(dist, tmp_path_factory):
  directory = tmp_path_factory.mktemp("sdist")
  with tarfile.open(dist / f"{NAME}.tar.gz") as archive:
    archive.extractall(directory, filter="data")
  return directory / NAME


def modules(root):
  return {str(path.relative_to(root)) for path in (root / "rvsm_jax").rglob("*.py")}


def test_the_version_stands_in_one_place():
  assert "version" not in PROJECT
  assert PROJECT["dynamic"] == ["version"]
  files = [ROOT / "pyproject.toml", ROOT / "README.md", *ROOT.glob("rvsm_jax/**/*.py")]
  found = [file for file in files if rvsm_jax.__version__ in file.read_text("utf-8")]
  assert found == [ROOT / "rvsm_jax" / "__init__.py"]
  assert importlib.metadata.version("rvsm_jax") == rvsm_jax.__version__


def test_a_wheel_has_the_library_alone(wheel):
  info = f"{NAME}.dist-info"
  files = {"METADATA", "WHEEL", "RECORD", "licenses/LICENSE"}
  expected = modules(ROOT) | {"rvsm_jax/py.typed"} | {f"{info}/{f}" for f in files}
  assert set(wheel.namelist()) == expected


def test_a_source_distribution_has_what_the_wheel_is_made_of(sdist, wheel, tmp_path):
  assert modules(sdist) == modules(ROOT)
  for name in ("README.md", "LICENSE", "CHANGELOG.md", "pyproject.toml"):
    assert (sdist / name).read_bytes() == (ROOT / name).read_bytes()
  for name in (".venv", ".git", "runs"):
    assert not (sdist / name).exists()
  build(sdist, tmp_path, "--target", "wheel")
  with zipfile.ZipFile(tmp_path / f"{NAME}-py3-none-any.whl") as again:
    content = {name: again.read(name) for name in again.namelist()}
  assert content == {name: wheel.read(name) for name in wheel.namelist()}


def test_metadata_are_valid(wheel):
  raw = wheel.read(f"{NAME}.dist-info/METADATA")
  found = metadata.Metadata.from_email(raw, validate=True)
  assert str(found.version) == rvsm_jax.__version__
  assert found.license_expression == "Apache-2.0"
  assert found.description_content_type == "text/markdown"
  assert found.description == (ROOT / "README.md").read_text(encoding="utf-8")
  needed = {one.name for one in found.requires_dist if one.marker is None}
  assert needed == {"jax", "jaxlib", "optax", "chex", "numpy"}


TRAINING = """
import jax, jax.numpy as jnp, optax, rvsm_jax
tx = rvsm_jax.rvsm_sgd(0.1, rvsm_jax.l0(), lam=0.5, beta=1.0)
w = jnp.array([3.0, 0.1])
state = tx.init(w)
for _ in range(100):
  updates, state = tx.update(w - jnp.array([3.0, 0.1]), state, w)
  w = optax.apply_updates(w, updates)
assert rvsm_jax.sparse_params(state, w)[1] == 0.0
print(rvsm_jax.__file__, rvsm_jax.__version__)
"""


@pytest.mark.slow
def test_an_installed_wheel_trains_away_from_the_sources(dist, tmp_path):
  site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
  elsewhere.mkdir()
  (wheel,) = dist.glob("*.whl")
  install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
  install += ["--no-index", "--disable-pip-version-check", "--target", str(site)]
  subprocess.run([*install, str(wheel)], check=True)
  done = subprocess.run(
    [sys.executable, "-c", TRAINING],
    cwd=elsewhere,
    env=os.environ | {"PYTHONPATH": str(site), "JAX_PLATFORMS": "cpu"},
    check=True,
    capture_output=True,
    text=True,
  )
  place, number = done.stdout.split()
  assert pathlib.Path(place).is_relative_to(site)
  assert number == rvsm_jax.__version__


# What people see of the project beside the package.


def read_yaml(name):
  return yaml.safe_load((ROOT / name).read_text(encoding="utf-8"))


def test_the_citation_names_the_three_papers():
  citation = read_yaml("CITATION.cff")
  assert {"cff-version", "message", "title", "authors"} <= citation.keys()
  papers = citation["references"]
  assert [paper["year"] for paper in papers] == [2019, 2020, 2019]
  authors = [[who["family-names"] for who in paper["authors"]] for paper in papers]
  assert authors == [["Xue", "Xin"], ["Dinh", "Xin"], ["Ma", "Miao", "Niu", "Zhang"]]
  assert all({"type", "title"} <= paper.keys() for paper in papers)


def test_ci_calls_make_on_every_python_and_both_ends_of_jax():
  jobs = read_yaml(".github/workflows/ci.yml")["jobs"]
  matrix = jobs["test"]["strategy"]["matrix"]["include"]
  declared = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if " 3." in c]
  declared = [c.removeprefix(":: ") for c in declared]
  assert sorted({cell["python"] for cell in matrix}) == declared
  commands = [step["run"] for step in jobs["test"]["steps"] if "run" in step]
  targets = set(
    re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
  )
  for command in commands:
    make, target, *_ = command.split()
    assert make == "make"
    assert target in targets
  for cell in matrix:
    assert (ROOT / cell["constraints"]).is_file()


def test_the_oldest_versions_in_ci_are_the_floors():
  floors = {}
  extras = PROJECT["optional-dependencies"]["experiments"]
  for line in PROJECT["dependencies"] + extras:
    requirement = requirements.Requirement(line)
    (floor,) = requirement.specifier
    assert floor.operator == ">="
    floors[requirement.name] = version.Version(floor.version)
  pinned = {}
  for line in (ROOT / ".github/oldest.txt").read_text().splitlines():
    if line and not line.startswith("#"):
      name, _, number = line.partition("==")
      pinned[name] = version.Version(number)
  assert {"jax", "jaxlib", "optax", "chex", "numpy", "flax"} <= pinned.keys()
  assert {name: floors[name] for name in pinned} == pinned
