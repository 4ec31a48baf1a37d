"""The text, of which nothing leaks into the test, and the network that reads it."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import datasets
from experiments.core import measure
from experiments.datasets import text
from experiments.networks.transformer import Transformer

PROSE = (
  "A sentence about the sparse weights of networks, which is rather long: so long that"
  " it is taken for prose."
)


def test_prose_is_told_from_lists_formulas_and_code():
  docstring = f"""Short.

  {PROSE}
  It goes on.

  Notes
  -----
  {PROSE}

  x : ndarray of shape (n,), which is described in so many words that it is long.

  >>> {PROSE}
  """
  assert text.paragraphs(docstring) == [f"{PROSE} It goes on.", PROSE]


def test_documents_are_read_in_the_order_of_their_names(tmp_path):
  (tmp_path / "b").mkdir()
  (tmp_path / "tests").mkdir()
  for name in ("b/one.py", "a.py", "tests/no.py"):
    (tmp_path / name).write_text(f'"""{PROSE}"""\n')
  (tmp_path / "empty.py").write_text("x = 1\n")
  assert text.documents(tmp_path) == {"a.py": [PROSE], "b/one.py": [PROSE]}


def test_a_document_is_in_one_split_and_a_repeated_paragraph_in_one_place():
  pages = {f"{k}.py": [f"Paragraph {k}.", "Everywhere."] for k in range(200)}
  parts = text.split(pages)
  lines = {part: content.splitlines() for part, content in parts.items()}
  assert lines["train"].count("Everywhere.") == 1
  assert "Everywhere." not in lines["test"]
  assert len(lines["train"]) + len(lines["test"]) == 201
  assert 5 < len(lines["test"]) < 40


@pytest.mark.slow
def test_of_scipy_there_is_enough_and_nothing_leaks():
  train, test = (text.texts()[part] for part in ("train", "test"))
  assert len(train) > 800_000
  assert len(test) > 80_000
  assert set(test) <= set(text.ALPHABET)
  assert set(train.splitlines()).isdisjoint(test.splitlines())
  assert "BSD" in datasets.note("text", None, None)


@pytest.mark.slow
def test_windows_have_the_next_characters():
  codes, following = datasets.load("text", "test")
  assert codes.dtype == np.uint8
  assert codes.shape == following.shape == (len(codes), text.CONTEXT)
  np.testing.assert_array_equal(codes.ravel()[1:], following.ravel()[:-1])
  written = "".join(text.ALPHABET[code] for code in codes.ravel())
  assert text.texts()["test"].startswith(written)
  with pytest.raises(ValueError, match="no split 'valid'"):
    datasets.load("text", "valid")


def test_counts_of_trigrams():
  """What two characters decide costs nothing, and by hand for single ones."""
  assert text.counted_loss("abc" * 500, "abc" * 20) < 0.15
  assert text.counted_loss("abab" * 100, "bca" * 20) > 2
  # Of 4 characters of 2 kinds: (3 + 2 / 96) / 6 for a, (1 + 2 / 96) / 6 for b.
  expected = -np.log([(3 + 2 / 96) / 6, (1 + 2 / 96) / 6]).mean()
  assert text.counted_loss("aaab", "ab", order=1) == pytest.approx(expected)


def small():
  return Transformer(
    len(text.ALPHABET), 16, width=16, heads=2, hidden=32, blocks=2, rngs=nnx.Rngs(0)
  )


@pytest.mark.slow
def test_the_transformer_does_not_see_what_comes_later():
  model = small()
  codes = jax.random.randint(jax.random.key(0), (2, 16), 0, 96)
  run = nnx.jit(lambda model, codes: model(codes))
  logits = run(model, codes)
  assert logits.shape == (2, 16, 96)
  changed = run(model, codes.at[:, 9].add(1))
  np.testing.assert_array_equal(changed[:, :9], logits[:, :9])
  assert np.all(np.any(changed[:, 9:] != logits[:, 9:], axis=-1))


def test_kernels_are_those_of_attention_and_mlps():
  abstract = nnx.eval_shape(lambda: Transformer(96, 128, rngs=nnx.Rngs(0)))
  params = nnx.state(abstract, nnx.Param)
  chosen = measure.selected(params)
  layers = [*(f"attention/{name}" for name in ("query", "key", "value", "out"))]
  assert set(chosen) == {
    f"blocks/{k}/{name}/kernel" for k in range(3) for name in (*layers, "up", "down")
  }
  size, total = (
    sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (chosen, params)
  )
  assert 0.8e6 < size < total < 1.05 * size


@pytest.mark.slow
def test_the_transformer_learns_a_periodic_text():
  codes = jnp.arange(17)[None] % 5
  graph, params = nnx.split(small())
  tx = optax.adam(1e-2)

  def loss(params):
    logits = nnx.merge(graph, params)(codes[:, :-1])
    return jnp.mean(
      optax.softmax_cross_entropy_with_integer_labels(logits, codes[:, 1:])
    )

  @jax.jit
  def step(params, state):
    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value

  state = tx.init(params)
  for _ in range(150):
    params, state, value = step(params, state)
  assert value < 0.1
