"""One training step and one loop for all experiments.

A `Trainer` is a network, an optimizer for any hyperparameters, and its examples. From
its one update come a compiled step, for a loop in Python; a compiled epoch; and a whole
training as a function that can be compiled, and mapped over hyperparameters and seeds.
`fit` is the loop, with a progress bar, checkpoints and resumption.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import time
from typing import Any, NamedTuple, Self

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
import optax
import rich.progress

from experiments.core import backend
from experiments.core.results import console
from experiments.core.run import Record, Run
import rvsm_jax

_REFRESH_SECONDS = 0.5

# From the params, what else the network has (such as batch statistics) and a batch of
# inputs to logits (n, classes) and what else it has afterwards.
Forward = Callable[[Any, Any, Any], tuple[jax.Array, Any]]


class Examples(NamedTuple):
  """Inputs (n, ...), and labels (n,); -1 is the label of what does not count.

  Of text the labels are characters, (n, length).
  """

  x: Any
  y: Any


class Data(NamedTuple):
  """Examples for training, and for testing or validation."""

  train: Examples
  test: Examples


def plain_forward(graph: nnx.GraphDef) -> Forward:
  """That of an NNX network whose only state are its params."""
  return lambda params, extra, x: (nnx.merge(graph, params)(x), extra)


def padded(examples: Examples, divisor: int) -> Examples:
  """A multiple of so many examples; those added are zeros, and do not count."""
  more = -len(examples.y) % divisor

  def filled(array: Any, value: int) -> np.ndarray:
    widths = [(0, more), *[(0, 0)] * (array.ndim - 1)]
    return np.pad(array, widths, constant_values=value)

  return Examples(filled(examples.x, 0), filled(examples.y, -1))


def cropped(images: jax.Array, corners: jax.Array, margin: int) -> jax.Array:
  """Windows of images (n, h, w, c) of their own size, out of a margin of zeros.

  Their `corners`, (n, 2), are from 0 to twice the margin.
  """
  around = (margin, margin)
  padded = jnp.pad(images, ((0, 0), around, around, (0, 0)))
  return jax.vmap(
    lambda image, corner: jax.lax.dynamic_slice(image, (*corner, 0), images.shape[1:])
  )(padded, corners)


def epoch_order(seed: int, epoch: int, size: int, batch_size: int) -> np.ndarray:
  """Shuffled indices of one epoch, (steps, batch_size); the remainder is left out.

  A function of its arguments alone, so that a resumed run sees the same batches.
  """
  steps = size // batch_size
  if not steps:
    raise ValueError(
      f"batch_size={batch_size} is more than the {size} examples: lower it."
    )
  order = np.random.default_rng((seed, epoch)).permutation(size)
  return order[: steps * batch_size].reshape(steps, batch_size)


def reshuffled(
  seed: Any, chosen: NDArray[np.integer], shape: tuple[int, int, int]
) -> NDArray[np.int32]:
  """Indices for all batches, of some of the examples, shuffled each time.

  Args:
    seed: of the order.
    chosen: the numbers of those that are trained on; they are gone through as often
      as it takes.
    shape: (epochs, steps, batch_size).
  """
  count = int(np.prod(shape))
  rng = np.random.default_rng(seed)
  rounds = [rng.permutation(chosen) for _ in range(-(-count // len(chosen)))]
  return np.concatenate(rounds)[:count].astype(np.int32).reshape(shape)


@jax.jit
def _count_not_finite(tree: Any) -> jax.Array:
  return sum(
    (jnp.sum(~jnp.isfinite(leaf)) for leaf in jax.tree.leaves(tree)), jnp.int32(0)
  )


def require_finite(numbers: Any, what: str) -> None:
  """Stops a training that diverged before its numbers are saved or reported.

  Raises:
    FloatingPointError: if one is infinite or not a number.
  """
  count = int(_count_not_finite(numbers))
  if count:
    raise FloatingPointError(
      f"{what}: {count} numbers are not finite; lower the learning rate."
    )


class TrainState(NamedTuple):
  """What is trained.

  Attributes:
    step: number of updates so far, int32.
    params: the weights w.
    opt_state: the optimizer's, u included.
    totals: sums over the examples of the epoch so far; `"seen"` is their number.
    extra: what else there is, such as batch statistics.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  totals: dict[str, jax.Array]
  extra: Any = ()

  @classmethod
  def create(
    cls, params: Any, tx: optax.GradientTransformation, extra: Any = ()
  ) -> Self:
    """The state before the first update, with totals of loss and accuracy."""
    zero = jnp.zeros([], jnp.int32)
    totals = {"loss": jnp.zeros([]), "accuracy": jnp.copy(zero), "seen": jnp.copy(zero)}
    return cls(zero, params, tx.init(params), totals, extra)

  @property
  def sparse(self) -> Any:
    """The sparse network: that of u, or w where there is no u."""
    return rvsm_jax.sparse_params(self.opt_state, self.params)


