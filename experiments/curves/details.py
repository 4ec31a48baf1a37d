"""What is measured on the dense layer of a trained network."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special

from experiments.core import measure
from experiments.curves.config import SPARSE
import rvsm_jax

_DECADE_BINS = np.linspace(-12.0, 1.0, 105)


def layer(params: Any) -> jax.Array:
  """The weights that are made sparse, (5408, 128)."""
  return params["dense"]["kernel"][...]


def final(
  initial: Any,
  params: Any,
  sparse: Any | None,
  evaluate: Callable[[Any], tuple[float, float]],
  evaluate_unseen: Callable[[Any], tuple[float, float]] | None = None,
) -> dict[str, Any]:
  """All that is reported of a trained network.

  Returns:
    What `measure.final` has, of the dense layer. "unseen_font": the "accuracy" in a
    font never seen. "w_below_normalized": as "w_below", of w divided by its l2 norm.
    "sign_changes": for each convolution the number and share of weights whose sign
    differs from the initial one. "histogram": counts.
  """
  networks, found = measure.final(params, sparse, evaluate, SPARSE)
  w = np.asarray(layer(params))
  drawn = {"initial": initial, "w": params, "u": sparse}
  return {
    **found,
    "unseen_font": evaluate_unseen
    and {"accuracy": measure.of_each(networks, lambda p: evaluate_unseen(p)[1])},
    "w_below_normalized": measure.below(w / np.linalg.norm(w)),
    "sign_changes": {
      name: _sign_changes(initial[name]["kernel"][...], params[name]["kernel"][...])
      for name in ("conv1", "conv2", "conv3")
    },
    "histogram": {
      "log10_edges": _DECADE_BINS,
      **{
        name: _histogram(np.asarray(layer(network)))
        for name, network in drawn.items()
        if network is not None
      },
    },
  }


def temperature(logits: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
  """The t >= 1 for which softmax(logits / t) fits images not trained on best.

  It minimises the cross entropy (Guo et al. 2017), and takes back the certainty that
  training to a loss of zero leaves.
  """

  def loss(inverse: float) -> float:
    log_p = special.log_softmax(inverse * np.asarray(logits, np.float64), axis=-1)
    return -float(np.mean(np.take_along_axis(log_p, labels[:, None], axis=-1)))

  best = optimize.minimize_scalar(loss, bounds=(1e-3, 1.0), method="bounded").x
  # The search approaches, but never tries, the end of the interval.
  return 1.0 if loss(1.0) <= loss(best) else float(1 / best)


def _sign_changes(before: jax.Array, after: jax.Array) -> dict[str, float]:
  count = int(rvsm_jax.sign_changes(before, after))
  return {"count": count, "share": count / before.size}


def _histogram(weights: NDArray[np.floating]) -> dict[str, Any]:
  """Exact zeros, and counts by magnitude; the smallest count in the first bin."""
  magnitudes = np.abs(weights[weights != 0], dtype=np.float64)
  logs = np.maximum(np.log10(magnitudes), _DECADE_BINS[0])
  counts = np.histogram(logs, _DECADE_BINS)[0]
  return {"zero": int(np.sum(weights == 0)), "counts": counts.tolist()}
