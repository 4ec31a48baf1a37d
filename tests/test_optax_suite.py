"""Optax's own tests of contributed optimizers, run on these transformations.

The wheel of Optax ships them. Their text is read from the installed package, its list
of optimizers is replaced in memory, and its test class is collected below. What that
suite leaves out (it drops the wrappers before it checks dtypes) is tested after it.
"""

import importlib.util
import inspect
import itertools
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import optax
import pytest

import rvsm_jax

LEARNING_RATE = {"learning_rate": 1e-3}
RVSM = {"lam": 1e-4, "beta": 0.1}


def sgd_rvsm(learning_rate: optax.ScalarOrSchedule, lam, beta):
  return optax.chain(
    optax.sgd(learning_rate, momentum=0.9),
    rvsm_jax.rvsm(learning_rate, rvsm_jax.l0(), lam=lam, beta=beta),
  )


def adam_rvsm(learning_rate: optax.ScalarOrSchedule, lam, beta):
  return optax.chain(
    optax.adam(learning_rate),
    rvsm_jax.rvsm(learning_rate, rvsm_jax.l1(), lam=lam, beta=beta, carry_u=False),
  )


def adam_proximal(learning_rate: optax.ScalarOrSchedule, lam):
  return optax.chain(
    optax.adam(learning_rate),
    rvsm_jax.proximal(learning_rate, rvsm_jax.transformed_l1(), lam=lam),
  )


def penalised_sgd(learning_rate: optax.ScalarOrSchedule, lam):
  return optax.chain(
    rvsm_jax.add_penalty_gradient(rvsm_jax.transformed_l1(), lam),
    optax.sgd(learning_rate, momentum=0.9),
  )


FACTORIES = {
  "rvsm_sgd": rvsm_jax.rvsm_sgd,
  "proximal_sgd": rvsm_jax.proximal_sgd,
  "proximal_adam": rvsm_jax.proximal_adam,
  "sgd_rvsm": sgd_rvsm,
  "adam_rvsm": adam_rvsm,
  "adam_proximal": adam_proximal,
  "penalised_sgd": penalised_sgd,
}
CASES = [
  ("rvsm_sgd", RVSM | {"penalty": rvsm_jax.l0(), "momentum": 0.9}),
  (
    "rvsm_sgd",
    RVSM
    | {
      "penalty": rvsm_jax.transformed_l1(0.5),
      "momentum": 0.9,
      "nesterov": True,
      "ordering": "jacobi",
    },
  ),
  ("sgd_rvsm", RVSM),
  ("adam_rvsm", RVSM | {"learning_rate": 1e-2}),
  ("proximal_sgd", {"penalty": rvsm_jax.l1(), "lam": 1e-4, "momentum": 0.9}),
  ("adam_proximal", {"lam": 1e-5, "learning_rate": 1e-2}),
  (
    "proximal_adam",
    {"penalty": rvsm_jax.transformed_l1(), "lam": 1e-5, "learning_rate": 1e-2},
  ),
  ("penalised_sgd", {"lam": 1e-4}),
]


class NamedPenalty(rvsm_jax.Penalty):
  """One whose text has no addresses: pytest-xdist wants the same names everywhere."""

  def __repr__(self) -> str:
    return "Penalty"


def named(value):
  return NamedPenalty(*value) if isinstance(value, rvsm_jax.Penalty) else value


UNDER_TEST = tuple(
  {
    "opt_name": name,
    "opt_kwargs": LEARNING_RATE | {key: named(value) for key, value in kwargs.items()},
    "wrapper_name": None,
    "wrapper_kwargs": None,
  }
  for name, kwargs in CASES
)

NAME = "optax.contrib._common_test"
LISTS = ("_MAIN_OPTIMIZERS_UNDER_TEST", "_ALL_OPTIMIZERS_UNDER_TEST")
# What follows the lists in Optax's file, and what its tests look factories up in.
MARKER = "\ndef _get_opt_factory(opt_name):"


def load_suite() -> types.ModuleType:
  """Optax's test module, with our optimizers in its lists.

  Raises:
    LookupError: if the file is not there or has another shape.
  """
  contrib = pathlib.Path(optax.contrib.__file__).parent
  path = contrib / "_common_test.py"
  if not path.exists():
    raise LookupError(f"{path} is not in the wheel")
  source = path.read_text()
  if source.count(MARKER) != 1 or any(name not in source for name in LISTS):
    raise LookupError(f"{path} has another shape")
  lists = "\n".join(f"{name} = __rvsm_cases__" for name in LISTS)
  source = source.replace(MARKER, f"\n{lists}\n{MARKER}")

  spec = importlib.util.spec_from_loader(NAME, loader=None, origin=str(path))
  module = importlib.util.module_from_spec(spec)
  module.__dict__["__rvsm_cases__"] = UNDER_TEST
  sys.modules[NAME] = module
  exec(compile(source, str(path), "exec"), module.__dict__)
  if not hasattr(module, "ContribTest"):
    raise LookupError(f"{path} has no ContribTest")
  # The tests look names up in `contrib` when they run.
  module.contrib = types.SimpleNamespace(**FACTORIES)
  return module


try:
  ContribTest, MISSING = load_suite().ContribTest, ""
except LookupError as error:
  ContribTest, MISSING = None, str(error)


EXPECTED_TESTS = (
  "test_optimizers_accept_extra_args",
  "test_optimizers_can_be_wrapped_in_inject_hyperparams",
  "test_preserve_dtype",
  "test_gradient_accumulation",
  "test_state_shape_dtype_shard_stability",
  "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such",
)


