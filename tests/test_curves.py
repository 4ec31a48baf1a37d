"""The experiment on curves: network, schedules, measures, command line."""

import dataclasses
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tyro

from experiments import curves as command
from experiments import datasets
from experiments.core import backend, measure, tables
from experiments.core.run import ConfigMismatchError, Run
from experiments.core.training import TrainState
from experiments.curves import config as configs
from experiments.curves import paper, report, train
from experiments.networks import layers
from experiments.networks.curves import CurvesCNN
import rvsm_jax
from rvsm_jax import export

ROOT = pathlib.Path(__file__).parents[1]
CONSTANT = {"lam_schedule": "constant", "lam": 5e-4}
MICRO = configs.Config(epochs=3, batch_size=8, train_size=32, learning_rate=0.01)


def _fake_load(name, split, data_dir=None, **options):
  del data_dir, options
  rng = np.random.default_rng(len(name) + len(split))
  size = 40 if split == "train" else 16
  labels = rng.permutation(np.arange(size) % 2).astype(np.int32)
  ink = np.where(labels == 1, 0.2, 0.02)[:, None, None, None]
  return (rng.random((size, 100, 100, 1)) < ink).astype(np.uint8), labels


@pytest.fixture
def fake_data(monkeypatch):
  monkeypatch.setattr(datasets, "load", _fake_load)


@pytest.fixture(scope="module")
def micro(tmp_path_factory):
  """A run from beginning to end, and its directory."""
  directory = tmp_path_factory.mktemp("micro")
  with pytest.MonkeyPatch.context() as patch, Run(directory, MICRO) as run:
    patch.setattr(datasets, "load", _fake_load)
    return train.train(MICRO, run), directory


# --- the network ---


def test_images_are_shifted_by_whole_pixels_and_no_further():
  images = np.pad(np.ones((200, 1, 1, 1)), ((0, 0), (3, 3), (3, 3), (0, 0)))
  moved = np.asarray(train.shifted(jnp.asarray(images), 2, jax.random.key(0)))
  rows, columns = np.argwhere(moved[..., 0])[:, 1:].T
  assert len(rows) == 200  # nothing is lost that stays inside
  assert set(rows) == set(columns) == set(range(1, 6))
  # Rows and columns independently, each image by itself.
  assert len(set(zip(rows, columns, strict=True))) == 25
  corner = train.shifted(jnp.ones((200, 2, 2, 1)), 2, jax.random.key(1))
  assert set(np.asarray(corner).sum(axis=(1, 2, 3))) == {0, 1, 2, 4}


@pytest.mark.slow
def test_the_network_has_the_papers_weights():
  _, params = train.initial_params(MICRO)
  sizes = {name: layer["kernel"][...].size for name, layer in params.items()}
  assert sizes == {
    "conv1": 288,
    "conv2": 9216,
    "conv3": 9216,
    "dense": 692_224,
    "out": 256,
  }


@pytest.mark.slow
def test_feature_maps_shrink_as_in_the_paper():
  model = CurvesCNN(rngs=nnx.Rngs(0))
  x, shapes = jnp.zeros((2, 100, 100, 1)), []
  for layer in (model.conv1, model.conv2, model.conv3):
    x = layer(x)
    shapes.append(x.shape)
  assert shapes == [(2, 50, 50, 32), (2, 25, 25, 32), (2, 13, 13, 32)]
  assert model(jnp.zeros((2, 100, 100, 1), jnp.uint8)).shape == (2, 2)


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 25, 25, 3)])
def test_max_pool_is_reduce_window(shape):
  def reference(x):
    window = (1, 2, 2, 1)
    return jax.lax.reduce_window(
      x,
      -jnp.inf,
      jax.lax.max,
      window,
      window,
      ((0, 0), (0, shape[1] % 2), (0, shape[2] % 2), (0, 0)),
    )

  x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  pools = [layers.max_pool, reference]
  np.testing.assert_array_equal(*(jax.jit(pool)(x) for pool in pools))
  gradient = [jax.grad(lambda x, p=p: jnp.sum(jnp.sin(p(x)))) for p in pools]
  np.testing.assert_allclose(*(jax.jit(g)(x) for g in gradient), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 5, 7, 4), (2, 6, 8, 1)])
@pytest.mark.parametrize("pooled", [False, True])
def test_convolutions_are_those_of_lax(shape, pooled):
  def reference(x, kernel):
    x = jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return layers.max_pool(x) if pooled else x

  ours = layers.pooled_conv3x3 if pooled else layers.conv3x3
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape).astype(np.float32)
  kernel = rng.normal(size=(3, 3, shape[-1], 5)).astype(np.float32)

  def with_gradients(function):
    def call(x, kernel):
      out, pull = jax.vjp(function, x, kernel)
      return out, pull(jnp.cos(3 * out))

    return jax.jit(call)(x, kernel)

  for got, want in zip(
    jax.tree.leaves(with_gradients(ours)),
    jax.tree.leaves(with_gradients(reference)),
    strict=True,
  ):
    np.testing.assert_allclose(got, want, atol=2e-4)


