"""The data sets, their networks, the methods, and their optimizers."""

import dataclasses
from typing import Literal

from jax.typing import ArrayLike
import optax

import rvsm_jax

# How much lower than that of the best l2 network the accuracy on the validation
# examples may be of what is chosen.
TOLERANCE = 0.005

_SGD_LAMS = (2e-4, 5e-4, 1e-3, 2e-3, 5e-3)
_ADAM_LAMS = (5e-2, 1e-1, 2e-1, 4e-1, 8e-1)
# The norm of a neuron's weights is many times as large as one of them.
_GROUP_LAMS = (0.8, 1.2, 1.6, 2.0, 2.4, 2.8)
SHAPES = (1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2)


@dataclasses.dataclass(frozen=True)
class Problem:
  """A data set, its network and how it is trained.

  The numbers of convolutions and dense layers, and which optimizer, are the paper's
  (Table 1, section 4.2); the widths and all else are not printed there.

  Attributes:
    name: what the command line calls it.
    title: what tables call it.
    shape: (height, width, channels), into which the features are put.
    convs: channels of each convolution.
    pooled: numbers of the convolutions that 2x2 max pooling follows.
    dense: units of the dense layers, the classes included.
    optimizer: plain SGD, or Adam.
    learning_rate: at the start; it falls to zero as a cosine.
    epochs: passes over the training examples.
    batch_size: examples per step.
    lams: weights of the penalties that the grid search tries.
    l2_lams: those of l2.
    adaptive_lams: those of the proximal step in Adam's own metric, which needs no
      larger ones than that after SGD.
    shapes: the a of transformed l1 that it tries.
    search_epochs: as `epochs`, of the trainings of the grid search; 0 takes as many.
    train_size: use only so many training examples; 0 takes all.
  """

  name: str
  title: str
  shape: tuple[int, int, int]
  convs: tuple[int, ...]
  pooled: tuple[int, ...]
  dense: tuple[int, ...]
  optimizer: Literal["sgd", "adam"]
  learning_rate: float
  epochs: int
  batch_size: int
  lams: tuple[float, ...]
  l2_lams: tuple[float, ...] = (1e-5, 1e-4, 1e-3)
  adaptive_lams: tuple[float, ...] = _SGD_LAMS
  shapes: tuple[float, ...] = SHAPES
  search_epochs: int = 0
  train_size: int = 0

  @property
  def quick(self) -> "Problem":
    """A small training and grid, which show that all works."""
    return dataclasses.replace(
      self,
      title=f"{self.title}, reduced",
      epochs=8,
      lams=self.lams[1:4:2],
      adaptive_lams=self.adaptive_lams[1:4:2],
      shapes=(1e-2, 1.0),
      train_size=2000,
    )

  @property
  def layers(self) -> int:
    """How many there are, with weights."""
    return len(self.convs) + len(self.dense)


PROBLEMS = {
  problem.name: problem
  for problem in (
    Problem(
      *("digits", "DIGITS", (8, 8, 1), (16,), (0,), (128, 10)),
      *("adam", 2e-3, 40, 32, _ADAM_LAMS),
    ),
    Problem(
      *("mnist", "MNIST", (28, 28, 1), (16, 32), (0, 1), (128, 10)),
      *("sgd", 0.1, 6, 64, _SGD_LAMS),
      shapes=(1e-3, 1e-2),
    ),
    Problem(
      *("fashion_mnist", "Fashion-MNIST", (28, 28, 1), (16, 32), (0, 1), (128, 64, 10)),
      *("sgd", 0.1, 6, 64, _SGD_LAMS[:4]),
      shapes=(1e-3, 1e-2),
    ),
    Problem(
      *("pendigits", "PENDIGITS", (4, 4, 1), (8, 16), (), (64, 10)),
      *("sgd", 0.2, 30, 64, _SGD_LAMS),
    ),
    Problem(
      *("sdd", "SDD", (6, 8, 1), (8, 16), (1,), (128, 64, 11)),
      *("adam", 2e-3, 20, 128, _ADAM_LAMS),
    ),
    Problem(
      *("cifar10", "CIFAR-10", (32, 32, 3), (32, 32, 64, 64), (1, 3), (128, 10)),
      *("adam", 1e-3, 30, 128, _ADAM_LAMS),
      shapes=(1e-2, 1e-1, 1.0),
      search_epochs=3,
    ),
  )
}
PROBLEMS["sdd_subset"] = dataclasses.replace(
  PROBLEMS["sdd"],
  name="sdd_subset",
  title="SDD, 2,200 of its 58,509 rows",
  epochs=40,
  batch_size=32,
)


@dataclasses.dataclass(frozen=True)
class Method:
  """A way to make a network sparse.

  Attributes:
    name: what the command line calls it.
    title: what tables call it.
    penalty: which; "l2" is weight decay and makes nothing sparse.
    ranked: whether the paper has it in Table 2.
    adaptive: whether the prox is taken in Adam's own metric.
  """

  name: str
  title: str
  penalty: Literal["l2", "l1", "sgl", "cges", "itl", "group", "tl1"]
  ranked: bool = False
  adaptive: bool = False

  @property
  def has_a(self) -> bool:
    """Whether the penalty has the parameter a."""
    return self.penalty in ("itl", "tl1")

  @property
  def in_table_3_alone(self) -> bool:
    """Whether it is there to show which zeros one term of integrated TL1 makes."""
    return self.name in ("group", "tl1")


