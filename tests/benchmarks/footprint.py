"""Wall time and peak memory of a command with all its children (Ray's processes included).

    python tests/benchmarks/footprint.py qsearch launch studies/digits.yaml --dir /tmp/digits

Memory is the largest sum of the proportional set sizes seen in samples 0.2 s apart: pages that processes share are
counted once.
"""

from __future__ import annotations

import subprocess
import sys
import time

import psutil

EVERY_S = 0.2


def memory_of_tree(root: psutil.Process) -> int:
    """Bytes of a process and its descendants."""
    total = 0
    for process in [root, *root.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def main() -> None:
    """Runs the command of the arguments and prints what it took."""
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    started = time.perf_counter()
    process = subprocess.Popen(sys.argv[1:])
    root, peak = psutil.Process(process.pid), 0
    while process.poll() is None:
        try:
            peak = max(peak, memory_of_tree(root))
        except psutil.NoSuchProcess:
            break
        time.sleep(EVERY_S)
    seconds = time.perf_counter() - started
    print(f"exit code {process.wait()}, {seconds:.0f} s, peak memory {peak / 2**30:.2f} GiB", file=sys.stderr)


if __name__ == "__main__":
    main()
