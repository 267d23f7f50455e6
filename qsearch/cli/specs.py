"""Reading ``--model`` and ``--data`` as a study file would."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qsearch.spec import DataSpec, ModelSpec


def read_specs(model: str, data: str) -> tuple[ModelSpec, DataSpec]:
    """Reads the two options.

    Args:
        model: A source such as ``torchvision:resnet18``, or a YAML mapping ``{source: ..., weights: ...}``.
        data: A source such as ``qsearch:digits``, or a YAML mapping.

    Raises:
        SpecError: One of them is not what a study file may have.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from qsearch.errors import SpecError
    from qsearch.spec import spec_from_mapping

    values: dict[str, Any] = {}
    for name, text in (("model", model), ("data", data)):
        try:
            values[name] = YAML(typ="safe", pure=True).load(text) if text.lstrip().startswith("{") else text
        except YAMLError as error:
            raise SpecError(
                f"--{name} {text!r} is not YAML", "write --model '{source: NAME, weights: FILE}'"
            ) from error
    spec = spec_from_mapping({"study": {"name": "evaluate"}, **values}, "command line")
    return spec.model, spec.data
