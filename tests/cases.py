"""The two tables from which all suites draw: penalties, and transformations.

A new penalty is a row of `CASES`, with its definition in numpy. A new transformation is
a row of `TRANSFORMATIONS`. Each then gets every invariant that the suites test. What a
row cannot have is said in the row, with the reason, not in the suites.
"""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
from typing import Any, Literal

from helpers import in_part
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

import rvsm_jax

SHAPE = (6, 4)


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
  """A constructor, hyperparameters to trace, and what the result must be.

  Attributes:
    name: Unique among the cases.
    make: From hyperparameters to a penalty.
    value: P(x) in numpy, from x and the hyperparameters.
    hyper: The hyperparameters, all of which may be tracers.
    groups: The groups, where there are any.
    separable: Whether the proximal map acts on each component alone.
    diagonal: Whether the step may have one value per component.
    convex: Whether P is convex.
    odd: Whether P(x) = P(-x).
    shrinks: Whether abs(prox(x)) <= abs(x) for each component.
    unbiased: Whether a huge x stays what it is, up to rounding.
    any_shape: Whether it takes arrays of other shapes than SHAPE.
    refused: Per argument of the constructor, values which it must refuse.
  """

  name: str
  make: Callable[..., rvsm_jax.Penalty]
  value: Callable[..., float]
  hyper: Mapping[str, float] = dataclasses.field(default_factory=dict)
  groups: reference.Groups | None = None
  separable: bool = False
  diagonal: bool = False
  convex: bool = False
  odd: bool = True
  shrinks: bool = True
  unbiased: bool = True
  any_shape: bool = True
  refused: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    return self.name

  @property
  def penalty(self) -> rvsm_jax.Penalty:
    """The penalty with the default hyperparameters."""
    return self.make(**self.hyper)


@functools.cache
def prox(case: Case) -> Callable[..., jax.Array]:
  """The compiled map of (x, step, hyperparameters), all of them traced."""
  return jax.jit(lambda x, step, hyper: case.make(**hyper).prox(x, step))


@functools.cache
def value(case: Case) -> Callable[..., jax.Array]:
  """The compiled map of (x, hyperparameters), all of them traced."""
  return jax.jit(lambda x, hyper: case.make(**hyper).value(x))


def _separable(case: reference.Separable, **hyper: float) -> Case:
  return Case(
    name=str(case),
    make=functools.partial(getattr(rvsm_jax, case.name), **case.static),
    value=lambda x, **h: float(np.sum(case.density(x, **case.static, **h))),
    hyper=hyper,
    separable=True,
    diagonal=True,
    convex=case.convex,
    odd=case.odd,
    unbiased=case.unbiased,
  )


def _grouped(
  case: reference.Grouped, groups: reference.Groups, unbiased: bool, **hyper: float
) -> Case:
  return Case(
    name=f"{case}-{groups}",
    make=functools.partial(getattr(rvsm_jax, case.name), groups=groups),
    value=lambda x, **h: reference.group_sum(
      x, groups, functools.partial(case.density, **h)
    ),
    hyper=hyper,
    groups=groups,
    diagonal=case in (_GROUP_L0, _GROUP_LASSO, _SPARSE_GROUP),
    convex=case is not _GROUP_L0,
    unbiased=unbiased,
  )


_DEFAULTS: dict[str, dict[str, float]] = {
  "transformed_l1": {"a": 0.7},
  "scad": {"lam": 0.6, "gamma": 3.7},
  "mcp": {"lam": 0.6, "gamma": 2.0},
  "log_penalty": {"gamma": 5.0},
  "capped_l1": {"a": 0.8},
  "elastic_net": {"alpha": 0.5},
}
_L1, _TL1 = reference.SEPARABLE[1:3]
_GROUP_L0, _GROUP_LASSO, _SPARSE_GROUP, _EXCLUSIVE, _COMBINED = reference.GROUPED
_WEIGHTS = np.array([0.5, 2.0, 0.0, 1.0])
_METRIC = np.random.default_rng(0).permutation(np.geomspace(1e-4, 1e4, 24))


