"""Files that a study file names: found beside it, whatever directory qsearch is started from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

#: Key of the study file's directory in the validation context.
BASE = "base"


def resolve_existing(text: str, context: Mapping[str, Any] | None) -> str:
    """Returns the absolute path of ``text`` when it names a file beside the study file, else ``text`` unchanged.

    Args:
        text: A path, absolute or relative to the study file; or something else, such as a weights enum.
        context: Holds the study file's directory under :data:`BASE`, if it has one.
    """
    base = (context or {}).get(BASE)
    if base is None:
        return text
    path = os.path.abspath(Path(base, os.path.expanduser(text)))
    return path if os.path.isfile(path) else text


def is_device_file(text: str) -> bool:
    """Tells a device file from the name of a preset."""
    return text.endswith((".yaml", ".yml"))


def device_file_name(path: str) -> str:
    """Returns the name of the device that a file describes: its key ``name``, else the file's stem.

    A file that cannot be read is left to the hardware room, which explains what is wrong with it.
    """
    try:
        content = YAML(typ="safe", pure=True).load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, YAMLError):
        content = None
    name = content.get("name") if isinstance(content, dict) else None
    return name if isinstance(name, str) else Path(path).stem
