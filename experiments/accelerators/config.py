"""What is compiled."""

import dataclasses
from typing import Any, Literal

from experiments.accelerators import scale, transformer, updates

Platform = Literal["tpu", "cuda"]


@dataclasses.dataclass(frozen=True)
class Config:
  """The updates that are compiled, and for what."""

  platform: Platform = "tpu"
  """Whose compiler; each is in an environment of its own."""
  all_for: tuple[str, ...] = ("v5e:2x2",)
  """Names of targets for which every update is compiled, in the first dtype."""
  some_for: tuple[str, ...] = ("v5e", "v5p", "v6e", "v5e:16x16")
  """Names of targets for which the promised updates are."""
  dtypes: tuple[str, ...] = ("float32", "bfloat16")
  """Of the weights and gradients."""
  subjects: tuple[str, ...] = tuple(updates.SUBJECTS)
  """Names of the updates."""
  side: int = 8192
  """Each chip has a matrix of so many rows and columns: too large for what a TPU keeps
  on the chip, into which the compiler would copy it first."""


CUDA = Config("cuda", all_for=("H100",), some_for=("A100", "RTX 4090"))
_FEW: dict[str, Any] = {
  "all_for": (),
  "dtypes": ("float32",),
  "subjects": ("sgd", *updates.PROMISED),
}
QUICK = {
  "tpu": dataclasses.replace(Config(), some_for=("v5e", "v5e:2x2"), **_FEW),
  "cuda": dataclasses.replace(CUDA, some_for=("H100",), **_FEW),
}


@dataclasses.dataclass(frozen=True)
class Scale:
  """A training step of a transformer on many chips."""

  target: str = "v5e:16x16"
  data: int = 16
  """Chips along which the batch is split, and weights that are gathered to be used."""
  model: int = 16
  """Chips along which heads and hidden units are split."""
  shape: transformer.Shape = dataclasses.field(default_factory=transformer.Shape)
  subjects: tuple[str, ...] = tuple(scale.SUBJECTS)
  """Names of the optimizers whose updates are compiled alone."""
  whole: tuple[str, ...] = tuple(scale.SUBJECTS)
  """Names of those whose whole steps are, which takes minutes each."""


QUICK_SCALE = Scale("v5e:2x2", 2, 2, transformer.TOY, ("adamw", "rvsm l0"), ("adamw",))
