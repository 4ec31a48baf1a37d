"""The user's own pictures: preparing, folders, training on them, and predicting."""

import dataclasses
import json
import pathlib
import shutil
import unicodedata
import zlib

import matplotlib
import numpy as np
from PIL import Image, ImageDraw
import pytest
from scipy import ndimage, special

from experiments import curves, datasets
from experiments.core import cli
from experiments.core.run import ConfigMismatchError, Run
from experiments.curves import config as configs
from experiments.curves import images, predict, train

SIDE = 500


def _strokes(side=SIDE, width=4.0, shape="spiral"):
  """Where there is ink, (side, side) in [0, 1], drawn four times as large."""
  t = np.linspace(0, 1, 2000)
  if shape == "spiral":
    angle = 6 * np.pi * t
    radius = (0.05 + 0.3 * t) * (1 + 0.04 * np.sin(8 * angle))
    lines = [np.stack([0.45 + radius * np.cos(angle), 0.5 + radius * np.sin(angle)])]
  else:
    lines = [np.stack([0.6 + 0 * t, 0.4 + 0.3 * t])]
    lines += [np.stack([0.6 + 0 * t, 0.3 + 0.015 * t])]
  canvas = Image.new("L", (4 * side, 4 * side))
  for line in lines:
    points = [tuple(point) for point in (4 * side * line).T.tolist()]
    ImageDraw.Draw(canvas).line(points, 255, round(4 * width), joint="curve")
  return np.asarray(canvas.reduce(4), np.float64) / 255


def _scan(ink, darkness=0.6, light=0.4, shadow=0.0, grain=0.03, noise=0.02):
  """A photograph of a drawing on textured paper under uneven light, in [0, 255]."""
  rng = np.random.default_rng(0)
  side = len(ink)
  y, x = np.mgrid[:side, :side] / side
  texture = ndimage.gaussian_filter(rng.normal(size=ink.shape), 2)
  bright = 0.95 - light * (0.6 * x + 0.4 * y)
  bright *= ndimage.gaussian_filter(1 - shadow * (x + 0.3 * y > 0.7), 2.0)
  pressure = ndimage.gaussian_filter(rng.normal(size=ink.shape), 8)
  dark = darkness * (1 + 0.15 * pressure / pressure.std()) * ink
  picture = bright * (1 - dark + grain * texture / texture.std())
  picture = picture + noise * rng.normal(size=ink.shape)
  return np.clip(255 * picture, 0, 255).astype(np.uint8)


