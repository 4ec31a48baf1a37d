"""Removes dead neurons and filters for real: the same network, smaller and dense.

`python -m experiments compaction` measures what that is worth.
"""

from collections.abc import Callable, Iterable, Sequence
import itertools
import pathlib
import sys
from typing import Any, TypeVar

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import datasets
from experiments.core import cli, results, tables, timing
from experiments.networks import cifar
from experiments.networks.layers import max_pool
from experiments.networks.perceptron import perceptron
import rvsm_jax

Model = TypeVar("Model", bound=nnx.Module)
Weighted = nnx.Conv | nnx.Linear

# A side of the images that functions between layers are tried on.
_SIDE = 16


def compact(
  model: Model, chains: Callable[[Model], Iterable[Sequence[Callable]]]
) -> Model:
  """A copy of the model without its dead units, with the same outputs to rounding.

  A unit is dead if all its outgoing weights are zero, or if its output is the same for
  every input: if all its ingoing weights are zero, or the scale of its batch
  normalisation is. What a constant unit adds to the next layer goes into that layer's
  bias. Where zero padding makes it another at the borders of the image, one unit stays
  and stands for all constant ones. Units that die with others go, too. Where a whole
  layer is dead, one unit stays.

  Args:
    model: its batch normalisations are taken with their running statistics.
    chains: from a model to its chains of layers, in the order of computation, each fed
      by the one before alone: `nnx.Conv`, `nnx.Linear`, `nnx.BatchNorm`, and functions
      that treat all channels alike, such as activations, pooling, and flattening of
      (n, h, w, c). The inputs of the first weights and the outputs of the last stay.

  Returns:
    A model of the same class.

  Raises:
    ValueError: for convolutions in groups or with a mask, and for functions that mix
      channels or do not keep constant ones constant.
  """
  model = nnx.clone(model)
  for chain in chains(model):
    at = [i for i, layer in enumerate(chain) if isinstance(layer, Weighted)]
    pairs: list[tuple[Any, Sequence[Callable], Any]] = [
      (chain[i], chain[i + 1 : j], chain[j]) for i, j in itertools.pairwise(at)
    ]
    # What is taken may leave other units without an input or without a use.
    while any([_silence(*pair) for pair in pairs]):
      pass
    for pair in pairs:
      _remove(*pair)
  return model


def _silence(layer: Weighted, between: Sequence[Callable], following: Weighted) -> bool:
  """Takes in place what goes into unused units and comes out of constant ones.

  Returns:
    Whether there was anything to take.
  """
  for conv in (layer, following):
    if isinstance(conv, nnx.Conv) and (
      conv.feature_group_count > 1 or conv.mask is not None
    ):
      raise ValueError(
        "cannot compact a convolution with feature groups or a mask: got"
        f" feature_group_count={conv.feature_group_count}, mask={conv.mask}."
      )
  constant, value = _constants(layer, between)
  outgoing = _outgoing(layer, following)
  used = np.any(outgoing != 0, axis=(0, 2))
  live = used & ~constant

  value = np.where(used & constant, value, 0)
  added = np.einsum("puo,u->po", outgoing, value)
  if not _sees_borders(following):
    _add_to_bias(following, added.sum(axis=0))
  elif np.any(value):
    carrier = np.argmax(np.abs(value))
    outgoing[:, carrier] = added / value[carrier]
    live[carrier] = True

  ingoing = np.array(layer.kernel[...])
  found = np.any(used & ~live) or np.any(ingoing[..., ~live])
  ingoing[..., ~live] = 0
  outgoing[:, ~live] = 0
  _replace(layer, "kernel", ingoing)
  _replace(following, "kernel", outgoing.reshape(following.kernel.shape))
  return bool(found)


def _remove(layer: Weighted, between: Sequence[Callable], following: Weighted) -> None:
  """Removes the units without outgoing weights in place, all but one at most."""
  outgoing = _outgoing(layer, following)
  keep = np.any(outgoing != 0, axis=(0, 2))
  keep[0] |= not np.any(keep)
  spatial = following.kernel.shape[:-2]
  _set_kernel(following, outgoing[:, keep].reshape(*spatial, -1, outgoing.shape[-1]))
  _set_kernel(layer, np.asarray(layer.kernel[...])[..., keep])
  _select(layer, ("bias",), keep)
  for norm in between:
    if isinstance(norm, nnx.BatchNorm):
      _select(norm, ("scale", "bias", "mean", "var"), keep)
      norm.num_features = int(np.sum(keep))


