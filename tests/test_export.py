"""Sparse checkpoints that read back bit-equal, and sparse matrices."""

import builtins
import hashlib
import json
import os
import pathlib
import subprocess
import sys
from typing import NamedTuple

from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
import jax
from jax.experimental import sparse
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from experiments import export as measured
from rvsm_jax import export

FLOATS = ["bfloat16", "float16", "float32", "float64"]
DTYPES = [*FLOATS, "int8", "uint16", "int64", "bool", "complex64", "float8_e4m3fn"]


def random(shape, share, dtype="float32", seed=0):
  """Normal numbers, of which that share is zero."""
  rng = np.random.default_rng(seed)
  x = 100 * rng.normal(size=shape)
  x[rng.random(shape) < share] = 0
  return x.astype(jnp.dtype(dtype))


def bits(x):
  x = np.asarray(x)
  return x.dtype, x.shape, x.tobytes()


def assert_bit_equal(got, expected):
  assert jax.tree.structure(got) == jax.tree.structure(expected)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
    assert bits(a) == bits(b)


@pytest.fixture
def path(tmp_path):
  return tmp_path / "model.safetensors"


# Bits


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 0.999, 1.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_encoding_reads_back(path, dtype, share):
  params = {"kernel": random((37, 41), share, dtype), "bias": random(41, share, dtype)}
  export.save(path, params)
  assert_bit_equal(export.load(path), params)
  assert_bit_equal(export.load(path, like=params), params)


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_values_keep_their_bits(path, dtype):
  dtype = jnp.dtype(dtype)
  unsigned = np.dtype(f"u{dtype.itemsize}")
  finfo = jnp.finfo(dtype)
  special = np.array(
    [-0.0, np.inf, -np.inf, finfo.smallest_subnormal, -finfo.max, 0.0], dtype
  )
  # Quiet and signalling NaNs, of both signs, with a payload.
  sign = 1 << (finfo.bits - 1)
  exponent = int(np.array(np.inf, dtype).view(unsigned))
  nans = [exponent | 5, sign | exponent | 5, exponent | (1 << (finfo.nmant - 1)) | 3]
  special = np.concatenate([special, np.array(nans, unsigned).view(dtype)])
  for zeros in (0, 50, 5000):
    x = np.concatenate([np.zeros(zeros, dtype), special, np.zeros(zeros, dtype)])
    export.save(path, {"x": x})
    assert_bit_equal(export.load(path), {"x": x})
    if dtype != np.float64:
      like = {"x": jnp.zeros(x.shape, dtype)}
      assert_bit_equal(export.load(path, like=like)["x"], x)


