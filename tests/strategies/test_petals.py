"""Petals: sessions and batches timed by hand, and what they are when servers fail or move."""

from __future__ import annotations

from collections import Counter

import pytest
from staged import MODEL, grid_of_stages
from stand_ins import Client, Scripted, ScriptedFaults

from fl.errors import ConfigError
from fl.simulation.kernel.trace import Event
from fl.simulation.world.availability import ExponentialOnOff
from fl.simulation.world.faults import Faults, TaskFaults
from fl.stages import TransformerStage
from fl.strategies import Petals

BLOCK = TransformerStage(width=1, sequence=1, boundary_bits=8)  # 28 FLOPs and a byte a token
COMMON = dict(num_blocks=4, held=2, prompt=3, tokens=4, least_tokens=1, load_s=0.0)


def ran(strategy, clients, num_rounds=1, **fleet):
    """Returns the rows that were measured, the grid, and the times at which rounds ended."""
    grid = grid_of_stages(clients, **fleet)
    rows, times = [], []
    grid.control.measured = rows.append
    strategy.start(
        grid,
        MODEL,
        num_rounds=num_rounds,
        evaluate_fn=lambda t, arrays: times.append(grid.clock.now()),
    )
    return rows, grid, times[1:]


def computed(grid):
    """Returns the s of what clients have begun to compute, but for probes of 1 s: (client, s)."""
    trace = grid.trace
    rows = zip(trace.kind, trace.client, trace.value, strict=True)
    return [(int(c), float(v)) for k, c, v in rows if k == Event.COMPUTE_START and v != 1]


def test_a_session_takes_what_it_does_by_hand():
    clients = [Client(latency_s=0.25, flops=28.0)] * 3  # a user, and two servers of two blocks
    rows, grid, (end,) = ran(Petals(BLOCK, **COMMON), clients)
    # Three hops of half a second and two servers: 18 ms and two blocks of a second for each token.
    assert rows[0]["prompt_s"] == pytest.approx(30.0 + 1.5 + 2 * (0.018 + 6), abs=1e-9)
    assert rows[0]["steps_per_s"] == pytest.approx(1 / (1.5 + 2 * (0.018 + 2)))
    # They serve since 30 s: one probe of 1 s before, and then it is looked who is there.
    work = [seconds for _, seconds in computed(grid)]
    assert work == pytest.approx([6.0, 6.0, *[2.0] * 6])
    assert end == pytest.approx(30 + 13.536 + 3 * 5.536)


def test_the_expected_time_of_a_chain_is_what_a_step_takes_without_others():
    clients = [Client(latency_s=0.01 * i, flops=280.0 * (1 + i % 3)) for i in range(9)]
    strategy = Petals(BLOCK, **COMMON)
    rows, _, _ = ran(strategy, clients)
    ((_, expected),) = strategy.last.routes
    assert 1 / rows[0]["steps_per_s"] == pytest.approx(expected, rel=1e-6)


def test_who_takes_over_replays_all_that_the_session_had_sent():
    clients = [Client(flops=28.0)] * 5
    whole, grid, _ = ran(Petals(BLOCK, **COMMON), clients)
    chain = [client for client, seconds in computed(grid) if seconds == 6.0]
    # Its task 0 is the probe, 1 the prompt: the first server of the chain crashes at token 3.
    faults = ScriptedFaults(script={(chain[0], 3): TaskFaults(crash_at=0.5)})
    rows, grid, _ = ran(Petals(BLOCK, **COMMON), clients, faults=faults)
    assert (rows[0]["failures"], rows[0]["replays"]) == (1, 1)
    seconds = [s for _, s in computed(grid)]
    # The other server of these blocks gets 3 + 2 tokens; the second one of the chain keeps its own.
    assert seconds == pytest.approx([6, 6, 2, 2, 2, 10, 2, 2, 2])
    assert whole[0]["replays"] == 0


def test_a_batch_goes_forward_and_back_and_a_failure_on_the_way_back_costs_its_blocks_alone():
    clients = [Client(flops=28.0)] * 5
    given = COMMON | dict(work="tuning", batch=2)
    rows, grid, _ = ran(Petals(BLOCK, **given), clients)
    # 6 tokens through 2 blocks: 12 s, and twice that back.
    assert [s for _, s in computed(grid)] == pytest.approx([12, 12, 24, 24])
    assert rows[0]["tokens_per_s"] == pytest.approx(6 / (30 + 72 + 4 * 0.018))
    last = computed(grid)[2][0]
    faults = ScriptedFaults(script={(last, 2): TaskFaults(crash_at=0.5)})
    rows, grid, _ = ran(Petals(BLOCK, **given), clients, faults=faults)
    assert [s for _, s in computed(grid)] == pytest.approx([12, 12, 24, 24, 24])
    assert rows[0]["failures"] == 1


def test_servers_move_to_blocks_that_have_lost_theirs():
    clients = [Client(flops=28.0)] * 7
    strategy = Petals(BLOCK, **COMMON | dict(balance_s=5.0, refresh_s=1.0, tokens=20))
    leaves = Scripted(7, {4: [20.0], 6: [20.0]})
    rows, _, _ = ran(strategy, clients, 3, availability=leaves, faults=Faults(detection_s=0.1))
    starts = Counter(held.start for held in strategy.last.servers.values())
    assert starts == {0: 2, 2: 2}
    assert sum(row["moves"] for row in rows) <= 2


@pytest.mark.parametrize("work", ["inference", "tuning"])
def test_all_work_is_done_on_a_fleet_where_all_that_can_fail_does(work):
    clients = [Client(flops=280.0 + i, up_bps=1e4, latency_s=0.01) for i in range(10)]
    given = COMMON | dict(work=work, users=2, held=1, load_s=5.0, refresh_s=5.0, balance_s=20.0)
    rows, grid, _ = ran(
        Petals(BLOCK, **given, seed=3),
        clients,
        12,
        seed=3,
        availability=ExponentialOnOff(10, 3, 60.0, 10.0),
        faults=Faults(crash=0.03, dropout=0.03, message_loss=0.02, detection_s=1.0),
    )
    assert len(rows) == 12
    assert sum(row["failures"] for row in rows) > 5
    assert grid.trace.num_faults > 10


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"work": "training"}, "work is 'training'"),
        ({"held": 25}, "held 25"),
        ({"users": 0}, "users is 0"),
        ({"balance_s": 0.0}, "balance_s"),
    ],
)
def test_what_cannot_be_is_refused(given, words):
    with pytest.raises(ConfigError, match=words):
        Petals(BLOCK, **given)


def test_too_few_servers_for_all_blocks_are_refused_with_the_remedy():
    with pytest.raises(ConfigError, match=r"servers of 8 blocks cannot hold 24; set num_clients=4"):
        Petals(BLOCK).check_clients(3)
    Petals(BLOCK).check_clients(4)
