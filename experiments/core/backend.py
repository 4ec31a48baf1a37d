"""What depends on the backend, decided in one place."""

import ctypes
import os
import sys

import jax


def on_cpu() -> bool:
  """Whether programs run on CPU.

  There, what `networks.layers` has tuned for its caches is faster, and convolutions
  inside `lax.scan` are slow (jax issue 12868): a training is a loop in Python around
  one compiled step. On an accelerator an epoch, or a whole grid of trainings, is one
  program.
  """
  return jax.default_backend() == "cpu"


def reuse_freed_memory() -> None:
  """Makes glibc keep what XLA frees, instead of paging it in anew at every step.

  Activations of 100 MB otherwise cost a third of the time of a step on CPU. Does
  nothing elsewhere.
  """
  if sys.platform != "linux":
    return
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
  if mallopt is not None:
    trim_threshold, mmap_max, arena_max = -1, -4, -8
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(arena_max, 1)


def on_one_core() -> None:
  """Keeps this process on one core, where processor time is time.

  Call it before JAX starts its threads. Does nothing where the system cannot.
  """
  if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
