"""The full training step of the curves CNN: images to the next params and state."""

from collections.abc import Callable, Iterable
import os
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.benchmark import subjects, updates
from experiments.core import timing
from experiments.networks.curves import CurvesCNN

_SIDE, _CLASSES = 100, 2


def batch(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Random images with 4% of ink, (n, 100, 100, 1), and labels."""
  rng = np.random.default_rng(0)
  images = rng.random((size, _SIDE, _SIDE, 1)) < 0.04
  return images.astype(np.uint8), rng.integers(0, _CLASSES, size)


def runner(name: str, size: int) -> timing.Repeated:
  """A training step of JAX, whose state is donated."""
  update = updates.Update(subjects.SUBJECTS[name])
  graph, params = nnx.split(CurvesCNN(rngs=nnx.Rngs(0)), nnx.Param)
  # Copies, because the params of other steps must not be donated with these.
  params = jax.tree.map(jnp.copy, nnx.to_pure_dict(params))

  def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    model = nnx.merge(graph, nnx.State(params))
    losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
    return jnp.mean(losses)

  def step(carry: tuple[Any, Any], images: jax.Array, labels: jax.Array) -> Any:
    return update(carry, jax.grad(loss)(carry[0], images, labels))

  arrays = jax.device_put(batch(size))
  jitted = jax.jit(step, donate_argnums=0)
  return timing.Repeated(jitted, update.init(params), *arrays)


def measure(
  names: Iterable[str], size: int, pairs: int, clock: timing.Clock
) -> dict[str, Any]:
  """The step with every subject, against that with `optax.sgd`."""
  base = runner("sgd", size)
  rows = {
    name: timing.compare(base, runner(name, size), pairs, clock)._asdict()
    for name in names
  }
  return {"batch_size": size, "rows": rows}


def measure_torch(size: int, pairs: int, clock: timing.Clock) -> dict[str, Any]:
  """The step with `optax.sgd` against that of PyTorch, on as many threads.

  Raises:
    ModuleNotFoundError: if PyTorch is not installed; nothing else needs it.
  """
  torch_step, version = _torch_runner(size)
  ours = runner("sgd", size)
  found = timing.compare(torch_step, ours, pairs, clock)
  return {"batch_size": size, "torch": version, **found._asdict()}


def _torch_runner(size: int) -> tuple[Callable[[], None], str]:
  """A training step of PyTorch, eager, with its own defaults of layout."""
  try:
    import torch
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      "--torch compares with PyTorch, which is not installed: pip install torch"
    ) from error
  nn = torch.nn
  torch.set_num_threads(
    len(os.sched_getaffinity(0))
    if hasattr(os, "sched_getaffinity")
    else os.cpu_count() or 1
  )

  def block(inputs: int) -> list[Any]:
    pool = nn.MaxPool2d(2, ceil_mode=True)
    return [nn.Conv2d(inputs, 32, 3, padding=1), nn.ReLU(), pool]

  dense = [nn.Flatten(), nn.Linear(13 * 13 * 32, 128), nn.ReLU(), nn.Linear(128, 2)]
  model = nn.Sequential(*block(1), *block(32), *block(32), *dense)
  optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
  images, labels = batch(size)
  x = 5.0 * torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
  y = torch.from_numpy(labels)

  def step() -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()

  return step, torch.__version__
