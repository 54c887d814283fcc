"""Rounds as arrays leave behind what rounds of messages do, to the last bit."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict
from stand_ins import Scripted, ScriptedFaults

from fl.aggregation import Median
from fl.clients import Sgd, TrainingApp
from fl.data import Examples, FederatedData
from fl.data.federated import Partitions
from fl.execution import SerialExecutor
from fl.execution.contract import CohortRequest, Payload, Request, RunInfo, Workload
from fl.flower.records import model_record
from fl.models import LogisticRegression
from fl.randomness import SEED_KEY
from fl.selection import PowerOfChoice
from fl.simulation.cohorts import needs_events
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.links import Links, ServerLink
from fl.simulation.world.availability import Always, Diurnal, ExponentialOnOff
from fl.simulation.world.devices import Devices
from fl.simulation.world.faults import Faults, GilbertElliott
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.networks import Households
from fl.strategies import FedAvg, FedAvgM, Rounds
from fl.strategies.drivers.rounds import foreseen

SHAPE, CLASSES = (3,), 2
SIZES = [0, 1, 5, 5, 5, 9, 40]


@cache
def app(lr: float = 0.1, **given: Any) -> TrainingApp:
    rng = np.random.default_rng(7)
    n = sum(SIZES)
    some = Examples(rng.standard_normal((n, *SHAPE)).astype(np.float32), rng.integers(0, 2, n))
    data = FederatedData(
        name="toy",
        train=some,
        test=some,
        partitions=Partitions.contiguous(SIZES),
        num_classes=CLASSES,
        input_shape=SHAPE,
    )
    options: dict[str, Any] = {"batch_size": 4, "train": False, **given}
    return TrainingApp(model, data, Sgd(lr), **options)


def model() -> LogisticRegression:
    return LogisticRegression(SHAPE, CLASSES)


def drawn_fleet(seed: int, n: int | None = None) -> Fleet:
    """Returns a fleet of which every property is drawn, among them those that make ties."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40)) if n is None else n
    alike = rng.random() < 0.2

    def column(low: float, high: float) -> Any:
        return np.full(n, float(low)) if alike else rng.uniform(low, high, n)

    def maybe(value: float) -> float:
        return value if rng.random() < 0.5 else 0.0

    down, up = column(1e4, 1e6), column(1e3, 1e6)
    varies = rng.random() < 0.5
    availability: Any = Always(n)
    if (kind := rng.random()) < 0.4:
        availability = ExponentialOnOff(n, seed, rng.uniform(0.5, 50), rng.uniform(0.5, 5))
    elif kind < 0.6:
        availability = Diurnal(n, seed, low=0.3, high=0.6, period_s=rng.uniform(1, 100))
    return Fleet(
        name="drawn",
        seed=seed,
        devices=Devices(
            kind=np.zeros(n, np.int16),
            kinds=("device",),
            flops=10 ** column(2, 5),
            memory_bytes=np.full(n, 1e9),
            idle_w=column(0.1, 1),
            compute_w=column(1, 5),
            radio_w=column(0.5, 2),
            jitter=maybe(0.3),
        ),
        links=Links(
            down_bps=np.where(rng.random(n) < 0.1, np.inf, down),
            up_bps=up,
            latency_s=column(0.01, 0.3) * (rng.random() < 0.8),
            loss=np.where(rng.random(n) < 0.3, 0.01, 0.0),
            down_sigma_bps=0.4 * down * (rng.random(n) < 0.7) if varies else None,
            up_sigma_bps=0.4 * up if varies else None,
        ),
        server=ServerLink(
            down_bps=math.inf if rng.random() < 0.5 else rng.uniform(1e4, 1e7),
            up_bps=math.inf if rng.random() < 0.5 else rng.uniform(1e4, 1e7),
            latency_s=maybe(0.02),
        ),
        availability=availability,
        faults=Faults(
            dropout=maybe(0.2),
            crash=maybe(0.2),
            message_loss=maybe(0.1),
            slowdown=GilbertElliott(0.2, 0.5, 3.0) if rng.random() < 0.3 else None,
            detection_s=None if rng.random() < 0.5 else rng.uniform(0.1, 5),
        ),
        prefetch=bool(rng.random() < 0.2),
    )


def asked(request: Request) -> list[tuple[int, int]]:
    """Returns whom a request asks, and for the how-manieth time."""
    if isinstance(request, CohortRequest):
        return list(zip(request.clients.tolist(), request.dispatches.tolist(), strict=True))
    return [(request.client, request.dispatch)]


