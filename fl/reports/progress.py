"""What the user watches while a run goes on.

On a terminal, and in a notebook that has ipywidgets, a display of three lines is kept up to date.
On anything else (a log file, a pipe) each evaluation prints one line, and a long round one line
every half minute. Host time is read here for display only; nothing of it flows back into the run.
"""

from __future__ import annotations

import logging
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fl.reports import units

_MOST_METRICS = 8  # on one line
_HEARTBEAT_S = 30.0  # between plain lines while no evaluation happens
_REDRAWS_PER_S = 4
_RATE_WINDOW_S = 10.0  # client updates per second are taken over this much host time


@dataclass(slots=True)
class Status:
    """Where a run is. Keep one object, change it, and pass it to `Progress.update`.

    Args:
        round: rounds, or server model versions, so far.
        time_s: virtual time, s.
        metrics: the latest evaluation's; assign a new mapping at each evaluation.
        in_flight: tasks dispatched and not ended.
        faults: fault events so far.
        client_updates: replies with a trained model so far.
    """

    round: int = 0
    time_s: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)
    in_flight: int = 0
    faults: int = 0
    client_updates: int = 0


class Progress:
    """Shows a run's progress inside a `with` block; the terminal is restored however it ends.

    While the live display is up, printed text and log lines appear above it. Showing never fails
    the run: when output cannot be written (a closed pipe), it stops.

    Args:
        total_rounds: rounds the run will make, or None.
        total_time: virtual seconds after which it will end, or None. With neither there is no bar.
        enabled: False shows nothing.
        console: where to; by default standard error, so results on standard output stay clean.
        host_clock: host seconds, a function; tests pass their own.
    """

    def __init__(
        self,
        total_rounds: int | None = None,
        total_time: float | None = None,
        enabled: bool = True,
        *,
        console: Console | None = None,
        host_clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.total_rounds = total_rounds
        self.total_time = total_time
        self.enabled = enabled
        self._console = _Terminal(stderr=True) if console is None else console
        self._clock = host_clock
        self._entered = False
        self._live: Live | None = None
        self._streams: list[tuple[logging.StreamHandler[Any], Any]] = []
        self._status = Status()
        self._shown: Mapping[str, float] = self._status.metrics
        self._printed = ""
        self._began = self._next_line = 0.0
        self._updates: deque[tuple[float, int]] = deque()  # (host time, client updates) lately

    def __enter__(self) -> Progress:
        self._entered = True
        self._began = self._clock()
        self._next_line = self._began + _HEARTBEAT_S
        if self.enabled and self._can_animate():
            self._live = Live(
                console=self._console,
                refresh_per_second=_REDRAWS_PER_S,
                # Standard output that goes to a file must not be drawn into the display.
                redirect_stdout=_is_terminal(sys.stdout),
                redirect_stderr=_is_terminal(sys.stderr),
                get_renderable=self._render,
            )
            before = (sys.stdout, sys.stderr)
            try:
                self._live.start(refresh=True)
            except (OSError, ValueError):
                self._live, self.enabled = None, False
            self._redirect_logs(before)
        return self

    def update(self, status: Status) -> None:
        """Takes the run's state. Most calls end after a few comparisons, under a microsecond."""
        self._status = status
        if self._live is not None or not self.enabled or not self._entered:
            return  # the live display's own thread redraws
        if status.metrics is not self._shown:
            evaluated = dict(status.metrics) != dict(self._shown)
            self._shown = status.metrics
            if evaluated:
                self._print_line()
                return
        if self._clock() >= self._next_line:
            self._print_line()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._entered = False
        if self._live is not None:
            try:
                self._live.stop()
            except (OSError, ValueError):
                self.enabled = False  # the terminal is gone; the run's own end matters more
            self._live = None
            for handler, stream in self._streams:
                handler.setStream(stream)
            self._streams = []
        elif self.enabled and self._position() != self._printed:
            self._print_line()

    def _can_animate(self) -> bool:
        if self._console.is_jupyter:
            # In a notebook rich's live display is a widget; without the package it only warns.
            return find_spec("ipywidgets") is not None
        return self._console.is_terminal and not self._console.is_dumb_terminal

    def _redirect_logs(self, before: tuple[Any, Any]) -> None:
        # Handlers keep the stream they were made with, and would write through the display.
        now = (sys.stdout, sys.stderr)
        for handler in _stream_handlers():
            for old, new in zip(before, now, strict=True):
                if handler.stream is old and new is not old:
                    self._streams.append((handler, old))
                    handler.setStream(new)
                    break

    # ---- plain lines -----------------------------------------------------------------------------

    def _print_line(self) -> None:
        self._next_line = self._clock() + _HEARTBEAT_S
        self._printed = self._position()
        facts = [*self._headline(), *self._metrics(), *self._activity()]
        try:
            print(" | ".join(facts), file=self._console.file, flush=True)
        except (OSError, ValueError):  # a closed or broken output, or one that cannot encode
            self.enabled = False

    def _position(self) -> str:
        status = self._status
        return f"{status.round} {status.time_s} {status.client_updates} {dict(status.metrics)}"

    def _headline(self) -> list[str]:
        status = self._status
        goal = "" if self.total_rounds is None else f"/{self.total_rounds}"
        end = "" if self.total_time is None else f" of {units.duration(self.total_time)}"
        return [
            f"round {status.round}{goal}",
            f"{units.duration(status.time_s)}{end} simulated",
        ]

    def _metrics(self) -> list[str]:
        metrics = dict(self._status.metrics)
        shown = [f"{units.name(name)} {units.metric(metrics[name])}" for name in metrics]
        more = len(shown) - _MOST_METRICS
        return shown if more <= 0 else [*shown[:_MOST_METRICS], f"and {more:,} more metrics"]

    def _activity(self) -> list[str]:
        status = self._status
        return [
            f"{units.count(status.in_flight)} in flight",
            f"{units.count(status.faults)} fault{'' if status.faults == 1 else 's'}",
            f"{units.count(status.client_updates)} client updates",
            f"{units.rate(self._rate())} on this host",
        ]

    def _rate(self) -> float:
        """Returns client updates per second of host time, lately."""
        now, count = self._clock(), self._status.client_updates
        while len(self._updates) > 1 and self._updates[1][0] <= now - _RATE_WINDOW_S:
            self._updates.popleft()
        then, before = self._updates[0] if self._updates else (self._began, 0)
        self._updates.append((now, count))
        return (count - before) / (now - then) if now > then else 0.0

    # ---- live display ----------------------------------------------------------------------------

    def _render(self) -> RenderableType:
        metrics = self._metrics()
        elapsed = self._clock() - self._began
        timing = f"{units.duration(round(elapsed))} elapsed"
        done = self._fraction()
        parts: list[RenderableType] = []
        if done is not None:
            if 0 < done < 1:
                timing += f", {units.duration(round(elapsed * (1 - done) / done))} left"
            bar = Table.grid(padding=(0, 1))
            bar.add_row(
                Text(f"{100 * done:3.0f} %", "bold"),
                ProgressBar(total=1.0, completed=done, width=30),
                Text(timing, "dim"),
            )
            parts.append(bar)
        line = Text("  ".join(self._headline()), "bold")
        for text in metrics:
            line.append(f"  {text}", "bold cyan")
        parts.append(line)
        activity = self._activity() + ([timing] if done is None else [])
        parts.append(Text(" | ".join(activity), "dim"))
        return Group(*parts)

    def _fraction(self) -> float | None:
        """Returns how much of the run is done, by whichever limit is nearer; None if unknown."""
        parts = []
        if self.total_rounds:
            parts.append(self._status.round / self.total_rounds)
        if self.total_time:
            parts.append(self._status.time_s / self.total_time)
        return min(max(parts), 1.0) if parts else None


class _Terminal(Console):
    def on_broken_pipe(self) -> None:
        """Lets the error through; rich would end the process."""
        raise


def _is_terminal(stream: Any) -> bool:
    return stream is not None and not stream.closed and bool(stream.isatty())


def _stream_handlers() -> Iterator[logging.StreamHandler[Any]]:
    loggers = [logging.getLogger(), *logging.Logger.manager.loggerDict.values()]
    for logger in loggers:
        if isinstance(logger, logging.Logger):
            for handler in logger.handlers:
                if isinstance(handler, logging.StreamHandler):
                    yield handler
