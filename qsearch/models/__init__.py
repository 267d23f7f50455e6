"""Networks: building and loading them, tracing, batch-norm folding, the layer table, reconstruction units."""

from qsearch.models.graph import ActivationTensor, QuantGraph, build_graph
from qsearch.models.resolve import load_checkpoint, load_network
from qsearch.models.units import Unit

__all__ = ["ActivationTensor", "QuantGraph", "Unit", "build_graph", "load_checkpoint", "load_network"]
