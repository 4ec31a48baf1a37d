"""What several suites share: parts of tables, a tree, problems, loops, states."""

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np
import optax
import pytest


def in_part(rows, *fast):
  """Rows to parametrize over, of which `make test` runs the last arguments alone.

  `make test-slow` runs the others. It is for tests that compile a program for each row,
  where a few rows run all of the code.
  """
  rows = list(rows)
  assert all(row in rows for row in fast), f"{fast} are not among {rows}"

  def slow(row):
    values = row if isinstance(row, tuple) else (row,)
    return pytest.param(*values, marks=pytest.mark.slow)

  return [row if row in fast else slow(row) for row in rows]


both_axis_types = pytest.mark.parametrize(
  "axis_type", in_part([AxisType.Auto, AxisType.Explicit], AxisType.Explicit)
)


def tree(dtype=jnp.float32, seed=0):
  """Params, or gradients, of a small network: five leaves of 0, 1, 2 and 4 axes."""
  rng = np.random.default_rng(seed)

  def draw(*shape):
    return jnp.asarray(rng.normal(size=shape), dtype)

  return {
    "conv": {"kernel": draw(2, 2, 3, 4), "bias": draw(4)},
    "dense": {"kernel": draw(6, 5), "bias": draw(5)},
    "scale": draw(),
  }


def gradients(params, number):
  """So many trees like `params`; their squares are no subnormals in half precision."""
  rng = np.random.default_rng(1)

  def draw(p):
    size = rng.uniform(0.25, 1.5, p.shape)
    return jnp.asarray(rng.choice([-1, 1], p.shape) * size, p.dtype)

  return [jax.tree.map(draw, params) for _ in range(number)]


def run(tx, params, grads, *, jit=True, extra=lambda params, grads: {}):
  """The params and the state after one update for each of `grads`.

  Args:
    tx: an Optax transformation.
    params: the first params.
    grads: a sequence of trees.
    jit: whether to compile.
    extra: from params and gradients to what `update` is given besides.
  """

  def step(params, state, g):
    updates, state = tx.update(g, state, params, **extra(params, g))
    return optax.apply_updates(params, updates), state

  step = jax.jit(step) if jit else step
  state = tx.init(params)
  for g in grads:
    params, state = step(params, state, g)
  return params, state


def converge(tx, problem, steps):
  """The params and the state after `steps` steps, without keeping the way.

  Args:
    tx: an Optax transformation.
    problem: with `start`, the first params, and `gradient`, a function of params.
    steps: how many.
  """

  @jax.jit
  def run(w):
    def step(carry, _):
      w, state = carry
      updates, state = tx.update(problem.gradient(w), state, w)
      return (optax.apply_updates(w, updates), state), None

    return jax.lax.scan(step, (w, tx.init(w)), length=steps)[0]

  return run(jnp.asarray(problem.start))


def find_states(state, *kinds):
  """The states of these types anywhere within `state`."""

  def is_ours(node):
    return isinstance(node, kinds)

  return [x for x in jax.tree.leaves(state, is_leaf=is_ours) if is_ours(x)]


def find_state(state, *kinds):
  """The one state of these types within `state`."""
  (found,) = find_states(state, *kinds)
  return found


def is_masked(node):
  """Whether it stands for a leaf that a mask has left out."""
  return isinstance(node, optax.MaskedNode)


class LeastSquares:
  """f(w) = 1/(2n) ‖Xw - y‖²: with lam ‖w‖_1 it is scikit-learn's lasso."""

  def __init__(self, samples=40, features=20, seed=0):
    rng = np.random.default_rng(seed)
    self.design = rng.normal(size=(samples, features))
    truth = rng.normal(size=features) * (rng.random(features) < 0.3)
    self.target = self.design @ truth + 0.1 * rng.normal(size=samples)
    self.samples = samples
    hessian = self.design.T @ self.design / samples
    self.lipschitz = np.linalg.eigvalsh(hessian)[-1]
    self.start = rng.normal(size=features)

  def gradient(self, w):
    return self.design.T @ (self.design @ w - self.target) / self.samples
