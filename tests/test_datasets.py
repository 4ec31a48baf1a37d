"""Planar shapes and alphabets: the tremor, and nothing else, tells them apart."""

import hashlib
import os
import pathlib
import subprocess
import sys

from helpers import in_part
import matplotlib
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from experiments import datasets
from experiments.datasets import _drawing, alphabets, planar_shapes

ROOT = pathlib.Path(__file__).parent.parent
TRAIN, TEST, UNSEEN = 0, 1, 2


def draw(module, split, count, **options):
  """Returns the first images, (count, 100, 100), and labels of a split."""
  pairs = [module.example(split, index, **options) for index in range(count)]
  return np.stack([p[0][:, :, 0] for p in pairs]), np.array([p[1] for p in pairs])


@pytest.fixture(scope="module")
def shapes():
  return draw(planar_shapes, TRAIN, 1500), draw(planar_shapes, TEST, 800)


@pytest.fixture(scope="module")
def letters():
  return draw(alphabets, TRAIN, 1000), draw(alphabets, TEST, 600)


@pytest.fixture
def both(request):
  return request.getfixturevalue(request.param)


def small(monkeypatch):
  for one in (datasets.PLANAR_SHAPES, datasets.ALPHABETS):
    for split in one.splits:
      monkeypatch.setitem(one.splits, split, 12)


def geometry(images):
  """Returns ink, bounding box, its sides, and ink per box."""
  rows = []
  for image in images:
    y, x = np.flatnonzero(image.any(axis=1)), np.flatnonzero(image.any(axis=0))
    width, height, ink = np.ptp(x) + 1, np.ptp(y) + 1, int(image.sum())
    box = [x[0], x[-1], y[0], y[-1], width, height]
    rows.append([ink, *box, ink / (width * height), ink / (width + height)])
  return np.array(rows, float)


def local_patterns(images):
  """Returns, for each image, the shares of the 512 patterns of 3 x 3 pixels."""
  windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(1, 2))
  codes = (windows.reshape(*windows.shape[:3], 9) << np.arange(9)).sum(axis=-1)
  counts = np.stack([np.bincount(c.ravel(), minlength=512) for c in codes])
  return np.sqrt(counts / counts[:, 1:-1].sum(axis=1, keepdims=True))


def score(model, features, sets):
  (train, train_labels), (test, test_labels) = sets
  return model.fit(features(train), train_labels).score(features(test), test_labels)


@pytest.mark.parametrize(
  "both", in_part(["shapes", "letters"], "shapes"), indirect=True
)
class TestBothSets:
  def test_binary_and_balanced(self, both):
    for images, labels in both:
      assert images.dtype == np.uint8
      assert images.shape[1:] == (100, 100)
      assert set(np.unique(images)) == {0, 1}
      assert labels.mean() == 0.5

  def test_no_image_occurs_twice(self, both):
    hashes = [hash(image.tobytes()) for images, _ in both for image in images]
    assert len(set(hashes)) == len(hashes)

  def test_geometry_does_not_tell(self, both):
    squares = PolynomialFeatures(2)
    logistic = LogisticRegression(max_iter=2000)
    model = make_pipeline(StandardScaler(), squares, StandardScaler(), logistic)
    assert score(model, geometry, both) <= 0.56

  def test_pixels_do_not_tell_linearly(self, both):
    model = LogisticRegression(C=1e-3, max_iter=100)
    flat = lambda images: images.reshape(len(images), -1).astype(float)  # noqa: E731
    assert score(model, flat, both) <= 0.56

  def test_the_mean_picture_does_not_tell(self, both):
    (train, train_labels), (test, test_labels) = both
    means = [train[train_labels == label].mean(axis=0) for label in (0, 1)]
    distance = [((test - mean) ** 2).sum(axis=(1, 2)) for mean in means]
    assert np.mean((distance[1] < distance[0]) == test_labels) <= 0.56

  @pytest.mark.slow
  def test_local_patterns_tell(self, both):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    assert score(model, local_patterns, both) >= 0.9


def test_shapes_are_the_same_bytes_everywhere():
  images, _ = draw(planar_shapes, TRAIN, 64)
  digest = hashlib.sha256(images.tobytes()).hexdigest()
  assert digest == "fbac8256447819a7e2cd1674665e9d2891c9d22940ee24bf7ebf9e32f4539148"


