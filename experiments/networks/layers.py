"""Convolutions and pooling; on CPU, such that they stay in its caches."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from experiments.core import backend

# Up to this many pixels, a convolution on CPU is one matrix product.
_SMALL = 64


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


def conv3x3(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
  """3x3 convolution with zero padding of (n, h, w, c) by a (3, 3, c, d) kernel.

  On CPU that of small images is a product of the 3x3 patches with the kernel. Of
  others, the gradient for the kernel is one matrix product per image, which stays in
  the cache: XLA's own convolution for it takes three times as long there.

  `nnx.Conv` can call it, whose other arguments it leaves out.
  """
  if not backend.on_cpu():
    return _convolution(x, kernel)
  if is_small(x):
    return _conv3x3_of_patches(x, kernel)
  return _conv3x3(x, kernel)


def is_small(x: jax.Array) -> bool:
  """Whether convolutions of these images are matrix products, fast also in a scan."""
  return x.shape[1] * x.shape[2] <= _SMALL


def _convolution(x: jax.Array, kernel: jax.Array) -> jax.Array:
  return jax.lax.conv_general_dilated(
    x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )


def _conv3x3_of_patches(x: jax.Array, kernel: jax.Array) -> jax.Array:
  height, width, inputs = x.shape[1:]
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  shifted = [x[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
  patches = jnp.concatenate(shifted, axis=-1)
  return patches @ kernel.reshape(9 * inputs, -1)


_conv3x3 = jax.custom_vjp(_convolution)


def _conv3x3_fwd(
  x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _convolution(x, kernel), (x, kernel)


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
  return _conv3x3(g, kernel[::-1, ::-1].swapaxes(2, 3)), d_kernel


_conv3x3.defvjp(_conv3x3_fwd, _conv3x3_bwd)


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


def pooled_conv3x3(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
  """`max_pool(conv3x3(x, kernel))`, on CPU faster if x has one channel, even sides.

  Then the four convolution outputs of a pool are four products of one 4x4 patch,
  and neither the image at full resolution with its many channels, nor its gradient,
  is ever in memory.
  """
  n, height, width, channels = x.shape
  fused = backend.on_cpu() and not is_small(x) and channels == 1
  if not fused or height % 2 or width % 2:
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