def _sparse_group_lasso_in_a_metric(mu: Any) -> rvsm_jax.Penalty:
  penalty = rvsm_jax.sparse_group_lasso(mu)
  metric = _METRIC.reshape(SHAPE)

  def prox(x: Any, step: Any) -> jax.Array:
    wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    return penalty.prox(x, jnp.asarray(step).astype(wide) * metric.astype(wide))

  # With the checks of a scalar step.
  return rvsm_jax.scaled(rvsm_jax.Penalty(penalty.value, prox), 1.0)


def _cardinality_value(x: np.ndarray, sparsity: float) -> float:
  return 0.0 if np.mean(x == 0) >= sparsity else np.inf


CASES = (
  *(_separable(case, **_DEFAULTS.get(case.name, {})) for case in reference.SEPARABLE),
  Case(
    "scaled",
    make=lambda lam, a: rvsm_jax.scaled(rvsm_jax.transformed_l1(a), lam),
    value=lambda x, lam, a: lam * float(np.sum(_TL1.density(x, a=a))),
    hyper={"lam": 0.3, "a": 0.7},
    separable=True,
    diagonal=True,
  ),
  _grouped(_GROUP_L0, "out", True),
  Case(
    "group_l0-weights",
    make=lambda: rvsm_jax.group_l0("out", weights=_WEIGHTS),
    value=lambda x: float(_WEIGHTS @ np.any(x, axis=0)),
    groups="out",
    diagonal=True,
    any_shape=False,
  ),
  *(_grouped(_GROUP_LASSO, groups, True) for groups in ("out", "in", (0, 1))),
  Case(
    "group_lasso-weights",
    make=lambda: rvsm_jax.group_lasso("out", weights=_WEIGHTS),
    value=lambda x: float(_WEIGHTS @ [reference.norm2(column) for column in x.T]),
    groups="out",
    diagonal=True,
    convex=True,
    any_shape=False,
  ),
  _grouped(_SPARSE_GROUP, "out", True, mu=0.4),
  # Convex, but nonexpansive in its own metric alone.
  Case(
    "sparse_group_lasso-metric",
    make=_sparse_group_lasso_in_a_metric,
    value=lambda x, mu: reference.group_sum(
      x, "out", functools.partial(_SPARSE_GROUP.density, mu=mu)
    ),
    hyper={"mu": 0.4},
    groups="out",
    any_shape=False,
  ),
  _grouped(_EXCLUSIVE, "out", False),
  _grouped(_EXCLUSIVE, "in", False),
  Case(
    "exclusive_lasso_one_step",
    make=lambda: rvsm_jax.exclusive_lasso_one_step("out"),
    value=lambda x: reference.group_sum(x, "out", _EXCLUSIVE.density),
    groups="out",
    unbiased=False,
  ),
  _grouped(_COMBINED, "out", False, mu=0.4),
  Case(
    "integrated_tl1",
    make=functools.partial(rvsm_jax.integrated_tl1, groups="out"),
    value=lambda x, a, mu: (
      mu * float(np.sum(_TL1.density(x, a=a)))
      + (1 - mu) * reference.group_sum(x, "out", reference.norm2)
    ),
    hyper={"a": 0.7, "mu": 0.4},
    groups="out",
    diagonal=True,
  ),
  Case(
    "nuclear",
    make=rvsm_jax.nuclear,
    value=lambda x: float(np.linalg.svd(x.reshape(-1, x.shape[-1]))[1].sum()),
    convex=True,
    shrinks=False,
  ),
  Case(
    "l1_minus_l2",
    make=rvsm_jax.l1_minus_l2,
    value=lambda x: reference.norm1(x) - reference.norm2(x),
  ),
  Case(
    "cardinality",
    make=rvsm_jax.cardinality,
    value=_cardinality_value,
    hyper={"sparsity": 0.6},
  ),
)
INDICATORS = ("nonnegative", "cardinality")
CONSTRUCTORS = {case.name: case for case in CASES}


def sample(shape: tuple[int, ...] = SHAPE, seed: int = 0) -> np.ndarray:
  """Numbers of both signs and three decades, with a zero and a zero column."""
  rng = np.random.default_rng(seed)
  x = rng.choice([-1.0, 1.0], shape) * 10 ** rng.uniform(-2, 1, shape)
  if len(shape) > 1:
    x[..., 1] = 0.0
  x.flat[0] = 0.0
  return x


def to_numpy(x: Any) -> np.ndarray:
  """As double precision, which holds every other format exactly."""
  return np.asarray(x).astype(np.float64)


