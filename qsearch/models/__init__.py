"""Networks: building and loading them, tracing, batch-norm folding, the layer table, reconstruction units."""

from qsearch.models.describe import describe_graph
from qsearch.models.graph import ActivationTensor, QuantGraph, build_graph
from qsearch.models.resolve import load_checkpoint, load_network
from qsearch.models.unit_rules import UnitRule, read_unit_rule
from qsearch.models.units import Unit

__all__ = [
    "ActivationTensor",
    "QuantGraph",
    "Unit",
    "UnitRule",
    "build_graph",
    "describe_graph",
    "load_checkpoint",
    "load_network",
    "read_unit_rule",
]