def _save(path, picture, **options):
  path.parent.mkdir(parents=True, exist_ok=True)
  (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(
    path, **options
  )
  return path


def _overlap(one, other):
  return np.sum(one & other) / np.sum(one | other)


def _truth(ink):
  """The drawing itself, prepared from a clean picture."""
  return images._place(images.find_ink(np.float32(255 * (1 - ink))))


@pytest.fixture(scope="module")
def spiral():
  return _strokes()


@pytest.fixture(scope="module")
def scanned(spiral, tmp_path_factory):
  """A scan as a PNG file, and what comes of it."""
  path = _save(tmp_path_factory.mktemp("scan") / "scan.png", _scan(spiral))
  return path, images.prepare(path)


# --- one picture ---


@pytest.mark.parametrize(
  "scan",
  [
    {},
    {"darkness": 0.3, "noise": 0.01},
    {"shadow": 0.45},
    {"light": 0.75},
    {"grain": 0.05, "noise": 0.05},
  ],
  ids=["pen", "pencil", "shadow", "dark corner", "rough paper"],
)
def test_ink_is_told_from_paper(scan, spiral):
  picture = _scan(spiral, **scan)
  found = images.find_ink(np.float32(picture))
  truth = np.kron(spiral, np.ones((2, 2))) > 0.5
  assert _overlap(found, truth) > 0.6
  # Next to nothing far from the strokes, and no part of the strokes missing.
  near = ndimage.binary_dilation(truth, iterations=8)
  assert np.mean(near[found]) > 0.998
  assert np.mean(ndimage.binary_dilation(found, iterations=8)[truth]) > 0.97
  near = ndimage.binary_dilation(_truth(spiral), np.ones((3, 3)))
  assert np.mean(near[images._place(found)]) > 0.97


def test_a_picture_becomes_zeros_and_ones(scanned):
  prepared = scanned[1]
  assert prepared.shape == (100, 100, 1)
  assert prepared.dtype == np.uint8
  assert set(np.unique(prepared)) == {0, 1}


def test_light_ink_on_dark_paper_is_found_as_well(spiral):
  dark = images.find_ink(np.float32(_scan(spiral)))
  light = images.find_ink(np.float32(255 - _scan(spiral)))
  assert _overlap(dark, light) > 0.6


def test_separate_parts_are_kept_and_dust_is_not():
  ink = _strokes(shape="i", width=6.0)
  dusty = _scan(ink)
  dusty[20:22, 30:32] = 90
  np.testing.assert_array_equal(
    images.find_ink(np.float32(dusty))[100:],
    images.find_ink(np.float32(_scan(ink)))[100:],
  )
  _, parts = ndimage.label(images.find_ink(np.float32(dusty)))
  assert parts == 2


@pytest.mark.parametrize("width", [0.7, 4.0, 20.0])
def test_strokes_stay_whole_and_keep_their_width(width):
  side = 1000
  placed = _truth(_strokes(side, width))
  _, parts = ndimage.label(placed, np.ones((3, 3)))
  assert parts == 1
  rows, columns = np.nonzero(placed)
  ends = [images.MARGIN, images.SIDE - images.MARGIN - 1]
  spans = [[rows.min(), rows.max()], [columns.min(), columns.max()]]
  assert ends in spans
  scale = (images.SIDE - 2 * images.MARGIN) / (0.7 * side)
  length = scale * np.sum(_strokes(side, 4.0)) / 4.0
  assert placed.sum() == pytest.approx(length * max(1.0, scale * width), rel=0.4)


def test_the_aspect_ratio_is_kept(tmp_path):
  picture = np.full((300, 600), 250, np.uint8)
  picture[140:160, 50:550] = 0
  rows, columns = np.nonzero(images.prepare(_save(tmp_path / "a.png", picture))[..., 0])
  height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
  assert width == images.SIDE - 2 * images.MARGIN
  assert height == pytest.approx(width * 20 / 500, abs=1.5)


def test_colour_depth_and_alpha_do_not_matter(scanned, tmp_path):
  path, expected = scanned
  grey = Image.open(path)
  values = np.asarray(grey)
  clear = Image.merge("LA", [Image.new("L", grey.size), Image.fromarray(255 - values)])
  variants = {
    "rgb.png": grey.convert("RGB"),
    "rgb.bmp": grey.convert("RGB"),
    "cmyk.tif": grey.convert("CMYK"),
    "palette.png": grey.convert("P"),
    "transparent.png": clear,
    "transparent.webp": clear.convert("RGBA"),
    "deep.png": Image.fromarray(257 * values.astype(np.uint16)),
    "12 bits.tiff": Image.fromarray(16 * values.astype(np.uint16)),
    "float.TIF": Image.fromarray(np.float32(values) / 255),
    "good.jpg": grey,
  }
  for name, variant in variants.items():
    options = {"quality": 95} if name.endswith(("jpg", "webp")) else {}
    found = images.prepare(_save(tmp_path / name, variant, **options))
    assert _overlap(found, expected) > 0.85, name


@pytest.mark.parametrize("factor", [0.6, 2.0, 4.0])
def test_size_does_not_matter(scanned, factor, tmp_path):
  path, expected = scanned
  side = round(factor * SIDE)
  scaled = Image.open(path).resize((side, side), Image.Resampling.BICUBIC)
  found = images.prepare(_save(tmp_path / "scaled.png", scaled))
  near = ndimage.binary_dilation(expected[..., 0], np.ones((3, 3)))
  assert np.mean(near[found[..., 0] == 1]) > 0.99
  assert _overlap(found, expected) > 0.7


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tiff"])
def test_the_orientation_of_a_camera_is_undone(scanned, suffix, tmp_path):
  path, expected = scanned
  turned = Image.open(path).transpose(Image.Transpose.ROTATE_90)
  exif = Image.Exif()
  exif[0x0112] = 6
  options = {"quality": 95} if suffix in (".jpg", ".webp") else {}
  file = _save(tmp_path / f"turned{suffix}", turned, exif=exif, **options)
  assert _overlap(images.prepare(file), expected) > 0.85


@pytest.mark.parametrize("colours", [(0, 1), (0, 255), (255, 0), (200, 90)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_of_the_projects_own_sets_stay_as_they_are(colours, mode, tmp_path):
  image = _strokes(100, 2.0) > 0.5
  picture = np.where(image, colours[1], colours[0]).astype(np.uint8)
  path = _save(tmp_path / "own.png", Image.fromarray(picture).convert(mode))
  np.testing.assert_array_equal(images.prepare(path)[..., 0], image)


def test_ten_thousand_pixels_a_side_in_one_bit(spiral, tmp_path):
  small = Image.fromarray((spiral < 0.5).astype(np.uint8) * 255)
  huge = small.resize((10_000, 10_000), Image.Resampling.NEAREST).convert("1")
  path = _save(tmp_path / "huge.tif", huge, compression="group4")
  near = ndimage.binary_dilation(_truth(spiral), np.ones((3, 3)))
  assert np.mean(near[images.prepare(path)[..., 0] == 1]) > 0.98


def _broken(path, kind):
  if kind == "truncated":
    _save(path, _scan(_strokes(100)))
    path.write_bytes(path.read_bytes()[:3000])
  elif kind == "oversized":
    # The header alone promises more than Pillow itself would open.
    _save(path, np.zeros((8, 8), np.uint8))
    content = bytearray(path.read_bytes())
    content[16:24] = (60_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
  elif kind == "blank":
    _save(path, _scan(np.zeros((SIDE, SIDE))))
  elif kind == "one colour":
    _save(path, np.full((100, 100), 7, np.uint8))
  elif kind != "missing":
    path.write_bytes({"empty": b"", "text": b"a spiral, honestly"}[kind])
  return path


@pytest.mark.parametrize(
  ("kind", "message"),
  [
    ("missing", "cannot be read as a picture"),
    ("empty", "cannot be read as a picture"),
    ("text", "cannot be read as a picture"),
    ("truncated", "cannot be read as a picture"),
    ("oversized", "more than 120 million pixels: scale it down"),
    ("blank", "is blank"),
    ("one colour", "is blank"),
  ],
)
def test_a_bad_picture_is_named(kind, message, tmp_path):
  path = _broken(tmp_path / "die schöne Spirale.png", kind)
  with pytest.raises(ValueError, match=f"die schöne Spirale.png .*{message}|{message}"):
    images.prepare(path)


def test_the_limit_of_size_is_ours(monkeypatch, scanned):
  monkeypatch.setattr(images, "MAX_PIXELS", SIDE * SIDE - 1)
  with pytest.raises(ValueError, match=r"scan\.png has more than .* pixels"):
    images.prepare(scanned[0])
  monkeypatch.setattr(images, "MAX_PIXELS", SIDE * SIDE)
  # Below our limit, Pillow's own warning is not shown.
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", SIDE * SIDE - 1)
  images.prepare(scanned[0])


# --- a folder of pictures ---

CLASSES = ("gesunde Hände", "pärkinson [1]")


def _drawing(label, seed):
  """100 x 100 pixels in two colours: thin or thick lines."""
  rng = np.random.default_rng((label, seed))
  canvas = Image.new("L", (100, 100), 255)
  line = [tuple(point) for point in rng.integers(5, 95, (4, 2)).tolist()]
  ImageDraw.Draw(canvas).line(line, fill=0, width=1 + 5 * label)
  return canvas


def _folder(root, sizes=(6, 3), classes=CLASSES):
  for split, size in zip(("train", "test"), sizes, strict=True):
    for label, name in enumerate(classes):
      for seed in range(size):
        path = root / split / name / f"Bild {seed} ü.png"
        _save(path, _drawing(label, seed + 100 * (split == "test")))
  return root


@pytest.fixture
def folder(tmp_path):
  return _folder(tmp_path / "meine Bilder")


def test_a_folder_is_listed_and_loaded(folder):
  found = images.find(folder)
  assert found.classes == CLASSES
  assert found.skipped == []
  loaded = images.load(folder, found.digest)
  for split, size in (("train", 6), ("test", 3)):
    pictures, labels, files = loaded[split]
    assert pictures.shape == (2 * size, 100, 100, 1)
    for file, label in zip(files, labels, strict=True):
      assert file.startswith(f"{split}/{CLASSES[label]}/")
    assert np.bincount(labels).tolist() == [size, size]
    # In two blocks, the last images would be a validation set of one class.
    assert np.any(np.diff(labels) < 0)
    for picture, label in zip(pictures, labels, strict=True):
      assert (picture.sum() > 500) == (label == 1)


def test_what_is_no_picture_is_skipped(folder):
  strays = ["train/.DS_Store", "test/notes.txt", f"train/{CLASSES[0]}/._a.png"]
  strays += [f"train/{CLASSES[0]}/Thumbs.db", f"test/{CLASSES[1]}/more"]
  digest = images.find(folder).digest
  for stray in strays[:-1]:
    (folder / stray).write_bytes(b"?")
  (folder / strays[-1]).mkdir()
  (folder / "train" / ".ipynb_checkpoints").mkdir()
  found = images.find(folder)
  assert found.digest == digest
  skipped = {path.relative_to(folder).as_posix() for path in found.skipped}
  assert skipped == {*strays, "train/.ipynb_checkpoints"}


def test_the_digest_is_that_of_names_and_contents(folder, tmp_path):
  digest = images.find(folder).digest
  copy = shutil.copytree(folder, tmp_path / "copy")
  assert images.find(copy).digest == digest
  picture = next((copy / "test" / CLASSES[0]).iterdir())
  content = picture.read_bytes()
  picture.write_bytes(content + b"\0")
  changed = images.find(copy).digest
  picture.write_bytes(content)
  picture.rename(picture.with_name("other.png"))
  assert len({digest, changed, images.find(copy).digest}) == 3
  with pytest.raises(ValueError, match="have changed"):
    images.load(copy, digest)


def test_classes_of_the_same_letters_are_the_same(tmp_path):
  _folder(tmp_path, classes=[unicodedata.normalize("NFD", name) for name in CLASSES])
  shutil.rmtree(tmp_path / "test")
  _folder(tmp_path / "other")
  shutil.move(tmp_path / "other" / "test", tmp_path / "test")
  assert images.find(tmp_path).classes == CLASSES


def _wrong(root, change):
  first = root / "train" / CLASSES[0]
  match change:
    case "nothing":
      shutil.rmtree(root)
    case "no test":
      shutil.rmtree(root / "test")
    case "one class":
      shutil.rmtree(first)
    case "three classes":
      shutil.copytree(first, root / "train" / "others")
    case "no pictures":
      for file in first.iterdir():
        file.rename(file.with_suffix(".txt"))
    case "other classes":
      first.rename(first.with_name("healthy"))


@pytest.mark.parametrize(
  ("change", "message"),
  [
    ("nothing", "There is no folder .*meine Bilder/train"),
    ("no test", "There is no folder .*meine Bilder/test"),
    ("one class", r"meine Bilder/train must have two .* found 1: 'pärkinson \[1\]'"),
    ("three classes", "meine Bilder/train must have two .* found 3: 'gesunde Hände', "),
    ("no pictures", r"gesunde Hände has no pictures \(\.png"),
    ("other classes", "'healthy' and .* in train, 'gesunde Hände' and .* in test"),
  ],
)
def test_a_wrong_folder_says_what_is_wrong(change, message, folder):
  _wrong(folder, change)
  with pytest.raises(ValueError, match=message):
    train.identified(configs.Config(images=str(folder)))


# --- configuration ---


def test_a_configuration_knows_the_users_images(folder, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  config = train.identified(configs.Config(images="meine Bilder", batch_size=4))
  assert config.data == "images"
  assert config.class_names == CLASSES
  assert config.name == "images-meine Bilder-l0-rvsm-ramped-seed0"
  assert pathlib.Path(config.images) == folder
  assert train.load_unseen_font(config, None) is None
  assert len(train.load_data(config, None).test.y) == 6
  assert configs.Config().class_names == ("steady hand", "shaky hand")
  with Run(tmp_path / "run", config):
    pass
  _save(folder / "test" / CLASSES[0] / "new.png", _drawing(0, 7))
  changed = train.identified(config)
  with pytest.raises(ConfigMismatchError, match=f"digest: there '{config.digest}"):
    Run(tmp_path / "run", changed)


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"data": "images"}, "pass --images DIR"),
    ({"shaky_font": "a.ttf"}, "shaky_font is for alphabets, not for planar_shapes"),
    ({"shaky_font": "a.ttf", "images": "b"}, "shaky_font is for alphabets, not for im"),
  ],
)
def test_options_that_exclude_each_other(changes, message):
  with pytest.raises(ValueError, match=message):
    configs.Config(**changes)


def test_a_font_for_the_shaky_letters(tmp_path, monkeypatch):
  for split in datasets.ALPHABETS.splits:
    monkeypatch.setitem(datasets.ALPHABETS.splits, split, 12)
  regular = configs.Config(data="alphabets", batch_size=4)
  font = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf/cmtt10.ttf")
  config = train.identified(dataclasses.replace(regular, shaky_font=str(font)))
  assert config.name == "alphabets-font-cmtt10-l0-rvsm-ramped-seed0"
  assert len(config.digest) == 64
  with_font, without = (train.load_data(c, tmp_path) for c in (config, regular))
  assert not np.array_equal(with_font.test.x, without.test.x)
  assert train.load_unseen_font(config, tmp_path) is None
  assert len(train.load_unseen_font(regular, tmp_path).x) == 12
  missing = dataclasses.replace(regular, shaky_font=str(tmp_path / "none.ttf"))
  with pytest.raises(ValueError, match=r"there is no file .*none\.ttf"):
    train.identified(missing)
  no_font = train.identified(dataclasses.replace(regular, shaky_font=__file__))
  with pytest.raises(ValueError, match=r"test_images\.py is not a font file"):
    train.load_data(no_font, tmp_path)


# --- training and predicting ---


def test_temperature_undoes_overconfidence():
  rng = np.random.default_rng(0)
  logits = rng.normal(0, 2, (20_000, 2))
  labels = (rng.random(20_000) < special.softmax(logits, axis=1)[:, 1]).astype(int)
  assert train.temperature(3 * logits[None], labels) == pytest.approx(3, rel=0.05)
  assert train.temperature(logits[None] / 2, labels) == 1.0
  # That of an average is fitted to the average, which is less certain than its parts.
  several = 3 * logits + rng.normal(0, 5, (7, *logits.shape))
  fitted = train.temperature(several, labels)
  assert 1 < fitted < train.temperature(several[:1], labels)

  def loss(temperature):
    shares = train.probabilities(several, temperature)
    return -np.mean(np.log(shares[np.arange(len(labels)), labels]))

  assert loss(fitted) < min(loss(fitted * 0.9), loss(fitted / 0.9))


def _command(*arguments):
  cli.run("curves", curves.COMMANDS, [*map(str, arguments)])


def _main(capsys, *arguments):
  _command(*arguments)
  return capsys.readouterr().out


def _contents(directory):
  files = sorted(path for path in directory.rglob("*") if path.is_file())
  return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.slow
def test_training_on_pictures_and_applying_what_came_out(folder, tmp_path, capsys):
  run = tmp_path / "my run"
  options = ["--images", folder, "--output", run, "--epochs", 1, "--threshold", 0.02]
  with pytest.raises(SystemExit, match="batch_size=32 is more than the 12 images"):
    _command(*options)
  assert not run.exists()

  (folder / "train" / "notes.txt").write_text("?")
  out = _main(capsys, *options, "--batch-size", 4)
  assert "notes.txt" in out
  assert "'gesunde Hände', 6 images to train and 3 to test on" in out
  stem = "images-meine Bilder-l0-rvsm-ramped-seed0"
  written = {path.name for path in run.iterdir()}
  assert written >= {f"{stem}.json", f"{stem}.md", "images-meine Bilder-samples.png"}
  result = json.loads((run / "result.json").read_text())
  assert result["data"]["classes"] == list(CLASSES)
  assert result["data"]["train_per_class"] == [6, 6]
  wrong = round(6 * (1 - result["final"]["accuracy"]["u"]))
  assert len(result["mistakes"]) == wrong
  assert (run / f"{stem}-mistakes.png").exists() == bool(wrong)

  before = _contents(run)
  pictures = [folder / "test" / name / "Bild 0 ü.png" for name in CLASSES]
  lines = _main(capsys, "predict", *pictures, "--run", run).splitlines()
  assert _contents(run) == before
  assert lines[0].startswith(f"{stem}, step 3: the network of u, whose dense layer")
  trained = predict.restore(run)
  shares = predict.probabilities(trained, np.stack(list(map(images.prepare, pictures))))
  for picture, share, line in zip(pictures, shares, lines[1:], strict=True):
    name, probability = line.removeprefix(f"{picture}: ").rsplit(", ", 1)
    assert name == CLASSES[np.argmax(share)]
    assert float(probability.rstrip("%").split()[-1]) >= 50.0

  # The test accuracy of u is that of these predictions.
  test_images, labels = images.load(folder, trained.config.digest)["test"][:2]
  found = np.argmax(predict.probabilities(trained, test_images), axis=1) == labels
  assert np.mean(found) == result["final"]["accuracy"]["u"]

  assert "unfinished" in predict.describe(trained._replace(result=None))
  with pytest.raises(SystemExit, match=r"none\.png cannot be read"):
    _command("predict", run / "none.png", "--run", run)


def test_predict_needs_a_run(tmp_path, scanned):
  def complains(message):
    with pytest.raises(SystemExit, match=message):
      _command("predict", scanned[0], "--run", tmp_path)

  complains("no directory of a run: it has no config.json")
  (tmp_path / "config.json").write_text('{"momentum": 0.9, "architecture": "vgg16"}')
  complains("not of a run of experiments.curves")
  (tmp_path / "config.json").write_text("{}")
  complains("has no intact checkpoint")
