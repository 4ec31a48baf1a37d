"""The training loop that tests of convergence share."""

import jax
import jax.numpy as jnp
import optax


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
