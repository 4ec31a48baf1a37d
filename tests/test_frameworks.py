"""The same training in Flax NNX, Linen, Equinox and Haiku's plain dicts."""

import chex
from helpers import in_part
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

import rvsm_jax

LR = 0.2
RVSM = {"lam": 0.02, "beta": 1.0}
STEPS = 5


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(64, 8)).astype(np.float32)
  return inputs, np.tanh(inputs[:, :2] @ rng.normal(size=(2, 3))).astype(np.float32)


@pytest.fixture(scope="module")
def start():
  """Weights of a network of one hidden layer, as each framework is given them."""
  rng = np.random.default_rng(1)

  def draw(*shape):
    return jnp.asarray(0.4 * rng.normal(size=shape), jnp.float32)

  return {"hidden": (draw(8, 16), draw(16)), "out": (draw(16, 3), draw(3))}


def rvsm(**kwargs):
  kwargs = {"momentum": 0.9, "mask": rvsm_jax.kernels} | RVSM | kwargs
  return rvsm_jax.rvsm_sgd(LR, rvsm_jax.l0(), **kwargs)


@pytest.fixture(scope="module")
def expected(start, batch):
  """Outputs of w and of u after training, and the zeros of u, with plain arrays."""
  inputs, targets = batch
  params = {name: dict(zip("wb", pair, strict=True)) for name, pair in start.items()}

  def apply(params, inputs):
    hidden = jax.nn.relu(inputs @ params["hidden"]["w"] + params["hidden"]["b"])
    return hidden @ params["out"]["w"] + params["out"]["b"]

  def loss(params):
    return jnp.mean((apply(params, inputs) - targets) ** 2)

  # Haiku's names: Dense layers hold "w" and "b".
  tx = rvsm()
  state = tx.init(params)
  for _ in range(STEPS):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    params = optax.apply_updates(params, updates)
  sparse = rvsm_jax.sparse_params(state, params)
  zeros = {name: np.asarray(sparse[name]["w"]) == 0 for name in sparse}
  assert 0.1 < np.mean(zeros["hidden"]) < 0.9
  return apply(params, inputs), apply(sparse, inputs), zeros