def losses(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Cross entropy of each label, and whether it was found, both as the labels."""
  loss = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(labels, 0))
  found = jnp.argmax(logits, axis=-1) == labels
  return jnp.where(labels < 0, 0.0, loss), found


def updated(
  forward: Forward,
  tx: optax.GradientTransformation,
  state: TrainState,
  batch: Examples,
  smoothing: float = 0.0,
) -> TrainState:
  """The state after one update on one batch: a pure function.

  Args:
    forward: the network.
    tx: the optimizer.
    state: the one before.
    batch: the examples.
    smoothing: the share of each label that all classes have in common.
  """

  def objective(params: Any) -> tuple[jax.Array, tuple[Any, ...]]:
    logits, extra = forward(params, state.extra, batch.x)
    loss, found = losses(logits, batch.y)
    objective = jnp.mean(loss)
    if smoothing:
      even = jnp.mean(jax.nn.logsumexp(logits, -1) - jnp.mean(logits, -1))
      objective = (1 - smoothing) * objective + smoothing * even
    return objective, (jnp.sum(loss), jnp.sum(found), extra)

  grads, (loss, found, extra) = jax.grad(objective, has_aux=True)(state.params)
  updates, opt_state = tx.update(grads, state.opt_state, state.params)
  added: dict[str, Any] = {"loss": loss, "accuracy": found, "seen": batch.y.size}
  return TrainState(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    opt_state=opt_state,
    totals={name: state.totals[name] + value for name, value in added.items()},
    extra=extra,
  )


@dataclasses.dataclass(frozen=True)
class Trainer:
  """What trains a network; its functions of hyperparameters are pure.

  Attributes:
    forward: the network.
    optimizer: from hyperparameters, a pytree that may be traced, to the optimizer; all
      values share one compiled program.
    augment: what happens to a batch of inputs, from a key and them.
    seed: of `augment`.
    place: where the indices of a batch go, on several devices.
    shardings: of the state after a compiled step, for `jax.jit`.
    smoothing: of the labels, see `updated`.
  """

  forward: Forward
  optimizer: Callable[[Any], optax.GradientTransformation]
  augment: Callable[[jax.Array, jax.Array], jax.Array] | None = None
  seed: int = 0
  place: Callable[[jax.Array], jax.Array] = lambda batch: batch
  shardings: Any = None
  smoothing: float = 0.0

  def init(self, params: Any, hyper: Any = None, extra: Any = ()) -> TrainState:
    """The state before the first update."""
    return TrainState.create(params, self.optimizer(hyper), extra)

  def update(
    self, state: TrainState, batch: jax.Array, hyper: Any, data: Examples
  ) -> TrainState:
    """The state after one update; `batch` has indices into the examples."""
    batch = self.place(batch)
    x = data.x[batch]
    if self.augment is not None:
      # By the number of the update, so that a resumed run augments alike.
      x = self.augment(jax.random.fold_in(jax.random.key(self.seed), state.step), x)
    tx = self.optimizer(hyper)
    examples = Examples(x, data.y[batch])
    return updated(self.forward, tx, state, examples, self.smoothing)

  def epoch(
    self, state: TrainState, batches: jax.Array, hyper: Any, data: Examples
  ) -> TrainState:
    """The state after an update on each of the batches, (steps, batch_size)."""
    return jax.lax.scan(
      lambda state, batch: (self.update(state, batch, hyper, data), None),
      state,
      batches,
    )[0]

  def whole(
    self,
    params: Any,
    order: jax.Array,
    hyper: Any,
    data: Examples,
    measure: Callable[[TrainState], Any] = lambda state: None,
    extra: Any = (),
  ) -> tuple[TrainState, Any]:
    """A whole training, to be compiled, and mapped over params and hyperparameters.

    Args:
      params: the weights before.
      order: indices of all batches, (epochs, steps, batch_size).
      hyper: see `optimizer`.
      data: the examples.
      measure: of the state after each epoch.
      extra: see `TrainState`.

    Returns:
      The last state, and what was measured, along a first axis of epochs.
    """

    def epoch(state: TrainState, batches: jax.Array) -> tuple[TrainState, Any]:
      state = self.epoch(state, batches, hyper, data)
      return state, measure(state)

    return jax.lax.scan(epoch, self.init(params, hyper, extra), order)

  def compiled(
    self, data: Examples, hyper: Any = None, whole_epochs: bool | None = None
  ) -> "Step":
    """What `fit` calls: by single steps on CPU, by epochs elsewhere.

    Args:
      data: the examples, on the devices.
      hyper: see `optimizer`.
      whole_epochs: whether a call takes all batches that are left of an epoch.
    """
    if whole_epochs is None:
      whole_epochs = not backend.on_cpu()
    jitted = _jitted(self, whole_epochs)
    # The examples are an argument, since a closure would make them part of the program.
    return Step(
      lambda state, batch: jitted(state, jnp.asarray(batch), hyper, data), whole_epochs
    )


@functools.cache
def _jitted(trainer: Trainer, whole_epochs: bool) -> Callable[..., TrainState]:
  return jax.jit(
    trainer.epoch if whole_epochs else trainer.update,
    donate_argnums=0,
    out_shardings=trainer.shardings,
  )


class Step(NamedTuple):
  """From a state, which is donated, and indices to the next state.

  Attributes:
    call: the function.
    whole_epochs: whether it takes batches (n, batch_size) instead of one.
  """

  call: Callable[[TrainState, Any], TrainState]
  whole_epochs: bool = False


@jax.jit
def overwritten(state: TrainState) -> TrainState:
  """The state with u in place of w and without momentum."""
  trace = optax.tree.get(state.opt_state, "trace")
  return state._replace(
    # A copy, because an array cannot be donated as w and as u.
    params=jax.tree.map(jnp.copy, state.sparse),
    opt_state=optax.tree.set(
      state.opt_state, trace=jax.tree.map(jnp.zeros_like, trace)
    ),
  )


def evaluator(
  forward: Forward,
  examples: Examples,
  batch_size: int,
  place: Callable[[jax.Array], jax.Array] = lambda batch: batch,
) -> Callable[..., tuple[float, float]]:
  """A function from params, and what else there is, to mean loss and accuracy."""
  count = examples.y.size
  x, y = padded(examples, batch_size)

  @jax.jit
  def sums(params: Any, extra: Any, x: jax.Array, y: jax.Array) -> Any:
    logits, _ = forward(params, extra, place(x))
    return jax.tree.map(jnp.sum, losses(logits, y))

  def evaluate(params: Any, extra: Any = ()) -> tuple[float, float]:
    loss = found = 0.0
    for start in range(0, len(y), batch_size):
      batch = slice(start, start + batch_size)
      part = sums(params, extra, x[batch], y[batch])
      loss, found = loss + float(part[0]), found + float(part[1])
    return loss / count, found / count

  return evaluate


def means(
  forward: Forward, params: Any, examples: Examples
) -> tuple[jax.Array, jax.Array]:
  """The mean loss, and the share of the labels that are found: to be traced.

  In parts of about 1,000 examples, or 50 of text, since the activations of all would
  fill the memory.
  """
  size = len(examples.y)
  parts = max(1, size // (1000 if examples.y.ndim == 1 else 50))
  whole = size // parts * parts

  def sums(part: Examples) -> tuple[jax.Array, jax.Array]:
    logits, _ = forward(params, (), part.x)
    return jax.tree.map(jnp.sum, losses(logits, part.y))

  total = jax.tree.map(
    jnp.sum,
    jax.lax.map(
      sums,
      jax.tree.map(
        lambda a: a[:whole].reshape(parts, -1, *a.shape[1:]), Examples(*examples)
      ),
    ),
  )
  if size > whole:
    rest = sums(Examples(examples.x[whole:], examples.y[whole:]))
    total = jax.tree.map(jnp.add, total, rest)
  count = jnp.sum(examples.y >= 0)
  return total[0] / count, total[1] / count


def networks_metrics(
  evaluate: Callable[..., tuple[float, float]],
  zeros: Callable[[TrainState], jax.Array],
  splits: bool,
) -> dict[str, Any]:
  """What `fit` takes to measure, after each epoch and while it trains."""
  zeros = jax.jit(zeros)

  def live(state: TrainState) -> dict[str, float]:
    return {"zeros": float(zeros(state))}

  def metrics(state: TrainState) -> dict[str, float]:
    loss, found = evaluate(state.params, state.extra)
    out = {"test_loss": loss, "test_accuracy": found}
    if splits:
      loss, found = evaluate(state.sparse, state.extra)
      out |= {"test_loss_u": loss, "test_accuracy_u": found}
    return out | live(state)

  return {"evaluate": metrics, "live": live}


def fit(
  run: Run,
  state: TrainState,
  *,
  epochs: int,
  batches: Callable[[int], Sequence[Any] | NDArray],
  step: Step,
  evaluate: Callable[[TrainState], dict[str, float]],
  live: Callable[[TrainState], dict[str, float]],
  after_epoch: Callable[[TrainState], TrainState] | None = None,
  checkpoint_seconds: float = 20.0,
  checkpoint_epochs: int | None = None,
) -> tuple[TrainState, Record]:
  """Trains, with a progress bar and checkpoints, from the newest checkpoint if any.

  Args:
    run: the open run directory.
    state: the initial state; `step` may donate its buffers.
    epochs: how many.
    batches: from the number of an epoch to its batches, always the same number.
    step: adds to `totals`.
    evaluate: metrics of a state, at the end of each epoch.
    live: what the progress bar shows besides the means of `totals`.
    after_epoch: changes the state at the end of each epoch, before it is evaluated.
    checkpoint_seconds: at most about this much is lost to a kill.
    checkpoint_epochs: a checkpoint after so many epochs as well.

  Returns:
    The final state, and the record of all epochs.

  Raises:
    FloatingPointError: if the loss, or a weight, is not finite; it is not saved.
  """
  record = Record([], 0.0)
  restored = run.restore(state)
  if restored is not None:
    state, record = restored
    console.print(f"Resumed from step {int(state.step)} in {run.directory}")
  per_epoch = len(batches(0))
  clock = time.monotonic() - record.seconds
  saved = refreshed = time.monotonic()

  with _bar() as bar:
    task = bar.add_task(
      "training",
      total=epochs * per_epoch,
      completed=int(state.step),
      epoch=min(len(record.epochs) + 1, epochs),
      epochs=epochs,
      shown="",
    )
    for epoch in range(len(record.epochs), epochs):
      left = batches(epoch)[int(state.step) - epoch * per_epoch :]
      for batch in [left] if step.whole_epochs and len(left) else left:
        state = step.call(state, batch)
        if time.monotonic() - refreshed > _REFRESH_SECONDS:
          shown = _format({**_means(state), **live(state)})
          done = int(state.step)
          bar.update(task, completed=done, epoch=epoch + 1, shown=shown)
          refreshed = time.monotonic()
        if time.monotonic() - saved > checkpoint_seconds:
          _require_finite(run, state, epoch)
          run.save(state, record._replace(seconds=time.monotonic() - clock))
          saved = time.monotonic()
      _require_finite(run, state, epoch)
      state = state if after_epoch is None else after_epoch(state)
      metrics = {"epoch": epoch + 1, **_means(state), **evaluate(state)}
      console.print(_format(metrics))
      state = state._replace(totals=jax.tree.map(jnp.zeros_like, state.totals))
      record = Record([*record.epochs, metrics], time.monotonic() - clock)
      due = checkpoint_epochs and not (epoch + 1) % checkpoint_epochs
      if epoch + 1 == epochs or due:
        run.save(state, record)
  return state, record


def _bar() -> rich.progress.Progress:
  return rich.progress.Progress(
    rich.progress.TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
    rich.progress.BarColumn(),
    rich.progress.TaskProgressColumn(),
    rich.progress.TextColumn("{task.fields[shown]}"),
    rich.progress.TimeRemainingColumn(),
    console=console,
    transient=True,
  )


def _require_finite(run: Run, state: TrainState, epoch: int) -> None:
  loss = _means(state)["loss"]
  where = f"{run.directory}, epoch {epoch + 1}, loss {loss:g}"
  require_finite((loss, state.params, state.extra), where)


def _means(state: TrainState) -> dict[str, float]:
  """Sums over the examples of the epoch, divided by their number."""
  totals = {name: float(total) for name, total in state.totals.items()}
  seen = totals.pop("seen")
  return {name: total / seen for name, total in totals.items()}


def _format(metrics: Mapping[str, float]) -> str:
  return "  ".join(
    f"{name.replace('_', ' ')} {value:.4g}" for name, value in metrics.items()
  )
