"""What software takes on the way of a message: every time below is worked out by hand."""

from __future__ import annotations

import math
from dataclasses import fields

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from stand_ins import (
    Client,
    FakeExecutor,
    FixedWork,
    Scripted,
    events,
    fleet_of,
    grid_of,
    message_to,
    times,
)

from fl.errors import ConfigError
from fl.execution.contract import Result
from fl.flower.identity import assume_identity, node_id
from fl.flower.payload import num_objects
from fl.randomness import client_key, uniform
from fl.reports.time_shares import time_shares
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event
from fl.simulation.world.runtime import Runtime

E = Event
TERMS = [e for e in Event if E.CLIENT_POLL <= e <= E.SERVER_EVALUATE]


def values(trace, kind):
    """Returns the s of a term, in the order of its events."""
    return [row[5] for row in events(trace) if row[1] is kind]


def test_an_ideal_runtime_is_no_runtime():
    fleet = fleet_of([Client(100, 8000, 1000, latency_s=0.5)])
    traces = []
    for runtime in (None, Runtime()):
        grid = grid_of(fleet, flops=300.0, reply=500, runtime=runtime)
        grid.send_and_receive([message_to(0, 1000)])
        traces.append(grid.trace)
    assert events(traces[0]) == events(traces[1])
    assert not {row[1] for row in events(traces[1])} & set(TERMS)


def test_every_term_of_a_task_is_where_it_belongs_and_adds_up():
    # 1024 B/s down and up; 0.5 s away; 100 FLOP/s.
    fleet = fleet_of([Client(100, 8192, 8192, latency_s=0.5, compute_w=1, radio_w=1, idle_w=1)])
    runtime = Runtime(
        trips_down=2,
        trips_up=1,
        call_s=0.25,
        framing_bytes=128,
        keep_alive_s=5.0,
        connect_trips=3,
        start_s=4.0,
        decode_s_per_byte=2**-10,
        encode_s_per_byte=2**-9,
        reply_poll_s=0.5,
        reference_flops=50.0,  # so that the client's processor takes half as long
    )
    grid = grid_of(fleet, flops=300.0, reply=512, runtime=runtime)
    grid.send_and_receive([message_to(0, 896)])
    # Two round trips of 1.25 s, 1024 bytes in 1 s: there at 3.5. Start 4/2, decode 0.875/2, work
    # 3 s: done at 8.9375. Encode 1/2: 9.4375, which the node finds 6 s after 3.5. That is more than
    # 5 s, so it connects: 3 s, and one trip of 1.25 s: 13.75. 640 bytes in 0.625 s.
    done = 8.9375
    assert [(row[0], row[1], row[5]) for row in events(grid.trace)] == [
        (0.0, E.DISPATCH, 0.0),
        (0.0, E.DOWNLOAD_START, 0.0),
        (3.5, E.DOWNLOAD_END, 0.0),
        (3.5, E.COMPUTE_START, 5.4375),
        (done, E.COMPUTE_END, 0.0),
        (done, E.DOWN_CALLS, 2.5),
        (done, E.APP_START, 2.0),
        (done, E.DECODE, 0.4375),
        (done, E.ENCODE, 0.5),
        (done, E.REPLY_POLL, 0.0625),
        (done, E.UP_CALLS, 4.25),
        (done, E.UPLOAD_START, 0.0),
        (14.375, E.UPLOAD_END, 0.0),
    ]
    assert grid.engine.energy_j == {
        "compute": 5.4375 + 0.5,
        "radio": 3.5 + 4.25 + 0.625,
        "idle": 0.0625,
    }
    # What travels is what the payloads weigh: the rest is only time.
    assert (grid.engine.bytes_down, grid.engine.bytes_up) == (896, 512)