METHODS = {
  method.name: method
  for method in (
    Method("l2", "l2, dense", "l2"),
    Method("l1", "l1", "l1", ranked=True),
    Method("sgl", "SGL", "sgl", ranked=True),
    Method("cges", "CGES", "cges", ranked=True),
    Method("itl", "integrated TL1", "itl", ranked=True),
    Method("itl_adaptive", "integrated TL1, proximal Adam", "itl", adaptive=True),
    Method("group", "group sparsity", "group"),
    Method("tl1", "TL1", "tl1"),
  )
}


def methods_of(problem: Problem) -> tuple[Method, ...]:
  """All methods that a data set is for, l2 first: others are compared with it."""
  names = ["l2", "l1", "sgl", "cges", "itl"]
  if problem.optimizer == "adam":
    names.append("itl_adaptive")
  if problem.name == "digits":
    names += ["group", "tl1"]
  return tuple(METHODS[name] for name in names)


@dataclasses.dataclass(frozen=True)
class Config:
  """What a data set and a method are trained with: all that determines the numbers.

  Attributes:
    problem: the data set.
    method: the method.
    s: lowest share of one term of integrated TL1 and CGES, in the first and the last
      layer.
    mu: share of l1 in SGL.
    validation_share: of the training examples, held out for the grid search.
    settle: length of the phase on the support that follows a final training, as a
      share of it.
  """

  problem: Problem
  method: Method
  s: float = 0.2
  mu: float = 0.5
  validation_share: float = 0.2
  settle: float = 1 / 3

  @property
  def grid(self) -> list[tuple[float, float]]:
    """The pairs of lam and a that are tried; a is 0 where there is none."""
    lams = self.problem.lams
    if self.method.penalty == "l2":
      lams = self.problem.l2_lams
    elif self.method.adaptive:
      lams = self.problem.adaptive_lams
    elif self.method.penalty == "group":
      lams = _GROUP_LAMS
    shapes = self.problem.shapes if self.method.has_a else (0.0,)
    return [(lam, a) for a in shapes for lam in lams]

  @property
  def search_epochs(self) -> int:
    """Passes of each training of the grid search."""
    return self.problem.search_epochs or self.problem.epochs

  @property
  def settle_epochs(self) -> int:
    """Passes of the phase on the support."""
    return max(1, round(self.settle * self.problem.epochs))


def penalty(config: Config, layer: int, a: ArrayLike) -> rvsm_jax.Penalty:
  """The penalty of a layer, 0 for the first; all groups are those of a neuron.

  CGES is that of its authors' code: the published step in place of the exact prox of
  the exclusive term, then that of the group term.
  """
  share = rvsm_jax.integrated_tl1_schedule(config.problem.layers, config.s)[layer]
  match config.method.penalty:
    case "l1":
      return rvsm_jax.l1()
    case "sgl":
      return rvsm_jax.sparse_group_lasso(config.mu)
    case "cges":
      exclusive = rvsm_jax.exclusive_lasso_one_step()
      group = rvsm_jax.group_lasso()
      return rvsm_jax.Penalty(
        rvsm_jax.combined_group_exclusive(share).value,
        lambda x, step: group.prox(exclusive.prox(x, share * step), (1 - share) * step),
      )
    case "itl":
      return rvsm_jax.integrated_tl1(a, share)
    case "group":
      return rvsm_jax.group_lasso()
    case "tl1":
      return rvsm_jax.transformed_l1(a)
    case _:
      raise ValueError(f"{config.method.name} has no proximal step.")


def _base(
  config: Config, steps: int
) -> tuple[optax.GradientTransformation, optax.Schedule]:
  rate = optax.cosine_decay_schedule(config.problem.learning_rate, steps)
  return {"sgd": optax.sgd, "adam": optax.adam}[config.problem.optimizer](rate), rate


def on_support(config: Config, steps: int) -> optax.GradientTransformationExtraArgs:
  """The same without a penalty; what is zero stays so."""
  return optax.chain(_base(config, steps)[0], rvsm_jax.keep_zeros(rvsm_jax.kernels))


def optimizer(
  config: Config, steps: int, lam: ArrayLike, a: ArrayLike
) -> optax.GradientTransformationExtraArgs:
  """SGD or Adam, and the proximal step of every kernel, by layer.

  Args:
    config: what is trained.
    steps: updates of the whole training.
    lam: weight of the penalty; it and `a` may be tracers.
    a: shape of transformed l1.
  """
  base, rate = _base(config, steps)
  mask = rvsm_jax.kernels
  if config.method.penalty == "l2":
    return optax.chain(optax.add_decayed_weights(lam, mask=mask), base)

  def of_layer(layer: int) -> optax.GradientTransformationExtraArgs:
    chosen = penalty(config, layer, a)
    if config.method.adaptive:
      return rvsm_jax.proximal_adam(rate, chosen, lam=lam, mask=mask)
    return rvsm_jax.proximal(rate, chosen, lam=lam, mask=mask)

  by_layer = optax.partition(
    {layer: of_layer(layer) for layer in range(config.problem.layers)},
    rvsm_jax.layer_index(),
  )
  return by_layer if config.method.adaptive else optax.chain(base, by_layer)