# ------------------------------------------------------------------------------------
# Transformations.
# ------------------------------------------------------------------------------------
LR = 0.1
L1 = rvsm_jax.l1()
RVSM = {"learning_rate": LR, "penalty": L1, "lam": 0.05, "beta": 1.0}
# The invariants that a row can be without: see `Transformation.without`.
INVARIANTS = (
  "acts",  # does something to weights of size 1
  "count",  # counts its updates
  "empty",  # takes a tree without leaves
  "integers",  # its numbers may be traced integers
  "inject",  # equal under optax.inject_hyperparams
  "mask",  # has a mask; leaves that it leaves out get what the optimizer in front says
  "mixed",  # keeps the params' dtype under gradients of another
  "masked",  # works inside optax.masked and optax.partition
  "MultiSteps",  # is one big batch
  "None",  # a gradient of None is an update of None
  "sharding",  # keeps types on a mesh, and the numbers of one device
  "strict",  # no implicit promotion of dtype or rank
  "vmap",
  "zero learning rate",  # then moves nothing
)


@dataclasses.dataclass(frozen=True, eq=False)
class Transformation:
  """A transformation of the library, with arguments that are good.

  Attributes:
    name: Unique among the rows.
    factory: The public function, called with `arguments`.
    arguments: By name. On weights of size 1 they make some exactly zero within 25
      steps, not all, unless `dense`.
    place: `"last"` or `"first"` in a chain with `base`, `"whole"` if it is an
      optimizer, `"around"` if it takes `base` as its argument `optimizer`.
    base: From a learning rate to the optimizer that it stands beside, or that the
      leaves get which the mask leaves out.
    numbers: Arguments that are numbers >= 0, checked when they are given.
    positive: Those of `numbers` that must not be 0.
    shares: Arguments that are numbers in [0, 1], checked likewise.
    scheduled: Arguments that may be schedules.
    static: What `optax.inject_hyperparams` must leave alone besides the mask.
    carries: The field of the state that has the sparse network; None if the params do.
    dense: Whether no weight becomes zero.
    needs_value: Whether `update` needs `value`, `grad` and `value_fn`, as in a search.
    suite: Keyword arguments of `make` with which it minimises what Optax's own tests of
      optimizers minimise; None, with a comment, if it cannot.
    without: Names in `INVARIANTS` that it cannot have, each with the reason.
  """

  name: str
  factory: Callable[..., optax.GradientTransformation]
  arguments: Mapping[str, Any]
  place: Literal["last", "first", "whole", "around"] = "last"
  base: Callable[[Any], optax.GradientTransformation] = optax.sgd
  numbers: tuple[str, ...] = ("learning_rate", "lam")
  positive: tuple[str, ...] = ()
  shares: tuple[str, ...] = ()
  scheduled: tuple[str, ...] = ("learning_rate", "lam")
  static: tuple[str, ...] = ()
  carries: Literal["u", "latent"] | None = None
  dense: bool = False
  needs_value: bool = False
  suite: Mapping[str, Any] | None = None
  without: Mapping[str, str] = dataclasses.field(default_factory=dict)

  def __str__(self) -> str:
    return self.name

  def __post_init__(self) -> None:
    assert self.without.keys() <= set(INVARIANTS), self.name
    assert {*self.numbers, *self.shares} <= self.arguments.keys(), self.name

  def given(self, learning_rate: Any = LR, **overrides: Any) -> dict[str, Any]:
    """The arguments of `factory`, without the mask if it has none."""
    arguments = dict(self.arguments)
    if "learning_rate" in arguments:
      arguments["learning_rate"] = learning_rate
    if self.place == "around":
      arguments["optimizer"] = self.base(learning_rate)
    return arguments | overrides

  def bare(self, **overrides: Any) -> optax.GradientTransformation:
    """What `factory` returns."""
    return self.factory(**self.given(**overrides))

  def beside(
    self, tx: optax.GradientTransformation, learning_rate: Any = LR
  ) -> optax.GradientTransformationExtraArgs:
    """The whole optimizer of which `tx`, made by `factory`, is this part."""
    if self.place == "last":
      return optax.chain(self.base(learning_rate), tx)
    if self.place == "first":
      return optax.chain(tx, self.base(learning_rate))
    return optax.with_extra_args_support(tx)

  def make(
    self, learning_rate: Any = LR, **overrides: Any
  ) -> optax.GradientTransformationExtraArgs:
    """The whole optimizer; `penalty` and `mask` are left out if it takes none."""
    known = {"penalty": "penalty" in self.arguments, "mask": self.has("mask")}
    overrides = {k: v for k, v in overrides.items() if known.get(k, True)}
    return self.beside(
      self.bare(learning_rate=learning_rate, **overrides), learning_rate
    )

  def has(self, invariant: str) -> bool:
    """Whether it has one of `INVARIANTS`."""
    assert invariant in INVARIANTS
    return invariant not in self.without

  def extra(self, params: Any, grads: Any) -> dict[str, Any]:
    """What `update` needs besides, for the linear function with these gradients."""
    if not self.needs_value:
      return {}

    def linear(params: Any) -> jax.Array:
      return optax.tree.vdot(grads, params)

    return {"value": linear(params), "grad": grads, "value_fn": linear}