def test_an_idle_node_looks_at_its_own_pace_and_takes_the_next_message_at_once():
    fleet = fleet_of([Client(latency_s=0.0)])
    grid = grid_of(fleet, flops=1.0, runtime=Runtime(poll_s=3.0))
    phase = -3.0 * uniform(0, "node-poll", 0)
    first = phase + 3.0
    grid.send_and_receive([message_to(0), message_to(0)])
    assert list(times(grid.trace, E.DOWNLOAD_START).values()) == [first, first + 1.0]
    assert values(grid.trace, E.CLIENT_POLL) == [pytest.approx(first)]
    # It looked when it had sent the second, at first + 2, and does so every 3 s from then on.
    grid.sleep(0.5)
    grid.send_and_receive([message_to(0)])
    assert times(grid.trace, E.DOWNLOAD_START)[0, 2] == pytest.approx(first + 5.0)
    assert values(grid.trace, E.CLIENT_POLL)[1] == pytest.approx(2.5)


def test_a_node_that_comes_back_looks_at_once():
    fleet = fleet_of([Client()], availability=Scripted(1, {0: [7.0]}, offline=[0]))
    grid = grid_of(fleet, flops=1.0, runtime=Runtime(poll_s=3.0))
    grid.send_and_receive([message_to(0)])
    assert times(grid.trace, E.DOWNLOAD_START) == {(0, 0): 7.0}


def test_a_message_that_waits_for_its_node_can_be_withdrawn():
    grid = grid_of(fleet_of([Client()]), flops=1.0, runtime=Runtime(poll_s=3.0))
    (name,) = grid.push_messages([message_to(0)])
    grid.control.cancel(name)
    grid.sleep(10.0)
    assert [row[1] for row in events(grid.trace)] == [E.DISPATCH, E.CANCELLED]


@pytest.mark.parametrize(
    ("start_s", "ahead_s", "wait_s"),
    [
        (8.0, 3.0, 0.0),  # it goes on when the message is there
        (3.0, 3.0, 0.0),
        (2.0, 2.0, 0.0),  # it looks at 3 s and at 4 s, when all is there
        (1.5, 1.5, 1.5),  # at 2.5, 3.5, 5.5 s
        (0.25, 0.25, 0.25),  # at 1.25, 2.25, 4.25 s
    ],
)
def test_an_app_starts_while_its_messages_objects_come(start_s, ahead_s, wait_s):
    # 1024 B/s, 0.5 s away: the node is told after a trip of 1 s, and has the message 3 s later.
    fleet = fleet_of([Client(100, 8192, 8192, latency_s=0.5, compute_w=1, radio_w=1, idle_w=1)])
    runtime = Runtime(
        trips_down=2, trips_up=1, start_s=start_s, starts_ahead=True, object_retry_s=1.0
    )
    grid = grid_of(fleet, flops=200.0, reply=1024, runtime=runtime)
    grid.send_and_receive([message_to(0, 2048)])
    left = start_s - ahead_s
    assert times(grid.trace, E.DOWNLOAD_END) == {(0, 0): 4.0}
    assert times(grid.trace, E.COMPUTE_END) == {(0, 0): 4.0 + wait_s + left + 2.0}
    assert values(grid.trace, E.APP_START) == ([left] if left else [])
    assert values(grid.trace, E.TASK_POLL) == ([wait_s] if wait_s else [])
    # All of the start takes power, whenever it is.
    assert grid.engine.energy_j == {
        "compute": start_s + 2.0,
        "radio": 4.0 + 2.0,
        "idle": wait_s,
    }


def test_an_app_that_starts_ahead_waits_for_its_starter_from_the_first_trip_on():
    fleet = fleet_of([Client(latency_s=0.5)])
    runtime = Runtime(trips_down=3, task_poll_s=10.0, start_s=1.0, starts_ahead=True)
    grid = grid_of(fleet, flops=0.0, runtime=runtime)
    grid.send_and_receive([message_to(0)])
    starts = 10.0 * uniform(0, "task-poll", 0)  # after the first trip, at 1 s, and the third
    assert starts > 3.0
    assert times(grid.trace, E.COMPUTE_END) == {(0, 0): pytest.approx(starts + 1.0)}


