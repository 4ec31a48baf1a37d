"""What FISTA's momentum, restarts and line search are worth, and what they cost.

`python -m experiments fista` measures it on Lasso, sparse logistic regression and group
lasso, in double precision. Comparisons with JAXopt's and nemos's solvers, and all of
group lasso, need `pip install jaxopt nemos optimistix celer`; what is missing is left
out.
"""

from collections.abc import Callable
import dataclasses
import functools
import importlib.util
import pathlib
from typing import Annotated, Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets, linear_model
import tyro

from experiments.core import backend, cli, results, tables, timing
import rvsm_jax

METHODS: dict[str, dict[str, Any]] = {
  "restarts": {},
  "no restarts": {"restart": False},
  "plain": {"accelerated": False},
}


@dataclasses.dataclass(frozen=True)
class Config:
  """What is measured.

  Attributes:
    problems: by name, see `problem`.
    shares: lam over the smallest one for which all is zero.
    gap: of the objective over the best one, relative, to be reached.
    limit: on the number of updates.
    lams: number of values in a path, from 1 down to the last of `shares`.
    repeats: of each time.
  """

  problems: tuple[str, ...] = (
    *("random lasso", "diabetes lasso", "cancer logistic"),
    *("random groups", "diabetes groups", "digits groups"),
  )
  shares: tuple[float, ...] = (0.5, 0.1, 0.02)
  gap: float = 1e-8
  limit: int = 2_000
  lams: int = 50
  repeats: int = 5


_QUICK = Config(problems=("diabetes lasso",), limit=2_000, lams=5, repeats=3)


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
  """A loss of all data with a penalty, and another library's solver of it.

  Attributes:
    loss: the smooth part.
    penalty: what lam weighs.
    shape: of the coefficients.
    highest: the smallest lam for which all coefficients are zero.
    peer: the other library.
    fit: coefficients that it finds, from lam and its tolerance.
  """

  loss: Callable[[jax.Array], jax.Array]
  penalty: rvsm_jax.Penalty
  shape: tuple[int, ...]
  highest: float
  peer: str
  fit: Callable[[float, float], np.ndarray]

  def objective(self, w: jax.Array, lam: Any) -> jax.Array:
    """The loss and lam times the penalty."""
    return self.loss(w) + lam * self.penalty.value(w)


def known(config: Config) -> list[str]:
  """The problems for which there is another library."""
  there = importlib.util.find_spec("celer") is not None
  return [name for name in config.problems if there or not name.endswith("groups")]


@functools.cache
def problem(name: str) -> Problem:
  """The problem of this name; columns have mean 0 and variance 1."""
  data, kind = name.split()
  x, y = _data(data)
  if kind == "groups":
    return _groups(data, x, y)
  x = (x - x.mean(0)) / x.std(0)

  if kind == "lasso":
    loss = _squares(x, y - y.mean())

    def fit(lam: float, tol: float) -> np.ndarray:
      model = linear_model.Lasso(lam, fit_intercept=False, tol=tol, max_iter=10**6)
      return model.fit(x, y - y.mean()).coef_

  else:
    y = 2.0 * y - 1

    def loss(w: jax.Array) -> jax.Array:
      return jnp.mean(jnp.logaddexp(0, -y * (x @ w)))

    def fit(lam: float, tol: float) -> np.ndarray:
      model = linear_model.LogisticRegression(
        C=1 / (lam * len(y)),
        solver="liblinear",
        l1_ratio=1,
        fit_intercept=False,
        tol=tol,
        max_iter=10**5,
      )
      return model.fit(x, y).coef_[0]

  shape = x.shape[1:]
  slope = jax.grad(loss)(jnp.zeros(shape))
  highest = float(jnp.max(jnp.abs(slope)))
  return Problem(loss, rvsm_jax.l1(), shape, highest, "scikit-learn", fit)


def _data(name: str) -> tuple[np.ndarray, np.ndarray]:
  if name == "diabetes":
    return datasets.load_diabetes(return_X_y=True)
  if name == "cancer":
    return datasets.load_breast_cancer(return_X_y=True)
  if name == "digits":
    x, labels = datasets.load_digits(return_X_y=True)
    return x, (labels == 0).astype(float)
  return datasets.make_regression(200, 500, n_informative=20, noise=5, random_state=0)


def _squares(x: np.ndarray, y: np.ndarray) -> Callable[[jax.Array], jax.Array]:
  return lambda w: jnp.mean((y - x @ w.ravel()) ** 2) / 2


