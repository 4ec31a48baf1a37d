"""Small sets of pictures: augmentation, folds, averages of networks, mistakes."""

import base64
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage, special

from experiments import __main__ as experiments
from experiments import datasets
from experiments.core import backend, results
from experiments.core.run import Run
from experiments.core.training import Examples
from experiments.curves import config as configs
from experiments.curves import images, predict, small, small_report, train

SIDE = 100


def _changed(pictures, seed=0, **changes):
  fields = jnp.asarray(small.distances(pictures))
  config = small.Config(**changes)
  augmented = jax.jit(small.augmented, static_argnums=2)
  return np.asarray(augmented(fields, jax.random.key(seed), config))


def _line(width, count=32):
  """Pictures of a horizontal line in the middle."""
  pictures = np.zeros((count, SIDE, SIDE, 1), np.uint8)
  top = (SIDE - width) // 2
  pictures[:, top : top + width, 20:80] = 1
  return pictures


def _shapes(count):
  return datasets.samples("planar_shapes", count)


# --- augmentation ---


def test_ink_is_where_the_distance_is_negative():
  pictures, _ = _shapes(6)
  fields = small.distances(pictures)
  np.testing.assert_array_equal(fields < 0, pictures > 0)
  # Next to the edge half a pixel, and one more with each pixel away from it.
  profile = small.distances(_line(5, 1))[0, 40:60, 50, 0]
  np.testing.assert_allclose(profile, np.abs(np.arange(40, 60) - 49) - 2.5)
  np.testing.assert_array_equal(_changed(pictures), pictures)


def test_pictures_are_turned_about_their_middle():
  dot = np.zeros((64, SIDE, SIDE, 1), np.uint8)
  dot[:, 49:52, 78:81] = 1
  turned = _changed(dot, rotation=40)
  y, x = np.transpose(
    [ndimage.center_of_mass(one) for one in turned[..., 0]]
  ) - np.array([[49.5], [49.5]])
  np.testing.assert_allclose(np.hypot(x, y), 29.5, atol=0.7)
  angles = np.degrees(np.arctan2(y, x))
  assert np.all(np.abs(angles) < 43)
  assert angles.min() < -25
  assert angles.max() > 25


def test_strokes_get_wider_and_thinner_by_at_most_so_much():
  widths = _changed(_line(7), stroke=2)[:, :, 50, 0].sum(axis=1)
  assert set(widths.tolist()) == {5, 7, 9}


@pytest.mark.parametrize("width", [1, 2, 3])
def test_thin_strokes_stay_whole(width):
  drawn = _changed(_line(width), stroke=4)[:, :, 25:75, 0]
  assert np.all(drawn.any(axis=1))
  assert drawn.sum(axis=1).max() > width


def test_lines_are_bent_smoothly_and_do_not_break():
  bent = _changed(_line(3), elastic=4)[..., 0]
  heights = [ndimage.center_of_mass(one[:, :, None])[0] for one in bent]
  middle = np.array(
    [[np.flatnonzero(one[:, x]).mean() for x in range(30, 70)] for one in bent]
  )
  assert np.std(heights) > 0.5
  assert 2 < np.std(middle) < 6
  # A tremor would be several pixels of difference between neighbours.
  assert np.abs(np.diff(middle, axis=1)).max() <= 2
  assert all(ndimage.label(one, np.ones((3, 3)))[1] == 1 for one in bent)


def test_what_leaves_the_picture_is_lost_and_paper_comes_in():
  corner = np.zeros((32, SIDE, SIDE, 1), np.uint8)
  corner[:, :30, :30] = 1
  ink = _changed(corner, rotation=180).sum(axis=(1, 2, 3))
  assert np.all(ink <= 930)
  assert ink.min() < 500


# --- folds ---


def test_each_picture_is_held_out_once_and_never_trained_on_there():
  labels = np.random.default_rng(0).permutation(np.repeat([0, 1], [20, 12]))
  config = small.Config(folds=4, networks=3, seed=5)
  chosen = small.members(config, labels)
  assert [(m.fold, m.seed) for m in chosen[:4]] == [(0, 5), (0, 6), (0, 7), (1, 5)]
  held = [member.held for member in chosen[::3]]
  assert sorted(np.concatenate(held)) == list(range(32))
  for member in chosen:
    assert sorted([*member.kept, *member.held]) == list(range(32))
    assert np.bincount(labels[member.held]).tolist() == [5, 3]
  whole = small.members(small.Config(networks=2), labels)
  assert [(len(m.kept), len(m.held)) for m in whole] == [(32, 0)] * 2
  with pytest.raises(ValueError, match="folds=13 is more than the 12 of a class"):
    small.members(small.Config(folds=13), labels)


def test_a_configuration_without_any_of_it_is_that_of_one_training():
  plain = small.Config(shift=3, seed=2)
  assert not plain.several
  assert plain.single == configs.Config(shift=3, seed=2)
  assert plain.name == plain.single.name
  several = small.Config(folds=3, elastic=1.5)
  assert several.several
  assert several.name == f"{small.Config().name}-folds3-elastic1.5"


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"folds": 1}, "folds must be 0, or 2 and more, got 1"),
    ({"networks": 0}, "networks must be positive"),
    ({"stroke": -1.0}, "stroke must not be negative"),
    ({"folds": 2, "overwrite": True}, "overwrite is for one training"),
  ],
)
def test_values_that_make_no_sense(changes, message):
  with pytest.raises(ValueError, match=message):
    small.Config(**changes)


def test_the_interval_is_wilsons():
  low, high = small.interval(21, 30)
  z, n, share = special.ndtri(0.975), 30, 0.7
  middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
  half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
  np.testing.assert_allclose([low, high], [middle - half, middle + half], rtol=1e-12)


