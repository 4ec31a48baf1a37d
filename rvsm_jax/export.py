"""Exact export of sparse params: small checkpoints, and sparse matrices.

`from rvsm_jax import export`. :func:`save` and :func:`load` need
`pip install safetensors`.

The format, for other programs. A checkpoint is a file of the `safetensors
<https://github.com/huggingface/safetensors>`_ format, numbers little-endian. The name
of a leaf is the path that leads to it, joined by "/". A leaf stands in the file in the
smallest of three encodings, its entries in row-major order:

- `"dense"`: a tensor of the leaf's name, dtype and shape;
- `"gaps"`: the tensor `NAME#values`, the entries that are not zero, and `NAME#gaps`,
  unsigned integers: for each of them the number of zeros between it and the one before,
  or the start;
- `"bitmask"`: `NAME#values` as above, and `NAME#bitmask`, bytes: entry i is not zero if
  bit `i % 8`, counted from the lowest, of byte `i // 8` is set.

An entry is zero if all its bits are: -0.0 is a value. `__metadata__` has one item,
`"rvsm_jax.export"`, the JSON text of::

  {"version": 1, "sha256": DIGEST, "leaves": {NAME: {
    "dtype": "float32", "shape": [64, 10], "encoding": "gaps", "index": "uint8",
    "sha256": DIGEST}, ...}}

`"index"`, the dtype of the gaps or the bitmask, is left out of a dense leaf. The digest
of a leaf is the SHA-256 of its gaps or bitmask, if any, followed by its values; that of
the file is the SHA-256 of the JSON text of `"leaves"` with sorted keys, as `json.dumps`
writes it. Both are in hexadecimal.
"""

from collections.abc import Mapping
import hashlib
import json
import os
import pathlib
from typing import Any

import jax
from jax.experimental import sparse
import jax.numpy as jnp
from jax.typing import ArrayLike
import numpy as np
import optax

from rvsm_jax import _masks, _validate

_KEY = "rvsm_jax.export"
_VERSION = 1
# What one more tensor costs in the header of a file, about.
_ENTRY_BYTES = 100
_TENSORS = {
  "dense": ("",),
  "gaps": ("#gaps", "#values"),
  "bitmask": ("#bitmask", "#values"),
}
_DTYPES = (
  *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
  *("float16", "bfloat16", "float32", "float64", "complex64"),
  *("float8_e4m3fn", "float8_e5m2"),
)


def save(path: str | os.PathLike[str], params: optax.Params) -> None:
  """Saves params to a file; of sparse leaves, only the entries that are not zero.

  Each leaf takes the smallest of the encodings in the module's docstring, and
  :func:`load` restores the same bits, including those of -0.0 and NaN. The file is
  either complete or absent, even if the process is killed; it replaces one that exists.

  Args:
    path: the file, by convention `*.safetensors`.
    params: a pytree of arrays, such as what :func:`rvsm_jax.sparse_params` returns,
      or an `nnx.State`. Python numbers are saved as arrays.

  Raises:
    ImportError: without the package safetensors.
    TypeError: for a leaf that is not an array of numbers; the message names it.
    ValueError: if two leaves have the same name.

  Examples:
    >>> import pathlib, tempfile
    >>> import jax.numpy as jnp
    >>> from rvsm_jax import export
    >>> params = {"dense": {"kernel": jnp.eye(512), "bias": jnp.ones(512)}}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...   path = pathlib.Path(folder, "model.safetensors")
    ...   export.save(path, params)
    ...   size, restored = path.stat().st_size, export.load(path, like=params)
    >>> print(size, restored["dense"]["kernel"].nbytes)
    5872 1048576
  """
  _, save_tensors = _safetensors()
  tensors: dict[str, np.ndarray] = {}
  leaves: dict[str, dict[str, Any]] = {}
  for name, leaf in _named(params).items():
    x = _array(name, leaf)
    encoding, parts = _encoded(x)
    leaves[name] = {
      "dtype": x.dtype.name,
      "shape": list(x.shape),
      "encoding": encoding,
      **({} if encoding == "dense" else {"index": parts[0].dtype.name}),
      "sha256": _digest(*parts),
    }
    for suffix, part in zip(_TENSORS[encoding], parts, strict=True):
      key = name + suffix
      if key == "__metadata__" or key in tensors:
        raise ValueError(f"the name {key!r} is taken: rename the leaf {name!r}.")
      tensors[key] = part
  table = {"version": _VERSION, "sha256": _table_digest(leaves), "leaves": leaves}
  _write(pathlib.Path(path), save_tensors(tensors, {_KEY: json.dumps(table)}))


