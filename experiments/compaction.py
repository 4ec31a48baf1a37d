"""What compaction is worth: networks before and after `rvsm_jax.compaction.compact`.

`python -m experiments compaction` measures it, `python -m experiments compaction
trained` networks that lost whole units in training.
"""

from collections.abc import Callable, Iterable
import functools
import itertools
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import datasets
from experiments.cifar import config as configs
from experiments.cifar import train as cifar_train
from experiments.core import (
  backend,
  cli,
  methods,
  results,
  tables,
  tasks,
  timing,
  training,
)
from experiments.core.run import Run
from experiments.core.tasks import WIDE, Task
from experiments.core.training import Data, Examples
from experiments.networks import cifar
from experiments.networks.perceptron import perceptron
import rvsm_jax
from rvsm_jax import compaction, export

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
  model: nnx.Module,
  smaller: nnx.Module,
  inputs: jax.Array,
  repeats: int = 15,
  clock: timing.Clock = "wall",
) -> dict[str, Any]:
  """Size and inference time of a model and of what `compact` made of it.

  Times are medians over `repeats` runs of each, taken in turns, so that what else the
  machine does meets both; compilation does not count.

  Returns:
    For "before" and "after" the number of `units` (the outputs of all layers with
    weights, and heads) and `parameters`, their size in `bytes` and the
    `milliseconds` for the inputs; `speedup`; and `difference`, the largest of the
    outputs over the largest output.
  """
  runs = [_compiled(network) for network in (model, smaller)]
  before, after = (np.asarray(run(inputs), np.float64) for run in runs)

  def until_ready(run: Callable[[jax.Array], jax.Array]) -> Callable[[], jax.Array]:
    return lambda: jax.block_until_ready(run(inputs))

  found = timing.compare(until_ready(runs[0]), until_ready(runs[1]), repeats, clock)
  report: dict[str, Any] = {}
  for name, network, seconds in (
    ("before", model, found.base_seconds),
    ("after", smaller, found.seconds),
  ):
    leaves = jax.tree.leaves(nnx.state(network, nnx.Param))
    report[name] = {
      "units": sum(map(_units, (module for _, module in nnx.iter_modules(network)))),
      "parameters": sum(leaf.size for leaf in leaves),
      "bytes": sum(leaf.nbytes for leaf in leaves),
      "milliseconds": 1e3 * seconds,
    }
  report["speedup"] = 1 / found.ratio
  report["difference"] = float(np.max(np.abs(before - after)) / np.max(np.abs(before)))
  return report


def _units(module: Any) -> int:
  if isinstance(module, nnx.MultiHeadAttention):
    return module.num_heads
  return module.out_features if isinstance(module, Weighted) else 0


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
  graph, params = nnx.split(model)
  trainer = training.Trainer(training.plain_forward(graph), lambda _: tx)
  step = trainer.compiled(Examples(x / 16, y), whole_epochs=False)
  state, rng = trainer.init(params), np.random.default_rng(0)
  for _ in range(steps):
    state = step.call(state, rng.integers(0, len(x), 64))
  nnx.update(model, state.params)


# Shares of dead units, the same in all layers, and of zeros one by one.
_GROUPED = {"fashion_mnist": (0.5, 0.6, 0.7, 0.8), "text": (0.5, 0.6, 0.7, 0.8)}
_SINGLE = {"fashion_mnist": (0.8, 0.9, 0.95), "text": (0.7,)}
_RESNETS_TITLE = "CIFAR-10, ResNet-18 with a quarter of its channels"
# Rows of `experiments cifar`.
_RESNETS = {
  "dense": "resnet18-sgd",
  "single zeros, 90%": "resnet18-sparsify90",
  "whole units, 50%, compacted": "resnet18-units50",
}


def grouped(
  task: Task, params: Any, x: Any, steps: int, share: float
) -> optax.GradientTransformation:
  """Straight-through with a rising share of dead filters, heads and neurons."""
  graph, state = nnx.split(tasks.plain(task, params))
  plan = compaction.plan(lambda p, x: nnx.merge(graph, p)(x), state, x)
  # The numbers of a value are no units: heads go as a whole.
  groups = [group for group in plan.groups if "value" not in group.name]
  target = functools.partial(compaction.unit_cardinality, groups)
  setting = task.setting(steps, share, methods.END)
  return methods.straight_through(target, mask=None)(setting)


