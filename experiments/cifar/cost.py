"""What a full training costs: as the compiler counts, and for a few steps measured."""

import dataclasses
import time
from typing import Any, get_args

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np

from experiments import _run
from experiments.cifar import config as configs
from experiments.cifar import train
from experiments.datasets import cifar

_MEASURED_STEPS = 2


def full_size(settings: configs.Settings) -> dict[str, Any]:
  """`of_step` of each network with RVSM and l0, with these settings."""
  out = {}
  for network in get_args(configs.Network):
    _run.console.print(f"Compiling and running the step of {network}")
    config = configs.Config(configs.ROWS[f"{network}-l0"], settings)
    out[network] = of_step(config)
  return {
    "settings": dataclasses.asdict(settings),
    "networks": out,
    **_run.environment(),
  }


def of_step(config: configs.Config) -> dict[str, Any]:
  """Time and memory of one step of a row, on one device and random images.

  Returns:
    "flops": operations of a step, as the compiler counts them; "bytes": memory of
    the compiled step, without the images of the other steps; "steps": those of the
    whole training; "seconds_per_step": of the faster of two, after a first one, by
    the "clock". On CPU that is the processor's time, which does not depend on what
    else runs there.
  """
  settings = config.settings
  images = settings.train_size or cifar.RECORDS * len(cifar.FILES["train"])
  steps = images // settings.batch_size * settings.epochs
  mesh = train.data_mesh(jax.devices()[:1])
  network, params, stats = train.Network.create(config)
  tx = configs.optimizer(config, steps)
  update = train.update_step(config, network, tx, mesh)
  everywhere = NamedSharding(mesh, PartitionSpec())
  rng = np.random.default_rng(settings.seed)
  size = settings.batch_size
  arguments = jax.device_put(
    (
      _run.TrainState.create(params, tx, stats),
      jnp.arange(size),
      rng.integers(0, 256, (size, 32, 32, 3), np.uint8),
      rng.integers(0, 10, size, np.int32),
    ),
    everywhere,
  )
  jitted = jax.jit(update, donate_argnums=0, out_shardings=everywhere)
  compiled: Any = jitted.lower(*arguments).compile()
  memory = compiled.memory_analysis()
  bytes_ = {
    "arguments": memory.argument_size_in_bytes,
    "outputs": memory.output_size_in_bytes,
    "temporaries": memory.temp_size_in_bytes,
    "aliased": memory.alias_size_in_bytes,
  }
  peak = sum(bytes_.values()) - 2 * bytes_["aliased"]
  state, *rest = arguments
  on_cpu = jax.default_backend() == "cpu"
  clock = time.process_time if on_cpu else time.perf_counter
  seconds = []
  for _ in range(1 + _MEASURED_STEPS):
    start = clock()
    state = jax.block_until_ready(compiled(state, *rest))
    seconds.append(clock() - start)
  return {
    "flops": compiled.cost_analysis()["flops"],
    "bytes": {**bytes_, "peak": peak},
    "steps": steps,
    "seconds_per_step": min(seconds[1:]),
    "clock": "processor time" if on_cpu else "wall time",
  }