def load(path: str | os.PathLike[str], like: optax.Params | None = None) -> Any:
  """Reads what :func:`save` wrote, bit for bit.

  Args:
    path: of the file.
    like: a pytree of arrays or `jax.ShapeDtypeStruct` with the structure, shapes and
      dtypes of what was saved. Where it has a sharding, the result is a `jax.Array`
      that has it too. None: the names of the leaves are enough.

  Returns:
    A pytree with the structure of `like`; without it a dict from the names of the
    leaves, such as `"dense/kernel"`, to NumPy arrays.

  Raises:
    ImportError: without the package safetensors.
    ValueError: if the file is truncated, altered or none of :func:`save`, or does not
      fit `like`; the message names the file and the leaf.
  """
  path = pathlib.Path(path)
  leaves, tensors = _read(path)
  arrays = {}
  for name, entry in leaves.items():
    parts = [tensors.get(name + suffix) for suffix in _TENSORS[entry["encoding"]]]
    if None in parts or _digest(*parts) != entry["sha256"]:
      raise ValueError(f"{path} is altered: the checksum of the leaf {name!r} differs.")
    arrays[name] = _decoded(entry, *parts)
  if like is None:
    return arrays

  names = _masks.leaf_names(like)
  wanted, found = _named(like).keys(), arrays.keys()
  if wanted != found:
    raise ValueError(
      f"{path} has not the leaves of `like`: it lacks {sorted(wanted - found)} and has"
      f" {sorted(found - wanted)} besides."
    )

  def fitted(at: tuple, leaf: Any) -> Any:
    name = "/".join(names[at])
    x = arrays[name]
    model = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
    if (x.shape, x.dtype) != (model.shape, model.dtype):
      raise ValueError(
        f"{path} has the leaf {name!r} as {x.dtype}{list(x.shape)}, `like` as"
        f" {model.dtype}{list(model.shape)}."
      )
    sharding = getattr(leaf, "sharding", None)
    return x if sharding is None else jax.device_put(x, sharding)

  return jax.tree_util.tree_map_with_path(fitted, like)


def to_bcoo(params: optax.Params, *, min_sparsity: float = 0.99) -> Any:
  """Turns kernels that are sparse enough to be faster into sparse matrices.

  Kernels (in, out) become `jax.experimental.sparse.BCOO`, with `x @ kernel` as before:
  the same sums in another order. Other leaves, convolutions among them, stay as they
  are. Layers of Flax do not take such a kernel: write the forward pass with `@`. The
  indices of 32 bits make it smaller than the dense matrix from 67% zeros on.

  On one core of a CPU (`python -m experiments.export`, experiments/results/export)
  kernels of 692,224 and 1,048,576 weights are faster from 96% zeros on for one
  input, and from 96 to 99% for 64: hence the default. One of 256 x 256 is faster from
  98% on for 64 inputs, but only from 99.5% for one. GPUs were not measured.

  Args:
    params: a pytree of arrays.
    min_sparsity: convert matrices with at least this share of zeros, in [0, 1].

  Returns:
    A pytree like `params`, some of whose leaves are BCOO.

  Raises:
    ValueError: for `min_sparsity` out of range.

  Examples:
    >>> import jax.numpy as jnp
    >>> from rvsm_jax import export
    >>> params = {"kernel": jnp.eye(200), "bias": jnp.ones(200)}
    >>> sparse = export.to_bcoo(params)
    >>> print(sparse["kernel"])
    BCOO(float32[200, 200], nse=200)
    >>> print((jnp.ones(200) @ sparse["kernel"] + sparse["bias"])[:3])
    [2. 2. 2.]
  """
  _validate.check_share("min_sparsity", min_sparsity)

  def convert(leaf: Any) -> Any:
    x = np.asarray(leaf)
    if x.ndim != 2 or not x.size or np.mean(x == 0) < min_sparsity:
      return leaf
    at = np.nonzero(x)
    return sparse.BCOO(
      (jnp.asarray(x[at]), jnp.asarray(np.stack(at, axis=-1), jnp.int32)),
      shape=x.shape,
      indices_sorted=True,
      unique_indices=True,
    )

  return jax.tree.map(convert, params)


