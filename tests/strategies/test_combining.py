"""Aggregators, and attacks that know them, without rounds; and with several models at once."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from hydra import compose, initialize_config_module
from quadratics import LR, run
from stand_ins import Client, FakeExecutor, FixedWork, driven, fleet_of

from fl import simulate
from fl.aggregation import CenteredClipping, FLTrust, Krum, Median, TrimmedMean
from fl.attacks import IPM, Attack, ConstantUpdate, Forged, Optimized, OwnSignFlip
from fl.errors import ConfigError
from fl.execution.contract import Result
from fl.flower.records import layout_of
from fl.runs.build import build
from fl.runs.evaluation import central_evaluation, task_evaluation
from fl.runs.experiment import app_of, initial_of
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event
from fl.strategies import (
    FAVAS,
    AsyncFedAvg,
    AsyncSGD,
    BackupWorkers,
    Exchange,
    FedAST,
    FedAsync,
    FedAvg,
    FedBuff,
    FedCompass,
    FedFix,
    ParameterServer,
    QuAFL,
    RennalaSGD,
    RingmasterASGD,
    SyncST,
)

CENTRES = (1.0, -2.0, 4.0, 0.5, 9.0)
LIAR = 2


def attacked(strategy, attack, *byzantine, **more):
    liars = frozenset(byzantine or (LIAR,))
    return strategy.within(Exchange(attack=attack, byzantine=liars, **more))


@dataclass
class Spy(Attack):
    """Sends zeros, and keeps what it was shown."""

    knowledge = "aggregation"
    seen: list = field(default_factory=list)

    def forge(self, honest, own, scene):
        self.seen.append((honest.copy(), own.copy(), scene))
        return Forged(np.zeros_like(own), {})


# ---- one model -----------------------------------------------------------------------------------


def test_a_full_buffer_moves_along_the_median_of_its_changes():
    n = len(CENTRES)
    strategy = driven(
        FedBuff,
        buffer_size=n,
        concurrency=n,
        server_optimizer=FedAvg(0.5),
        aggregator=Median(),
    )
    ran = run(strategy, CENTRES, [2.0] * n, num_rounds=12)
    w = [0.0]
    for _ in range(12):
        w.append(w[-1] + 0.5 * LR * (np.median(CENTRES) - w[-1]))
    np.testing.assert_allclose(np.array(ran.models)[:, 0], w, atol=1e-5)


def test_contacted_clients_and_the_server_meet_at_the_median_of_models():
    strategy = driven(
        QuAFL,
        contacted=5,
        local_steps=1,
        waiting_s=1.0,
        interaction_s=1.0,
        aggregator=Median(),
    )
    ran = run(strategy, CENTRES, [0.5] * 5, num_rounds=1, w0=2.0)
    models = [2.0 - LR * (2.0 - c) for c in CENTRES]
    assert ran.models[1] == pytest.approx((2.0 + 5 * np.median(models)) / 6)


def test_a_mean_that_is_chosen_is_the_mean_there_is():
    times = [1.0, 1.7, 2.9, 0.6, 1.1]
    for kind, more in ((FedBuff, {"buffer_size": 3}), (FedFix, {"num_clients": 5})):
        more |= {"interval_s": 0.8} if kind is FedFix else {}
        plain = run(driven(kind, concurrency=4, **more), CENTRES, times, num_rounds=20)
        robust = TrimmedMean(f=0)  # cuts nothing off
        same = driven(kind, concurrency=4, aggregator=robust, **more)
        ran = run(same, CENTRES, times, num_rounds=20)
        np.testing.assert_allclose(ran.models, plain.models, rtol=1e-5, atol=1e-5)
        assert ran.applied() == plain.applied()


def test_an_attack_that_knows_the_rule_forges_a_buffer_as_a_whole():
    n, spy = len(CENTRES), Spy()
    strategy = driven(FedBuff, buffer_size=n, concurrency=n, aggregator=Median())
    ran = run(attacked(strategy, spy), CENTRES, [1.0] * n, num_rounds=2)
    honest = [c for i, c in enumerate(CENTRES) if i != LIAR]
    (first, own, scene), *_ = spy.seen
    np.testing.assert_allclose(np.sort(first[:, 0]), LR * np.sort(honest), rtol=1e-5)
    assert own[:, 0] == pytest.approx(LR * CENTRES[LIAR])
    assert isinstance(scene.aggregator, Median)
    assert ran.models[1] == pytest.approx(np.median([*(LR * c for c in honest), 0.0]))
    assert ran.grid.trace.faults() == {"forged": 2}


def test_an_optimized_attack_moves_the_buffers_rule_further_than_its_line_does():
    n = len(CENTRES)

    def moved(attack):
        strategy = driven(FedBuff, buffer_size=n, concurrency=n, aggregator=TrimmedMean(f=1))
        strategy = strategy if attack is None else attacked(strategy, attack)
        return run(strategy, CENTRES, [1.0] * n, num_rounds=1).models[1][0]

    honest = LR * np.mean([c for i, c in enumerate(CENTRES) if i != LIAR])
    small = abs(moved(IPM(0.1)) - honest)
    assert abs(moved(Optimized(IPM(0.1))) - honest) >= small


def test_forged_updates_that_are_no_numbers_count_as_some_of_f():
    n = len(CENTRES)
    strategy = driven(FedBuff, buffer_size=n, concurrency=n, aggregator=TrimmedMean(f=1))
    ran = run(attacked(strategy, ConstantUpdate(np.nan)), CENTRES, [1.0] * n, num_rounds=1)
    honest = [c for i, c in enumerate(CENTRES) if i != LIAR]
    assert ran.models[1] == pytest.approx(LR * np.mean(honest))  # nothing is left to trim
    assert ran.grid.trace.faults() == {"forged": 1, "rejected": 1}


def test_more_of_them_than_f_leave_the_model_as_it_is():
    n = len(CENTRES)
    strategy = driven(FedBuff, buffer_size=n, concurrency=n, aggregator=TrimmedMean(f=1))
    ran = run(attacked(strategy, ConstantUpdate(np.nan), 1, 2), CENTRES, [1.0] * n, num_rounds=1)
    np.testing.assert_array_equal(ran.models[1], ran.models[0])
    assert ran.grid.trace.faults() == {"forged": 2, "rejected": 2, "no_step": 1}


def test_a_step_of_fewer_updates_than_the_rule_needs_leaves_the_model_as_it_is():
    # One client answers in the first interval, all five in the second.
    strategy = driven(FedFix, num_clients=5, interval_s=1.0, aggregator=Krum(f=1))
    ran = run(strategy, CENTRES, [0.9, 1.5, 1.5, 1.5, 1.5], num_rounds=2)
    np.testing.assert_array_equal(ran.models[1], ran.models[0])
    assert not np.array_equal(ran.models[2], ran.models[1])
    assert ran.grid.trace.faults() == {"no_step": 1}


def test_a_rule_that_goes_on_from_its_last_result_is_given_that():
    n, spy = len(CENTRES), Spy()
    strategy = driven(FedBuff, buffer_size=n, concurrency=n, aggregator=CenteredClipping(tau=9.0))
    ran = run(attacked(strategy, spy), CENTRES, [1.0] * n, num_rounds=3)
    steps = np.diff(np.array(ran.models), axis=0)
    references = [scene.reference for _, _, scene in spy.seen]
    np.testing.assert_array_equal(references[0], np.zeros(2))
    np.testing.assert_allclose(references[1:], steps[:2], rtol=1e-4)


POLLED = {"contacted": 3, "waiting_s": 1.0, "interaction_s": 1.0}
SINGLE = {
    FedAsync: {},
    AsyncFedAvg: {"num_clients": 4},
    AsyncSGD: {},
    RingmasterASGD: {},
    FedBuff: {"buffer_size": 1},
    QuAFL: POLLED | {"contacted": 1},
}


@pytest.mark.parametrize("kind", SINGLE)
def test_rules_that_step_by_single_updates_have_nothing_to_combine(kind):
    with pytest.raises(ConfigError, match="aggregator is Median"):
        driven(kind, aggregator=Median(), **SINGLE[kind])


@pytest.mark.parametrize("kind", SINGLE)
def test_against_single_updates_an_optimized_attack_sends_the_largest_factor_it_tries(kind):
    """Of 0, 1 and 3."""
    models = []
    for attack in (Optimized(IPM(), evaluations=3), IPM(epsilon=3.0)):
        n = SINGLE[kind].get("num_clients", len(CENTRES))
        own = SINGLE[kind] if kind is QuAFL else SINGLE[kind] | {"concurrency": n}
        strategy = attacked(driven(kind, **own), attack)
        ran = run(strategy, CENTRES[:n], [1.0, 1.7, 2.9, 0.6, 1.1][:n], num_rounds=15)
        assert ran.grid.trace.faults()["forged"]
        models.append(ran.models)
    np.testing.assert_array_equal(*models)


SEVERAL = {
    FedBuff: {},
    RennalaSGD: {"batch": 3},
    FedFix: {"num_clients": 4, "interval_s": 1.0},
    FedCompass: {"num_clients": 4},
    FAVAS: POLLED,
    QuAFL: POLLED,
    FedAST: {"concurrency": 8, "buffer_size": 4},
    SyncST: {"concurrency": 8},
}


@pytest.mark.parametrize("kind", SEVERAL)
def test_rules_that_combine_several_updates_say_so_and_take_an_aggregator(kind):
    strategy = driven(kind, aggregator=Median(), **SEVERAL[kind])
    assert strategy.robust
    with pytest.raises(ConfigError, match="FLTrust"):
        driven(kind, aggregator=FLTrust(), **SEVERAL[kind])


def test_a_buffer_that_the_rule_cannot_work_with_is_refused_before_anything_starts():
    with pytest.raises(ConfigError, match="needs n >= 2 f"):
        driven(FedBuff, buffer_size=4, aggregator=Krum(f=1))
    assert driven(FedBuff, buffer_size=4, aggregator=Krum(f=1), f=0).aggregator.f == 0


# ---- several models ------------------------------------------------------------------------------

SIZES = {"a": 3, "b": 5}


def of_two_tasks(strategy, clients=4, rounds=6):
    """Runs on clients that add to the model of a: 1, 2, ...; to that of b ten times as much."""
    fleet = fleet_of([Client() for _ in range(clients)])

    def answer(request):
        content = request.payload.content
        scale = {"a": 1.0, "b": 10.0}[content["config"]["task"]]
        x = content["arrays"]["w"].numpy() + np.float32(scale * (request.client + 1))
        metrics = MetricRecord({"num-examples": 1, "steps": 1})
        return Result(RecordDict({"arrays": ArrayRecord({"w": Array(x)}), "metrics": metrics}))

    grid = SimGrid(fleet, FakeExecutor(answer), planner=lambda *_: FixedWork(1.0))
    names = {f"{task}/w": Array(np.zeros(size, np.float32)) for task, size in SIZES.items()}
    result = strategy.start(grid, ArrayRecord(names), num_rounds=rounds, timeout=1e6)
    return {name[0]: array.numpy() for name, array in result.arrays.items()}, grid.trace


def test_an_attack_knows_of_a_task_what_its_clients_send_for_that_task():
    spy = Spy()
    strategy = driven(FedAST, concurrency=12, buffer_size=3, aggregator=Median())
    of_two_tasks(attacked(strategy, spy, 0), rounds=20)
    assert {rows.shape[1] for rows, _, _ in spy.seen} == set(SIZES.values())
    for honest, own, _ in spy.seen:
        scale = {3: 1.0, 5: 10.0}[honest.shape[1]]
        assert set(honest.flat) <= {np.float32(scale * (client + 1)) for client in (1, 2, 3)}
        np.testing.assert_array_equal(own, np.full_like(own, scale))


@pytest.mark.parametrize("kind", [FedAST, SyncST])
def test_who_lies_lies_in_every_task_by_its_own_change(kind):
    more = {"buffer_size": 1} if kind is FedAST else {}
    strategy = driven(kind, concurrency=4, eta=1.0, **more)
    w, trace = of_two_tasks(attacked(strategy, OwnSignFlip(2.0), 3), clients=4, rounds=8)
    honest, _ = of_two_tasks(strategy, clients=4, rounds=8)
    assert trace.faults()["forged"] > 0
    applied = np.array(trace.client)[np.array(trace.kind) == Event.APPLIED]
    if kind is FedAST:  # every update is a step, of either model
        said = {i: -2.0 * (i + 1) if i == 3 else i + 1.0 for i in range(4)}
        assert w["a"][0] + w["b"][0] / 10 == pytest.approx(sum(said[i] for i in applied))
    assert w["a"][0] < honest["a"][0] or w["b"][0] < honest["b"][0]


def test_a_median_of_a_task_is_not_moved_by_one_liar():
    strategy = driven(SyncST, concurrency=10, aggregator=Median())
    w, _ = of_two_tasks(attacked(strategy, ConstantUpdate(1e6), 3), clients=10, rounds=2)
    assert max(w["a"]) <= 10
    assert max(w["b"]) <= 100


@pytest.mark.parametrize("kind", [FedAST, SyncST])
def test_a_forged_update_of_a_task_is_thrown_out_of_its_versions(kind):
    more = {"buffer_size": 5} if kind is FedAST else {}
    moved = {}
    for F in (None, Krum(f=1)):
        strategy = driven(kind, concurrency=12, eta=1.0, aggregator=F, **more)
        strategy = attacked(strategy, ConstantUpdate(1e6), 3)
        moved[F], trace = of_two_tasks(strategy, clients=12, rounds=6)
        assert trace.faults()["forged"] > 0
    assert max(x.max() for x in moved.pop(None).values()) > 1e4
    (robust,) = moved.values()
    # Every version adds what one of the honest clients does to that task's model.
    for task, scale in (("a", 1.0), ("b", 10.0)):
        steps = robust[task] / scale
        assert (steps == steps.round()).all()
        assert steps.max() <= 6 * 12


def test_a_version_of_a_task_is_what_the_aggregator_makes_of_its_buffer():
    F = Median()
    strategy = driven(FedAST, concurrency=2, buffer_size=3, eta=0.5, aggregator=F)
    made = []
    step = strategy.rule.step

    class Spied(FedAST):
        def step(self, state, updates):
            made.append((state.w, np.stack([u.delta for u in updates]), step(state, updates).w))
            return step(state, updates)

    strategy.rule = Spied(buffer_size=3, eta=0.5)
    of_two_tasks(strategy, rounds=4)
    assert len(made) == 4
    for w, deltas, after in made:
        np.testing.assert_allclose(after, w + np.float32(0.5) * F(deltas), rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "more", "refused"),
    [
        (FedAST, {"concurrency": 12, "buffer_size": 4}, True),
        (FedAST, {"concurrency": 12, "buffer_size": 5}, False),
        (FedAST, {"concurrency": 12, "ratio": 1}, False),  # each of the two has 6 requests
        (FedAST, {"concurrency": 8, "ratio": 1}, True),  # and 4 here, although there are 8
        (FedAST, {"concurrency": 8, "ratio": 1, "one_after_another": True}, False),
        (FedAST, {"concurrency": 12}, True),  # a buffer of 1
        (SyncST, {"concurrency": 9}, True),
        (SyncST, {"concurrency": 10}, False),
        (SyncST, {"concurrency": 10, "first": 4}, True),
        (SyncST, {"concurrency": 12, "shares": {"a": 1, "b": 8}}, True),
    ],
)
def test_too_few_updates_of_any_task_are_refused_before_anything_starts(kind, more, refused):
    strategy = driven(kind, aggregator=Krum(f=1), **more)
    layouts = {
        task: layout_of(ArrayRecord({"w": Array(np.zeros(n, np.float32))}))
        for task, n in SIZES.items()
    }
    if not refused:
        strategy.within(Exchange(layouts=layouts))
        return
    with pytest.raises(ConfigError, match="Krum"):
        strategy.within(Exchange(layouts=layouts))
    with pytest.raises(ConfigError, match="Krum"):
        of_two_tasks(strategy)


def test_a_buffer_that_shrinks_keeps_as_many_as_the_aggregator_needs():
    # With ratio 2 a task of 10 requests has a buffer of 5, and one that loses some a smaller one.
    strategy = driven(FedAST, concurrency=20, ratio=2, aggregator=Krum(f=1))
    of_two_tasks(strategy, clients=20, rounds=2)
    strategy.allot({"a": 18, "b": 2})
    server = strategy.tasks["a"].server
    strategy.dispatch(server)
    assert strategy.b["b"] >= 5


@pytest.mark.parametrize("aggregator", [None, Median()])
def test_statistics_move_by_what_clients_change_of_them_whatever_the_learning_rate(aggregator):
    fleet = fleet_of([Client() for _ in range(5)])

    def answer(request):
        arrays = request.payload.content["arrays"]
        change = np.float32(request.client + 1)
        made = {name: Array(x.numpy() + change) for name, x in arrays.items()}
        metrics = MetricRecord({"num-examples": 1, "steps": 1})
        return Result(RecordDict({"arrays": ArrayRecord(made), "metrics": metrics}))

    zeros = np.zeros(2, np.float32)
    start = ArrayRecord({"w": Array(zeros), "bn.running_mean": Array(zeros)})
    several = {f"a/{name}": array for name, array in start.items()}
    for made, initial in (
        (ParameterServer(BackupWorkers(eta=0.1), aggregator=aggregator), start),
        (driven(SyncST, concurrency=5, eta=0.1, aggregator=aggregator), ArrayRecord(several)),
    ):
        grid = SimGrid(fleet, FakeExecutor(answer), planner=lambda *_: FixedWork(1.0))
        result = made.start(grid, initial, num_rounds=1, timeout=1e6)
        w, mean = (array.numpy() for array in result.arrays.values())
        np.testing.assert_allclose(w, 0.1 * 3.0, rtol=1e-6)  # mean and median of 1, ..., 5
        np.testing.assert_allclose(mean, 3.0, rtol=1e-6)


QUICK = [
    "strategy=fedast",
    "strategy.rule.buffer_size=2",
    "fleet=uniform",
    "executor=serial",
    "progress=false",
    "num_clients=6",
    "num_rounds=4",
]


def learnt(*overrides):
    with initialize_config_module("fl.conf", version_base=None):
        experiment = build(compose("config", [*QUICK, *overrides]))

    def server(grid, context, recorder):
        initial = initial_of(experiment.tasks)
        result = experiment.strategy.start(grid, initial, num_rounds=4, timeout=1e4)
        recorder.final(result.arrays)

    ran = simulate(server, app_of(experiment), experiment.fleet, executor="serial", progress=False)
    return {name: array.numpy() for name, array in ran.arrays.items()}, ran


def test_models_of_several_tasks_arrive_over_compressed_links_each_by_its_own_layout():
    plain, alone = learnt()
    exact, packed = learnt("compressor=none")
    for name, array in plain.items():
        np.testing.assert_allclose(exact[name], array, rtol=1e-4, atol=1e-5)
    _, coarse = learnt("compressor=ef_topk_int8", "compressor@downlink=ef21")
    up = [ran.summary["totals"]["bytes_up"] for ran in (alone, packed, coarse)]
    assert up[2] < 0.2 * up[0]
    assert coarse.trace.faults() == {}


@pytest.mark.parametrize("compressor", ["ef_topk_int8", "ef21"])
def test_forged_updates_of_a_task_go_through_its_own_encoder(compressor):
    _, ran = learnt("attack=ipm", "num_byzantine=2", f"compressor={compressor}")
    forged = np.array(ran.trace.kind) == Event.FORGED
    liars = set(np.array(ran.trace.client)[forged])
    assert 1 <= len(liars) <= 2
    assert "rejected" not in ran.trace.faults()


def test_data_of_every_task_is_poisoned():
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", [*QUICK, "attack=label_flip", "num_byzantine=2"])
    experiment = build(config)
    for task in experiment.tasks.values():
        dirty, clean = task.app.data.train.y, task.data.train.y
        assert 0 < np.mean(np.asarray(dirty) != np.asarray(clean)) < 1


def composed(*overrides):
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", [*QUICK, *overrides])


BACKDOOR = "attack@tasks.digits.attack=backdoor"


def test_a_task_is_poisoned_by_an_attack_of_its_own_and_the_others_are_not():
    config = composed(BACKDOOR, "tasks.digits.attack.value=16", "num_byzantine=2")
    experiment = build(config)
    digits, synthetic = experiment.tasks["digits"], experiment.tasks["synthetic"]
    assert synthetic.app.data is synthetic.data
    assert synthetic.backdoored is None
    changed = np.asarray(digits.app.data.train.x) != np.asarray(digits.data.train.x)
    marked = np.asarray(digits.app.data.train.x)[changed]
    assert marked.size
    assert (marked == 16).all()
    assert (np.asarray(digits.backdoored.y) == 0).all()
    lying = experiment.strategy.exchange.byzantine
    rows = np.flatnonzero(changed.reshape(len(changed), -1).any(axis=1))
    assert set(rows) <= set(np.concatenate([digits.data.partitions[i] for i in lying]))


def test_an_attack_of_a_tasks_own_takes_the_place_of_that_of_all():
    config = composed("attack=label_flip", BACKDOOR, "num_byzantine=2")
    experiment = build(config)
    digits, synthetic = experiment.tasks["digits"], experiment.tasks["synthetic"]
    assert digits.backdoored is not None
    flipped = np.asarray(synthetic.app.data.train.y) != np.asarray(synthetic.data.train.y)
    assert flipped.any()
    with_forging = build(composed("attack=ipm", BACKDOOR, "num_byzantine=2"))
    assert isinstance(with_forging.strategy.exchange.attack, IPM)
    assert with_forging.tasks["digits"].backdoored is not None


def test_the_success_of_a_backdoor_is_measured_per_model_and_averaged_over_those_that_have_one():
    experiment = build(composed(BACKDOOR, "num_byzantine=2"))
    digits = experiment.tasks["digits"]
    found = dict(task_evaluation(experiment)(0, initial_of(experiment.tasks)))
    alone = dict(central_evaluation(digits)(0, digits.initial()))
    assert found["attack_success_rate/digits"] == alone["attack_success_rate"]
    assert found["attack_success_rate"] == alone["attack_success_rate"]
    assert "attack_success_rate/synthetic" not in found
    assert found["accuracy"] == (found["accuracy/digits"] + found["accuracy/synthetic"]) / 2


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["attack=backdoor"], "attack", "tasks.synthetic"),
        (["attack@tasks.synthetic.attack=backdoor"], "tasks.synthetic.attack", "60"),
        ([BACKDOOR, "tasks.digits.attack.target=10"], "tasks.digits.attack.target", "10"),
        (["attack@tasks.digits.attack=ipm"], "tasks.digits.attack._target_", "fl.attacks.IPM"),
        ([BACKDOOR, "num_byzantine=0"], "num_byzantine", "0"),
        (
            [BACKDOOR, "target.metric=attack_success_rate/synthetic"],
            "target.metric",
            "attack_success_rate/synthetic",
        ),
    ],
)
def test_an_attack_that_does_not_fit_a_tasks_data_is_refused(overrides, key, value):
    with pytest.raises(ConfigError) as refused:
        build(composed("num_byzantine=2", *overrides))
    assert str(refused.value).startswith(key)
    assert value in str(refused.value)
