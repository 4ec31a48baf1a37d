"""Dinh & Xin (2020): the closed forms, the theorem and its counterexamples, small."""

import dataclasses
import re

from helpers import in_part
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")
pytest.importorskip("matplotlib")
pytest.importorskip("tyro")

from experiments import convergence as command
from experiments.convergence import counterexamples, problem, report, runs, studies
from experiments.convergence.problem import monte_carlo
from experiments.core import cli, results

pytestmark = pytest.mark.usefixtures("x64")

CONFIG = studies.Config(dims=(6,), starts=1, steps=1500, scan_starts=2, samples=50_000)
DIM = 4
patches = pytest.mark.parametrize("k", [1, 2, 5, 20])


def points(n=16, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(n, DIM)), rng.normal(size=DIM)


@jax.jit
def gradients(ws, target, k):
  return (
    jax.vmap(problem.gradient, (0, None, None))(ws, target, k),
    jax.vmap(jax.grad(problem.population_loss), (0, None, None))(ws, target, k),
    jax.vmap(jax.jacfwd(problem.gradient), (0, None, None))(ws, target, k),
  )


@patches
def test_the_gradient_is_that_of_the_loss(k):
  closed, automatic, _ = gradients(*points(), float(k))
  np.testing.assert_allclose(closed, automatic, rtol=0, atol=1e-10)


@pytest.mark.parametrize("k", in_part([1, 5], 5))
def test_loss_and_gradient_are_those_of_the_network(k):
  ws, target = points(n=1)
  deviation = monte_carlo(ws[0], target, k, 50_000, seed=1)
  assert 0 < deviation < 4


def test_the_monte_carlo_notices_a_wrong_loss(monkeypatch):
  loss = problem.population_loss
  monkeypatch.setattr(problem, "population_loss", lambda *args: 1.05 * loss(*args))
  ws, target = points(n=1)
  assert monte_carlo(ws[0], target, 5, 50_000, seed=1) > 4


def test_angle_is_exact_near_zero_and_pi():
  target = jnp.array([2.0, 0.0])
  for theta in (0.0, 1e-12, 1e-5, 1.0, 3.0):
    w = 3 * jnp.array([jnp.cos(theta), jnp.sin(theta)])
    np.testing.assert_allclose(problem.angle(w, target), theta, rtol=1e-14)
    flipped = problem.angle(-w, target)
    np.testing.assert_allclose(flipped, np.pi - theta, rtol=1e-15)


@pytest.mark.parametrize("k", [2, 5, 20])
def test_critical_points_of_lemma_3(k):
  _, target = points()
  at = problem.saddle(target, k)
  for point in (target, at):
    np.testing.assert_allclose(problem.gradient(point, target, k), 0, atol=1e-15)

  def loss(w):
    return float(problem.population_loss(w, target, k))

  assert abs(loss(target)) < 1e-15
  across = np.array([target[1], -target[0], 0, 0]) / 100
  assert max(loss(at + across), loss(at - across)) < loss(at)
  assert loss(at) < min(loss(0.99 * at), loss(1.01 * at))
  ws, _ = points()
  assert max(loss(1e-4 * w) for w in ws) < loss(np.zeros(4))


def test_for_one_patch_zero_is_no_maximum():
  target = jnp.array([1.0, 0.0])
  at = [problem.population_loss(s * target, target, 1) for s in (-1e-3, 0, 1e-3)]
  assert at[0] > at[1] > at[2]


@patches
def test_the_hessian_has_the_largest_eigenvalue_that_curvature_says(k):
  hessians = gradients(*points(), float(k))[2]
  largest = np.linalg.eigvalsh(hessians)[:, -1]
  np.testing.assert_allclose(largest, problem.curvature(k), rtol=1e-10)


@pytest.mark.parametrize("penalty", in_part(studies.PENALTIES, "l0"))
def test_theorem_1_inside_its_conditions(penalty):
  counted = studies.inside(CONFIG, penalty, "gauss_seidel")["claims"]
  broken = {name: claim["broken"] for name, claim in counted.items()}
  assert {claim["runs"] for claim in counted.values()} == {144}
  # What the paper claims, and what does not hold: the report says why.
  assert broken.pop("angle never rises") > 0
  assert broken.pop("2 k lam sqrt d < 1") == 6
  broken.pop("u is not all zero")
  assert not any(broken.values()), broken


