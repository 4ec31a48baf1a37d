"""What a full training costs: as the compiler counts, and for a few steps measured."""

import time
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from experiments import datasets
from experiments.cifar import config as configs
from experiments.cifar import train
from experiments.core import backend, results
from experiments.core.training import Examples

_MEASURED_STEPS = 2


def full_size(settings: configs.Settings) -> dict[str, Any]:
  """`of_step` of each network with RVSM and l0, with these settings."""
  out = {}
  for network in get_args(configs.Network):
    results.console.print(f"Compiling and running the step of {network}")
    config = configs.Config(configs.ROWS[f"{network}-l0"], settings)
    out[network] = of_step(config)
  return results.result("cifar", {"settings": settings}, None, networks=out)


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
  images = settings.train_size or datasets.SETS["cifar10"].splits["train"]
  steps = images // settings.batch_size * settings.epochs
  mesh = train.data_mesh(jax.devices()[:1])
  network, params, stats = train.Network.create(config)
  one = train.trainer(config, network, steps, mesh)
  rng = np.random.default_rng(settings.seed)
  size = settings.batch_size
  random = Examples(
    rng.integers(0, 256, (size, 32, 32, 3), np.uint8),
    rng.integers(0, 10, size, np.int32),
  )
  arguments = jax.device_put(
    (one.init(params, extra=stats), jnp.arange(size), None, random), one.shardings
  )
  jitted = jax.jit(one.update, donate_argnums=0, out_shardings=one.shardings)
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
  on_cpu = backend.on_cpu()
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