def pack_nm(
  x: ArrayLike, n: int, m: int, axis: int = -2
) -> tuple[np.ndarray, np.ndarray]:
  """Packs an array made sparse by :func:`rvsm_jax.nm_sparsity`, such as 2:4.

  Of each m entries that follow each other along the axis it stores n: those that are
  not zero and, if they are fewer, the first of the others. The first array has them in
  their order, so that the axis is n / m as long. The second one has for each of them,
  in the row-major order of the first array, its place among the m, from 0, in
  `ceil(log2(m))` bits; the bits of all stand one after another, from the lowest of each
  place and of each byte. As in checkpoints, an entry is zero if all its bits are.

  This is the logical order: products on a GPU want values and indices interleaved
  further, each in its own way. A small file does not need it: that of :func:`save` is
  as small for 2:4.

  Args:
    x: an array of numbers.
    n: how many of m entries are stored, from 1 to `m`.
    m: size of the blocks, which divides the length of the axis.
    axis: along which entries follow each other.

  Returns:
    The values, with the dtype of `x`, and the bytes of the indices, uint8.

  Raises:
    TypeError: if n, m or axis is not an integer, or `x` not an array of numbers.
    ValueError: if more than n of some m are not zero, or for arguments that do not fit.

  Examples:
    >>> import numpy as np
    >>> from rvsm_jax import export
    >>> x = np.array([[0.0], [3.0], [0.0], [2.0]], np.float32)
    >>> values, indices = export.pack_nm(x, 2, 4)
    >>> print(values.T, indices)
    [[3. 2.]] [13]
    >>> print(export.unpack_nm(values, indices, 2, 4).T)
    [[0. 3. 0. 2.]]
  """
  _validate.check_nm(n, m, axis)
  blocks = np.ascontiguousarray(_validate.blocks(_array("x", x), m, axis))
  empty = blocks.view(f"u{blocks.itemsize}") == 0
  filled = m - np.sum(empty, axis=-1)
  if np.any(filled > n):
    raise ValueError(
      f"x must have at most {n} of {m} entries that are not zero along the axis {axis},"
      f" got {filled.max()}: take rvsm_jax.nm_sparsity({n}, {m}, {axis}).prox(x, 1.0)."
    )
  places = np.sort(np.argsort(empty, axis=-1, kind="stable")[..., :n], axis=-1)
  values, places = (
    np.moveaxis(a.reshape(*a.shape[:-2], -1), -1, axis)
    for a in (np.take_along_axis(blocks, places, axis=-1), places)
  )
  bits = places.reshape(-1, 1) >> np.arange(_place_bits(m)) & 1
  packed = np.packbits(bits.astype(np.uint8).reshape(-1), bitorder="little")
  return np.ascontiguousarray(values), packed


