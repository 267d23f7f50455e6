"""What an evaluation took: seconds by phase, and the most memory it had."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class PhaseTimer:
    """Adds up wall-clock seconds by phase; for one thread.

    Time inside a nested phase counts for that one only, so the phases add up to the time of the outermost blocks::

        with timer.phase("calibrate"):
            ...

    Args:
        device: A GPU that is waited for at the borders of phases, so that its work counts for the phase it belongs to.
        clock: Returns seconds.
    """

    def __init__(self, device: torch.device | None = None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._clock = clock
        self._seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of every phase that was entered, in the order they were first entered."""
        return dict(self._seconds)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Counts the block for a phase, also when it raises; a phase may be entered any number of times."""
        self._charge()
        self._seconds.setdefault(name, 0.0)
        self._running.append(name)
        try:
            yield
        finally:
            self._charge()
            self._running.pop()

    def _charge(self) -> None:
        """Counts the time since the last border for the innermost running phase."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)
        now = self._clock()
        if self._running:
            self._seconds[self._running[-1]] += now - self._since
        self._since = now


def peak_memory_bytes(device: torch.device | None = None) -> int:
    """Returns the most memory in use so far, bytes.

    Args:
        device: A GPU: bytes of tensors on it since the start or ``torch.cuda.reset_peak_memory_stats``. Else: resident
            memory of this process since its start.
    """
    if device is not None and device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        # Not getrusage where there is better: on Linux it starts from what the parent process had at the fork.
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