def test_letters_are_the_same_bytes_in_another_process():
  code = (
    "import hashlib; from experiments.datasets import alphabets\n"
    "images = b''.join(alphabets.example(2, i)[0].tobytes() for i in range(20))\n"
    "print(hashlib.sha256(images).hexdigest())"
  )
  images, _ = draw(alphabets, UNSEEN, 20)
  other = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
  assert other.strip() == hashlib.sha256(images.tobytes()).hexdigest()


def test_pens_hardly_tell(monkeypatch):
  widths = []

  def spy(points, ink):
    steps = np.roll(points, -1, axis=0) - points
    widths.append(ink / np.sqrt((steps**2).sum(axis=1)).sum())
    return np.zeros((100, 100), np.uint8)

  monkeypatch.setattr(_drawing, "ink_line", spy)
  labels = np.array([planar_shapes.example(TRAIN, index)[1] for index in range(2000)])
  thinner = np.array(widths)[:, None] < np.linspace(1, 3, 100)
  assert (thinner == labels[:, None]).mean(axis=0).max() <= 0.57


def test_sine_is_the_sine():
  turns = np.linspace(-3, 3, 2001)
  np.testing.assert_allclose(_drawing.sine(turns), np.sin(2 * np.pi * turns), atol=1e-7)


@pytest.mark.parametrize("length", [30.0, 120.0, 350.0])
def test_tremor_is_parkinsonian(length):
  arc = np.linspace(0, length, 4000)
  for seed in range(20):
    rng = _drawing.keyed_rng(seed)
    phase, amplitude = _drawing.tremor(rng, arc, length, (0.5, 0.7))
    hertz = np.gradient(phase, arc) * _drawing.PIXELS_PER_S
    # Rounding to whole turns matters on a short line only.
    slack = 0.5 * _drawing.PIXELS_PER_S / length
    assert hertz.min() > 4 - slack
    assert hertz.max() < 6 + slack
    assert amplitude.min() > 0.5 * (1 - _drawing.TREMOR_MM_WANDER)
    assert phase[-1] - phase[0] == pytest.approx(round(phase[-1] - phase[0]))


def test_ink_line_leaves_exactly_the_ink():
  points = np.stack([np.linspace(10, 90, 200), np.full(200, 50.0)], axis=1)
  image = _drawing.ink_line(points, 170)
  assert image.sum() == 170
  assert image[50, 10:91].all()
  with pytest.raises(ValueError, match="cannot take"):
    _drawing.ink_line(points, 5000)


def test_the_unseen_font_is_unseen():
  assert not set(alphabets.FONTS) & set(alphabets.UNSEEN_FONTS)
  assert list(datasets.ALPHABETS.splits)[UNSEEN] == "test_unseen_font"


def test_a_font_of_the_users_makes_the_shaky_letters():
  font = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf/STIXGeneralBol.ttf")
  default, _ = draw(alphabets, TRAIN, 12)
  images, labels = draw(alphabets, TRAIN, 12, shaky_font=font)
  same = (images == default).all(axis=(1, 2))
  np.testing.assert_array_equal(same, labels == 0)
  np.testing.assert_array_equal(images.sum(axis=(1, 2)), default.sum(axis=(1, 2)))
  symbols = font.with_name("STIXSizFiveSymReg.ttf")
  with pytest.raises(ValueError, match="no letter"):
    draw(alphabets, TRAIN, 300, shaky_font=symbols)
  with pytest.raises(ValueError, match="not a font file"):
    draw(alphabets, TRAIN, 2, shaky_font=__file__)


