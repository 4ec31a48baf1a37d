"""Xue & Xin (2019): curves drawn by a steady or a shaky hand, with a sparse CNN.

The network of the paper's Fig. 1 tells planar shapes, or letters, drawn by a steady
hand from those drawn by a shaky one; RVSM makes its dense layer, 97% of its weights,
sparse. `python -m experiments.curves --help` shows what can be set.
"""
