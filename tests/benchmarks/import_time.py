"""Time of ``import qsearch`` in a fresh interpreter, beside an empty one.

python tests/benchmarks/import_time.py
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

REPEATS = 9


def seconds(code: str) -> float:
    """Median wall time of running some code in a fresh interpreter."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    """Prints the medians."""
    empty, imported = seconds("pass"), seconds("import qsearch")
    print(f"import qsearch: {imported - empty:.3f} s (interpreter with it {imported:.3f} s, without {empty:.3f} s)")


if __name__ == "__main__":
    main()
