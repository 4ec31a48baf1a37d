"""Speed and memory of the transformations, as ratios to plain SGD in one process."""