def test_waits_for_objects_double_up_to_the_longest():
    runtime = Runtime(starts_ahead=True, object_retry_s=1.0, object_retry_most_s=10.0)
    looks = [1, 3, 7, 15, 25, 35]  # after waits of 1, 2, 4, 8, 10, 10 s, as flwr 1.41 has them
    for last, look in zip([0, *looks], looks, strict=False):
        assert runtime.found_after(last + 0.1) == runtime.found_after(look) == look
    assert runtime.found_after(1e6) >= 1e6
    assert Runtime(starts_ahead=True).found_after(3.3) == 3.3


def test_a_task_waits_for_a_starter_with_a_phase_of_its_own():
    grid = grid_of(fleet_of([Client()]), flops=0.0, runtime=Runtime(task_poll_s=1.0))
    grid.sleep(0.3)
    grid.send_and_receive([message_to(0)])
    grid.sleep(0.4)
    second = grid.clock.now()
    grid.send_and_receive([message_to(0)])
    phase = uniform(0, "task-poll", 0)
    # Every start is at the phase, modulo 1 s.
    assert times(grid.trace, E.COMPUTE_END) == {
        (0, k): pytest.approx(phase + math.ceil(sent - phase))
        for k, sent in ((0, 0.3), (1, second))
    }
    assert grid.engine.energy_j["compute"] == 0.0


def test_the_first_start_is_cold_and_the_spread_has_mean_one():
    runtime = Runtime(start_s=2.0, first_start_s=9.0)
    key = client_key(0, "app-start", 0)
    assert [runtime.seconds_to_start(key, k) for k in range(3)] == [9.0, 2.0, 2.0]
    spread = Runtime(start_s=2.0, start_sigma=0.5)
    keys = (client_key(0, "app-start", i) for i in range(4000))
    drawn = np.array([spread.seconds_to_start(key, 1) for key in keys])
    assert drawn.mean() == pytest.approx(2.0, rel=0.03)
    assert np.log(drawn).std() == pytest.approx(0.5, rel=0.03)


def test_heat_follows_its_differential_equation():
    runtime = Runtime(sustained=0.4, heat_s=30.0)
    work, heat, seconds, step = 50.0, 0.2, 0.0, 1e-3
    took, after = runtime.heated(work, heat)
    done = 0.0
    while done < work:
        done += step * (1 - 0.6 * heat)
        heat += step * (1 - heat) / 30.0
        seconds += step
    assert took == pytest.approx(seconds, rel=1e-3)
    assert after == pytest.approx(heat, rel=1e-3)
    assert runtime.cooled(after, 30.0 * math.log(2)) == pytest.approx(after / 2)
    assert runtime.heated(7.0, 1.0)[0] == pytest.approx(7.0 / 0.4)
    assert runtime.heated(0.0, 0.3) == (0.0, pytest.approx(0.3))


def test_a_device_slows_down_and_recovers():
    fleet = fleet_of([Client(1.0)])
    grid = grid_of(fleet, flops=100.0, runtime=Runtime(sustained=0.5, heat_s=50.0))
    for pause in (0.0, 0.0, 1e4):
        grid.sleep(pause)
        grid.send_and_receive([message_to(0)])
    cold, hot, rested = values(grid.trace, E.THROTTLE)
    assert hot > cold == pytest.approx(rested)


def test_steps_take_time_beside_their_flops():
    weights = RecordDict({"a": ArrayRecord({"w": Array(np.zeros(200, np.float32))})})
    runtime = Runtime(step_s=0.5, step_s_per_parameter=0.01)
    grid = SimGrid(
        fleet_of([Client(1.0)]),
        FakeExecutor(),
        planner=lambda request, _: FixedWork(3.0, local_steps=4),
        runtime=runtime,
    )
    grid.send_and_receive([Message(weights, node_id(0), "train")])
    assert times(grid.trace, E.COMPUTE_END)[0, 0] == pytest.approx(3.0 + 4 * (0.5 + 2.0))