@pytest.mark.slow
def test_trainings_mapped_over_are_those_one_after_the_other(monkeypatch):
  x, y = _shapes(12)
  config = small.Config(folds=2, epochs=2, batch_size=3, elastic=2.0, shift=1)
  chosen = small.members(config, y)
  in_turn = small.fitter(config, Examples(x, y), 6)(chosen)
  monkeypatch.setattr(backend, "on_cpu", lambda: False)
  together = small.fitter(config, Examples(x, y), 6)(chosen)
  for one, other in zip(in_turn, together, strict=True):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), one, other)
  first, second = (train.layer(one) for one in in_turn)
  assert np.abs(first - second).max() > 1e-3


# --- from pictures to the report ---


def test_shapes_are_drawn_as_files(tmp_path):
  folder = tmp_path / "shapes"
  small.draw(folder, 3, 2)
  found = images.find(folder)
  assert found.classes == ("shaky hand", "steady hand")
  loaded = images.load(folder, found.digest)
  assert [len(loaded[split].y) for split in ("train", "test")] == [6, 4]
  own, labels = _shapes(4)
  drawn = {
    one.tobytes(): y for one, y in zip(loaded["test"].x, loaded["test"].y, strict=True)
  }
  # The label 1 of the set is the first class by the alphabet.
  assert drawn == {one.tobytes(): 1 - y for one, y in zip(own, labels, strict=True)}
  with pytest.raises(FileExistsError):
    small.draw(folder, 3, 2)


def test_mistakes_are_listed_by_their_certainty():
  x, y = _shapes(6)
  shares = np.full((6, 2), 0.5)
  for i, certain in ((2, 0.7), (3, 0.9)):
    shares[i] = np.where(np.arange(2) == y[i], 1 - certain, certain)
  for i in (0, 1, 4, 5):
    shares[i] = np.where(np.arange(2) == y[i], 0.8, 0.2)
  found = train.mistakes(configs.Config(), Examples(x, y), shares)
  assert [one["file"] for one in found] == ["number 3", "number 2"]
  assert [one["probability"] for one in found] == [0.9, 0.7]
  names = configs.Config().class_names
  assert [(one["class"], one["said"]) for one in found] == [
    (names[y[i]], names[1 - y[i]]) for i in (3, 2)
  ]
  bits = np.frombuffer(base64.b64decode(found[0]["image"]), np.uint8)
  np.testing.assert_array_equal(np.unpackbits(bits).reshape(x[3].shape), x[3])


def _command(*arguments):
  experiments.main("curves", *map(str, arguments))


@pytest.mark.slow
def test_a_small_set_from_files_to_predictions(tmp_path, capsys, monkeypatch):
  folder, run = tmp_path / "shapes", tmp_path / "run"
  _command("draw", folder, "--train", 6, "--test", 4)
  options = ["--images", folder, "--output", run, "--epochs", 2, "--batch-size", 4]
  options += ["--folds", 2, "--networks", 2, "--rotation", 20]
  _command(*options)
  out = capsys.readouterr().out
  assert "4 networks" in out
  stem = "images-shapes-l0-rvsm-ramped-seed0-folds2-networks2-rotation20"
  written = {path.name for path in run.iterdir()}
  assert written >= {f"{stem}.json", f"{stem}.md", "images-shapes-samples.png"}
  result = results.read(run / f"{stem}.json")
  assert str(tmp_path) not in json.dumps(result)
  held_out, test = result["final"]["held_out"], result["final"]["test"]
  assert (held_out["count"], test["count"]) == (12, 8)
  assert np.shape(held_out["networks"]) == np.shape(result["final"]["zeros"]) == (2, 2)

  # What is predicted of the test pictures is what is reported.
  trained = predict.restore(run)
  assert "the average of 4 networks of u" in predict.describe(trained)
  x, y, files = images.load(folder, trained.config.digest)["test"]
  said = np.argmax(predict.probabilities(trained, x), axis=1)
  assert np.mean(said == y) == test["accuracy"]
  wrong = {one["file"] for one in result["mistakes"] if one["part"] == "test"}
  assert wrong == {f for f, a, b in zip(files, said, y, strict=True) if a != b}

  # What a kill leaves is not trained again, and nothing changes.
  (run / "result.json").unlink()
  (run / "parts" / "network-fold1-seed1.json").unlink()
  trained_again = []

  def fitter(*arguments, fitter=small.fitter):
    fit = fitter(*arguments)
    return lambda group: trained_again.extend(group) or fit(group)

  monkeypatch.setattr(small, "fitter", fitter)
  _command(*options)
  assert [(member.fold, member.seed) for member in trained_again] == [(1, 1)]
  again = results.read(run / f"{stem}.json")
  assert again | {"seconds": 0} == result | {"seconds": 0}

  # The table of several results follows from them.
  plain = result | {"config": result["config"] | {"rotation": 0.0}, "mistakes": []}
  reports = tmp_path / "small"
  for name, one in (("changed", result), ("plain", plain)):
    results.write_json(reports / f"{name}.json", one)
  files = [file.name for file in small_report.rebuild(reports)]
  assert files == ["small.md", "mistakes.png"][: 1 + bool(result["mistakes"])]
  rows = (reports / "small.md").read_text().splitlines()[4:8]
  assert [row.split(" | ")[0].strip("| ") for row in rows] == 2 * [
    "none",
    "turns of up to 20°",
  ]


def test_an_unfinished_run_of_several_networks_does_not_predict(tmp_path):
  config = dataclasses.replace(small.Config(), folds=2)
  with Run(tmp_path, config):
    pass
  with pytest.raises(ValueError, match="is unfinished"):
    predict.restore(tmp_path)
