"""The networks of the experiments, in Flax NNX."""

from collections.abc import Callable
import functools

from flax import nnx
import jax
import jax.numpy as jnp


def max_pool(x: jax.Array) -> jax.Array:
  """2x2 max pooling with stride 2 of (n, h, w, c); an odd side is padded at its end.

  Written with `maximum` because the gradients of `lax.reduce_window` and of `max` over
  an axis are slow on CPU.
  """
  _, height, width, _ = x.shape
  padding = ((0, 0), (0, height % 2), (0, width % 2), (0, 0))
  x = jnp.pad(x, padding, constant_values=-jnp.inf)
  upper = jnp.maximum(x[:, ::2, ::2], x[:, ::2, 1::2])
  lower = jnp.maximum(x[:, 1::2, ::2], x[:, 1::2, 1::2])
  return jnp.maximum(upper, lower)


@jax.custom_vjp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
  """3x3 convolution with zero padding of (n, h, w, c) by a (3, 3, c, d) kernel.

  The gradient for the kernel is computed as one matrix product per image, which stays
  in the cache: XLA's own convolution for it takes three times as long on CPU.
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
  _, height, width, inputs = x.shape
  outputs = g.shape[-1]

  def add(
    total: jax.Array, image: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, None]:
    # Entry (i, j) of the kernel meets row r and column s + j of the padded input in
    # the output (r - i, s): the inputs shifted by j, against the outputs by i.
    x, g = image
    x = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    x = jnp.concatenate([x[:, j : j + width] for j in range(3)], axis=-1)
    g = jnp.pad(g, ((2, 2), (0, 0), (0, 0)))
    g = jnp.concatenate([g[2 - i : 4 - i + height] for i in range(3)], axis=-1)
    product = x.reshape(-1, 3 * inputs).T @ g.reshape(-1, 3 * outputs)
    return total + product, None

  total, _ = jax.lax.scan(add, jnp.zeros((3 * inputs, 3 * outputs), x.dtype), (x, g))
  d_kernel = total.reshape(3, inputs, 3, outputs).transpose(2, 0, 1, 3)
  return conv3x3(g, kernel[::-1, ::-1].swapaxes(2, 3)), d_kernel


conv3x3.defvjp(_conv3x3_fwd, _conv3x3_bwd)


def _products(x: jax.Array, kernels: jax.Array) -> list[jax.Array]:
  """x (m, p) times each of kernels (k, p, d): k arrays (m, d)."""
  matrix = kernels.swapaxes(0, 1).reshape(kernels.shape[1], -1)
  return jnp.split(x @ matrix, len(kernels), axis=-1)


@jax.custom_vjp
def _largest_product(x: jax.Array, kernels: jax.Array) -> jax.Array:
  """The largest of x (n, m, p) times each of kernels (k, p, d): (n, m, d).

  One image after the other, which keeps the products in the cache.
  """
  return jax.lax.map(lambda x: functools.reduce(jnp.maximum, _products(x, kernels)), x)


def _largest_product_fwd(
  x: jax.Array, kernels: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _largest_product(x, kernels), (x, kernels)


def _largest_product_bwd(
  residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
  x, kernels = residuals
  count, patch, outputs = kernels.shape

  def add(
    total: jax.Array, image: tuple[jax.Array, jax.Array]
  ) -> tuple[jax.Array, jax.Array]:
    x, g = image
    products = _products(x, kernels)
    largest = functools.reduce(jnp.maximum, products)
    won = [(product == largest).astype(g.dtype) for product in products]
    # Equal patches give equal products, which share the gradient.
    g = g / sum(won)
    g = jnp.concatenate([w * g for w in won], axis=-1)
    d_x = g @ kernels.swapaxes(1, 2).reshape(-1, patch)
    return total + x.T @ g, d_x

  total = jnp.zeros((patch, count * outputs), x.dtype)
  total, d_x = jax.lax.scan(add, total, (x, g))
  return d_x, total.reshape(patch, count, outputs).swapaxes(0, 1)


_largest_product.defvjp(_largest_product_fwd, _largest_product_bwd)


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
  patches = [
    x[:, i : i + height : 2, j : j + width : 2] for i in range(4) for j in range(4)
  ]
  kernels = [
    jnp.pad(kernel[:, :, 0], ((i, 1 - i), (j, 1 - j), (0, 0))).reshape(16, -1)
    for i in range(2)
    for j in range(2)
  ]
  largest = _largest_product(
    jnp.stack(patches, axis=-1).reshape(n, -1, 16), jnp.stack(kernels)
  )
  return largest.reshape(n, height // 2, width // 2, -1)


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
