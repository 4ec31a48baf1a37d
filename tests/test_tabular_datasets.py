"""DIGITS, PENDIGITS, SDD, MNIST: read from original files, which are recognised."""

import dataclasses
import gzip
import io
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits

from experiments import datasets
from experiments.datasets import _original, mnist, tabular

ROOT = pathlib.Path(__file__).parent.parent
GIT_BLOB_OF_HELLO = "ce013625030ba8dba906f756967f9e9ca394464a"


def npy(array):
  buffer = io.BytesIO()
  np.save(buffer, array)
  return buffer.getvalue()


def table(monkeypatch, name, contents):
  """Replaces a set by a small one with these contents of its files."""
  known = tabular.TABLES[name]
  files = tuple(
    dataclasses.replace(file, checksum=_original.sha256(content))
    for file, content in zip(known.files, contents, strict=True)
  )
  parsed = known.parse(dict(zip([f.name for f in files], contents, strict=True)))
  sizes = {split: len(y) for split, (_, y) in parsed.items()}
  small = dataclasses.replace(known, files=files, splits=sizes)
  monkeypatch.setitem(tabular.TABLES, name, small)
  one = dataclasses.replace(datasets.SETS[name], splits=sizes)
  monkeypatch.setitem(datasets.SETS, name, one)
  return parsed


def text(rows):
  return "\n".join(",".join(f"{v:3d}" for v in row) for row in rows).encode()


@pytest.fixture
def pendigits(monkeypatch):
  rng = np.random.default_rng(0)
  contents = [
    text(np.column_stack([rng.integers(0, 101, (n, 16)), rng.integers(0, 10, n)]))
    for n in (30, 20)
  ]
  return contents, table(monkeypatch, "pendigits", contents)


def examples(x, y):
  return sorted((row.tobytes(), int(label)) for row, label in zip(x, y, strict=True))


class TestTables:
  def test_checksums_are_the_usual_ones(self):
    assert _original.git_blob(b"hello\n") == GIT_BLOB_OF_HELLO
    assert _original.sha256(b"").startswith("e3b0c44298fc1c149afbf4c8996fb924")

  def test_digits_are_scikit_learns_and_need_no_tensorflow(self, tmp_path):
    x, y = load_digits(return_X_y=True)
    parts = [datasets.load("digits", split, tmp_path) for split in ("train", "test")]
    assert [len(labels) for _, labels in parts] == [1438, 359]
    found = np.concatenate([part for part, _ in parts])
    labels = np.concatenate([labels for _, labels in parts])
    assert examples(found, labels) == examples(x.astype(np.uint8), y)
    assert "tensorflow" not in sys.modules
    assert list(tmp_path.rglob("*.array_record*"))

  @pytest.mark.parametrize("folder", [".", "pendigits"])
  @pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
  def test_pendigits_keeps_its_published_split(
    self, folder, packed, pendigits, tmp_path
  ):
    contents, parsed = pendigits
    source = tmp_path / "source"
    (source / folder).mkdir(parents=True)
    for file, content in zip(tabular.TABLES["pendigits"].files, contents, strict=True):
      name = f"{file.name}.gz" if packed else file.name
      (source / folder / name).write_bytes(
        gzip.compress(content) if packed else content
      )
    for split in ("train", "test"):
      x, y = datasets.load("pendigits", split, tmp_path, source)
      assert examples(x, y) == examples(*parsed[split])
    assert parsed["train"][0].shape == (30, 16)
    assert parsed["test"][0].max() <= 100

  def test_sdd_counts_classes_from_zero_and_holds_out_a_fifth(
    self, monkeypatch, tmp_path
  ):
    rng = np.random.default_rng(0)
    rows = np.column_stack([rng.normal(size=(55, 48)), np.repeat(np.arange(1, 12), 5)])
    buffer = io.BytesIO()
    np.savetxt(buffer, rows, fmt="%.17g")
    table(monkeypatch, "sdd", [buffer.getvalue()])
    (tmp_path / "Sensorless_drive_diagnosis.txt").write_bytes(buffer.getvalue())
    x, y = datasets.load("sdd", "train", tmp_path, tmp_path)
    test_x, test_y = datasets.load("sdd", "test", tmp_path, tmp_path)
    assert (len(y), len(test_y)) == (44, 11)
    whole = examples(np.concatenate([x, test_x]), np.concatenate([y, test_y]))
    assert whole == examples(rows[:, :-1].astype(np.float32), rows[:, -1] - 1)

  def test_the_subset_of_sdd_has_its_own_name(self, monkeypatch, tmp_path):
    x, y = np.arange(480.0).reshape(10, 48), np.arange(10.0)
    parsed = table(monkeypatch, "sdd_subset", [npy(x), npy(y)])
    (tmp_path / "X.npy").write_bytes(npy(x))
    (tmp_path / "Y.npy").write_bytes(npy(y))
    found = datasets.load("sdd_subset", "test", tmp_path, tmp_path)
    assert examples(*found) == examples(*parsed["test"])
    with pytest.raises(FileNotFoundError, match=r"Sensorless_drive_diagnosis\.txt"):
      datasets.load("sdd", "test", tmp_path, tmp_path)

  def test_the_cache_alone_is_enough(self, pendigits, tmp_path):
    contents, parsed = pendigits
    for file, content in zip(tabular.TABLES["pendigits"].files, contents, strict=True):
      (tmp_path / file.name).write_bytes(content)
    datasets.load("pendigits", "test", tmp_path, tmp_path)
    code = (
      "import sys; sys.modules['tensorflow_datasets'] = None\n"
      "from experiments import datasets\n"
      "datasets.SETS['pendigits'].splits['test'] = 20\n"
      f"print(len(datasets.load('pendigits', 'test', {str(tmp_path)!r})[0]))"
    )
    ran = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert int(ran) == len(parsed["test"][1])


