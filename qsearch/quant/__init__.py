"""Quantized arithmetic: grids, calibration, closed-form rounding, statistics correction, block reconstruction."""
