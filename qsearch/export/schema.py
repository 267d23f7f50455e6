"""The JSON Schema of exported configurations. ``python -m qsearch.export.schema`` writes it anew into the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qsearch.export.config import SCHEMA, Configuration

SCHEMA_FILE = Path(__file__).with_name("configuration.schema.json")


def configuration_schema() -> dict[str, Any]:
    """Returns the JSON Schema (draft 2020-12) of a configuration file."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:{SCHEMA.replace('/', ':')}",
        **Configuration.model_json_schema(by_alias=True),
    }


def schema_text() -> str:
    """Returns the content of :data:`SCHEMA_FILE`."""
    return json.dumps(configuration_schema(), indent=2) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
