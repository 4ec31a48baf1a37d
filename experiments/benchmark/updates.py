"""The update alone: from gradients, state and params to the next state and params."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmark import subjects
from experiments.core import timing

_AXPY_BYTES = 12


class Update:
  """One update of a subject, and its application."""

  def __init__(self, subject: subjects.Subject):
    self._tx, self._apply = subject.make(), subject.apply

  def init(self, params: Any) -> tuple[Any, Any]:
    """Params and the optimizer's state."""
    return params, self._tx.init(params)

  def __call__(self, carry: tuple[Any, Any], grads: Any) -> tuple[Any, Any]:
    """The next params and state."""
    params, state = carry
    updates, state = self._tx.update(grads, state, params)
    return self._apply(params, updates), state


def compiled(update: Update, params: Any) -> Any:
  """`update` with params and state donated."""
  carry = jax.eval_shape(update.init, params)
  return jax.jit(update, donate_argnums=0).lower(carry, params).compile()


def measure(
  tree: str, names: Iterable[str], pairs: int, clock: timing.Clock
) -> dict[str, Any]:
  """Every subject against `optax.sgd` on one tree of weights."""
  shapes = subjects.TREES[tree]()
  size = subjects.count(shapes)
  grads = subjects.draw(shapes, 1, 1e-3)

  def runner(name: str) -> tuple[timing.Repeated, Any]:
    update = Update(subjects.SUBJECTS[name])
    step = compiled(update, shapes)
    carry = update.init(subjects.draw(shapes, 0, 0.05))
    return timing.Repeated(step, carry, grads), step

  base, _ = runner("sgd")
  axpy = timing.Repeated(
    jax.jit(lambda x, y: x - 1e-3 * y, donate_argnums=0),
    jnp.zeros(size),
    jnp.ones(size),
  )
  bandwidth = _AXPY_BYTES * size / timing.compare(base, axpy, pairs, clock).seconds

  def row(name: str) -> dict[str, Any]:
    subject = subjects.SUBJECTS[name]
    run, step = runner(name)
    found = timing.compare(base, run, pairs, clock)
    least = subjects.least_bytes(subject)
    memory = step.memory_analysis()
    return {
      "ratio": found.ratio,
      "seconds": found.seconds,
      "bytes": step.cost_analysis()["bytes accessed"] / size,
      "least_bytes": least,
      "of_bandwidth": least * size / found.seconds / bandwidth,
      "state_bytes": memory.alias_size_in_bytes / size - 4,
      "temporary_bytes": memory.temp_size_in_bytes / size,
      "page_faults": timing.page_faults(run),
    }

  return {
    "parameters": size,
    "axpy_bytes_per_second": bandwidth,
    "rows": {name: row(name) for name in names},
  }
