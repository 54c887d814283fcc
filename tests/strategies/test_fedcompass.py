"""FedCompass: the trace of three clients worked out by hand, its limits, and clients that fail."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from stand_ins import Client, FakeExecutor, FixedWork, Scripted, ScriptedFaults, driven, fleet_of

from fl.errors import ConfigError
from fl.execution.contract import Result
from fl.flower.identity import client_of
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import TaskFaults
from fl.strategies import FedCompass
from fl.strategies.staleness import ConstantWeight, Polynomial


def run(seconds_per_step, rounds, change=None, timeout=1e6, factor=None, **arguments):
    """Runs FedCompass on clients that take so many seconds a step.

    Args:
        seconds_per_step: one number per client.
        rounds: versions.
        change: function of (client, dispatch, received model) to what the client sends back.
        timeout: time to live of messages, s.
        factor: of the duration of single tasks, by (client, dispatch).
        **arguments: of FedCompass, and `faults` and `availability` of the fleet.

    Returns:
        `log`: (time, version, [(client, staleness), ...]) of every version; `steps`: (time, client,
        steps) of every request; `w`: the final model; `strategy`; `trace`.
    """
    n = len(seconds_per_step)
    fleet = fleet_of(
        [Client(flops=1.0 / s) for s in seconds_per_step],
        faults=arguments.pop("faults", None),
        availability=arguments.pop("availability", None),
    )
    steps, log = [], []

    def plan(request, _):
        q = request.payload.content["config"]["local-steps"]
        steps.append((grid.clock.now(), request.client, q))
        return FixedWork(q * (factor or {}).get((request.client, request.dispatch), 1.0))

    def answer(request):
        x = request.payload.content["arrays"]["w"].numpy()
        y = x if change is None else change(request.client, request.dispatch, x)
        record = ArrayRecord({"w": Array(np.asarray(y, np.float32))})
        return Result(
            content=RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": 1})})
        )

    grid = SimGrid(fleet, FakeExecutor(answer), planner=plan)
    contributors = []
    applied, at_once = grid.control.applied, grid.control.applied_at_once

    def on_applied(name, staleness, metrics, **_):
        contributors.append((int(name.split(".")[0]), staleness))
        applied(name, staleness, metrics)

    def on_applied_at_once(names, metrics):
        contributors.extend((int(name.split(".")[0]), 0) for name in names)
        at_once(names, metrics)

    grid.control.applied, grid.control.applied_at_once = on_applied, on_applied_at_once
    strategy = driven(FedCompass, num_clients=n, min_available_nodes=n, **arguments)

    def evaluate(version, arrays):
        if version:
            log.append((grid.clock.now(), version, sorted(contributors)))
            contributors.clear()

    result = strategy.start(
        grid,
        ArrayRecord({"w": Array(np.zeros(1, np.float32))}),
        num_rounds=rounds,
        timeout=timeout,
        evaluate_fn=evaluate,
    )
    return SimpleNamespace(
        log=log, steps=steps, strategy=strategy, trace=grid.trace, w=result.arrays["w"].numpy()
    )


def test_a_message_that_leaves_after_it_was_decided_on_is_no_lost_one():
    # As on a deployment, where the clock goes on while messages are sent.
    rule = FedCompass(num_clients=1)
    state, _ = rule.assign(rule.init(np.zeros(1, np.float32), 1), 5, now=10.0)
    for sent_s, applied in ((10.0, True), (10.5, True), (9.0, False)):
        update = SimpleNamespace(
            node=5, sent_s=sent_s, received_s=20.0, config={"local-steps": 100}
        )
        assert bool(rule.receive(state, update, 0).apply) is applied


# ---- the trace of methods/async.md, by hand ------------------------------------------------------

GOLDEN = [  # time, version, [(client, staleness)]
    (100, 1, [(0, 0)]),
    (200, 2, [(1, 1)]),
    (200, 3, [(0, 1)]),
    (300, 4, [(0, 0)]),
    (350, 5, [(0, 0), (1, 2)]),
    (400, 6, [(2, 5)]),
    (450, 7, [(0, 1), (1, 1)]),
    (550, 8, [(0, 0)]),
    (600, 9, [(0, 0), (1, 1), (2, 2)]),
    (700, 10, [(0, 0), (1, 0), (2, 0)]),
    (800, 11, [(0, 0), (1, 0), (2, 0)]),
]
STEPS = [  # time, client, Q
    (100, 0, 100),  # no group: Qmax
    (200, 1, 75),  # lands with client 0's next return: (250 + 100 - 200) / 2
    (200, 0, 100),
    (300, 0, 50),  # joins client 1, expected at 350
    (350, 0, 100),
    (350, 1, 50),
    (400, 2, 50),
    (450, 0, 100),
    (450, 1, 75),
    (550, 0, 50),
    (600, 0, 100),
    (600, 1, 50),
    (600, 2, 25),
    (700, 0, 100),
    (700, 1, 50),
    (700, 2, 25),
]


def test_three_clients_of_1_2_and_4_seconds_a_step_follow_the_trace_worked_out_by_hand():
    done = run((1, 2, 4), 11)
    assert [(t, v, who) for t, v, who in done.log] == GOLDEN
    assigned = [row for row in done.steps if 0 < row[0] < 800]
    assert assigned == STEPS


def test_multiplying_all_times_changes_the_times_and_nothing_else():
    slow = run((8, 16, 32), 11)
    assert slow.log == [(8 * t, v, who) for t, v, who in GOLDEN]


def test_equal_clients_form_one_group_and_average_like_fedavg_with_eta_alpha():
    def halfway(client, dispatch, x):
        return 0.5 * x + client  # towards 2 * client

    n, alpha = 4, 0.8
    done = run((1.0,) * n, 4 + 3, halfway, alpha=alpha, staleness=ConstantWeight())
    assert [tau for _, _, who in done.log[:4] for _, tau in who] == [0, 1, 2, 3]
    order = [i for _, _, who in done.log[:4] for i, _ in who]  # of equals, as they were sent
    assert done.log[4][2] == sorted((i, n - 1 - k) for k, i in enumerate(order))
    assert [row[2] for row in done.log[5:]] == [[(i, 0) for i in range(n)]] * 2
    assert {q for _, _, q in done.steps} == {100}
    assert [t for t, _, _ in done.log] == [100] * n + [200, 300, 400]
    # By hand: the warm-up applies clients alone and in sequence. Client i has begun its second task
    # with what the server had after it, so the first group's changes differ; the third group's not.
    w = 0.0
    begins = {}
    for i in order:
        w += alpha / n * i  # every first change is x_i - 0 = i
        begins[i] = w
    w += alpha / n * sum(0.5 * x + i - x for i, x in begins.items())
    for _ in range(2):
        w += alpha * np.mean([0.5 * w + i - w for i in range(n)])
    assert done.w == pytest.approx([w], rel=1e-5)


def test_a_single_group_is_reached_within_the_ratio_of_steps_and_never_beyond():
    within = run((1, 3, 5), 40).log[-10:]
    assert all(who == [(0, 0), (1, 0), (2, 0)] for _, _, who in within)
    beyond = run((1, 2, 10), 60).log[-30:]
    assert not any(len(who) == 3 and all(tau == 0 for _, tau in who) for _, _, who in beyond)


@pytest.mark.parametrize("paces", [(1, 2, 4), (1, 1.7, 12), (0.3, 0.31, 7, 2)])
def test_steps_stay_between_their_bounds(paces):
    assigned = [q for _, _, q in run(paces, 60).steps]
    assert min(assigned) >= 20
    assert max(assigned) <= 100


def test_staleness_weights_are_applied_when_the_group_ends():
    done = run((1, 2, 4), 5, lambda client, dispatch, x: x + 1, alpha=0.9, staleness=Polynomial(1))
    taus = [tau for _, _, who in done.log for _, tau in who]
    assert done.w == pytest.approx([0.9 / 3 * sum(1 / (1 + tau) for tau in taus)])


def test_equal_bounds_leave_nothing_to_choose():
    assert {q for _, _, q in run((1, 2, 3), 40, min_steps=50, max_steps=50).steps} == {50}


def test_nothing_moves_if_nobody_changes_the_model():
    assert run((1, 2, 4), 20).w == pytest.approx([0.0])


# ---- clients that are late, fail, or go away -----------------------------------------------------


def test_a_late_client_does_not_hold_up_its_group_and_is_used_with_the_next():
    # Both would be in one group at 200 s; client 1's third task takes three times as long.
    done = run((1, 1), 6, lambda client, dispatch, x: x + 1 + 9 * client, factor={(1, 2): 3.0})
    late = 200 + 300
    ended = [row for row in done.log if row[0] >= 200]
    assert (ended[0][0], [i for i, _ in ended[0][2]]) == (200, [0, 1]), "second tasks"
    assert ended[1] == (350, 4, [(0, 0)]), "T_max = 200 + 1.5 * 100, without client 1"
    assert [t for t, i, _ in done.steps if i == 1] == [0, 100, 200, late]
    applied = [row for row in done.log if any(i == 1 and row[0] > 200 for i, _ in row[2])]
    assert applied[0][0] > late, "the late update waits for a group to end"
    assert next(tau for i, tau in applied[0][2] if i == 1) >= 1
    assert not done.strategy.state.buffer


def dropping(detection_s):
    """Two equal clients; client 1 drops out at 250 s, halfway through its third task."""
    script = {(1, 2): TaskFaults(dropout_at=0.5)}
    faults = ScriptedFaults(detection_s=detection_s, script=script)
    done = run((1, 1), 20, faults=faults)
    third = next(row for row in done.log if row[0] > 200)
    asked = [(t, q) for t, i, q in done.steps if i == 1]
    return third, asked, done


def test_a_client_known_to_have_failed_is_asked_again_and_joins_its_group_anew():
    third, asked, _ = dropping(detection_s=5.0)
    assert asked[3] == (255, 45), "what fits until its group is expected, at 300 s"
    assert third == (300, 4, [(0, 0), (1, 0)])


def test_a_client_that_vanishes_holds_up_its_group_until_t_max_and_is_asked_again_when_lost():
    third, asked, done = dropping(detection_s=None)
    assert third == (350, 4, [(0, 0)])
    # Its longest task took 100 s, so that the one begun at 200 s is lost after 3 x 3 x 100 s.
    assert asked[3][0] == 1100
    assert any(i == 1 and t > 1100 for t, _, who in done.log for i, _ in who)


def test_a_group_whose_only_missing_client_fails_ends_at_once():
    faults = ScriptedFaults(detection_s=1.0, script={(1, 2): TaskFaults(dropout_at=0.999)})
    done = run((1, 1.2), 8, faults=faults)
    assert all(not group.arrived or group.working for group in done.strategy.state.groups)
    failed = [t for t, k in zip(done.trace.time, done.trace.kind, strict=True) if k == 15]
    assert failed
    assert any(t == failed[0] and len(who) == 1 for t, _, who in done.log), "then, not at T_max"


def test_clients_that_always_fail_do_not_stop_the_others():
    script = {(1, k): TaskFaults(crash_at=0.3) for k in range(10_000)}
    done = run((1, 1, 2), 30, faults=ScriptedFaults(script=script))
    assert {i for _, _, who in done.log for i, _ in who} == {0, 2}
    assert len(done.log) == 30
    assert done.trace.counts[Event.CRASH] > 5, "it was asked again and again"


def test_a_client_that_is_away_is_given_work_when_it_is_back():
    away = Scripted(2, {1: [120.0, 640.0]})
    done = run((1, 1), 12, availability=away, timeout=150.0)
    asked = [t for t, i, _ in done.steps if i == 1]
    assert not [t for t in asked if 120 < t < 640]
    assert [t for t in asked if t >= 640]


def test_nobody_has_two_tasks_and_whoever_waits_has_none():
    done = run((1, 2.3, 4.1, 0.9), 50, lambda client, dispatch, x: x)
    busy, kinds = set(), {Event.DISPATCH: 1, Event.UPLOAD_END: -1}
    for kind, client in zip(done.trace.kind, done.trace.client, strict=True):
        if kinds.get(kind) == 1:
            assert client not in busy
            busy.add(client)
        elif kinds.get(kind) == -1:
            busy.remove(client)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_steps": 0}, "min_steps is 0"),
        ({"min_steps": 30, "max_steps": 20}, "max_steps is 20"),
        ({"latest_time_factor": 0.9}, "latest_time_factor is 0.9"),
        ({"alpha": 0}, "alpha is 0"),
        ({"speed_momentum": 1.5}, "speed_momentum is 1.5"),
    ],
)
def test_impossible_arguments_are_refused(arguments, words):
    with pytest.raises(ConfigError, match=words):
        driven(FedCompass, num_clients=3, **arguments)


def test_a_slot_is_kept_while_a_client_waits_for_its_group():
    done = run((1, 2, 4), 11, concurrency=3)
    assert done.log == GOLDEN
    two = run((1, 2, 4), 30, concurrency=2)
    used = {i for _, _, who in two.log for i, _ in who}
    assert len(used) == 2
    assert {client_of(node) for node in two.strategy.state.seconds_per_step} == used
