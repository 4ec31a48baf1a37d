"""The numbers of Ma et al. (2019), as printed in Tables 2 and 3."""

from typing import NamedTuple

from experiments.integrated import config as configs


class Cell(NamedTuple):
  """Means, and standard deviations over three trainings, of Table 2."""

  accuracy: tuple[float, float]
  flops: tuple[float, float]
  parameters: tuple[float, float]


class Layer(NamedTuple):
  """A row of Table 3: of the 128 neurons, and of their connections."""

  neurons_removed: int
  zeros: float


_SDD = {
  "l1": Cell((0.9833, 0.0013), (0.4085, 0.0429), (0.4053, 0.0432)),
  "cges": Cell((0.9909, 0.0034), (0.3072, 0.0619), (0.3035, 0.0622)),
  "itl": Cell((0.9897, 0.0011), (0.1584, 0.0494), (0.1608, 0.0480)),
}

TABLE_2 = {
  "mnist": {
    "l1": Cell((0.9749, 0.0018), (0.6859, 0.0215), (0.2851, 0.0252)),
    "sgl": Cell((0.9882, 0.0007), (0.8134, 0.0134), (0.4982, 0.0361)),
    "cges": Cell((0.9769, 0.0008), (0.6633, 0.0181), (0.2032, 0.0295)),
    "itl": Cell((0.9732, 0.0007), (0.1742, 0.0006), (0.1601, 0.0029)),
  },
  "fashion_mnist": {
    "l1": Cell((0.8947, 0.0009), (0.7056, 0.0034), (0.2323, 0.0092)),
    "sgl": Cell((0.8927, 0.0006), (0.7038, 0.0015), (0.2275, 0.0039)),
    "cges": Cell((0.8804, 0.0233), (0.7446, 0.0021), (0.3362, 0.0043)),
    "itl": Cell((0.8873, 0.0026), (0.3097, 0.0099), (0.3102, 0.0076)),
  },
  "sdd": _SDD,
  "sdd_subset": _SDD,
  "pendigits": {
    "l1": Cell((0.9715, 0.0014), (0.4414, 0.0265), (0.4296, 0.0241)),
    "sgl": Cell((0.9739, 0.0021), (0.7220, 0.0038), (0.7241, 0.0034)),
    "cges": Cell((0.9732, 0.0015), (0.6027, 0.0075), (0.5948, 0.0114)),
    "itl": Cell((0.9745, 0.0013), (0.3301, 0.0089), (0.3181, 0.0080)),
  },
  "cifar10": {
    "l1": Cell((0.7716, 0.0052), (0.8827, 0.0007), (0.5104, 0.0041)),
    "sgl": Cell((0.7667, 0.0006), (0.6817, 0.0076), (0.8076, 0.0127)),
    "cges": Cell((0.7775, 0.0018), (0.8210, 0.0180), (0.7310, 0.0035)),
    "itl": Cell((0.7797, 0.0052), (0.2928, 0.0121), (0.2655, 0.0076)),
  },
}

# Of l1, SGL, CGES and integrated TL1, over the five data sets. SGL, which has no
# numbers for SDD, is last there; the printed ranks of l1 and SGL in accuracy do not
# follow from the table then.
AVERAGE_RANKS = {
  "accuracy": (3.0, 2.4, 2.4, 2.2),
  "flops": (3.0, 3.2, 2.8, 1.0),
  "parameters": (2.4, 3.4, 2.8, 1.4),
}

TABLE_3 = {
  "group": Layer(64, 0.5160),
  "tl1": Layer(0, 0.6125),
  "itl": Layer(12, 0.7688),
}


def budget(problem: configs.Problem) -> tuple[float, float] | None:
  """FLOP and parameter ratio that the paper prints for integrated TL1.

  None for a data set that the paper lacks, or of which only a part is there.
  """
  if problem.name not in TABLE_2 or problem.name == "sdd_subset" or problem.train_size:
    return None
  printed = TABLE_2[problem.name]["itl"]
  return printed.flops[0], printed.parameters[0]
