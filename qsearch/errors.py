"""Errors a user can act on: every one carries a message and a hint."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class QSearchError(Exception):
    """Base of all errors that qsearch raises on purpose.

    Args:
        message: What went wrong, in one or two sentences.
        hint: What the user can do about it.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class SpecError(QSearchError):
    """The study file is wrong; names the file and line where it can."""


class PluginError(QSearchError):
    """A plug-in is unknown, cannot be imported, or breaks its contract."""


class ModelError(QSearchError):
    """A network cannot be built, loaded or traced."""


class DataError(QSearchError):
    """A dataset or one of its splits is missing or malformed."""


class SpaceError(QSearchError):
    """The search space or a constraint on it is impossible."""


class DeviceError(QSearchError):
    """A device description is wrong, or it cannot run what was asked."""


class EvaluationError(QSearchError):
    """One evaluation failed; the study goes on."""


class NondeterministicEvaluation(QSearchError):
    """The same evaluation key came back with a different result."""


class StoreError(QSearchError):
    """The durable log cannot be read or written."""


class StudyLockedError(StoreError):
    """Another driver is working on this study."""


class StudyMismatchError(StoreError):
    """The directory or store holds a different study."""


class ExportError(QSearchError):
    """An export cannot be written, or an exported file cannot be read."""


class TooManyFailures(QSearchError):
    """So many evaluations failed that the study was stopped."""

    exit_code = 4


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a hint that names the closest known word, or lists all of them.

    Args:
        name: The word that was not recognised.
        known: The words that would have been.
    """
    words = sorted(set(known))
    match = difflib.get_close_matches(name, words, n=1, cutoff=0.6)
    if match:
        return f"did you mean {match[0]!r}?"
    return f"known: {', '.join(words)}" if words else "none is known"
