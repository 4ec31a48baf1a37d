"""A decoder transformer as pure functions, its weights placed on a mesh of devices.

RMS norms, rotary positions, gated SiLU; the layers are stacked in one array for each
kind of weight, and scanned over. Weights are float32 and split twice: along "data",
gathered to be used (FSDP), and along "model", never gathered (tensor parallel).
Products are in bfloat16; activations inside a layer are computed again in the backward
pass.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np


@dataclasses.dataclass(frozen=True)
class Shape:
  """The size of a transformer and of its batch."""

  vocabulary: int = 32_000
  width: int = 4096
  hidden: int = 11_008
  heads: int = 32
  layers: int = 32
  length: int = 2048
  batch: int = 128
  scan: bool = True
  """Over the layers; otherwise they are written out, for estimates of time."""
  dtype: str = "bfloat16"
  """Of products."""


TOY = Shape(
  vocabulary=64,
  width=32,
  hidden=64,
  heads=4,
  layers=2,
  length=16,
  batch=8,
  dtype="float32",
)
_INTO = P(None, "data", "model")
_OUT_OF = P(None, "model", "data")


def weights(shape: Shape) -> dict[str, Any]:
  """The shape and placement of each weight, as pairs."""
  layers, width, hidden = shape.layers, shape.width, shape.hidden
  into = ((layers, width, width), _INTO)
  kernels = {
    "query": into,
    "key": into,
    "value": into,
    "out": ((layers, width, width), _OUT_OF),
    "gate": ((layers, width, hidden), _INTO),
    "up": ((layers, width, hidden), _INTO),
    "down": ((layers, hidden, width), _OUT_OF),
  }
  norms = {name: {"scale": ((layers, width), P())} for name in ("attend", "feed")}
  return {
    "embedding": ((shape.vocabulary, width), P("model", "data")),
    "layers": {name: {"kernel": pair} for name, pair in kernels.items()} | norms,
    "norm": {"scale": ((width,), P())},
    "logits": {"kernel": ((width, shape.vocabulary), P("data", "model"))},
  }


def _is_pair(x: Any) -> bool:
  return isinstance(x, tuple)


def count(shape: Shape, part: str = "") -> int:
  """The number of weights, of all or of one part; norms do not count as kernels."""
  found = weights(shape)[part] if part else weights(shape)
  pairs = jax.tree.leaves(found, is_leaf=_is_pair)
  least = 3 if part == "layers" else 1
  return sum(math.prod(size) for size, _ in pairs if len(size) >= least)


def placed(shape: Shape, mesh: Mesh) -> Any:
  """The weights without numbers, for a mesh of the axes "data" and "model"."""

  def one(pair: tuple[tuple[int, ...], P]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
      pair[0], jnp.float32, sharding=NamedSharding(mesh, pair[1])
    )

  return jax.tree.map(one, weights(shape), is_leaf=_is_pair)


def tokens(shape: Shape, mesh: Mesh) -> jax.ShapeDtypeStruct:
  """A batch without numbers."""
  return jax.ShapeDtypeStruct(
    (shape.batch, shape.length), jnp.int32, sharding=NamedSharding(mesh, P("data"))
  )


def draw(shape: Shape, mesh: Mesh, seed: int) -> tuple[Any, jax.Array]:
  """Weights and a batch, the same on every mesh."""
  rng = np.random.default_rng(seed)

  def place(array: np.ndarray, like: jax.ShapeDtypeStruct) -> jax.Array:
    return jax.make_array_from_callback(array.shape, like.sharding, lambda i: array[i])

  def one(like: jax.ShapeDtypeStruct) -> jax.Array:
    if len(like.shape) < 2 or like.shape == (shape.layers, shape.width):
      return place(np.ones(like.shape, np.float32), like)
    scale = 1 / math.sqrt(like.shape[-2])
    return place(rng.normal(0, scale, like.shape).astype(np.float32), like)

  params = jax.tree.map(one, placed(shape, mesh))
  batch = tokens(shape, mesh)
  numbers = rng.integers(0, shape.vocabulary, batch.shape).astype(np.int32)
  return params, place(numbers, batch)


def loss(params: Any, batch: jax.Array, shape: Shape, mesh: Mesh) -> jax.Array:
  """Mean cross-entropy of the next token."""

  def spread(x: jax.Array, *axes: str | None) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, P("data", *axes)))

  def layer(x: jax.Array, own: Any) -> jax.Array:
    kernel = {
      name: leaf["kernel"].astype(x.dtype)
      for name, leaf in own.items()
      if "kernel" in leaf
    }
    y = _normed(x, own["attend"]["scale"])
    heads = (*x.shape[:-1], shape.heads, shape.width // shape.heads)
    q, k, v = (
      spread((y @ kernel[name]).reshape(heads), None, "model", None)
      for name in ("query", "key", "value")
    )
    mixed = _attention(_rotated(q), _rotated(k), v).reshape(x.shape)
    x = spread(x + mixed @ kernel["out"], None, None)
    y = _normed(x, own["feed"]["scale"])
    y = jax.nn.silu(y @ kernel["gate"]) * (y @ kernel["up"])
    return spread(x + spread(y, None, "model") @ kernel["down"], None, None)

  x = params["embedding"].astype(shape.dtype)[batch]
  x = spread(x, None, None)
  layer = jax.checkpoint(layer)
  if shape.scan:
    x, _ = jax.lax.scan(lambda x, own: (layer(x, own), None), x, params["layers"])
  else:
    for i in range(shape.layers):
      x = layer(x, jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"]))
  x = _normed(x, params["norm"]["scale"])
  logits = (x @ params["logits"]["kernel"].astype(x.dtype)).astype(jnp.float32)
  logits = spread(logits, None, "model")[:, :-1]
  target = jax.nn.one_hot(batch[:, 1:], shape.vocabulary)
  chosen = jnp.sum(logits * target, axis=-1)
  return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - chosen)


def _normed(x: jax.Array, scale: jax.Array) -> jax.Array:
  wide = x.astype(jnp.float32)
  wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
  return (wide * scale).astype(x.dtype)


def _rotated(x: jax.Array) -> jax.Array:
  """Queries or keys (batch, position, head, channel), turned by their position."""
  half = x.shape[-1] // 2
  angle = np.outer(np.arange(x.shape[1]), 10_000.0 ** (-np.arange(half) / half))
  cos, sin = (
    jnp.asarray(wave, x.dtype)[:, None] for wave in (np.cos(angle), np.sin(angle))
  )
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def _attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
  scores = jnp.einsum("bqhc,bkhc->bhqk", q, k).astype(jnp.float32)
  past = np.tril(np.ones(scores.shape[-2:], bool))
  scores = jnp.where(past, scores / math.sqrt(q.shape[-1]), -jnp.inf)
  return jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores).astype(v.dtype), v)
