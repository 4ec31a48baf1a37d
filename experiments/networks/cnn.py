"""The networks of Table 1, in Flax NNX: convolutions, then dense layers, all ReLU.

The alphabetical order of the attributes, which is that of pytrees, is the depth.
"""

from collections.abc import Sequence
import itertools

from flax import nnx
import jax

from experiments.networks.layers import conv3x3, max_pool, pooled_conv3x3


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
        x = max_pool(x)
    x = x.reshape(len(x), -1)
    for layer in self.dense[:-1]:
      x = nnx.relu(layer(x))
    return self.dense[-1](x)
