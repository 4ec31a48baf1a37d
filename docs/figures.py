"""Draws the pictures of the guide: `PYTHONPATH=. python docs/figures.py`.

Each function draws one file of `docs/figures`; all of them take less than a minute.
"""

from collections.abc import Callable
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from experiments.core import plots
import rvsm_jax

FOLDER = pathlib.Path(__file__).parent / "figures"
STEPS, THRESHOLD, BETA = 200, 0.25, 1.0  # those of docs/getting_started.md
RATE, MOMENTUM = 0.1, 0.9

_images, _labels = load_digits(return_X_y=True)
_images = jnp.asarray(_images / 16, jnp.float32)
_test = np.arange(len(_labels)) % 5 == 0


def proxes() -> None:
  """Penalties, and their proximal maps at the same threshold."""
  penalties = {
    "l0": (rvsm_jax.l0(), plots.GREY),
    "transformed l1, a = 0.1": (rvsm_jax.transformed_l1(0.1), plots.GREEN),
    "transformed l1, a = 1": (rvsm_jax.transformed_l1(1.0), plots.PURPLE),
    "l1": (rvsm_jax.l1(), plots.BLUE),
  }
  x = jnp.linspace(-1.5, 1.5, 601)
  with plots.figure(FOLDER / "proxes.png", columns=2, height=3.6) as axes:
    left, right = axes[0]
    right.plot(x, x, ":", color="black", linewidth=0.9, label="no penalty")
    for name, (penalty, color) in penalties.items():
      left.plot(x, jax.vmap(penalty.value)(x), color=color, label=name)
      step = rvsm_jax.step_for_threshold(penalty, 0.5)
      right.plot(x, penalty.prox(x, step), color=color, label=name)
    left.set(title="Penalty P(x)", xlabel="weight x", ylabel="P(x)")
    right.set(title="Proximal map, threshold 0.5", xlabel="weight x", ylabel="prox(x)")
    right.legend(fontsize=8)


def groups() -> None:
  """The same kernel after the proximal maps of four penalties."""
  kernel = np.random.default_rng(0).normal(size=(12, 16)).astype(np.float32)
  kernel *= np.linspace(0.5, 1.4, 12)[:, None] * np.linspace(0.4, 1.6, 16)
  shown = {
    "single weights: l1()": (rvsm_jax.l1(), 0.7),
    'neurons: group_lasso("out")': (rvsm_jax.group_lasso("out"), 2.8),
    'inputs: group_lasso("in")': (rvsm_jax.group_lasso("in"), 3.8),
    "both: integrated_tl1(0.1, 0.5)": (rvsm_jax.integrated_tl1(0.1, 0.5), 1.6),
  }
  with plots.figure(
    FOLDER / "groups.png", rows=2, columns=2, width=4.2, height=2.9
  ) as axes:
    for axis, (title, (penalty, step)) in zip(axes.flat, shown.items(), strict=True):
      weights = np.ma.masked_equal(np.abs(penalty.prox(kernel, step)), 0)
      image = axis.imshow(weights, cmap="viridis", vmin=0, vmax=2.5, aspect="auto")
      axis.set(title=title, xlabel="output neuron", ylabel="input")
      axis.set_xticks(range(0, 16, 5))
      axis.set_yticks(range(0, 12, 5))
      axis.grid(False)
    bar = axes[0, 0].figure.colorbar(image, ax=axes, shrink=0.6, extend="max")
    bar.set_label("magnitude; white is exactly zero")


