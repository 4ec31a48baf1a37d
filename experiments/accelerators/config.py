"""What is compiled."""

import dataclasses
from typing import Literal

from experiments.accelerators import updates

Platform = Literal["tpu", "cuda"]


@dataclasses.dataclass(frozen=True)
class Config:
  """The updates that are compiled, and for what."""

  platform: Platform = "tpu"
  """Whose compiler; each is in an environment of its own."""
  all_for: tuple[str, ...] = ("v5e", "v5e:2x2")
  """Names of targets for which every update is compiled."""
  some_for: tuple[str, ...] = ("v5p", "v6e", "v5e:16x16")
  """Names of targets for which the promised updates are."""
  dtypes: tuple[str, ...] = ("float32", "bfloat16")
  """Of the weights and gradients."""
  subjects: tuple[str, ...] = tuple(updates.SUBJECTS)
  """Names of the updates."""
  side: int = 8192
  """Each chip has a matrix of so many rows and columns: too large for what a TPU keeps
  on the chip, into which the compiler would copy it first."""


CUDA = Config("cuda", all_for=("H100",), some_for=("A100", "RTX 4090"))
QUICK = {
  "tpu": Config(
    all_for=(),
    some_for=("v5e", "v5e:2x2"),
    dtypes=("float32",),
    subjects=("sgd", *updates.PROMISED),
  ),
  "cuda": Config(
    "cuda",
    all_for=(),
    some_for=("H100",),
    dtypes=("float32",),
    subjects=("sgd", *updates.PROMISED),
  ),
}
