"""The networks of the experiments, in Flax NNX."""
