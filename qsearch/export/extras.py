"""Optional packages: imported when they are needed, with an error that says what to install."""

from __future__ import annotations

import importlib
from typing import Any

from qsearch.errors import ExportError


class MissingExtra(ExportError):
    """A package of an optional extra is not installed."""


def require(module: str, extra: str, what: str) -> Any:
    """Imports an optional module.

    Args:
        module: Its dotted name.
        extra: The extra of qsearch that installs it.
        what: What it is needed for.

    Raises:
        MissingExtra: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise MissingExtra(
            f"{what} needs {package}, which is not installed", f"pip install 'qsearch[{extra}]'"
        ) from error
