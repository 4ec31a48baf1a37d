"""What is measured on a trained network."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from experiments.curves import config as configs
import rvsm_jax

EXPONENTS = (2, 3, 4, 5, 10)

_FLOOR = 1e-10
_MOST_IN_GAP, _LEAST_ABOVE = 1e-2, 1e-4
_DECADE_BINS = np.linspace(-12.0, 1.0, 105)


def layer(params: Any) -> jax.Array:
  """The weights that are made sparse, (5408, 128)."""
  return params["dense"]["kernel"][...]


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
  below and at least 0.01% above, that with the fewest weights. Magnitudes below
  1e-10, the finest scale of Xue & Xin, count as 1e-10.

  Args:
    weights: any shape.

  Returns:
    The gap, or None if the emptiest decade has more than 1% of the weights.
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


def final(
  initial: Any,
  params: Any,
  sparse: Any | None,
  evaluate: Callable[[Any], tuple[float, float]],
  evaluate_unseen: Callable[[Any], tuple[float, float]] | None = None,
) -> dict[str, Any]:
  """All that is reported of a trained network.

  Args:
    initial: the params before training.
    params: the params w.
    sparse: the params with u in place of w; None if there is no u.
    evaluate: from params to loss and accuracy.
    evaluate_unseen: the same on letters of a font that training never saw.

  Returns:
    For "w", "u" and "w_cut", w with the weights below the middle of
    the gap set to zero:
    "accuracy", "loss", and "zeros", the share of exact zeros in the layer. None
    stands for what there is not.
    "unseen_font": the "accuracy" of the same three in a font never seen.
    "gap": `Gap`. "w_below": share of w below 10^-n, "w_below_normalized": the same
    of w divided by its l2 norm. "sign_changes": for each convolution the number and
    share of weights whose sign differs from the initial one. "histogram": counts.
  """
  w = np.asarray(layer(params))
  gap = find_gap(w)
  networks = {"w": params, "u": sparse, "w_cut": gap and _cut(params, gap.cut)}

  def on(
    evaluate: Callable[[Any], tuple[float, float]],
  ) -> dict[str, tuple[float, float] | None]:
    return {k: None if p is None else evaluate(p) for k, p in networks.items()}

  results = on(evaluate)
  normalized = w / np.linalg.norm(w)
  return {
    "weights": w.size,
    "accuracy": _accuracies(results),
    "loss": {k: None if r is None else r[0] for k, r in results.items()},
    "zeros": {
      k: None if network is None else float(rvsm_jax.sparsity(layer(network)))
      for k, network in networks.items()
    },
    "unseen_font": None
    if evaluate_unseen is None
    else {"accuracy": _accuracies(on(evaluate_unseen))},
    "gap": None if gap is None else gap._asdict(),
    "w_below": _below(w),
    "w_below_normalized": _below(normalized),
    "sign_changes": {
      name: _sign_changes(initial[name]["kernel"][...], params[name]["kernel"][...])
      for name in ("conv1", "conv2", "conv3")
    },
    "histogram": {
      "log10_edges": _DECADE_BINS,
      **{
        name: _histogram(np.asarray(layer(network)))
        for name, network in {"initial": initial, "w": params, "u": sparse}.items()
        if network is not None
      },
    },
  }


def temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
  """The t >= 1 for which softmax(logits / t) fits images not trained on best.

  It minimises the cross entropy (Guo et al. 2017), and takes back the certainty that
  training to a loss of zero leaves.

  Args:
    logits: (n, classes).
    labels: (n,).
  """

  def loss(inverse: float) -> float:
    log_p = special.log_softmax(inverse * np.asarray(logits, np.float64), axis=-1)
    return -float(np.mean(np.take_along_axis(log_p, labels[:, None], axis=-1)))

  best = optimize.minimize_scalar(loss, bounds=(1e-3, 1.0), method="bounded").x
  # The search approaches, but never tries, the end of the interval.
  return 1.0 if loss(1.0) <= loss(best) else float(1 / best)


def _accuracies(
  results: dict[str, tuple[float, float] | None],
) -> dict[str, float | None]:
  return {name: None if one is None else one[1] for name, one in results.items()}


def _cut(params: Any, threshold: float) -> Any:
  """The params with 0 for the layer's weights of magnitudes up to `threshold`."""
  picked = rvsm_jax.by_path(configs.SPARSE_LAYER)(params)
  return jax.tree.map(
    lambda w, pick: jnp.where(jnp.abs(w) > threshold, w, 0) if pick else w,
    params,
    picked,
  )


def _below(weights: NDArray[np.floating]) -> dict[str, float]:
  shares = rvsm_jax.sparsity_by_scale(weights, EXPONENTS)
  return {str(n): float(share) for n, share in zip(EXPONENTS, shares, strict=True)}


def _sign_changes(before: jax.Array, after: jax.Array) -> dict[str, float]:
  count = int(rvsm_jax.sign_changes(before, after))
  return {"count": count, "share": count / before.size}


def _histogram(weights: NDArray[np.floating]) -> dict[str, Any]:
  """Exact zeros, and counts by magnitude; the smallest count in the first bin."""
  magnitudes = np.abs(weights[weights != 0], dtype=np.float64)
  logs = np.maximum(np.log10(magnitudes), _DECADE_BINS[0])
  counts = np.histogram(logs, _DECADE_BINS)[0]
  return {"zero": int(np.sum(weights == 0)), "counts": counts.tolist()}
