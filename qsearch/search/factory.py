"""Making a searcher by its registered name."""

from __future__ import annotations

from typing import Any

from qsearch import plugins
from qsearch.errors import PluginError
from qsearch.search.base import Searcher


def make_searcher(name: str, **kwargs: Any) -> Searcher:
    """Makes the searcher registered under ``name``.

    Args:
        name: Name of a ``qsearch.searchers`` entry point.
        **kwargs: Arguments of :class:`Searcher`.

    Raises:
        PluginError: The name is not registered, cannot be imported, or is not a :class:`Searcher`.
        SpecError: An option is unknown or out of range.
    """
    found = plugins.load("searchers", name)
    if not (isinstance(found, type) and issubclass(found, Searcher)):
        raise PluginError(
            f"searcher {name!r} is registered as {found!r}, which is not a class derived from Searcher",
            "register a subclass of qsearch.search.Searcher",
        )
    return found(**kwargs)
