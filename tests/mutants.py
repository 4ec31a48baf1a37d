"""Injects defects into a copy of rvsm_jax, one at a time, and asks who notices.

  python tests/mutants.py                    # all that have no result yet
  python tests/mutants.py --only admm,tl1    # those whose name has one of these
  python tests/mutants.py --fresh --jobs 2   # all, anew

A mutant is an exact text that is there once, and what replaces it. The tests that are
likely to notice run first; only if they pass do all tests of the library; both without
the slow ones. Results are in mutants.json beside this file, and mutants.md is a table
of them. The text of each mutant is kept in its result, so that one which was changed
runs again.
"""

import argparse
from collections.abc import Iterator
import concurrent.futures
import dataclasses
import json
import multiprocessing
import os
import pathlib
import queue
import shutil
import sys
import tempfile
from typing import Any

import pytest

CONTEXT = multiprocessing.get_context("forkserver")
IMPORTED = ("chex", "hypothesis", "jax", "mpmath", "optax", "pytest", "scipy.optimize")
HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "mutants.json"


@dataclasses.dataclass(frozen=True)
class Mutant:
  """A defect.

  Attributes:
    name: says what is wrong.
    file: within rvsm_jax.
    old: exact text, there once.
    new: what takes its place.
    tests: where it is likely to be noticed: arguments of pytest, without "tests/test_".
  """

  name: str
  file: str
  old: str
  new: str
  tests: tuple[str, ...]

  def applied(self, root: pathlib.Path = ROOT) -> str:
    """The text of the file with the defect."""
    text = (root / "rvsm_jax" / self.file).read_text()
    if text.count(self.old) != 1:
      raise LookupError(
        f"{self.name}: {self.old!r} is there {text.count(self.old)} times in"
        f" {self.file}, not once: adapt the mutant."
      )
    return text.replace(self.old, self.new)


def _of(file: str, *mutants: tuple[str, str, str, str]) -> Iterator[Mutant]:
  for name, old, new, tests in mutants:
    yield Mutant(name, file, old, new, tuple(tests.split()))


