r"""The accelerated proximal gradient method with backtracking.

It minimises :math:`F = f + \lambda P` for a smooth f, whose value and gradient come
from outside, as Optax's line searches want them. The params are the point y at which
the gradient is taken; the state holds the iterate x.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import optax

from rvsm_jax import _masks, _penalty, _transform, _validate

# Of the largest step that the measured curvature allows: it differs a little from one
# direction to the next, and a step that fails costs an evaluation.
_SAFETY = 0.8
# Differences of f below so many units in its last place are taken from the gradient.
_ROUNDING = 1e3
# A step that has not just grown may grow by this much, one that has by the square of
# its growth: fast from a first step that is far too small, with few failures later.
_GROWTH = 1.1


class FistaState(NamedTuple):
  """State of :func:`fista`.

  Attributes:
    count: number of updates so far, int32.
    u: the iterate x, with exact zeros, in the structure of the params.
    momentum: t of the accelerated method, 1 where it starts and restarts.
    step: the step that the last update took, after backtracking.
    trial: the step that the next one tries first.
    value: f at the params if the last update knows it, infinity if not; see
      `optax.value_and_grad_from_state`.
    grad: the gradient of f there, zeros if unknown.
    objective: f + lam P at u if `monotone`, else None.
    residual: the stopping residual, infinity while u has not moved.
    evaluations: how often the last update has evaluated `value_fn`, int32.
  """

  count: jax.Array  # type: ignore[assignment]
  u: Any
  momentum: jax.Array
  step: jax.Array
  trial: jax.Array
  value: jax.Array
  grad: Any
  objective: jax.Array | None
  residual: jax.Array
  evaluations: jax.Array


class _Trial(NamedTuple):
  """What is known after a step has been tried."""

  step: jax.Array
  point: Any  # None where there is no gradient, as in `grad`.
  value: jax.Array
  grad: Any
  length: jax.Array  # Of the move to the point.
  ratio: jax.Array  # Of the two sides of the test: up to 1, it holds.
  accepted: jax.Array
  evaluations: jax.Array


def fista(
  penalty: _penalty.Penalty,
  *,
  lam: optax.ScalarOrSchedule,
  step: ArrayLike = 1.0,
  accelerated: bool = True,
  restart: bool = True,
  monotone: bool = False,
  increase_factor: ArrayLike = 2.0,
  decrease_factor: ArrayLike = 0.5,
  max_backtracking_steps: int = 30,
  mask: _masks.Mask = None,
) -> optax.GradientTransformationExtraArgs:
  r"""FISTA, for convex problems solved to high precision: an optimizer of its own.

  Minimises :math:`f + \lambda P` for a smooth f that sees all data at every step:
  Lasso, sparse logistic regression, group lasso. With y the params,

  .. math::
    x_{k+1} &= \mathrm{prox}_{\eta_k\lambda P}(y_k - \eta_k \nabla f(y_k)) \\
    t_{k+1} &= \tfrac12 \left(1 + \sqrt{1 + 4 t_k^2}\right) \\
    y_{k+1} &= x_{k+1} + \tfrac{t_k - 1}{t_{k+1}} (x_{k+1} - x_k)

  (Beck & Teboulle 2009). The step :math:`\eta_k` is the first of
  :math:`\eta, \eta/2, \eta/4, \dots` for which

  .. math::
    f(x_{k+1}) \le f(y_k) + \langle \nabla f(y_k), x_{k+1} - y_k \rangle
      + \tfrac{1}{2\eta_k} \|x_{k+1} - y_k\|^2 ,

  and the next one begins as much higher as the curvature seen in this test allows.
  The momentum restarts, t = 1, when it points uphill,
  :math:`\langle y_k - x_{k+1}, x_{k+1} - x_k \rangle > 0` (O'Donoghue & Candes 2015).

  The params of the model are the extrapolated point y. Read the solution, with its
  exact zeros, by :func:`sparse_params`.

  `update` takes what Optax's line searches take, `value`, `grad` and `value_fn`, and
  extra arguments of `value_fn` by their names. All three are of f *without* the
  penalty. Without acceleration, `optax.value_and_grad_from_state` computes the value
  and the gradient at the params once. With it, `update` needs in addition the value at
  x for the test, and nothing else; then, and under `vmap`, where the conditional in
  that function copies the data of the loss for each problem, take `jax.value_and_grad`.

  .. note::
    Close to convergence f(x) - f(y) is rounding, in float32 after a few digits. The
    difference in the test is then taken as
    :math:`\tfrac12 \langle \nabla f(x) - \nabla f(y), x - y \rangle`, which is the same
    to second order, for the price of a gradient. On an accelerator, compute f in full
    precision (`jax.default_matmul_precision("highest")`).

  .. note::
    When all goes well `residual` is :math:`\|x_{k+1} - y_k\| / \eta_k`, which tends to
    zero; a subgradient of the objective at x is at most about twice as long. Where no
    step passes the test, x stays, the residual is infinite, and the next update goes on
    with smaller steps. If f or its gradient is not finite at y, the momentum is
    dropped and x is tried; if it is not there either, everything becomes NaN.

  Args:
    penalty: the penalty P, for the theory a convex one.
    lam: weight of the penalty, `>= 0`, a number or a schedule.
    step: the first step to try, `> 0`. One that is far off costs some evaluations.
    accelerated: False for the proximal gradient method (ISTA): t = 1 throughout.
    restart: False for the momentum as it was published.
    monotone: refuse an iterate with a larger objective, and restart from the last one:
      for penalties or losses that are not convex.
    increase_factor: by how much a step may be larger than the one before, `>= 1`. With
      1 it never grows, as the proof of the rate of convergence has it.
    decrease_factor: of a step that fails the test, in (0, 1).
    max_backtracking_steps: in one update, an integer `>= 0`.
    mask: a pytree of bools, a prefix of one, or a function from params to one:
      which leaves are penalised. The others are part of the smooth problem.

  Returns:
    An `optax.GradientTransformationExtraArgs` with state :class:`FistaState`.

  Raises:
    TypeError: if `penalty` is not a penalty, a selected leaf not floating point;
      if `update` lacks one of the three arguments, or has one that `value_fn` does not
      take.
    ValueError: for arguments out of range, or if `update` is called without params.

  Examples:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> import optax
    >>> import rvsm_jax
    >>> def loss(w, target):
    ...   return jnp.sum((w - target) ** 2) / 2
    >>> tx = rvsm_jax.fista(rvsm_jax.l1(), lam=1.0)
    >>> target = jnp.array([3.0, 0.5])
    >>> params = jnp.zeros(2)
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...   value, grad = jax.value_and_grad(loss)(params, target)
    ...   updates, state = tx.update(
    ...     grad, state, params, value=value, grad=grad, value_fn=loss, target=target
    ...   )
    ...   params = optax.apply_updates(params, updates)
    >>> print(rvsm_jax.sparse_params(state, params), state.residual)
    [2. 0.] 0.0

  References:
    Beck & Teboulle, `A Fast Iterative Shrinkage-Thresholding Algorithm for Linear
    Inverse Problems <https://doi.org/10.1137/080716542>`_, 2009.
    O'Donoghue & Candes, `Adaptive Restart for Accelerated Gradient Schemes
    <https://arxiv.org/abs/1204.3982>`_, 2015.
    Hager & Zhang, `A New Conjugate Gradient Method with Guaranteed Descent and an
    Efficient Line Search <https://doi.org/10.1137/030601880>`_, 2005, for the test
    close to convergence.
  """
  _penalty.check_penalty(penalty)
  lam = _transform.as_schedule("lam", lam)
  _validate.check_positive("step", step)
  _validate.check(
    "increase_factor",
    increase_factor,
    "a finite number >= 1",
    lambda v: (v >= 1) & (v < float("inf")),
  )
  _validate.check(
    "decrease_factor",
    decrease_factor,
    "a number in (0, 1)",
    lambda v: (v > 0) & (v < 1),
  )
  _validate.check(
    "max_backtracking_steps",
    max_backtracking_steps,
    "an integer >= 0",
    lambda v: (v >= 0) & (v % 1 == 0),
  )

  def init_fn(params: optax.Params) -> FistaState:
    _masks.selected(mask, params)
    leaf_dtype, dtype = _dtypes(params)

    def scalar(x: ArrayLike) -> jax.Array:
      return jnp.array(x, dtype)

    return FistaState(
      count=jnp.zeros([], jnp.int32),
      # A copy, because params and state may both be donated.
      u=jax.tree.map(lambda w: jnp.array(w, copy=True), params),
      momentum=scalar(1),
      step=scalar(step),
      trial=scalar(step),
      value=jnp.array(jnp.inf, leaf_dtype),
      grad=optax.tree.zeros_like(params),
      objective=scalar(jnp.inf) if monotone else None,
      residual=scalar(jnp.inf),
      evaluations=jnp.zeros([], jnp.int32),
    )

  def update_fn(
    updates: optax.Updates,
    state: FistaState,
    params: optax.Params | None = None,
    *,
    value: ArrayLike,
    grad: optax.Updates,
    value_fn: Callable[..., ArrayLike],
    **extra_args: Any,
  ) -> tuple[optax.Updates, FistaState]:
    del updates
    _masks.require_params("fista", params)
    dtype = state.step.dtype
    eps = float(jnp.finfo(dtype).eps)
    loss = functools.partial(value_fn, **_arguments_of(value_fn, extra_args))
    value = jnp.asarray(value).astype(dtype)
    weight = jnp.asarray(lam(state.count)).astype(dtype)
    shrink = jnp.asarray(decrease_factor).astype(dtype)

    def smooth(point: optax.Params) -> jax.Array:
      return jnp.asarray(loss(_filled(point, params))).astype(dtype)

    def stepped(step: jax.Array) -> optax.Params:
      down = jax.tree.map(
        lambda w, g: None if g is None else _wide(w) - step * _wide(g), params, grad
      )
      shrunk = _transform.prox(penalty, _picked(mask, params, down), step * weight)
      return jax.tree.map(
        lambda w, x, z: None if x is None else _either(z, x).astype(w.dtype),
        params,
        down,
        shrunk,
      )

    def attempt(last: _Trial) -> _Trial:
      step = jnp.where(last.evaluations > 0, shrink * last.step, last.step)
      point = stepped(step)
      move = _difference(point, params)
      bound = _inner(move, move) / (2 * step)

      def curved(new_grad: optax.Updates) -> jax.Array:
        return _inner(_difference(new_grad, grad), move) / 2

      if accelerated:
        new_value, new_grad = smooth(point), None
      else:
        new_value, new_grad = jax.value_and_grad(smooth)(point)
      gap = new_value - value - _inner(grad, move)
      near = bound <= _ROUNDING * eps * jnp.maximum(jnp.abs(value), jnp.abs(new_value))
      if accelerated:
        gap = _where_needed(near, lambda: curved(jax.grad(smooth)(point)), gap)
      else:
        gap = jnp.where(near, curved(new_grad), gap)
      # A move of the size of rounding errors says nothing about the step.
      still = _inner(move, move) <= (8 * eps) ** 2 * _inner(point, point)
      return _Trial(
        step=step,
        point=point,
        value=new_value,
        grad=new_grad,
        length=jnp.sqrt(_inner(move, move)),
        ratio=jnp.where(still, 1, gap / bound),
        accepted=jnp.isfinite(new_value) & ((gap <= bound) | still),
        evaluations=last.evaluations + 1,
      )

    usable = _all_finite(value, grad)
    nothing = jnp.zeros([], dtype)
    trial = jax.lax.while_loop(
      lambda t: ~t.accepted & (t.evaluations <= max_backtracking_steps),
      attempt,
      _Trial(
        step=state.trial,
        point=_where_given(grad, state.u),
        value=nothing,
        grad=None if accelerated else _where_given(grad, state.grad),
        length=nothing,
        ratio=jnp.ones([], dtype),
        accepted=~usable,
        evaluations=jnp.zeros([], jnp.int32),
      ),
    )

    t = state.momentum
    moved = trial.accepted & usable
    objective = state.objective
    if objective is not None:
      penalised = _picked(mask, params, trial.point)
      cost = weight * _transform.value(penalty, penalised)
      found = trial.value + cost.astype(dtype)
      rises = found > objective + 8 * eps * jnp.abs(objective)
      moved &= ~(rises & (t > 1))
      objective = jnp.where(moved, found, objective)
    # Not finite, and there is no momentum to blame.
    broken = ~usable & (t == 1)

    def iterate(x: jax.Array, new: jax.Array | None) -> jax.Array:
      return x if new is None else jnp.where(broken, jnp.nan, jnp.where(moved, new, x))

    u = jax.tree.map(iterate, state.u, trial.point)
    progress = _difference(_where_given(grad, u), state.u)
    next_t = (1 + jnp.sqrt(1 + 4 * t * t)) / 2
    go = moved
    if restart:
      go &= _inner(_difference(trial.point, params), progress) >= 0
    if not accelerated:
      go = jnp.zeros_like(moved)
    inertia = jnp.where(go, (t - 1) / next_t, 0)

    def update(w: jax.Array, x: jax.Array, p: jax.Array | None) -> jax.Array | None:
      if p is None:
        return None
      y = _wide(x) + inertia * p
      return _transform.towards(w, y)

    growth = jnp.clip(
      jnp.where(trial.ratio > 0, _SAFETY / trial.ratio, jnp.inf),
      1,
      jnp.minimum(
        jnp.asarray(increase_factor).astype(dtype),
        jnp.maximum((trial.step / state.step) ** 2, _GROWTH),
      ),
    )
    # Far from any use, and far from overflow.
    highest = float(jnp.finfo(dtype).max) ** 0.5
    next_trial = jnp.where(
      trial.accepted, jnp.minimum(growth * trial.step, highest), shrink * trial.step
    )
    known = jnp.inf if accelerated else jnp.where(moved, trial.value, jnp.inf)
    residual = jnp.where(moved, trial.length / trial.step, jnp.inf)
    return jax.tree.map(update, params, u, progress), FistaState(
      count=optax.safe_increment(state.count),
      u=u,
      momentum=jnp.where(go, next_t, 1),
      step=trial.step,
      trial=jnp.where(usable, next_trial, state.trial),
      value=jnp.asarray(known).astype(state.value.dtype),
      grad=state.grad if accelerated else _filled(trial.grad, state.grad),
      objective=objective,
      residual=jnp.where(broken, jnp.nan, residual),
      evaluations=trial.evaluations,
    )

  return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _arguments_of(
  value_fn: Callable[..., Any], extra_args: dict[str, Any]
) -> dict[str, Any]:
  """The extra arguments, all of which `value_fn` has to take."""
  parameters = inspect.signature(value_fn).parameters
  unknown = sorted(extra_args.keys() - parameters.keys())
  open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
  if unknown and not open_ended:
    raise TypeError(
      f"fista: update got the extra arguments {unknown}, which value_fn does not take:"
      f" its arguments are {list(parameters)}."
    )
  return extra_args


def _dtypes(params: optax.Params) -> tuple[Any, Any]:
  """The dtype of the leaves, and that of scalars, float32 or better."""
  found = [jnp.result_type(leaf) for leaf in jax.tree.leaves(params)]
  floating = [dtype for dtype in found if jnp.issubdtype(dtype, jnp.floating)]
  leaf_dtype = functools.reduce(jnp.promote_types, floating or [jnp.float32])
  return leaf_dtype, _validate.compute_dtype(leaf_dtype)


def _wide(x: jax.Array) -> jax.Array:
  return x.astype(_validate.compute_dtype(x.dtype))


def _where_needed(
  needed: jax.Array, function: Callable[[], jax.Array], otherwise: jax.Array
) -> jax.Array:
  """A conditional, as a loop of at most one turn.

  Under `vmap`, `lax.cond` would copy what the function closes over, all data of the
  loss, for each problem, and always call it.
  """
  return jax.lax.while_loop(
    lambda carry: carry[0],
    lambda carry: (jnp.zeros_like(carry[0]), function()),
    (needed, otherwise),
  )[1]


def _is_none(x: Any) -> bool:
  return x is None


def _picked(mask: _masks.Mask, params: optax.Params, tree: Any) -> Any:
  """The leaves of `tree` that are there and that the mask selects."""
  return _masks.map_selected(
    lambda _, x: optax.MaskedNode() if x is None else x, _masks.drop, mask, params, tree
  )


def _either(a: Any, b: jax.Array) -> jax.Array:
  return b if isinstance(a, optax.MaskedNode) else a


def _where_given(a: Any, b: Any) -> Any:
  """b, and None where a is None."""
  return jax.tree.map(lambda x, y: None if x is None else y, a, b, is_leaf=_is_none)


def _filled(a: Any, b: Any) -> Any:
  """a, and b where a is None."""
  return jax.tree.map(lambda x, y: y if x is None else x, a, b, is_leaf=_is_none)


def _difference(a: Any, b: Any) -> Any:
  """a - b in float32 or better, and None where a is None."""
  return jax.tree.map(
    lambda x, y: None if x is None else _wide(x) - _wide(y), a, b, is_leaf=_is_none
  )


def _inner(a: Any, b: Any) -> jax.Array:
  """The inner product: a sum, because a `dot` has few digits on accelerators."""
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  products = [jnp.sum(_wide(x) * _wide(y)) for x, y in pairs]
  return functools.reduce(jnp.add, products)


def _all_finite(value: jax.Array, grad: optax.Updates) -> jax.Array:
  finite = [jnp.all(jnp.isfinite(g)) for g in jax.tree.leaves(grad)]
  return functools.reduce(jnp.logical_and, finite, jnp.isfinite(value))
