"""Datasets and the three disjoint splits."""

from qsearch.data.resolve import load_datasets
from qsearch.data.splits import Split, read_splits, stratified_split

__all__ = ["Split", "load_datasets", "read_splits", "stratified_split"]
