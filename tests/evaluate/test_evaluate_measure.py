"""Seconds by phase add up; the peak of memory is real."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qsearch.evaluate.measure import PhaseTimer, peak_memory_bytes


class Clock:
    """Advances only when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_nested_phases_are_exclusive_and_repeated_ones_add_up() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)
    for _ in range(2):
        with timer.phase("bank"):
            clock.now += 1
            with timer.phase("hessians"):
                clock.now += 10
                with timer.phase("bank"):
                    clock.now += 100
            clock.now += 2
        clock.now += 1000
    assert timer.seconds == {"bank": 206, "hessians": 20}


def test_a_phase_that_raises_is_counted() -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)

    def fail() -> None:
        with timer.phase("outer"), timer.phase("inner"):
            clock.now += 3
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with timer.phase("outer"):
        clock.now += 4
    assert timer.seconds == {"outer": 4, "inner": 3}


Tree = st.recursive(
    st.integers(0, 5), lambda tree: st.tuples(st.sampled_from("abc"), st.lists(tree, max_size=3)), max_leaves=20
)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.lists(Tree, max_size=3)), max_size=4))
def test_phases_add_up_to_the_time_of_the_outermost_blocks(blocks: list[object]) -> None:
    clock = Clock()
    timer = PhaseTimer(clock=clock)

    def walk(node: object) -> None:
        if isinstance(node, tuple):
            with timer.phase(node[0]):
                for part in node[1]:
                    walk(part)
        else:
            assert isinstance(node, int)
            clock.now += node

    spent = 0.0
    for block in blocks:
        before = clock.now
        walk(block)
        spent += clock.now - before
        clock.now += 7
    assert sum(timer.seconds.values()) == spent


PEAK = """
import sys
from qsearch.evaluate.measure import peak_memory_bytes
before = peak_memory_bytes()
block = bytearray(200_000_000)
after = peak_memory_bytes()
del block
print(before, after, peak_memory_bytes())
"""


def test_the_peak_is_that_of_this_process_and_does_not_fall() -> None:
    ballast = bytearray(b"x" * 400_000_000)  # what a parent has must not count for its child
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, after, later = (int(word) for word in done.stdout.split())
    assert 190_000_000 < after - before < 220_000_000
    assert later > after - 5_000_000  # the kernel counts in batches
    assert peak_memory_bytes() > len(ballast)
