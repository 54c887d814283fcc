"""The clock of the simulator: time that passes by running events."""

from __future__ import annotations

from collections.abc import Callable


class VirtualClock:
    """The simulator's time; sleeping runs the events that happen meanwhile.

    Args:
        now: returns virtual time in s.
        sleep: moves virtual time on by so many s.
        wait: moves it on to the next reply, at most to a given time.
        elapsed: returns how long it has taken to get here, s.
    """

    virtual = True

    def __init__(
        self,
        now: Callable[[], float],
        sleep: Callable[[float], None],
        wait: Callable[[float], None],
        elapsed: Callable[[], float],
    ) -> None:
        self._now = now
        self._sleep = sleep
        self._wait = wait
        self._elapsed = elapsed

    def now(self) -> float:
        """Returns virtual time in s."""
        return self._now()

    def elapsed(self) -> float:
        """Returns virtual time with what a job has stood still and done over, in s."""
        return self._elapsed()

    def sleep(self, seconds: float) -> None:
        """Moves virtual time on, without blocking."""
        self._sleep(seconds)

    def wait(self, until: float) -> None:
        """Moves virtual time on to the next instant at which a reply is there, or to `until`."""
        self._wait(until)
