"""Reading ``--quantizer`` and ``--option`` as a study file would."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsearch.spec import QuantizerSpec


def read_quantizer(
    quantizer: str | None, fidelity: str, options: Sequence[str]
) -> tuple[QuantizerSpec, dict[str, Any]]:
    """Reads how the network is quantized, and the options of the evaluator.

    Args:
        quantizer: A YAML mapping, the ``quantizer`` section of a study file; None for its defaults.
        fidelity: The evaluator that the options are for.
        options: ``KEY=VALUE`` each, the value in YAML.

    Raises:
        SpecError: One of them is not what a study file may have. Whether the evaluator has such options is not checked
            here.
    """
    from qsearch.errors import SpecError
    from qsearch.spec import spec_from_mapping

    section: Any = {} if quantizer is None else _yaml(quantizer, "--quantizer", "'{weights: {grid: affine}}'")
    if not isinstance(section, dict):
        raise SpecError(f"--quantizer {quantizer!r} is not a mapping", "write --quantizer '{weights: {grid: affine}}'")
    values: dict[str, Any] = {}
    for text in options:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key:
            raise SpecError(f"--option {text!r} is not KEY=VALUE", "write --option iterations=200")
        if key in values:
            raise SpecError(f"--option {key!r} is given twice", "remove one of the two")
        values[key] = _yaml(value, f"--option {key}", "iterations=200")
    spec = spec_from_mapping(
        {
            "study": {"name": "evaluate"},
            # Read by another function; a study has to have them.
            "model": "qsearch:any",
            "data": "qsearch:any",
            "quantizer": section,
            "fidelities": {fidelity: values},
        },
        "command line",
    )
    return spec.quantizer, spec.fidelities[fidelity]


def _yaml(text: str, what: str, example: str) -> Any:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from qsearch.errors import SpecError

    try:
        value = YAML(typ="safe", pure=True).load(text)
    except (YAMLError, ValueError) as error:
        raise SpecError(f"{what} {text!r} is not YAML", f"write {what.split()[0]} {example}") from error
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:  # a date, a set, a cycle
        raise SpecError(f"{what} {text!r} is not made of text, numbers and lists", "put it in quotes") from error
    return value
