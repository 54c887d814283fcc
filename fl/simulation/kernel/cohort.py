"""A cohort that is sent a message at one instant, simulated as arrays instead of event after event.

Where nothing else is going on, what happens to a client's dispatch depends on itself and on the
server's link alone, so each stage of all of them is a column: faults, transfers, computations,
departures. The times, and the events in their order, are those of `Engine` to the last bit: the
same operations on the same numbers, and ties in the order in which the engine would schedule them.
Where that order cannot be told from the columns, as between a download and an upload of two clients
that end at the very same time, `Tangled` is raised before anything has changed, and the engine does
the cohort.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.simulation.kernel.trace import ROW_TYPE, Event
from fl.simulation.kernel.water_filling import WaterFilling, slack
from fl.simulation.world.availability import DistinctChanges
from fl.simulation.world.fleet import Fleet

Seconds = NDArray[np.float64]
Whole = NDArray[np.int64]
Mask = NDArray[np.bool_]

_NEAR = 4.0
"""Times the slack of a link: ends of transfers that are nearer than this, and not equal, may count
as one instant to it."""


class Tangled(Exception):
    """The order of two events, or what comes after the cohort, takes the engine to find out."""


@dataclass(frozen=True, eq=False)
class Cohort:
    """What is sent to whom, at one instant.

    Attributes:
        began_s: the instant, s.
        client: indices in the fleet, no two the same, in the order of sending, shape (n,).
        number: the running number of each one's dispatch.
        size_down: bytes of the message.
        size_up: of each reply.
        flops: of each one's work.
        ttl_s: time to live of the message.
    """

    began_s: float
    client: Whole
    number: Whole
    size_down: int
    size_up: Whole
    flops: Seconds
    ttl_s: float


@dataclass(frozen=True, eq=False)
class Course:
    """What became of a cohort.

    Attributes:
        rows: events, as a `Trace` keeps them.
        answered: whose replies have arrived in time, shape (n,).
        received_s: when the server has got the reply, or has learned that none comes.
        failed_by: of the others, what the server takes for the cause.
        ended_s: when the last of all this was, s.
        bytes_down, bytes_up: that were sent.
        busy_s: seconds computed of each dispatch that ended, in the order of their ends.
        settled: whose dispatches these are, places in the cohort.
        radio_s: seconds of their radios, likewise.
        works: whose reply nothing that is drawn beforehand keeps from coming, shape (n,).
        left_s: when each has left in the middle, s; infinite for those that have not.
    """

    rows: NDArray[Any]
    answered: Mask
    received_s: Seconds
    failed_by: NDArray[np.int8]
    ended_s: float
    bytes_down: int
    bytes_up: int
    busy_s: Seconds
    settled: Whole
    radio_s: Seconds
    works: Mask
    left_s: Seconds


@dataclass(frozen=True, eq=False)
class _Ends:
    """Ends of one stage.

    Attributes:
        who: places in the cohort, in the order in which the engine would run the ends.
        time: of each end, s, ascending.
        kinds: of the events of each, in their order, -1 for none, shape (n, k).
        values: that belong to these events, shape (n, k).
    """

    who: Whole
    time: Seconds
    kinds: NDArray[np.int8]
    values: Seconds


def course_of(fleet: Fleet, cohort: Cohort) -> Course:
    """Returns what becomes of a cohort of clients that are all there and at nothing else.

    The fleet has no network of links, and the runtime is ideal.

    Raises:
        Tangled: it takes the engine to find out.
    """
    client, number, n = cohort.client, cohort.number, len(cohort.client)
    began, expiry = cohort.began_s, cohort.began_s + cohort.ttl_s
    latency = fleet.links.latency_s[client] + fleet.server.latency_s
    if not isinstance(fleet.availability, DistinctChanges):
        raise Tangled("clients may leave at the same time")
    leaves = fleet.availability.next_changes(client, began)
    faults = fleet.faults.draw_all(fleet.seed, client, number)

    # Download. In the order of their beginnings, which is that of the flows.
    begins = began + latency
    first = _in_order(np.arange(n), begins)
    who, end = _transfers(
        fleet.server.up_bps,
        first,
        begins[first],
        np.full(n, cohort.size_down),
        fleet.down_caps(client[first], number[first]),
        leaves[first],
    )
    downloaded = np.full(n, np.inf)
    downloaded[who] = end
    lost = faults.lose_download[who]
    got = who[~lost]

    # Compute. In the order in which they begin.
    seconds = fleet.all_compute_seconds(client[got], number[got], cohort.flops[got])
    slow = faults.slowdown[got]
    stop = np.ones(len(got))
    broken = np.full(len(got), -1, np.int8)
    for at, kind in ((faults.crash_at, Event.CRASH), (faults.dropout_at, Event.DROPOUT)):
        sooner = at[got] < stop  # never where it is NaN
        stop[sooner], broken[sooner] = at[got][sooner], kind
    since = downloaded[got]
    until = since + np.where(broken >= 0, stop * seconds, seconds)
    stays = ~(leaves[got] < until)
    there = _in_order(np.flatnonzero(stays), until[stays])
    worked, worked_s, fault = got[there], until[there], broken[there]
    computed = np.full(n, np.inf)
    computed[worked[fault < 0]] = worked_s[fault < 0]
    sends = worked[fault < 0]

    # Upload, in the order in which they begin.
    starts = computed[sends] + latency[sends]
    order = _in_order(np.arange(len(sends)), starts)
    flows = sends[order]
    sent, up_end = _transfers(
        fleet.server.down_bps,
        flows,
        starts[order],
        cohort.size_up[flows],
        fleet.up_caps(client[flows], number[flows]),
        leaves[flows],
    )
    uploaded = np.full(n, np.inf)
    uploaded[sent] = up_end
    lost_up = faults.lose_upload[sent]

    # Who has left in the middle: of no other stage's end.
    ended = np.zeros(n, np.bool_)
    ended[who[lost]] = ended[worked[fault >= 0]] = ended[sent] = True
    gone = np.flatnonzero(~ended)
    gone = _in_order(gone, leaves[gone])

    # What the server gets to know, and when.
    failed_by = np.full(n, Event.EXPIRED, np.int8)
    received = np.full(n, np.inf)
    received[sent[~lost_up]] = up_end[~lost_up]
    answered = received <= expiry
    crashed, dropped = worked[fault == Event.CRASH], worked[fault == Event.DROPOUT]
    received[crashed] = worked_s[fault == Event.CRASH] + latency[crashed]
    failed_by[crashed] = Event.CRASH
    told = np.zeros(0, np.int64)
    if (after := fleet.faults.detection_s) is not None:
        for kind, some, time in (
            (Event.DROPOUT, dropped, worked_s[fault == Event.DROPOUT]),
            (Event.DEPARTURE, gone, leaves[gone]),
        ):
            received[some] = time + after
            failed_by[some] = kind
        told = np.concatenate([dropped, gone])
        told = told[received[told] <= expiry]
        told = _in_order(told, received[told])
    late = received > expiry
    failed_by[late] = Event.EXPIRED
    received[late] = expiry
    expired = np.flatnonzero(late)

    download, upload = cohort.size_down, cohort.size_up
    stages = [
        _downloads(who, end, lost, seconds, slow, download),
        _works(worked, worked_s, fault, upload),
        _uploads(sent, up_end, lost_up),
        _single(told, received[told], Event.NODE_UNAVAILABLE),
        _single(gone, leaves[gone], Event.DEPARTURE),
    ]
    _check(stages, expiry, expired=len(expired) > 0)
    stages.append(_single(expired, np.full(len(expired), expiry), Event.EXPIRED))
    rows = _rows(cohort, stages)

    radio = np.zeros(n)
    radio[who] = end - began
    radio[sent] += up_end - computed[sent]
    in_download = gone[np.isinf(downloaded[gone])]
    radio[in_download] = np.maximum(0.0, leaves[in_download] - began)
    in_upload = gone[np.isfinite(computed[gone])]
    radio[in_upload] += np.maximum(0.0, leaves[in_upload] - computed[in_upload])
    busy = np.zeros(n)
    busy[worked] = np.maximum(0.0, worked_s - downloaded[worked])
    in_compute = gone[np.isfinite(downloaded[gone]) & np.isinf(computed[gone])]
    busy[in_compute] = np.maximum(0.0, leaves[in_compute] - downloaded[in_compute])
    settles = np.concatenate([who[lost], worked[fault >= 0], sent, gone])
    times = np.concatenate([end[lost], worked_s[fault >= 0], up_end, leaves[gone]])
    settled = _in_order(settles, times)
    stops = ~(np.isnan(faults.crash_at) & np.isnan(faults.dropout_at))
    left = np.full(n, np.inf)
    left[gone] = leaves[gone]
    return Course(
        rows=rows,
        answered=answered,
        received_s=received,
        failed_by=failed_by,
        ended_s=float(received.max()),
        bytes_down=cohort.size_down * len(who),
        bytes_up=int(cohort.size_up[sent].sum()),
        busy_s=busy[settled],
        settled=settled,
        radio_s=radio[settled],
        works=~(stops | faults.lose_download | faults.lose_upload),
        left_s=left,
    )


def _in_order(who: Whole, times: Seconds) -> Whole:
    """Returns places in the order of their times; those of equal times stay as they are."""
    return who[np.argsort(times, kind="stable")]


# ---- transfers -----------------------------------------------------------------------------------


def _transfers(
    capacity_bps: float,
    who: Whole,
    begins: Seconds,
    sizes: Whole,
    caps: Seconds,
    leaves: Seconds,
) -> tuple[Whole, Seconds]:
    """Returns whose transfers over the server's link end, in their order, and when.

    Args:
        capacity_bps: of the link.
        who: places in the cohort, in the order in which the transfers begin.
        begins: when they do, s, ascending.
        sizes: bytes.
        caps: the most that each gets, bit/s.
        leaves: when each one's client leaves.

    Raises:
        Tangled: what is near in time may be one to the link, or in another order.
    """
    if math.isfinite(capacity_bps):
        return _shared(capacity_bps, who, begins, sizes, caps, leaves)
    ends = begins + 8.0 * sizes / caps
    arrives = ~(leaves < ends)
    order = np.argsort(ends[arrives], kind="stable")
    end = ends[arrives][order]
    gaps = np.diff(end)
    if ((gaps > 0) & (gaps <= _NEAR * slack(1.0) * end[1:])).any():
        raise Tangled("two transfers end at nearly the same time")
    return who[arrives][order], end


def _shared(
    capacity_bps: float,
    who: Whole,
    begins: Seconds,
    sizes: Whole,
    caps: Seconds,
    leaves: Seconds,
) -> tuple[Whole, Seconds]:
    """Likewise over a link that they share, event by event, with the alarms of a `Port`."""
    comes = np.flatnonzero(~(leaves < begins))
    who, begins, leaves = who[comes], begins[comes], leaves[comes]
    goes = np.flatnonzero(np.isfinite(leaves))
    goes = _in_order(goes, leaves[goes])
    size, cap = (8.0 * sizes[comes]).tolist(), caps[comes].tolist()
    begin, going, n = begins.tolist(), goes.tolist(), len(comes)
    leave = leaves[goes].tolist()
    begin.append(math.inf)
    leave.append(math.inf)
    link = WaterFilling(capacity_bps)
    ended: list[int] = []
    times: list[float] = []
    coming = gone = 0
    armed = math.inf  # when the alarm is
    while coming < n or link:
        start, away = begin[coming], leave[gone]
        if start <= away and start < armed:
            link.add(start, coming, size[coming], cap[coming])
            coming += 1
        elif armed <= away:
            if start == armed:
                raise Tangled("a transfer begins where another may end")
            done = link.pop_completed(armed)
            ended += done
            times += [armed] * len(done)
            armed = math.inf
        else:
            gone += 1
            if going[gone - 1] not in link:
                continue
            link.remove(away, going[gone - 1])
        armed = min(armed, link.next_completion())
    return who[np.array(ended, np.int64)], np.array(times)


# ---- events --------------------------------------------------------------------------------------


def _downloads(
    who: Whole, time: Seconds, lost: Mask, seconds: Seconds, slow: Seconds, size: int
) -> _Ends:
    kinds = np.full((len(who), 3), -1, np.int8)
    values = np.zeros((len(who), 3))
    kinds[:, 0] = np.where(lost, Event.DOWNLOAD_LOST, Event.DOWNLOAD_END)
    kinds[np.flatnonzero(~lost)[slow != 1.0], 1] = Event.SLOWDOWN
    kinds[~lost, 2] = Event.COMPUTE_START
    values[~lost, 1], values[~lost, 2] = slow, seconds
    return _Ends(who, time, kinds, values)


def _works(who: Whole, time: Seconds, fault: NDArray[np.int8], size: Whole) -> _Ends:
    kinds = np.full((len(who), 2), -1, np.int8)
    kinds[:, 0] = np.where(fault >= 0, fault, Event.COMPUTE_END)
    kinds[fault < 0, 1] = Event.UPLOAD_START
    return _Ends(who, time, kinds, np.zeros((len(who), 2)))


def _uploads(who: Whole, time: Seconds, lost: Mask) -> _Ends:
    kinds = np.where(lost, Event.UPLOAD_LOST, Event.UPLOAD_END).astype(np.int8)
    return _Ends(who, time, kinds[:, None], np.zeros((len(who), 1)))


def _single(who: Whole, time: Seconds, kind: Event) -> _Ends:
    return _Ends(who, time, np.full((len(who), 1), kind, np.int8), np.zeros((len(who), 1)))


def _check(stages: list[_Ends], expiry: float, *, expired: bool) -> None:
    """Raises Tangled if the stages do not tell the order of two events, or if there is work left.

    Within a stage the order is known, but for the last two, where it is that of other events.
    """
    time = np.concatenate([stage.time for stage in stages])
    who = np.concatenate([stage.who for stage in stages])
    number = np.repeat(np.arange(len(stages)), [len(stage.who) for stage in stages])
    order = np.argsort(time, kind="stable")
    time, who, number = time[order], who[order], number[order]
    equal = np.flatnonzero(np.diff(time) == 0)
    other = who[equal] != who[equal + 1]
    stage = np.maximum(number[equal], number[equal + 1])
    if (other & ((number[equal] != number[equal + 1]) | (stage >= len(stages) - 2))).any():
        raise Tangled("events of two clients are at the same time")
    if expired and len(time) and time[-1] >= expiry:
        raise Tangled("somebody is at work when the messages expire")


_SIZED_DOWN = (Event.DOWNLOAD_START, Event.DOWNLOAD_END, Event.DOWNLOAD_LOST)
_SIZED_UP = (Event.UPLOAD_START, Event.UPLOAD_END, Event.UPLOAD_LOST)


def _rows(cohort: Cohort, stages: list[_Ends]) -> NDArray[Any]:
    """Returns the events of the stages, and before them those of the sending, in their order."""
    n = len(cohort.client)
    time = np.concatenate([stage.time for stage in stages])
    order = np.argsort(time, kind="stable")
    width = np.concatenate([(stage.kinds >= 0).sum(axis=1) for stage in stages])
    place = np.empty(len(order), np.int64)  # of each end's first event
    place[order] = np.cumsum(width[order]) - width[order]
    rows = np.zeros(2 * n + int(width.sum()), ROW_TYPE)
    head, tail = rows[: 2 * n], rows[2 * n :]
    head["time"] = cohort.began_s
    head["kind"][0::2], head["kind"][1::2] = Event.DISPATCH, Event.DOWNLOAD_START
    head["client"], head["dispatch"] = np.repeat(cohort.client, 2), np.repeat(cohort.number, 2)
    head["bytes"] = cohort.size_down
    for stage, first in zip(stages, _cut(place, stages), strict=True):
        shown = stage.kinds >= 0
        at = (first[:, None] + np.cumsum(shown, axis=1) - 1)[shown]
        end, _ = np.nonzero(shown)
        who, kind = stage.who[end], stage.kinds[shown]
        tail["time"][at] = stage.time[end]
        tail["kind"][at] = kind
        tail["client"][at] = cohort.client[who]
        tail["dispatch"][at] = cohort.number[who]
        tail["value"][at] = stage.values[shown]
        sized = np.isin(kind, _SIZED_DOWN) * np.int64(cohort.size_down)
        tail["bytes"][at] = np.where(np.isin(kind, _SIZED_UP), cohort.size_up[who], sized)
    return rows


def _cut(column: Whole, stages: list[_Ends]) -> Iterator[Whole]:
    """Returns a column of all ends in parts, one for each stage."""
    begin = 0
    for stage in stages:
        yield column[begin : begin + len(stage.who)]
        begin += len(stage.who)
