"""``qsearch inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qsearch.cli.options import AsJson
from qsearch.cli.output import print_facts, print_json
from qsearch.cli.specs import read_specs

if TYPE_CHECKING:
    from qsearch.models import QuantGraph

#: Images of most torchvision networks.
_INPUT = "3,224,224"

#: A study needs data; this is only read as an option, never loaded.
_ANY_DATA = "qsearch:digits"


class AddPolicy(StrEnum):
    """Where a residual sum is quantized."""

    after_relu = "after_relu"
    both_inputs = "both_inputs"


def inspect(
    model: Annotated[
        str, typer.Option(metavar="SPEC", help="As in a study file; {source: ..., weights: ...} in quotes if need be.")
    ],
    data: Annotated[
        str | None, typer.Option(metavar="SPEC", help="As in a study file; without it, images are noise.")
    ] = None,
    input_shape: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="C,H,W", help="Without --data: channels, height and width.", show_default=_INPUT
        ),
    ] = None,
    add_policy: Annotated[AddPolicy, typer.Option(help="Where a residual sum is quantized.")] = AddPolicy.after_relu,
    units: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Grouping for reconstruction: auto, layer, package.module:function, or a module path with wildcards "
            "(or re:REGEX), which may be repeated.",
            show_default="auto",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what is quantized in a network.

    Prints its layers, the activation tensors that they read, the units that are reconstructed as one, and what stays
    float.

    Examples: [cyan]qsearch inspect --model torchvision:mobilenet_v2[/cyan];
    [cyan]qsearch inspect --model qsearch:digits_resnet --data qsearch:digits --units layer[/cyan]
    """
    if data is not None and input_shape is not None:
        raise typer.BadParameter("--input cannot be given with --data, whose images say it")
    shape = _parse_shape(input_shape or _INPUT)
    graph = _build(model, data, shape, add_policy.value, units or ["auto"])
    from qsearch.models import describe_graph

    report = describe_graph(graph)
    if as_json:
        print_json(report)
    else:
        _print(report)


def _parse_shape(text: str) -> tuple[int, int, int]:
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"--input {text!r} is not channels, height and width, such as {_INPUT}")
    channels, height, width = map(int, parts)
    return channels, height, width


def _build(model: str, data: str | None, shape: tuple[int, int, int], add_policy: str, units: list[str]) -> QuantGraph:
    model_spec, data_spec = read_specs(model, data or _ANY_DATA)
    import torch

    from qsearch.data import load_datasets, read_splits
    from qsearch.models import build_graph, load_network, read_unit_rule

    alone = len(units) == 1 and (units[0] in ("auto", "layer") or (":" in units[0] and not units[0].startswith("re:")))
    rule = read_unit_rule(units[0] if alone else units)
    datasets: dict[str, Any] = {}
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    if data is not None:
        datasets = load_datasets(data_spec.source, data_spec.arguments)
        limits = dict.fromkeys(("calibration", "validation", "test"), 2)
        images = read_splits(datasets, limits, data_spec.source)["calibration"].images
    network = load_network(model_spec.source, model_spec.weights, model_spec.arguments, datasets)
    return build_graph(network, images, add_policy, rule)


def _print(report: dict[str, Any]) -> None:
    from qsearch.export import engineering, significant

    layers, tensors, units = report["layers"], report["tensors"], report["units"]
    macs = [float(layer["macs"]) for layer in layers]
    weights = [float(layer["weights"]) for layer in layers]

    def total(values: list[float]) -> str:
        factor, prefix = engineering([sum(values)], "")
        return f"{significant(sum(values) / factor)} {prefix}".rstrip()

    print_facts(
        {
            "input": " x ".join(map(str, report["input_shape"])),
            "classes": str(report["classes"]),
            "layers": f"{len(layers)}: {total(macs)} multiply-accumulates an image, {total(weights)} weights",
            "tensors": f"{len(tensors)}, {sum(tensor['unsigned'] for tensor in tensors)} of them unsigned",
            "units": str(len(units)),
            "float": f"{report['float_parameters']} parameters",
            "digest": report["digest"][:16],
        }
    )
    mac_factor, mac_unit = engineering(macs, "")
    heading = ("", "layer", "kind", "in", "out", "kernel", "stride", "out map", "tensor", "unit", f"{mac_unit}MAC")
    _print_table(
        (*heading, "weights"),
        [
            (
                *(layer[key] for key in ("index", "name", "kind", "in_channels", "out_channels")),
                *(_size(layer[key]) for key in ("kernel", "stride", "out_size")),
                *(layer["tensor"], layer["unit"], f"{layer['macs'] / mac_factor:.3f}", layer["weights"]),
            )
            for layer in layers
        ],
        left=(1, 2),
    )
    _print_table(
        ("", "tensor", "sign", "tied", "read by"),
        [
            (
                tensor["index"],
                tensor["node"],
                "unsigned" if tensor["unsigned"] else "signed",
                f"= {tensor['group']}" if tensor["group"] != tensor["index"] else "",
                ", ".join(tensor["readers"]) or "-",
            )
            for tensor in tensors
        ],
        left=(1, 2, 3, 4),
    )
    _print_table(
        ("", "unit", "entry", "exit", "layers"),
        [(unit["index"], unit["name"], unit["entry"], unit["exit"], ", ".join(unit["layers"])) for unit in units],
        left=(1, 2, 3, 4),
    )
    if report["notes"]:
        print_facts({"": "", "notes": ""})
        for note in report["notes"]:
            print_facts({"  -": note})


def _size(pair: Sequence[int]) -> str:
    return f"{pair[0]}x{pair[1]}"


def _print_table(heading: Sequence[str], rows: Sequence[Sequence[object]], left: Sequence[int]) -> None:
    """Prints aligned columns under a bold heading; those of ``left`` to the left."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    cells = [tuple(heading), *(tuple(map(str, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    console.print()
    for number, row in enumerate(cells):
        padded = [
            cell.ljust(width) if index in left else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        console.print(Text("  ".join(padded).rstrip(), style="" if number else "bold"), soft_wrap=True)
