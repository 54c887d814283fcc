"""SWARM's pipelines: times by hand, shares by speed, and gradients that are whole whoever fails."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import pytest
from staged import MODEL, grid_of_stages, passes_of
from stand_ins import Client, Scripted

from fl.errors import ConfigError, SimulationError
from fl.simulation.kernel.trace import Event
from fl.simulation.world.availability import ExponentialOnOff
from fl.simulation.world.faults import Faults
from fl.stages import Rebalancing, TransformerStage
from fl.strategies import SWARM
from fl.strategies.drivers.stages.swarm_run import SwarmRun

STAGE = TransformerStage(width=1, sequence=1)
FORWARD, BACKWARD = 28.0, 84.0  # FLOPs: 24 h^2 + 4 s h, and three times that
STATE_BYTES = 144  # 12 weights, each with two moments


def ran(strategy, clients, num_rounds=1, seconds=None, **fleet):
    """Returns the time of each step, what was measured of it, and the grid."""
    grid = grid_of_stages(clients, seconds, **fleet)
    rows, times = [], []
    grid.control.measured = rows.append

    def evaluate(t, arrays):
        times.append(grid.clock.now())

    strategy.start(grid, MODEL, num_rounds=num_rounds, evaluate_fn=evaluate)
    return times[1:], rows, grid


def test_one_micro_batch_through_three_stages_takes_what_it_does_by_hand():
    clients = [Client(flops=28.0, up_bps=8.0)] * 3  # a forward pass takes 1 s, a byte 1 s
    times, rows, grid = ran(SWARM(STAGE, num_stages=3, micro_batches=1), clients, num_rounds=2)
    # 3 passes of 1 s and 2 transfers of 1 s there, 3 of 3 s and 2 of 1 s back; no one to average.
    assert times == pytest.approx([16.0, 32.0], rel=1e-12)
    assert passes_of(grid, Event.TRANSFER) == [1, 2, 1, 0] * 2
    assert rows[0]["utilisation"] == pytest.approx(12 / (3 * 16))
    assert rows[0]["repeated_passes"] == 0


def test_two_peers_of_a_stage_share_its_passes_and_average_what_they_have():
    clients = [Client(flops=28.0, up_bps=8.0, down_bps=8.0)] * 4
    strategy = SWARM(STAGE, num_stages=2, micro_batches=2)
    times, _, grid = ran(strategy, clients)
    reduced = [
        int(size)
        for kind, size in zip(grid.trace.kind, grid.trace.bytes, strict=True)
        if kind == Event.ALL_REDUCE
    ]
    assert reduced == [24] * 4  # 12 numbers of 16 bits: half of them there, half back
    # Micro-batches go beside each other: 1 + 1 + 1 s there, 3 + 1 + 3 back. Inputs that are sent
    # again to another peer than before may take some more. Two hops of 12 bytes, 1 s each.
    assert 10 + 24 <= times[0] <= 14 + 24


def test_a_step_has_four_micro_batches_for_each_peer_unless_it_says_how_many():
    for given, expected in ((None, 4 * 6), (5, 5)):
        strategy = SWARM(STAGE, num_stages=2, micro_batches=given)
        times, rows, _ = ran(strategy, [Client(flops=28.0)] * 6)
        assert rows[0]["micro_batches_per_s"] * times[0] == pytest.approx(expected)


def test_peers_of_speeds_1_and_3_get_work_as_1_to_3():
    clients = [Client(flops=28.0 * (1 + 2 * (i >= 2))) for i in range(4)]
    strategy = SWARM(STAGE, num_stages=2, micro_batches=300, in_flight=16, rebalancing=None)
    _, rows, grid = ran(strategy, clients)
    flops = Counter()
    for kind, i, seconds in zip(grid.trace.kind, grid.trace.client, grid.trace.value, strict=True):
        if kind == Event.COMPUTE_START:
            flops[int(i)] += seconds * clients[i].flops
    for stage in (0, 1):
        assert flops[stage + 2] / flops[stage] == pytest.approx(3, rel=0.08)
    assert rows[0]["utilisation"] > 0.95


def test_a_peer_that_is_slower_by_a_million_is_left_aside_and_not_waited_for_longer_each_time():
    clients = [Client(flops=28.0 * (1e-6 if i == 3 else 1.0)) for i in range(4)]
    strategy = SWARM(STAGE, num_stages=2, micro_batches=40, in_flight=8, rebalancing=None)
    times, rows, _ = ran(strategy, clients, num_rounds=4)
    assert sum(row["timeouts"] for row in rows) < 15
    assert times[-1] < 1e5  # one of its passes takes 1e6 s


def test_a_peer_that_leaves_takes_its_gradients_with_it_and_they_are_made_again():
    clients = [Client(flops=28.0)] * 3  # stages 0, 1, 0
    strategy = SWARM(STAGE, num_stages=2, micro_batches=4, in_flight=4, refresh_s=1.0)
    whole, _, _ = ran(strategy, clients)
    leaves = Scripted(3, {2: [whole[0] - 0.5]})
    times, rows, _ = ran(strategy, clients, availability=leaves, faults=Faults(detection_s=0.1))
    assert rows[0]["bans"] == 1
    assert rows[0]["repeated_passes"] >= 2
    assert times[0] > whole[0] + 3


def test_who_comes_goes_where_it_is_needed_once_it_has_the_weights():
    clients = [Client(flops=28.0 * (1 + 9 * (i != 1)), up_bps=8 * 144.0) for i in range(4)]
    comes = Scripted(4, {3: [5.0]}, offline=[3])
    strategy = SWARM(
        STAGE, num_stages=2, micro_batches=20, refresh_s=1.0, rebalancing=Rebalancing(1e9)
    )
    _, _, grid = ran(strategy, clients, availability=comes)
    run = strategy.last
    assert run.stage_of == {0: 0, 1: 1, 2: 0, 3: 1}
    sent = zip(grid.trace.kind, grid.trace.bytes, grid.trace.time, grid.trace.client, strict=True)
    ((time, client),) = [(t, c) for k, b, t, c in sent if k == Event.TRANSFER and b == STATE_BYTES]
    assert client == 3
    assert time >= 6.0  # it was seen at 5 s at the earliest, and 144 bytes take a second


def test_the_slow_stage_is_given_peers_until_no_move_helps():
    clients = [Client(flops=28.0)] * 7
    strategy = SWARM(STAGE, num_stages=2, micro_batches=60, rebalancing=Rebalancing(every_s=5.0))
    odd = Scripted(7, {5: [0.5], 3: [0.5]})  # leaves stage 0 with four peers, stage 1 with one
    _, rows, _ = ran(strategy, clients, 2, availability=odd, faults=Faults(detection_s=0.1))
    sizes = Counter(strategy.last.stage_of.values())
    assert sizes == {0: 3, 1: 2}
    assert sum(row["moves"] for row in rows) == 1


def test_the_next_step_begins_while_peers_average_if_it_may_be_delayed():
    clients = [Client(flops=28.0, up_bps=8.0, down_bps=8.0)] * 4
    common = dict(num_stages=2, micro_batches=8, in_flight=4)
    plain, _, _ = ran(SWARM(STAGE, **common), clients, num_rounds=4)
    delayed, _, _ = ran(SWARM(STAGE, delayed=True, **common), clients, num_rounds=4)
    assert delayed[0] == plain[0]
    assert delayed[-1] < plain[-1] - 20  # three all-reduces of 24 bytes at 1 byte a second


def test_an_answer_that_comes_after_it_was_given_up_counts_nowhere(monkeypatch):
    """A pass is slow once by far: another peer has done it when its answer comes."""
    monkeypatch.setattr("fl.strategies.drivers.stages.swarm_pipelines.SwarmRun", Counted)
    clients = [Client(flops=28.0)] * 4
    strategy = SWARM(STAGE, num_stages=2, micro_batches=60, patience=3.0, in_flight=4)
    _, rows, _ = ran(strategy, clients, seconds={(0, 20): 1000.0})
    assert rows[0]["timeouts"] >= 1
    assert strategy.last.whole == 1
    assert rows[0]["repeated_passes"] == 0  # the late one is not even looked at


class Counted(SwarmRun):
    """A run in which the gradients that each peer has added up are kept apart as well."""

    def __init__(self, *args):
        super().__init__(*args)
        self.summed = defaultdict(list)
        self.whole = 0

    def _answered(self, task, reply, seconds):
        memo, peer = task.memo.memo, task.memo.peer
        before = self.steps[memo.place[0]].passes if memo.place[0] in self.steps else -1
        super()._answered(task, reply, seconds)
        if self.steps[memo.place[0]].passes > before:
            assert memo.lives == self.lives[peer]  # it has what it had when it was asked
        if self.steps[memo.place[0]].passes > before and memo.work.backward:
            self.summed[peer].append((*memo.place, memo.work.stage))

    def _lose(self, peer):
        if peer in self.stage_of:
            ends = [k for k, step in self.steps.items() if step.reducing == "ends"]
            self.summed[peer] = [one for one in self.summed[peer] if one[0] in ends]
        super()._lose(peer)

    def _end(self, k, gone):
        counted = Counter(one for own in self.summed.values() for one in own if one[0] == k)
        batch, stages = self.strategy.micro_batches, self.num_stages
        assert counted == Counter((k, m, s) for m in range(batch) for s in range(stages))
        self.whole += 1
        super()._end(k, gone)


def failing(monkeypatch, num_rounds, seed, delayed=False):
    monkeypatch.setattr("fl.strategies.drivers.stages.swarm_pipelines.SwarmRun", Counted)
    clients = [Client(flops=28.0 + 9 * i, up_bps=800.0, latency_s=0.01) for i in range(12)]
    strategy = SWARM(
        STAGE,
        num_stages=3,
        micro_batches=24,
        in_flight=8,
        rebalancing=Rebalancing(every_s=20.0),
        delayed=delayed,
        refresh_s=3.0,
        detection_s=0.5,
        seed=seed,
    )
    _, rows, grid = ran(
        strategy,
        clients,
        num_rounds,
        seed=seed,
        availability=ExponentialOnOff(12, seed, 60.0, 15.0),
        faults=Faults(dropout=0.02, crash=0.02, message_loss=0.01, detection_s=1.0),
    )
    assert strategy.last.whole == num_rounds
    return rows, grid


@pytest.mark.parametrize("delayed", [False, True])
def test_whoever_fails_every_stage_counts_every_micro_batch_once(monkeypatch, delayed):
    rows, grid = failing(monkeypatch, 3, seed=1, delayed=delayed)
    assert grid.trace.num_faults > 40
    assert sum(row["bans"] for row in rows) > 20
    assert sum(row["moves"] for row in rows) > 0


@pytest.mark.slow
def test_ten_thousand_faults_of_a_fleet_lose_no_micro_batch_and_count_none_twice(monkeypatch):
    faults = seed = 0
    while faults < 10_000:
        seed += 1
        faults += failing(monkeypatch, 60, seed, delayed=seed % 2 == 0)[1].trace.num_faults


def test_peers_that_do_nothing_but_fail_end_the_run():
    clients = [Client(flops=28.0)] * 2
    strategy = SWARM(STAGE, num_stages=2, micro_batches=1, refresh_s=1.0)
    with pytest.raises(SimulationError, match=r"brought no pass .* lower fleet.faults.crash"):
        ran(strategy, clients, faults=Faults(crash=1.0))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"num_stages": 1}, "num_stages is 1"),
        ({"micro_batches": 0}, "micro_batches is 0"),
        ({"in_flight": 0}, "in_flight is 0"),
        ({"refresh_s": 0.0}, "refresh_s"),
        ({"wiring": Rebalancing()}, "wiring"),
    ],
)
def test_what_cannot_be_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        SWARM(STAGE, **given)


def test_fewer_clients_than_stages_are_refused_with_both_remedies():
    with pytest.raises(ConfigError, match=r"num_clients=4 or more, or strategy.num_stages=3"):
        SWARM(STAGE, num_stages=4).check_clients(3)
    assert replace(STAGE, width=2).work.boundary_bytes == 2
