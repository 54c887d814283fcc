"""No slot leaks and no task is lost or used twice, through thousands of random faults.

A ledger beside the grid notes what became of every message, from what crosses the grid and its
control alone; the strategy's own count has to agree with it at the end of every instant. All
strategies driven by events are taken from the config folder.
"""

from __future__ import annotations

import gc
from collections import Counter
from pathlib import Path
from types import FunctionType, ModuleType

import numpy as np
import pytest
import torch
from every_strategy import PARTIAL, PUBLIC, RANKS, SPARSE, mostly_slow
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.common.constant import ErrorCode
from hydra import compose, initialize_config_module
from hydra.utils import get_class
from stand_ins import FakeExecutor, FixedWork

import fl
from fl.execution.contract import Result
from fl.flower.records import vector_record
from fl.randomness import generator
from fl.runs.making import make
from fl.simulation.grid import SimGrid
from fl.simulation.kernel.trace import Event
from fl.simulation.world.availability import ExponentialOnOff
from fl.simulation.world.faults import Faults, GilbertElliott
from fl.simulation.world.fleets import uniform
from fl.strategies.drivers.events.events import EventDriven
from fl.strategies.drivers.events.server import Update
from fl.strategies.drivers.exchange import Exchange

FOLDER = Path(fl.__file__).parent / "conf" / "strategy"
NUM_CLIENTS = 20


def event_driven():
    names = []
    for path in sorted(FOLDER.glob("[!_]*.yaml")):
        with initialize_config_module("fl.conf", version_base=None):
            target = compose("config", [f"strategy={path.stem}"]).strategy["_target_"]
        if issubclass(get_class(target), EventDriven):
            names.append(path.stem)
    return names


# These ask for more of a model than named arrays: its units, its loss, examples.
STRATEGIES = [name for name in event_driven() if name not in {*PARTIAL, *PUBLIC, *RANKS, *SPARSE}]
SLOTS = EventDriven.free_slots
MORE = {"sync_st that calls clients off": ("sync_st", {"first": 2})}
WITHOUT_ALL = {"min_fraction": 0.5, "min_available_nodes": 1}  # of a method that waits for all


def strategy_of(name):
    name, arguments = MORE.get(name, (name, WITHOUT_ALL if name == "proxskip" else {}))
    overrides = [f"strategy.{key}={value}" for key, value in arguments.items()]
    with initialize_config_module("fl.conf", version_base=None):
        overrides += [f"strategy={name}", f"num_clients={NUM_CLIENTS}"]
        config = compose("config", overrides)
    return make(config, "strategy").within(Exchange(proxy=Losses(), initial=drawn))


def drawn(j):
    """Returns initial model j of a strategy with several."""
    rng = generator(0, "initial", j)
    shapes = {"first/w": (3,), "second/w": (2, 2)}
    return ArrayRecord({n: Array(rng.normal(size=s).astype("f")) for n, s in shapes.items()})


class Losses:
    """Losses of a model of 7 numbers on the proxy sets of 4 clusters: distances to a point each."""

    flops = 1e6

    def __call__(self, x):
        return np.abs(x[:4].astype(float) - 0.1) + 1e-3


class Ledger:
    """What became of every message; refuses what cannot be."""

    def __init__(self) -> None:
        self.state = {}
        self.in_flight = {}  # to which node
        self.within_a_call = 0

    def sent(self, name, node):
        assert name not in self.state, f"{name} was sent twice"
        self.state[name], self.in_flight[name] = "in flight", node

    def turns(self, name, before, after):
        assert self.state[name] == before, f"{name} is {self.state[name]}, and becomes {after}"
        self.state[name] = after
        self.in_flight.pop(name, None)

    def names(self, state):
        return [name for name, is_ in self.state.items() if is_ == state]


