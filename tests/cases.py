"""Every penalty of the library beside its definition in numpy, once with defaults."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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
    diagonal=case in (_GROUP_LASSO, _SPARSE_GROUP),
    convex=True,
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
_GROUP_LASSO, _SPARSE_GROUP, _EXCLUSIVE, _COMBINED = reference.GROUPED
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
  *(_grouped(_GROUP_LASSO, groups, True) for groups in ("out", "in", (0, 1))),
  Case(
    "group_lasso-weights",
    make=lambda: rvsm_jax.group_lasso("out", weights=_WEIGHTS),
    value=lambda x: float(_WEIGHTS @ [reference.norm2(column) for column in x.T]),
    groups="out",
    diagonal=True,
    convex=True,
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
# Whose weights or steps fit arrays of SHAPE alone.
ONE_SHAPE = ("group_lasso-weights", "group_lasso-(0, 1)", "sparse_group_lasso-metric")
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
