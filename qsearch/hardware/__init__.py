"""Hardware cost models: a device turns a network's layers into a cost table over bit-widths."""

from __future__ import annotations

from qsearch.hardware.cache import build_table
from qsearch.hardware.device import AnalyticDevice, Device, DeviceDescription, graph_digest
from qsearch.hardware.presets import load_device, preset_names
from qsearch.hardware.table import ENGINE_VERSION, METRICS, CostTable, code, layer_size_bytes

__all__ = [
    "ENGINE_VERSION",
    "METRICS",
    "AnalyticDevice",
    "CostTable",
    "Device",
    "DeviceDescription",
    "build_table",
    "code",
    "graph_digest",
    "layer_size_bytes",
    "load_device",
    "preset_names",
]
