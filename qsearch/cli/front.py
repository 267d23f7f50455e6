"""``qsearch front``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qsearch.cli.options import Directory


class Format(StrEnum):
    """Of the output."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def front(
    directory: Directory,
    format: Annotated[Format, typer.Option("--format", "-f", help="Of the output.")] = Format.table,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Write into this file.", show_default="standard output"),
    ] = None,
) -> None:
    """Show the Pareto front of a study; of a running one, the front so far.

    Accuracies are top-1 in percent. The search saw the validation split; the test split was read once, at the end.

    Examples: [cyan]qsearch front runs/digits[/cyan]; [cyan]qsearch front runs/digits -f csv -o front.csv[/cyan]
    """
    from qsearch.cli.reading import load_front
    from qsearch.cli.tables import front_lines, print_front
    from qsearch.errors import ExportError
    from qsearch.export import front_text, write_front
    from qsearch.export.files import write_text

    if format is Format.parquet and out is None:
        raise ExportError("Parquet is not text, it cannot be printed", "name a file with --out")
    found = load_front(directory)
    if format is Format.table:
        if out is None:
            print_front(found)
        else:
            write_text(out, "\n".join(front_lines(found)) + "\n")
    elif out is None:
        sys.stdout.write(front_text(found, format.value))
    else:
        write_front(found, out, format.value)
