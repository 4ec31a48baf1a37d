"""Whole regularisation paths by one compiled program; see docs/paths.md."""