def check(expected, dense_outputs, sparse_outputs, sparse_kernels):
  dense, sparse, zeros = expected
  np.testing.assert_allclose(dense_outputs, dense, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(sparse_outputs, sparse, rtol=1e-4, atol=1e-5)
  assert np.max(np.abs(dense - sparse)) > 1e-2
  for name, kernel in sparse_kernels.items():
    np.testing.assert_array_equal(np.asarray(kernel) == 0, zeros[name])


# Flax NNX

nnx_wrappers = pytest.mark.parametrize(
  "wrap",
  [
    lambda tx: tx,
    lambda tx: optax.chain(optax.identity(), tx),
    lambda tx: optax.named_chain(("tx", tx)),
    lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    lambda tx: optax.apply_if_finite(tx, 3),
    lambda tx: optax.partition(
      {"all": tx}, lambda params: jax.tree.map(lambda _: "all", params)
    ),
  ],
  ids=["bare", "chain", "named_chain", "MultiSteps", "apply_if_finite", "partition"],
)


def nnx_model(start):
  nnx = pytest.importorskip("flax.nnx")

  class Network(nnx.Module):
    def __init__(self, rngs):
      self.hidden = nnx.Linear(8, 16, rngs=rngs)
      self.out = nnx.Linear(16, 3, rngs=rngs)
      self.calls = nnx.Variable(jnp.array(0))

    def __call__(self, inputs):
      self.calls[...] += 1
      return self.out(jax.nn.relu(self.hidden(inputs)))

  model = Network(nnx.Rngs(0))
  for name, (kernel, bias) in start.items():
    layer = getattr(model, name)
    layer.kernel[...], layer.bias[...] = kernel, bias
  return model


def nnx_pure(tree):
  """Plain arrays in place of Variables."""
  from flax import nnx

  # Flax 0.12.7 gave it another name.
  return nnx.as_pure(tree) if hasattr(nnx, "as_pure") else nnx.pure(tree)


def nnx_train(model, optimizer, batch, steps=STEPS):
  from flax import nnx

  @nnx.jit
  def step(model, optimizer, inputs, targets):
    def loss(model):
      return jnp.mean((model(inputs) - targets) ** 2)

    optimizer.update(model, nnx.grad(loss)(model))

  for _ in range(steps):
    step(model, optimizer, *batch)


@nnx_wrappers
def test_nnx_optimizer(start, batch, expected, wrap):
  nnx = pytest.importorskip("flax.nnx")
  model = nnx_model(start)
  optimizer = nnx.Optimizer(model, wrap(rvsm()), wrt=nnx.Param)
  nnx_train(model, optimizer, batch)

  params = nnx.state(model, nnx.Param)
  sparse = rvsm_jax.sparse_params(optimizer.opt_state, params)
  assert jax.tree.structure(sparse) == jax.tree.structure(params)
  chex.assert_trees_all_equal_shapes_and_dtypes(sparse, params)
  dense_outputs = model(batch[0])
  # A second model for u: the trained one keeps w and can be trained further.
  twin = nnx.clone(model)
  nnx.update(twin, sparse)
  kernels = {name: getattr(twin, name).kernel[...] for name in start}
  check(expected, dense_outputs, twin(batch[0]), kernels)
  np.testing.assert_array_equal(model(batch[0]), dense_outputs)
  nnx_train(model, optimizer, batch, 1)
  assert jnp.any(model(batch[0]) != dense_outputs)


def test_nnx_pure_trees(start, batch):
  nnx = pytest.importorskip("flax.nnx")
  model = nnx_model(start)
  optimizer = nnx.Optimizer(model, rvsm(), wrt=nnx.Param)
  nnx_train(model, optimizer, batch)
  params = nnx.state(model, nnx.Param)
  expected = rvsm_jax.sparse_params(optimizer.opt_state, params)
  for state in (optimizer.opt_state, nnx_pure(optimizer.opt_state)):
    for tree in (params, nnx_pure(params), nnx.to_pure_dict(params)):
      sparse = rvsm_jax.sparse_params(state, tree)
      assert jax.tree.structure(sparse) == jax.tree.structure(tree)
      chex.assert_trees_all_equal(jax.tree.leaves(sparse), jax.tree.leaves(expected))


@pytest.mark.parametrize("form", ["callable", "by_path", "arrays"])
def test_nnx_masks_of_every_form(start, batch, expected, form):
  nnx = pytest.importorskip("flax.nnx")
  model = nnx_model(start)
  params = nnx.state(model, nnx.Param)
  mask = {
    "callable": rvsm_jax.kernels,
    "by_path": rvsm_jax.by_path("/kernel$"),
    # A prefix of the Variables that init sees, and equal to what update sees.
    "arrays": rvsm_jax.kernels(nnx_pure(params)),
  }[form]
  optimizer = nnx.Optimizer(model, rvsm(mask=mask), wrt=nnx.Param)
  nnx_train(model, optimizer, batch)
  sparse = rvsm_jax.sparse_params(optimizer.opt_state, nnx.state(model, nnx.Param))
  dense_outputs = model(batch[0])
  nnx.update(model, sparse)
  kernels = {name: getattr(model, name).kernel[...] for name in start}
  check(expected, dense_outputs, model(batch[0]), kernels)


def test_nnx_mask_of_variables_is_refused_by_update(start, batch):
  # It fits the Variables that init sees but not the arrays that update sees.
  nnx = pytest.importorskip("flax.nnx")
  model = nnx_model(start)
  mask = rvsm_jax.kernels(nnx.state(model, nnx.Param))
  optimizer = nnx.Optimizer(model, rvsm(mask=mask), wrt=nnx.Param)
  with pytest.raises(ValueError, match="mask does not fit"):
    nnx_train(model, optimizer, batch, 1)


@pytest.mark.parametrize(
  "make",
  [
    lambda **kwargs: optax.chain(
      optax.adam(0.01), rvsm_jax.proximal(0.01, rvsm_jax.l1(), lam=3.0, **kwargs)
    ),
    lambda **kwargs: rvsm_jax.proximal_adam(0.01, rvsm_jax.l1(), lam=0.2, **kwargs),
  ],
  ids=["proximal", "proximal_adam"],
)
def test_nnx_proximal(start, batch, make):
  nnx = pytest.importorskip("flax.nnx")
  model = nnx_model(start)
  tx = make(mask=rvsm_jax.by_path("hidden/k"))
  nnx_train(model, nnx.Optimizer(model, tx, wrt=nnx.Param), batch)
  assert 0.1 < np.mean(model.hidden.kernel[...] == 0) < 0.9
  assert np.all(model.out.kernel[...] != 0)


@pytest.mark.slow
def test_nnx_metrics_and_diagnostics_take_a_state(start):
  nnx = pytest.importorskip("flax.nnx")
  params = nnx.state(nnx_model(start), nnx.Param)
  half = jax.tree.map(lambda w: w.at[0].set(0), params)
  plain = jax.tree.leaves(half)
  np.testing.assert_allclose(rvsm_jax.sparsity(half), rvsm_jax.sparsity(plain))
  np.testing.assert_allclose(
    rvsm_jax.parameter_ratio(half), rvsm_jax.parameter_ratio(plain)
  )
  assert rvsm_jax.neurons_removed(half) == 1  # row 0 of out: what unit 0 gives
  assert rvsm_jax.sign_changes(params, jax.tree.map(jnp.negative, params)) == sum(
    leaf.size for leaf in jax.tree.leaves(params)
  )
  value = rvsm_jax.lagrangian(1.0, rvsm_jax.l0(), params, half, lam=0.1, beta=2.0)
  assert jnp.isfinite(value)


def test_nnx_flop_ratio(start):
  nnx = pytest.importorskip("flax.nnx")
  model = nnx_model(start)
  model.hidden.kernel[...] = start["hidden"][0].at[:, ::2].set(0)
  graph, params, rest = nnx.split(model, nnx.Param, ...)

  def apply(params, inputs):
    return nnx.merge(graph, params, rest, copy=True)(inputs)

  ratio = rvsm_jax.flop_ratio(apply, params, jnp.ones((2, 8)))
  assert ratio == pytest.approx((64 + 48) / (128 + 48))


# Linen


@pytest.mark.parametrize("frozen", [False, True])
def test_linen_train_state(start, batch, expected, frozen):
  linen = pytest.importorskip("flax.linen")
  core = pytest.importorskip("flax.core")
  train_state = pytest.importorskip("flax.training.train_state")

  class Network(linen.Module):
    @linen.compact
    def __call__(self, inputs):
      hidden = jax.nn.relu(linen.Dense(16, name="hidden")(inputs))
      return linen.Dense(3, name="out")(hidden)

  params = {name: {"kernel": w, "bias": b} for name, (w, b) in start.items()}
  params = core.freeze(params) if frozen else params
  apply = Network().apply
  state = train_state.TrainState.create(apply_fn=apply, params=params, tx=rvsm())
  inputs, targets = batch

  @jax.jit
  def step(state):
    def loss(params):
      return jnp.mean((state.apply_fn({"params": params}, inputs) - targets) ** 2)

    return state.apply_gradients(grads=jax.grad(loss)(state.params))

  for _ in range(STEPS):
    state = step(state)
  sparse = rvsm_jax.sparse_params(state.opt_state, state.params)
  assert type(sparse) is type(params)
  check(
    expected,
    apply({"params": state.params}, inputs),
    apply({"params": sparse}, inputs),
    {name: sparse[name]["kernel"] for name in start},
  )
  ratio = rvsm_jax.flop_ratio(lambda p, x: apply({"params": p}, x), sparse, inputs)
  assert 0 < ratio < 1


# Equinox


def test_equinox_module_with_none_leaves(start, batch, expected):
  eqx = pytest.importorskip("equinox")

  class Network(eqx.Module):
    hidden: eqx.nn.Linear
    out: eqx.nn.Linear
    activation: object = jax.nn.relu  # no array: None once filtered

    def __call__(self, inputs):
      return self.out(self.activation(self.hidden(inputs)))

  key = jax.random.key(0)
  model = Network(eqx.nn.Linear(8, 16, key=key), eqx.nn.Linear(16, 3, key=key))
  for name, (kernel, bias) in start.items():

    def where(m, name=name):
      return (getattr(m, name).weight, getattr(m, name).bias)

    model = eqx.tree_at(where, model, (kernel.T, bias))
  tx = rvsm()
  state = tx.init(eqx.filter(model, eqx.is_inexact_array))
  inputs, targets = batch

  @eqx.filter_jit
  def step(model, state):
    def loss(model):
      return jnp.mean((jax.vmap(model)(inputs) - targets) ** 2)

    updates, state = tx.update(
      eqx.filter_grad(loss)(model), state, eqx.filter(model, eqx.is_inexact_array)
    )
    return eqx.apply_updates(model, updates), state

  for _ in range(STEPS):
    model, state = step(model, state)
  params, static = eqx.partition(model, eqx.is_inexact_array)
  sparse = eqx.combine(rvsm_jax.sparse_params(state, params), static)
  check(
    expected,
    jax.vmap(model)(inputs),
    jax.vmap(sparse)(inputs),
    {name: getattr(sparse, name).weight.T for name in start},
  )
  arrays = eqx.filter(sparse, eqx.is_inexact_array)
  ratio = rvsm_jax.flop_ratio(
    lambda p, x: jax.vmap(eqx.combine(p, static))(x), arrays, inputs
  )
  macs = {"hidden": 8 * 16, "out": 16 * 3}
  used = sum(np.mean(~expected[2][name]) * size for name, size in macs.items())
  assert ratio == pytest.approx(used / sum(macs.values()))


def test_equinox_frozen_part_has_no_update(start):
  # eqx.filter_grad of a part gives None where params have an array.
  eqx = pytest.importorskip("equinox")
  params = {"hidden": start["hidden"][0], "out": start["out"][0]}
  updates = {"hidden": jnp.ones_like(params["hidden"]), "out": None}
  for tx in (
    rvsm_jax.rvsm(LR, rvsm_jax.l0(), **RVSM),
    rvsm_jax.rvsm(LR, rvsm_jax.l0(), normalize="leaf", **RVSM),
    rvsm_jax.rvsm(LR, rvsm_jax.l0(), ordering="jacobi", **RVSM),
    rvsm_jax.proximal(LR, rvsm_jax.l0(), lam=0.1),
    rvsm_jax.proximal_adam(LR, rvsm_jax.l0(), lam=0.1),
    rvsm_jax.add_penalty_gradient(rvsm_jax.l1(), 0.1),
  ):
    state = tx.init(params)
    got, new_state = tx.update(updates, state, params)
    assert got["out"] is None
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    after = eqx.apply_updates(params, got)
    chex.assert_trees_all_equal(after["out"], params["out"])


# Haiku


def test_haiku_paths_and_names(start, batch, expected):
  hk = pytest.importorskip("haiku")

  def network(inputs):
    hidden = jax.nn.relu(hk.Linear(16, name="hidden")(inputs))
    return hk.Linear(3, name="out")(hidden)

  model = hk.without_apply_rng(hk.transform(network))
  inputs, targets = batch
  params = model.init(jax.random.key(0), inputs)
  params = {name: {"w": start[name][0], "b": start[name][1]} for name in params}
  tx = rvsm(mask=rvsm_jax.by_path("/w$"))
  state = tx.init(params)

  def loss(params):
    return jnp.mean((model.apply(params, inputs) - targets) ** 2)

  @jax.jit
  def step(params, state):
    updates, state = tx.update(jax.grad(loss)(params), state, params)
    return optax.apply_updates(params, updates), state

  for _ in range(STEPS):
    params, state = step(params, state)
  sparse = rvsm_jax.sparse_params(state, params)
  check(
    expected,
    model.apply(params, inputs),
    model.apply(sparse, inputs),
    {name: sparse[name]["w"] for name in start},
  )


def test_module_names_with_slashes():
  # Haiku's keys are themselves paths.
  params = {
    "mlp/~/linear_0": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)},
    "mlp/~/linear_10": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)},
    "mlp/~/linear_2": {"w": jnp.ones((2, 2)), "b": jnp.ones(2)},
  }
  mask = rvsm_jax.by_path("^mlp/~/linear_2/w$")(params)
  assert [leaf for leaf in jax.tree.leaves(mask) if leaf] == [True]
  assert mask["mlp/~/linear_2"]["w"] is True
  index = rvsm_jax.layer_index()(params)
  assert [index[f"mlp/~/linear_{i}"]["w"] for i in (0, 2, 10)] == [0, 1, 2]
  tx = rvsm(mask=rvsm_jax.by_path("linear_2/"))
  sparse = rvsm_jax.sparse_params(tx.init(params), params)
  chex.assert_trees_all_equal_structs(sparse, params)


