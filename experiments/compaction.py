"""What compaction is worth: networks before and after `rvsm_jax.compaction.compact`.

`python -m experiments compaction` measures it.
"""

from collections.abc import Callable, Iterable
import itertools
import pathlib
import sys
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import datasets
from experiments.core import cli, results, tables, timing
from experiments.networks import cifar
from experiments.networks.perceptron import perceptron
import rvsm_jax
from rvsm_jax import compaction

Weighted = nnx.Conv | nnx.Linear
# A layer with hidden units, and the one that takes them in.
Pair = tuple[Weighted, Weighted]


def kill(pairs: Iterable[Pair], share: float, seed: int) -> None:
  """Takes the weights of a random share of the hidden units between layers, in place.

  Of every other of them the ingoing weights, of the rest the outgoing ones, as
  training to zeros does.
  """
  rng = np.random.default_rng(seed)
  for layer, following in pairs:
    dead = rng.permutation(layer.out_features)[: round(share * layer.out_features)]
    kernel = np.array(layer.kernel[...])
    kernel[..., dead[::2]] = 0
    layer.kernel[...] = jnp.asarray(kernel)
    kernel = np.array(following.kernel[...])
    kernel.reshape(-1, layer.out_features, kernel.shape[-1])[:, dead[1::2]] = 0
    following.kernel[...] = jnp.asarray(kernel)


def sequential(layers: Iterable[Any]) -> list[Pair]:
  """The neighbours among layers with weights."""
  return list(itertools.pairwise(one for one in layers if isinstance(one, Weighted)))


def constructed() -> dict[str, tuple[nnx.Module, jax.Array]]:
  """Networks with random weights and many dead units, and inputs for them."""
  images = jax.random.normal(jax.random.key(0), (32, 32, 32, 3))
  vectors = jax.random.normal(jax.random.key(1), (512, 784))
  wide = perceptron([784, 2048, 2048, 10], nnx.Rngs(0))
  vgg: Any = cifar.create("vgg16", width=0.5, seed=0)
  resnet: Any = cifar.create("resnet18", width=0.5, seed=0)
  convs = [layer.conv for stage in vgg.features for layer in stage]
  kill(sequential(wide.layers), 0.5, 0)
  kill(sequential([*convs, vgg.out]), 0.5, 1)
  kill([(block.first.conv, block.second.conv) for block in resnet.blocks], 0.9, 2)
  return {
    "perceptron 784-2048-2048-10": (wide, vectors),
    "VGG-16": (vgg, images),
    "ResNet-18": (resnet, images),
  }


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
    places: where it reads and writes.
  """
  x, y = (jnp.asarray(array) for array in datasets.load("digits", "test"))
  x = x / 16
  trained = perceptron([64, 1024, 1024, 10], nnx.Rngs(0))
  train(trained)
  smaller = compaction.compact(trained, x)
  found = {"perceptron 64-1024-1024-10, trained": measure(trained, smaller, x)}
  for when, network in (("before", trained), ("after", smaller)):
    accuracy = float(jnp.mean(jnp.argmax(network(x), axis=-1) == y))
    found["perceptron 64-1024-1024-10, trained"][f"accuracy_{when}"] = accuracy
  for name, (model, inputs) in constructed().items():
    found[name] = measure(model, compaction.compact(model, inputs), inputs)
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

Networks before and after `rvsm_jax.compaction.compact`. The first was trained on
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

if __name__ == "__main__":
  cli.run("compaction", main, sys.argv[1:])
