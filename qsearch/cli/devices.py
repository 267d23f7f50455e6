"""``qsearch devices``."""

from __future__ import annotations

from typing import Any

from qsearch.cli.options import AsJson
from qsearch.cli.output import print_json


def devices(as_json: AsJson = False) -> None:
    """List the device presets: what they model, and what their numbers were checked against.

    Example: [cyan]qsearch devices --json[/cyan]
    """
    found = _describe()
    if as_json:
        print_json(found)
        return
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for device in found:
        console.print(Text.assemble((device["name"], "bold"), f"  ({device['class']}, batch of {device['batch']})"))
        console.print(Padding(Text(f"validation: {device['validation']}", style="cyan"), (0, 0, 0, 4)))
        console.print(Padding(Text(device["notes"]), (0, 0, 1, 4)))
    console.print("Use a name in `devices:` of a study file, or {preset: NAME, name: MINE, ...} to change its numbers.")


def _describe() -> list[dict[str, Any]]:
    from qsearch import plugins
    from qsearch.hardware import load_device, preset_names

    classes = {plugins.load("devices", name): name for name in plugins.names("devices")}
    return [
        {
            "name": device.name,
            "class": classes.get(type(device), type(device).__name__),
            "batch": device.batch,
            "validation": device.validation,
            "notes": device.notes.strip(),
        }
        for device in map(load_device, preset_names())
    ]
