"""From what a study file says about a device to the device: presets, files, overrides."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from qsearch import plugins
from qsearch.errors import DeviceError, PluginError, nearest
from qsearch.hardware.device import Device

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


def preset_names() -> list[str]:
    """Returns the names of the shipped device descriptions, sorted."""
    folder = resources.files("qsearch.hardware") / "devices"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def load_device(entry: str | Mapping[str, Any]) -> Device:
    """Builds a device from a study file's entry.

    Args:
        entry: A preset name; or the path of a YAML file that holds one of the mappings below; or a mapping
            ``{preset: NAME, name: NEW_NAME, ...}`` whose other fields replace the preset's, section by section; or a
            whole description, ``{class: ENTRY_POINT, name: NAME, ...}``, with a class from the entry-point group
            ``qsearch.devices``. A preset whose numbers were changed says so in its ``validation``.

    Raises:
        DeviceError: The entry, a preset, a class or a field of it is unknown or wrong; names the device and field.
    """
    if isinstance(entry, str):
        if entry in preset_names():
            return _construct(entry, _read_preset(entry))
        path = Path(entry)
        if path.suffix not in (".yaml", ".yml"):
            raise DeviceError(f"unknown device preset {entry!r}", _preset_hint(entry))
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DeviceError(f"cannot read the device file {entry!r}: {error}", "check the path") from error
        entry = {"name": path.stem, **_parse(text, entry)}
    elif not isinstance(entry, Mapping):
        raise DeviceError(f"a device entry is {entry!r}", "write a preset name, a YAML file's path, or a mapping")
    return _from_mapping(_plain(entry))


def _from_mapping(entry: dict[str, Any]) -> Device:
    preset = entry.pop("preset", None)
    name = entry.pop("name", preset)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise DeviceError(
            f"a device has the name {name!r}", "give it a 'name' of letters, digits, '_', '-' and '.' (or a 'preset')"
        )
    if preset is None:
        if "class" not in entry:
            raise DeviceError(
                f"device {name!r} has neither 'preset' nor 'class'",
                f"presets: {', '.join(preset_names())}; classes: {', '.join(plugins.names('devices'))}",
            )
        return _construct(name, entry)
    if preset not in preset_names():
        raise DeviceError(f"device {name!r}: unknown preset {preset!r}", _preset_hint(str(preset)))
    if "class" in entry:
        raise DeviceError(f"device {name!r} has both 'preset' and 'class'", "remove one: a preset brings its class")
    base = _read_preset(preset)
    merged = _merge(base, entry)
    changed = [key for key in entry if key not in ("notes", "validation") and merged[key] != base.get(key)]
    if changed and "validation" not in entry:
        merged["validation"] = f"unvalidated (preset {preset} with another {', '.join(changed)})"
    return _construct(name, merged)


def _construct(name: str, description: dict[str, Any]) -> Device:
    kind = description.pop("class", None)
    try:
        factory = plugins.load("devices", str(kind))
    except PluginError as error:
        raise DeviceError(f"device {name!r}: field 'class': {error.message}", error.hint) from error
    device = factory(name, description)
    if not isinstance(device, Device):
        raise DeviceError(
            f"device {name!r}: class {kind!r} returned {type(device).__name__}, which lacks members of Device",
            "run the suite in qsearch.testing.devices against it",
        )
    return device


def _read_preset(name: str) -> dict[str, Any]:
    file = resources.files("qsearch.hardware") / "devices" / f"{name}.yaml"
    return _parse(file.read_text(encoding="utf-8"), name)


def _parse(text: str, source: str) -> dict[str, Any]:
    try:
        value = YAML(typ="safe", pure=True).load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or str(error)
        raise DeviceError(f"device file {source!r}{line} is not YAML: {problem}", "correct that line") from error
    if not isinstance(value, dict):
        raise DeviceError(f"device file {source!r} holds no mapping", "write 'class: ...' or 'preset: ...' and fields")
    return _plain(value)


def _plain(mapping: Mapping[Any, Any]) -> dict[str, Any]:
    """A deep copy made of plain dictionaries with text keys, so that merging never touches the caller's data."""
    return {str(key): _plain(value) if isinstance(value, Mapping) else value for key, value in mapping.items()}


def _merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def _preset_hint(name: str) -> str:
    return f"{nearest(name, preset_names())} (a file must end in .yaml)"