def _groups(data: str, x: np.ndarray, y: np.ndarray) -> Problem:
  """Least squares with groups: of five columns, of powers, or of rows of pixels."""
  size = {"random": 5, "diabetes": 3, "digits": 8}[data]
  if data == "diabetes":
    x = np.stack([x, x**2, x**3], axis=2).reshape(len(x), -1)
  deviation = x.std(0)
  x = (x - x.mean(0)) / np.where(deviation > 0, deviation, 1)
  y = y - y.mean()
  loss, penalty = _squares(x, y), rvsm_jax.group_lasso((1,))
  shape = (x.shape[1] // size, size)

  def fit(lam: float, tol: float) -> np.ndarray:
    import celer

    model = celer.GroupLasso(size, lam, tol=tol, fit_intercept=False, max_iter=1000)
    with warnings.catch_warnings():
      # It warns below the tolerance that rounding allows.
      warnings.simplefilter("ignore")
      return model.fit(np.asfortranarray(x), y).coef_.reshape(shape)

  slope = jax.grad(loss)(jnp.zeros(shape))
  highest = float(jnp.max(jnp.linalg.norm(slope, axis=1)))
  return Problem(loss, penalty, shape, highest, "celer", fit)


def _ours(one: Problem, lam: Any, **options: Any) -> tuple[Any, Callable[[Any], Any]]:
  """The first carry and the step of FISTA; a carry is the params and the state."""
  tx = rvsm_jax.fista(one.penalty, lam=lam, **options)
  # With acceleration the state never knows them, so `value_and_grad_from_state`, whose
  # conditional copies the data for each problem under `vmap`, has nothing to save.
  value_and_grad = jax.value_and_grad(one.loss)
  start = jnp.zeros(one.shape)

  def step(carry: Any) -> Any:
    params, state = carry
    value, grad = value_and_grad(params)
    updates, state = tx.update(
      grad, state, params, value=value, grad=grad, value_fn=one.loss
    )
    return optax.apply_updates(params, updates), state

  return (start, tx.init(start)), step


def _jaxopt(one: Problem, lam: float) -> tuple[Any, Callable[[Any], Any]] | None:
  """The same of JAXopt's accelerated solver with its defaults; None without it."""
  try:
    import jaxopt
  except ImportError:
    return None
  # Its line search ends by itself; the number of steps is given from outside.
  solver = jaxopt.ProximalGradient(
    one.loss,
    lambda w, lam, scaling=1.0: one.penalty.prox(w, lam * scaling),
    tol=0.0,
  )
  start = jnp.zeros(one.shape)

  def step(carry: Any) -> Any:
    w, state = carry
    return tuple(solver.update(w, state, lam))

  return (start, solver.init_state(start, lam)), step


def _nemos(one: Problem, lam: float) -> tuple[Any, Callable[[Any], Any]] | None:
  """The same of nemos's own, a port of JAXopt's; None without it."""
  try:
    from nemos.solvers._fista import FISTA
    import optimistix
  except ImportError:
    return None

  def prox(w: jax.Array, _: Any, scaling: jax.Array) -> jax.Array:
    return one.penalty.prox(w, lam * scaling)

  solver = FISTA(0.0, 0.0, optimistix.max_norm, prox, while_loop_kind="lax")
  start, nothing = jnp.zeros(one.shape), frozenset[object]()

  def loss(w: jax.Array, _: Any) -> Any:
    return one.loss(w), None

  def step(carry: Any) -> Any:
    w, state = carry
    return solver.step(loss, w, None, {}, state, nothing)[:2]

  return (start, solver.init(loss, start, None, {}, None, None, nothing)), step


PEERS = {"jaxopt": _jaxopt, "nemos": _nemos}


def steps_needed(
  one: Problem, lam: float, best: float, start: Any, step: Any, config: Config
) -> int | None:
  """Steps until the gap is reached, by the iterate of a carry; None if never."""

  def body(carry: Any, _: Any) -> Any:
    carry = step(carry)
    return carry, one.objective(_iterate(carry), lam)

  run = jax.jit(lambda start: jax.lax.scan(body, start, length=config.limit)[1])
  there = np.flatnonzero(np.asarray(run(start)) <= best * (1 + config.gap))
  return int(there[0]) + 1 if there.size else None


def _iterate(carry: Any) -> jax.Array:
  params, state = carry
  return getattr(state, "u", params)


def _solution(one: Problem, lam: float, limit: int) -> jax.Array:
  start, step = _ours(one, lam)
  carry = jax.lax.while_loop(
    lambda c: (c[1].residual > 1e-11 * lam) & (c[1].count < 5 * limit), step, start
  )
  return carry[1].u


def problems(config: Config) -> list[dict[str, Any]]:
  """Agreement with others, and steps and times to the gap, by problem and share."""
  rows = []
  for name in known(config):
    one = problem(name)
    for share in config.shares:
      lam = share * one.highest
      found, theirs = _solution(one, lam, config.limit), one.fit(lam, 1e-14)
      best = float(one.objective(found, lam))
      ready = {method: _ours(one, lam, **o) for method, o in METHODS.items()}
      ready |= {
        peer: made
        for peer, make in PEERS.items()
        if (made := make(one, lam)) is not None
      }
      steps = {
        method: steps_needed(one, lam, best, *begun, config)
        for method, begun in ready.items()
      }
      row = {"problem": name, "share": share, "peer": one.peer, "steps": steps}
      row["gap"] = best / float(one.objective(jnp.asarray(theirs), lam)) - 1
      row["equal_supports"] = bool(np.array_equal(found != 0, theirs != 0))
      row["nonzeros"] = int(np.count_nonzero(found))
      row |= _times(one, lam, best, ready, steps, config)
      rows.append(row)
      results.console.print(row)
  return rows


def _times(
  one: Problem, lam: float, best: float, ready: Any, steps: Any, config: Config
) -> dict[str, Any]:
  """Processor time to the gap of FISTA, and of the others over it."""

  def prepared(method: str) -> Callable[[], Any]:
    start, step = ready[method]
    number = steps[method]
    run = jax.jit(
      lambda s: _iterate(jax.lax.fori_loop(0, number, lambda _, c: step(c), s))
    )
    return lambda: jax.block_until_ready(run(start))

  tolerances = (10.0**-k for k in range(2, 16))
  enough = one_that_reaches(
    lambda tol: one.objective(jnp.asarray(one.fit(lam, tol)), lam),
    best * (1 + config.gap),
    tolerances,
  )
  others: dict[str, Callable[[], Any]] = {}
  for peer in PEERS:
    if steps.get(peer) is not None:
      others[peer] = prepared(peer)
  if enough is not None:
    others[one.peer] = lambda: one.fit(lam, enough)
  found: dict[str, Any] = {"seconds": {}, "ratios": {}, "quartiles": {}}
  ours = prepared("restarts")
  for name, other in others.items():
    compared = timing.compare(ours, other, config.repeats, "processor")
    found["seconds"] |= {"fista": compared.base_seconds, name: compared.seconds}
    found["ratios"][name] = compared.ratio
    found["quartiles"][name] = compared.quartiles
  return found


def one_that_reaches(
  function: Callable[[float], Any], bound: float, candidates: Any
) -> float | None:
  """The first candidate whose value is at most the bound; None if there is none."""
  return next((c for c in candidates if function(c) <= bound), None)


def paths(config: Config) -> list[dict[str, Any]]:
  """Times of whole paths, with residuals of 1e-6 times lam, over one by vmap."""
  rows = []
  for name in known(config):
    rows.append({"problem": name, **_path(problem(name), config)})
    results.console.print(rows[-1])
  return rows


def _path(one: Problem, config: Config) -> dict[str, Any]:
  lams = one.highest * jnp.geomspace(1, config.shares[-1], config.lams)
  cold = jnp.zeros(one.shape)

  def solve(lam: Any, w: Any) -> Any:
    (_, state), step = _ours(one, lam)
    return jax.lax.while_loop(
      lambda c: (c[1].residual > 1e-6 * lam) & (c[1].count < config.limit),
      step,
      (w, state._replace(u=w)),
    )[1].u

  def warm(w: Any, lam: Any) -> Any:
    w = solve(lam, w)
    return w, w

  together = jax.jit(jax.vmap(lambda lam: solve(lam, cold)))
  single = jax.jit(lambda lam: solve(lam, cold))
  chained = jax.jit(lambda lams: jax.lax.scan(warm, cold, lams)[1])
  forms: dict[str, Callable[[], Any]] = {
    "one after another": lambda: [single(lam).block_until_ready() for lam in lams],
    "with warm starts": lambda: chained(lams).block_until_ready(),
    "coordinate descent": lambda: [one.fit(float(lam), 1e-8) for lam in lams],
  }
  row: dict[str, Any] = {"ratios": {}, "quartiles": {}}
  for form, run in forms.items():
    compared = timing.compare(
      lambda: together(lams).block_until_ready(), run, config.repeats, "processor"
    )
    row["ratios"][form] = compared.ratio
    row["quartiles"][form] = compared.quartiles
    row["seconds"] = compared.base_seconds
  return row


def _number(x: float | None, digits: int = 2, scale: float = 1) -> str:
  return "–" if x is None else f"{scale * x:.{digits}f}"


def page(result: dict[str, Any]) -> str:
  """The report as Markdown."""
  rows, config = result["problems"], result["config"]
  peers = [peer for peer in PEERS if any(peer in row["steps"] for row in rows)]
  missing = ", ".join(peer for peer in PEERS if peer not in peers)
  absent = f"Not installed, and not compared: {missing}.\n" if missing else ""
  named = [(f"{row['problem']}, {row['share']:g}", row) for row in rows]
  agreement = [
    {
      **{"problem": where, "against": row["peer"], "gap": f"{row['gap']:.1e}"},
      "same zeros": "yes" if row["equal_supports"] else "no",
      "not zero": f"{row['nonzeros']}",
    }
    for where, row in named
  ]
  steps = [
    {"problem": where}
    | {name: str(row["steps"].get(name) or "–") for name in (*METHODS, *peers)}
    for where, row in named
  ]
  times = [
    {"problem": where, "fista, ms": _number(row["seconds"].get("fista"), scale=1e3)}
    | {peer: _number(row["ratios"].get(peer)) for peer in peers}
    | {"coordinate descent": _number(row["ratios"].get(row["peer"]))}
    for where, row in named
  ]
  forms = list(dict.fromkeys(f for row in result["paths"] for f in row["ratios"]))
  paths = [
    {"problem": row["problem"], "vmap, ms": _number(row["seconds"], 0, 1e3)}
    | {form: _number(row["ratios"].get(form)) for form in forms}
    for row in result["paths"]
  ]
  return f"""# FISTA

Double precision. By each problem stands lam, over the smallest for which all
is zero. *random* has 200 examples and 500 columns, in groups of 5; *diabetes*
442 and 10, in groups with their squares and cubes; *cancer* 569 and 30;
*digits* 1,797 and 64 pixels, in groups of rows, and tells 0 from others.
{absent}
## Agreement

The objective at a residual of 1e-11 lam over that of coordinate descent with a
tolerance of 1e-14, minus 1, and whether the same coefficients are zero.

{tables.of_cells(agreement)}

## Steps

From zero to an objective at most {config["gap"]:g} above the best one, relative.
*jaxopt* is JAXopt's `ProximalGradient`, *nemos* nemos's own port of it, with
their defaults and our proximal map. A dash: not within {config["limit"]:,}
steps.

{tables.of_cells(steps)}

## Time

Milliseconds of `fista`, compiled, and the time of others over it: above 1,
`fista` is faster. Coordinate descent, that of scikit-learn or celer, has the
largest tolerance, of powers of ten, that reaches the gap. Processor time on
one core, medians of {config["repeats"]} turns.

{tables.of_cells(times)}

## Paths

{config["lams"]} values of lam by `vmap`, and the time of others over it.
A residual of 1e-6 lam ends each; coordinate descent has a tolerance of 1e-8
and no warm starts. By `vmap` all take as many steps as the slowest, and try a
step again if one of them has to: on one core that can outweigh what a matrix
product saves over many with vectors.

{tables.of_cells(paths)}

{results.footer([result])}
Written by `python -m experiments fista`.
"""


def rebuild(folder: pathlib.Path) -> list[pathlib.Path]:
  """Writes the table of the result in a folder; returns its path."""
  result = results.read(folder / "fista.json")
  return [results.write_atomically(folder / "fista.md", page(result))]


def main(
  config: Annotated[Config, tyro.conf.OmitArgPrefixes], places: cli.Common
) -> None:
  """Measures FISTA: JSON and Markdown.

  Args:
    config: what is measured.
    places: where it writes.
  """
  if places.quick:
    config = _QUICK
  backend.on_one_core()
  with jax.enable_x64(True):
    result = results.result(
      "fista", config, None, problems=problems(config), paths=paths(config)
    )
  folder = places.report("fista", places.run("fista"))
  results.publish(folder / "fista.json", result, rebuild)


if __name__ == "__main__":
  cli.run("fista", main)
