"""Plug-ins: searchers, devices, evaluators, models, datasets, found through Python entry points.

The built-in ones are registered in ``pyproject.toml`` exactly as a third party registers its own.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from qsearch.errors import PluginError, nearest

KINDS = ("searchers", "devices", "evaluators", "models", "datasets")


@cache
def _registered(kind: str) -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=f"qsearch.{kind}")}


def names(kind: str) -> list[str]:
    """Returns the registered names of one kind, sorted.

    Args:
        kind: One of :data:`KINDS`.
    """
    return sorted(_registered(kind))


def load(kind: str, name: str) -> Any:
    """Imports a plug-in.

    Args:
        kind: One of :data:`KINDS`.
        name: Its registered name, or ``package.module:attribute`` for one that is not registered.

    Raises:
        PluginError: The name is not registered, or its module cannot be imported.
    """
    if ":" in name:
        return resolve(name, kind[:-1])
    points = _registered(kind)
    if name not in points:
        hint = nearest(name, points)
        if not points:
            hint = "no plug-in is registered at all: install the package (pip install .), do not only copy it"
        raise PluginError(f"unknown {kind[:-1]} {name!r}", hint)
    try:
        return points[name].load()
    except (ImportError, AttributeError) as error:
        raise PluginError(
            f"{kind[:-1]} {name!r} is registered as {points[name].value!r} but cannot be loaded: {error}",
            "reinstall the package that provides it",
        ) from error


def resolve(target: str, what: str) -> Any:
    """Imports ``package.module:attribute``.

    Args:
        target: The dotted module path, a colon, and an attribute (dots allowed in it).
        what: What the attribute is used as; appears in the error.

    Raises:
        PluginError: The target is malformed, or cannot be imported.
    """
    module_name, _, attribute = target.partition(":")
    if not module_name or not attribute:
        raise PluginError(f"{what} {target!r} is not of the form 'package.module:function'", "write it with one colon")
    try:
        value: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise PluginError(
            f"{what} {target!r}: no module named {error.name!r}",
            "install the package, or start qsearch from the directory that holds it",
        ) from error
    except Exception as error:
        raise PluginError(
            f"{what} {target!r}: importing {module_name!r} fails: {type(error).__name__}: {error}",
            "import it by itself to see why",
        ) from error
    for part in attribute.split("."):
        if not hasattr(value, part):
            raise PluginError(f"{what} {target!r}: {module_name!r} has no {part!r}", nearest(part, dir(value)))
        value = getattr(value, part)
    return value
