"""From the ``data`` entry of a study to its datasets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qsearch import plugins
from qsearch.errors import DataError, QSearchError


def load_datasets(source: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Calls the data factory that a study names.

    Args:
        source: ``qsearch:NAME`` (a registered dataset) or ``package.module:function``.
        arguments: Keyword arguments of the factory.

    Returns:
        Datasets by split name, as the factory returned them.

    Raises:
        DataError: The factory fails or does not return a mapping.
        PluginError: The source does not exist.
    """
    scheme, _, name = source.partition(":")
    factory = plugins.load("datasets", name) if scheme == "qsearch" else plugins.resolve(source, "data")
    try:
        datasets = factory(**arguments)
    except QSearchError:
        raise
    except Exception as error:
        raise DataError(
            f"data factory {source!r} failed: {type(error).__name__}: {error}", "call it by itself to see why"
        ) from error
    if not isinstance(datasets, Mapping):
        raise DataError(
            f"data factory {source!r} returned a {type(datasets).__name__}, not a mapping of splits",
            "return {'calibration': ..., 'validation': ..., 'test': ...}",
        )
    return dict(datasets)
