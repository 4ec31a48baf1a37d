"""Dense layers with ReLU between them, in Flax NNX."""

from collections.abc import Sequence
import itertools

from flax import nnx


def perceptron(sizes: Sequence[int], rngs: nnx.Rngs) -> nnx.Sequential:
  """A perceptron."""
  layers: list = []
  for inputs, outputs in itertools.pairwise(sizes):
    layers += [nnx.Linear(inputs, outputs, rngs=rngs), nnx.relu]
  return nnx.Sequential(*layers[:-1])
