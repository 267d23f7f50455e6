"""Reading ``--bits``: one width for all layers, or a file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qsearch.models import QuantGraph
    from qsearch.types import BitConfig

_UNIFORM = re.compile(r"w(\d{1,3})a(\d{1,3})")


class BitsChooser:
    """Gives the widths that ``--bits`` asks for, once the network is known.

    Args:
        bits: ``wXaY``, or the path of an exported configuration or of ``{"w": [...], "a": [...]}``.
        pin: Keep the first and the last layer of ``wXaY`` at 8 bits.

    Raises:
        ExportError: Neither, or the file is wrong.
    """

    def __init__(self, bits: str, pin: bool) -> None:
        from qsearch.errors import ExportError
        from qsearch.export import parse_configuration

        self._pin = pin
        self._uniform = _UNIFORM.fullmatch(bits)
        if self._uniform is not None:
            return
        try:
            text = Path(bits).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ExportError(
                f"--bits {bits!r} is neither like w4a8 nor a file that can be read",
                "write w4a8 for 4-bit weights and 8-bit activations, or name an exported configuration",
            ) from error
        self._plain = _plain_bits(text)
        self._configuration = None if self._plain is not None else parse_configuration(text, bits)

    def __call__(self, graph: QuantGraph) -> BitConfig:
        """Returns the widths.

        Args:
            graph: The network.

        Raises:
            ExportError: The configuration is one of another network.
        """
        from qsearch.run.reproduce import uniform_config
        from qsearch.spec import PinSpec

        if self._uniform is not None:
            weights, activations = map(int, self._uniform.groups())
            pins = PinSpec() if self._pin else PinSpec(first=None, last=None)
            return uniform_config(graph, weights, activations, pins)
        if self._configuration is not None:
            return self._configuration.to_bit_config(graph.layers)
        return self._plain  # type: ignore[return-value]  # one of the three is there


def _plain_bits(text: str) -> BitConfig | None:
    """Reads ``{"w": [...], "a": [...]}``; None if the text is something else."""
    from qsearch.errors import ExportError
    from qsearch.types import BitConfig

    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or set(value) != {"w", "a"}:
        return None
    try:
        return BitConfig.from_json(value)
    except (TypeError, ValueError) as error:
        raise ExportError(f"the widths cannot be read: {error}", "give two lists of integers of one length") from error
