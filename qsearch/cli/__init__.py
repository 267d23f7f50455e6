"""The command ``qsearch``. One file for each subcommand; what they need is imported when they run."""

from __future__ import annotations


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    import os
    import sys

    from qsearch.cli.app import app

    # Networks and data of the user are found in the directory that qsearch is started from; installed packages win.
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    app()


__all__ = ["main"]
