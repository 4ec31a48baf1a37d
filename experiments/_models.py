"""The networks of the experiments, in Flax NNX."""

from collections.abc import Callable

from flax import nnx
import jax
import jax.numpy as jnp


def max_pool(x: jax.Array) -> jax.Array:
  """2x2 max pooling with stride 2 of (n, h, w, c); an odd side is padded at its end.

  Written as a reshape because the gradient of `lax.reduce_window` is slow on CPU.
  """
  n, height, width, channels = x.shape
  padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
  x = jnp.pad(x, padding, constant_values=-jnp.inf)
  blocks = x.reshape(n, (height + 1) // 2, 2, (width + 1) // 2, 2, channels)
  return blocks.max(axis=(2, 4))


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """3x3 convolution with zero padding of (n, h, w, c) by a (3, 3, c, d) kernel.

  The gradient for the kernel is computed as one matrix product per image: XLA's own
  convolution for it takes more than twice as long on CPU.
  """
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _conv3x3_fwd(
  x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return conv3x3(x, kernel), (x, kernel)


def _conv3x3_bwd(
  residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernel = residuals
  n, height, width, inputs = x.shape
  outputs = g.shape[-1]
  # Entry (i, j) of the kernel meets row r and column s + j of the padded input in
  # the output (r - i, s): the inputs shifted by j, against the outputs by i.
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  x = jnp.concatenate([x[:, :, j : j + width] for j in range(3)], axis=-1)
  rows = jnp.pad(g, ((0, 0), (2, 2), (0, 0), (0, 0)))
  rows = jnp.concatenate([rows[:, 2 - i : 4 - i + height] for i in range(3)], axis=-1)
  pixels = (height + 2) * width
  products = jnp.einsum(
    "npa,npb->nab",
    x.reshape(n, pixels, 3 * inputs),
    rows.reshape(n, pixels, 3 * outputs),
  ).sum(axis=0)
  d_kernel = products.reshape(3, inputs, 3, outputs).transpose(2, 0, 1, 3)
  return conv3x3(g, kernel[::-1, ::-1].swapaxes(2, 3)), d_kernel


conv3x3.defvjp(_conv3x3_fwd, _conv3x3_bwd)


def pooled_conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """`max_pool(conv3x3(x, kernel))`, faster where x has one channel and even sides.

  Then the four convolution outputs of a pool are four products of one 4x4 patch,
  and neither the image at full resolution with its many channels, nor its gradient,
  is ever in memory.
  """
  n, height, width, channels = x.shape
  if channels != 1 or height % 2 or width % 2:
    return max_pool(conv3x3(x, kernel))
  x = jnp.pad(x[..., 0], ((0, 0), (1, 1), (1, 1)))
  patches = jnp.stack(
    [x[:, i : i + height : 2, j : j + width : 2] for i in range(4) for j in range(4)],
    axis=-1,
  ).reshape(-1, 16)

  def shifted(i: int, j: int) -> jax.Array:
    padded = jnp.pad(kernel[:, :, 0], ((i, 1 - i), (j, 1 - j), (0, 0)))
    return patches @ padded.reshape(16, -1)

  upper = jnp.maximum(shifted(0, 0), shifted(0, 1))
  lower = jnp.maximum(shifted(1, 0), shifted(1, 1))
  return jnp.maximum(upper, lower).reshape(n, height // 2, width // 2, -1)


# Thin lines ink 4% of an image: with this value its mean square is one, which He
# initialisation counts on. With 1, the first epochs are spent on a plateau.
_INK = 5.0


class PooledConv(nnx.Module):
  """3x3 convolution, bias, ReLU and 2x2 max pooling; He initialisation.

  Pooling comes first, which gives the same and leaves a quarter of the work.
  """

  def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
    init = nnx.initializers.he_normal()
    self.kernel = nnx.Param(init(rngs.params(), (3, 3, inputs, outputs)))
    self.bias = nnx.Param(jnp.zeros(outputs))

  def __call__(self, x: jax.Array) -> jax.Array:
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

  def __init__(self, *, rngs: nnx.Rngs):
    he: Callable = nnx.initializers.he_normal()
    self.conv1 = PooledConv(1, 32, rngs=rngs)
    self.conv2 = PooledConv(32, 32, rngs=rngs)
    self.conv3 = PooledConv(32, 32, rngs=rngs)
    self.dense = nnx.Linear(13 * 13 * 32, 128, kernel_init=he, rngs=rngs)
    self.out = nnx.Linear(128, 2, kernel_init=he, rngs=rngs)

  def __call__(self, images: jax.Array) -> jax.Array:
    """Logits (n, 2) of images (n, 100, 100, 1) of zeros and ones, of any dtype."""
    x = _INK * images.astype(jnp.float32)
    x = self.conv3(self.conv2(self.conv1(x)))
    return self.out(nnx.relu(self.dense(x.reshape(len(x), -1))))
