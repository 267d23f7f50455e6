"""Errors carry a message and a hint, travel between processes, and name the nearest known word."""

from __future__ import annotations

import inspect
import pickle

import pytest

from qsearch import errors
from qsearch.errors import EvaluationError, QSearchError, StoreError, StudyLockedError, TooManyFailures, nearest

KINDS = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, Exception)]


def test_message_and_hint() -> None:
    error = EvaluationError("it broke", "mend it")
    assert (error.message, error.hint) == ("it broke", "mend it")
    assert str(error) == "it broke\n  hint: mend it"
    assert str(EvaluationError("it broke")) == "it broke"


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_error_is_one_of_ours_and_travels(kind: type[QSearchError]) -> None:
    assert issubclass(kind, QSearchError)
    assert inspect.getdoc(kind)
    assert kind.exit_code >= 2  # 1 is Python's own, for a bug
    arrived = pickle.loads(pickle.dumps(kind("what", "how")))
    assert (type(arrived), arrived.message, arrived.hint) == (kind, "what", "how")


def test_families() -> None:
    assert issubclass(StudyLockedError, StoreError)
    assert TooManyFailures.exit_code != QSearchError.exit_code


@pytest.mark.parametrize(
    ("name", "known", "hint"),
    [
        ("iteratoins", ["iterations", "lr"], "did you mean 'iterations'?"),
        ("xyz", ["b", "a", "a"], "known: a, b"),
        ("xyz", [], "none is known"),
        ("lr", {"lr": 1, "lrs": 2}, "did you mean 'lr'?"),
    ],
)
def test_nearest(name: str, known: list[str], hint: str) -> None:
    assert nearest(name, known) == hint
