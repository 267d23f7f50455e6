"""The progress of a study: a live panel on a terminal, one line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from qsearch.run.status import Phase, Status

#: Rates are means over this many seconds, so that they follow a change of pace.
_WINDOW_S: Final = 30.0

_TITLES: Final = {
    Phase.SEARCH: "searching",
    Phase.FINALISTS: "scoring the finalists",
    Phase.DONE: "done",
    Phase.STOPPED: "stopped: too many failures",
}

_COLORS: Final = {Phase.SEARCH: "cyan", Phase.FINALISTS: "magenta", Phase.DONE: "green", Phase.STOPPED: "red"}


class Progress:
    """Shows what a study does. Call it with snapshots, :meth:`log` with lines; both from any thread.

    Use it as ``with Progress() as progress: launch(file, listener=progress, log=progress.log)``.

    Args:
        console: Where to show it; standard error by default.
        title: Name of the study.
        every_s: Least time between two plain lines, s; a change of phase is shown at once.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        console: Console | None = None,
        title: str = "",
        every_s: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console if console is not None else Console(stderr=True)
        self._title = title
        self._every_s = every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._started = clock()
        self._status: Status | None = None
        self._samples: deque[tuple[float, int]] = deque()
        self._printed: Status | None = None
        self._printed_at = float("-inf")
        self._spinner = Spinner("dots")
        self._live: Live | None = None
        self._closed = False

    def __enter__(self) -> Progress:
        self._started = self._clock()
        self._closed = False
        if self.console.is_terminal:
            self._live = Live(get_renderable=self._render, console=self.console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            live, self._live = self._live, None
            if live is None and self._status is not None and self._status is not self._printed:
                self._print_line(self._status)
        if live is not None:
            live.transient = self._status is None  # the last panel stays, the spinner does not
            live.stop()

    def __call__(self, status: Status) -> None:
        """Takes a snapshot; the listener of :func:`qsearch.run.study.launch`. After the end it is ignored."""
        with self._lock:
            if self._closed:
                return
            now = self._clock()
            is_new_phase = self._status is None or self._status.phase is not status.phase
            if is_new_phase:
                self._samples.clear()
            self._status = status
            self._samples.append((now, status.new_evaluations))
            while self._samples[0][0] < now - _WINDOW_S and len(self._samples) > 2:
                self._samples.popleft()
            if self._live is None and (is_new_phase or now - self._printed_at >= self._every_s):
                self._print_line(status)

    def log(self, line: str) -> None:
        """Shows a line that stays."""
        if self._live is None:
            with self._lock:
                self._print(line)
        else:  # without the lock: printing draws the panel anew, which takes it
            self._print(line)

    # ---- numbers --------------------------------------------------------------------------------------------------

    def _rate(self) -> float | None:
        """Evaluations per second of late; None before there is anything to go by."""
        if len(self._samples) < 2:
            return None
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        return (after - before) / (end - start) if end > start else None

    def _remaining_s(self, status: Status) -> float | None:
        """Seconds to the end of the phase at the present rate."""
        done, total = _steps(status)
        rate = self._rate()
        if total is None or not rate or status.phase in (Phase.DONE, Phase.STOPPED):
            return None
        return max(0, total - done) / rate

    # ---- plain lines ----------------------------------------------------------------------------------------------

    def _print(self, line: str) -> None:
        self.console.print(Text(line), soft_wrap=True)

    def _print_line(self, status: Status) -> None:
        self._printed, self._printed_at = status, self._clock()
        done, total = _steps(status)
        parts = [f"{_TITLES[status.phase]}: {done}" + (f"/{total}" if total is not None else "")]
        rate = self._rate()
        if rate is not None:
            parts.append(f"{rate:.1f} evaluations/s")
        parts.append(f"workers {status.workers}, {100 * status.efficiency:.0f} % busy")
        parts.append(f"front {status.front}, hypervolume {status.hypervolume:.4f}")
        if status.failures:
            parts.append(f"failures {status.failures} (last: {_shortened(status.last_failure, 120)})")
        remaining = self._remaining_s(status)
        if remaining is not None:
            parts.append(f"about {_duration(remaining)} left")
        self._print(f"[{_duration(self._clock() - self._started)}] " + "; ".join(parts))

    # ---- the panel ------------------------------------------------------------------------------------------------

    def _render(self) -> RenderableType:
        with self._lock:
            elapsed = _duration(self._clock() - self._started)
            if self._status is None:
                self._spinner.update(text=Text(f" preparing {self._title}".rstrip() + f"  {elapsed}", style="cyan"))
                return self._spinner
            return self._panel(self._status, elapsed)

    def _panel(self, status: Status, elapsed: str) -> Panel:
        color = _COLORS[status.phase]
        facts = Table.grid(padding=(0, 2))
        facts.add_column(style="dim", no_wrap=True)
        facts.add_column(overflow="fold")
        rate, remaining = self._rate(), self._remaining_s(status)
        speed = f"{status.new_evaluations} in this session" + (f", {rate:.1f}/s" if rate is not None else "")
        facts.add_row("evaluations", speed)
        facts.add_row("front", f"{status.front} candidates, hypervolume {status.hypervolume:.4f}")
        facts.add_row("candidates", _states(status))
        facts.add_row("workers", _workers(status))
        if status.failures:
            last = Text(f"{status.failures}; last: {_shortened(status.last_failure, 300)}", style="yellow")
            facts.add_row("failures", last)
        left = f", about {_duration(remaining)} left in this phase" if remaining is not None else ""
        facts.add_row("time", f"{elapsed}{left}")
        name = f"{self._title}: " if self._title else ""
        return Panel(
            Group(self._bar(status, color), facts),
            title=Text(f"{name}{_TITLES[status.phase]}", style=f"bold {color}"),
            title_align="left",
            border_style=color,
            box=box.ROUNDED,
            width=min(self.console.width, 100),
        )

    def _bar(self, status: Status, color: str) -> RenderableType:
        done, total = _steps(status)
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(ratio=1)
        row.add_column(justify="right", no_wrap=True)
        share = f"  {100 * done / total:.0f} %" if total else ""
        count = f"{done}/{total}{share}" if total is not None else str(done)
        bar = ProgressBar(
            total=total or None,
            completed=min(done, total) if total else 0,
            pulse=total is None and status.phase is Phase.SEARCH,
            complete_style=color,
            finished_style=color,
        )
        row.add_row(bar, count)
        return row


def _steps(status: Status) -> tuple[int, int | None]:
    """What is done of the phase, and how much there is to do; None when only time limits it."""
    if status.phase is Phase.FINALISTS:
        return status.finalists
    return status.evaluated, status.budget


def _workers(status: Status) -> str:
    if not status.new_evaluations:
        return str(status.workers)
    lease = f"{status.lease_size} job{'s' if status.lease_size != 1 else ''} a lease"
    overhead = f"ask {status.ask_ms:.1f} ms, record {status.store_ms:.1f} ms"
    return f"{status.workers}, {100 * status.efficiency:.0f} % busy, {lease}; {overhead}"


def _states(status: Status) -> str:
    """Counts by state; a leased candidate is one that waits, so it is named beside it."""
    counts = {name: number for name, number in status.counts.items() if number and name != "leased"}
    text = ", ".join(f"{number} {name}" for name, number in counts.items()) or "none yet"
    leased = status.counts.get("leased", 0)
    return f"{text}; {leased} jobs under way" if leased else text


def _shortened(text: str, limit: int) -> str:
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def _duration(seconds: float) -> str:
    """Writes ``m:ss`` or ``h:mm:ss``."""
    whole = max(0, round(seconds))
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02d}:{whole % 60:02d}" if hours else f"{minutes}:{whole % 60:02d}"
