"""What every test module shares: devices, precision, strictness, hypothesis."""

from collections.abc import Iterator
import gc
import os
import tempfile

import hypothesis
import jax
import pytest

# Before JAX starts its backend: the sharding tests need eight devices.
jax.config.update("jax_num_cpu_devices", 8)

hypothesis.settings.register_profile(
  "default",
  derandomize=True,
  database=None,
  deadline=None,
  max_examples=20,
)
hypothesis.settings.register_profile(
  "thorough", database=None, deadline=None, max_examples=1000
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_configure(config: pytest.Config):
  """A warning at a call that the library makes is an error in every module.

  And what one process compiled, the others read: many tests compile the same.
  """
  config.addinivalue_line("filterwarnings", "error:::rvsm_jax")
  if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    compiled = tempfile.TemporaryDirectory(prefix="rvsm_jax-")
    config.add_cleanup(compiled.cleanup)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = compiled.name
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"


def pytest_collection_finish():
  """There is little garbage, and JAX makes each collection of it long."""
  gc.freeze()
  gc.set_threshold(100_000, 20, 50)


@pytest.fixture
def x64() -> Iterator[None]:
  """Double precision, for the test or module that asks for it with `usefixtures`."""
  with jax.enable_x64(True):
    yield
