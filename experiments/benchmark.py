"""Speed and memory of the transformations, as ratios to plain SGD in one process."""

from collections.abc import Callable
import dataclasses
import functools
import os
import pathlib
import shlex
import sys
import time
from typing import Annotated, Any, Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

from experiments.core import cli, results, tables, timing
from experiments.networks import cifar
from experiments.networks.curves import CurvesCNN
import rvsm_jax

Part = Literal["updates", "steps", "maps"]

_RATE, _LAM, _BETA = 1e-3, 1e-4, 0.1

_l1, _tl1 = rvsm_jax.l1(), rvsm_jax.transformed_l1(1.0)
_integrated = rvsm_jax.integrated_tl1(a=1.0, mu=0.5)
_group = rvsm_jax.group_lasso("out")


class Subject(NamedTuple):
  """An optimizer.

  Attributes:
    make: builds it.
    arrays: what one update reads and writes at the least, in arrays of the size of
      the params: weights and gradients read, weights written, and its state both. A
      group norm reads weights and gradients a second time, a count of zeros u.
    apply: `optax.apply_updates`, or what takes its place.
  """

  make: Callable[[], optax.GradientTransformation]
  arrays: int
  apply: Callable[[Any, Any], Any] = optax.apply_updates

  @property
  def least_bytes(self) -> int:
    """Bytes per parameter, a float32, that one update moves at the least."""
    return 4 * self.arrays


def _after_sgd(
  factory: Callable[..., optax.GradientTransformation], *args: Any, **kwargs: Any
) -> Callable[[], optax.GradientTransformation]:
  return lambda: optax.chain(
    optax.sgd(_RATE), factory(_RATE, *args, mask=rvsm_jax.kernels, **kwargs)
  )


# A threshold that leaves some weights and takes some.
_rvsm = functools.partial(_after_sgd, rvsm_jax.rvsm, lam=_LAM, beta=_BETA)
_no_u = functools.partial(_rvsm, carry_u=False)
_proximal = functools.partial(_after_sgd, rvsm_jax.proximal, lam=_LAM)


def _target(sparsity: float) -> optax.GradientTransformation:
  return rvsm_jax.target_sparsity(
    lambda lam: rvsm_jax.rvsm(_RATE, _l1, lam=lam, beta=_BETA, mask=rvsm_jax.kernels),
    sparsity,
    mask=rvsm_jax.kernels,
  )


def _through(
  penalty: rvsm_jax.Penalty,
) -> Callable[[], optax.GradientTransformation]:
  return lambda: rvsm_jax.straight_through(
    optax.sgd(_RATE), penalty, step=_LAM / _BETA, mask=rvsm_jax.kernels
  )


def _apply_with_prox(params: Any, updates: Any) -> Any:
  """The map after `optax.apply_updates`, as the note of `rvsm_jax.proximal` has it."""
  params = optax.apply_updates(params, updates)
  return jax.tree.map(
    lambda w, pick: _integrated.prox(w, _RATE * _LAM) if pick else w,
    params,
    rvsm_jax.kernels(params),
  )


SUBJECTS: dict[str, Subject] = {
  "sgd": Subject(lambda: optax.sgd(_RATE), 3),
  "sgd, momentum": Subject(lambda: optax.sgd(_RATE, momentum=0.9), 5),
  "adam": Subject(lambda: optax.adam(_RATE), 7),
  "rvsm l0": Subject(_rvsm(rvsm_jax.l0()), 5),
  "rvsm l0, no u": Subject(_no_u(rvsm_jax.l0()), 3),
  "rvsm l1": Subject(_rvsm(_l1), 5),
  "rvsm l1, no u": Subject(_no_u(_l1), 3),
  "rvsm TL1": Subject(_rvsm(_tl1), 5),
  "rvsm TL1, no u": Subject(_no_u(_tl1), 3),
  "proximal l1": Subject(_proximal(_l1), 3),
  "proximal TL1": Subject(_proximal(_tl1), 3),
  "proximal group lasso": Subject(_proximal(_group), 5),
  "proximal integrated TL1": Subject(_proximal(_integrated), 5),
  "integrated TL1 after apply_updates": Subject(
    lambda: optax.sgd(_RATE), 5, _apply_with_prox
  ),
  "straight-through l0": Subject(_through(rvsm_jax.l0()), 5),
  "straight-through cardinality": Subject(_through(rvsm_jax.cardinality(0.9)), 5),
  "straight-through cardinality, one budget": Subject(
    _through(rvsm_jax.cardinality(0.9, scope="all")), 5
  ),
  "proximal adam l1": Subject(
    lambda: rvsm_jax.proximal_adam(_RATE, _l1, lam=_LAM, mask=rvsm_jax.kernels), 7
  ),
  "admm cardinality": Subject(
    _after_sgd(rvsm_jax.admm, rvsm_jax.cardinality(0.9), rho=_BETA), 7
  ),
  "target sparsity, rvsm l1": Subject(
    lambda: optax.chain(optax.sgd(_RATE), _target(0.9)), 6
  ),
  "penalty gradient l1": Subject(
    lambda: optax.chain(
      rvsm_jax.add_penalty_gradient(_l1, _LAM, mask=rvsm_jax.kernels), optax.sgd(_RATE)
    ),
    3,
  ),
}