def _outgoing(layer: Weighted, following: Weighted) -> np.ndarray:
  """What comes out of each unit, (positions, units, outputs).

  The positions are those of a filter, or of an image before it was flattened.
  """
  kernel = np.array(following.kernel[...], np.float64)
  return kernel.reshape(-1, layer.out_features, kernel.shape[-1])


def _constants(
  layer: Weighted, between: Sequence[Callable]
) -> tuple[np.ndarray, np.ndarray]:
  """Which units have a constant output in front of the next layer, and its value."""
  kernel = np.asarray(layer.kernel[...])
  constant = np.all(kernel == 0, axis=tuple(range(kernel.ndim - 1)))
  value = np.zeros(len(constant), np.float32)
  if layer.bias is not None:
    value = np.asarray(layer.bias[...], np.float32)
  shape: tuple[int, ...] = (1, *[_SIDE] * (kernel.ndim - 2), len(constant))
  for function in between:
    if isinstance(function, nnx.BatchNorm):
      if function.scale is not None:
        constant = constant | (np.asarray(function.scale[...]) == 0)
      value = np.asarray(function(value[None], use_running_average=True)[0])
      continue
    tried = [
      function(jnp.broadcast_to(np.where(constant, value, other), shape))
      for other in (np.float32(0), np.float32(1))
    ]
    shape = (1, *[_SIDE] * (tried[0].ndim - 2), len(constant))
    outputs = np.concatenate([np.reshape(y, (-1, len(constant))) for y in tried])
    value = outputs[0]
    if not np.allclose(outputs[:, constant], value[constant], rtol=1e-5, atol=1e-7):
      raise ValueError(
        f"cannot compact around {function}: it mixes channels, or makes a constant"
        " channel vary in space; end the chain before it."
      )
  return constant, value


def _sees_borders(layer: Weighted) -> bool:
  """Whether a constant input may have an output that is not constant in space."""
  if isinstance(layer, nnx.Linear):
    return False
  if np.any(np.not_equal(layer.input_dilation or 1, 1)):
    return True
  if isinstance(layer.padding, str):
    wide = np.prod(layer.kernel_size) > 1
    return bool(wide) and layer.padding not in ("VALID", "CIRCULAR", "REFLECT")
  return any(jax.tree.leaves(layer.padding))


def _replace(module: nnx.Module, name: str, value: Any) -> None:
  """Sets a variable to an array of another shape."""
  variable = getattr(module, name)
  setattr(module, name, variable.replace(jnp.asarray(value, variable.dtype)))


def _set_kernel(layer: Weighted, kernel: Any) -> None:
  _replace(layer, "kernel", kernel)
  layer.in_features, layer.out_features = kernel.shape[-2:]
  if isinstance(layer, nnx.Conv):
    layer.kernel_shape = kernel.shape


def _add_to_bias(layer: Weighted, added: np.ndarray) -> None:
  if not np.any(added):
    return
  if layer.bias is None:
    layer.bias = nnx.Param(jnp.zeros(layer.out_features, layer.kernel.dtype))
    layer.use_bias = True
  _replace(layer, "bias", np.asarray(layer.bias[...], np.float64) + added)


def _select(module: nnx.Module, names: Sequence[str], keep: np.ndarray) -> None:
  for name in names:
    variable = getattr(module, name)
    if variable is not None:
      _replace(module, name, np.asarray(variable[...])[keep])


def flatten(x: jax.Array) -> jax.Array:
  """(n, h * w * c) of (n, h, w, c)."""
  return x.reshape(len(x), -1)


# The chains of the experiments' networks.


def sequential(model: nnx.Sequential) -> list[Sequence[Callable]]:
  """The one chain of an `nnx.Sequential`."""
  return [model.layers]


def vgg16(model: cifar.VGG16) -> list[Sequence[Callable]]:
  """The one chain of a VGG-16."""
  layers: list[Callable] = []
  for stage in model.features:
    for layer in stage:
      layers += [layer.conv, layer.norm, nnx.relu]
    layers.append(max_pool)
  return [[*layers, flatten, model.out]]