def one_weight() -> None:
  """Two weights that noisy gradients pull to 1 and to 0.3, by three algorithms."""
  lam, beta, rate, goal = 0.4, 1.0, 0.05, jnp.array([1.0, 0.3])
  gamma = rvsm_jax.step_for_threshold(rvsm_jax.l0(), 0.5)
  ways = {
    "penalty gradient, l1": optax.chain(
      rvsm_jax.add_penalty_gradient(rvsm_jax.l1(), lam), optax.sgd(rate)
    ),
    "proximal, l1": rvsm_jax.proximal_sgd(rate, rvsm_jax.l1(), lam=lam),
    "rvsm, l0": rvsm_jax.rvsm_sgd(
      rate, rvsm_jax.l0(), lam=float(beta * gamma), beta=beta
    ),
  }
  noise = jax.random.normal(jax.random.key(0), (150, 2))
  with plots.figure(FOLDER / "one_weight.png", columns=3, width=3.3) as axes:
    for axis, (title, tx) in zip(axes[0], ways.items(), strict=True):
      w = jnp.array([0.1, 0.6])
      state, path = tx.init(w), []
      for sample in noise:
        path.append((w, rvsm_jax.sparse_params(state, w)))
        updates, state = tx.update(w - goal + 0.5 * sample, state, w)
        w = optax.apply_updates(w, updates)
      dense, sparse = map(np.array, zip(*path, strict=True))
      axis.axhline(0, color="black", linewidth=0.8)
      split = not np.array_equal(dense, sparse)
      for weight, color in enumerate((plots.BLUE, plots.ORANGE)):
        name = f"w, pulled to {goal[weight]:g}"
        axis.plot(dense[:, weight], color=color, label=name)
        if split:
          axis.plot(sparse[:, weight], "--", color=color, label="its u")
      zeros = int((sparse[100:, 1] == 0).sum())
      axis.set(
        title=title, xlabel=f"step ({zeros} of the last 50 at zero)", ylim=(-0.2, 1.4)
      )
      axis.legend(fontsize=7, loc="upper left", ncols=2)
    axes[0, 0].set(ylabel="weight")


def _network() -> nnx.Sequential:
  return nnx.Sequential(
    nnx.Linear(64, 256, rngs=nnx.Rngs(0)),
    nnx.relu,
    nnx.Linear(256, 10, rngs=nnx.Rngs(1)),
  )


def _train(
  tx: optax.GradientTransformation, steps: int, look: Callable | None = None
) -> tuple[nnx.Sequential, nnx.Optimizer, np.ndarray]:
  """Trains on all images at once; returns what `look` saw after each step, too."""
  model = _network()
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  images, labels = _images[~_test], _labels[~_test]

  @nnx.jit
  def step(model: nnx.Sequential, optimizer: nnx.Optimizer) -> None:
    def loss(model: nnx.Sequential) -> jax.Array:
      logits = model(images)
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    optimizer.update(model, nnx.grad(loss)(model))

  seen = []
  for _ in range(steps):
    step(model, optimizer)
    if look:
      seen.append(look(model, optimizer))
  return model, optimizer, np.array(seen)


def _ramp(begin: int = 70, length: int = 70) -> optax.Schedule:
  return optax.linear_schedule(0.0, BETA * THRESHOLD**2 / 2, length, begin)


def _rvsm(lam: Any, penalty: rvsm_jax.Penalty) -> optax.GradientTransformation:
  return rvsm_jax.rvsm_sgd(
    RATE,
    penalty,
    lam=lam,
    beta=BETA,
    momentum=MOMENTUM,
    mask=rvsm_jax.kernels,
  )


@nnx.jit
def _accuracies(model: nnx.Sequential, optimizer: nnx.Optimizer) -> jax.Array:
  """Accuracy of w and of u, and the zeros of u in the kernels."""
  graph, params, rest = nnx.split(model, nnx.Param, ...)
  sparse = rvsm_jax.sparse_params(optimizer.opt_state, params)

  def accuracy(params: nnx.State) -> jax.Array:
    logits = nnx.merge(graph, params, rest)(_images[_test])
    return jnp.mean(logits.argmax(-1) == _labels[_test])

  kernels = [w for w in jax.tree.leaves(sparse) if w.ndim > 1]
  return jnp.stack([accuracy(params), accuracy(sparse), rvsm_jax.sparsity(kernels)])


