"""What launch and resume have in common: progress, interruption, and the results at the end."""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from qsearch.cli.options import ExecutorName
from qsearch.cli.output import INTERRUPTED

if TYPE_CHECKING:
    from qsearch.run.directory import StudyDirectory
    from qsearch.run.results import Front
    from qsearch.run.study import RunOptions

#: Points of the front in the table at the end of a study.
SHORT_FRONT = 10

#: Takes a listener and a log, and runs the study.
Action = Callable[[Callable[[Any], None], Callable[[str], None]], "Front"]


def check_options(workers: int | None, executor: ExecutorName | None, address: str | None) -> None:
    """Refuses options that contradict each other.

    Raises:
        typer.BadParameter: They do.
    """
    if executor is ExecutorName.serial and (address is not None or (workers or 1) > 1):
        given = "--address" if address is not None else "--workers"
        raise typer.BadParameter(f"{given} has no meaning with --executor serial, which works in this process")


def run_options(workers: int | None, executor: ExecutorName | None, address: str | None, takeover: bool) -> RunOptions:
    """Collects what the command line overrides."""
    from qsearch.run.study import RunOptions

    return RunOptions(workers, executor.value if executor is not None else None, address, takeover)


def drive(home: StudyDirectory, name: str, action: Action, quiet: bool) -> None:
    """Runs a study with a progress display and writes its results.

    Args:
        home: Its directory.
        name: Its name.
        action: Runs it.
        quiet: Print nothing but errors.
    """
    with _interruptible(home):
        if quiet:
            front = action(lambda status: None, lambda line: None)
        else:
            from qsearch.run.progress import Progress

            with Progress(title=name) as progress:
                front = action(progress, progress.log)
    _finish(home, front, quiet)


def _finish(home: StudyDirectory, front: Front, quiet: bool) -> None:
    from qsearch.cli.tables import print_front
    from qsearch.export import write_export
    from qsearch.report import front_figure

    if not quiet:
        print_front(front, limit=SHORT_FRONT)
    written = write_export(front, home.results, front.points, front_figure)
    if quiet:
        return
    place = shlex.quote(str(home.path))
    typer.echo(f"\nresults: {written.directory} ({', '.join(_summary(written.files))})")
    for note in written.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"\nqsearch front {place}               the whole front")
    typer.echo(f"qsearch export {place} --out OUT    bit configurations, tables and figure, elsewhere")
    knee = next((point for point in front.points if point.is_knee), None)
    if knee is not None:
        file = shlex.quote(str(home.results / "configs" / f"point-{knee.id:04d}.json"))
        typer.echo(f"qsearch evaluate {file}    score its knee again")


def _summary(files: tuple[str, ...]) -> list[str]:
    """File names, the configurations as one entry."""
    configs = [name for name in files if name.startswith("configs/")]
    others = [name for name in files if name not in configs]
    return [*others, *([f"configs/ with {len(configs)} files"] if configs else [])]


@contextmanager
def _interruptible(home: StudyDirectory) -> Iterator[None]:
    """Turns Ctrl-C and SIGTERM (a scheduler's end of time) into exit code 3 and a line that says how to go on."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    is_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, interrupt) if is_main else None
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as error:
        # Ray installs a handler of its own, which ends the process with the signal's number.
        if isinstance(error, SystemExit) and error.code != signal.SIGTERM:
            raise
        _say_how_to_resume(home)
        raise typer.Exit(INTERRUPTED) from None
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _say_how_to_resume(home: StudyDirectory) -> None:
    if home.spec_file.is_file():
        text = f"interrupted; what was finished is kept. Continue with: qsearch resume {shlex.quote(str(home.path))}"
    else:
        text = "interrupted before the study began; launch it again"
    print(text, file=sys.stderr)


def default_directory(directory: Path | None, name: str) -> Path:
    """Returns the directory of a study: the one that was given, or ``runs/NAME``."""
    return directory if directory is not None else Path("runs") / name