def _shapes(make: Callable[[], nnx.Module]) -> Any:
  return nnx.to_pure_dict(nnx.state(nnx.eval_shape(make), nnx.Param))


def _resnet18(copies: int) -> Any:
  params = _shapes(lambda: cifar.create("resnet18", width=1.0, seed=0))
  return {f"copy{i}": params for i in range(copies)}


# The shapes of the weights, by name.
TREES: dict[str, Callable[[], Any]] = {
  "ResNet-18": lambda: _resnet18(1),
  "dense layer": lambda: {"kernel": jax.ShapeDtypeStruct((5408, 128), jnp.float32)},
  "curves CNN": lambda: _shapes(lambda: CurvesCNN(rngs=nnx.Rngs(0))),
  "nine times ResNet-18": lambda: _resnet18(9),
}

PENALTIES: dict[str, rvsm_jax.Penalty] = {
  "soft (l1)": _l1,
  "hard (l0)": rvsm_jax.l0(),
  "TL1": _tl1,
  "lp, p = 1/2": rvsm_jax.lp(0.5),
  "lp, p = 2/3": rvsm_jax.lp(2 / 3),
  "log": rvsm_jax.log_penalty(5.0),
  "MCP": rvsm_jax.mcp(1.0),
  "SCAD": rvsm_jax.scad(1.0),
  "block soft (groups)": _group,
  "integrated TL1": _integrated,
}


@dataclasses.dataclass(frozen=True)
class Config:
  """What is measured, and how often."""

  parts: tuple[Part, ...] = ("updates", "steps", "maps")
  """Of what."""
  trees: tuple[str, ...] = ("ResNet-18", "dense layer", "curves CNN")
  """Weights of the updates; "nine times ResNet-18" has 100 million, for a GPU."""
  optimizers: tuple[str, ...] = tuple(SUBJECTS)
  """Names of those whose update is compared with that of sgd."""
  step_optimizers: tuple[str, ...] = (
    "sgd, momentum",
    "rvsm l0",
    "proximal TL1",
    "proximal integrated TL1",
  )
  """Names of those whose training step is."""
  pairs: int = 21
  """Pairs of neighbouring calls of each update and map."""
  step_pairs: int = 5
  """Pairs of training steps."""
  batch_size: int = 64
  """Images in a training step."""
  map_size: int = 2**24
  """Numbers that the proximal maps are applied to."""
  clock: timing.Clock = "wall"
  """"processor" counts the time of this process alone: for a busy machine."""


QUICK = Config(
  trees=("dense layer",),
  step_optimizers=("rvsm l0",),
  pairs=5,
  step_pairs=2,
  batch_size=8,
  map_size=2**20,
)


def count(tree: Any) -> int:
  """Number of weights."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _draw(shapes: Any, seed: int, scale: float) -> Any:
  """Normal weights of these shapes."""
  return jax.tree.map(
    lambda w: scale * w, optax.tree.random_like(jax.random.key(seed), shapes)
  )


def _begin(subject: Subject, params: Any) -> tuple[Any, Any]:
  return params, subject.make().init(params)


def _update(
  subject: Subject, carry: tuple[Any, Any], grads: Any
) -> tuple[Any, optax.OptState]:
  """From gradients, params and state to the next params and state."""
  params, state = carry
  updates, state = subject.make().update(grads, state, params)
  return subject.apply(params, updates), state


def measure_updates(tree: str, config: Config) -> dict[str, Any]:
  """Every subject's update alone against that of `optax.sgd`."""
  shapes = TREES[tree]()
  size = count(shapes)
  grads = _draw(shapes, 1, 1e-3)

  def runner(subject: Subject) -> tuple[timing.Repeated, Any]:
    begin = functools.partial(_begin, subject)
    step = jax.jit(functools.partial(_update, subject), donate_argnums=0)
    compiled = step.lower(jax.eval_shape(begin, shapes), shapes).compile()
    return timing.Repeated(compiled, begin(_draw(shapes, 0, 0.05)), grads), compiled

  base, _ = runner(SUBJECTS["sgd"])
  axpy = timing.Repeated(
    jax.jit(lambda x, y: x - 1e-3 * y, donate_argnums=0),
    jnp.zeros(size),
    jnp.ones(size),
  )
  # It moves three numbers of four bytes.
  bandwidth = 12 * size / timing.compare(base, axpy, config.pairs, config.clock).seconds

  def row(subject: Subject) -> dict[str, Any]:
    run, step = runner(subject)
    found = timing.compare(base, run, config.pairs, config.clock)
    memory = step.memory_analysis()
    return {
      "ratio": found.ratio,
      "seconds": found.seconds,
      "bytes": step.cost_analysis()["bytes accessed"] / size,
      "least_bytes": subject.least_bytes,
      "of_bandwidth": subject.least_bytes * size / found.seconds / bandwidth,
      "state_bytes": memory.alias_size_in_bytes / size - 4,
      "temporary_bytes": memory.temp_size_in_bytes / size,
      "page_faults": timing.page_faults(run),
    }

  return {
    "parameters": size,
    "axpy_bytes_per_second": bandwidth,
    "rows": {name: row(SUBJECTS[name]) for name in config.optimizers},
  }