def resnet18(model: cifar.ResNet18) -> list[Sequence[Callable]]:
  """Of each residual block, what lies between its two convolutions."""
  return [
    [block.first.conv, block.first.norm, nnx.relu, block.second.conv]
    for block in model.blocks
  ]


def cnn(model: Any) -> list[Sequence[Callable]]:
  """The one chain of an `experiments.integrated.models.CNN`."""
  layers: list[Callable] = []
  for number, conv in enumerate(model.conv):
    layers += [conv, nnx.relu]
    if number in model.pooled:
      layers.append(max_pool)
  layers.append(flatten)
  for dense in model.dense:
    layers += [dense, nnx.relu]
  return [layers[:-1]]


# Measurement.


def measure(
  model: nnx.Module, smaller: nnx.Module, inputs: jax.Array, repeats: int = 15
) -> dict[str, Any]:
  """Size and inference time of a model and of what `compact` made of it.

  Times are medians over `repeats` runs of each, taken in turns, so that what else the
  machine does meets both; compilation does not count.

  Returns:
    For "before" and "after" the number of `units` (the outputs of all layers with
    weights) and `parameters`, their size in `bytes` and the `milliseconds` for the
    inputs; `speedup`; and `difference`, the largest of the
    outputs over the largest output.
  """
  runs = [_compiled(network) for network in (model, smaller)]
  before, after = (np.asarray(run(inputs), np.float64) for run in runs)

  def until_ready(run: Callable[[jax.Array], jax.Array]) -> Callable[[], jax.Array]:
    return lambda: jax.block_until_ready(run(inputs))

  found = timing.compare(until_ready(runs[0]), until_ready(runs[1]), repeats)
  report: dict[str, Any] = {}
  for name, network, seconds in (
    ("before", model, found.base_seconds),
    ("after", smaller, found.seconds),
  ):
    leaves = jax.tree.leaves(nnx.state(network, nnx.Param))
    report[name] = {
      "units": sum(
        module.out_features
        for _, module in nnx.iter_modules(network)
        if isinstance(module, Weighted)
      ),
      "parameters": sum(leaf.size for leaf in leaves),
      "bytes": sum(leaf.nbytes for leaf in leaves),
      "milliseconds": 1e3 * seconds,
    }
  report["speedup"] = 1 / found.ratio
  report["difference"] = float(np.max(np.abs(before - after)) / np.max(np.abs(before)))
  return report


def _compiled(model: nnx.Module) -> Callable[[jax.Array], jax.Array]:
  """Inference, with the running statistics of batch normalisations."""
  model = nnx.clone(model)
  model.eval()
  graph, state = nnx.split(model)
  run = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
  return lambda x: run(state, x)


def kill(chain: Sequence[Callable], share: float, seed: int) -> None:
  """Takes the weights of a random share of the hidden units of a chain, in place.

  Of every other of them the ingoing weights, of the rest the outgoing ones, as
  training to zeros does. Biases and running statistics become random numbers, so that
  what a dead unit still puts out is something.
  """
  rng = np.random.default_rng(seed)

  def fill(variable: nnx.Variable, numbers: np.ndarray) -> None:
    variable[...] = jnp.asarray(numbers, variable.dtype)

  for layer in chain:
    if isinstance(layer, nnx.BatchNorm):
      fill(layer.mean, 0.1 * rng.normal(size=layer.mean.shape))
      fill(layer.var, rng.uniform(0.5, 2, layer.var.shape))
    if isinstance(layer, nnx.BatchNorm | Weighted) and layer.bias is not None:
      fill(layer.bias, 0.1 * rng.normal(size=layer.bias.shape))
  weighted = [layer for layer in chain if isinstance(layer, Weighted)]
  for layer, following in itertools.pairwise(weighted):
    dead = rng.permutation(layer.out_features)[: round(share * layer.out_features)]
    kernel = np.array(layer.kernel[...])
    kernel[..., dead[::2]] = 0
    fill(layer.kernel, kernel)
    kernel = np.array(following.kernel[...])
    kernel.reshape(-1, layer.out_features, kernel.shape[-1])[:, dead[1::2]] = 0
    fill(following.kernel, kernel)


