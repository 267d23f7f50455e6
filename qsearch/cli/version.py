"""``qsearch version``."""

from __future__ import annotations

import platform

import typer

_PACKAGES = ("torch", "torchvision", "ray", "pymoo", "numpy")


def version_text() -> str:
    """Returns ``qsearch X.Y.Z``."""
    from qsearch import __version__

    return f"qsearch {__version__}"


def version() -> None:
    """Print the versions of qsearch and of what it builds on; put them into a bug report."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    typer.echo(version_text())
    typer.echo(f"python {platform.python_version()} on {platform.platform()}")
    for name in _PACKAGES:
        try:
            typer.echo(f"{name} {installed(name)}")
        except PackageNotFoundError:
            typer.echo(f"{name} is not installed")