@given(st.binary(max_size=600), st.sampled_from(["uint8", "float16", "float32"]))
def test_any_bytes_read_back(tmp_path_factory, data, dtype):
  path = tmp_path_factory.getbasetemp() / "any.safetensors"
  size = np.dtype(dtype).itemsize
  x = np.frombuffer(data[: len(data) // size * size], dtype)
  spread = np.zeros(7 * len(x), dtype)
  spread[::7] = x
  params = {"x": x, "spread": spread}
  export.save(path, params)
  assert_bit_equal(export.load(path), params)


@pytest.mark.parametrize("gap", [254, 255, 256, 257, 65535, 65536, 65537])
def test_gaps_at_the_ends_of_the_integer_types(path, gap):
  x = np.zeros(gap + 4, np.float32)
  x[[0, gap]] = 1, 2
  export.save(path, x)
  assert_bit_equal(export.load(path, like=x), x)


def test_views_and_other_byte_orders(path):
  x = random((30, 40), 0.9)
  params = {"transposed": x.T, "strided": x[::2, ::3], "big": x.astype(">f4")}
  export.save(path, params)
  for name, got in export.load(path).items():
    np.testing.assert_array_equal(got, params[name])


# Structures


class Layer(NamedTuple):
  kernel: jax.Array
  bias: jax.Array | None


def test_nested_structures_by_like_and_by_name(path):
  params = {
    "layers": [
      Layer(jnp.eye(30), jnp.ones(30)),
      Layer(jnp.zeros((30, 2)), None),
    ],
    "pair": (jnp.float32(2.5), jnp.zeros((0, 3), jnp.bfloat16)),
    "scale": 3.0,
    "é/#values": jnp.arange(3),
  }
  export.save(path, params)
  assert_bit_equal(export.load(path, like=params), params)
  assert list(export.load(path)) == [
    "layers/0/kernel",
    "layers/0/bias",
    "layers/1/kernel",
    "pair/0",
    "pair/1",
    "scale",
    "é/#values",
  ]


def test_a_single_array_and_an_empty_tree(path):
  for params in (jnp.eye(20), {}, []):
    export.save(path, params)
    assert_bit_equal(export.load(path, like=params), params)


def test_nnx_state_and_module(path):
  model = nnx.Sequential(
    nnx.Linear(40, 50, rngs=nnx.Rngs(0)), nnx.Linear(50, 3, rngs=nnx.Rngs(1))
  )
  kernel = model.layers[0].kernel
  kernel[...] = jnp.where(abs(kernel[...]) > 0.3, kernel[...], 0)
  state = nnx.state(model, nnx.Param)
  export.save(path, state)
  assert sorted(export.load(path)) == [
    "layers/0/bias",
    "layers/0/kernel",
    "layers/1/bias",
    "layers/1/kernel",
  ]
  fresh = nnx.Sequential(
    nnx.Linear(40, 50, rngs=nnx.Rngs(2)), nnx.Linear(50, 3, rngs=nnx.Rngs(3))
  )
  nnx.update(fresh, export.load(path, like=nnx.state(fresh, nnx.Param)))
  assert_bit_equal(nnx.state(fresh, nnx.Param), state)
  x = jnp.ones((2, 40))
  np.testing.assert_array_equal(fresh(x), model(x))


def test_like_decides_on_numpy_or_jax_and_its_sharding(path):
  mesh = jax.make_mesh((4,), ("d",), devices=jax.devices()[:4])
  sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
  x = random((8, 100), 0.9)
  export.save(path, {"w": jax.device_put(x, sharding)})
  assert isinstance(export.load(path, like={"w": x})["w"], np.ndarray)
  like = {"w": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)}
  got = export.load(path, like=like)["w"]
  assert got.sharding == sharding
  assert_bit_equal(got, x)
  assert isinstance(export.load(path, like={"w": jnp.zeros_like(x)})["w"], jax.Array)


# Size and format


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_95_per_cent_sparse_is_at_most_a_fifth(path, dtype):
  params = {"kernel": random((400, 500), 0.95, dtype), "bias": random(500, 0, dtype)}
  dense = path.with_name("dense.safetensors")
  safetensors.numpy.save_file(params, dense)
  export.save(path, params)
  assert path.stat().st_size <= dense.stat().st_size / 5


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.9, 0.99, 1])
@pytest.mark.parametrize("dtype", ["bool", "int8", "bfloat16", "float64"])
def test_never_larger_than_dense_by_more_than_the_table(path, share, dtype):
  x = random((90, 100), share, dtype)
  export.save(path, {"x": x})
  assert path.stat().st_size <= x.nbytes + 1000