MUTANTS = (
  *_of(
    "_rvsm.py",
    (
      "rvsm: jacobi's u is the prox of the new params",
      'new = params if ordering == "jacobi" else',
      'new = params if ordering == "none" else',
      "rvsm.py::test_jacobi_is_algorithm_1_of_dinh_and_xin",
    ),
    (
      "rvsm: pull without beta",
      "rate = learning_rate(state.count) * beta(state.count)",
      "rate = learning_rate(state.count)",
      "rvsm.py::test_schedules_of_all_three_step_for_step"
      " rvsm.py::test_any_base_gets_minus_lr_beta_w_minus_u",
    ),
    (
      "rvsm: u at the old count",
      "u = split(new, count)",
      "u = split(new, state.count)",
      "rvsm.py::test_schedules_of_all_three_step_for_step",
    ),
    (
      "rvsm: count stands still",
      "count = optax.safe_increment(state.count)",
      "count = state.count",
      "rvsm.py::test_schedules_of_all_three_step_for_step",
    ),
    (
      "rvsm: count wraps around",
      "count = optax.safe_increment(state.count)",
      "count = state.count + 1",
      "optax_traps.py::test_counts_start_at_zero_step_by_one_and_saturate",
    ),
    (
      "rvsm: u in the dtype of params",
      "return u if u_dtype is None else optax.tree.cast(u, u_dtype)",
      "return u",
      "rvsm.py::test_u_dtype_is_that_of_the_state_only",
    ),
    (
      "rvsm: u not copied at the start",
      "u = jax.tree.map(lambda x: jnp.array(x, copy=True), split(params, count))",
      "u = split(params, count)",
      "optax_traps.py::test_u_is_a_copy_also_if_the_map_returns_what_it_is_given",
    ),
    (
      "rvsm: zero over zero at a beta of zero",
      "step = jnp.where(jnp.asarray(weight) > 0, weight / stiffness, 0)",
      "step = jnp.asarray(weight) / stiffness",
      "rvsm.py",
    ),
    (
      "rvsm: jacobi without u not refused",
      'if not carry_u and ordering == "jacobi":',
      'if not carry_u and ordering == "none":',
      "transform_errors.py::test_jacobi_needs_a_carried_u",
    ),
    (
      "rvsm: normalised leaf by leaf when it should be as a whole",
      "norm = jnp.sqrt(total if whole else square)",
      "norm = jnp.sqrt(square)",
      "rvsm.py::test_normalisation_per_leaf_and_global_on_selected_leaves",
    ),
    (
      "rvsm: a leaf of zeros divided by its norm",
      "unit = reached(w, d) / jnp.where(norm > 0, norm, 1)",
      "unit = reached(w, d) / norm",
      "rvsm.py::test_normalisation_of_a_zero_leaf_is_finite",
    ),
  ),
  *_of(
    "_transform.py",
    (
      "transform: pull away from u",
      "return (d.astype(dtype) - pull).astype(w.dtype)",
      "return (d.astype(dtype) + pull).astype(w.dtype)",
      "rvsm.py::test_gauss_seidel_is_algorithm_1_of_xue_and_xin",
    ),
    (
      "transform: pull in half precision",
      "(w.astype(dtype) - target.astype(dtype))",
      "(w - target.astype(w.dtype)).astype(dtype)",
      "rvsm.py::test_the_pull_is_not_computed_in_half_precision",
    ),
    (
      "transform: difference of the unrounded image",
      "return (new.astype(w.dtype).astype(dtype) - w.astype(dtype)).astype(w.dtype)",
      "return (new - w.astype(new.dtype)).astype(w.dtype)",
      "proximal.py::test_the_params_are_the_image_rounded_once",
    ),
    (
      "transform: one of all leaves taken leaf by leaf",
      "if _penalty.is_joint(penalty):\n    return penalty.prox(tree, step)",
      "if False:\n    return penalty.prox(tree, step)",
      "scope.py::test_every_transformation_keeps_the_budget_of_all_leaves",
    ),
  ),
  *_of(
    "_proximal.py",
    (
      "proximal: step without the learning rate",
      "step = learning_rate(state.count) * lam(state.count)",
      "step = lam(state.count)",
      "proximal.py::test_the_iterates_are_ista",
    ),
    (
      "proximal: count stands still",
      "return updates, ProximalState(optax.safe_increment(state.count))",
      "return updates, ProximalState(state.count)",
      "proximal.py::test_schedules_of_learning_rate_and_lam",
    ),
    (
      "proximal_adam: prox in the Euclidean metric",
      "step = weight * rate / (jnp.sqrt(v) + eps)",
      "step = weight * rate + 0 * v",
      "proximal_adam.py::test_separable_updates_are_global_minimisers_in_the_metric",
    ),
    (
      "proximal_adam: second moment without bias correction",
      "optax.tree.bias_correction(nu, b2, count)",
      "nu",
      "proximal_adam.py::test_separable_updates_are_global_minimisers_in_the_metric",
    ),
    (
      "proximal_adam: moments of what has no gradient are dropped",
      "return old if new is None else new.astype(old.dtype)",
      "return old * 0 if new is None else new.astype(old.dtype)",
      "proximal_adam.py::test_a_leaf_without_update_keeps_its_moments",
    ),
    (
      "proximal_adam: moments stay in float32",
      "return old if new is None else new.astype(old.dtype)",
      "return old if new is None else new",
      "optax_suite.py::test_dtypes_shapes_and_structures_are_kept_in_every_wrapper",
    ),
    (
      "penalty gradient: subtracted",
      "(g.astype(slope.dtype) + weight * slope)",
      "(g.astype(slope.dtype) - weight * slope)",
      "proximal.py::test_penalty_gradient_is_that_of_the_penalised_loss",
    ),
  ),
  *_of(
    "_admm.py",
    (
      "admm: sign of the dual in the pull",
      "_transform.pulled(w, d, u - y, rate)",
      "_transform.pulled(w, d, u + y, rate)",
      "admm.py::test_the_iterates_are_those_of_the_formula",
    ),
    (
      "admm: dual stands still",
      "lambda w, y, u: y + w - u, _masks.drop",
      "lambda w, y, u: y, _masks.drop",
      "admm.py::test_the_iterates_are_those_of_the_formula",
    ),
    (
      "admm: u not copied at the start",
      "u = jax.tree.map(lambda x: jnp.array(x, copy=True), u)",
      "u = u",
      "optax_traps.py::test_u_is_a_copy_also_if_the_map_returns_what_it_is_given",
    ),
    (
      "admm: mask ignored for the dual",
      "dual = _masks.map_selected(jnp.zeros_like, _masks.drop, mask, params)",
      "dual = jax.tree.map(jnp.zeros_like, params)",
      "optax_traps.py::test_an_update_keeps_the_structure_of_a_masked_state",
    ),
  ),
  *_of(
    "_componentwise.py",
    (
      "scad: jump at the wrong place",
      "(gamma + 1 + step) / 2, jnp.sqrt(step * (gamma + 1))",
      "(gamma + step) / 2, jnp.sqrt(step * (gamma + 1))",
      "prox_global.py::test_separable_prox_is_the_global_minimiser",
    ),
    (
      "mcp: firm threshold not rescaled",
      "/ jnp.where(convex, 1 - step / gamma, 1)",
      "/ jnp.where(convex, 1, 1)",
      "prox_global.py::test_separable_prox_is_the_global_minimiser",
    ),
    (
      "log_penalty: a local minimiser",
      "x > kappa * g, better & (4 * kappa <= total * total))",
      "x > kappa * g, 4 * kappa <= total * total)",
      "prox_global.py::test_separable_prox_is_the_global_minimiser",
    ),
    (
      "lp: three Newton steps too few",
      "for _ in range(6):",
      "for _ in range(3):",
      "prox_properties.py::test_float32_error_in_ulp"
      " prox_global.py::test_separable_prox_is_the_global_minimiser",
    ),
    (
      "elastic_net: ridge not scaled by the step",
      "/ (1 + step * alpha)",
      "/ (1 + alpha)",
      "prox_properties.py::test_step_zero_is_the_identity",
    ),
    (
      "capped_l1: cap too far",
      "jnp.where(step <= 2 * a, a + step / 2, jnp.sqrt(2 * step * a))",
      "jnp.where(step <= 2 * a, a + step, jnp.sqrt(2 * step * a))",
      "prox_global.py::test_separable_prox_is_the_global_minimiser",
    ),
  ),
  *_of(
    "_thresholds.py",
    (
      "hard threshold: without the 2",
      "jnp.abs(x) <= jnp.sqrt(2 * gamma)",
      "jnp.abs(x) <= jnp.sqrt(gamma)",
      "peer_defects.py::test_l0_threshold_is_the_square_root_of_two_lam",
    ),
    (
      "thresholds: infinity becomes NaN",
      "return jnp.where(jnp.isfinite(x), prox(x, *args), x)",
      "return prox(x, *args)",
      "prox_properties.py::test_infinity_stays prox_properties.py",
    ),
    (
      "tl1: cutoff of the other branch",
      "convex = 2 * half_square <= a * a",
      "convex = half_square <= a * a",
      "transformed_l1.py::test_threshold_within_two_ulp",
    ),
    (
      "tl1: polynomial of too low a degree",
      "20 if x.dtype == jnp.float64 else 9",
      "20 if x.dtype == jnp.float64 else 6",
      "transformed_l1.py::test_error_in_ulp_of_x",
    ),
    (
      "tl1: shrinks by more than the cutoff",
      "shrinkage = jnp.minimum(t * t * scale * factor, cutoff)",
      "shrinkage = t * t * scale * factor",
      "transformed_l1.py",
    ),
    (
      "thresholds: NaN becomes zero",
      "return jnp.where((jnp.abs(x) <= jnp.sqrt(2 * gamma)) & (gamma > 0), 0, x)",
      "return jnp.where((jnp.abs(x) > jnp.sqrt(2 * gamma)) | (gamma <= 0), x, 0)",
      "prox_properties.py::test_nan_stays_nan",
    ),
    (
      "thresholds: half precision computed in itself",
      "args = [jnp.asarray(h).astype(dtype) for h in (gamma, *hyperparams)]",
      "dtype = x.dtype\n    "
      "args = [jnp.asarray(h).astype(dtype) for h in (gamma, *hyperparams)]",
      "prox_properties.py::test_half_precision_is_computed_in_float32",
    ),
    (
      "thresholds: derivative without the curvature",
      "(tangents[0] - change) / curvature, 0)",
      "tangents[0] - change, 0)",
      "gradients.py::test_prox_derivatives_are_finite_differences",
    ),
  ),
  *_of(
    "_groups.py",
    (
      "sparse_group_lasso: mu of the other term",
      "second.prox(first.prox(z, step * m), step * (1 - m))",
      "second.prox(first.prox(z, step * (1 - m)), step * m)",
      "prox_global.py::test_integrated_tl1_is_the_composition_of_ma_et_al",
    ),
    (
      "sparse_group_lasso: groups first, entries then",
      "second.prox(first.prox(z, step * m), step * (1 - m))",
      "first.prox(second.prox(z, step * (1 - m)), step * m)",
      "prox_global.py::test_integrated_tl1_is_the_composition_of_ma_et_al",
    ),
    (
      "integrated_tl1_schedule: one layer off",
      "last = max(int(num_layers) - 1, 1)",
      "last = max(int(num_layers), 1)",
      "masks.py::test_integrated_tl1_schedule",
    ),
    (
      "exclusive_lasso: its one step",
      "return step * jnp.max(sums, axis=-1, keepdims=True)",
      "return step * sums[..., -1:]",
      "prox_global.py::test_grouped_prox_is_stationary",
    ),
    (
      "combined_group_exclusive: mu of the other term",
      "rows, first, second = rows / scale, step * m, step * (1 - m) / scale",
      "rows, first, second = rows / scale, step * (1 - m), step * m / scale",
      "prox_global.py::test_grouped_prox_is_stationary",
    ),
  ),
  *_of(
    "_group_thresholds.py",
    (
      'groups: "in" and "out" exchanged',
      'kept = {"out": 1, "in": 2}[groups]',
      'kept = {"out": 2, "in": 1}[groups]',
      "peer_defects.py::test_each_filter_is_a_group",
    ),
    (
      "groups: NaN in the derivative of a group of zeros",
      "return x / jnp.where(norm > 0, norm, 1)",
      "return x / norm",
      "gradients.py::test_value_has_gradient_zero_at_zero",
    ),
    (
      "group_l0: without the 2",
      "unit = jnp.sqrt(2 * gamma) *",
      "unit = jnp.sqrt(gamma) *",
      "prox_global.py::test_grouped_prox_is_stationary",
    ),
    (
      "groups: one Newton step in the metric",
      "_NEWTON_STEPS = 64",
      "_NEWTON_STEPS = 1",
      "proximal_adam.py::test_metric_shrinkage_is_the_global_minimiser",
    ),
  ),
  *_of(
    "_penalty.py",
    (
      "scaled: value without lam",
      "return jnp.asarray(lam * penalty.value(x))",
      "return jnp.asarray(penalty.value(x))",
      "prox_properties.py::test_value_is_the_definition",
    ),
    (
      "scaled: threshold not scaled back",
      "lambda t: to_step(t) / lam",
      "lambda t: to_step(t)",
      "cutoff.py::test_scaled_and_rebuilt_penalties_keep_it",
    ),
    (
      "penalty: a step of the wrong shape accepted",
      "if scalar_for:",
      "if False:",
      "prox_properties.py::test_only_a_scalar_step",
    ),
  ),
  *_of(
    "_sets.py",
    (
      "nonnegative: the other sign",
      "jnp.where((x < 0) & (step > 0), 0, x)",
      "jnp.where((x > 0) & (step > 0), 0, x)",
      "prox_global.py::test_separable_prox_is_the_global_minimiser prox_properties.py",
    ),
  ),
  *_of(
    "_ranking.py",
    (
      "cardinality: of equal magnitudes the last are kept",
      "place = place - stride *",
      "place = place + stride *",
      "prox_global.py::test_cardinality_keeps_the_largest_and_of_equal_ones_the_first",
    ),
    (
      "cardinality: share rounded down",
      "math.ceil(float(known) * entries * (1 - 1e-12))",
      "math.floor(float(known) * entries)",
      "prox_global.py::test_cardinality_is_feasible_whatever_the_rounding"
      " prox_global.py::test_cardinality_is_the_nearest_feasible_array"
      " scope.py::test_the_largest_of_all_leaves_are_kept_and_of_equal_ones_the_first",
    ),
    (
      "cardinality: the search never divides evenly",
      "even = even | (gap > keys.even)",
      "even = jnp.zeros_like(even)",
      "ranking.py::test_few_passes_whatever_the_weights",
    ),
    (
      "cardinality: a carry is lost above 32 bits",
      "- borrow.astype(jnp.uint32)",
      "",
      "ranking.py::test_arithmetic_of_large_numbers",
    ),
  ),
  *_of(
    "_norms.py",
    (
      "l1_minus_l2: shrinks the norm",
      "shrink_groups(soft, -step, tuple(range(x.ndim)))",
      "shrink_groups(soft, step, tuple(range(x.ndim)))",
      "prox_global.py::test_vector_prox_is_the_global_minimiser",
    ),
    (
      "nuclear: matrix of the wrong axis",
      "return x.reshape(-1, x.shape[-1])",
      "return x.reshape(x.shape[0], -1)",
      "prox_global.py::test_nuclear_prox_is_stationary",
    ),
  ),
  *_of(
    "_cutoff.py",
    (
      "cutoff: a bit too few",
      "bits = jax.lax.fori_loop(0, width - 1, refine",
      "bits = jax.lax.fori_loop(0, width - 2, refine",
      "cutoff.py::test_the_map_is_zero_up_to_the_threshold_and_not_above cutoff.py",
    ),
  ),
  *_of(
    "_controller.py",
    (
      "target_sparsity: moves lam the wrong way",
      "error = jnp.log((1.0001 - share) / (1.0001 - wanted))",
      "error = jnp.log((1.0001 - wanted) / (1.0001 - share))",
      "controller.py::test_lam_moves_against_the_error_by_the_law_that_is_documented",
    ),
    (
      "target_sparsity: mask ignored",
      "strict=True) if p])",
      "strict=True)])",
      "controller.py::test_only_selected_leaves_count",
    ),
    (
      "target_sparsity: lam leaves its bounds",
      "jnp.exp(jnp.clip(log_lam + push, *within))",
      "jnp.exp(log_lam + push)",
      "controller.py::test_lam_stays_within_bounds",
    ),
    (
      "sparsity_schedule: begins at once",
      "power, steps, begin)",
      "power, steps, 0)",
      "controller.py::test_ramp_is_monotone_and_exact_at_its_ends",
    ),
  ),
  *_of(
    "_sparse_params.py",
    (
      "sparse_params: keeps the dtype of u",
      "return u.astype(w.dtype)",
      "return u",
      "sparse_params.py::test_dtype_and_structure_are_those_of_params",
    ),
    (
      "sparse_params: two states may claim one leaf",
      "if names[path] in found:",
      "if False:",
      "sparse_params.py::test_two_states_that_claim_one_leaf",
    ),
  ),
  *_of(
    "_diagnostics.py",
    (
      "residual: the sign of Xue & Xin's (2.5)",
      "return g + beta * (w - v.astype(w.dtype))",
      "return g - beta * (w - v.astype(w.dtype))",
      "rvsm.py::test_the_limit_is_a_critical_point_with_the_right_sign",
    ),
    (
      "lagrangian: beta not halved",
      "+ beta / 2 * sum(distances)",
      "+ beta * sum(distances)",
      "rvsm.py::test_lagrangian_by_hand",
    ),
  ),
  *_of(
    "_masks.py",
    (
      "masks: a bare False accepted",
      "if _is_bool(mask) and (isinstance(mask, jax.core.Tracer) or not mask):",
      "if False:",
      "transform_errors.py::test_masks_that_are_wrong",
    ),
    (
      "masks: alphabetical order",
      'tuple((int(p), "") if p.isdigit() else (-1, p) for p in parts)',
      "((0, name),)",
      "masks.py::test_layer_index_sorts_naturally_not_alphabetically",
    ),
    (
      "masks: kernels take vectors",
      "jnp.ndim(leaf) >= 2",
      "jnp.ndim(leaf) >= 1",
      "masks.py",
    ),
  ),
  *_of(
    "_metrics.py",
    (
      "sparsity: strictly below the threshold",
      "return _share(tree, lambda x: jnp.abs(x) <= threshold)",
      "return _share(tree, lambda x: jnp.abs(x) < threshold)",
      "metrics.py::test_sparsity_is_the_share_at_or_below_the_threshold",
    ),
    (
      "flop_ratio: a convolution by its full kernel",
      "float(out.size) * right.size / right.shape[numbers.rhs_spec[0]]",
      "float(out.size) * right.size",
      "metrics.py",
    ),
    (
      "neurons_removed: ingoing weights of the wrong axis",
      "dead = jnp.all(layer == 0, axis=tuple(range(layer.ndim - 1)))",
      "dead = jnp.all(layer == 0, axis=tuple(range(1, layer.ndim)))",
      "metrics.py::test_neurons_removed_by_hand metrics.py",
    ),
  ),
  *_of(
    "_pruning.py",
    (
      "keep_zeros: hides NaN",
      "jnp.where((w == 0) & ~jnp.isnan(d), 0, d)",
      "jnp.where(w == 0, 0, d)",
      "pruning.py::test_keep_zeros_hides_no_nan_and_lets_none_pass",
    ),
    (
      "magnitude_pruning: one update late",
      "state.count % every == 0,",
      "(state.count + 1) % every == 0,",
      "pruning.py",
    ),
  ),
  *_of(
    "_straight_through.py",
    (
      "straight_through: the optimizer sees the sparse params",
      "updates, state.inner_state, dense, **extra_args",
      "updates, state.inner_state, params, **extra_args",
      "straight_through.py"
      "::test_the_optimizer_sees_the_latent_weights_and_what_else_update_is_given",
    ),
    (
      "straight_through: latent weights not rounded to what params become",
      "return _landed(v, optax.apply_updates(v, d))",
      "return optax.apply_updates(v, d)",
      "straight_through.py::test_a_number_that_an_update_leads_to_it_leads_to_again",
    ),
    (
      "straight_through: latent weights not copied",
      "lambda w: jnp.array(w, copy=True), _masks.drop",
      "lambda w: w, _masks.drop",
      "straight_through.py::test_params_and_state_can_be_donated",
    ),
    (
      "straight_through: schedule one step ahead",
      "_transform.prox(penalty, latent, step(count))",
      "_transform.prox(penalty, latent, step(count + 1))",
      "straight_through.py::test_a_schedule_is_taken_at_the_updates_before",
    ),
  ),
  *_of(
    "_validate.py",
    (
      "validate: infinity is a good beta",
      "(v > 0) & np.isfinite(v)",
      "v > 0",
      "transform_errors.py::test_numbers_that_must_be_positive",
    ),
    (
      "validate: half precision is not widened",
      "return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32",
      "return dtype",
      "prox_properties.py::test_half_precision_is_computed_in_float32",
    ),
    (
      "validate: True is a number",
      'number.dtype.kind in "iu"',
      'number.dtype.kind in "iub"',
      "penalty_errors.py::test_hyperparameters_are_numbers"
      " transform_errors.py::test_numbers_of_another_type",
    ),
  ),
  *_of(
    "compaction/_unit_cardinality.py",
    (
      "units: weights count for the unit that they come from",
      "if known is None or axis > known.axis:",
      "if known is None or axis < known.axis:",
      "unit_cardinality.py",
    ),
    (
      "units: squares overflow",
      "jnp.square(x.astype(dtype) / scale)",
      "jnp.square(x.astype(dtype))",
      "unit_cardinality.py::test_tiny_and_huge_units",
    ),
    (
      "units: the groups ranked as one",
      "[of_norms.prox(part, 1.0) != 0 for part in norms(leaves, units)]",
      "[of_norms.prox(jnp.concatenate(norms(leaves, units)), 1.0) != 0]",
      "unit_cardinality.py::test_the_largest_units_stay_as_they_are",
    ),
    (
      "units: a step of zero drops",
      "dropped = (step > 0) & ~kept",
      "dropped = ~kept",
      "unit_cardinality.py::test_dtypes_and_what_is_not_finite",
    ),
  ),
  *_of(
    "export.py",
    (
      "export: -0.0 is a zero",
      'filled = flat.view(f"u{x.itemsize}") != 0',
      "filled = flat != 0",
      "export.py::test_special_values_keep_their_bits",
    ),
    (
      "export: bits from the highest",
      'bitmask = np.packbits(filled, bitorder="little")',
      'bitmask = np.packbits(filled, bitorder="big")',
      "export.py",
    ),
    (
      "export: checksum of a leaf not checked",
      'if None in parts or _digest(*parts) != entry["sha256"]:',
      "if None in parts:",
      "export.py::test_an_altered_leaf_is_named",
    ),
  ),
)


