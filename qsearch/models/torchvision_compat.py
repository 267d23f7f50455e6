"""Imports torchvision even where its compiled operators do not load (a CUDA wheel beside a CPU build of torch).

Such a wheel fails with ``operator torchvision::nms does not exist`` while it registers shape functions for
operators that its extension would have defined. Models, datasets and transforms need none of them, so the
missing schemas are declared first. Where the extension loads, nothing here does anything.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

_SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_library: torch.library.Library | None = None  # kept alive: the declarations vanish with the object


def _declare_missing_operators() -> list[str]:
    """Declares the operators that the extension did not define and returns their names."""
    global _library
    missing = [name for name in _SCHEMAS if not hasattr(torch.ops.torchvision, name)]
    if missing and _library is None:
        _library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in missing:
            _library.define(name + _SCHEMAS[name])  # type: ignore[no-untyped-call]
    return missing


def import_torchvision() -> ModuleType:
    """Imports and returns torchvision, working around an extension that cannot load.

    Raises:
        RuntimeError: torchvision fails for a reason that has nothing to do with missing operators.
    """
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        _declare_missing_operators()
        return importlib.import_module("torchvision")
