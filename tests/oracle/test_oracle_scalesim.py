"""The systolic closed forms against runs of SCALE-Sim 3.0.0: every cycle and every access."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from qsearch.hardware.systolic import compute_cycles, sram_accesses


@pytest.fixture(scope="module")
def rows(shared_data: Path) -> list[dict[str, str]]:
    with (shared_data / "hardware" / "scalesim" / "measured_gemm.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["dataflow"] for row in table} == {"os", "ws", "is"}
    return table


def shape(row: dict[str, str]) -> tuple[str, int, int, int, int, int]:
    return (row["dataflow"], *(int(row[key]) for key in ("M", "N", "K", "R", "C")))  # type: ignore[return-value]


def test_cycles_are_exact(rows: list[dict[str, str]]) -> None:
    """These runs have no stalls, so the tool's total is its compute."""
    assert [compute_cycles(*shape(row)) for row in rows] == [int(row["total_cycles"]) for row in rows]


def test_sram_accesses_are_exact(rows: list[dict[str, str]]) -> None:
    """Output-stationary output writes are P N here; the tool adds R + C for each fold."""
    for row in rows:
        dataflow, P, N, _, R, C = shape(row)
        counted = sram_accesses(*shape(row))
        extra = -(-P // R) * -(-N // C) * (R + C) if dataflow == "os" else 0
        published = [int(row[key]) for key in ("ifmap_sram_rd", "filter_sram_rd", "ofmap_sram_wr")]
        assert [counted.ifmap_reads, counted.filter_reads, counted.ofmap_writes + extra] == published, row
