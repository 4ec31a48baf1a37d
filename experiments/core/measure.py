"""What is measured on a trained network, under the same names everywhere."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np
from numpy.typing import NDArray
import optax

import rvsm_jax

EXPONENTS = (2, 3, 4, 5, 10)

_FLOOR = 1e-10
_MOST_IN_GAP, _LEAST_ABOVE = 1e-2, 1e-4

Mask = Callable[[Any], Any]
Networks = Mapping[str, Any]


class Gap(NamedTuple):
  """An interval of magnitudes, a decade or longer, with few weights.

  Attributes:
    low: the largest magnitude below it.
    high: the smallest magnitude above it.
    cut: its middle on a logarithmic scale; weights up to it are cut.
    share: of the weights that are inside.
  """

  low: float
  high: float
  cut: float
  share: float


def find_gap(weights: NDArray[np.floating]) -> Gap | None:
  """The gap of a layer between the weights that do not matter and those that do.

  It is the emptiest decade: of all (m, 10 m] with at least half of the weights
  below and at least 0.01% above, that with the fewest weights; None if those are more
  than 1%. Magnitudes below 1e-10, the finest scale of Xue & Xin, count as 1e-10.
  """
  magnitudes = np.sort(np.maximum(np.abs(weights, dtype=np.float64).ravel(), _FLOOR))
  size = magnitudes.size
  lows = np.arange((size - 1) // 2, size)
  # The first weight above each decade.
  highs = np.searchsorted(magnitudes, 10 * magnitudes[lows], side="right")
  enough = size - highs >= max(1, _LEAST_ABOVE * size)
  if not enough.any():
    return None
  inside = np.where(enough, highs - lows - 1, size)
  emptiest = int(np.argmin(inside))
  share = float(inside[emptiest] / size)
  if share > _MOST_IN_GAP:
    return None
  low, high = magnitudes[lows[emptiest]], magnitudes[highs[emptiest]]
  return Gap(float(low), float(high), float(np.sqrt(low * high)), share)


def selected(params: Any, mask: Mask = rvsm_jax.kernels) -> dict[str, jax.Array]:
  """The leaves that a mask selects, by path, in depth: what is made sparse."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  chosen = jax.tree.leaves(mask(params))
  return {
    jax.tree_util.keystr(path, simple=True, separator="/").removesuffix("/value"): leaf
    for (path, leaf), pick in zip(leaves, chosen, strict=True)
    if pick
  }


def zeros(params: Any, mask: Mask = rvsm_jax.kernels) -> jax.Array:
  """The share of exact zeros among the weights that a mask selects."""
  return rvsm_jax.sparsity(selected(params, mask))


def cut(params: Any, threshold: float, mask: Mask = rvsm_jax.kernels) -> Any:
  """The params with 0 for selected weights of magnitudes up to `threshold`."""
  return jax.tree.map(
    lambda w, pick: jnp.where(jnp.abs(w) > threshold, w, 0) if pick else w,
    params,
    mask(params),
  )


def with_share(params: Any, share: ArrayLike, mask: Mask = rvsm_jax.kernels) -> Any:
  """The params with at least that share of zeros: where there are fewer, it is cut.

  A method that ends with fewer zeros than it should would be at an advantage.
  """
  cut = rvsm_jax.magnitude_pruning(share, mask=mask)
  nothing = jax.tree.map(jnp.zeros_like, params)
  updates, _ = cut.update(nothing, cut.init(params), params)
  return optax.apply_updates(params, updates)


def below(weights: NDArray[np.floating]) -> dict[str, float]:
  """The shares of weights below 10^-n."""
  shares = rvsm_jax.sparsity_by_scale(weights, EXPONENTS)
  return {str(n): float(share) for n, share in zip(EXPONENTS, shares, strict=True)}


def of_each(networks: Networks, function: Callable[[Any], Any]) -> dict[str, Any]:
  """A function of each network's params; None stands for what there is not."""
  return {k: None if p is None else function(p) for k, p in networks.items()}


def final(
  params: Any,
  sparse: Any | None,
  evaluate: Callable[[Any], tuple[float, float]],
  mask: Mask = rvsm_jax.kernels,
) -> tuple[Networks, dict[str, Any]]:
  """The networks that come out of a training, and what is reported of all of them.

  Args:
    params: the weights w.
    sparse: the same with u in place of w; None if there is no u.
    evaluate: from params to loss and accuracy.
    mask: which weights are made sparse.

  Returns:
    The params of "w", "u", and "w_cut", which is w with the selected weights below
    the middle of their gap set to zero; None stands for what there is not. And of
    them "accuracy", "loss", "zeros", the share of exact zeros in the selected weights,
    and "zeros_all", in all; the numbers of selected "weights" and of "params"; "gap",
    see `Gap`; "w_below", see `below`; "layers", the name, size and zeros of each
    selected leaf of u, or else of w.
  """
  flat = np.concatenate([np.ravel(leaf) for leaf in selected(params, mask).values()])
  gap = find_gap(flat)
  networks = {"w": params, "u": sparse, "w_cut": gap and cut(params, gap.cut, mask)}
  found = of_each(networks, evaluate)
  return networks, {
    "weights": flat.size,
    "params": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "accuracy": of_each(found, lambda pair: pair[1]),
    "loss": of_each(found, lambda pair: pair[0]),
    "zeros": of_each(networks, lambda p: float(zeros(p, mask))),
    "zeros_all": of_each(networks, lambda p: float(rvsm_jax.sparsity(p))),
    "gap": gap and gap._asdict(),
    "w_below": below(flat),
    "layers": [
      {"name": name, "size": leaf.size, "zeros": float(rvsm_jax.sparsity(leaf))}
      for name, leaf in selected(params if sparse is None else sparse, mask).items()
    ],
  }


def sparse_name(final: Mapping[str, Any]) -> str:
  """Which network of a result is the sparse one: u, or w where there is no u."""
  return "w" if final["zeros"]["u"] is None else "u"
