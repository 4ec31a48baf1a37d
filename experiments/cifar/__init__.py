"""Dinh & Xin (2020), section 6: sparse VGG-16 and ResNet-18 on CIFAR-10.

Tables 1 and 2, and beyond them the same networks at a target sparsity, by RVSM and by
gradual magnitude pruning. `python -m experiments.cifar --help` shows what can be set.
"""