def _networks(
  task: Task, data: Data, epochs: int | None, run: Run
) -> dict[str, tuple[Any, float]]:
  """By a name for tables the params, and their accuracy on validation examples."""
  size = len(data.train.y) // 6
  train, held = (
    Examples(*(array[part] for array in data.train))
    for part in (slice(size, None), slice(0, size))
  )
  part = Data(train, held)
  steps = task.steps(part, epochs)
  evaluate = tasks.evaluator(task, held)

  def fitted(name: str, tx: optax.GradientTransformation) -> tuple[Any, float]:
    file = run.directory / f"{task.name}-{name}.safetensors"
    graph, params = nnx.split(task.network_of(nnx.Rngs(params=0)))
    if file.exists():
      params = export.load(file, params)
    else:
      results.console.print(f"{task.title}: {name}")
      params = tasks.fit(task, part, tx, 0, epochs)[0].sparse
      export.save(file, params)
    return params, evaluate(graph, params)[1]

  found = {"dense": fitted("dense", task.optimizer(steps))}
  for share in _SINGLE[task.name]:
    tx = rvsm_jax.sparsify(task.optimizer(steps), share, steps=steps)
    found[f"single zeros, {share:.0%}"] = fitted(f"single-{share:g}", tx)
  for share in _GROUPED[task.name]:
    name = f"whole units, {share:.0%}, compacted"
    tx = grouped(task, found["dense"][0], train.x[:1], steps, share)
    found[name] = fitted(f"units-{share:g}", tx)
  return found


def trained(
  places: cli.Common,
  names: tuple[str, ...] = ("fashion_mnist", "text", "cifar10"),
  epochs: int | None = None,
) -> None:
  """Measures networks that were trained with group penalties, beside others.

  Args:
    places: where it reads and writes.
    names: fashion_mnist, text, cifar10.
    epochs: instead of those of the tasks.
  """
  backend.reuse_freed_memory()
  if places.quick:
    names, epochs = ("fashion_mnist",), 1
  runs = places.run("compaction", "trained")
  found: dict[str, Any] = {}
  with Run(runs, {"names": names, "epochs": epochs}) as run:
    for name in names:
      if name == "cifar10":
        found[name] = _resnets(places)
      else:
        found[name] = _of_task(WIDE[name], places, epochs, run)
  folder = places.report("compaction", runs)
  result = results.result("compaction", {}, None, tasks=found)
  results.publish(folder / "trained.json", result, rebuild)


def _of_task(
  task: Task, places: cli.Common, epochs: int | None, run: Run
) -> dict[str, Any]:
  data = tasks.load(task, places.data_dir, places.source)
  networks = {
    kind: (tasks.plain(task, params), {"validated": validated})
    for kind, (params, validated) in _networks(task, data, epochs, run).items()
  }
  x = jnp.asarray(data.test.x[: 16 if task.in_nats else 256])
  tested = tasks.evaluator(task, data.test)
  compared = _compared(task.title, networks, x, lambda net: tested(*nnx.split(net)))
  return {"note": datasets.note(task.name, *data.test), "networks": compared}


def _resnets(places: cli.Common) -> dict[str, Any]:
  """Those of `experiments cifar`, whose runs go on here or are taken from there."""
  settings = configs.Settings(epochs=6, width=0.25, recipe="fast")
  data, note = cifar_train.load_data(settings, places.data_dir, places.source)
  runs = places.run("cifar", settings.name)
  networks: dict[str, tuple[Any, dict[str, float]]] = {}
  for kind, name in _RESNETS.items():
    config = configs.Config(configs.ROWS[name], settings)
    with Run(runs / name, config) as run:
      cifar_train.train(config, run, places.data_dir, places.source)
      network, params, stats = cifar_train.Network.create(config)
      kept = {"params": params, "statistics": stats}
      kept = export.load(run.directory / "network.safetensors", kept)
    networks[kind] = (nnx.merge(network.testing, *kept.values()), {})

  def evaluate(model: nnx.Module) -> tuple[float, float]:
    parts: Any = nnx.split(model, nnx.Param, nnx.BatchStat)
    graph, *states = parts
    return training.evaluator(cifar_train.forward(graph), data.test, 500)(*states)

  x = cifar_train.normalized(jnp.asarray(data.test.x[:256]))
  compared = _compared(_RESNETS_TITLE, networks, x, evaluate)
  return {"note": note, "networks": compared}


