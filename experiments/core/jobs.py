"""Several trainings at the same time, each in a process of its own."""

import concurrent.futures
import multiprocessing
import os
import sys
import threading
import time

import jax

from experiments.core import backend


def pool(jobs: int) -> concurrent.futures.ProcessPoolExecutor:
  """Processes that end with this one; of several on CPU each has one thread."""
  if jobs < 1:
    raise ValueError(f"jobs must be positive, got {jobs}.")
  return concurrent.futures.ProcessPoolExecutor(
    jobs,
    multiprocessing.get_context("spawn"),
    initializer=_start_worker,
    initargs=(jobs > 1 and backend.on_cpu(),),
  )


def _start_worker(one_thread: bool) -> None:
  """Lets XLA see one core, if told so: it then starts one thread."""
  backend.reuse_freed_memory()
  threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
  if one_thread and sys.platform == "linux":
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    jax.devices()
    for thread in os.listdir("/proc/self/task"):
      os.sched_setaffinity(int(thread), cores)


def _die_with(parent: int) -> None:
  """Ends this process soon after its parent, even if that was killed.

  It would otherwise go on to write into directories that the next start writes into.
  """
  while os.getppid() == parent:
    time.sleep(1)
  os._exit(1)
