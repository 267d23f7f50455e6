"""``qsearch export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qsearch.cli.options import Directory


def export(
    directory: Directory,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="OUT", help="The folder to write.", show_default=False)],
    point: Annotated[
        str, typer.Option("--point", "-p", metavar="ID|knee|all", help="Whose bit configurations to write.")
    ] = "all",
) -> None:
    """Write the front into a folder: front.csv, front.json, front.png and configs/point-NNNN.json.

    An earlier export of the same study is brought up to date; other files are never overwritten.

    Example: [cyan]qsearch export runs/digits --out digits-front --point knee[/cyan]
    """
    from qsearch.cli.reading import load_front
    from qsearch.export import select_points, write_export
    from qsearch.report import front_figure

    front = load_front(directory)
    written = write_export(front, out, select_points(front, point), front_figure)
    for name in written.files:
        typer.echo(str(written.directory / name))
    for note in written.notes:
        typer.echo(f"note: {note}", err=True)
