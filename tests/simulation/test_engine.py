"""The life of tasks in virtual time: every time, byte and joule below is worked out by hand."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace

import pytest
from flwr.app import Message, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from stand_ins import (
    Client,
    Scripted,
    ScriptedFaults,
    content_of,
    counting,
    events,
    fleet_of,
    grid_of,
    message_to,
    times,
)

from fl.execution.contract import Result
from fl.flower.identity import node_id
from fl.simulation.cost import CostModel
from fl.simulation.kernel.events import EventQueue, Priority
from fl.simulation.kernel.links import ServerLink
from fl.simulation.kernel.trace import Event
from fl.simulation.world.availability import ExponentialOnOff
from fl.simulation.world.faults import Faults, GilbertElliott, TaskFaults
from fl.simulation.world.fleets import uniform

E = Event


# ---- golden traces -------------------------------------------------------------------------------


def test_two_clients_on_one_shared_server_link_do_what_was_worked_out_by_hand() -> None:
    # Rates in bytes per second: the server sends 1000 and receives 500.
    # Client 0 receives 1000, sends 125, computes 100 FLOP/s, and is 0.5 s away.
    # Client 1 receives 1000, sends 1000, computes 200 FLOP/s, and is 1 s away.
    fleet = fleet_of(
        [
            Client(
                100, 8000, 1000, latency_s=0.5, idle_w=7, compute_w=10, radio_w=2
            ),  # FLOP/s, bit/s, bit/s
            Client(200, 8000, 8000, latency_s=1.0, idle_w=7, compute_w=20, radio_w=4),
        ],
        ServerLink(down_bps=4000, up_bps=8000),
    )
    grid = grid_of(fleet, flops=300.0, reply={(0, 0): 500, (1, 0): 1000})

    replies = grid.send_and_receive([message_to(0, 1000), message_to(1, 1000)])

    # Down: 0 starts at 0.5, alone at 1000 B/s, so 500 B are left when 1 starts at 1.0. Then each
    # gets half, 500 B/s: 0 ends at 2.0; 1 has 500 B left, alone at 1000 B/s: it ends at 2.5.
    # Compute: 0 takes 300/100 = 3 s, until 5.0; 1 takes 300/200 = 1.5 s, until 4.0.
    # Up: 1 starts at 4.0 + 1.0 and gets all that the server receives, 500 B/s; at 5.0 + 0.5 it
    # has 750 B left, and 0 joins. 0 can send no more than 125 B/s, so 375 B/s remain for 1, which
    # ends at 5.5 + 750/375 = 7.5; 0 ends at 5.5 + 500/125 = 9.5.
    assert events(grid.trace) == [
        (0.0, E.DISPATCH, 0, 0, 1000, 0.0),
        (0.0, E.DOWNLOAD_START, 0, 0, 1000, 0.0),
        (0.0, E.DISPATCH, 1, 0, 1000, 0.0),
        (0.0, E.DOWNLOAD_START, 1, 0, 1000, 0.0),
        (2.0, E.DOWNLOAD_END, 0, 0, 1000, 0.0),
        (2.0, E.COMPUTE_START, 0, 0, 0, 3.0),
        (2.5, E.DOWNLOAD_END, 1, 0, 1000, 0.0),
        (2.5, E.COMPUTE_START, 1, 0, 0, 1.5),
        (4.0, E.COMPUTE_END, 1, 0, 0, 0.0),
        (4.0, E.UPLOAD_START, 1, 0, 1000, 0.0),
        (5.0, E.COMPUTE_END, 0, 0, 0, 0.0),
        (5.0, E.UPLOAD_START, 0, 0, 500, 0.0),
        (7.5, E.UPLOAD_END, 1, 0, 1000, 0.0),
        (9.5, E.UPLOAD_END, 0, 0, 500, 0.0),
    ]
    assert [reply.metadata.message_id for reply in replies] == ["1.0.reply", "0.0.reply"]
    engine = grid.engine
    assert (engine.queue.now, engine.in_flight) == (9.5, 0)
    assert (engine.bytes_down, engine.bytes_up) == (2000, 1500)
    # Radio, from dispatch to download end and from compute end to upload end:
    # 0 for 2.0 + 4.5 s at 2 W, 1 for 2.5 + 3.5 s at 4 W. Nobody waits for a device.
    assert engine.energy_j == {"compute": 3 * 10 + 1.5 * 20, "radio": 13.0 + 24.0, "idle": 0.0}


def test_a_client_takes_the_next_message_when_its_reply_is_there() -> None:
    # The client receives and sends 1000 B/s and computes 100 FLOP/s; the server never limits.
    fleet = fleet_of([Client(100, 8000, 8000, idle_w=1, compute_w=10, radio_w=2)])
    grid = grid_of(fleet, flops={(0, 0): 100.0, (0, 1): 200.0}, reply={(0, 0): 500, (0, 1): 2000})

    grid.send_and_receive([message_to(0, 1000), message_to(0, 500)])

    assert events(grid.trace) == [
        (0.0, E.DISPATCH, 0, 0, 1000, 0.0),
        (0.0, E.DOWNLOAD_START, 0, 0, 1000, 0.0),
        (0.0, E.DISPATCH, 0, 1, 500, 0.0),
        (1.0, E.DOWNLOAD_END, 0, 0, 1000, 0.0),
        (1.0, E.COMPUTE_START, 0, 0, 0, 1.0),
        (2.0, E.COMPUTE_END, 0, 0, 0, 0.0),
        (2.0, E.UPLOAD_START, 0, 0, 500, 0.0),
        (2.5, E.UPLOAD_END, 0, 0, 500, 0.0),
        (2.5, E.DOWNLOAD_START, 0, 1, 500, 0.0),
        (3.0, E.DOWNLOAD_END, 0, 1, 500, 0.0),
        (3.0, E.COMPUTE_START, 0, 1, 0, 2.0),
        (5.0, E.COMPUTE_END, 0, 1, 0, 0.0),
        (5.0, E.UPLOAD_START, 0, 1, 2000, 0.0),
        (7.0, E.UPLOAD_END, 0, 1, 2000, 0.0),
    ]
    # 3 s of work at 10 W, 4 s of transfers at 2 W; to wait at the server costs nothing.
    assert grid.engine.energy_j == {"compute": 30.0, "radio": 8.0, "idle": 0.0}


def test_a_client_that_prefetches_serves_tasks_in_order_of_arrival_and_they_share_its_link() -> (
    None
):
    # The client receives and sends 1000 B/s and computes 100 FLOP/s; the server never limits.
    fleet = fleet_of([Client(100, 8000, 8000, idle_w=1, compute_w=10, radio_w=2)], prefetch=True)
    grid = grid_of(fleet, flops={(0, 0): 100.0, (0, 1): 200.0}, reply={(0, 0): 500, (0, 1): 2000})

    replies = grid.send_and_receive([message_to(0, 1000), message_to(0, 500)])

    # Down: 500 B/s each. Task 1 is there at 1.0; task 0, its last 500 B at full rate, at 1.5.
    # Compute: task 1 from 1.0 to 3.0, task 0 waits 1.5 s and runs from 3.0 to 4.0.
    # Up: task 1 alone until 4.0, 1000 B left; then 500 B/s each: task 0 ends at 5.0, and task 1,
    # with 500 B left at full rate, at 5.5.
    assert events(grid.trace) == [
        (0.0, E.DISPATCH, 0, 0, 1000, 0.0),
        (0.0, E.DOWNLOAD_START, 0, 0, 1000, 0.0),
        (0.0, E.DISPATCH, 0, 1, 500, 0.0),
        (0.0, E.DOWNLOAD_START, 0, 1, 500, 0.0),
        (1.0, E.DOWNLOAD_END, 0, 1, 500, 0.0),
        (1.0, E.COMPUTE_START, 0, 1, 0, 2.0),
        (1.5, E.DOWNLOAD_END, 0, 0, 1000, 0.0),
        (3.0, E.COMPUTE_END, 0, 1, 0, 0.0),
        (3.0, E.UPLOAD_START, 0, 1, 2000, 0.0),
        (3.0, E.COMPUTE_START, 0, 0, 0, 1.0),
        (4.0, E.COMPUTE_END, 0, 0, 0, 0.0),
        (4.0, E.UPLOAD_START, 0, 0, 500, 0.0),
        (5.0, E.UPLOAD_END, 0, 0, 500, 0.0),
        (5.5, E.UPLOAD_END, 0, 1, 2000, 0.0),
    ]
    assert [reply.metadata.message_id for reply in replies] == ["0.0.reply", "0.1.reply"]
    # Radio: each task's own transfers, 1.5 + 1.0 s and 1.0 + 2.5 s; idle: what task 0 waited.
    assert grid.engine.energy_j == {"compute": 30.0, "radio": 12.0, "idle": 1.5}


def test_equal_transfers_of_one_client_that_end_together_are_both_delivered() -> None:
    grid = grid_of(fleet_of([Client(down_bps=8000)], prefetch=True))
    replies = grid.send_and_receive([message_to(0, 500), message_to(0, 500), message_to(0, 500)])
    assert len(replies) == 3
    assert set(times(grid.trace, E.DOWNLOAD_END).values()) == {1.5}


# ---- faults, one by one --------------------------------------------------------------------------

# One client: 1 s down (1000 B at 1000 B/s), 4 s of work, 2 s up; compute 10 W, radio 2 W.
CLIENT = Client(100, 8000, 4000, compute_w=10, radio_w=2)


def one_task(faults: TaskFaults | None = None, availability=None, detection_s=0.25, timeout=100):
    script = {} if faults is None else {(0, 0): faults}
    fleet = fleet_of(
        [CLIENT],
        availability=availability,
        faults=ScriptedFaults(detection_s=detection_s, script=script),
    )
    grid = grid_of(fleet, flops=400.0, reply=1000)
    return grid, grid.send_and_receive([message_to(0, 1000)], timeout=timeout)


def after_dispatch(grid) -> list[tuple[float, Event]]:
    return [(row[0], row[1]) for row in events(grid.trace)[1:]]


def test_a_client_that_drops_out_is_missed_after_the_detection_time() -> None:
    grid, (reply,) = one_task(TaskFaults(dropout_at=0.5))
    assert after_dispatch(grid) == [
        (0.0, E.DOWNLOAD_START),
        (1.0, E.DOWNLOAD_END),
        (1.0, E.COMPUTE_START),
        (3.0, E.DROPOUT),  # half of 4 s
        (3.25, E.NODE_UNAVAILABLE),
    ]
    assert reply.has_error()
    assert reply.error.code == 5  # node unavailable
    assert grid.engine.in_flight == 0
    assert grid.engine.energy_j == {"compute": 20.0, "radio": 2.0, "idle": 0.0}
    assert (grid.engine.bytes_down, grid.engine.bytes_up) == (1000, 0)


def test_nobody_tells_a_server_without_detection_that_a_client_is_gone() -> None:
    grid, replies = one_task(TaskFaults(dropout_at=0.5), detection_s=None, timeout=50)
    assert replies == []
    assert events(grid.trace)[-1] == (50.0, E.TIMEOUT, -1, -1, 0, 1.0)


def test_a_crash_is_reported_at_once_and_whichever_fault_comes_first_counts() -> None:
    fleet = fleet_of(
        [Client(100, 8000, 4000, latency_s=0.5)],
        ServerLink(latency_s=0.25),
        faults=ScriptedFaults(script={(0, 0): TaskFaults(crash_at=0.25, dropout_at=0.5)}),
    )
    grid = grid_of(fleet, flops=400.0)
    (reply,) = grid.send_and_receive([message_to(0, 1000)])
    # Down takes 0.75 + 1 s, the crash comes after a quarter of 4 s, the news takes 0.75 s.
    assert times(grid.trace, E.CRASH) == {(0, 0): 2.75}
    assert grid.clock.now() == 3.5
    assert reply.error.code == 8  # the ClientApp's process crashed
    assert E.DROPOUT not in grid.trace.counts


def test_a_message_lost_on_the_way_down_costs_its_bytes_and_no_work() -> None:
    grid, replies = one_task(TaskFaults(lose_download=True), timeout=20)
    assert after_dispatch(grid) == [
        (0.0, E.DOWNLOAD_START),
        (1.0, E.DOWNLOAD_LOST),
        (20.0, E.TIMEOUT),
    ]
    assert replies == []
    assert (grid.engine.bytes_down, grid.engine.bytes_up) == (1000, 0)
    assert grid.engine.energy_j == {"compute": 0.0, "radio": 2.0, "idle": 0.0}
    assert grid._ahead._executor.waves == []  # the client never saw it


@pytest.mark.parametrize("flops", [1.0, None], ids=["planned", "charged"])
def test_a_client_whose_message_is_lost_does_not_work_even_if_others_do(flops) -> None:
    lost = ScriptedFaults(script={(0, 0): TaskFaults(lose_download=True)})
    grid = grid_of(fleet_of([Client(), Client()], faults=lost), flops=flops)
    grid.send_and_receive([message_to(0), message_to(1)], timeout=60.0)
    assert [[a.client for a in wave] for wave in grid._ahead._executor.waves] == [[1]]


def test_a_reply_lost_on_the_way_up_costs_everything_and_brings_nothing() -> None:
    grid, replies = one_task(TaskFaults(lose_upload=True), timeout=20)
    assert after_dispatch(grid)[-2:] == [(7.0, E.UPLOAD_LOST), (20.0, E.TIMEOUT)]
    assert replies == []
    assert (grid.engine.bytes_down, grid.engine.bytes_up) == (1000, 1000)
    assert grid.engine.energy_j == {"compute": 40.0, "radio": 6.0, "idle": 0.0}
    assert grid.client_updates == 0


def test_a_slow_spell_stretches_the_work_and_is_recorded() -> None:
    slow = GilbertElliott(p=1.0, r=1e-9, factor=3.0)  # slow from the first task on
    fleet = fleet_of([CLIENT], faults=Faults(slowdown=slow))
    grid = grid_of(fleet, flops=400.0, reply=1000)
    grid.send_and_receive([message_to(0, 1000)])
    assert events(grid.trace)[3:6] == [
        (1.0, E.SLOWDOWN, 0, 0, 0, 3.0),
        (1.0, E.COMPUTE_START, 0, 0, 0, 12.0),
        (13.0, E.COMPUTE_END, 0, 0, 0, 0.0),
    ]


@pytest.mark.parametrize(
    ("leaves", "stage", "compute_j", "radio_j"),
    [
        (0.5, E.DOWNLOAD_START, 0.0, 1.0),  # half of the download's second, at 2 W
        (2.0, E.COMPUTE_START, 10.0, 2.0),  # one second of work, at 10 W
        (6.0, E.UPLOAD_START, 40.0, 4.0),  # all the work, half of the two seconds up
    ],
)
def test_a_client_that_leaves_takes_its_task_with_it(leaves, stage, compute_j, radio_j) -> None:
    grid, (reply,) = one_task(availability=Scripted(1, {0: [leaves, 30.0]}))
    assert after_dispatch(grid)[-3][1] is stage
    assert after_dispatch(grid)[-2:] == [(leaves, E.DEPARTURE), (leaves + 0.25, E.NODE_UNAVAILABLE)]
    assert reply.error.code == 5
    assert grid.engine.in_flight == 0
    assert grid.engine.energy_j == {"compute": compute_j, "radio": radio_j, "idle": 0.0}
    assert grid.engine.bytes_up == 0


def test_a_client_that_leaves_ends_all_its_tasks_and_frees_the_link_for_others() -> None:
    # The server sends 1000 B/s to three transfers, two of client 0, which leaves at 3.0.
    fleet = fleet_of(
        [Client(), Client()],
        ServerLink(up_bps=8000),
        availability=Scripted(2, {0: [3.0]}),
        faults=Faults(detection_s=0.0),
        prefetch=True,
    )
    grid = grid_of(fleet)
    grid.send_and_receive([message_to(0, 4000), message_to(0, 4000), message_to(1, 4000)])
    assert times(grid.trace, E.DEPARTURE) == {(0, 0): 3.0, (0, 1): 3.0}
    # Client 1 has got a third of 3000 B by then, and the other 3000 B at the full rate.
    assert times(grid.trace, E.DOWNLOAD_END) == {(1, 0): 6.0}


def test_a_completion_and_a_departure_at_the_same_instant_are_seen_in_this_order() -> None:
    grid, (reply,) = one_task(availability=Scripted(1, {0: [7.0]}))
    assert reply.has_content()
    assert after_dispatch(grid)[-1] == (7.0, E.UPLOAD_END)


def test_a_task_waits_for_an_unavailable_client_to_return() -> None:
    availability = Scripted(1, {0: [10.0]}, offline=[0])
    grid, (reply,) = one_task(availability=availability)
    assert after_dispatch(grid)[:2] == [(10.0, E.DOWNLOAD_START), (11.0, E.DOWNLOAD_END)]
    assert reply.has_content()
    assert grid.clock.now() == 17.0
    assert grid.engine.energy_j["idle"] == 0.0  # being away costs no energy


def test_a_client_that_was_away_serves_what_has_waited_in_order() -> None:
    availability = Scripted(1, {0: [10.0, 12.0, 20.0]}, offline=[0])
    fleet = fleet_of([Client()], availability=availability, faults=Faults(detection_s=1.0))
    grid = grid_of(fleet, flops=1.5)
    replies = grid.send_and_receive([message_to(0), message_to(0)])
    # Both arrive at 10.0. The first is done at 11.5; the second, begun then, is cut off at 12.0.
    assert [(r.metadata.reply_to_message_id, r.has_error()) for r in replies] == [
        ("0.0", False),
        ("0.1", True),
    ]
    assert times(grid.trace, E.DEPARTURE) == {(0, 1): 12.0}


# ---- messages that wait --------------------------------------------------------------------------

either = pytest.mark.parametrize("prefetch", [False, True], ids=["one at a time", "prefetch"])


def sent_at(grid, times_ttls: list[tuple[float, float]]) -> None:
    """Pushes messages at given times with given times to live, and lets all come to an end."""
    for time, ttl in times_ttls:
        grid.clock.sleep(time - grid.clock.now())
        grid.push_messages([message_to(0, ttl=ttl)])
    grid.clock.sleep(1e6)


@either
def test_a_task_of_3000_s_before_tasks_of_100_s_costs_3000_s_and_no_more(prefetch) -> None:
    # One message after the other, each given up after 120 s. The one sent at 2880 s is dead at
    # 3000 s, when the client has time again; the next is sent at that moment.
    flops = {(0, k): 3000.0 if k == 0 else 100.0 for k in range(200)}
    grid = grid_of(fleet_of([Client()], prefetch=prefetch), flops=flops)
    while not any(reply.has_content() for reply in grid.send_and_receive([message_to(0, ttl=120)])):
        pass
    assert grid.clock.now() == 3100.0
    assert grid.engine.busy_s == 3100.0
    assert grid.engine.in_flight == 0


@either
def test_dead_messages_are_in_no_queue_and_no_work_is_done_for_them(prefetch) -> None:
    grid = grid_of(fleet_of([Client(compute_w=1.0, idle_w=1.0)], prefetch=prefetch), flops=1000.0)
    for _ in range(100):
        grid.send_and_receive([message_to(0, ttl=120.0)])
        assert grid.engine.in_flight <= 2  # what it works on, and what is still valid
    # At 1000 s, 2000 s, ... it takes the one that was sent last; of a hundred it works on twelve.
    begun = sorted(times(grid.trace, E.COMPUTE_START).values())
    assert begun == [1000.0 * k for k in range(12)]
    assert grid.clock.now() == 12_000.0
    assert grid.engine.energy_j["compute"] == 12_000.0


@either
@given(
    messages=st.lists(
        st.tuples(st.integers(0, 6), st.integers(1, 12), st.integers(0, 9)), min_size=1, max_size=12
    )
)
def test_messages_are_served_in_order_by_whoever_has_time_before_they_die(
    prefetch, messages
) -> None:
    # Pauses before messages, their times to live and their work; links take no time.
    sent, now = [], 0
    for pause, ttl, work in messages:
        now += pause
        sent.append((float(now), float(ttl), float(work)))
    expected, free = {}, 0.0
    for k, (time, ttl, work) in enumerate(sent):
        start = max(free, time)
        if start < time + ttl:
            expected[0, k] = start
            free = start + work
    flops = {(0, k): work for k, (_, _, work) in enumerate(sent)}
    grid = grid_of(fleet_of([Client()], prefetch=prefetch), flops=flops)
    sent_at(grid, [(time, ttl) for time, ttl, _ in sent])
    assert times(grid.trace, E.COMPUTE_START) == expected
    assert grid.engine.busy_s == sum(flops[task] for task in expected)
    dropped = [k for k in range(len(sent)) if (0, k) not in expected]
    died = times(grid.trace, E.EXPIRED)
    assert {k: died[0, k] for k in dropped} == {k: sent[k][0] + sent[k][1] for k in dropped}


def test_a_message_that_waits_for_a_busy_client_survives_the_clients_absence() -> None:
    # It leaves at 1.0, in its first task, and returns at 10.0: the second was never with it.
    availability = Scripted(1, {0: [1.0, 10.0]})
    fleet = fleet_of([Client()], availability=availability, faults=Faults(detection_s=1.0))
    grid = grid_of(fleet, flops=2.0)
    replies = grid.send_and_receive([message_to(0), message_to(0)])
    assert [reply.has_content() for reply in replies] == [False, True]
    assert grid.clock.now() == 12.0


def test_work_for_peers_begins_when_the_device_is_free_though_a_message_waits() -> None:
    # At 0 a message whose work takes 5 s, and another; at 1 what peers sent, valid until 3 and 20.
    grid = grid_of(fleet_of([Client()]), flops=5.0)
    grid.push_messages([message_to(0), message_to(0)])
    dead, alive = [grid.peers.push([message_to(0, ttl=ttl)], [1.0])[0] for ttl in (3.0, 20.0)]
    grid.clock.sleep(15.0)
    assert times(grid.trace, E.COMPUTE_START) == {(0, 0): 0.0, (0, 3): 5.0, (0, 1): 10.0}
    assert times(grid.trace, E.EXPIRED) == {(0, 2): 3.0}
    assert [reply.has_content() for reply in grid.pull_messages([dead, alive])] == [False, True]


# ---- a client's state ----------------------------------------------------------------------------


def tasks_counted(grid, messages) -> dict[str, int]:
    """Returns by message id the running number that `counting` gave to the task."""
    return {
        reply.metadata.reply_to_message_id: reply.content["metrics"]["tasks"]
        for reply in grid.send_and_receive(messages, timeout=1000.0)
        if reply.has_content()
    }


def test_tasks_of_one_client_see_its_state_in_the_order_in_which_the_device_works() -> None:
    # 1000 B/s, shared: a third each until 0.75, when task 1's 250 B are there; a half each until
    # 2.25, when task 2's 1000 B are there; then task 0's last 750 B until 3.0.
    fleet = fleet_of([Client(down_bps=8000)], prefetch=True)
    messages = [message_to(0, 1750), message_to(0, 250), message_to(0, 1000)]
    grid = grid_of(fleet, flops=0.5, answer=counting)
    assert tasks_counted(grid, messages) == {"0.1": 1, "0.2": 2, "0.0": 3}
    assert times(grid.trace, E.DOWNLOAD_END) == {(0, 0): 3.0, (0, 1): 0.75, (0, 2): 2.25}


def test_a_task_that_was_executed_ahead_and_overtaken_is_executed_again() -> None:
    # Client 1's result is needed at 1.0, and what waits is executed with it: task 0 of client 0,
    # whose message arrives only after 2.0. Task 1 of client 0, sent at 1.5, overtakes it.
    fleet = fleet_of([Client(down_bps=8000), Client(down_bps=8000)], prefetch=True)
    grid = grid_of(fleet, flops=0.0, answer=counting)
    grid.push_messages([message_to(0, 2000), message_to(1, 1000)])
    grid.clock.sleep(1.5)
    assert [[a.client for a in wave] for wave in grid._ahead._executor.waves] == [[0, 1]]
    assert tasks_counted(grid, [message_to(0, 100)]) == {"0.1": 1}
    assert [a.dispatch for a in grid._ahead._executor.discarded] == [0]
    grid.clock.sleep(10.0)
    assert [r.content["metrics"]["tasks"] for r in grid.pull_messages(["0.0"])] == [2]


def test_an_upload_under_way_does_not_keep_the_next_task_from_the_state() -> None:
    # Each reply takes 100 s to send; task 1 is computed meanwhile and starts from task 0's state.
    def heavy(request):
        result = counting(request)
        result.content["ballast"] = content_of(1000)["content"]
        return result

    fleet = fleet_of([Client(up_bps=80)], prefetch=True)
    grid = grid_of(fleet, flops=None, answer=heavy)
    assert tasks_counted(grid, [message_to(0), message_to(0)]) == {"0.0": 1, "0.1": 2}
    assert times(grid.trace, E.COMPUTE_END)[0, 1] < times(grid.trace, E.UPLOAD_END)[0, 0]


def test_a_crash_loses_the_state_and_a_dropout_keeps_it() -> None:
    script = {(0, 1): TaskFaults(crash_at=0.5), (1, 1): TaskFaults(dropout_at=0.5)}
    fleet = fleet_of([Client(), Client()], faults=ScriptedFaults(detection_s=0.0, script=script))
    grid = grid_of(fleet, flops=1.0, answer=counting)
    both = [message_to(0), message_to(1)]
    assert tasks_counted(grid, both) == {"0.0": 1, "1.0": 1}
    assert tasks_counted(grid, both) == {}
    assert tasks_counted(grid, both) == {"0.2": 1, "1.2": 2}


@pytest.mark.parametrize("flops", [1.0, None], ids=["planned", "charged"])
def test_a_task_that_waits_behind_a_crash_starts_without_state(flops) -> None:
    fleet = fleet_of([Client()], faults=ScriptedFaults(script={(0, 1): TaskFaults(crash_at=0.5)}))
    grid = grid_of(fleet, flops=flops, answer=counting)
    counted = tasks_counted(grid, [message_to(0), message_to(0), message_to(0)])
    assert counted == {"0.0": 1, "0.2": 1}


def test_a_task_lost_behind_another_does_not_let_the_next_one_start_from_an_old_state() -> None:
    lost = ScriptedFaults(script={(0, 2): TaskFaults(lose_download=True)})
    grid = grid_of(fleet_of([Client()], faults=lost), flops=1.0, answer=counting)
    assert tasks_counted(grid, [message_to(0) for _ in range(4)]) == {"0.0": 1, "0.1": 2, "0.3": 3}


def test_state_is_kept_only_for_clients_that_have_some() -> None:
    def answer(request):
        return counting(request) if request.client == 2 else Result(content=RecordDict())

    grid = grid_of(fleet_of([Client()] * 5), answer=answer)
    grid.send_and_receive([message_to(client) for client in range(5)])
    assert list(grid._ahead._states) == [2]


# ---- many faults at random -----------------------------------------------------------------------

CLIENTS = 60
STOPS = {E.UPLOAD_END, E.DROPOUT, E.CRASH, E.DEPARTURE, E.DOWNLOAD_LOST, E.UPLOAD_LOST}


def random_run(seed: int, tasks: int, observe=lambda grid: None, prefetch=False):
    """Sends tasks in all the ways there are to a fleet on which everything can go wrong."""
    fleet = uniform(
        CLIENTS,
        seed,
        flops=100.0,
        speed_spread=8.0,
        jitter=0.5,
        down_bps=8e4,
        up_bps=8e4,
        latency_s=0.05,
        server_down_bps=4e5,
        server_up_bps=4e5,
        availability=ExponentialOnOff(CLIENTS, seed, mean_on_s=20.0, mean_off_s=10.0),
        faults=Faults(
            dropout=0.15,
            crash=0.1,
            message_loss=0.1,
            slowdown=GilbertElliott(p=0.1, r=0.5, factor=4.0),
            detection_s=0.5,
        ),
        prefetch=prefetch,
    )
    contents = [content_of(size) for size in (1, 40, 400, 4000)]
    replies = [Result(content=content) for content in contents]
    rng = random.Random(seed)
    grid = grid_of(
        fleet,
        flops=None,
        answer=lambda _: replace(rng.choice(replies)),
        cost_model=CostModel(seconds=2.0),
        on_progress=lambda: observe(grid),
    )
    pushed, pending = 0, []
    while pushed < tasks:
        batch = [
            Message(
                rng.choice(contents),
                node_id(rng.randrange(CLIENTS)),
                "train",
                ttl=rng.choice([5.0, 60.0]),
            )
            for _ in range(rng.randrange(1, 30))
        ]
        pushed += len(batch)
        if rng.random() < 0.5:
            grid.send_and_receive(batch, timeout=rng.choice([0.0, 1.0, 5.0, 30.0]))
        else:
            pending += grid.push_messages(batch)
            grid.clock.sleep(rng.expovariate(0.2))
            pulled = {r.metadata.reply_to_message_id for r in grid.pull_messages(pending)}
            pending = [name for name in pending if name not in pulled]
    return grid, pushed


@either
def test_ten_thousand_tasks_with_random_faults_end_exactly_once(prefetch) -> None:
    costs = [(0.0, 0, 0, 0.0, 0.0, 0.0)]

    def never_falls(grid) -> None:
        engine = grid.engine
        now = (engine.queue.now, engine.bytes_down, engine.bytes_up, *engine.energy_j.values())
        assert all(before <= after for before, after in zip(costs[0], now, strict=True))
        costs[0] = now

    grid, pushed = random_run(1, 10_000, never_falls, prefetch)
    grid.clock.sleep(1000.0)
    rows = events(grid.trace)
    assert all(a[0] <= b[0] for a, b in itertools.pairwise(rows))
    dispatched = {(row[2], row[3]) for row in rows if row[1] is E.DISPATCH}
    ended = Counter((row[2], row[3]) for row in rows if row[1] in STOPS)
    worked_on = times(grid.trace, E.COMPUTE_START)
    dead = set(times(grid.trace, E.EXPIRED))
    dropped = {task for task in dead if task not in worked_on and task not in ended}
    assert len(dispatched) == pushed >= 10_000
    assert set(ended.values()) == {1}
    assert set(ended) | dropped == dispatched
    assert prefetch == bool(dropped & set(times(grid.trace, E.DOWNLOAD_END)))
    assert grid.engine.in_flight == 0
    assert {*STOPS, E.EXPIRED, E.SLOWDOWN, E.TIMEOUT} <= {row[1] for row in rows}
    sent = sum(row[4] for row in rows if row[1] in (E.DOWNLOAD_END, E.DOWNLOAD_LOST))
    received = sum(row[4] for row in rows if row[1] in (E.UPLOAD_END, E.UPLOAD_LOST))
    assert (grid.engine.bytes_down, grid.engine.bytes_up) == (sent, received)


def test_equal_seeds_give_equal_traces_and_another_seed_another_one() -> None:
    hashes = [random_run(seed, 500)[0].trace.sha256() for seed in (7, 7, 8)]
    assert hashes[0] == hashes[1] != hashes[2]


def test_what_ends_at_an_instant_is_seen_before_a_timer_and_before_what_starts() -> None:
    queue, seen = EventQueue(), []
    for priority in (Priority.DISPATCH, Priority.AVAILABILITY, Priority.TIMER, Priority.PROGRESS):
        queue.schedule(1.0, priority, seen.append, priority.name)
    queue.run_instant()
    assert seen == ["PROGRESS", "TIMER", "AVAILABILITY", "DISPATCH"]
