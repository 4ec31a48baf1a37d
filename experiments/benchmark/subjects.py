"""What is measured: optimizers, and the weights that they train."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from experiments.networks import cifar
from experiments.networks.curves import CurvesCNN
import rvsm_jax

_RATE, _LAM, _BETA = 1e-3, 1e-4, 0.1
_FLOAT = 4

_l1, _tl1 = rvsm_jax.l1(), rvsm_jax.transformed_l1(1.0)
_integrated = rvsm_jax.integrated_tl1(a=1.0, mu=0.5)
_group = rvsm_jax.group_lasso("out")


class Subject(NamedTuple):
  """An optimizer.

  Attributes:
    make: builds it.
    arrays: what one update reads and writes at the least, in arrays of the size of
      the params: weights and gradients read, weights written, and its state both. A
      group norm reads weights and gradients a second time, a count of zeros u.
    apply: `optax.apply_updates`, or what takes its place.
  """

  make: Callable[[], optax.GradientTransformation]
  arrays: int
  apply: Callable[[Any, Any], Any] = optax.apply_updates


def _after_sgd(
  factory: Callable[..., optax.GradientTransformation], *args: Any, **kwargs: Any
) -> Callable[[], optax.GradientTransformation]:
  return lambda: optax.chain(
    optax.sgd(_RATE), factory(_RATE, *args, mask=rvsm_jax.kernels, **kwargs)
  )


def _rvsm(
  penalty: rvsm_jax.Penalty, carry_u: bool
) -> Callable[[], optax.GradientTransformation]:
  # A threshold that leaves some weights and takes some.
  return _after_sgd(rvsm_jax.rvsm, penalty, lam=_LAM, beta=_BETA, carry_u=carry_u)


def _proximal(penalty: rvsm_jax.Penalty) -> Callable[[], optax.GradientTransformation]:
  return _after_sgd(rvsm_jax.proximal, penalty, lam=_LAM)


def _target(sparsity: float) -> optax.GradientTransformation:
  return rvsm_jax.target_sparsity(
    lambda lam: rvsm_jax.rvsm(_RATE, _l1, lam=lam, beta=_BETA, mask=rvsm_jax.kernels),
    sparsity,
    mask=rvsm_jax.kernels,
  )


def _apply_with_prox(params: Any, updates: Any) -> Any:
  """The map after `optax.apply_updates`, as the note of `rvsm_jax.proximal` has it."""
  params = optax.apply_updates(params, updates)
  return jax.tree.map(
    lambda w, pick: _integrated.prox(w, _RATE * _LAM) if pick else w,
    params,
    rvsm_jax.kernels(params),
  )


SUBJECTS: dict[str, Subject] = {
  "sgd": Subject(lambda: optax.sgd(_RATE), 3),
  "sgd, momentum": Subject(lambda: optax.sgd(_RATE, momentum=0.9), 5),
  "adam": Subject(lambda: optax.adam(_RATE), 7),
  "rvsm l0": Subject(_rvsm(rvsm_jax.l0(), True), 5),
  "rvsm l0, no u": Subject(_rvsm(rvsm_jax.l0(), False), 3),
  "rvsm l1": Subject(_rvsm(_l1, True), 5),
  "rvsm l1, no u": Subject(_rvsm(_l1, False), 3),
  "rvsm TL1": Subject(_rvsm(_tl1, True), 5),
  "rvsm TL1, no u": Subject(_rvsm(_tl1, False), 3),
  "proximal l1": Subject(_proximal(_l1), 3),
  "proximal TL1": Subject(_proximal(_tl1), 3),
  "proximal group lasso": Subject(_proximal(_group), 5),
  "proximal integrated TL1": Subject(_proximal(_integrated), 5),
  "integrated TL1 after apply_updates": Subject(
    lambda: optax.sgd(_RATE), 5, _apply_with_prox
  ),
  "proximal adam l1": Subject(
    lambda: rvsm_jax.proximal_adam(_RATE, _l1, lam=_LAM, mask=rvsm_jax.kernels), 7
  ),
  "admm cardinality": Subject(
    _after_sgd(rvsm_jax.admm, rvsm_jax.cardinality(0.9), rho=_BETA), 7
  ),
  "target sparsity, rvsm l1": Subject(
    lambda: optax.chain(optax.sgd(_RATE), _target(0.9)), 6
  ),
  "penalty gradient l1": Subject(
    lambda: optax.chain(
      rvsm_jax.add_penalty_gradient(_l1, _LAM, mask=rvsm_jax.kernels), optax.sgd(_RATE)
    ),
    3,
  ),
}


def _resnet18(copies: int) -> Any:
  shape = functools.partial(cifar.create, "resnet18", width=1.0, seed=0)
  params = nnx.to_pure_dict(nnx.state(nnx.eval_shape(shape), nnx.Param))
  return {f"copy{i}": params for i in range(copies)}


def _curves() -> Any:
  model = nnx.eval_shape(lambda: CurvesCNN(rngs=nnx.Rngs(0)))
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


# The shapes of the weights, by name.
TREES: dict[str, Callable[[], Any]] = {
  "ResNet-18": lambda: _resnet18(1),
  "dense layer": lambda: {"kernel": jax.ShapeDtypeStruct((5408, 128), jnp.float32)},
  "curves CNN": _curves,
  "nine times ResNet-18": lambda: _resnet18(9),
}


def draw(shapes: Any, seed: int, scale: float) -> Any:
  """Normal weights of these shapes."""
  leaves, treedef = jax.tree.flatten(shapes)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  drawn = [
    scale * jax.random.normal(key, leaf.shape)
    for key, leaf in zip(keys, leaves, strict=True)
  ]
  return jax.tree.unflatten(treedef, drawn)


def count(tree: Any) -> int:
  """Number of weights."""
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def least_bytes(subject: Subject) -> int:
  """Bytes per parameter that one update moves at the least."""
  return subject.arrays * _FLOAT
