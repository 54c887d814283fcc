"""Direct links among clients: every time, byte and joule below is worked out by hand."""

from __future__ import annotations

import math

import pytest
from flwr.app import Message, RecordDict
from stand_ins import Client, Scripted, events, fleet_of, grid_of, message_to, times

from fl.collectives import Gather, RingAllReduce
from fl.flower.grid_view import GridView
from fl.flower.identity import node_id
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults, TaskFaults

# Up 800, 1600, 400 bit/s, that is 100, 200, 50 bytes/s; down 8000 bit/s; 1, 2, 3 s away.
UP = (800, 1600, 400)
CLIENTS = [
    Client(flops=10.0, down_bps=8000, up_bps=up, latency_s=1.0 + i, compute_w=5.0, radio_w=2.0)
    for i, up in enumerate(UP)
]
A, B, C = (node_id(i) for i in range(3))


def test_a_transfer_takes_both_latencies_and_the_slower_side() -> None:
    grid = grid_of(fleet_of(CLIENTS))
    peers = GridView(grid).peers
    # 1 + 2 s away; 500 bytes at 100 bytes/s, at 50 when two payloads leave at once; back at 200.
    assert peers.transfer(A, B, 500, since=0.0) == (3.0 + 5.0, True)
    assert peers.transfer(A, B, 500, since=0.0, fanout=2) == (3.0 + 10.0, True)
    assert peers.transfer(B, A, 500, since=0.0) == (3.0 + 2.5, True)
    # Ten payloads at once share the receiver's 1000 bytes/s: 100 for each, less than B can send.
    assert peers.transfer(B, A, 500, since=0.0, fanin=10) == (3.0 + 5.0, True)

    grid.sleep(100.0)

    assert grid.engine.bytes_up == 4 * 500
    assert grid.engine.bytes_down == 0
    assert [(row[0], row[1], row[2], row[4], row[5]) for row in events(grid.trace)] == [
        (5.5, Event.TRANSFER, 0, 500, 1.0),
        (8.0, Event.TRANSFER, 1, 500, 0.0),
        (8.0, Event.TRANSFER, 0, 500, 1.0),
        (13.0, Event.TRANSFER, 1, 500, 0.0),
    ]
    # Radio, 2 W: sender 5 + 10/2 + 2.5 + 5 s, receiver 5 + 10 + 2.5 + 5/10 s.
    assert grid.engine.energy_j["radio"] == 2.0 * (17.5 + 18.0)


def test_a_task_from_peers_costs_nothing_but_its_work_and_begins_when_it_is_ready() -> None:
    grid = grid_of(fleet_of(CLIENTS), flops=40.0, reply=1000)

    names = GridView(grid).peers.push([message_to(0, 9999), message_to(1, 9999)], [7.0, 2.0])
    replies, awaited = [], set(names)
    while awaited:
        GridView(grid).clock.wait(math.inf)
        replies += grid.pull_messages(awaited)
        awaited -= {reply.metadata.reply_to_message_id for reply in replies}

    assert [r.metadata.src_node_id for r in replies] == [B, A]
    assert times(grid.trace, Event.COMPUTE_START) == {(1, 0): 2.0, (0, 0): 7.0}
    assert grid.engine.queue.now == 7.0 + 40.0 / 10.0
    assert (grid.engine.bytes_down, grid.engine.bytes_up) == (0, 0)
    assert grid.engine.energy_j == {"compute": 2 * 5.0 * 4.0, "radio": 0.0, "idle": 0.0}
    assert grid.engine.in_flight == 0
    assert grid.client_updates == 2


def test_a_task_that_was_ready_in_the_past_begins_now() -> None:
    grid = grid_of(fleet_of(CLIENTS), flops=10.0)
    grid.sleep(5.0)
    GridView(grid).peers.push([message_to(0)], [3.0])
    grid.sleep(100.0)
    assert times(grid.trace, Event.COMPUTE_START) == {(0, 0): 5.0}


def test_faults_of_the_server_link_do_not_touch_a_task_from_peers_and_others_do() -> None:
    lossy = fleet_of(CLIENTS, faults=Faults(message_loss=1.0))
    grid = grid_of(lossy, flops=10.0)
    names = GridView(grid).peers.push([message_to(0)], [0.0])
    GridView(grid).clock.wait(math.inf)
    assert [reply.has_content() for reply in grid.pull_messages(names)] == [True]

    class Crash(Faults):
        def draw(self, seed: int, client: int, dispatch: int) -> TaskFaults:
            return TaskFaults(crash_at=0.5)

    grid = grid_of(fleet_of(CLIENTS, faults=Crash()), flops=10.0)
    names = GridView(grid).peers.push([message_to(0)], [0.0])
    GridView(grid).clock.wait(math.inf)
    assert [reply.has_error() for reply in grid.pull_messages(names)] == [True]


