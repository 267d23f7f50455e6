from __future__ import annotations

import io
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from qsearch.run.progress import Progress
from qsearch.run.status import Phase, Status

START = Status(
    phase=Phase.SEARCH,
    counts={"waiting": 3, "complete": 40, "failed": 1, "abandoned": 0, "infeasible": 2, "leased": 4},
    budget=100,
    evaluated=40,
    finalists=(0, 0),
    new_evaluations=40,
    busy_seconds=18.0,
    wall_seconds=10.0,
    hypervolume=0.61234,
    front=7,
    failures=0,
    last_failure="",
    lease_size=16,
    ask_ms=0.5,
    store_ms=1.25,
    workers=2,
)


class Clock:
    """Time that a test moves on."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def plain(every_s: float = 5.0) -> tuple[Progress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return Progress(Console(file=stream, width=40), title="digits", every_s=every_s, clock=clock), stream, clock


def on_terminal(width: int = 100) -> tuple[Progress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    console = Console(file=stream, force_terminal=True, width=width, color_system=None, legacy_windows=False)
    return Progress(console, title="digits", clock=clock), stream, clock


def panel(progress: Progress, width: int = 100) -> str:
    """What the live display shows just now."""
    console = Console(record=True, width=width, file=io.StringIO(), color_system=None)
    console.print(progress._render())
    return console.export_text()


def further(status: Status, n: int, **changes: Any) -> Status:
    return replace(status, evaluated=status.evaluated + n, new_evaluations=status.new_evaluations + n, **changes)


# ---- not a terminal --------------------------------------------------------------------------------------------------


def test_plain_lines_come_at_most_every_few_seconds() -> None:
    progress, stream, clock = plain()
    with progress:
        for step in range(40):
            progress(further(START, step))
            clock.now += 0.25
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3  # at once, after 5 s, and the last state
    assert lines[0].startswith("[0:00] searching: 40/100; ")
    assert lines[-1].startswith("[0:10] searching: 79/100; ")


def test_a_plain_line_is_one_line_with_everything_in_it() -> None:
    progress, stream, clock = plain(every_s=0)
    with progress:
        progress(START)
        clock.now += 10
        progress(further(START, 20, failures=2, last_failure="ValueError: [bold]no\nmore"))
    line = stream.getvalue().splitlines()[1]
    assert line == (
        "[0:10] searching: 60/100; 2.0 evaluations/s; workers 2, 90 % busy; front 7, hypervolume 0.6123; "
        "failures 2 (last: ValueError: [bold]no more); about 0:20 left"
    )


def test_a_change_of_phase_is_shown_at_once() -> None:
    progress, stream, clock = plain(every_s=1000)
    with progress:
        progress(START)
        clock.now += 0.25
        progress(further(START, 60))
        progress(further(START, 60, phase=Phase.FINALISTS, finalists=(0, 12)))
        progress(further(START, 72, phase=Phase.DONE, finalists=(12, 12)))
    starts = [re.sub(r"^\[.*?\] ", "", line).partition(";")[0] for line in stream.getvalue().splitlines()]
    assert starts == ["searching: 40/100", "scoring the finalists: 0/12", "done: 112/100"]


def test_the_last_state_is_shown_once() -> None:
    progress, stream, _ = plain(every_s=1000)
    with progress:
        progress(START)
    assert stream.getvalue().count("\n") == 1


def test_log_lines_are_not_wrapped_and_not_markup() -> None:
    progress, stream, _ = plain()
    with progress:
        progress.log("a [red]long[/red] line of more than forty characters, about /tmp/file and 100 %")
    assert stream.getvalue() == "a [red]long[/red] line of more than forty characters, about /tmp/file and 100 %\n"


def test_without_a_limit_on_evaluations_there_is_no_total_and_no_end() -> None:
    progress, stream, clock = plain(every_s=0)
    with progress:
        progress(replace(START, budget=None))
        clock.now += 10
        progress(further(replace(START, budget=None), 5))
    last = stream.getvalue().splitlines()[-1]
    assert last.startswith("[0:10] searching: 45; 0.5 evaluations/s")
    assert "left" not in last


def test_nothing_is_shown_after_the_end() -> None:
    progress, stream, _ = plain(every_s=0)
    with progress:
        progress(START)
    before = stream.getvalue()
    progress(further(START, 3))
    assert stream.getvalue() == before


# ---- a terminal ------------------------------------------------------------------------------------------------------


def test_before_the_first_snapshot_it_says_that_it_prepares() -> None:
    progress, _, clock = on_terminal()
    clock.now += 65
    assert "preparing digits  1:05" in panel(progress)


def test_the_panel_shows_everything() -> None:
    progress, _, clock = on_terminal()
    with progress:
        progress(START)
        clock.now += 5
        progress(further(START, 10, failures=3, last_failure="worker_lost: gone"))
        text = panel(progress)
    for wanted in (
        "digits: searching",
        "50/100  50 %",
        "50 in this session, 2.0/s",
        "7 candidates, hypervolume 0.6123",
        "3 waiting, 40 complete, 1 failed, 2 infeasible; 4 jobs under way",
        "2, 90 % busy, 16 jobs a lease; ask 0.5 ms, record 1.2 ms",
        "3; last: worker_lost: gone",
        "0:05, about 0:25 left in this phase",
    ):
        assert wanted in text


def test_no_failures_no_line_about_them() -> None:
    progress, _, _ = on_terminal()
    with progress:
        progress(START)
        assert "failures" not in panel(progress)


@pytest.mark.parametrize("width", [30, 60, 200])
def test_the_panel_keeps_to_the_width_of_the_terminal(width: int) -> None:
    progress, _, _ = on_terminal(width)
    with progress:
        progress(replace(START, failures=1, last_failure="x" * 500))
        lines = panel(progress, width).splitlines()
    assert max(map(len, lines)) == min(width, 100)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"phase": Phase.FINALISTS, "finalists": (3, 12)}, "3/12  25 %"),
        ({"phase": Phase.FINALISTS, "finalists": (0, 0)}, "0/0"),
        ({"phase": Phase.DONE, "evaluated": 100}, "digits: done"),
        ({"phase": Phase.STOPPED}, "stopped: too many failures"),
        ({"budget": None}, "40"),
        ({"evaluated": 0, "new_evaluations": 0, "wall_seconds": 0.0}, "0/100  0 %"),
    ],
)
def test_phases(changes: dict[str, Any], wanted: str) -> None:
    progress, _, _ = on_terminal()
    with progress:
        progress(replace(START, **changes))
        assert wanted in panel(progress)


def test_the_rate_follows_a_change_of_pace() -> None:
    progress, _, clock = on_terminal()
    status = START
    with progress:
        for rate, seconds in ((40, 60), (1, 60)):
            for _ in range(seconds):
                clock.now += 1
                status = further(status, rate)
                progress(status)
        assert ", 1.0/s" in panel(progress)


def test_the_rate_of_the_search_is_not_that_of_the_finalists() -> None:
    progress, _, clock = on_terminal()
    with progress:
        progress(START)
        clock.now += 10
        progress(further(START, 60))
        progress(further(START, 60, phase=Phase.FINALISTS, finalists=(0, 10)))
        assert "/s" not in panel(progress)
        clock.now += 10
        progress(further(START, 65, phase=Phase.FINALISTS, finalists=(5, 10)))
        text = panel(progress)
    assert "0.5/s" in text
    assert "about 0:10 left" in text


def test_the_last_panel_stays_and_log_lines_stand_above_it() -> None:
    progress, stream, _ = on_terminal()
    with progress:
        progress.log("note: [0] something")
        progress(replace(START, phase=Phase.DONE))
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "note: [0] something" in text
    assert "digits: done" in text[text.rindex("note:") :]


def test_the_display_ends_when_the_study_raises() -> None:
    progress, stream, _ = on_terminal()

    def study() -> None:
        with progress:
            progress(START)
            raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"):
        study()
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is back
    for thread in threading.enumerate():
        if type(thread).__name__ == "_RefreshThread":
            thread.join(timeout=10)
            assert not thread.is_alive()


# ---- threads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: plain(every_s=0), on_terminal])
def test_many_threads_at_once(make: Callable[[], tuple[Progress, io.StringIO, Clock]]) -> None:
    progress, stream, _ = make()
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for step in range(50):
                progress(further(START, step))
                progress.log(f"line {number}-{step} ends")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    with progress:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
    assert not errors
    assert not any(thread.is_alive() for thread in threads)
    found = re.findall(r"line (\d+-\d+) ends", stream.getvalue())
    assert sorted(found) == sorted(f"{number}-{step}" for number in range(8) for step in range(50))