def test_the_file_is_what_the_docstring_says(path):
  gaps = np.zeros(1000, np.float32)
  gaps[[2, 3, 700]] = 1, -0.0, 3
  mask = random(1003, 0.6, seed=1)
  export.save(path, {"gaps": gaps, "mask": mask, "dense": np.arange(1, 4)})
  tensors = safetensors.numpy.load_file(path)
  assert sorted(tensors) == [
    "dense",
    "gaps#gaps",
    "gaps#values",
    "mask#bitmask",
    "mask#values",
  ]
  np.testing.assert_array_equal(tensors["dense"], [1, 2, 3])
  assert tensors["gaps#gaps"].dtype == np.uint16
  np.testing.assert_array_equal(tensors["gaps#gaps"], [2, 0, 696])
  np.testing.assert_array_equal(tensors["gaps#values"], [1, -0.0, 3])
  set_bits = [i for i in range(1003) if tensors["mask#bitmask"][i // 8] >> i % 8 & 1]
  np.testing.assert_array_equal(set_bits, np.flatnonzero(mask))
  np.testing.assert_array_equal(tensors["mask#values"], mask[mask != 0])

  with safetensors.safe_open(path, "np") as file:
    metadata = file.metadata()
  assert list(metadata) == ["rvsm_jax.export"]
  table = json.loads(metadata["rvsm_jax.export"])
  leaf = table["leaves"]["gaps"]
  parts = tensors["gaps#gaps"].tobytes() + tensors["gaps#values"].tobytes()
  assert leaf == {
    "dtype": "float32",
    "shape": [1000],
    "encoding": "gaps",
    "index": "uint16",
    "sha256": hashlib.sha256(parts).hexdigest(),
  }
  assert "index" not in table["leaves"]["dense"]
  text = json.dumps(table["leaves"], sort_keys=True)
  assert table["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_the_same_params_give_the_same_bytes(path):
  params = {"a": random((40, 50), 0.9), "b": random(9, 0), "c": random(900, 0.6)}
  export.save(path, params)
  first = path.read_bytes()
  export.save(path, params)
  assert path.read_bytes() == first


# Damage


def test_every_altered_byte_and_every_truncation_is_noticed(path):
  params = {"a": random(400, 0.95), "b": random(90, 0.6), "c": random(3, 0)}
  export.save(path, params)
  good = path.read_bytes()
  rng = np.random.default_rng(0)
  for position in range(len(good)):
    bad = bytearray(good)
    bad[position] ^= int(rng.integers(1, 256))
    path.write_bytes(bad)
    try:
      # White space in the JSON and the like may change without harm.
      assert_bit_equal(export.load(path), params)
    except ValueError as error:
      assert str(path) in str(error)  # noqa: PT017
  for length in range(0, len(good), 7):
    path.write_bytes(good[:length])
    with pytest.raises(ValueError, match="truncated or altered") as raised:
      export.load(path)
    assert str(path) in str(raised.value)


def test_an_altered_leaf_is_named(path):
  export.save(path, {"good": random(50, 0), "bad": random(400, 0.95)})
  values = bytes(export.load(path)["bad"][export.load(path)["bad"] != 0].tobytes())
  data = path.read_bytes()
  assert data.count(values) == 1
  path.write_bytes(data.replace(values, values[::-1]))
  with pytest.raises(ValueError, match="'bad'"):
    export.load(path)


def test_files_of_others_are_refused(path):
  safetensors.numpy.save_file({"a": np.ones(3)}, path)
  with pytest.raises(ValueError, match="not from rvsm_jax"):
    export.load(path)
  path.write_bytes(b"no safetensors at all")
  with pytest.raises(ValueError, match="no safetensors file"):
    export.load(path)
  with pytest.raises(FileNotFoundError):
    export.load(path.with_name("none"))


def test_a_later_version_is_refused(path, monkeypatch):
  monkeypatch.setattr(export, "_VERSION", 2)
  export.save(path, jnp.ones(3))
  monkeypatch.undo()
  with pytest.raises(ValueError, match="version 2"):
    export.load(path)


@pytest.mark.parametrize(
  ("like", "message"),
  [
    ({"a": np.zeros((2, 3)), "b": np.zeros(4), "c": 1.0}, r"lacks \['c'\]"),
    ({"a": np.zeros((2, 3))}, r"has \['b'\] besides"),
    ({"a": np.zeros((3, 2)), "b": np.zeros(4)}, r"'a' as float64\[2, 3\]"),
    ({"a": np.zeros((2, 3)), "b": np.zeros(4, np.float32)}, r"'b' as float64"),
  ],
  ids=["missing", "besides", "shape", "dtype"],
)
def test_another_structure_shape_or_dtype_is_refused(path, like, message):
  export.save(path, {"a": np.ones((2, 3)), "b": np.ones(4)})
  with pytest.raises(ValueError, match=message) as raised:
    export.load(path, like=like)
  assert str(path) in str(raised.value)


@pytest.mark.parametrize(
  "leaf",
  ["text", object(), np.array(["a"]), jax.random.key(0), jnp.zeros(3, jnp.int4)],
  ids=["text", "object", "strings", "key", "int4"],
)
def test_leaves_that_are_no_arrays_of_numbers_are_named(path, leaf):
  with pytest.raises(TypeError, match="'layer/x'"):
    export.save(path, {"layer": {"x": leaf}})
  assert not path.exists()


@pytest.mark.parametrize(
  "params",
  [
    {"a": {"b": np.ones(2)}, "a/b": np.ones(2)},
    {"a": np.zeros(999), "a#values": np.ones(2)},
    {"__metadata__": np.ones(2)},
  ],
  ids=["path", "values", "metadata"],
)
def test_names_that_clash_are_refused(path, params):
  with pytest.raises(ValueError, match="name"):
    export.save(path, params)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(path, monkeypatch):
  export.save(path, jnp.ones(3))

  def full(_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(os, "fsync", full)
  with pytest.raises(OSError, match="No space"):
    export.save(path, jnp.zeros(3))
  monkeypatch.undo()
  np.testing.assert_array_equal(export.load(path)[""], np.ones(3))
  assert list(path.parent.iterdir()) == [path]


def test_without_safetensors_it_is_named(path, monkeypatch):
  original = builtins.__import__

  def refuse(name, *args, **kwargs):
    if name.startswith("safetensors"):
      raise ImportError(name)
    return original(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", refuse)
  for call in (lambda: export.save(path, jnp.ones(3)), lambda: export.load(path)):
    with pytest.raises(ImportError, match="pip install safetensors"):
      call()


def test_the_library_does_not_import_safetensors():
  code = "import sys; from rvsm_jax import export; print('safetensors' in sys.modules)"
  root = pathlib.Path(__file__).parents[1]
  done = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
  )
  assert done.stdout.strip() == "False"


# BCOO


def test_layers_sparse_enough_become_bcoo():
  params = {
    "sparse": jnp.asarray(random((200, 100), 0.995)),
    "denser": jnp.asarray(random((200, 100), 0.9)),
    "zero": jnp.zeros((5, 7)),
    "conv": jnp.zeros((3, 3, 8, 8)),
    "bias": jnp.zeros(100),
    "empty": jnp.zeros((0, 3)),
    "number": jnp.int32(0),
  }
  got = export.to_bcoo(params)
  converted = {k for k, leaf in got.items() if isinstance(leaf, sparse.BCOO)}
  assert converted == {"sparse", "zero"}
  assert got["sparse"].nse == int(jnp.sum(params["sparse"] != 0))
  for name, leaf in got.items():
    dense = leaf.todense() if name in converted else leaf
    assert_bit_equal(dense, params[name])
  lower = export.to_bcoo(params, min_sparsity=0.85)
  assert isinstance(lower["denser"], sparse.BCOO)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_products_and_gradients_under_jit(dtype):
  kernel = jnp.asarray(random((60, 40), 0.9, dtype))
  x = jnp.asarray(random((5, 60), 0, dtype, seed=1))
  converted = export.to_bcoo({"kernel": kernel}, min_sparsity=0.8)

  @jax.jit
  def forward(params, x):
    return x @ params["kernel"]

  exact = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
  tolerance = 20 * float(jnp.finfo(dtype).eps) * np.abs(exact).max()
  np.testing.assert_allclose(
    np.asarray(forward(converted, x), np.float64), exact, atol=tolerance
  )


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_min_sparsity_out_of_range_is_named(value):
  with pytest.raises(ValueError, match="min_sparsity"):
    export.to_bcoo({"kernel": jnp.zeros((2, 2))}, min_sparsity=value)


# What was measured


def test_break_even_is_between_the_shares_around_it():
  shares = (0.9, 0.99, 0.999)
  assert measured.break_even(shares, (0.1, 0.2, 0.9)) is None
  assert measured.break_even(shares, (1.1, 2.0, 3.0)) == 0.9
  np.testing.assert_allclose(
    measured.break_even(shares, (0.1, 10.0, 20.0)), 1 - np.sqrt(0.1 * 0.01)
  )
  # What is faster by chance in between does not count.
  assert measured.break_even(shares, (2.0, 0.5, 2.0)) > 0.99


def test_the_committed_page_is_that_of_its_results():
  folder = pathlib.Path(measured.__file__).parent / "results" / "export"
  result = json.loads((folder / "export.json").read_text())
  assert (folder / "export.md").read_text() == measured.page(result)
  for row in result["sizes"]:
    if row["share"] >= 0.95:
      assert row["sparse"] <= row["dense"] / 5
