"""``qsearch launch``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qsearch.cli.options import Address, Executor, Quiet, Takeover, Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsearch.run.results import Front


def launch(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.", show_default=False)],
    directory: Annotated[
        Path | None,
        typer.Option("--dir", "-d", metavar="DIR", help="Where everything is kept.", show_default="runs/NAME"),
    ] = None,
    workers: Workers = None,
    executor: Executor = None,
    address: Address = None,
    takeover: Takeover = False,
    quiet: Quiet = False,
) -> None:
    """Run a study to its end.

    A directory that already holds the same study is continued. At the end, tables, a figure and the bit configurations
    of the front are written into DIR/results.

    Example: [cyan]qsearch launch studies/digits.yaml --workers 2[/cyan]
    """
    from qsearch.cli.driving import check_options, default_directory, drive, run_options
    from qsearch.run.directory import StudyDirectory
    from qsearch.spec import load_spec

    check_options(workers, executor, address)
    spec = load_spec(study)
    home = StudyDirectory(default_directory(directory, spec.study.name))
    is_known = home.spec_file.is_file()

    def action(listener: Callable[[Any], None], log: Callable[[str], None]) -> Front:
        from qsearch.run import study as flow

        home.prepare(spec, study.read_text(encoding="utf-8"))  # raises where it is another study
        log(f"{'continuing the study in' if is_known else 'study directory:'} {home.path}")
        options = run_options(workers, executor, address, takeover)
        return flow.launch(study, home.path, options, listener, log)

    drive(home, spec.study.name, action, quiet)