def train(model: nnx.Sequential, steps: int = 3000, lam: float = 5e-3) -> None:
  """Trains a perceptron on DIGITS with group lasso, which rids it of units."""
  x, y = (jnp.asarray(array) for array in datasets.load("digits", "train"))
  tx = rvsm_jax.proximal_sgd(
    0.1, rvsm_jax.group_lasso(), lam=lam, mask=rvsm_jax.kernels
  )
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)

  @nnx.jit
  def step(model: nnx.Sequential, optimizer: nnx.Optimizer, batch: jax.Array) -> None:
    def loss(model: nnx.Sequential) -> jax.Array:
      logits = model(x[batch] / 16)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y[batch]).mean()

    optimizer.update(model, nnx.grad(loss)(model))

  rng = np.random.default_rng(0)
  for _ in range(steps):
    step(model, optimizer, jnp.asarray(rng.integers(0, len(x), 64)))


def main(places: cli.Common) -> None:
  """Measures networks with dead units.

  Args:
    places: where it writes.
  """
  images = jax.random.normal(jax.random.key(0), (32, 32, 32, 3))
  vectors = jax.random.normal(jax.random.key(1), (512, 784))
  wide = perceptron([784, 2048, 2048, 10], nnx.Rngs(0))
  vgg, resnet = (cifar.create(n, width=0.5, seed=0) for n in ("vgg16", "resnet18"))
  cases: dict[str, tuple[Any, Callable, jax.Array, float]] = {
    "perceptron 784-2048-2048-10": (wide, sequential, vectors, 0.5),
    "VGG-16": (vgg, vgg16, images, 0.5),
    "ResNet-18": (resnet, resnet18, images, 0.9),
  }
  trained = perceptron([64, 1024, 1024, 10], nnx.Rngs(0))
  train(trained)
  smaller = compact(trained, sequential)
  digits, labels = (jnp.asarray(array) for array in datasets.load("digits", "test"))
  digits = digits / 16
  found = {
    "perceptron 64-1024-1024-10, trained": measure(trained, smaller, digits)
    | {
      f"accuracy_{when}": float(jnp.mean(jnp.argmax(model(digits), -1) == labels))
      for when, model in (("before", trained), ("after", smaller))
    }
  }
  for seed, (name, (model, chains, inputs, share)) in enumerate(cases.items()):
    for chain in chains(model):
      kill(chain, share, seed)
    found[name] = measure(model, compact(model, chains), inputs)
    results.console.print(f"{name}: {found[name]}")
  folder = places.report("compaction", places.run("compaction"))
  result = results.result("compaction", {}, None, networks=found)
  results.write_json(folder / "compaction.json", result)
  results.show(write(folder))


def write(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the table of the result in a folder, and returns its path."""
  text = _page(results.read(folder / "compaction.json"))
  return [results.write_atomically(folder / "compaction.md", text)]


def _page(report: dict[str, Any]) -> str:
  rows = [
    [
      name,
      *(
        f"{result[when][what]:,.{digits}f}"
        for what, digits in (("units", 0), ("parameters", 0), ("milliseconds", 1))
        for when in ("before", "after")
      ),
      f"{result['speedup']:.1f}",
      f"{result['difference']:.0e}",
    ]
    for name, result in report["networks"].items()
  ]
  columns = ("units", "parameters", "ms")
  header = ["network", *(name for what in columns for name in (what, "after"))]
  header += ["speedup", "difference"]
  trained = next(iter(report["networks"].values()))
  before, after = (f"{trained[f'accuracy_{when}']:.1%}" for when in ("before", "after"))
  return f"""# Networks without their dead units

Networks before and after `experiments.compaction.compact`. The first was trained on
DIGITS with group lasso (`proximal_sgd`), which took units away; its test accuracy is
{before} before and {after} after. The others have random weights: half of the hidden
units were made dead, of the ResNet 90% of the filters inside its blocks. Milliseconds
are those of one batch (359 test examples; 512 vectors; 32 images of 32x32, networks of
half width), medians of 15 runs in turns; the difference is the largest of an output
over the largest output.

{tables.table(header, rows)}

{results.footer([report])}
Written by `python -m experiments compaction`.
"""


rebuild = write

COMMANDS = main

if __name__ == "__main__":
  cli.run("compaction", COMMANDS, sys.argv[1:])
