"""A decoder that predicts the next character, in Flax NNX."""

from flax import nnx
import jax
import jax.numpy as jnp

# The size of a head.
_HEAD = 32
_SMALL = nnx.initializers.normal(0.08)


class Block(nnx.Module):
  """Causal attention and an MLP with ReLU, each added to its input, norms first.

  Args:
    width: of the input and the output.
    heads: of the attention, of size 32.
    hidden: neurons of the MLP.
    scale: variance of the weights that lead back to the input, times their number.
    rngs: of the weights.
  """

  def __init__(
    self, width: int, heads: int, hidden: int, scale: float, *, rngs: nnx.Rngs
  ):
    back = nnx.initializers.variance_scaling(scale, "fan_in", "truncated_normal")
    self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
    self.attention = nnx.MultiHeadAttention(
      heads,
      width,
      qkv_features=_HEAD * heads,
      use_bias=False,
      decode=False,
      out_kernel_init=back,
      rngs=rngs,
    )
    self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
    self.up = nnx.Linear(width, hidden, rngs=rngs)
    self.down = nnx.Linear(hidden, width, kernel_init=back, rngs=rngs)

  def __call__(self, x: jax.Array) -> jax.Array:
    """The same shape as x, (n, length, width)."""
    mask = nnx.make_causal_mask(x[..., 0])
    x = x + self.attention(self.attention_norm(x), mask=mask)
    return x + self.down(nnx.relu(self.up(self.mlp_norm(x))))


class Transformer(nnx.Module):
  """Predicts the next character at each place of a piece of text.

  The embedding of the characters is the last layer, too. So `rvsm_jax.kernels` selects
  the weights of attention and MLPs, and none besides: embeddings and LayerNorms, a
  thirtieth of the weights, stay dense, as in other work on pruning transformers.

  Args:
    characters: how many different ones there are.
    context: the longest piece.
    width: of what a block takes and gives.
    heads: of each attention, of size 32.
    hidden: neurons of each MLP.
    blocks: how many.
    rngs: of the weights.
  """

  def __init__(
    self,
    characters: int,
    context: int,
    *,
    width: int = 160,
    heads: int = 5,
    hidden: int = 640,
    blocks: int = 3,
    rngs: nnx.Rngs,
  ):
    self.character = nnx.Embed(characters, width, embedding_init=_SMALL, rngs=rngs)
    self.place = nnx.Embed(context, width, embedding_init=_SMALL, rngs=rngs)
    self.blocks = nnx.List(
      [Block(width, heads, hidden, 0.1 / blocks, rngs=rngs) for _ in range(blocks)]
    )
    self.norm = nnx.LayerNorm(width, rngs=rngs)

  def __call__(self, codes: jax.Array) -> jax.Array:
    """Logits (n, length, characters) of integers (n, length)."""
    x = self.character(codes) + self.place(jnp.arange(codes.shape[1]))
    for block in self.blocks:
      x = block(x)
    return self.character.attend(self.norm(x))
