"""``qsearch resume``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsearch.cli.options import Address, Directory, Executor, Quiet, Takeover, Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from qsearch.run.results import Front


def resume(
    directory: Directory,
    workers: Workers = None,
    executor: Executor = None,
    address: Address = None,
    takeover: Takeover = False,
    quiet: Quiet = False,
) -> None:
    """Continue a study, whatever ended it.

    Nothing that was finished is done again. Budget and execution in DIR/study.yaml may be changed before.

    Example: [cyan]qsearch resume runs/digits[/cyan]
    """
    from qsearch.cli.driving import check_options, drive, run_options
    from qsearch.run.directory import StudyDirectory

    check_options(workers, executor, address)
    home = StudyDirectory(directory)
    spec = home.load()

    def action(listener: Callable[[Any], None], log: Callable[[str], None]) -> Front:
        from qsearch.run import study as flow

        options = run_options(workers, executor, address, takeover)
        return flow.resume(home.path, options, listener, log)

    drive(home, spec.study.name, action, quiet)
