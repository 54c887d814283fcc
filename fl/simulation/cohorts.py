"""Cohorts as arrays: no message, no event queue.

What answers cost is known before clients are asked: their times, bytes and faults are found first,
and then those train whose answers come. Without training, the answers are known as well.

What a run on the grid would leave behind is left behind: the trace, bytes, joules and counts, and
virtual time at the end of the cohort. `needs_events` says why a cohort cannot be had so; then its
messages are sent one by one, as all others are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import RecordDict
from numpy.typing import NDArray

from fl.execution.batches import form_cohorts
from fl.execution.contract import ForeseenApp, ForeseenCosts, Payload, Result, RunInfo
from fl.flower.cohort_content import read_cohort
from fl.flower.grid_view import CohortReplies, Outcome
from fl.flower.identity import FIRST_NODE_ID, message_id
from fl.flower.payload import snapshot
from fl.simulation.ahead import Ahead
from fl.simulation.control import OnUsed, SimControl
from fl.simulation.host import SimHost
from fl.simulation.kernel.cohort import Cohort, Course, Tangled, course_of
from fl.simulation.kernel.engine import Engine
from fl.simulation.kernel.trace import ROW_TYPE, Event
from fl.simulation.mailbox import Mailbox, reason_of
from fl.simulation.world.availability import DistinctChanges
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleet import Fleet
from fl.vectors.rows import added, is_finite

Foreseen = tuple[ForeseenApp, RunInfo]
"""A ClientApp, and what its clients know about the run."""


def needs_events(fleet: Fleet, foreseen: Foreseen | None, *, runtime: bool) -> str:
    """Returns why no cohort of a run can be had as arrays; "" if some can.

    Args:
        fleet: the clients.
        foreseen: their app, if it knows answers beforehand.
        runtime: whether software takes time on the way, or machines between add updates up.
    """
    if foreseen is None:
        return "the ClientApp does not say what its clients will answer"
    if runtime:
        return "by the runtime, or a hierarchy, software or machines on the way take their time"
    if fleet.network is not None:
        return "the network has links between the clients' own and the server's"
    if fleet.power is not None:
        return "each task has a power cap of its own"
    if fleet.radios is not None:
        return "what a transfer costs depends on when its client's radio was last used"
    if fleet.battery is not None:
        return "who is there depends on what batteries have been used for"
    if fleet.job is not None:
        return "clients are one job, which stands still for all of them"
    if not isinstance(fleet.availability, DistinctChanges):
        return f"availability is {type(fleet.availability).__name__}, whose changes may coincide"
    if type(fleet.faults) is not Faults:
        return f"faults are {type(fleet.faults).__name__}, which are drawn one by one"
    return ""


class SimCohorts:
    """Runs cohorts on a grid whose other parts it shares.

    Args:
        fleet: the clients.
        foreseen: their app, if it knows answers beforehand.
        engine: on which the grid runs what is no cohort.
        mailbox: numbers messages.
        host: counts replies.
        control: counts replies of each client.
        ahead: has clients train.
        runtime: whether software takes time on the way, or machines between add updates up.
        advance: passes virtual time.
        end: returns the time at which the run ends, s.
        on_sent: notes how many `train` messages are sent.
        on_used: called with the updates of a cohort that were used.
    """

    lasting = ("needs_events",)

    def __init__(
        self,
        fleet: Fleet,
        foreseen: Foreseen | None,
        engine: Engine,
        mailbox: Mailbox,
        host: SimHost,
        control: SimControl,
        *,
        ahead: Ahead,
        runtime: bool,
        advance: Callable[[float], None],
        end: Callable[[], float],
        on_sent: Callable[[int], None],
        on_used: OnUsed | None,
    ) -> None:
        self.needs_events = needs_events(fleet, foreseen, runtime=runtime)
        self._fleet = fleet
        self._foreseen = foreseen
        self._engine = engine
        self._mailbox = mailbox
        self._host = host
        self._control = control
        self._ahead = ahead
        self._advance = advance
        self._end = end
        self._on_sent = on_sent
        self._on_used = on_used
        self._cohort: Cohort | None = None  # the last

    def run(
        self,
        content: RecordDict,
        nodes: Sequence[int],
        ttl_s: float,
        *,
        until: float,
        accepts: Callable[[Sequence[Mapping[str, Any]]], bool],
        bears: Callable[[NDArray[np.int64], NDArray[np.bool_]], bool],
    ) -> Outcome | None:
        """Has a cohort answer; see `fl.flower.grid_view.Cohorts.run`."""
        if self.needs_events or self._foreseen is None or self._engine.in_flight:
            return None
        app, run = self._foreseen
        payload = Payload(snapshot(content))
        if app.foresees(payload):
            return None
        client = np.array(nodes, dtype=np.int64) - FIRST_NODE_ID
        answers = app.answers(payload, client % run.num_partitions, run)
        if not accepts(answers.metrics):
            return None
        costs = ForeseenCosts(answers.flops[answers.which], answers.reply_bytes[answers.which])
        cohort = self._cohort_of(client, payload, costs, ttl_s)
        course, _, failed_at_last = self._course_of(cohort, until, bears)
        if course is None:
            return None
        self._keep(cohort, course)
        return Outcome(
            nodes=np.array(nodes, dtype=np.int64),
            answered=course.answered,
            metrics=answers.metrics,
            which=answers.which,
            failed_at_last=failed_at_last,
        )

    def train(
        self,
        content: RecordDict,
        nodes: Sequence[int],
        ttl_s: float,
        *,
        until: float,
        accepts: Callable[[CohortReplies], bool],
        bears: Callable[[NDArray[np.int64], NDArray[np.bool_]], bool],
    ) -> bool:
        """Has a cohort train; see `fl.flower.grid_view.Cohorts.train`."""
        if self.needs_events or self._foreseen is None or self._engine.in_flight:
            return False
        app, run = self._foreseen
        payload = Payload(snapshot(content))
        client = np.array(nodes, dtype=np.int64) - FIRST_NODE_ID
        costs = app.costs(payload, client % run.num_partitions)
        if costs is None:
            return False
        cohort = self._cohort_of(client, payload, costs, ttl_s)
        course, order, failed_at_last = self._course_of(cohort, until, bears)
        if course is None:
            return False
        came = order[course.answered[order]]
        trained = self._trained(cohort, course, payload, came)
        if trained is None or not accepts(replace(trained[0], failed_at_last=failed_at_last)):
            self.needs_events = "an answer could not be used"
            return False
        self._ahead.said(trained[1])
        self._keep(cohort, course)
        return True

    def _trained(
        self, cohort: Cohort, course: Course, payload: Payload, came: NDArray[np.int64]
    ) -> tuple[CohortReplies, list[Result]] | None:
        """Has those train whose answers come; None if one of them is of no use.

        Args:
            cohort: of the clients.
            course: what becomes of them.
            payload: what they are sent.
            came: places of those that answer, in their order.
        """
        if not len(came) or self._foreseen is None:
            return CohortReplies([], [], [], [], [], {}), []
        # Those go together that might answer when the server reads the first answer.
        reads_s = course.received_s[came[0]]
        wave = np.flatnonzero(course.works & ~(course.left_s <= reads_s))
        request = self._mailbox.cohort_request(
            cohort.client[wave], cohort.number[wave], payload, cohort.ttl_s, cohort.began_s
        )
        batches = form_cohorts(*self._foreseen, request, self._ahead.max_batch)
        ends = np.cumsum([len(batch.clients) for batch in batches])
        place = np.searchsorted(wave, came)
        batch = np.searchsorted(ends, place, side="right")
        asked = dict.fromkeys(batch.tolist())
        results = self._ahead.together(batches, [batches[i] for i in asked])
        rows: dict[int, Any] = {}
        reports: dict[int, list[dict[str, Any]]] = {}
        for i, result in zip(asked, results, strict=True):
            if result.content is None:
                return None
            rows[i], reports[i] = read_cohort(result.content)
        finite = {i: is_finite(models) for i, models in rows.items()}
        within = place - np.concatenate([[0], ends])[batch]
        pairs = list(zip(batch.tolist(), within.tolist(), strict=True))
        if not all(finite[i] or is_finite(rows[i][j]) for i, j in pairs):
            return None
        clients, numbers = cohort.client[came], cohort.number[came].tolist()
        replies = CohortReplies(
            message_ids=[*map(message_id, clients.tolist(), numbers)],
            nodes=(clients + FIRST_NODE_ID).tolist(),
            received_s=course.received_s[came].tolist(),
            rows=[rows[i][j] for i, j in pairs],
            metrics=[reports[i][j] for i, j in pairs],
            failed_at_last={},
        )
        return replies, results

    def _cohort_of(
        self, client: NDArray[np.int64], payload: Payload, costs: ForeseenCosts, ttl_s: float
    ) -> Cohort:
        sent = self._mailbox.dispatches
        return Cohort(
            began_s=self._engine.queue.now,
            client=client,
            number=np.array([sent.get(i, 0) for i in client.tolist()], np.int64),
            size_down=payload.size,
            size_up=costs.reply_bytes,
            flops=costs.flops,
            ttl_s=float(ttl_s),
        )

    def _course_of(
        self,
        cohort: Cohort,
        until: float,
        bears: Callable[[NDArray[np.int64], NDArray[np.bool_]], bool],
    ) -> tuple[Course | None, NDArray[np.int64], dict[tuple[int, str], int]]:
        """Returns what becomes of a cohort, if arrays can tell and all is over in time.

        Returns:
            It, the places of the cohort in the order in which the server hears of them, and the
            failures after the last that has answered, by code and reason.
        """
        try:
            course = course_of(self._fleet, cohort)
        except Tangled:
            return None, np.zeros(0, np.int64), {}
        order = np.argsort(course.received_s, kind="stable")
        failed = ~course.answered[order]
        instant = np.searchsorted(course.received_s[order], course.received_s[order])
        if course.ended_s > min(until, self._end()) or not bears(len(order) - instant, failed):
            return None, order, {}
        last = np.flatnonzero(~failed)[-1] + 1 if not failed.all() else 0
        kinds, counts = np.unique(course.failed_by[order[last:]], return_counts=True)
        failed_at_last = {
            reason_of(Event(kind)): count
            for kind, count in zip(kinds.tolist(), counts.tolist(), strict=True)
        }
        return course, order, failed_at_last

    def _keep(self, cohort: Cohort, course: Course) -> None:
        """Leaves behind what the engine and its host would."""
        clients, answered = cohort.client.tolist(), course.answered
        sent, engine, devices = self._mailbox.dispatches, self._engine, self._fleet.devices
        sent.update(zip(clients, (cohort.number + 1).tolist(), strict=True))
        self._on_sent(len(clients))
        engine.trace.record_all(course.rows)
        engine.bytes_down += course.bytes_down
        engine.bytes_up += course.bytes_up
        engine.busy_s = added(engine.busy_s, course.busy_s)
        who, energy_j = cohort.client[course.settled], engine.energy_j
        for kind, watts, seconds in (
            ("compute", devices.compute_w, course.busy_s),
            ("radio", devices.radio_w, course.radio_s),
        ):
            energy_j[kind] = added(energy_j[kind], watts[who] * seconds)
        self._host.client_updates += int(answered.sum())
        self._control.answers.update(cohort.client[answered].tolist())
        self._advance(course.ended_s)
        self._cohort = cohort

    def used(self, outcome: Outcome, places: NDArray[np.int64]) -> None:
        """Records that replies of the last cohort entered the server's model."""
        self._note(Event.APPLIED, places)
        if self._on_used is not None:
            self._on_used(outcome.metrics, outcome.which[places])

    def left(self, places: NDArray[np.int64]) -> None:
        """Records that replies of the last cohort were not used."""
        self._note(Event.DISCARDED, places)

    def _note(self, kind: Event, places: NDArray[np.int64]) -> None:
        if self._cohort is None:
            return
        rows = np.zeros(len(places), ROW_TYPE)
        rows["time"], rows["kind"] = self._engine.queue.now, kind
        rows["client"] = self._cohort.client[places]
        rows["dispatch"] = self._cohort.number[places]
        self._engine.trace.record_all(rows)