def library_tests(root: pathlib.Path) -> list[str]:
  """The test files that do not need the experiments, the quick ones first."""
  files = sorted((root / "tests").glob("test_*.py"), key=lambda f: f.stat().st_size)
  return [f"tests/{f.name}" for f in files if "experiments" not in f.read_text()]


class Recorder:
  """A plugin of pytest that keeps the first test that failed."""

  def __init__(self) -> None:
    self.failed: str | None = None

  def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
    if report.failed and self.failed is None:
      self.failed = report.nodeid


def run_tests(folder: str, tests: list[str], results: Any) -> None:
  """Runs tests of the copy in `folder`: the exit code and the first that failed."""
  os.chdir(folder)
  sys.path[:0] = [folder, f"{folder}/tests"]
  sys.dont_write_bytecode = True
  output = os.open("output", os.O_WRONLY | os.O_CREAT)
  os.dup2(output, 1)
  os.dup2(output, 2)
  recorder = Recorder()
  options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-m", "not slow"]
  code = pytest.main([*options, *tests], plugins=[recorder])
  results.put((int(code), recorder.failed))


def examine(mutant: Mutant, whole: bool, seconds: float) -> dict[str, str | None]:
  """Who notices the defect: a test, or None."""
  with tempfile.TemporaryDirectory(prefix="mutant") as folder:
    copy = pathlib.Path(folder)
    ignore = shutil.ignore_patterns("__pycache__")
    for name in ("rvsm_jax", "tests"):
      shutil.copytree(ROOT / name, copy / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", copy)
    (copy / "rvsm_jax" / mutant.file).write_text(mutant.applied())
    stages = [[f"tests/test_{test}"] for test in mutant.tests]
    stages += [library_tests(copy)] if whole else []
    for stage in stages:
      # Forked from a process that has imported what all tests import.
      results = CONTEXT.Queue()
      process = CONTEXT.Process(target=run_tests, args=(folder, stage, results))
      process.start()
      try:
        code, failed = results.get(timeout=seconds)
      except queue.Empty:
        process.kill()
        return {"killed_by": f"{stage[0]} (no end)"}
      finally:
        process.join()
      if failed:
        return {"killed_by": failed}
      if code:
        output = (copy / "output").read_text()
        raise RuntimeError(f"{mutant.name}: pytest ends with {code}: {output[-2000:]}")
  return {"killed_by": None, "seen": "whole library" if whole else "likely tests"}


def table(results: dict[str, dict]) -> str:
  """The results as Markdown."""
  killed = sum(r["killed_by"] is not None for r in results.values())
  lines = [
    "# Defects injected into rvsm_jax",
    "",
    f"`python tests/mutants.py`: {len(results)} of {len(MUTANTS)} defects examined,"
    f" {killed} killed ({killed / max(len(results), 1):.0%}).",
    "",
    "| file | defect | killed by |",
    "|---|---|---|",
  ]
  for name, result in results.items():
    by = result["killed_by"]
    by = f"`{by.removeprefix('tests/')}`" if by else f"**lives** ({result['seen']})"
    lines.append(f"| {result['file']} | {name} | {by} |")
  return "\n".join(lines) + "\n"


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default="", help="parts of names, by commas")
  parser.add_argument("--fresh", action="store_true", help="forget earlier results")
  parser.add_argument("--jobs", type=int, default=2)
  parser.add_argument("--likely", action="store_true", help="leave the whole suite out")
  parser.add_argument("--seconds", type=float, default=3600, help="limit of one run")
  arguments = parser.parse_args()
  old = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
  results = {}
  for mutant in MUTANTS:
    mutant.applied()
    result = old.get(mutant.name, {})
    if (result.get("old"), result.get("new")) == (mutant.old, mutant.new):
      results[mutant.name] = result
  only = arguments.only.split(",")
  todo = [
    mutant
    for mutant in MUTANTS
    if any(part in mutant.name for part in only)
    and (arguments.fresh or mutant.name not in results)
  ]
  CONTEXT.set_forkserver_preload(list(IMPORTED))
  with concurrent.futures.ThreadPoolExecutor(arguments.jobs) as pool:
    futures = {
      pool.submit(examine, m, not arguments.likely, arguments.seconds): m for m in todo
    }
    for future in concurrent.futures.as_completed(futures):
      mutant = futures[future]
      result = {"file": mutant.file, "old": mutant.old, "new": mutant.new}
      results[mutant.name] = result | future.result()
      print(f"{mutant.name}: {results[mutant.name]['killed_by']}", flush=True)
      ordered = {m.name: results[m.name] for m in MUTANTS if m.name in results}
      RESULTS.write_text(json.dumps(ordered, indent=1) + "\n")
      RESULTS.with_suffix(".md").write_text(table(ordered))


if __name__ == "__main__":
  main()