def test_a_run_that_is_not_finite_breaks_every_claim_about_it():
  setting = runs.Setting.relative(np.array([2.0]), 1.0, 3, beta=1, lam=0.5, eta=1)
  start, target = np.full((1, 3), np.nan), np.eye(3)[:1]
  found = runs.claims(
    runs.simulate(setting, start, target, studies.PENALTIES["l1"], steps=5)
  )
  held = {name for name, claim in found.items() if claim.holds[0]}
  assert held == {"2 k lam sqrt d < 1"}


def test_the_l1_lagrangian_descends_in_the_printed_ordering_too():
  counted = studies.inside(CONFIG, "l1", "jacobi")["claims"]
  assert counted["Lagrangian never rises"]["broken"] == 0
  assert counted["(w, u) converges"]["broken"] == 0


@pytest.mark.slow
def test_the_error_is_linear_in_beta():
  rows = studies.error_against_beta(CONFIG)
  assert {(row["penalty"], row["k"]) for row in rows} == {
    (penalty, k) for penalty in studies.PENALTIES for k in (2, 5, 20)
  }
  for row in rows:
    assert abs(row["slope"] - 1) < 0.15, row
    # The paper's constant: ‖w - w*‖ = O(k beta sin γ), ‖u‖ sin γ <= ‖w - u‖.
    assert row["largest_error_over_k_beta_gap"] < 1.1


@pytest.mark.parametrize(
  "example", counterexamples.EXAMPLES, ids=lambda e: e.claim[:40]
)
def test_counterexamples_contradict(example):
  runs = counterexamples.run(example)
  contradicts, observed = example.shows(runs)
  assert contradicts, observed


def test_a_counterexample_outside_the_conditions_is_refused():
  example = counterexamples.EXAMPLES[0]
  with pytest.raises(ValueError, match="conditions of Theorem 1"):
    counterexamples.run(dataclasses.replace(example, beta=0.26))


@pytest.mark.parametrize(
  "example",
  [e for e in counterexamples.EXAMPLES if e.ordering == "jacobi"],
  ids=lambda e: e.penalty,
)
def test_the_cycle_is_that_of_the_ordering_alone(example):
  other = dataclasses.replace(example, ordering="gauss_seidel")
  assert counterexamples.run(other).trace.residual[0, -1] < 1e-12


def test_what_breaks_first_outside():
  config = dataclasses.replace(CONFIG, scan_starts=4)
  scans = studies.outside(config, "l0")
  eta = scans["eta"]
  energy = eta["broken"]["Lagrangian never rises"]
  assert energy[eta["values"].index(1.9)] == 0
  assert energy[eta["values"].index(2.1)] > 0.5
  beta = scans["beta"]["broken"]["C > 0"]
  assert beta[0] == 0
  assert beta[-1] == 1
  assert report.first_broken(eta, "Lagrangian never rises").startswith("2.1 (")
  assert report.first_broken(scans["k"], "C > 0") == "–"


@pytest.mark.slow
def test_the_command_writes_its_report(tmp_path, monkeypatch):
  # All penalties are tested above; here it is the report.
  monkeypatch.setattr(studies, "PENALTIES", {"l1": studies.PENALTIES["l1"]})
  config = dataclasses.replace(
    CONFIG, dims=(2,), steps=300, scan_starts=3, samples=1000
  )
  places = cli.Places(output=tmp_path / "run", results=tmp_path)
  command.main(config, places)
  result = results.read(tmp_path / "convergence.json")
  assert result["config"]["dims"] == [2]
  assert result["versions"]["jax"] == jax.__version__
  assert all(example["contradicts"] for example in result["counterexamples"])
  text = (tmp_path / "convergence.md").read_text()
  for figure in ("descent", "error", "shrinkage", "outside"):
    assert f"({figure}.png)" in text
    assert (tmp_path / f"{figure}.png").stat().st_size > 1000
  assert re.search(r"^\| l1 +\| +20 \|", text, re.MULTILINE)
  # Finished parts are not run again.
  monkeypatch.setattr(studies, "inside", pytest.fail)
  (tmp_path / "convergence.md").unlink()
  command.main(config, places)
  assert (tmp_path / "convergence.md").read_text().split("Time")[0] == text.split(
    "Time"
  )[0]