def test_a_client_that_leaves_before_it_is_ready_ends_its_task() -> None:
    away = Scripted(3, {0: [4.0]})
    grid = grid_of(fleet_of(CLIENTS, availability=away, faults=Faults(detection_s=0.0)))
    names = GridView(grid).peers.push([message_to(0)], [10.0])
    GridView(grid).clock.wait(math.inf)
    assert [reply.has_error() for reply in grid.pull_messages(names)] == [True]
    assert times(grid.trace, Event.DEPARTURE) == {(0, 0): 4.0}
    assert grid.engine.queue.now == 4.0


def test_lost_transfers_are_recorded_faults_in_the_given_share() -> None:
    grid = grid_of(fleet_of(CLIENTS, faults=Faults(message_loss=0.3)))
    peers = GridView(grid).peers
    arrived = sum(peers.transfer(A, B, 10, since=0.0, index=k)[1] for k in range(2000))
    assert arrived == pytest.approx(1400, abs=4 * math.sqrt(2000 * 0.3 * 0.7))
    grid.sleep(1000.0)
    assert grid.trace.faults() == {"transfer_lost": 2000 - arrived}
    assert grid.engine.bytes_up == 2000 * 10
    # A function of pair and index alone.
    again = [peers.transfer(A, B, 99, since=0.0, index=k)[1] for k in range(2000)]
    assert sum(again) == arrived


def test_a_ring_takes_twice_m_minus_one_steps_of_its_slowest_edge() -> None:
    grid = grid_of(fleet_of(CLIENTS))
    # Chunks of 100 bytes. A to B 3 + 1 s, B to C 5 + 0.5 s, C to A 4 + 2 s: 4 steps of 6 s.
    assert GridView(grid).peers.collect([A, B, C], [300] * 3, RingAllReduce()).finish_s == 4 * 6.0
    # A second one of the same clients waits for the first; a pair has 2 steps of 3 + 1.5 s.
    assert (
        GridView(grid).peers.collect([A, B], [300] * 2, RingAllReduce()).finish_s == 24.0 + 2 * 4.5
    )
    grid.sleep(100.0)
    assert grid.engine.bytes_up == 3 * 400 + 2 * 300
    assert grid.engine.energy_j["radio"] == 2.0 * (3 * 24.0 + 2 * 9.0)
    assert grid.trace.counts[Event.ALL_REDUCE] == 5


def test_in_a_gathering_ring_every_payload_travels_to_everybody() -> None:
    grid = grid_of(fleet_of(CLIENTS))
    # A to B 3 s and 1 s for 100 bytes, B to C 5 + 0.5 s, C to A 4 + 2 s: two hops of 6 s.
    collect = GridView(grid).peers.collect
    assert collect([A, B, C], [100, 100, 100], Gather()).finish_s == 2 * 6.0
    # First 3 + 1, 5 + 1 and 4 + 6 s, then what came: 3 + 3, 5 + 0.5 and 4 + 4 s.
    assert collect([A, B, C], [100, 200, 300], Gather()).finish_s == 12.0 + 10.0 + 8.0
    grid.sleep(100.0)
    assert grid.engine.bytes_up == 3 * 200 + 2 * 600
    assert grid.engine.energy_j["radio"] == 2.0 * 3 * (12.0 + 18.0)
    assert collect([A], [300], Gather()).finish_s == grid.clock.now()


def test_one_client_has_nobody_to_reduce_with() -> None:
    grid = grid_of(fleet_of(CLIENTS))
    assert GridView(grid).peers.collect([A], [300], RingAllReduce()).finish_s == 0.0
    grid.sleep(1.0)
    assert grid.engine.bytes_up == 0


def test_a_time_that_is_no_number_is_refused_and_nothing_is_sent() -> None:
    grid = grid_of(fleet_of(CLIENTS))
    with pytest.raises(ValueError, match="finite"):
        GridView(grid).peers.push([message_to(0), message_to(1)], [0.0, math.nan])
    assert grid.engine.in_flight == 0


def test_a_deployment_relays() -> None:
    sent: list[Message] = []

    class Plain:
        def push_messages(self, messages):
            sent.extend(messages)
            return [str(i) for i in range(len(sent))]

    grid_of(fleet_of(CLIENTS))  # so that messages can be made
    message = Message(RecordDict(), A, "train")
    peers = GridView(Plain()).peers
    assert peers.push([message], [5.0]) == ["0"]
    assert sent == [message]
    assert peers.transfer(A, B, 10, since=2.0) == (2.0, True)
    clock = GridView(Plain()).clock
    before = clock.now()
    finish_s, nodes, gone = peers.collect([A, B], [10, 20], RingAllReduce())
    assert before <= finish_s <= clock.now()
    assert (nodes, gone) == ([A, B], [])
