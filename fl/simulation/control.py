"""A strategy's reports, as events in a trace."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import NoStep, NotFinite
from fl.flower.grid_view import Control
from fl.flower.identity import client_of
from fl.simulation.kernel.trace import ROW_TYPE, Event, Trace

log = logging.getLogger("fl")

OnApplied = Callable[[int, Mapping[str, Any], bool], None]
"""Called with age in versions and metrics of an update, and whether the client was polled."""

OnUsed = Callable[[Sequence[Mapping[str, Any]], NDArray[np.int64]], None]
"""Called with different reports of updates that are not late, and which each has, in order."""

OnStep = Callable[[NoStep | None, str], None]
"""Called with why a round leaves the model as it is, or None, and the model's name."""

OnMeasured = Callable[[Mapping[str, float]], None]
"""Called with what a strategy has measured, by name."""


class RecordedControl(Control):
    """Records a strategy's reports in a trace; who carries out its orders adds `cancel`.

    Args:
        trace: where events are recorded.
        now: returns their time in s.
        on_applied: called for each update that was used.
        on_used: called in its place for those of one instant; None calls `on_applied` for each.
        on_step: called for each round that has ended.
        on_measured: called with what a strategy has measured.

    Attributes:
        answers: how many replies of each client were read and not rejected; whoever gives out the
            replies counts them here.
    """

    lasting = ("answers", "_told")

    def __init__(
        self,
        trace: Trace,
        now: Callable[[], float],
        on_applied: OnApplied | None = None,
        on_step: OnStep | None = None,
        on_measured: OnMeasured | None = None,
        on_used: OnUsed | None = None,
    ) -> None:
        self.answers: Counter[int] = Counter()
        self._trace = trace
        self._now = now
        self._on_applied = on_applied
        self._on_used = on_used
        self._on_step = on_step
        self._on_measured = on_measured
        self._told = 0

    def applied(
        self, message_id: str, age: int, metrics: Mapping[str, Any], *, polled: bool = False
    ) -> None:
        """Records that an update was used, and how old the model was that it began with."""
        self.record(Event.MERGED if polled else Event.APPLIED, message_id, age)
        if self._on_applied is not None:
            self._on_applied(age, metrics, polled)

    def applied_at_once(
        self, message_ids: Sequence[str], metrics: Sequence[Mapping[str, Any]]
    ) -> None:
        """Records that updates of the version before were used."""
        rows = np.zeros(len(message_ids), ROW_TYPE)
        rows["time"], rows["kind"] = self._now(), Event.APPLIED
        names = [name.partition(".") for name in message_ids]
        rows["client"] = [int(client) for client, _, _ in names]
        rows["dispatch"] = [int(dispatch) for _, _, dispatch in names]
        self._trace.record_all(rows)
        if self._on_used is not None:
            self._on_used(metrics, np.arange(len(metrics)))
        elif self._on_applied is not None:
            for reported in metrics:
                self._on_applied(0, reported, False)

    def discarded(self, message_id: str, staleness: int) -> None:
        """Records that a reply was not used."""
        self.record(Event.DISCARDED, message_id, staleness)

    def rejected(self, message_id: str) -> None:
        """Records a reply that is not valid."""
        self.answers[int(message_id.partition(".")[0])] -= 1
        self.record(Event.REJECTED, message_id)

    def forged(self, message_id: str) -> None:
        """Records a reply that an attack has replaced."""
        self.record(Event.FORGED, message_id)

    def absent(self, node: int, server_round: int) -> None:
        """Records that a client takes no part in a round."""
        client = client_of(node)
        self._trace.record(self._now(), Event.ABSENT, client, value=float(server_round))

    def stepped(self, server_round: int, why_not: NoStep | None = None, *, model: str = "") -> None:
        """Records that a round leaves the model as it is, and tells the user the first time."""
        if why_not is not None:
            kind = Event.NOT_FINITE if isinstance(why_not, NotFinite) else Event.NO_STEP
            self._trace.record(self._now(), kind, value=float(server_round))
            self._told += 1
            if self._told == 1:
                log.warning(
                    "round %d leaves the model as it is (further ones are only counted): %s",
                    server_round,
                    why_not,
                )
        if self._on_step is not None:
            self._on_step(why_not, model)

    def measured(self, metrics: Mapping[str, float]) -> None:
        """Passes on what was measured."""
        if self._on_measured is not None:
            self._on_measured(metrics)

    def record(self, kind: Event, message: str, age: int = 0) -> None:
        """Records an event of a message, now."""
        client, dispatch = message.split(".")
        value = float(age)
        self._trace.record(self._now(), kind, int(client), int(dispatch), value=value)


class SimControl(RecordedControl):
    """Carries out a strategy's orders on the fleet, and records its reports in the trace.

    Args:
        trace, now, on_applied, on_step, on_measured, on_used: as of `RecordedControl`.
        cancel: tells the client that has a message to stop.
    """

    def __init__(
        self,
        trace: Trace,
        now: Callable[[], float],
        cancel: Callable[[str], None],
        on_applied: OnApplied | None,
        on_step: OnStep | None,
        on_measured: OnMeasured | None,
        on_used: OnUsed | None,
    ) -> None:
        super().__init__(trace, now, on_applied, on_step, on_measured, on_used)
        self._cancel = cancel

    def cancel(self, message_id: str) -> bool:
        """Stops the client; True, since its reply will not come."""
        self._cancel(message_id)
        return True