# Records


@pytest.mark.slow
def test_tensorboard_reads_back_what_was_written(start, batch, tmp_path):
  tensorboardX = pytest.importorskip("tensorboardX")
  nnx = pytest.importorskip("flax.nnx")
  model = nnx_model(start)
  inject = optax.inject_hyperparams(rvsm_jax.rvsm_sgd, static_args=("penalty", "mask"))
  lam = optax.linear_schedule(0.0, RVSM["lam"], STEPS - 1)
  tx = inject(LR, rvsm_jax.l0(), **RVSM | {"lam": lam}, mask=rvsm_jax.kernels)
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  with tensorboardX.SummaryWriter(str(tmp_path)) as writer:
    for count in range(STEPS):
      nnx_train(model, optimizer, batch, 1)
      params = nnx.state(model, nnx.Param)
      sparse = rvsm_jax.sparse_params(optimizer.opt_state, params)
      kernel = np.asarray(sparse["hidden"]["kernel"][...])
      now = float(optimizer.opt_state.hyperparams["lam"][...])
      writer.add_scalar("lam", now, count)
      writer.add_histogram("u", kernel, count, bins=[-2, -1e-6, 1e-6, 2])

  scalars, histograms = {}, {}
  (file,) = tmp_path.iterdir()
  for event in _events(file.read_bytes()):
    for value in event.summary.value:
      if value.tag == "lam":
        scalars[event.step] = value.simple_value
      elif value.tag == "u":
        histograms[event.step] = value.histo
  expected = [lam(count) for count in range(STEPS)]
  np.testing.assert_allclose([scalars[n] for n in range(STEPS)], expected, rtol=1e-6)
  last = histograms[STEPS - 1]
  counts = dict(zip(last.bucket_limit, last.bucket, strict=True))
  assert sum(counts.values()) == kernel.size
  assert counts[1e-6] == np.sum(kernel == 0) > 0