class WatchedGrid(SimGrid):
    """A simulated grid that keeps a ledger of what crosses it."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.ledger = Ledger()
        ledger, control = self.ledger, self.control
        applied, discarded, cancel = control.applied, control.discarded, control.cancel
        at_once, rejected = control.applied_at_once, control.rejected

        def on_applied(name, *rest, **more):
            ledger.turns(name, "replied", "applied")
            applied(name, *rest, **more)

        def on_applied_at_once(names, metrics):
            for name in names:
                ledger.turns(name, "replied", "applied")
            at_once(names, metrics)

        def on_discarded(name, *rest):
            ledger.turns(name, "replied", "discarded")
            discarded(name, *rest)

        def on_rejected(name):
            ledger.turns(name, "replied", "rejected")
            rejected(name)

        def on_cancel(name):
            ledger.turns(name, "in flight", "cancelled")
            return cancel(name)

        control.applied, control.discarded, control.cancel = on_applied, on_discarded, on_cancel
        control.applied_at_once, control.rejected = on_applied_at_once, on_rejected

    def push_messages(self, messages):
        messages = list(messages)
        names = super().push_messages(messages)
        for name, message in zip(names, messages, strict=True):
            self.ledger.sent(name, message.metadata.dst_node_id)
        return names

    def send_and_receive(self, messages, *, timeout=None):
        messages = list(messages)  # of which the strategy has nothing to keep: they end in the call
        self.ledger.within_a_call += len(messages)
        return super().send_and_receive(messages, timeout=timeout)

    def pull_messages(self, message_ids):
        replies = super().pull_messages(message_ids)
        for reply in replies:
            after = "failed" if reply.has_error() else "replied"
            self.ledger.turns(reply.metadata.reply_to_message_id, "in flight", after)
        return replies


def answer(request):
    """A client that moves the model at random; sometimes it sends rubbish, or raises."""
    rng = generator(0, "answer", request.client, request.dispatch)
    fate = rng.random()
    if fate < 0.02:
        return Result(error=(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "the client's code raised"))
    arrays = {}
    for name, array in request.payload.content["arrays"].items():
        value = array.numpy()
        arrays[name] = value + 0.01 * rng.normal(size=value.shape).astype(value.dtype)
    last = list(arrays)[-1]
    if fate < 0.04:
        arrays[last] = np.full_like(arrays[last], np.nan)
    elif fate < 0.05:
        arrays[last] = arrays[last][:1]
    metrics = MetricRecord({"num-examples": 10, "train-loss": 1.0, "steps": 10, "accuracy": 0.5})
    k = sum(name.partition(".")[0] == "arrays" for name in request.payload.content)
    if "mixture-smoothing" in request.payload.content["config"]:
        metrics["mixture"] = rng.dirichlet(np.ones(k)).tolist()
    metrics["model"] = int(rng.integers(k + (k > 1 and fate > 0.98)))  # some name none
    content = RecordDict(
        {"arrays": ArrayRecord({k: Array(v) for k, v in arrays.items()}), "metrics": metrics}
    )
    told, numbers = request.payload.content, sum(array.size for array in arrays.values())
    for asked, sent in {"c": "delta_c", "scaling": "statistic"}.items():  # of SCAFFOLD, of SAVIC
        if asked in told:
            content[sent] = told[asked]
    for asked, sent in {"fedamd-anchor": "v", "coefficients": "gradient"}.items():
        if asked in told["config"]:
            drawn = rng.normal(size=numbers).astype(np.float32)
            content[sent] = vector_record(torch.from_numpy(drawn))
    return Result(content=RecordDict({"metrics": metrics}) if fate < 0.06 else content)


def plan(request, _):
    config = request.payload.content["config"]
    flops = 0.05e9 * config.get("local-steps", 10)
    return FixedWork(0.0, past_flops=flops) if "elapsed-s" in config else FixedWork(flops)


def stormy_grid(seed=0):
    fleet = uniform(
        NUM_CLIENTS,
        seed,
        speed_spread=20.0,
        jitter=0.3,
        latency_s=0.02,
        availability=ExponentialOnOff(NUM_CLIENTS, seed, mean_on_s=200.0, mean_off_s=50.0),
        faults=Faults(
            dropout=0.15,
            crash=0.1,
            message_loss=0.05,
            slowdown=GilbertElliott(p=0.3, r=0.5, factor=5.0),
            detection_s=3.0,
        ),
    )
    return WatchedGrid(fleet, FakeExecutor(answer), planner=plan)


class EnoughFaults(Exception):
    """The run has seen as many faults as the test asks for."""


def run_until(strategy, grid, num_faults, num_rounds=10**9):
    """Runs a strategy until so many faults happened or it ends, checking every instant."""
    dispatch = strategy.dispatch

    def watched(server):
        dispatch(server)
        tasks, expected = server.tasks, Counter(grid.ledger.in_flight.values())
        assert {task.message_id for task in tasks.open()} == set(grid.ledger.in_flight)
        if strategy.patience is None:
            assert len(tasks) == expected.total()
        assert {task.message_id for task in tasks} <= set(grid.ledger.in_flight)
        # Whoever has a task is busy, unless the task is lost; then it has brought an error.
        lost = Counter(grid.ledger.in_flight[name] for name in tasks._lost)
        assert all(tasks.busy(node) == n - lost[node] for node, n in expected.items())
        assert lost.total() == 0 or strategy.patience is not None
        if strategy.concurrency is not None:
            assert len(server.tasks) <= strategy.concurrency
        if type(strategy).timer is EventDriven.timer and type(strategy).free_slots is SLOTS:
            # Nobody waits for anything but replies: a free slot beside an idle client is a leak.
            most = NUM_CLIENTS if strategy.concurrency is None else strategy.concurrency
            assert len(server.tasks) >= most or not server.tasks.idle()
        if grid.trace.num_faults >= num_faults:
            raise EnoughFaults

    strategy.dispatch = watched
    try:
        strategy.start(grid, drawn(0), num_rounds=num_rounds, timeout=60.0)
    except EnoughFaults:
        pass
    else:
        assert num_rounds < 10**9, "the strategy stopped of its own accord"


def reachable(root, kind):
    """Returns the objects of a kind that can be reached from an object's attributes."""
    found, seen, stack = [], set(), [vars(root)]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, type | ModuleType | FunctionType | SimGrid):
            continue
        seen.add(id(item))
        if isinstance(item, kind):
            found.append(item)
        stack.extend(gc.get_referents(item))
    return found


