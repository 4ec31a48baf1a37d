"""Smaller Flax NNX models; imports Flax."""

from collections.abc import Callable, Sequence
import statistics
import time
from typing import Any

from flax import nnx
import jax
import numpy as np

from rvsm_jax import compaction
from rvsm_jax.compaction import _plan
from rvsm_jax.compaction import _trace as tracing


def compact(
  model: Any,
  inputs: Sequence[Any],
  verify: bool,
  report: Callable[[str], Any] | None,
) -> Any:
  """See :func:`rvsm_jax.compaction.compact`."""
  if not isinstance(model, nnx.Module):
    raise TypeError(
      f"model must be a flax.nnx.Module, got {type(model).__name__}: for params in"
      " other pytrees take `plan` and `apply`."
    )
  abstract = [
    leaf for leaf in jax.tree.leaves(inputs) if isinstance(leaf, jax.ShapeDtypeStruct)
  ]
  if (verify or report) and abstract:
    raise ValueError(
      "inputs must be arrays, since verify and report run the model, got"
      f" {abstract[0]}."
    )
  inference = nnx.clone(model)
  inference.eval()
  graph, state = nnx.split(inference)

  def retrace(shapes: Sequence[tuple[int, ...]]) -> tracing.Program:
    smaller = _resized(graph, compaction.with_shapes(state, shapes))
    graph_after, state_after = nnx.split(smaller)
    return tracing.trace(_function(graph_after), state_after, inputs)

  plan = _plan.make(_function(graph), state, inputs, retrace, may_be_rebuilt=False)
  graph, state = nnx.split(model)
  smaller = _resized(graph, compaction.apply(plan, state))
  after = nnx.clone(smaller)
  after.eval()
  runs = [_compiled(network, inputs) for network in (inference, after)]
  if verify:
    _compare(*(run() for run in runs))
  if report:
    before, later = (1e3 * seconds for seconds in _seconds(*runs))
    report(
      f"{plan}\nmilliseconds for these inputs: {before:.3g} -> {later:.3g}"
      f" ({later / before:.1%})"
    )
  return smaller


def _function(graph: Any) -> Callable[..., Any]:
  return lambda state, *inputs: nnx.merge(graph, state)(*inputs)


def _resized(graph: Any, state: Any) -> Any:
  """The model with this state, and the sizes of its layers set accordingly."""
  model = nnx.merge(graph, state)
  for _, module in nnx.iter_modules(model):
    for kind, resize in _RESIZE.items():
      if isinstance(module, kind):
        resize(module)
  return model


def _linear(module: Any) -> None:
  module.in_features, module.out_features = module.kernel.shape


def _linear_general(module: Any) -> None:
  batch, ins = len(module.batch_axis), len(module.in_features)
  shape = module.kernel.shape[batch:]
  module.in_features, module.out_features = shape[:ins], shape[ins:]


def _conv(module: Any) -> None:
  *_, ins, outs = module.kernel_shape = module.kernel.shape
  if module.feature_group_count > 1:
    module.feature_group_count = (
      module.feature_group_count * outs // module.out_features
    )
  module.in_features, module.out_features = ins * module.feature_group_count, outs


def _conv_transpose(module: Any) -> None:
  *_, ins, outs = module.kernel_shape = module.kernel.shape
  if module.transpose_kernel:
    ins, outs = outs, ins
  module.in_features, module.out_features = ins, outs


def _einsum(module: Any) -> None:
  module.kernel_shape = module.kernel.shape
  if module.bias is not None:
    module.bias_shape = module.bias.shape


def _embed(module: Any) -> None:
  module.num_embeddings, module.features = module.embedding.shape


def _norm(module: Any) -> None:
  for name in ("scale", "bias", "mean"):
    if (variable := getattr(module, name, None)) is not None:
      module.num_features = variable.shape[-1]


def _group_norm(module: Any) -> None:
  _norm(module)
  module.num_groups = module.num_features // module.group_size


def _attention(module: Any) -> None:
  module.in_features, module.num_heads, module.head_dim = module.query.kernel.shape
  module.in_kv_features, module.num_kv_heads, _ = module.key.kernel.shape
  module.qkv_features = module.num_heads * module.head_dim
  module.out_features = module.out.kernel.shape[-1]


_RESIZE: dict[type, Callable[[Any], None]] = {
  nnx.BatchNorm: _norm,
  nnx.Conv: _conv,
  nnx.ConvTranspose: _conv_transpose,
  nnx.Einsum: _einsum,
  nnx.Embed: _embed,
  nnx.GroupNorm: _group_norm,
  nnx.InstanceNorm: _norm,
  nnx.LayerNorm: _norm,
  nnx.Linear: _linear,
  nnx.LinearGeneral: _linear_general,
  nnx.MultiHeadAttention: _attention,
  nnx.RMSNorm: _norm,
}


def _compiled(model: Any, inputs: Sequence[Any]) -> Callable[[], Any]:
  graph, state = nnx.split(model)
  run = jax.jit(_function(graph))
  return lambda: jax.block_until_ready(run(state, *inputs))


def _seconds(*runs: Callable[[], Any], turns: int = 9) -> list[float]:
  """Medians of the times of calls in turn, compilation not counted."""
  times: list[list[float]] = [[] for _ in runs]
  for _ in range(turns + 1):
    for run, found in zip(runs, times, strict=True):
      start = time.perf_counter()
      run()
      found.append(time.perf_counter() - start)
  return [statistics.median(found[1:]) for found in times]


def _compare(outputs: Any, others: Any) -> None:
  """Raises ValueError unless the outputs of both models are equal to rounding."""
  pairs = [jax.tree.leaves(tree) for tree in (outputs, others)]
  for before, after in zip(*pairs, strict=True):
    rounding = 1e-5
    if jax.numpy.issubdtype(before.dtype, np.inexact):
      rounding = max(rounding, 4 * float(jax.numpy.finfo(before.dtype).eps))
    before, after = (np.asarray(array, np.float64) for array in (before, after))
    error = np.max(np.abs(after - before), initial=0)
    largest = np.max(np.abs(before), initial=0)
    if not error <= rounding * largest:
      raise ValueError(
        f"verify: the outputs of the smaller model differ by {error:.3g}, the largest"
        f" is {largest:.3g}; please report the model."
      )
