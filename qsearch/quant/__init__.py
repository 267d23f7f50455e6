"""Quantized arithmetic: grids, calibration, a network whose bits can be switched, block reconstruction."""

from qsearch.quant.calibrate import sample_activations
from qsearch.quant.fisher import fisher_weights
from qsearch.quant.grids import ActivationGrid, WeightGrid, search_activation_grid, search_weight_grid
from qsearch.quant.network import QuantizedNetwork, Recorder, extract_unit
from qsearch.quant.reconstruct import Schedule, reconstruct_unit

__all__ = [
    "ActivationGrid",
    "QuantizedNetwork",
    "Recorder",
    "Schedule",
    "WeightGrid",
    "extract_unit",
    "fisher_weights",
    "reconstruct_unit",
    "sample_activations",
    "search_activation_grid",
    "search_weight_grid",
]
