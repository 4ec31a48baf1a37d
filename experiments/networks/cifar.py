"""VGG-16 and ResNet-18 for 32 x 32 images, in Flax NNX.

The alphabetical order of the attributes, which is that of pytrees, is the depth.
"""

from collections.abc import Callable
import functools
import itertools
from typing import Any, Literal

from flax import nnx
import jax
import jax.numpy as jnp

from experiments.networks.layers import conv3x3, max_pool

CLASSES = 10

Make = Callable[..., Any]
Scale = Callable[[int], int]

_HE = nnx.initializers.he_normal()


class ConvNorm(nnx.Module):
  """Convolution without bias, padded as in PyTorch, and batch normalisation."""

  def __init__(
    self,
    inputs: int,
    outputs: int,
    size: int = 3,
    stride: int = 1,
    *,
    dtype: jnp.dtype,
    momentum: float,
    rngs: nnx.Rngs,
  ):
    # Of the few channels of an image, XLA's own is faster on CPU as well.
    tuned = size == 3 and stride == 1 and inputs > 3
    self.conv = nnx.Conv(
      inputs,
      outputs,
      (size, size),
      strides=stride,
      # "SAME" would pad an even side at its end alone where the stride is 2.
      padding=size // 2,
      use_bias=False,
      kernel_init=_HE,
      dtype=dtype,
      rngs=rngs,
      conv_general_dilated=conv3x3 if tuned else jax.lax.conv_general_dilated,
    )
    self.norm = nnx.BatchNorm(
      outputs, momentum=momentum, epsilon=1e-5, dtype=dtype, rngs=rngs
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    """Feature maps (n, h / stride, w / stride, outputs) of (n, h, w, inputs)."""
    return self.norm(self.conv(x))


class VGG16(nnx.Module):
  """VGG-16 with batch normalisation and one dense layer, the variant for CIFAR.

  At full width 14,724,042 parameters, of which 14,715,584 in kernels.

  Args:
    channels: from a number of channels at full width to that of this network.
    layer: makes a `ConvNorm`.
    dense: makes a dense layer.
  """

  STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))

  def __init__(self, channels: Scale, layer: Make, dense: Make):
    inputs, stages = 3, []
    for base, depth in self.STAGES:
      sizes = [inputs, *[channels(base)] * depth]
      stages.append(nnx.List(layer(*pair) for pair in itertools.pairwise(sizes)))
      inputs = sizes[-1]
    self.features = nnx.List(stages)
    self.out = dense(inputs, CLASSES)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits (n, 10), float32, of normalised images (n, 32, 32, 3)."""
    for stage in self.features:
      for layer in stage:
        x = nnx.relu(layer(x))
      x = max_pool(x)
    return self.out(x.reshape(len(x), -1)).astype(jnp.float32)


class Block(nnx.Module):
  """Residual block of two convolutions; a projection where the shape changes.

  Args:
    inputs: channels.
    outputs: channels.
    stride: of the first convolution, and of the projection.
    layer: makes a `ConvNorm`.
  """

  def __init__(self, inputs: int, outputs: int, stride: int, layer: Make):
    self.first = layer(inputs, outputs, stride=stride)
    self.second = layer(outputs, outputs)
    changes = stride != 1 or inputs != outputs
    self.shortcut = layer(inputs, outputs, 1, stride) if changes else None

  def __call__(self, x: jax.Array) -> jax.Array:
    """Feature maps (n, h / stride, w / stride, outputs) of (n, h, w, inputs)."""
    shortcut = x if self.shortcut is None else self.shortcut(x)
    return nnx.relu(self.second(nnx.relu(self.first(x))) + shortcut)


class ResNet18(nnx.Module):
  """ResNet-18 whose first convolution has size 3 and stride 1, the CIFAR variant.

  At full width 11,173,962 parameters, of which 11,164,352 in kernels. Its arguments are
  those of `VGG16`.
  """

  STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))

  def __init__(self, channels: Scale, layer: Make, dense: Make):
    inputs = channels(self.STAGES[0][0])
    self.base = layer(3, inputs)
    blocks = []
    for base, stride in self.STAGES:
      outputs = channels(base)
      blocks += [
        Block(inputs, outputs, stride, layer),
        Block(outputs, outputs, 1, layer),
      ]
      inputs = outputs
    self.blocks = nnx.List(blocks)
    self.out = dense(inputs, CLASSES)

  def __call__(self, x: jax.Array) -> jax.Array:
    """Logits (n, 10), float32, of normalised images (n, 32, 32, 3)."""
    x = nnx.relu(self.base(x))
    for block in self.blocks:
      x = block(x)
    return self.out(jnp.mean(x, axis=(1, 2))).astype(jnp.float32)


def create(
  network: Literal["vgg16", "resnet18"],
  *,
  width: float,
  seed: int,
  precision: str = "float32",
  momentum: float = 0.9,
) -> nnx.Module:
  """A network with its initial weights, a function of the seed alone.

  Args:
    network: which.
    width: factor of the number of channels.
    seed: of the weights.
    precision: dtype of the computation; parameters and statistics are float32.
    momentum: of the running statistics of batch normalisation; 0 keeps those of the
      last batch.
  """
  kind = {"vgg16": VGG16, "resnet18": ResNet18}[network]
  shared: Any = {"dtype": jnp.dtype(precision), "rngs": nnx.Rngs(params=seed)}
  return kind(
    lambda base: max(1, round(base * width)),
    functools.partial(ConvNorm, momentum=momentum, **shared),
    functools.partial(nnx.Linear, **shared),
  )
