"""Laws of the store, for random contents and random histories."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from qsearch.errors import StoreError
from qsearch.store import Evaluation, Failure, Store, StudyStore, same_score
from qsearch.testing.store_samples import sample_config, sample_evaluation, sample_failure, snapshot
from qsearch.types import BitConfig, Score, TrialState

FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | FLOATS | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
OBJECTS = st.dictionaries(st.text(), JSON, max_size=4)
NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
WIDTHS = st.lists(st.integers(1, 16), min_size=1, max_size=60).map(tuple)
SCORES = st.builds(Score, FLOATS, FLOATS | st.just(math.inf), st.integers(0, 10**9), st.integers(0, 10**9))


@st.composite
def evaluations(draw: st.DrawFn) -> Evaluation:
    widths = draw(WIDTHS)
    return Evaluation(
        key=draw(st.text("0123456789abcdef", min_size=64, max_size=64)),
        config=BitConfig(widths, widths[::-1]),
        fidelity=draw(NAMES),
        split=draw(NAMES),
        score=draw(SCORES),
        seconds=draw(FLOATS),
        worker=draw(NAMES),
        finished_at=draw(FLOATS),
        provenance=draw(OBJECTS),
    )


def new_study() -> StudyStore:
    store = Store.open(":memory:", clock=lambda: 1.7e9)
    store.create_study("first", {}, "d")
    return store.study("first")


@settings(max_examples=25, deadline=None)
@given(
    spec=OBJECTS, payloads=st.lists(OBJECTS, max_size=3), results=st.lists(evaluations(), max_size=3), text=st.text()
)
def test_what_goes_in_comes_out(
    spec: dict[str, Any], payloads: list[dict[str, Any]], results: list[Evaluation], text: str
) -> None:
    results = list({result.key: result for result in results}.values())
    study = new_study()
    with study.store as store:
        assert store.create_study("x", spec, "d").spec == spec
        for payload in payloads:
            study.add_event("kind", payload)
        for result in results:
            assert study.add_evaluation(result)
            assert not study.add_evaluation(result)
        study.add_trials([sample_config(0)], [TrialState.WAITING], [{}])
        study.add_failure(sample_failure(0, message=text, traceback=text))
        assert [event.payload for event in study.events()] == payloads
        assert study.evaluations() == results
        (failure,) = study.failures()
        expected = text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
        assert failure == Failure(0, "k" * 64, 1, "exception", expected, expected, 1.7e9)


Step = tuple[str, int]
STEPS = st.lists(st.tuples(st.sampled_from(["ask", "result", "state", "fail", "event"]), st.integers(0, 6)), max_size=5)


def apply(study: StudyStore, steps: Sequence[Step]) -> None:
    """Does the steps; those that the store refuses are skipped, as a broker might."""
    for action, number in steps:
        try:
            if action == "ask":
                configs = [sample_config(number), sample_config(number + 1)]
                study.add_trials(configs, [TrialState.WAITING] * 2, [{"size": 1.0}] * 2)
            elif action == "result":
                study.add_evaluation(sample_evaluation(number))
            elif action == "state":
                study.set_state(number, TrialState.COMPLETE, attempts=number)
            elif action == "fail":
                study.add_failure(sample_failure(number))
            else:
                study.add_event("kind", {"number": number})
        except StoreError:
            continue


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(STEPS, st.booleans()), max_size=6))
def test_undone_transactions_leave_no_trace(history: list[tuple[list[Step], bool]]) -> None:
    """A history with some transactions rolled back equals the history without them."""
    with new_study().store as one, new_study().store as two:
        tried, kept = one.study("first"), two.study("first")
        for steps, keep in history:
            try:
                with tried.transaction():
                    apply(tried, steps)
                    if not keep:
                        raise KeyError
            except KeyError:
                continue
            apply(kept, steps)  # each step in a transaction of its own
        assert snapshot(tried) == snapshot(kept)
        one.check()


@given(SCORES, SCORES)
def test_same_score_is_symmetric_and_reflexive(first: Score, second: Score) -> None:
    assert same_score(first, first)
    assert same_score(first, second) == same_score(second, first)
    assert same_score(first, Score.from_json(first.to_json()))