class Left:
    """What a run leaves behind, and how many of its rounds were arrays."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        arrays: bool,
        seed: int = 0,
        trains: bool = False,
        client: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        rng = np.random.default_rng(seed)
        rule: Any = FedAvgM(beta=0.9) if rng.random() < 0.3 else FedAvg()
        timeout = float(rng.choice([3.0, 60.0, 600.0]))
        options = {"fraction_train": float(rng.choice([0.4, 1.0])), "min_train_nodes": 1, **options}
        client_app, run = (
            app(train=trains, **(client or {})),
            RunInfo(seed, len(SIZES), {SEED_KEY: seed}),
        )
        executor = SerialExecutor()
        executor.start(client_app, run)
        self.waves: list[Any] = []  # what trains together decides the last bits of models
        submit = executor.submit

        def submitting(wave: Sequence[Request]) -> None:
            self.waves.append([pair for request in wave for pair in asked(request)])
            submit(wave)

        executor.submit = submitting  # type: ignore[method-assign]
        self.applied: list[Any] = []
        self.steps: list[Any] = []

        def plan(request: Request, seconds_per_flop: float) -> Workload:
            partition = request.client % len(SIZES)
            return client_app.plan(
                request.payload, request.message_type, partition, seconds_per_flop
            )

        grid = SimGrid(
            fleet,
            executor,
            planner=plan,
            foreseen=(client_app, run) if arrays else None,
            on_applied=lambda *told: self.applied.append(told),
            on_used=lambda metrics, which: self.applied.extend(
                (0, metrics[i], False) for i in which.tolist()
            ),
            on_step=lambda why, model: self.steps.append((str(why), grid.clock.now())),
        )
        self.rounds = 0
        taken = grid.cohorts._keep

        def keep(*what: Any) -> None:
            self.rounds += 1
            taken(*what)

        grid.cohorts._keep = keep  # type: ignore[method-assign]
        rounds = options.pop("num_rounds", 4)
        strategy = Rounds(rule, seed=seed, retry_s=1.0, **options)
        self.needs_messages = ""
        needs, changes = foreseen.needs_messages, foreseen.needs_changes

        def needs_messages(strategy: Rounds, server: Any) -> str:
            self.needs_messages = needs(strategy, server) or changes(strategy)
            return needs(strategy, server)

        self.model: Any = None
        initial, ended = model_record(client_app.layout, model()), ""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(foreseen, "needs_messages", needs_messages)
            try:
                result = strategy.start(grid, initial, num_rounds=rounds, timeout=timeout)
                self.model = {k: array.data for k, array in result.arrays.items()}
            except Exception as error:
                ended = repr(error)
        engine, trace = grid.engine, grid.trace
        self.left = {
            "ended": ended,
            "trace": trace.sha256(),
            "events": [(t, k.name) for t, k in zip(trace.time.tolist(), trace.kinds, strict=True)],
            "faults": (trace.faults(), trace.num_faults, trace.came_too_late()),
            "now": engine.queue.now,
            "bytes": (engine.bytes_down, engine.bytes_up),
            "energy": (engine.energy_j, engine.busy_s),
            "counts": (grid.client_updates, grid.train_messages, engine.in_flight),
            "answers": dict(grid.control.answers),
            "sent": grid._mailbox.dispatches,
            "applied": self.applied,
            "steps": self.steps,
            "model": self.model,
            "waves": self.waves if trains else None,  # the others' answers are not made at all
        }


def both(seed: int, fleet: Callable[[int], Fleet] = drawn_fleet, **options: Any) -> int:
    """Runs the same rounds in both ways, and returns how many were arrays."""
    # Each has a fleet of its own: availabilities and slow spells remember where they are.
    arrays = Left(fleet(seed), arrays=True, seed=seed, **options)
    events = Left(fleet(seed), arrays=False, seed=seed, **options)
    assert events.rounds == 0
    for what, value in events.left.items():
        assert arrays.left[what] == value, (seed, what)
    return arrays.rounds


@pytest.mark.parametrize("seeds", [range(30)])
def test_rounds_as_arrays_are_those_of_the_event_engine_to_the_last_bit(seeds: range) -> None:
    rounds = [both(seed) for seed in seeds]
    assert sum(rounds) > 2 * len(seeds)  # of 4 each: most could be had as arrays


@pytest.mark.parametrize("seeds", [range(100, 110)])
def test_rounds_that_train_as_arrays_are_those_of_the_event_engine_to_the_last_bit(
    seeds: range,
) -> None:
    rounds = [both(seed, trains=True, client={"batching": "on"}) for seed in seeds]
    assert sum(rounds) > 2 * len(seeds)


@pytest.mark.parametrize(
    "options",
    [
        {"aggregator": Median()},
        {"noise_scale": 0.9},
        {"weighted_by_key": "steps"},
    ],
    ids=str,
)
def test_what_looks_at_each_change_is_had_as_arrays_where_clients_train(
    options: dict[str, Any],
) -> None:
    assert sum(both(seed, trains=True, **options) for seed in range(4, 8)) > 4


def test_rounds_are_made_of_messages_once_an_answer_could_not_be_used() -> None:
    def left(arrays: bool) -> Left:
        return Left(drawn_fleet(4), arrays=arrays, seed=4, trains=True, client={"lr": 3.4e38})

    arrays = left(True)
    events = left(False)
    assert {**arrays.left, "waves": arrays.left["waves"][1:]} == events.left  # one in vain
    assert arrays.left["faults"][0]["rejected"] > 0
    assert arrays.rounds < 2


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_many_rounds_that_train_as_arrays_are_those_of_the_event_engine(part: int) -> None:
    begin = 10_000 + 200 * part
    rounds = [
        both(seed, trains=True, client={"batching": "on"}) for seed in range(begin, begin + 200)
    ]
    assert sum(rounds) > 400


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_many_rounds_as_arrays_are_those_of_the_event_engine(part: int) -> None:
    rounds = [both(seed) for seed in range(1000 + 500 * part, 1500 + 500 * part)]
    assert sum(rounds) > 1000


def test_more_failures_at_once_than_would_end_a_run_one_by_one_are_a_round() -> None:
    """All that drop out without a word expire in one instant, after the last that answers."""

    def fleet(seed: int) -> Fleet:
        drawn = drawn_fleet(seed, n=2_600)
        return replace(drawn, availability=Always(2_600), faults=Faults(dropout=0.6))

    seed = 4  # whose fleet is quick
    assert both(seed, fleet, fraction_train=1.0, min_fraction=0.0, num_rounds=1) == 1


def test_columns_are_the_numbers_that_clients_get_one_by_one() -> None:
    for seed in range(20):
        fleet = drawn_fleet(seed, n=300)
        clients = np.random.default_rng(seed).permutation(300)[:200].astype(np.int64)
        tasks = clients % 5
        flops = np.linspace(0, 1e5, 200)
        pairs = list(zip(clients.tolist(), tasks.tolist(), strict=True))
        down, up = fleet.down_caps(clients, tasks), fleet.up_caps(clients, tasks)
        assert down.tolist() == [fleet.down_cap(*pair) for pair in pairs]
        assert up.tolist() == [fleet.up_cap(*pair) for pair in pairs]
        seconds = fleet.all_compute_seconds(clients, tasks, flops)
        one_by_one = zip(pairs, flops.tolist(), strict=True)
        assert seconds.tolist() == [fleet.compute_seconds(*p, f) for p, f in one_by_one]
        faults = fleet.faults.draw_all(fleet.seed, clients, tasks)
        for i, pair in enumerate(pairs):
            drawn = fleet.faults.draw(fleet.seed, *pair)
            for name in ("dropout_at", "crash_at"):
                at = getattr(faults, name)[i].item()
                assert (None if math.isnan(at) else at) == getattr(drawn, name)
            for name in ("lose_download", "lose_upload", "slowdown"):
                assert getattr(faults, name)[i] == getattr(drawn, name)
        for t in (0.0, 7.3, 40.0):
            changes = fleet.availability.next_changes(clients, t)  # type: ignore[attr-defined]
            fresh = drawn_fleet(seed, n=300).availability
            assert changes.tolist() == [fresh.next_change(i, t) for i, _ in pairs]


def test_what_takes_events_is_told() -> None:
    run = RunInfo(0, len(SIZES), {SEED_KEY: 0})
    fleet = replace(drawn_fleet(1, n=3), availability=Always(3), faults=Faults())
    told = (app(), run)
    assert needs_events(fleet, told, runtime=False) == ""
    assert "does not say" in needs_events(fleet, None, runtime=False)
    assert "runtime" in needs_events(fleet, told, runtime=True)
    records = replace(fleet, availability=Scripted(3, {}))
    assert "Scripted" in needs_events(records, told, runtime=False)
    scripted = replace(fleet, faults=ScriptedFaults())
    assert "ScriptedFaults" in needs_events(scripted, told, runtime=False)
    network = replace(fleet, network=Households(size=3))
    assert "network" in needs_events(network, told, runtime=False)
    payload = Payload(RecordDict({"arrays": model_record(app().layout, model())}))
    assert app().foresees(payload) == ""
    assert app(train=True).foresees(payload) == "clients train"


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, ""),
        ({"aggregator": Median()}, "aggregator"),
        ({"selection": PowerOfChoice(candidates=40)}, "selection"),
        ({"over_selection": 1.5}, "too late"),
        ({"fraction_evaluate": 0.5}, "evaluate"),
        ({"noise_scale": 0.9}, "noise_scale"),
        ({"weighted_by_key": "steps"}, "weigh"),
    ],
)
def test_rounds_that_look_at_replies_are_messages(options: dict[str, Any], why: str) -> None:
    left = Left(drawn_fleet(4), arrays=True, **options)
    assert left.left["ended"] == ""
    assert (left.rounds > 0) == (why == "")
    assert why in left.needs_messages