def test_objects_are_those_that_flower_moves():
    assume_identity()
    arrays = {f"w{i}": Array(np.random.default_rng(i).random(n)) for i, n in enumerate((3, 400))}
    content = RecordDict({"arrays": ArrayRecord(arrays), "config": ConfigRecord({"lr": 0.1})})
    flowers = len(get_all_nested_objects(Message(content, 1, "train")))
    assert num_objects(content, 5 * 2**20) == flowers == 2 + 2 + 2 * 2
    # 400 doubles and the header of 128 bytes in chunks of 1000 bytes: 4, and 1 of the other.
    assert num_objects(content, 1000) == 2 + 2 + 2 + 1 + 4
    assert Runtime(lanes=2).trips(1, 7) == 1 + 4
    assert Runtime().trips(0.5, 7) == 0.5


def test_a_compressed_reply_goes_in_fewer_trips_than_its_message():
    def record(arrays):
        return ArrayRecord({f"w{i}": Array(np.zeros(2, np.float32)) for i in range(arrays)})

    grid = grid_of(
        fleet_of([Client(latency_s=0.5)]),
        answer=lambda _: Result(content=RecordDict({"a": record(1)})),
        runtime=Runtime(trips_down=0, trips_up=0, lanes=2),
    )
    message = Message(RecordDict({"a": record(4)}), node_id(0), "train")
    for _ in range(2):
        grid.send_and_receive([message])
    # Message, content, record; and array and chunk of each: 11 down in 6 trips, 5 up in 3.
    assert values(grid.trace, E.DOWN_CALLS) == [6.0, 6.0]
    assert values(grid.trace, E.UP_CALLS) == [3.0, 3.0]


def test_the_server_does_one_thing_after_the_other():
    runtime = Runtime(
        send_s=1.0, send_s_per_byte=0.1, receive_s=2.0, receive_s_per_byte=0.01, evaluate_s=5.0
    )
    grid = grid_of(fleet_of([Client()] * 3), flops=1.0, reply=100, runtime=runtime)
    content = message_to(0, 10).content  # shared, so that it is serialised once
    grid.send_and_receive([Message(content, node_id(i), "train") for i in range(3)])
    assert set(times(grid.trace, E.DISPATCH).values()) == {3.0 + 1.0}
    # All three are there at 5; they are read one after the other.
    assert grid.clock.now() == 5.0 + 3 * (2.0 + 1.0)
    grid.serving.evaluates(1e9)
    assert grid.clock.now() == 14.0 + 5.0
    assert values(grid.trace, E.SERVER_SEND) == [4.0]
    assert values(grid.trace, E.SERVER_RECEIVE) == [9.0]
    assert values(grid.trace, E.SERVER_EVALUATE) == [5.0]


def test_the_server_looks_for_replies_at_its_own_pace():
    runtime = Runtime(server_poll_s=0.2, exchange_poll_s=3.0)
    for flops, period in ((1.1, 0.2), (None, 3.0)):  # None: somebody else's app
        grid = grid_of(fleet_of([Client()]), flops=flops, runtime=runtime)
        grid.send_and_receive([message_to(0)])
        took = math.ceil((1.1 if flops else 1.0) / period) * period
        assert grid.clock.now() == pytest.approx(took)
        assert values(grid.trace, E.SERVER_POLL) == [pytest.approx(took - (flops or 1.0))]
    grid = grid_of(fleet_of([Client()]), flops=1.1, runtime=runtime)
    grid.push_messages([message_to(0)])
    grid.wait(100.0)
    assert grid.clock.now() == pytest.approx(1.2)