# --- configuration and optimizer ---


def test_the_threshold_is_ramped():
  config = configs.Config(threshold=0.05, beta=2.0, ramp=(0.3, 0.7))
  lam = configs.lam_schedule(config, 1000)
  thresholds = [float(jnp.sqrt(2 * lam(n) / config.beta)) for n in range(0, 1001, 100)]
  expected = [0, 0, 0, 0, 0.0125, 0.025, 0.0375, 0.05, 0.05, 0.05, 0.05]
  np.testing.assert_allclose(thresholds, expected, atol=1e-6)
  constant = dataclasses.replace(config, lam_schedule="constant", lam=5e-4)
  assert configs.lam_schedule(constant, 1000) == 5e-4


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"epochs": 0}, "epochs must be positive"),
    ({"learning_rate": float("nan")}, "learning_rate must be positive"),
    ({"threshold": -0.1}, "threshold must not be negative"),
    ({"ramp": (0.7, 0.3)}, "ramp must be two shares"),
    ({"method": "sgd"}, "pass --lam"),
    ({"lam": 5e-4}, "a ramp takes none"),
    ({"lam_schedule": "constant"}, "needs a value"),
  ],
)
def test_a_bad_configuration_is_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    configs.Config(**changes)


@pytest.mark.parametrize(
  "config",
  [
    configs.Config(penalty="none"),
    configs.Config(penalty="transformed_l1", method="sgd", **CONSTANT),
    configs.Config(beta=0.1, **CONSTANT),
  ],
  ids=lambda config: config.name,
)
def test_only_rvsm_has_a_u(config):
  _, params = train.initial_params(config)
  tx = configs.optimizer(config, 10)
  state = TrainState.create(params, tx)
  grads = jax.tree.map(jnp.ones_like, params)
  updates, opt_state = tx.update(grads, state.opt_state, params)
  state = state._replace(
    params=optax.apply_updates(params, updates), opt_state=opt_state
  )
  zeros = measure.zeros(state.sparse, configs.SPARSE)
  assert (zeros > 0.9) == config.splits
  assert config.splits == (config.penalty == "l0")


# --- measures ---


def _weights(*groups):
  rng = np.random.default_rng(0)
  return np.concatenate(
    [10.0 ** rng.uniform(np.log10(low), np.log10(high), n) for n, low, high in groups]
  )


def test_the_gap_is_the_emptiest_decade():
  weights = _weights((60_000, 1e-9, 1e-6), (90, 1e-6, 1e-3), (39_910, 1e-3, 1.0))
  gap = measure.find_gap(weights.reshape(1000, 100))
  assert gap.low > 1e-6
  assert gap.high < 1e-3
  assert gap.high >= 10 * gap.low
  assert gap.share < 5e-4
  np.testing.assert_allclose(gap.cut**2, gap.low * gap.high)


def test_an_empty_interval_is_the_gap_as_a_whole():
  weights = _weights((80_000, 1e-9, 1e-7), (20_000, 1e-2, 1.0))
  gap = measure.find_gap(-weights)
  assert (gap.low, gap.high) == (weights[:80_000].max(), weights[80_000:].min())
  assert gap.share == 0.0


@pytest.mark.parametrize(
  "weights",
  [
    np.random.default_rng(0).normal(0, 0.02, 100_000),
    # Outliers are no other side.
    np.append(np.full(100_000, 1e-6), np.ones(5)),
    np.append(np.zeros(5), np.full(100_000, 1e-3)),
    np.zeros(100_000),
    np.ones(1),
  ],
)
def test_there_may_be_no_gap(weights):
  assert measure.find_gap(weights) is None


def test_magnitudes_below_the_papers_finest_scale_are_one():
  weights = _weights((50_000, 1e-30, 1e-20), (50_000, 1e-14, 1e-12))
  assert measure.find_gap(weights) is None
  gap = measure.find_gap(np.append(weights, np.full(50_000, 1e-3)))
  assert gap == measure.Gap(1e-10, 1e-3, np.sqrt(1e-13), 0.0)


@pytest.mark.slow
def test_w_cut_at_the_gap_keeps_what_is_above():
  _, params = train.initial_params(MICRO)
  kernel = np.full((5408, 128), 1e-8, np.float32)
  kernel[:, :64] = 0.5
  params["dense"]["kernel"][...] = jnp.asarray(kernel)
  seen = []
  found = train.final(
    params, params, None, lambda p: seen.append(np.asarray(train.layer(p))) or (1, 1)
  )
  np.testing.assert_array_equal(seen[0], kernel)
  np.testing.assert_array_equal(seen[1], np.where(kernel == 0.5, kernel, 0))
  assert found["zeros"] == {"w": 0.0, "u": None, "w_cut": 0.5}
  assert found["w_below"]["5"] == 0.5


