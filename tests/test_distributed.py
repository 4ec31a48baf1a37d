"""The example of a training on several devices and hosts, and its run directory."""

import dataclasses
import shutil

import chex
import jax
from jax.sharding import AxisType
import pytest
from test_devices import in_two_processes

from experiments import datasets, distributed
from experiments.core import results
from experiments.core.run import ConfigMismatchError, Run
from rvsm_jax import export

SMALL = {"hidden": 16, "epochs": 2, "batch_size": 128}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  directory = tmp_path_factory.mktemp("data")
  for split in ("train", "test"):
    datasets.load("digits", split, directory)
  return directory


def train(config, count, data, run):
  devices = jax.devices("cpu")[:count]
  mesh = jax.make_mesh((count,), ("data",), (AxisType.Explicit,), devices=devices)
  with Run(run, config) as opened:
    result = distributed.train(config, mesh, data, opened)
  return result["final"], export.load(run / "network.safetensors")


@pytest.mark.slow
def test_two_processes_share_a_run_that_one_goes_on_with(data, tmp_path):
  config = distributed.Config(**SMALL)
  size = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
  paths = ["--output", str(tmp_path / "run"), "--data-dir", str(data)]
  printed, silent = in_two_processes(
    "experiments.distributed", [*size, *paths], tmp_path
  )
  assert "2 processes, 4 devices" in printed
  assert "zeros" in printed
  assert "zeros" not in silent
  result = results.read(tmp_path / "run" / "result.json")
  assert result["processes"] == 2
  expected, network = train(config, 1, data, tmp_path / "one")
  for name in ("accuracy", "zeros"):
    assert result["final"][name]["u"] == pytest.approx(expected[name]["u"], abs=1e-6)
  kept = export.load(tmp_path / "run" / "network.safetensors")
  chex.assert_trees_all_close(kept, network, rtol=0, atol=1e-5)

  # On one device, from what four have written, the second half of the training.
  (tmp_path / "run" / "result.json").unlink()
  shutil.rmtree(tmp_path / "run" / "checkpoints" / "22")
  assert (tmp_path / "run" / "checkpoints" / "11").exists()
  _, again = train(config, 1, data, tmp_path / "run")
  chex.assert_trees_all_close(again, network, rtol=0, atol=1e-5)
  other = dataclasses.replace(config, epochs=3)
  with pytest.raises(ConfigMismatchError, match="epochs: there 2, now 3"):
    train(other, 1, data, tmp_path / "run")


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one(data, tmp_path):
  config = distributed.Config("proximal", **SMALL)
  (_, expected), (_, got) = (
    train(config, count, data, tmp_path / str(count)) for count in (1, 8)
  )
  chex.assert_trees_all_close(got, expected, rtol=0, atol=1e-5)
  with pytest.raises(ValueError, match="batch_size=12 does not divide among 8 devices"):
    train(dataclasses.replace(config, batch_size=12), 8, data, tmp_path / "12")
