"""Accelerators that need not be there: their compilers work from a description.

XLA's backends of TPUs and of NVIDIA GPUs compile for a topology without a device of it.
They come with `jax[tpu]` and `jax[cuda12]`; `make accelerators` has an environment for
each, because with libtpu installed plain JAX looks for a TPU.
"""

import importlib.metadata
import importlib.util
import os
import pathlib
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

_PACKAGES = {"tpu": "libtpu", "cuda": "jax_plugins.xla_cuda12"}
_RELEASES = {"tpu": "libtpu", "cuda": "jax-cuda12-pjrt"}


class Target(NamedTuple):
  """Chips to compile for.

  Attributes:
    platform: "tpu" or "cuda", which decides on the compiler.
    topology: of TPUs, as `get_topology_desc` names it; of GPUs a name in `GPUS`.
    chips: how many of them, the first ones.
  """

  platform: str
  topology: str
  chips: int


class Gpu(NamedTuple):
  """What XLA asks of a GPU, from NVIDIA's data sheets and tuning guides.

  Attributes:
    name: as the driver gives it.
    capability: compute capability.
    cores: streaming multiprocessors.
    lanes: of float32 in each.
    threads: at most, in each.
    shared: memory of each that blocks share, bytes.
    clock: GHz.
    cache: of the second level, bytes.
    bandwidth: bytes per second.
    memory: bytes.
  """

  name: str
  capability: tuple[int, int]
  cores: int
  lanes: int
  threads: int
  shared: int
  clock: float
  cache: int
  bandwidth: float
  memory: int


_KB, _MB, _GB = 2**10, 2**20, 2**30
GPUS = {
  "H100": Gpu(
    "NVIDIA H100 80GB HBM3",
    (9, 0),
    132,
    128,
    2048,
    228 * _KB,
    1.98,
    50 * _MB,
    3.352e12,
    80 * _GB,
  ),
  "A100": Gpu(
    "NVIDIA A100-SXM4-80GB",
    (8, 0),
    108,
    64,
    2048,
    164 * _KB,
    1.41,
    40 * _MB,
    2.039e12,
    80 * _GB,
  ),
  "RTX 4090": Gpu(
    "NVIDIA GeForce RTX 4090",
    (8, 9),
    128,
    128,
    1536,
    100 * _KB,
    2.52,
    72 * _MB,
    1.008e12,
    24 * _GB,
  ),
}

TARGETS = {
  "v5e": Target("tpu", "v5e:2x2", 1),
  "v5e:2x2": Target("tpu", "v5e:2x2", 4),
  "v5e:16x16": Target("tpu", "v5e:16x16", 256),
  "v5p": Target("tpu", "v5p:2x2x1", 1),
  "v6e": Target("tpu", "v6e:2x2", 1),
  **{name: Target("cuda", name, 1) for name in GPUS},
}


def missing(platform: str) -> bool:
  """Whether the compiler of a platform is not installed."""
  package, _, module = _PACKAGES[platform].partition(".")
  if importlib.util.find_spec(package) is None:
    return True
  return bool(module) and importlib.util.find_spec(_PACKAGES[platform]) is None


def release(platform: str) -> str:
  """The package of the compiler, and its version."""
  package = _RELEASES[platform]
  return f"{package} {importlib.metadata.version(package)}"


def devices(target: Target) -> list[Any]:
  """The chips of a target, for a mesh to compile for: nothing can run on them.

  Raises:
    ModuleNotFoundError: if the compiler is not installed.
  """
  if missing(target.platform):
    raise ModuleNotFoundError(
      f"The compiler for {target.platform} is not installed: `make accelerators` sets"
      " up an environment with it."
    )
  make = _tpus if target.platform == "tpu" else _gpus
  return list(make(target.topology))[: target.chips]


def _tpus(topology: str) -> Any:
  # Else libtpu asks Google Cloud for the machine that it is on.
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def _gpus(name: str) -> Any:
  from jax._src import xla_bridge
  import jax_plugins.xla_cuda12 as plugin

  # JAX leaves out the plugin where it finds no driver, but has loaded it by then.
  if "cuda" not in xla_bridge._backend_factories:
    library = pathlib.Path(plugin.__file__ or "").parent / "xla_cuda_plugin.so"
    try:
      xla_bridge.register_plugin(
        "cuda", priority=500, library_path=str(library), options=None
      )
    except jax.errors.JaxRuntimeError as error:
      if "already exists" not in str(error):
        raise
  return topologies.get_topology_desc(
    platform="cuda",
    topology_name=name,
    topology="1x1x1",
    target_config=_description(GPUS[name]),
  ).devices


def _description(gpu: Gpu) -> str:
  """A GpuTargetConfigProto in its text form."""
  major, minor = gpu.capability
  numbers = {
    "threads_per_block_limit": 1024,
    "threads_per_warp": 32,
    "shared_memory_per_block": 48 * _KB,
    "shared_memory_per_core": gpu.shared,
    "shared_memory_per_block_optin": gpu.shared - _KB,
    "threads_per_core_limit": gpu.threads,
    "core_count": gpu.cores,
    "fpus_per_core": gpu.lanes,
    "block_dim_limit_x": 2**31 - 1,
    "block_dim_limit_y": 2**16 - 1,
    "block_dim_limit_z": 2**16 - 1,
    "memory_bandwidth": int(gpu.bandwidth),
    "l2_cache_size": gpu.cache,
    "clock_rate_ghz": gpu.clock,
    "device_memory_size": gpu.memory,
    "registers_per_core_limit": 2**16,
    "registers_per_block_limit": 2**16,
  }
  lines = [f"  {key}: {value}" for key, value in numbers.items()]
  lines.append(f"  cuda_compute_capability {{ major: {major} minor: {minor} }}")
  return "\n".join(
    [
      "gpu_device_info {",
      *lines,
      "}",
      'platform_name: "CUDA"',
      "dnn_version_info { major: 9 }",
      f'device_description_str: "{gpu.name}"',
    ]
  )
