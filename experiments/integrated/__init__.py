"""Ma et al. (2019): integrated transformed l1 against l1, SGL and CGES on six sets.

Tables 2 and 3 and Figures 1 to 7, ours beside the paper's. See
`python -m experiments.integrated --help`.
"""