def _momentum(learning_rate: Any) -> optax.GradientTransformation:
  return optax.sgd(learning_rate, momentum=0.9)


# Decays and eps that are exact in half precisions, to which Optax rounds what it
# injects: the usual 0.999 is 1 in bfloat16, and the usual eps 0 in float16.
_DECAYS = {"b1": 7 / 8, "b2": 63 / 64, "eps": 2.0**-10}
_adam = functools.partial(optax.adam, **_DECAYS)


def _target_sparsity(
  learning_rate: Any, penalty: Any, *, sparsity: Any, lam: Any, mask: Any = None
) -> optax.GradientTransformation:
  return rvsm_jax.target_sparsity(
    lambda lam: rvsm_jax.rvsm_sgd(learning_rate, penalty, lam=lam, beta=1.0, mask=mask),
    sparsity,
    lam=lam,
    mask=mask,
  )


_SPLIT = {
  "numbers": ("learning_rate", "lam", "beta"),
  "positive": ("beta",),
  "scheduled": ("learning_rate", "lam", "beta"),
  "carries": "u",
}
_TINY = {"learning_rate": 1e-3, "lam": 1e-4, "beta": 0.1}
TRANSFORMATIONS = (
  Transformation(
    "rvsm",
    rvsm_jax.rvsm,
    RVSM,
    base=_momentum,
    suite=_TINY | {"penalty": rvsm_jax.l0()},
    **_SPLIT,
  ),
  Transformation(
    "rvsm jacobi",
    rvsm_jax.rvsm,
    RVSM | {"ordering": "jacobi"},
    suite=_TINY | {"penalty": rvsm_jax.transformed_l1(0.5)},
    **_SPLIT,
  ),
  Transformation(
    "rvsm without u",
    rvsm_jax.rvsm,
    RVSM | {"carry_u": False},
    base=_adam,
    dense=True,
    suite=_TINY | {"learning_rate": 1e-2},
    **_SPLIT | {"carries": None},
  ),
  Transformation(
    "rvsm normalized",
    rvsm_jax.rvsm,
    RVSM | {"normalize": "global"},
    # No suite: its weights have length 1.
    without={"zero learning rate": "It divides by the norm all the same."},
    **_SPLIT,
  ),
  Transformation(
    "proximal",
    rvsm_jax.proximal,
    {"learning_rate": LR, "penalty": L1, "lam": 0.3},
    base=_adam,
    suite={
      "learning_rate": 1e-2,
      "lam": 1e-5,
      "penalty": rvsm_jax.transformed_l1(),
    },
  ),
  Transformation(
    "proximal_adam",
    rvsm_jax.proximal_adam,
    {"learning_rate": LR, "penalty": L1, "lam": 0.3, **_DECAYS},
    place="whole",
    base=_adam,
    suite={
      "learning_rate": 1e-2,
      "lam": 1e-5,
      "penalty": rvsm_jax.transformed_l1(),
    },
    without={"strict": "Optax's Adam promotes an integer."},
  ),
  Transformation(
    "admm",
    rvsm_jax.admm,
    {"learning_rate": LR, "penalty": rvsm_jax.scaled(L1, 0.1), "rho": 1.0},
    numbers=("learning_rate", "rho"),
    positive=("rho",),
    scheduled=("learning_rate",),
    carries="u",
    suite={"learning_rate": 1e-3, "penalty": rvsm_jax.scaled(L1, 1e-4), "rho": 0.1},
  ),
  Transformation(
    "penalty gradient",
    rvsm_jax.add_penalty_gradient,
    {"penalty": L1, "lam": 0.1},
    place="first",
    base=_momentum,
    numbers=("lam",),
    scheduled=("lam",),
    dense=True,
    suite={"learning_rate": 1e-3, "penalty": rvsm_jax.transformed_l1(), "lam": 1e-4},
  ),
  Transformation(
    "target sparsity",
    _target_sparsity,
    {"learning_rate": LR, "penalty": L1, "sparsity": 0.5, "lam": 0.1},
    place="whole",
    numbers=("lam",),
    positive=("lam",),
    shares=("sparsity",),
    scheduled=("learning_rate", "sparsity"),
    carries="u",
    without={"empty": "There is no share of nothing."},
    # No suite: where half of the weights are zero is not where those minima are.
  ),
  Transformation(
    "straight_through",
    rvsm_jax.straight_through,
    {"penalty": rvsm_jax.l0(), "step": 0.1},
    place="around",
    numbers=("step",),
    scheduled=("step",),
    carries="latent",
    suite={"learning_rate": 1e-3, "penalty": rvsm_jax.l0(), "step": 1e-8},
    without={"zero learning rate": "The first update leads to the sparse network."},
  ),
  Transformation(
    "sparsify",
    rvsm_jax.sparsify,
    {"sparsity": 0.5, "steps": 2, "mask": None},
    place="around",
    numbers=(),
    shares=("sparsity",),
    scheduled=(),
    static=("optimizer",),
    carries="latent",
    without={
      "zero learning rate": "The params become the image of what they were.",
    },
    # No suite: where half of the weights are zero is not where those minima are.
  ),
  Transformation(
    "magnitude pruning",
    rvsm_jax.magnitude_pruning,
    {"sparsity": 0.5, "every": 2, "mask": None},
    base=_momentum,
    numbers=(),
    shares=("sparsity",),
    scheduled=("sparsity",),
    without={
      "zero learning rate": "What is pruned becomes zero all the same.",
    },
    # No suite: where half of the weights are zero is not where those minima are.
  ),
  Transformation(
    "keep zeros",
    rvsm_jax.keep_zeros,
    {},
    numbers=(),
    scheduled=(),
    dense=True,
    # No suite: its minima are searched from zeros, which stay.
    without={
      "acts": "Where nothing is zero it is the identity.",
      "count": "It has no state.",
      "inject": "It has no hyperparameters.",
      "mixed": "What it passes on is of the dtype of the optimizer in front.",
    },
  ),
)
# Chains of the above under one name: for the checks of arguments, which they pass on.
ALIASES = (
  Transformation("rvsm_sgd", rvsm_jax.rvsm_sgd, RVSM, place="whole", **_SPLIT),
  Transformation(
    "proximal_sgd",
    rvsm_jax.proximal_sgd,
    {"learning_rate": LR, "penalty": L1, "lam": 0.3},
    place="whole",
  ),
)


# What a test runs on where it compiles a program for each row of a table. Between them
# they are every kind of code: maps of components, groups, ranks and matrices; w pulled
# towards u, the prox in a metric, duals, latent weights. `make test-slow` has the rest.
TYPICAL = {
  *("l0", "transformed_l1", "group_lasso-out", "exclusive_lasso-out", "nuclear"),
  *("cardinality", "rvsm", "proximal_adam", "admm", "straight_through"),
}


def typical(rows: Iterable[Any]) -> list[Any]:
  """Rows of a table, of which `make test` runs the typical ones."""
  rows = list(rows)
  return in_part(rows, *(row for row in rows if row.name in TYPICAL))


def with_invariant(*invariants: str, costly: bool = False) -> pytest.MarkDecorator:
  """Parametrizes `case` over the transformations that have all of `invariants`.

  If the test is `costly`, those that are not typical are slow.
  """
  rows = [case for case in TRANSFORMATIONS if all(map(case.has, invariants))]
  return pytest.mark.parametrize("case", typical(rows) if costly else rows, ids=str)


every_transformation = with_invariant()