def test_optax_suite_has_cases_for_each_optimizer():
  if ContribTest is None:
    pytest.skip(MISSING)
  names = [name for name in dir(ContribTest) if name.startswith("test")]
  for expected in (*EXPECTED_TESTS, "test_optimizers"):
    cases = [name for name in names if name.rstrip("0123456789") == expected]
    assert len(cases) >= len(UNDER_TEST), expected


@pytest.mark.parametrize(
  "factory",
  [
    rvsm_jax.rvsm,
    rvsm_jax.rvsm_sgd,
    rvsm_jax.proximal,
    rvsm_jax.proximal_sgd,
    *FACTORIES.values(),
  ],
)
def test_learning_rate_comes_first_and_is_annotated_as_optax_expects(factory):
  # Optax's suite skips its test of schedules for any other annotation.
  name, parameter = next(iter(inspect.signature(factory).parameters.items()))
  assert name == "learning_rate"
  assert parameter.annotation == optax.ScalarOrSchedule


# The wrappers, which Optax's suite leaves out


def base(name):
  kwargs = dict(next(kwargs for case, kwargs in CASES if case == name))
  return FACTORIES[name](**(LEARNING_RATE | kwargs))


WRAPPERS = {
  "masked": lambda tx: optax.masked(tx, [True, False]),
  "partition": lambda tx: optax.partition(
    {"ours": tx, "theirs": optax.sgd(1e-3)}, ["ours", "theirs"]
  ),
  "MultiSteps": lambda tx: optax.MultiSteps(tx, 2).gradient_transformation(),
  "apply_if_finite": lambda tx: optax.apply_if_finite(tx, 2),
  "conditionally_mask": lambda tx: optax.conditionally_mask(tx, lambda n: n % 2 == 0),
  "chain": lambda tx: optax.chain(optax.clip_by_global_norm(1.0), tx),
  "named_chain": lambda tx: optax.named_chain(("tx", tx)),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize(
  ("name", "wrapper"), list(itertools.product(FACTORIES, WRAPPERS))
)
def test_wrappers_keep_dtype_shape_and_structure(name, wrapper, dtype):
  with jax.enable_x64(dtype == "float64"):
    tx = WRAPPERS[wrapper](base(name))
    params = [jnp.ones((2, 3), dtype), jnp.zeros((), dtype)]
    # Abstract evaluation compiles nothing and sees every dtype.
    state = jax.eval_shape(tx.init, params)
    updates, new_state = jax.eval_shape(tx.update, params, state, params)

    def signature(tree):
      return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

    assert signature(updates) == signature(jax.eval_shape(lambda p: p, params))
    assert signature(new_state) == signature(state)
    weak = jax.tree.map(lambda x: getattr(x, "weak_type", False), new_state)
    assert not any(jax.tree.leaves(weak))


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("name", FACTORIES)
def test_map_params_through_every_wrapper(name, wrapper):
  tx = WRAPPERS[wrapper](base(name))
  params = [jnp.ones((2, 3)), jnp.zeros(())]
  state = tx.init(params)
  same = optax.tree.map_params(tx, lambda x: x, state)
  assert jax.tree.structure(same) == jax.tree.structure(state)
  marked = optax.tree.map_params(
    tx, lambda _: "param", state, transform_non_params=lambda _: "other"
  )
  for mark, leaf in zip(jax.tree.leaves(marked), jax.tree.leaves(state), strict=True):
    assert mark == ("param" if leaf.shape == (2, 3) else mark)
    assert mark == ("other" if jnp.issubdtype(leaf.dtype, jnp.integer) else mark)


@pytest.mark.parametrize(
  "mask",
  [None, True, [True, False], lambda p: [True, False], rvsm_jax.kernels],
  ids=["none", "true", "tree", "callable", "kernels"],
)
def test_map_params_with_our_masks(mask):
  params = [jnp.ones((2, 3)), jnp.zeros((4,))]
  specs = ["matrix", "vector"]

  def is_masked(x):
    return isinstance(x, optax.MaskedNode)

  for tx, has_u in (
    (rvsm_jax.rvsm(1e-3, rvsm_jax.l0(), mask=mask, **RVSM), True),
    (rvsm_jax.rvsm(1e-3, rvsm_jax.l0(), mask=mask, carry_u=False, **RVSM), False),
    (rvsm_jax.proximal(1e-3, rvsm_jax.l0(), lam=0.1, mask=mask), False),
    (rvsm_jax.proximal_adam(1e-3, rvsm_jax.l0(), lam=0.1, mask=mask), False),
    (rvsm_jax.add_penalty_gradient(rvsm_jax.l1(), 0.1, mask=mask), False),
  ):
    state = tx.init(params)
    mapped = optax.tree.map_params(
      tx,
      lambda leaf, spec: leaf if is_masked(leaf) else spec,
      state,
      specs,
      transform_non_params=lambda _: "count",
      is_leaf=is_masked,
    )
    assert mapped.count == "count"
    if has_u:
      everything = mask is None or mask is True
      assert mapped.u == ["matrix", "vector" if everything else optax.MaskedNode()]


def test_init_under_eval_shape():
  params = {"w": jax.ShapeDtypeStruct((4, 3), jnp.bfloat16)}
  for name in FACTORIES:
    state = jax.eval_shape(base(name).init, params)
    assert jax.tree.leaves(state)
