from __future__ import annotations

import re

import pytest
from fronts import POINTS, make_front

from qsearch.cli.tables import front_lines, print_front

MANY = [((8, 8, 8), (8, 8, 8), 98.0 - i, 97.0 - i) for i in range(23)]


def ids(lines: list[str]) -> list[int]:
    """Numbers of the points that a table lists, in order."""
    return [int(line.split()[0]) for line in lines if re.match(r"\s*\d+ ", line)]


def on_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))


def printed(capsys: pytest.CaptureFixture[str]) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)


def test_columns_are_aligned_and_complete() -> None:
    lines = front_lines(make_front())
    table = lines[: lines.index(next(line for line in lines if line.startswith("val, test")))]
    cells = [re.findall(r"\S+", line) for line in table[-5:]]
    assert cells[0] == ["float32", "98.50", "98.00", "32", "32", "1.7520", "-", "-", "-", "-"]
    assert cells[2] == [
        "10",
        "97.00",
        "97.25",
        *cells[2][3:5],
        "6.0000",
        "160.00",
        "2.5600",
        "480.00",
        "7.6800",
        "knee",
    ]
    ends = {tuple(match.end() for match in re.finditer(r"\S+", line))[:10] for line in table[-5:]}
    assert len(ends) == 1
    assert re.findall(r"\S+", table[-6]) == ["point", "%", "%", "bits", "bits", "kB", "us", "ms", "nJ", "uJ"]


def test_a_front_without_test_accuracies() -> None:
    lines = front_lines(make_front([(*point[:3], None) for point in POINTS], is_final=False))
    assert "test" not in lines[0] + lines[1] + lines[2]
    assert "the study is not finished: the front may change" in lines


def test_devices_come_with_batch_and_validation() -> None:
    lines = front_lines(make_front())
    assert "cloud: for a batch of 16 images; unvalidated" in lines
    assert "edge: unvalidated" in lines


def test_an_empty_front_is_the_float_network_alone() -> None:
    lines = front_lines(make_front([], knee=None))
    assert not ids(lines)
    assert any(line.split()[0] == "float32" for line in lines)


@pytest.mark.parametrize("knee", [0, 1, 11, 21, 22])
@pytest.mark.parametrize("limit", [3, 10, 22])
def test_a_short_table_keeps_the_ends_and_the_knee(knee: int, limit: int) -> None:
    front = make_front(MANY, knee=knee)
    found = ids(front_lines(front, limit))
    assert len(found) == limit
    assert found == sorted(set(found))
    assert {front.points[0].id, front.points[-1].id, front.points[knee].id} <= set(found)
    assert f"made: {limit} of 23 Pareto-optimal candidates" in "\n".join(front_lines(front, limit))


def test_a_long_limit_shows_all() -> None:
    assert len(ids(front_lines(make_front(MANY), 23))) == 23


def test_a_terminal_gets_a_ruled_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_terminal(monkeypatch, 100)
    print_front(make_front())
    text = printed(capsys)
    assert "───" in text
    assert ids(text.splitlines()) == [3, 10, 17, 24]
    assert "…" not in text


def test_a_narrow_terminal_loses_no_digit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    on_terminal(monkeypatch, 50)
    print_front(make_front())
    text = printed(capsys)
    assert "…" not in text
    assert text.splitlines() == front_lines(make_front())


def test_long_device_names_are_broken_in_the_heading() -> None:
    lines = front_lines(make_front(devices={"a_long_device-name_of_mine": 1}))
    heading = [line.split() for line in lines[:5]]
    assert ["a_long_", "a_long_"] in heading
    assert ["device-", "device-"] in heading
