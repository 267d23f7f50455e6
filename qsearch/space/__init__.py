"""The search space: which widths each layer may take, and which bounds a configuration must meet."""

from qsearch.space.constraints import Constraint, ConstraintSet, mean_bits_table
from qsearch.space.genes import Gene, IntArray
from qsearch.space.space import SearchSpace

__all__ = ["Constraint", "ConstraintSet", "Gene", "IntArray", "SearchSpace", "mean_bits_table"]