def test_a_timeout_ends_a_wait_between_two_looks():
    grid = grid_of(fleet_of([Client()]), flops=None, runtime=Runtime(exchange_poll_s=3.0))
    assert len(grid.send_and_receive([message_to(0)], timeout=2.0)) == 1
    assert grid.clock.now() == 2.0
    assert grid.send_and_receive([message_to(0)], timeout=0.5) == []
    assert grid.clock.now() == 2.5


def test_shares_are_of_the_time_between_messages_and_replies():
    fleet = fleet_of([Client(100, 8000, 8000, latency_s=0.5)])
    runtime = Runtime(start_s=2.0, trips_down=1.5, send_s=1.0)
    grid = grid_of(fleet, flops=100.0, reply=500, runtime=runtime)
    grid.send_and_receive([message_to(0, 1000)])
    # Calls 1.5, 1 s down, 2 + 1 s, call 0.5, 0.5 s up: 6.5 s, after 1 s of the server's.
    shares = time_shares(grid.trace)
    expected = {"down_calls": 1.5, "download": 1, "app_start": 2, "compute": 1, "up_calls": 0.5}
    expected["upload"] = 0.5
    for name, share in shares["clients"].items():
        assert share == pytest.approx(expected.get(name, 0.0) / 6.5, abs=1e-12), name
    assert sum(shares["clients"].values()) == pytest.approx(1.0)
    assert shares["server"]["server_send"] == pytest.approx(1 / 7.5)


def test_shares_of_a_run_in_which_nothing_was_answered_are_none():
    grid = grid_of(fleet_of([Client()]), runtime=Runtime(start_s=1.0))
    assert time_shares(grid.trace) == {"clients": {}, "server": {}}


def test_rows_of_terms_stand_where_the_tasks_computed():
    grid = grid_of(fleet_of([Client()] * 2), flops=1.0, runtime=Runtime(start_s=1.0))
    grid.send_and_receive([message_to(0)])
    before = len(grid.trace)
    grid.send_and_receive([message_to(1)])
    assert np.all(np.diff(grid.trace.time) >= 0)
    assert len(grid.trace) == 2 * before
    kinds = [row[1] for row in events(grid.trace)]
    assert kinds[kinds.index(E.APP_START) - 1] is E.COMPUTE_END
    assert grid.trace.table().num_rows == len(kinds)


def test_what_peers_send_goes_through_the_server_if_it_is_relayed():
    fleet = fleet_of([Client(1.0, 8000, 8000)] * 2)
    sent = {}
    for relayed in (False, True):
        grid = grid_of(fleet, flops=1.0, runtime=Runtime(start_s=1e-9, relayed=relayed))
        grid.peers.push([message_to(0, 1000)], [0.0])
        grid.sleep(10.0)
        sent[relayed] = grid.engine.bytes_down
        assert grid.peers.nodes() == [node_id(0), node_id(1)]
    assert sent == {False: 0, True: 1000}


def test_nodes_that_were_started_together_look_together():
    fleet = fleet_of([Client()] * 3)
    looks = {}
    for together in (False, True):
        runtime = Runtime(poll_s=3.0, task_poll_s=1.0, together=together)
        grid = grid_of(fleet, flops=1.0, runtime=runtime)
        grid.send_and_receive([message_to(client) for client in range(3)])
        looks[together] = [
            len({round(seconds, 9) for seconds in values(grid.trace, kind)})
            for kind in (E.CLIENT_POLL, E.TASK_POLL)
        ]
    assert looks == {False: [3, 3], True: [1, 1]}


SWITCHES = ("relayed", "together")


@pytest.mark.parametrize("name", [f.name for f in fields(Runtime) if f.name not in SWITCHES])
def test_a_term_out_of_its_range_is_refused_by_name(name):
    with pytest.raises(ConfigError, match=rf"^{name} is -1"):
        Runtime(**{name: -1})
    with pytest.raises(ConfigError, match=f"^{name} is nan"):
        Runtime(**{name: math.nan})