def _batch(size: int) -> tuple[np.ndarray, np.ndarray]:
  """Random images with 4% of ink, (n, 100, 100, 1), and labels."""
  rng = np.random.default_rng(0)
  images = rng.random((size, 100, 100, 1)) < 0.04
  return images.astype(np.uint8), rng.integers(0, 2, size)


def step_runner(name: str, size: int) -> timing.Repeated:
  """A training step of the curves CNN: images to the next params and state."""
  subject = SUBJECTS[name]
  graph, params = nnx.split(CurvesCNN(rngs=nnx.Rngs(0)), nnx.Param)
  # Copies, because the params of other steps must not be donated with these.
  params = jax.tree.map(jnp.copy, nnx.to_pure_dict(params))

  def loss(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
    model = nnx.merge(graph, nnx.State(params))
    losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
    return jnp.mean(losses)

  def step(carry: tuple[Any, Any], images: jax.Array, labels: jax.Array) -> Any:
    return _update(subject, carry, jax.grad(loss)(carry[0], images, labels))

  jitted = jax.jit(step, donate_argnums=0)
  return timing.Repeated(jitted, _begin(subject, params), *jax.device_put(_batch(size)))


def measure_steps(config: Config) -> dict[str, Any]:
  """The step with every subject, against that with `optax.sgd`."""
  size, pairs, clock = config.batch_size, config.step_pairs, config.clock
  base = step_runner("sgd", size)
  rows = {
    name: timing.compare(base, step_runner(name, size), pairs, clock)._asdict()
    for name in config.step_optimizers
  }
  return {"batch_size": size, "rows": rows}


def measure_torch(size: int, pairs: int, clock: timing.Clock) -> dict[str, Any]:
  """The step with `optax.sgd` against that of PyTorch, on as many threads."""
  torch_step, version = _torch_runner(size)
  found = timing.compare(torch_step, step_runner("sgd", size), pairs, clock)
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
  torch.set_num_threads(results.cores())

  def block(inputs: int) -> list[Any]:
    pool = nn.MaxPool2d(2, ceil_mode=True)
    return [nn.Conv2d(inputs, 32, 3, padding=1), nn.ReLU(), pool]

  dense = [nn.Flatten(), nn.Linear(13 * 13 * 32, 128), nn.ReLU(), nn.Linear(128, 2)]
  model = nn.Sequential(*block(1), *block(32), *block(32), *dense)
  optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
  images, labels = _batch(size)
  x = 5.0 * torch.from_numpy(images.transpose(0, 3, 1, 2).astype(np.float32))
  y = torch.from_numpy(labels)

  def step() -> None:
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()

  return step, torch.__version__


def measure_maps(size: int, pairs: int, clock: timing.Clock) -> dict[str, Any]:
  """Time of each map of about `size` numbers, float32, to that of the soft threshold.

  The numbers are a matrix of 1,024 columns.
  """
  x = 0.05 * jax.random.normal(jax.random.key(0), (size // 1024, 1024))
  step = jnp.float32(1e-3)

  def runner(penalty: rvsm_jax.Penalty) -> timing.Repeated:
    # In place: a fresh result of this size would cost more than the map.
    function = jax.jit(lambda _, x, step: penalty.prox(x, step), donate_argnums=0)
    return timing.Repeated(function, jnp.zeros_like(x), x, step)

  base = runner(PENALTIES["soft (l1)"])
  rows = {}
  for name, penalty in PENALTIES.items():
    found = timing.compare(base, runner(penalty), pairs, clock)
    time = 1e9 * found.seconds / x.size
    rows[name] = {"ratio": found.ratio, "nanoseconds_per_number": time}
  return {"size": x.size, "rows": rows}


def measure(config: Config, torch: bool) -> dict[str, Any]:
  """The numbers of all parts."""
  # PyTorch first: a missing package is told before minutes of work.
  out: dict[str, Any] = {}
  if torch:
    out["torch"] = measure_torch(config.batch_size, config.step_pairs, config.clock)
  out["updates"] = {}
  if "updates" in config.parts:
    for tree in config.trees:
      results.console.print(f"Updates of the weights: {tree}")
      out["updates"][tree] = measure_updates(tree, config)
  if "steps" in config.parts:
    results.console.print("Training steps of the curves CNN")
    out["steps"] = measure_steps(config)
  if "maps" in config.parts:
    results.console.print("Proximal maps")
    out["maps"] = measure_maps(config.map_size, config.pairs, config.clock)
  return out


def _table(columns: tables.Columns, rows: dict[str, dict[str, Any]]) -> str:
  return tables.of_rows(columns, [{"name": name, **row} for name, row in rows.items()])


_UPDATES: tables.Columns = {
  "optimizer": "{name}",
  "ratio to sgd": "{ratio:.2f}",
  "bytes compiled": "{bytes:.1f}",
  "bytes at least": "{least_bytes}",
  "of the axpy's bandwidth": lambda row: tables.percent(row["of_bandwidth"], 0),
  "state bytes": "{state_bytes:.1f}",
  "temporary bytes": "{temporary_bytes:.1f}",
  "page faults": "{page_faults:.0f}",
}
_STEPS: tables.Columns = {
  "optimizer": "{name}",
  "ratio to sgd": "{ratio:.3f}",
  "step": lambda row: f"{1e3 * row['seconds']:.0f} ms",
  "step of sgd beside it": lambda row: f"{1e3 * row['base_seconds']:.0f} ms",
}
_MAPS = {
  "map": "{name}",
  "ratio to soft": "{ratio:.2f}",
  "ns per number": "{nanoseconds_per_number:.2f}",
}


def markdown(result: dict[str, Any]) -> str:
  """The report of one run of the benchmark."""
  config = result["config"]
  parts = [
    "# Speed and memory",
    f"`{result['command']}`. Medians over {config['pairs']} pairs of neighbouring"
    f" calls, {config['step_pairs']} of training steps, {config['clock']} time, all as"
    " ratios to plain `optax.sgd` in the same process.",
    results.footer([result]),
    "A bandwidth column above 100% is possible: the least bytes are counted as if"
    " nothing stayed in a cache, and so are those of the axpy, `x - c y` in place.",
  ]
  for tree, found in result["updates"].items():
    parts += [
      f"## The update alone: {tree}",
      f"{found['parameters']:,} parameters; bytes are per parameter; the axpy in place"
      f" moves {found['axpy_bytes_per_second'] / 1e9:.1f} GB/s.",
      _table(_UPDATES, found["rows"]),
    ]
  if steps := result.get("steps"):
    title = "## The training step of the curves CNN at batch size"
    parts += [
      f"{title} {steps['batch_size']}",
      _table(_STEPS, steps["rows"]),
      "The machine is not equally fast all the time: compare a step with the one of sgd"
      " that was measured in turn with it, not with another row. The ratio is the"
      " median of the ratios of the pairs.",
    ]
  if torch := result.get("torch"):
    parts.append(
      f"Against PyTorch {torch['torch']}, eager, plain SGD, the same threads: JAX takes"
      f" {torch['ratio']:.2f} times as long, the median of the pairs of calls; their"
      f" medians are {1e3 * torch['seconds']:.0f} ms and"
      f" {1e3 * torch['base_seconds']:.0f} ms."
    )
  if maps := result.get("maps"):
    title = f"## The proximal maps on {maps['size']:,} float32 numbers"
    parts += [title, _table(_MAPS, maps["rows"])]
  return "\n\n".join(parts) + "\n"


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the tables of all results below a folder, and returns their paths."""
  return [
    results.write_atomically(file.with_suffix(".md"), markdown(results.read(file)))
    for file in sorted(folder.rglob("benchmark.json"))
  ]


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes],
  places: cli.Common,
  torch: bool = False,
) -> None:
  """Measures speed and memory: JSON and a Markdown table.

  Args:
    config: what is measured.
    places: where it writes.
    torch: compare the training step with that of PyTorch, which must be installed.
  """
  if places.quick:
    config = dataclasses.replace(QUICK, parts=config.parts, clock=config.clock)
  began = time.monotonic()
  flags = os.environ.get("XLA_FLAGS")
  options = [word for word in sys.argv[1:] if word != "benchmark"]
  arguments = ["python", "-m", "experiments", "benchmark", *options]
  measured = measure(config, torch)
  result = results.result(
    "benchmark",
    config,
    time.monotonic() - began,
    command=shlex.join([f"XLA_FLAGS={flags}", *arguments] if flags else arguments),
    **measured,
  )
  folder = places.report("benchmark", places.run("benchmark"))
  results.publish(folder / "benchmark.json", result, rebuild)


if __name__ == "__main__":
  cli.run("benchmark", main)
