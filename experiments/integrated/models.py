"""The networks of Table 1, in Flax NNX: convolutions, then dense layers, all ReLU.

The alphabetical order of the attributes, which is that of pytrees, is the depth.
"""

from collections.abc import Sequence
import itertools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from experiments import _models

# Up to this many pixels, a convolution is one matrix product.
SMALL = 64


def conv3x3(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
  """3x3 convolution with zero padding; what `nnx.Conv` calls.

  Of small images as a product of the 3x3 patches with the kernel: XLA's CPU backend
  runs convolutions slowly, and in a loop more slowly still.
  """
  height, width, inputs = x.shape[1:]
  if height * width > SMALL:
    return _models.conv3x3(x, kernel)
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  shifted = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
  patches = jnp.concatenate(shifted, axis=-1)
  return patches @ kernel.reshape(9 * inputs, -1)


def pooled_conv3x3(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
  """`conv3x3`, then 2x2 max pooling; what `nnx.Conv` calls, where this is faster."""
  height, width = x.shape[1:3]
  if height * width > SMALL:
    return _models.pooled_conv3x3(x, kernel)
  return _models.max_pool(conv3x3(x, kernel))


class CNN(nnx.Module):
  """Convolutions of size 3 with optional 2x2 pooling, then dense layers.

  Args:
    shape: (height, width, channels) of the images.
    convs: channels of each convolution.
    pooled: which of them, by number, max pooling follows.
    dense: units of each dense layer, the last being the classes.
    fused: whether a convolution and the pooling after it are one operation: the same
      function, faster, but no convolution that `rvsm_jax.flop_ratio` would count.
    rngs: of the weights, Glorot's ("Xavier") normal initialisation.
  """

  def __init__(
    self,
    shape: tuple[int, int, int],
    convs: Sequence[int],
    pooled: Sequence[int],
    dense: Sequence[int],
    *,
    fused: bool = False,
    rngs: nnx.Rngs,
  ):
    init = nnx.initializers.glorot_normal()
    height, width, inputs = shape
    layers = []
    for number, outputs in enumerate(convs):
      layers.append(
        nnx.Conv(
          inputs,
          outputs,
          (3, 3),
          kernel_init=init,
          conv_general_dilated=pooled_conv3x3
          if fused and number in pooled
          else conv3x3,
          rngs=rngs,
        )
      )
      inputs = outputs
      if number in pooled:
        height, width = -(-height // 2), -(-width // 2)
    inputs *= height * width
    self.conv = nnx.List(layers)
    sizes = [inputs, *dense]
    self.dense = nnx.List(
      nnx.Linear(*pair, kernel_init=init, rngs=rngs)
      for pair in itertools.pairwise(sizes)
    )
    self.pooled = () if fused else tuple(pooled)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits (n, classes) of images (n, height, width, channels)."""
    for number, convolution in enumerate(self.conv):
      x = nnx.relu(convolution(x))
      if number in self.pooled:
        x = _models.max_pool(x)
    x = x.reshape(len(x), -1)
    for layer in self.dense[:-1]:
      x = nnx.relu(layer(x))
    return self.dense[-1](x)