class TestDamage:
  @pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
  @pytest.mark.parametrize("damage", ["truncated", "altered", "empty", "missing"])
  def test_names_the_file_and_the_checksum_expected(
    self, damage, packed, pendigits, tmp_path
  ):
    contents, _ = pendigits
    files = tabular.TABLES["pendigits"].files
    for file, content in zip(files, contents, strict=True):
      data = bytearray(gzip.compress(content) if packed else content)
      path = tmp_path / (f"{file.name}.gz" if packed else file.name)
      path.write_bytes(data)
    if damage == "missing":
      path.unlink()
    else:
      data[len(data) // 2] ^= 1
      kept = {"truncated": data[:-9], "altered": data, "empty": b""}[damage]
      path.write_bytes(kept)
    error = FileNotFoundError if damage == "missing" else ValueError
    with pytest.raises(error) as caught:
      datasets.load("pendigits", "train", tmp_path, tmp_path)
    message = str(caught.value)
    assert "pendigits.tes" in message
    assert files[1].checksum in message
    if damage == "altered" and not packed:
      assert _original.sha256(bytes(data)) in message
    assert not list(tmp_path.glob("*.npz"))

  def test_a_download_is_checked_too(self, pendigits, tmp_path):
    contents, _ = pendigits
    chosen = tabular.TABLES["pendigits"]
    files = {
      file.url: tmp_path / file.name.replace(".", "_anything.") for file in chosen.files
    }
    for path, content in zip(files.values(), contents, strict=True):
      path.write_bytes(content)
    found = tabular.contents(chosen, None, files.__getitem__)
    assert list(found.values()) == contents
    path.write_bytes(b"an error page")
    with pytest.raises(ValueError, match="truncated or altered: its SHA-256 should be"):
      tabular.contents(chosen, None, files.__getitem__)

  def test_the_subset_cannot_be_downloaded(self):
    with pytest.raises(FileNotFoundError, match=r"pass the directory that has X\.npy"):
      tabular.contents(tabular.TABLES["sdd_subset"], None, pytest.fail)

  @pytest.mark.parametrize(
    ("name", "split", "message"),
    [("iris", "train", "no data set 'iris'"), ("digits", "dev", "no split 'dev'")],
  )
  def test_unknown_names(self, name, split, message):
    with pytest.raises(ValueError, match=message):
      datasets.load(name, split)


class TestMnist:
  @pytest.fixture
  def source(self, monkeypatch, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 28, 28), np.uint8)
    labels = np.arange(7, dtype=np.uint8)
    checksums = dict(zip(mnist._NAMES, mnist.CHECKSUMS["mnist"], strict=True))
    arrays = (images, labels)
    for (name, header), values in zip(mnist.FILES["test"].items(), arrays, strict=True):
      content = gzip.compress(bytes(header) + values.tobytes())
      (tmp_path / "mnist").mkdir(exist_ok=True)
      (tmp_path / "mnist" / name).write_bytes(content)
      checksums[name] = _original.sha256(content)
    monkeypatch.setitem(mnist.CHECKSUMS, "mnist", list(checksums.values()))
    return tmp_path, images, labels

  def test_reads_the_original_files(self, source):
    directory, images, labels = source
    found, found_labels = datasets.load("mnist", "test", None, directory)
    np.testing.assert_array_equal(found[..., 0], images)
    np.testing.assert_array_equal(found_labels, labels)

  @pytest.mark.parametrize("damage", ["truncated", "missing"])
  def test_damage_is_named(self, damage, source):
    directory, *_ = source
    path = directory / "mnist" / "t10k-images-idx3-ubyte.gz"
    content = path.read_bytes()
    path.unlink()
    if damage == "truncated":
      path.write_bytes(content[:-1])
    error = FileNotFoundError if damage == "missing" else ValueError
    with pytest.raises(error, match=r"t10k-images-idx3-ubyte\.gz") as caught:
      datasets.load("mnist", "test", None, directory)
    assert _original.sha256(content) in str(caught.value)

  def test_checksums_are_those_that_tfds_registers(self):
    tfds = pytest.importorskip("tensorflow_datasets")
    root = pathlib.Path(tfds.__file__).parent / "url_checksums"
    for name, checksums in mnist.CHECKSUMS.items():
      lines = (root / f"{name}.txt").read_text().splitlines()
      registered = {line.split("\t")[3]: line.split("\t")[2] for line in lines}
      assert [registered[file] for file in mnist._NAMES] == checksums

  def test_without_source_or_tensorflow_it_says_what_to_do(self, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(FileNotFoundError, match="Pass a directory that has train-im"):
      datasets.load("fashion_mnist", "train", tmp_path)

  @pytest.mark.parametrize(("name", "split"), [("emnist", "train"), ("mnist", "dev")])
  def test_unknown_names(self, name, split):
    with pytest.raises(ValueError, match=r"no data set|no split"):
      datasets.load(name, split)
