"""Train neural networks to exact zeros, with Optax."""

from rvsm_jax._admm import ADMMState, admm
from rvsm_jax._componentwise import (
  capped_l1,
  elastic_net,
  l0,
  l1,
  log_penalty,
  lp,
  mcp,
  scad,
  transformed_l1,
)
from rvsm_jax._controller import (
  TargetSparsityState,
  sparsity_schedule,
  target_sparsity,
)
from rvsm_jax._cutoff import step_for_threshold, threshold_for_step
from rvsm_jax._diagnostics import critical_point_residual, lagrangian
from rvsm_jax._fista import FistaState, fista
from rvsm_jax._group_thresholds import block_soft_threshold
from rvsm_jax._groups import (
  combined_group_exclusive,
  exclusive_lasso,
  exclusive_lasso_one_step,
  group_l0,
  group_lasso,
  integrated_tl1,
  integrated_tl1_schedule,
  sparse_group_lasso,
)
from rvsm_jax._masks import by_path, kernels, layer_index
from rvsm_jax._metrics import (
  flop_ratio,
  neurons_removed,
  parameter_ratio,
  sign_changes,
  sparsity,
  sparsity_by_scale,
)
from rvsm_jax._norms import l1_minus_l2, nuclear
from rvsm_jax._penalty import Penalty, scaled
from rvsm_jax._proximal import (
  PenaltyGradientState,
  ProximalAdamState,
  ProximalState,
  add_penalty_gradient,
  proximal,
  proximal_adam,
  proximal_sgd,
)
from rvsm_jax._pruning import (
  MagnitudePruningState,
  keep_zeros,
  magnitude_pruning,
)
from rvsm_jax._rvsm import RVSMState, rvsm, rvsm_sgd
from rvsm_jax._sets import cardinality, nm_sparsity, nonnegative
from rvsm_jax._sparse_params import sparse_params
from rvsm_jax._sparsify import sparsify
from rvsm_jax._straight_through import StraightThroughState, straight_through
from rvsm_jax._thresholds import (
  hard_threshold,
  soft_threshold,
  transformed_l1_threshold,
)

__version__ = "0.1.0"

__all__ = (
  "ADMMState",
  "FistaState",
  "MagnitudePruningState",
  "Penalty",
  "PenaltyGradientState",
  "ProximalAdamState",
  "ProximalState",
  "RVSMState",
  "StraightThroughState",
  "TargetSparsityState",
  "add_penalty_gradient",
  "admm",
  "block_soft_threshold",
  "by_path",
  "capped_l1",
  "cardinality",
  "combined_group_exclusive",
  "critical_point_residual",
  "elastic_net",
  "exclusive_lasso",
  "exclusive_lasso_one_step",
  "fista",
  "flop_ratio",
  "group_l0",
  "group_lasso",
  "hard_threshold",
  "integrated_tl1",
  "integrated_tl1_schedule",
  "keep_zeros",
  "kernels",
  "l0",
  "l1",
  "l1_minus_l2",
  "lagrangian",
  "layer_index",
  "log_penalty",
  "lp",
  "magnitude_pruning",
  "mcp",
  "neurons_removed",
  "nm_sparsity",
  "nonnegative",
  "nuclear",
  "parameter_ratio",
  "proximal",
  "proximal_adam",
  "proximal_sgd",
  "rvsm",
  "rvsm_sgd",
  "scad",
  "scaled",
  "sign_changes",
  "soft_threshold",
  "sparse_group_lasso",
  "sparse_params",
  "sparsify",
  "sparsity",
  "sparsity_by_scale",
  "sparsity_schedule",
  "step_for_threshold",
  "straight_through",
  "target_sparsity",
  "threshold_for_step",
  "transformed_l1",
  "transformed_l1_threshold",
)
