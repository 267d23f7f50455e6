"""The result of ``qsearch evaluate`` for people: facts, the table of layers, the table of conventions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from qsearch.cli.output import print_facts
from qsearch.export import engineering, significant

#: Narrower ones would break the tables of layers and conventions beyond recognition.
_LEAST_WIDTH = 100


def print_report(report: Mapping[str, Any], bits: str) -> None:
    """Prints a report of :func:`qsearch.run.reproduce.measure` to standard output.

    Args:
        report: The report.
        bits: What the user asked for.
    """
    print_facts(_facts(report, bits))
    console = Console(highlight=False)
    if not console.is_terminal and console.width < _LEAST_WIDTH:
        console.width = _LEAST_WIDTH
    console.print()
    console.print(_layers(report["layers"]))
    if "weight_sqnr_db" in report["layers"][0]:
        held_out = report["calibration"]["held_out"]
        console.print(
            Text(
                "dB: signal to quantization noise, 6 dB a bit, - where nothing differs; weights before, outputs after "
                f"the correction of statistics, on {held_out} held-out calibration images, with the errors of all "
                "layers before",
                style="dim",
            )
        )
    if report["notes"]:
        console.print(Text("\nkept float", style="bold"))
        for note in report["notes"]:
            console.print(Padding(Text(note), (0, 0, 0, 2)))
    console.print()
    console.print(_conventions(report["conventions"]))


def _facts(report: Mapping[str, Any], bits: str) -> dict[str, str]:
    factor, unit = engineering([report["size_bytes"]], "B")
    environment = report["environment"]
    options = "".join(f", {name}={value}" for name, value in report["options"].items())
    threads = f"{environment['threads']} thread{'s' if environment['threads'] > 1 else ''}"
    facts = {
        "configuration": f"{bits}: mean {report['mean_weight_bits']:.2f} bits weights, "
        f"{report['mean_activation_bits']:.2f} bits inputs, {significant(report['size_bytes'] / factor)} {unit}",
        "scored by": f"{report['fidelity']}{options}, seed {report['seed']}, {threads} on {environment['device']}",
    }
    for split, score in report["scores"].items():
        exact = report["float_scores"][split]["accuracy"]
        facts[split] = f"{score['accuracy']:.4f} % ({score['correct']} of {score['samples']}); float32 {exact:.4f} %"
    guard = report.get("guard")
    if guard is not None:
        without = f" ({guard['uncorrected']:.4g} without it)" if guard["kept"] else ""
        verdict = "applied" if guard["kept"] else "not applied"
        facts["weights"] = guard["weights"]
        facts["correction"] = f"{verdict}; error of held-out logits {guard['logit_error']:.4g}{without}"
    seconds = {name.replace("_", " "): value for name, value in report["seconds"].items() if name != "total"}
    spent = ", ".join(f"{name} {value:.2f}" for name, value in seconds.items() if value >= 0.005)
    facts["seconds"] = f"{report['seconds']['total']:.2f}: {spent}"
    factor, unit = engineering([report["peak_memory_bytes"]], "B")
    facts["peak memory"] = f"{significant(report['peak_memory_bytes'] / factor)} {unit}"
    calibration = report["calibration"]
    held_out = f", {calibration['held_out']} of them held out" if "held_out" in calibration else ""
    facts["calibration"] = f"{calibration['images']} images{held_out}; digest {calibration['digest'][:16]}"
    return facts


def _layers(layers: Sequence[Mapping[str, Any]]) -> Table:
    table = _table()
    table.add_column("layer", overflow="fold")
    table.add_column("kind")
    for heading in ("w bits", "a bits"):
        table.add_column(heading, justify="right", no_wrap=True)
    errors = {"weights dB": "weight_sqnr_db", "output dB": "output_sqnr_db", "output error": "output_relative_error"}
    known = {heading: key for heading, key in errors.items() if key in layers[0]}
    for heading in known:
        table.add_column(heading, justify="right", no_wrap=True)
    for layer in layers:
        cells = [layer["name"], layer["kind"], str(layer["weight_bits"]), str(layer["activation_bits"])]
        for key in known.values():
            value = layer[key]
            share = key == "output_relative_error"
            cells.append("-" if value is None else f"{100 * value:.2f} %" if share else f"{value:.2f}")
        table.add_row(*map(Text, cells))
    return table


def _conventions(rows: Sequence[Mapping[str, str]]) -> Table:
    table = _table()
    table.add_column("convention", ratio=2, style="bold")
    table.add_column("in force", ratio=5, overflow="fold")
    table.add_column("why", ratio=4, style="dim")
    for row in rows:
        table.add_row(*(Text(row[key]) for key in ("name", "value", "why")))
    return table


def _table() -> Table:
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
