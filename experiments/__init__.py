"""The experiments of three papers, reproduced with `rvsm_jax`."""
