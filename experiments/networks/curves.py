"""The network of Xue & Xin (2019), in Flax NNX."""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp

from experiments.networks.layers import pooled_conv3x3


class PooledConv(nnx.Module):
  """3x3 convolution, bias, ReLU and 2x2 max pooling; He initialisation.

  Pooling comes first, which gives the same and leaves a quarter of the work.
  """

  def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
    init = nnx.initializers.he_normal()
    self.kernel = nnx.Param(init(rngs.params(), (3, 3, inputs, outputs)))
    self.bias = nnx.Param(jnp.zeros(outputs))

  def __call__(self, x: jax.Array) -> jax.Array:
    """Feature maps (n, h / 2, w / 2, outputs) of (n, h, w, inputs)."""
    return nnx.relu(pooled_conv3x3(x, self.kernel[...]) + self.bias[...])


class CurvesCNN(nnx.Module):
  """The network of Xue & Xin (2019), Fig. 1: 100 -> 50 -> 25 -> 13, dense, dense.

  Attributes:
    conv1: 288 weights.
    conv2: 9,216 weights.
    conv3: 9,216 weights.
    dense: 13 * 13 * 32 * 128 = 692,224 weights, those that are made sparse.
    out: 256 weights.
  """

  def __init__(
    self, *, ink: float = 5.0, dense_std: float | None = None, rngs: nnx.Rngs
  ):
    """Draws the weights: He initialisation.

    Args:
      ink: value of a pixel with ink. Thin lines ink 4% of an image: with 5 its mean
        square is one, which He initialisation counts on.
      dense_std: standard deviation of the initial weights of `dense`, if not He's,
        0.019.
      rngs: for the weights.
    """
    he: Callable = nnx.initializers.he_normal()
    normal: Callable = nnx.initializers.normal(dense_std) if dense_std else he
    self.ink = ink
    self.conv1 = PooledConv(1, 32, rngs=rngs)
    self.conv2 = PooledConv(32, 32, rngs=rngs)
    self.conv3 = PooledConv(32, 32, rngs=rngs)
    self.dense = nnx.Linear(13 * 13 * 32, 128, kernel_init=normal, rngs=rngs)
    self.out = nnx.Linear(128, 2, kernel_init=he, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Logits (n, 2) of images (n, 100, 100, 1) of zeros and ones, of any dtype."""
    x = self.ink * images.astype(jnp.float32)
    x = self.conv3(self.conv2(self.conv1(x)))
    return self.out(nnx.relu(self.dense(x.reshape(len(x), -1))))