def _events(data):
  """The events of a file: each has its length (8 bytes), and checksums (4) around."""
  from tensorboardX.proto import event_pb2

  while data:
    size = int.from_bytes(data[:8], "little")
    yield event_pb2.Event.FromString(data[12 : 12 + size])
    data = data[16 + size :]


# Checkpoints


def test_orbax_restores_bit_for_bit(start, batch, tmp_path):
  nnx = pytest.importorskip("flax.nnx")
  orbax = pytest.importorskip("orbax.checkpoint")

  def fresh():
    model = nnx_model(start)
    return model, nnx.Optimizer(model, rvsm(), wrt=nnx.Param)

  model, optimizer = fresh()
  nnx_train(model, optimizer, batch)
  with orbax.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", nnx.state((model, optimizer)))
    checkpointer.wait_until_finished()
    restored = fresh()
    target = jax.tree.map(jnp.zeros_like, nnx.state(restored))
    nnx.update(restored, checkpointer.restore(tmp_path / "state", target))
  for pair in ((model, optimizer), restored):
    nnx_train(*pair, batch, 2)
  ends = [
    (
      nnx.state(m, nnx.Param),
      rvsm_jax.sparse_params(o.opt_state, nnx.state(m, nnx.Param)),
    )
    for m, o in ((model, optimizer), restored)
  ]
  chex.assert_trees_all_equal(*ends)