def test_sign_changes_are_counted_for_each_convolution():
  _, before = train.initial_params(MICRO)
  _, after = train.initial_params(MICRO)
  after["conv1"]["kernel"][...] = -after["conv1"]["kernel"][...]
  changes = train.final(before, after, None, lambda _: (0.0, 0.0))["sign_changes"]
  assert changes["conv1"] == {"count": 288, "share": 1.0}
  assert changes["conv2"] == changes["conv3"] == {"count": 0, "share": 0.0}


# --- runs ---


@pytest.mark.slow
def test_a_result_says_what_came_out_and_how(micro):
  result, _ = micro
  assert result["config"]["seed"] == MICRO.seed
  assert result["config"]["learning_rate"] == MICRO.learning_rate
  assert {"versions", "hardware", "git_revision", "seconds"} <= result.keys()
  assert [metrics["epoch"] for metrics in result["epochs"]] == [1, 2, 3]
  assert result["epochs"][-1].keys() == {
    *("epoch", "loss", "accuracy", "zeros"),
    *("test_loss", "test_accuracy", "test_loss_u", "test_accuracy_u"),
  }
  final = result["final"]
  assert final["accuracy"].keys() == {"w", "u", "w_cut"}
  assert final["accuracy"]["u"] == result["epochs"][-1]["test_accuracy_u"]
  assert final["zeros"]["u"] == result["epochs"][-1]["zeros"] > 0
  assert final["w_below"].keys() == {"2", "3", "4", "5", "10"}
  counts = final["histogram"]["w"]
  assert sum(counts["counts"]) + counts["zero"] == 692_224


@pytest.mark.slow
def test_a_finished_run_is_read_not_trained(micro, monkeypatch):
  result, directory = micro
  monkeypatch.setattr(datasets, "load", None)
  with Run(directory, MICRO) as run:
    again = train.train(MICRO, run)
  assert again["final"]["accuracy"] == result["final"]["accuracy"]


@pytest.mark.slow
def test_the_network_is_kept(micro):
  result, directory = micro
  network = export.load(directory / "network.safetensors")
  zeros = rvsm_jax.sparsity(network["dense/kernel"])
  assert float(zeros) == result["final"]["zeros"]["u"]


def test_validation_images_are_not_trained_on(fake_data):
  config = dataclasses.replace(MICRO, train_size=0, validation_size=10)
  data = train.load_data(config, None)
  images, _ = _fake_load(config.data, "train")
  np.testing.assert_array_equal(data.train.x, images[:30])
  np.testing.assert_array_equal(data.test.x, images[30:])
  with pytest.raises(ValueError, match="leaves 5 images"):
    train.load_data(dataclasses.replace(config, validation_size=35), None)


# --- the command line and what it writes ---


@pytest.mark.slow
def test_quick_writes_table_and_figures(fake_data, monkeypatch, tmp_path, capsys):
  monkeypatch.setattr(command, "_QUICK_IMAGES", 16)
  monkeypatch.setattr(backend, "reuse_freed_memory", lambda: None)
  arguments = ["--quick", "--epochs", "1", "--batch-size", "8", "--output"]
  tyro.cli(command.main, args=[*arguments, str(tmp_path)])
  assert "Table 2" in capsys.readouterr().out
  names = {path.name for path in tmp_path.iterdir() if path.suffix}
  stem = "planar_shapes-l0-rvsm-ramped-seed0"
  assert names >= {
    *(f"{stem}{end}" for end in (".json", ".md", "-training.png", "-weights.png")),
    "planar_shapes-samples.png",
  }
  with pytest.raises(ConfigMismatchError, match="epochs: there 1, now 2"):
    tyro.cli(command.main, args=["--quick", "--epochs=2", "--output", str(tmp_path)])


@pytest.mark.slow
def test_the_table_has_the_papers_row_beside_ours(micro):
  lines = report.markdown(micro[0]).splitlines()
  rows = [line for line in lines if line.startswith("|")]
  assert len({len(row) for row in rows[:4]}) == 1
  assert "99.9%" in rows[2]
  assert "90.2%" in rows[2]
  assert rows[3].startswith("| this run")


def test_shares_are_never_rounded_to_all_or_nothing():
  assert tables.percent(1.0) == "100.00%"
  assert tables.percent(0.99996) == "99.996%"
  assert tables.percent(1e-7) == "0.00001%"
  assert tables.percent(0.0, 1) == "0.0%"
  assert tables.percent(None) == "–"


@pytest.mark.parametrize("data", paper.TABLES)
def test_every_row_of_the_paper_has_a_configuration(data):
  for row in paper.TABLES[data][1]:
    config = configs.Config(data=data, penalty=row.penalty, a=row.a or 1.0)
    assert paper.row(data, config.penalty, config.a)[1] is row
  assert paper.row(data, "none", 1.0) is None