def ramp() -> None:
  """A threshold from the first step, and one that is ramped."""
  with plots.figure(FOLDER / "ramp.png", columns=2, height=3.2) as axes:
    left, right = axes[0]
    for name, lam, color in (
      ("constant", BETA * THRESHOLD**2 / 2, plots.BLUE),
      ("ramped", _ramp(), plots.ORANGE),
    ):
      lams = [lam(step) if callable(lam) else lam for step in range(STEPS)]
      left.plot(np.sqrt(2 * np.array(lams) / BETA), color=color, label=name)
      _, _, seen = _train(_rvsm(lam, rvsm_jax.l0()), STEPS, _accuracies)
      right.plot(seen[:, 1], color=color, label=f"{name}, u")
      right.plot(seen[:, 0], "--", color=color, label=f"{name}, w", linewidth=1)
    left.set(title="Threshold of u", xlabel="step", ylabel="sqrt(2 lam / beta)")
    right.set(title="Accuracy on the test digits", xlabel="step", ylabel="accuracy")
    plots.percent_axis(right, 0)
    left.legend()
    right.legend(fontsize=8)


def weights() -> None:
  """The weights of a dense network, and w and u of RVSM."""
  dense, _, _ = _train(optax.sgd(RATE, momentum=MOMENTUM), STEPS)
  model, optimizer, _ = _train(_rvsm(_ramp(), rvsm_jax.l0()), STEPS)
  accuracy_w, accuracy_u, zeros = _accuracies(model, optimizer)
  params = nnx.state(model, nnx.Param)
  sparse = rvsm_jax.sparse_params(optimizer.opt_state, params)
  edges = np.linspace(-0.75, 0.75, 76)
  with plots.figure(FOLDER / "weights.png", columns=2, height=3.4) as axes:
    left, right = axes[0]

    def draw(axis, tree, color, label, **style) -> None:
      values = [np.ravel(w) for w in jax.tree.leaves(tree) if w.ndim > 1]
      values = np.concatenate(values)
      axis.hist(values[values != 0], edges, color=color, label=label, **style)

    draw(left, nnx.state(dense, nnx.Param), plots.GREY, "weights", alpha=0.6)
    draw(right, params, plots.BLUE, f"w: accuracy {accuracy_w:.1%}", alpha=0.45)
    draw(
      right,
      sparse,
      plots.ORANGE,
      f"u: accuracy {accuracy_u:.1%}\n({zeros:.1%} zeros, not drawn)",
      histtype="step",
      linewidth=1.6,
    )
    for side in (-THRESHOLD, THRESHOLD):
      label = "threshold" if side > 0 else None
      right.axvline(side, color="black", linewidth=0.9, linestyle=":", label=label)
    for axis, title in ((left, "Dense network"), (right, "RVSM with l0")):
      axis.set(
        title=title,
        xlabel="weight",
        ylabel="number of weights",
        yscale="log",
        ylim=(0.8, 1e6),
      )
      axis.legend(
        fontsize=8, loc="upper right", frameon=True, edgecolor="none", framealpha=1
      )


def target() -> None:
  """`target_sparsity` on the way to 90%."""
  steps, goal = 1500, rvsm_jax.sparsity_schedule(0.9, 1000)
  tx = rvsm_jax.target_sparsity(
    lambda lam: _rvsm(lam, rvsm_jax.l1()),
    goal,
    mask=rvsm_jax.kernels,
  )

  @nnx.jit
  def look(model: nnx.Sequential, optimizer: nnx.Optimizer) -> jax.Array:
    lam = optax.tree.get(optimizer.opt_state, "lam")[...]
    return jnp.stack([_accuracies(model, optimizer)[2], lam])

  _, _, seen = _train(tx, steps, look)
  with plots.figure(FOLDER / "target.png", columns=2, height=3.2) as axes:
    left, right = axes[0]
    left.plot(seen[:, 0], color=plots.ORANGE, label="zeros of u")
    ramp = [float(goal(step)) for step in range(steps)]
    left.plot(ramp, ":", color="black", label="the ramp asked for")
    right.plot(seen[:, 1], color=plots.BLUE)
    left.set(title="Share of zeros", xlabel="step", ylabel="zeros")
    right.set(
      title="lam that the feedback found", xlabel="step", ylabel="lam", yscale="log"
    )
    plots.percent_axis(left, 0)
    left.legend()


DRAWN = (proxes, groups, one_weight, ramp, weights, target)

if __name__ == "__main__":
  for draw in DRAWN:
    draw()
    print(f"Wrote {FOLDER / draw.__name__}.png")