def check_conservation(strategy, grid):
    ledger = grid.ledger
    count = Counter(ledger.state.values())
    ends = {"applied", "discarded", "rejected", "failed", "cancelled", "in flight", "replied"}
    assert set(count) <= ends
    assert count.total() + ledger.within_a_call == grid.trace.counts[Event.DISPATCH]
    used = grid.trace.counts
    assert count["applied"] == used[Event.APPLIED] + used[Event.MERGED]
    assert count["discarded"] == grid.trace.counts[Event.DISCARDED]
    assert count["rejected"] == grid.trace.counts[Event.REJECTED]
    # A reply that was neither used nor refused must lie in a buffer of the strategy.
    buffered = {update.task.message_id for update in reachable(strategy, Update)}
    lost = set(ledger.names("replied")) - buffered
    assert not lost, f"{len(lost)} replies are gone, such as {sorted(lost)[:3]}"
    assert count["applied"] > 0
    assert count["failed"] > 0


def test_the_config_folder_has_strategies_driven_by_events():
    assert {"fedasync", "fedbuff"} <= set(STRATEGIES)


@pytest.mark.parametrize("name", mostly_slow([*STRATEGIES, *MORE]))
def test_every_task_ends_once_and_no_slot_leaks(name):
    strategy, grid = strategy_of(name), stormy_grid()
    run_until(strategy, grid, 300)
    check_conservation(strategy, grid)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*STRATEGIES, *MORE])
def test_every_task_ends_once_through_ten_thousand_faults(name):
    strategy, grid = strategy_of(name), stormy_grid(seed=1)
    run_until(strategy, grid, 10_000)
    check_conservation(strategy, grid)


@pytest.mark.parametrize("name", mostly_slow(STRATEGIES))
def test_a_run_that_ends_leaves_no_reply_unaccounted_for(name):
    strategy, grid = strategy_of(name), stormy_grid(seed=2)
    # Of a strategy whose every arrival is a version, 7 would be over before anything has failed.
    run_until(strategy, grid, 10**9, num_rounds=70 if name == "async_diloco" else 7)
    check_conservation(strategy, grid)