def unpack_nm(
  values: ArrayLike, indices: ArrayLike, n: int, m: int, axis: int = -2
) -> np.ndarray:
  """Unpacks what :func:`pack_nm` has packed, bit for bit.

  Args:
    values: the first array of :func:`pack_nm`.
    indices: the second one.
    n: as there.
    m: as there.
    axis: as there.

  Returns:
    The array.

  Raises:
    TypeError: if n, m or axis is not an integer.
    ValueError: if the arrays do not fit each other or the arguments.
  """
  _validate.check_nm(n, m, axis)
  values, indices = np.asarray(values), np.asarray(indices, np.uint8)
  kept = _validate.blocks(values, n, axis)
  width = _place_bits(m)
  if indices.shape != (-(-values.size * width // 8),):
    raise ValueError(
      f"indices of shape {indices.shape} do not fit values of shape {values.shape}:"
      f" {m} places take {width} bits for each value."
    )
  bits = np.unpackbits(indices, count=values.size * width, bitorder="little")
  weights = 1 << np.arange(width)
  places = bits.reshape(*values.shape, width).astype(np.int64) @ weights
  if np.any(places >= m):
    raise ValueError(f"indices must be below m = {m}, got {places.max()}.")
  x = np.zeros((*kept.shape[:-1], m), values.dtype)
  np.put_along_axis(x, _validate.blocks(places, n, axis), kept, axis=-1)
  joined = x.reshape(*x.shape[:-2], -1)
  return np.ascontiguousarray(np.moveaxis(joined, -1, axis))


def _place_bits(m: int) -> int:
  return (int(m) - 1).bit_length()


def _safetensors() -> tuple[Any, Any]:
  """The functions that read and write tensors; imported when they are needed."""
  try:
    import safetensors
    import safetensors.numpy
  except ImportError as error:
    raise ImportError(
      "sparse checkpoints need safetensors: pip install safetensors"
    ) from error
  return safetensors.deserialize, safetensors.numpy.save


def _named(tree: Any) -> dict[str, Any]:
  """The leaves by their names."""
  names = _masks.leaf_names(tree)
  found: dict[str, Any] = {}
  for at, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = "/".join(names[at])
    if name in found:
      raise ValueError(f"two leaves have the name {name!r}: rename one.")
    found[name] = leaf
  return found


def _array(name: str, leaf: Any) -> np.ndarray:
  dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
  if dtype.name not in _DTYPES:
    raise TypeError(
      f"the leaf {name!r} must be an array of numbers, got dtype {dtype}: leave it out"
      " or cast it."
    )
  x = np.asarray(leaf, order="C")
  return x.astype(x.dtype.newbyteorder("<"), copy=False)


def _encoded(x: np.ndarray) -> tuple[str, tuple[np.ndarray, ...]]:
  """The smallest encoding, and its tensors in the order of `_TENSORS`."""
  flat = x.reshape(-1)
  # Of bits, not of values: -0.0 equals 0.0.
  filled = flat.view(f"u{x.itemsize}") != 0
  at = np.flatnonzero(filled)
  gaps = np.diff(at, prepend=-1) - 1
  gaps = gaps.astype(np.min_scalar_type(gaps.max(initial=0)))
  bitmask = np.packbits(filled, bitorder="little")
  forms: dict[str, tuple[np.ndarray, ...]] = {
    "dense": (x,),
    "gaps": (gaps, flat[at]),
    "bitmask": (bitmask, flat[at]),
  }
  return min(
    forms.items(), key=lambda form: sum(part.nbytes + _ENTRY_BYTES for part in form[1])
  )


def _decoded(entry: Mapping[str, Any], *parts: Any) -> np.ndarray:
  """The array of a leaf, from the bytes of its tensors in the order of `_TENSORS`."""
  *index, values = parts
  dtype, shape = jnp.dtype(entry["dtype"]), entry["shape"]
  values = np.frombuffer(values, dtype)
  if entry["encoding"] == "dense":
    return values.reshape(shape)
  x = np.zeros(shape, dtype)
  numbers = np.frombuffer(index[0], entry["index"])
  if entry["encoding"] == "gaps":
    at = np.cumsum(numbers.astype(np.int64) + 1) - 1
  else:
    at = np.flatnonzero(np.unpackbits(numbers, count=x.size, bitorder="little"))
  x.reshape(-1)[at] = values
  return x


def _digest(*parts: Any) -> str:
  total = hashlib.sha256()
  for part in parts:
    total.update(part.tobytes() if isinstance(part, np.ndarray) else part)
  return total.hexdigest()


def _table_digest(leaves: Mapping[str, Any]) -> str:
  return _digest(json.dumps(leaves, sort_keys=True).encode())


def _read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, bytes]]:
  """The table of leaves, which is that which was written, and the bytes of tensors."""
  deserialize, _ = _safetensors()
  data = path.read_bytes()
  try:
    tensors = {name: tensor["data"] for name, tensor in deserialize(data)}
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
  # safetensors has an exception of its own, which is no ValueError.
  except Exception as error:
    raise ValueError(
      f"{path} is truncated or altered, or no safetensors file: {error}"
    ) from error
  try:
    table = json.loads(header["__metadata__"][_KEY])
    version, leaves, digest = table["version"], table["leaves"], table["sha256"]
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(f"{path} is altered, or not from rvsm_jax.export.save.") from error
  if version != _VERSION:
    raise ValueError(
      f"{path} has version {version!r} of the format, this rvsm_jax reads {_VERSION}."
    )
  if _table_digest(leaves) != digest:
    raise ValueError(f"{path} is altered: the checksum of its table of leaves differs.")
  return leaves, tensors


def _write(path: pathlib.Path, data: bytes) -> None:
  """Writes a file that is never seen half written, whatever is killed when."""
  partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
  try:
    with partial.open("wb") as file:
      file.write(data)
      file.flush()
      os.fsync(file.fileno())
    partial.replace(path)
  finally:
    partial.unlink(missing_ok=True)
