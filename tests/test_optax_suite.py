"""Optax's own tests of contributed optimizers, run on these transformations.

The wheel of Optax ships them. Their text is read from the installed package, its list
of optimizers is replaced in memory, and its test class is collected below. What that
suite leaves out (it drops the wrappers before it checks dtypes) is tested after it.
"""

import importlib.util
import inspect
import pathlib
import sys
import types

from cases import TRANSFORMATIONS, TYPICAL, every_transformation, with_invariant
import jax
import jax.numpy as jnp
import optax
import pytest

import rvsm_jax

SUITE = [case for case in TRANSFORMATIONS if case.suite is not None]


class Named:
  """Whatever it holds, with a text that is the same in every process of pytest."""

  def __init__(self, value):
    self.value = value

  def __repr__(self):
    return type(self.value).__name__


def factory(case):
  """The case as a function that Optax takes for one of its optimizers.

  Optax looks at the annotation of the learning rate, and injects what it is given.
  """

  def make(learning_rate, **kwargs):
    return case.make(learning_rate, **{k: _plain(v) for k, v in kwargs.items()})

  names = [name for name in case.suite if name != "learning_rate"]
  kind = inspect.Parameter.KEYWORD_ONLY
  make.__signature__ = inspect.Signature(
    [
      inspect.Parameter(
        "learning_rate",
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        annotation=optax.ScalarOrSchedule,
      ),
      *(inspect.Parameter(name, kind) for name in names),
    ]
  )
  return make


def _plain(value):
  return value.value if isinstance(value, Named) else value


def _named(value):
  return Named(value) if isinstance(value, rvsm_jax.Penalty) else value


NAME = "optax.contrib._common_test"
LISTS = ("_MAIN_OPTIMIZERS_UNDER_TEST", "_ALL_OPTIMIZERS_UNDER_TEST")
# What follows the lists in Optax's file, and what its tests look factories up in.
MARKER = "\ndef _get_opt_factory(opt_name):"


def under_test(case):
  """The case as an entry of Optax's lists."""
  return {
    "opt_name": case.name,
    "opt_kwargs": {key: _named(value) for key, value in case.suite.items()},
    "wrapper_name": None,
    "wrapper_kwargs": None,
  }


def load_suite(cases) -> type:
  """Optax's test class, of a module with some of our optimizers in its lists.

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
  module.__dict__["__rvsm_cases__"] = [under_test(case) for case in cases]
  sys.modules[NAME] = module
  exec(compile(source, str(path), "exec"), module.__dict__)
  if not hasattr(module, "ContribTest"):
    raise LookupError(f"{path} has no ContribTest")
  # The tests look names up in `contrib` when they run.
  module.contrib = types.SimpleNamespace(**{c.name: factory(c) for c in cases})
  return module.ContribTest


try:
  ContribTest = load_suite([case for case in SUITE if case.name in TYPICAL])
  Others = pytest.mark.slow(load_suite([c for c in SUITE if c.name not in TYPICAL]))
  MISSING = ""
except LookupError as error:
  ContribTest, Others, MISSING = None, None, str(error)


EXPECTED_TESTS = (
  "test_optimizers_accept_extra_args",
  "test_optimizers_can_be_wrapped_in_inject_hyperparams",
  "test_preserve_dtype",
  "test_gradient_accumulation",
  "test_state_shape_dtype_shard_stability",
  "test_optimizers_accept_learning_rate_schedule_if_type_annotated_as_such",
)


def test_optax_suite_has_cases_for_each_optimizer():
  if MISSING:
    pytest.skip(MISSING)
  names = [name for suite in (ContribTest, Others) for name in dir(suite)]
  for expected in (*EXPECTED_TESTS, "test_optimizers"):
    cases = [name for name in names if name.rstrip("0123456789") == expected]
    assert len(cases) >= len(SUITE), expected


@every_transformation
def test_the_learning_rate_comes_first_and_is_annotated_as_optax_expects(case):
  # Optax's suite skips its test of schedules for any other annotation.
  parameters = inspect.signature(case.factory).parameters
  if "learning_rate" in case.arguments and case.factory.__module__ != "cases":
    assert next(iter(parameters)) == "learning_rate"
    assert parameters["learning_rate"].annotation == optax.ScalarOrSchedule


# The wrappers, which Optax's suite leaves out


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
PARAMS = [jnp.ones((2, 3)), jnp.zeros(())]


def wrapped(case):
  """It inside each wrapper, and alone."""
  names = set(WRAPPERS)
  names -= set() if case.has("masked") else {"masked", "partition"}
  names -= set() if case.has("MultiSteps") else {"MultiSteps"}
  return {
    "alone": case.make(),
    **{name: WRAPPERS[name](case.make()) for name in sorted(names)},
  }


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@every_transformation
def test_dtypes_shapes_and_structures_are_kept_in_every_wrapper(case, dtype):
  with jax.enable_x64(dtype == "float64"):
    params = [leaf.astype(dtype) for leaf in PARAMS]
    for name, tx in wrapped(case).items():
      # Abstract evaluation compiles nothing and sees every dtype.
      state = jax.eval_shape(tx.init, params)
      updates, new_state = jax.eval_shape(
        lambda g, s, p, tx=tx: tx.update(g, s, p, **case.extra(p, g)),
        params,
        state,
        params,
      )

      def signature(tree):
        return jax.tree.map(lambda x: (x.shape, x.dtype), tree)

      assert signature(updates) == signature(jax.eval_shape(lambda p: p, params)), name
      assert signature(new_state) == signature(state), name
      weak = jax.tree.map(lambda x: getattr(x, "weak_type", False), new_state)
      assert not any(jax.tree.leaves(weak)), name


@every_transformation
def test_map_params_through_every_wrapper(case):
  for name, tx in wrapped(case).items():
    state = tx.init(PARAMS)
    same = optax.tree.map_params(tx, lambda x: x, state)
    assert jax.tree.structure(same) == jax.tree.structure(state), name
    marked = optax.tree.map_params(
      tx, lambda _: "param", state, transform_non_params=lambda _: "other"
    )
    for mark, leaf in zip(jax.tree.leaves(marked), jax.tree.leaves(state), strict=True):
      assert mark == ("param" if leaf.shape == (2, 3) else mark), name
      assert mark == ("other" if jnp.issubdtype(leaf.dtype, jnp.integer) else mark)


@pytest.mark.parametrize(
  "mask",
  [None, True, [True, False], lambda p: [True, False], rvsm_jax.kernels],
  ids=["none", "true", "tree", "callable", "kernels"],
)
@with_invariant("mask", "count")
def test_map_params_with_our_masks(case, mask):
  params = [jnp.ones((2, 3)), jnp.zeros((4,))]

  def is_masked(x):
    return isinstance(x, optax.MaskedNode)

  tx = case.bare(mask=mask)
  mapped = optax.tree.map_params(
    tx,
    lambda leaf, spec: leaf if is_masked(leaf) else spec,
    tx.init(params),
    ["matrix", "vector"],
    transform_non_params=lambda _: "other",
    is_leaf=is_masked,
  )
  assert "other" in jax.tree.leaves(mapped, is_leaf=is_masked)
  whole = mask is None or mask is True
  for name in {case.carries, "dual"} - {None}:
    for _, tree in optax.tree.get_all_with_path(mapped, name):
      assert tree == ["matrix", "vector" if whole else optax.MaskedNode()]
