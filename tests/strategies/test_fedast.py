"""FedAST and Sync-ST: limits that are other methods, allocation, targets, and what is left over."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from stand_ins import Client, FakeExecutor, FixedWork, ScriptedFaults, driven, fleet_of

from fl.errors import ConfigError
from fl.execution.contract import Result
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import TaskFaults
from fl.strategies import FedAST, FedAvg, FedBuff, SyncST
from fl.strategies.drivers.events.learning_tasks import Models, apportion
from fl.strategies.staleness import ConstantWeight


def models(*tasks, size=1):
    names = [f"{task}/w" for task in tasks]
    return ArrayRecord({name: Array(np.zeros(size, np.float32)) for name in names})


def run(strategy, tasks=("a", "b"), rounds=10, clients=(1.0,) * 4, cost=None, change=None, **more):
    """Runs a strategy on clients of given speeds.

    Args:
        strategy: to be run.
        tasks: learning tasks.
        rounds: versions of all models.
        clients: seconds per unit of work of each client.
        cost: units of work of a request, by task; 1 for others.
        change: function of (task, client, dispatch, received model) to what is sent back; default
            adds 1.
        **more: `accuracy`, a function of (task, model) for the evaluation, `faults`, and `size` of
            the models.
    """
    fleet = fleet_of([Client(flops=1.0 / s) for s in clients], faults=more.get("faults"))
    sent, log = [], []

    def config(request):
        return request.payload.content["config"]

    def plan(request, _):
        task = config(request).get("task", "")
        sent.append((grid.clock.now(), task, request.client))
        return FixedWork((cost or {}).get(task, 1.0))

    def answer(request):
        task = config(request).get("task", "")
        arrays = request.payload.content["arrays"]
        assert list(arrays) == (["w"] if task else list(arrays)), "plain names"
        x = next(iter(arrays.values())).numpy()
        y = x + 1 if change is None else change(task, request.client, request.dispatch, x)
        record = ArrayRecord({next(iter(arrays)): Array(np.asarray(y, np.float32))})
        metrics = MetricRecord({"num-examples": 1, "steps": 5})
        return Result(content=RecordDict({"arrays": record, "metrics": metrics}))

    grid = SimGrid(fleet, FakeExecutor(answer), planner=plan)
    accuracy = more.get("accuracy")

    def evaluate(version, arrays):
        values = {name.partition("/")[0]: array.numpy().copy() for name, array in arrays.items()}
        log.append((grid.clock.now(), version, values))
        if accuracy is None:
            return None
        return MetricRecord({f"accuracy/{t}": float(accuracy(t, w)) for t, w in values.items()})

    result = strategy.start(
        grid,
        models(*tasks, size=more.get("size", 1)),
        num_rounds=rounds,
        timeout=1e6,
        evaluate_fn=evaluate,
    )
    w = {name.partition("/")[0]: array.numpy() for name, array in result.arrays.items()}
    return SimpleNamespace(grid=grid, sent=sent, log=log, w=w, trace=grid.trace)


def staleness(trace):
    kinds = np.array(trace.kind)
    return np.array(trace.value)[kinds == Event.APPLIED]


# ---- limits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer_size", [1, 3])
def test_one_task_is_fedbuff_without_staleness_weights_but_for_the_choice_of_clients(buffer_size):
    # One client: whom to ask is no question, and requests queue in the same order.
    def drift(task, client, dispatch, x):
        return 0.7 * x + dispatch

    ours = driven(FedAST, concurrency=1, buffer_size=buffer_size, eta=0.5)
    buff = driven(
        FedBuff,
        concurrency=1,
        buffer_size=buffer_size,
        server_optimizer=FedAvg(0.5),
        staleness=ConstantWeight(),
    )
    arguments = {"tasks": ("a",), "clients": (1.0,), "change": drift}
    one, two = run(ours, **arguments), run(buff, **arguments)
    assert one.w["a"] == pytest.approx(two.w["a"])
    assert [row[0] for row in one.log] == [row[0] for row in two.log]


def test_one_task_with_a_buffer_of_all_requests_at_distinct_equal_clients_is_fedavg():
    # A cohort is drawn with replacement; a seed whose draws are distinct makes the rounds equal.
    def local(task, client, dispatch, x):
        return 0.5 * x + client

    n = 2
    for seed in range(100):
        done = run(
            driven(FedAST, concurrency=n, buffer_size=n, seed=seed),
            ("a",),
            3,
            (1.0,) * 4,
            None,
            local,
        )
        cohorts = [sorted(i for t, _, i in done.sent if t == time) for time in (0.0, 1.0, 2.0)]
        if all(len(set(cohort)) == n for cohort in cohorts):
            break
    w = 0.0
    for cohort in cohorts:
        w += np.mean([0.5 * w + i - w for i in cohort])
    assert done.w["a"] == pytest.approx([w], rel=1e-5)
    assert set(staleness(done.trace)) == {0.0}


def test_requests_queue_at_busy_clients_and_waiting_counts_as_staleness():
    done = run(driven(FedAST, concurrency=6, buffer_size=1), ("a",), 30, (1.0,))
    # One client serves six requests in turn: each has seen the five versions before it.
    assert [row[0] for row in done.log] == list(range(31))
    assert staleness(done.trace)[5:].tolist() == [5.0] * 25


def test_mean_staleness_is_requests_over_buffer_whatever_the_speeds():
    done = run(driven(FedAST, concurrency=20, buffer_size=4), ("a",), 400, (0.3, 1, 1, 2, 5.1, 0.9))
    assert staleness(done.trace)[100:].mean() == pytest.approx((20 - 1) / 4, rel=0.1)


def test_clients_are_drawn_with_replacement_from_all():
    done = run(driven(FedAST, concurrency=200, buffer_size=1), ("a",), 1, (1.0,) * 50)
    first = Counter(i for time, _, i in done.sent if time == 0)
    assert sum(first.values()) == 200
    assert max(first.values()) > 4, "200 balls in 50 bins"
    assert len(first) < 50 or min(first.values()) < 4


# ---- several tasks -------------------------------------------------------------------------------


def test_tasks_share_the_requests_and_every_one_keeps_its_own():
    strategy = driven(FedAST, concurrency=12, buffer_size=2, shares={"a": 3, "b": 1})
    done = run(strategy, rounds=60, cost={"a": 1.0, "b": 4.0})
    assert {x.name: x.requests for x in strategy.tasks.values()} == {"a": 9, "b": 3}
    flying = Counter()
    for kind, client, dispatch in zip(
        done.trace.kind, done.trace.client, done.trace.dispatch, strict=True
    ):
        if kind == Event.DISPATCH:
            flying[client, dispatch] += 1
        elif kind == Event.UPLOAD_END:
            del flying[client, dispatch]
        assert flying.total() <= 12
    assert done.w["a"] > 0
    assert done.w["b"] > 0


def test_the_buffer_follows_the_requests_by_their_ratio():
    strategy = driven(FedAST, concurrency=70, ratio=8, shares={"a": 4, "b": 1})
    run(strategy, rounds=5, clients=(1.0,) * 10)
    requests = {x.name: x.requests for x in strategy.tasks.values()}
    assert strategy.b == {name: -(-r // 8) for name, r in requests.items()}


def reach(task, w):
    return w[0] / 10  # accuracy 1 at w = 10


def test_a_task_that_reaches_its_target_ends_and_its_requests_go_to_the_others():
    strategy = driven(FedAST, concurrency=8, buffer_size=1, targets={"a": 0.5, "b": 2.0}, eta=1.0)
    done = run(strategy, rounds=10_000, accuracy=reach, cost={"a": 1.0, "b": 3.0})
    a, b = strategy.tasks["a"], strategy.tasks["b"]
    assert (a.done, b.done) == (True, True)
    end_of_a = next(time for time, _, w in done.log if w["a"][0] >= 5)
    assert b.requests == 8, "all of them, at its own end"
    later = [row for row in done.sent if row[0] >= end_of_a]
    assert {task for _, task, _ in later} == {"b"}
    assert sum(1 for time, _, _ in later if time == end_of_a) >= 4, "those of a, at once"
    # The clients of a were told to stop: nothing of a is trained any more.
    assert done.trace.counts[Event.CANCELLED] > 0
    assert done.w["a"] == pytest.approx(next(w["a"] for _, _, w in done.log if w["a"][0] >= 5))


def test_one_after_another_trains_the_first_task_alone_and_then_the_next():
    strategy = driven(
        FedAST,
        concurrency=4,
        buffer_size=2,
        targets={"a": 0.5, "b": 0.5},
        eta=1.0,
        one_after_another=True,
    )
    done = run(strategy, rounds=10_000, accuracy=reach)
    order = [task for _, task, _ in done.sent]
    assert order == sorted(order)
    assert set(order) == {"a", "b"}


def test_a_run_ends_when_every_task_has_its_versions():
    strategy = driven(FedAST, concurrency=4, buffer_size=1, rounds_per_task=7)
    done = run(strategy, rounds=10_000, tasks=("a", "b", "c"))
    assert [x.server.version for x in strategy.tasks.values()] == [7, 7, 7]
    assert done.log[-1][1] == 21


def test_an_unknown_task_in_targets_or_shares_is_refused():
    with pytest.raises(ConfigError, match=r"strategy\.targets names c; the tasks are a, b"):
        run(driven(FedAST, concurrency=4, targets={"c": 0.5}))
    with pytest.raises(ConfigError, match=r"strategy\.shares leaves out b"):
        run(driven(FedAST, concurrency=4, shares={"a": 1}))
    with pytest.raises(ConfigError, match="the evaluation has no 'f1/a'"):
        run(driven(FedAST, concurrency=4, targets={"a": 0.5}, metric="f1"), accuracy=reach)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: driven(FedAST, concurrency=0), "concurrency is 0"),
        (lambda: driven(FedAST, concurrency=2, ratio=0), "ratio is 0"),
        (lambda: driven(FedAST, concurrency=2, window=1), "window is 1"),
        (lambda: driven(FedAST, concurrency=2, allocation="greedy"), "allocation is 'greedy'"),
        (lambda: driven(FedAST, concurrency=2, shares={"a": 0}), "shares.a is 0"),
        (lambda: driven(FedAST, concurrency=2, client_lr={"a": -1}), "client_lr.a is -1"),
        (lambda: driven(SyncST, concurrency=2, first=0), "first is 0"),
        (
            lambda: driven(FedAST, concurrency=2, allocation="dynamic", one_after_another=True),
            "leaves nothing to allocate",
        ),
        (lambda: run(driven(FedAST, concurrency=1)), "at least the number of tasks, 2"),
        (
            lambda: run(driven(FedAST, concurrency=63, allocation="dynamic")),
            "at least ratio times tasks, 32 x 2",
        ),
        (lambda: Models(ArrayRecord({"w": Array(np.zeros(1))})), "'w' belongs to no task"),
    ],
)
def test_impossible_arguments_are_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


# ---- dynamic allocation --------------------------------------------------------------------------


def noisy(scale):
    """Changes of mean (1, 1, 1, 1) and given standard deviation in each task."""

    def change(task, client, dispatch, x):
        rng = np.random.default_rng([client, dispatch])
        return x + 1 + scale[task] * rng.normal(size=x.shape)

    return change


def test_dynamic_allocation_gives_requests_in_proportion_to_the_variance_of_updates():
    # V is the variance over the squared mean: 0.09 and 0.81 per entry, so 1 : 9 of 80 requests, in
    # blocks of 8.
    strategy = driven(FedAST, concurrency=80, ratio=8, allocation="dynamic", window=20, eta=1.0)
    run(strategy, rounds=130, clients=(1.0,) * 20, change=noisy({"a": 0.3, "b": 0.9}), size=200)
    assert {x.name: x.requests for x in strategy.tasks.values()} == {"a": 8, "b": 72}


def test_equal_tasks_keep_about_equal_requests():
    strategy = driven(FedAST, concurrency=80, ratio=8, allocation="dynamic", window=20, eta=1.0)
    run(strategy, rounds=130, clients=(1.0,) * 20, change=noisy({"a": 0.5, "b": 0.5}), size=200)
    assert {x.requests for x in strategy.tasks.values()} == {40}


def test_requests_move_in_blocks_and_their_sum_stays():
    strategy = driven(FedAST, concurrency=70, ratio=8, allocation="dynamic", window=5, eta=1.0)
    seen = []
    allot = strategy.allot
    strategy.allot = lambda requests: (allot(requests), seen.append(dict(requests)))
    tasks = ("a", "b", "c")
    change = noisy({"a": 0.1, "b": 1.0, "c": 3.0})
    run(strategy, tasks, 300, (1.0,) * 20, None, change, size=20)
    assert len(seen) > 3
    for requests in seen[1:]:
        assert sum(requests.values()) == 70
        assert min(requests.values()) >= 8
        assert sum(r % 8 != 0 for r in requests.values()) <= 1, "the rest of 70 is in one of them"


def test_a_larger_client_learning_rate_weighs_a_task_less():
    def requests(client_lr):
        strategy = driven(
            FedAST,
            concurrency=80,
            ratio=8,
            allocation="dynamic",
            window=20,
            client_lr=client_lr,
            eta=1.0,
        )
        run(strategy, rounds=130, clients=(1.0,) * 20, change=noisy({"a": 0.5, "b": 0.5}), size=200)
        return {x.name: x.requests for x in strategy.tasks.values()}

    assert requests({"a": 0.1, "b": 0.9}) == {"a": 72, "b": 8}


# ---- Sync-ST -------------------------------------------------------------------------------------


def test_a_round_of_sync_st_takes_as_long_as_its_slowest_client_and_averages():
    clients = (1.0, 2.0, 3.0, 5.0)
    done = run(
        driven(SyncST, concurrency=4), rounds=4, clients=clients, change=lambda t, i, k, x: x + i
    )
    assert [row[0] for row in done.log[1:]] == [5.0, 5.0, 10.0, 10.0]
    cohorts = [
        {t: [i for time, task, i in done.sent if (time, task) == (start, t)] for t in "ab"}
        for start in (0.0, 5.0)
    ]
    for cohort in cohorts:
        assert sorted(cohort["a"] + cohort["b"]) == [0, 1, 2, 3], "disjoint halves"
    for task in "ab":
        mean = sum(np.mean(cohort[task]) for cohort in cohorts)
        assert done.w[task] == pytest.approx([mean])


def test_sync_st_takes_the_first_updates_and_calls_off_the_rest():
    done = run(driven(SyncST, concurrency=4, first=1), rounds=4, clients=(1.0, 2.0, 3.0, 5.0))
    assert done.trace.counts[Event.CANCELLED] > 0
    assert done.trace.counts[Event.APPLIED] == 4
    assert done.log[-1][0] < 10.0


def test_sync_st_goes_on_without_clients_that_fail():
    script = {(i, 0): TaskFaults(crash_at=0.5) for i in range(3)}
    done = run(driven(SyncST, concurrency=4), rounds=4, faults=ScriptedFaults(script=script))
    assert done.trace.counts[Event.CRASH] == 3
    assert done.trace.counts[Event.APPLIED] >= 4


def test_sync_st_one_after_another_is_fedavg_on_each_task_in_turn():
    strategy = driven(SyncST, concurrency=4, targets={"a": 0.3, "b": 0.3}, one_after_another=True)
    done = run(strategy, rounds=1000, accuracy=reach)
    assert [task for _, task, _ in done.sent] == ["a"] * 12 + ["b"] * 12
    assert done.log[-1][0] == 6.0


# ---- dealing out ---------------------------------------------------------------------------------


def test_whole_numbers_are_dealt_by_largest_remainders():
    assert apportion(10, {"a": 1, "b": 1, "c": 1}) == {"a": 4, "b": 3, "c": 3}
    assert apportion(7, {"a": 0.5, "b": 0.3, "c": 0.2}) == {"a": 4, "b": 2, "c": 1}
    assert apportion(3, {"a": 0, "b": 0}) == {"a": 2, "b": 1}
    assert apportion(0, {"a": 5}) == {"a": 0}