@pytest.mark.parametrize("devices", in_part([1, 2], 1))
def test_orbax_restores_on_another_number_of_devices(start, batch, tmp_path, devices):
  ocp = pytest.importorskip("orbax.checkpoint")
  params = {name: {"w": w, "b": b} for name, (w, b) in start.items()}
  inputs, targets = batch
  tx = rvsm()

  def loss(params):
    hidden = jax.nn.relu(inputs @ params["hidden"]["w"] + params["hidden"]["b"])
    outputs = hidden @ params["out"]["w"] + params["out"]["b"]
    return jnp.mean((outputs - targets) ** 2)

  @jax.jit
  def step(state):
    params, opt_state = state
    updates, opt_state = tx.update(jax.grad(loss)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  def spread(state, count):
    """Splits the first axis of every matrix over so many devices."""
    mesh = jax.make_mesh((count,), ("x",), devices=jax.devices()[:count])

    def place(leaf):
      spec = PartitionSpec("x") if leaf.ndim == 2 else PartitionSpec()
      return NamedSharding(mesh, spec)

    shardings = jax.tree.map(place, state)
    return jax.device_put(state, shardings), shardings

  state, _ = spread((params, tx.init(params)), 8)
  state = step(step(state))
  u = state[1][-1].u["hidden"]["w"]
  assert len(u.sharding.device_set) == 8
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / "state", state)
    checkpointer.wait_until_finished()
    _, shardings = spread(state, devices)
    target = jax.tree.map(
      lambda leaf, to: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=to),
      state,
      shardings,
    )
    restored = checkpointer.restore(tmp_path / "state", target)
  assert isinstance(restored[1][-1], rvsm_jax.RVSMState)
  for leaf in jax.tree.leaves(restored):
    assert len(leaf.sharding.device_set) == devices
  chex.assert_trees_all_equal(
    jax.tree.map(np.asarray, restored), jax.tree.map(np.asarray, state)
  )
  # And it trains on, as on the devices it was saved from.
  on, there = step(restored), step(state)
  sparse = [
    rvsm_jax.sparse_params(opt_state, params) for params, opt_state in (on, there)
  ]
  for got, want in zip(*map(jax.tree.leaves, sparse), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)
  assert 0.1 < rvsm_jax.sparsity(sparse[0]["hidden"]["w"]) < 0.9
