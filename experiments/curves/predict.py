"""What a trained network says of pictures: `python -m experiments curves predict`."""

import json
import pathlib
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro

from experiments.core import measure
from experiments.core.results import console
from experiments.core.run import Run
from experiments.curves import config as configs
from experiments.curves import images, small, train
from rvsm_jax import export

_CERTAIN = 0.9995


class Trained(NamedTuple):
  """The networks of a run: one, at its newest checkpoint, or all of a finished run.

  Attributes:
    config: what they were trained as.
    networks: params, of u, or of w where there is no u.
    step: how many updates they have had; None of a finished run of several networks.
    result: of the finished run; None before its end.
  """

  config: small.Config
  networks: list[Any]
  step: int | None
  result: dict[str, Any] | None


def main(
  pictures: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional],
  run: pathlib.Path,
) -> None:
  """Prints the class of each picture, with its probability.

  Pictures are prepared as those of `--images` are. The network is that of u, at the
  newest checkpoint; what several networks say is averaged. Writes nothing.

  Args:
    pictures: scans or photographs of one drawing each.
    run: the directory of the run, such as runs/curves/NAME.
  """
  if not pictures:
    raise ValueError("Name the pictures to apply the network to.")
  trained = restore(run)
  prepared = np.stack([images.prepare(picture) for picture in pictures])
  console.print(describe(trained), markup=False)
  shares = probabilities(trained, prepared)
  for picture, share in zip(pictures, shares, strict=True):
    name = trained.config.class_names[int(np.argmax(share))]
    most = f"{share.max():.1%}" if share.max() < _CERTAIN else "more than 99.9%"
    console.print(f"{picture}: {name}, {most}", markup=False)


def restore(run: pathlib.Path) -> Trained:
  """The network of a run's newest intact checkpoint, or its several networks."""
  file = run / "config.json"
  if not file.is_file():
    raise ValueError(f"{run} is no directory of a run: it has no config.json.")
  try:
    config = small.Config(**json.loads(file.read_text()))
  except (TypeError, ValueError) as error:
    raise ValueError(
      f"{file} is not of a run of experiments.curves: {error}"
    ) from error
  _, params = train.initial_params(config)
  if config.several:
    with Run(run) as opened:
      result = opened.result()
    if result is None:
      raise ValueError(f"{run} is unfinished: its command goes on with it.")
    files = sorted(run.glob(f"{small.FILES}*.safetensors"))
    return Trained(config, [export.load(file, params) for file in files], None, result)
  template = train.trainer(config, steps=100).init(params, {})
  with Run(run) as opened:
    found, result = opened.restore(template), opened.result()
  if found is None:
    raise ValueError(f"{run} has no intact checkpoint yet.")
  state, _ = found
  return Trained(config, [state.sparse], int(state.step), result)


def describe(trained: Trained) -> str:
  """Which networks speak, and how their probabilities are meant."""
  count = len(trained.networks)
  network = "w, since there is no u"
  if trained.config.splits:
    zeros = np.mean([measure.zeros(p, configs.SPARSE) for p in trained.networks])
    network = f"u, whose dense layer has {zeros:.1%} zeros"
  at = "" if trained.step is None else f", step {trained.step}"
  which = "the network" if count == 1 else f"the average of {count} networks"
  lines = [f"{trained.config.name}{at}: {which} of {network}."]
  if trained.result is None:
    lines.append("The run is unfinished; probabilities are not calibrated.")
  elif "temperature" not in trained.result:
    lines.append("Probabilities are not calibrated.")
  return "\n".join(lines)


def probabilities(trained: Trained, prepared: np.ndarray) -> np.ndarray:
  """Calibrated probabilities, (n, 2), of images (n, 100, 100, 1)."""
  temperature = (trained.result or {}).get("temperature", 1.0)
  predict = train.predictor(trained.config)
  logits = np.stack([predict(params, prepared) for params in trained.networks])
  return train.probabilities(logits, temperature)
