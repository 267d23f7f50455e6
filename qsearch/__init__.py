"""qsearch: distributed multi-objective search over per-layer bit-widths of neural networks.

The functions below load torch and Ray only when they are called::

    import qsearch as qs

    front = qs.launch("studies/digits.yaml", directory="runs/digits")
    for point in front.points:
        print(point.accuracy["test"], point.costs["size"], point.config.weights)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qsearch.errors import QSearchError
from qsearch.types import BitConfig, LayerShape, Metrics, Score, TrialState

if TYPE_CHECKING:
    from qsearch.run.study import front, launch, resume

__version__ = "0.1.0"

__all__ = [
    "BitConfig",
    "LayerShape",
    "Metrics",
    "QSearchError",
    "Score",
    "TrialState",
    "__version__",
    "front",
    "launch",
    "resume",
]


def __getattr__(name: str) -> Any:
    if name in ("front", "launch", "resume"):
        return getattr(importlib.import_module("qsearch.run.study"), name)
    raise AttributeError(f"module 'qsearch' has no attribute {name!r}")