def _compared(
  title: str,
  networks: dict[str, tuple[Any, dict[str, float]]],
  x: jax.Array,
  evaluate: Callable[[nnx.Module], tuple[float, float]],
) -> dict[str, Any]:
  """Sizes, times for a batch and test results; those with groups are compacted."""
  dense, rows = networks["dense"][0], {}
  for name, (model, known) in networks.items():
    if name.endswith("compacted"):
      model = compaction.compact(model, x, verify=True)
    sizes = measure(dense, model, x, clock="processor")
    graph, state = nnx.split(model)
    loss, accuracy = evaluate(model)
    run = lambda state, x, graph=graph: nnx.merge(graph, state)(x)  # noqa: E731
    params = nnx.state(model, nnx.Param)
    rows[name] = {
      **{"loss": loss, "accuracy": accuracy, **known},
      **{**sizes["after"], "speedup": sizes["speedup"]},
      "nonzeros": sum(int(jnp.count_nonzero(p)) for p in jax.tree.leaves(params)),
      "multiplications": compaction.plan(run, state, x).multiplications[0],
    }
    results.console.print(f"{title}, {name}: {rows[name]}")
  return rows


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
  results.publish(folder / "compaction.json", result, rebuild)


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the tables of the results in a folder, and returns their paths."""
  pages = {"compaction": _page, "trained": _page_of_trained}
  return [
    results.write_atomically(folder / f"{name}.md", pages[name](result))
    for name, result in results.read_all(folder, pages).items()
  ]


def _page_of_trained(report: dict[str, Any]) -> str:
  parts = [
    "# What each kind of zero is worth",
    "Networks trained here with the same optimizer, schedule and number of updates:"
    " dense; with `sparsify`, whose zeros may stand anywhere and save nothing here; and"
    " with `straight_through` and `compaction.unit_cardinality`, by which a share of"
    " the filters, neurons and heads dies, the same in all layers; `compaction.compact`"
    " takes them out. A sixth of the training examples is kept for validation, except"
    " for CIFAR-10, whose networks are rows of `python -m experiments cifar`.",
  ]
  for name, found in report["tasks"].items():
    rows = [
      [
        kind,
        f"{100 * one['validated']:.2f}" if "validated" in one else "–",
        f"{100 * one['accuracy']:.2f}",
        f"{one['loss']:.3f}",
        *(f"{one[key]:,}" for key in ("units", "parameters", "nonzeros")),
        f"{one['multiplications'] / 1e6:,.1f}",
        f"{one['milliseconds']:.1f}",
        f"{one['speedup']:.2f}",
      ]
      for kind, one in found["networks"].items()
    ]
    header = ["network", "validation, %", "test, %", "test loss", "units", "stored"]
    header += ["not zero", "multiplications, M", "ms", "speedup"]
    title = WIDE[name].title if name in WIDE else _RESNETS_TITLE
    parts += [f"## {title}", tables.table(header, rows)]
    parts.append(f"{_fastest(found['networks'])} Data: {found['note']}.")
  parts.append(
    "Units are the outputs of all layers with weights, and heads; milliseconds those of"
    " a batch (256 images; 16 pieces of text), of all cores together, medians of 15"
    " runs in turns with the dense network, of which the speedup is the ratio."
    f" {results.footer([report])}\n"
    "Written by `python -m experiments compaction trained`."
  )
  return "\n\n".join(parts) + "\n"


def _fastest(networks: dict[str, dict[str, Any]]) -> str:
  """The fastest of those that lose at most a point."""
  least = networks["dense"]["accuracy"] - 0.01
  near = {
    kind: one["speedup"]
    for kind, one in networks.items()
    if kind.endswith("compacted") and one["accuracy"] >= least
  }
  if not near:
    return "No compacted network is within a point of the dense one."
  best = max(near, key=lambda kind: near[kind])
  return (
    f"The fastest within a point of the dense network is *{best}*, {near[best]:.1f}"
    " times as fast."
  )


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


COMMANDS = {"": main, "trained": trained}

if __name__ == "__main__":
  cli.run("compaction", COMMANDS)