class TestLoad:
  @pytest.mark.parametrize("name", ["planar_shapes", "alphabets"])
  def test_prepares_with_tfds_and_without_tensorflow(self, name, tmp_path, monkeypatch):
    small(monkeypatch)
    module = {"planar_shapes": planar_shapes, "alphabets": alphabets}[name]
    images, labels = datasets.load(name, "test", tmp_path)
    assert images.shape == (12, 100, 100, 1)
    assert (images.dtype, labels.dtype) == (np.uint8, np.int32)
    expected, expected_labels = draw(module, TEST, 12)
    found = {(i.tobytes(), int(y)) for i, y in zip(images, labels, strict=True)}
    assert found == {
      (i.tobytes(), int(y)) for i, y in zip(expected, expected_labels, strict=True)
    }
    assert list(tmp_path.rglob("*.array_record*"))
    assert "tensorflow" not in sys.modules
    again, _ = datasets.load(name, "test", tmp_path)
    np.testing.assert_array_equal(images, again)

  def test_the_cache_alone_is_enough(self, tmp_path, monkeypatch):
    small(monkeypatch)
    monkeypatch.setenv("RVSM_DATA_DIR", str(tmp_path))
    datasets.load("planar_shapes", "test")
    code = (
      "import sys\n"
      "sys.modules['tensorflow_datasets'] = None\n"
      "from experiments import datasets\n"
      "datasets.PLANAR_SHAPES.splits.update(train=12, test=12)\n"
      "assert len(datasets.load('planar_shapes', 'test')[0]) == 12\n"
      "datasets.load('planar_shapes', 'train')"
    )
    ran = subprocess.run(
      [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )
    message = ran.stderr.splitlines()[-1]
    assert message.startswith("ImportError")
    assert "planar_shapes-1.0.0-train.npz" in message
    assert "pip install" in message

  def test_what_is_interrupted_is_not_taken_for_whole(self, tmp_path, monkeypatch):
    small(monkeypatch)
    example = planar_shapes.example

    def killed(split, index):
      if (split, index) == (TEST, 5):
        raise KeyboardInterrupt
      return example(split, index)

    monkeypatch.setattr(planar_shapes, "example", killed)
    with pytest.raises(KeyboardInterrupt):
      datasets.load("planar_shapes", "train", tmp_path)
    assert not list(tmp_path.glob("*.npz"))
    monkeypatch.setattr(planar_shapes, "example", example)
    assert len(datasets.load("planar_shapes", "test", tmp_path)[0]) == 12

  def test_two_may_prepare_at_once(self, tmp_path, monkeypatch):
    small(monkeypatch)
    example = planar_shapes.example

    def overtaken(split, index):
      monkeypatch.setattr(planar_shapes, "example", example)
      datasets.load("planar_shapes", "test", tmp_path)
      return example(split, index)

    monkeypatch.setattr(planar_shapes, "example", overtaken)
    assert len(datasets.load("planar_shapes", "train", tmp_path)[0]) == 12

  @pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
  def test_a_damaged_cache_says_so(self, damage, tmp_path, monkeypatch):
    small(monkeypatch)
    cache = tmp_path / "planar_shapes-1.0.0-test.npz"
    images, labels = np.ones((12, 100, 100, 1), np.uint8), np.ones(12, np.int32)
    images[np.random.default_rng(0).random(images.shape) < 0.5] = 0
    np.savez_compressed(cache, images=images, labels=labels)
    assert len(datasets.load("planar_shapes", "test", tmp_path)[0]) == 12
    content = bytearray(cache.read_bytes())
    content[len(content) // 2] ^= 255
    if damage == "other":
      np.savez(cache, images=images[:3], labels=labels[:3])
    else:
      kept = {"truncated": content[:-100], "flipped": content, "empty": b""}
      cache.write_bytes(kept[damage])
    with pytest.raises(ValueError, match=f"{cache.name} is damaged.*delete it"):
      datasets.load("planar_shapes", "test", tmp_path)

  def test_a_font_has_its_own_cache(self, tmp_path, monkeypatch):
    small(monkeypatch)
    font = os.path.join(matplotlib.get_data_path(), "fonts/ttf/cmtt10.ttf")
    regular, _ = datasets.load("alphabets", "test", tmp_path)
    images, _ = datasets.load("alphabets", "test", tmp_path, shaky_font=font)
    assert len(list(tmp_path.glob("alphabets*-test.npz"))) == 2
    assert not np.array_equal(images, regular)

  @pytest.mark.parametrize(
    ("arguments", "message"),
    [
      (("shapes", "train"), "no data set 'shapes'; there are planar_shapes"),
      (("planar_shapes", "test_unseen_font"), "no split 'test_unseen_font'"),
    ],
  )
  def test_unknown_names(self, arguments, message):
    with pytest.raises(ValueError, match=message):
      datasets.load(*arguments)

  def test_font_errors(self, tmp_path):
    with pytest.raises(ValueError, match="shaky_font is for alphabets"):
      datasets.load("planar_shapes", "train", tmp_path, shaky_font="a.ttf")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*a\.ttf"):
      datasets.load("alphabets", "train", tmp_path, shaky_font=tmp_path / "a.ttf")
