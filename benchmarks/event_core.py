"""Events per second of the simulator's core, and tasks per second of its grid, without training.

    python benchmarks/event_core.py [--quick] [--clients 1000 100000 1000000] [--out FILE]

Three layers, for populations of different size, and beside them what bounds them:

    heap     a bare `heapq` that pops the next entry and pushes another
    queue    `EventQueue` with an action that schedules the next; as many pending as clients, after
             delays from several distributions; every event that was pending runs, and the next two
    engine   tasks through download, compute and upload on a `mobile` fleet, with their trace; 1,000
             in flight, the clients drawn from the whole population
    flower   the same with `runtime=flower`, whose polls are events too
    grid     the same through `SimGrid`, push_messages and pull_messages, with a model of four
             arrays and a configuration down, the model and three metrics up; an executor that has
             every answer ready
    client   the same with a no-op ClientApp in the serial executor
    strategy stock FedAvg over 1,000 clients a round on that: Flower's own records and aggregation
             are most of it

An event is one that the queue runs; a task causes five to seven.
"""

from __future__ import annotations

import contextlib
import gc
import heapq
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any

import report

from fl.execution.contract import Request, Result, RunInfo
from fl.execution.executor import Executor
from fl.execution.garbage import quick_garbage_collection
from fl.randomness import SEED_KEY, generator
from fl.simulation.kernel.dispatch import Dispatch
from fl.simulation.kernel.engine import Engine
from fl.simulation.kernel.events import EventQueue, Priority
from fl.simulation.kernel.trace import Event, Trace
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.runtime import Runtime

IN_FLIGHT = 1_000
PAYLOAD_BYTES = 4_000
FLOPS = 1e9


def quiet_fleet(clients: int) -> Fleet:
    """Returns phones that are always there and never fail, so that every task ends."""
    from fl.simulation.world.availability import Always
    from fl.simulation.world.faults import Faults
    from fl.simulation.world.fleets import mobile

    return mobile(clients, seed=0, availability=Always(clients), faults=Faults())


def bare_heap(pending: int, seconds: float) -> float:
    """Returns pops (and pushes) per second of `heapq` with so many entries."""
    rng = random.Random(0)
    heap: list[tuple[float, int]] = [(rng.random(), i) for i in range(pending)]
    heapq.heapify(heap)
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(1000):
            now, i = heapq.heappop(heap)
            heapq.heappush(heap, (now + rng.random(), i))
        count += 1000
    return count / (time.perf_counter() - began)


GOALS = {"engine events": 200_000.0, "grid tasks": 8_000.0}  # a second

DELAYS: dict[str, Callable[[random.Random], float]] = {
    "uniform": lambda rng: rng.random(),
    "exponential": lambda rng: rng.expovariate(1.0),
    "two kinds": lambda rng: 0.01 * rng.random() if rng.random() < 0.9 else 10 + rng.random(),
    "equal": lambda rng: 1.0,
}


def queue(pending: int, seconds: float, delays: str) -> float:
    """Returns events per second of `EventQueue` with so many scheduled."""
    rng, events = random.Random(0), EventQueue()
    delay = cycle([DELAYS[delays](rng) for _ in range(100_003)]).__next__  # drawn beforehand

    def action(client: int) -> None:
        events.schedule(events.now + delay(), Priority.PROGRESS, action, client)

    for client in range(pending):
        events.schedule(delay(), Priority.PROGRESS, action, client)
    gc.collect()
    began = time.perf_counter()
    # The work on far events comes in waves: whole ones are measured.
    while time.perf_counter() - began < seconds or events.processed < 3 * pending:
        limit = events.processed + 1000
        while events.processed < limit:
            events.run_instant()
    return events.processed / (time.perf_counter() - began)


class Clients:
    """A host for the engine whose tasks take a device's time and train nothing."""

    def __init__(self, fleet: Fleet, runtime: Runtime | None = None) -> None:
        self.fleet = fleet
        self.engine = Engine(fleet, Trace(), runtime)
        self.engine.host = self
        self.replies = 0
        self._numbers: dict[int, int] = {}
        # Drawn beforehand: what is measured is the engine.
        self._order = cycle(generator(0, "order").integers(len(fleet), size=200_000).tolist())

    def dispatch(self) -> None:
        """Sends one more task to some client."""
        client = next(self._order)
        number = self._numbers.get(client, 0)
        self._numbers[client] = number + 1
        faults = self.fleet.faults.draw(self.fleet.seed, client, number)
        nothing: Any = None  # no message goes with it
        self.engine.send(
            Dispatch("", client, number, PAYLOAD_BYTES, faults, math.inf, nothing, nothing)
        )

    def compute_seconds(self, dispatch: Dispatch) -> float:
        """Returns the time of a fixed number of FLOPs."""
        return self.fleet.compute_seconds(dispatch.client, dispatch.number, FLOPS)

    def computed(self, dispatch: Dispatch) -> int:
        """Returns the size of a reply."""
        return PAYLOAD_BYTES

    def replied(self, dispatch: Dispatch) -> None:
        """Sends the next task."""
        self.replies += 1
        self.dispatch()

    def failed(self, dispatch: Dispatch, kind: Event) -> None:
        """Sends the next task."""
        self.dispatch()

    def server_learns(self, dispatch: Dispatch, kind: Event) -> None:
        """Does nothing."""


def flower_runtime() -> Runtime:
    """Returns `runtime=flower`."""
    from hydra import compose, initialize_config_module
    from hydra.utils import instantiate

    with initialize_config_module("fl.conf", version_base=None):
        made: Runtime = instantiate(compose("config", ["runtime=flower"]).runtime)
    return made


def engine(fleet: Fleet, seconds: float, runtime: Runtime | None = None) -> tuple[float, float]:
    """Returns events and tasks per second."""
    clients = Clients(fleet, runtime)
    for _ in range(IN_FLIGHT):
        clients.dispatch()
    events = clients.engine.queue
    began, before = time.perf_counter(), events.processed
    while time.perf_counter() - began < seconds:
        for _ in range(100):
            events.run_instant()
    took = time.perf_counter() - began
    return (events.processed - before) / took, clients.replies / took


def runtime_costs(fleet: Fleet, turns: int, events: int = 20_000) -> dict[str, float]:
    """Returns what `runtime=flower` costs of events and of tasks per second, as shares.

    Both runtimes take turns, in processor time, and the fastest of each counts: what else the
    machine does makes some turns slower, and none faster.
    """
    fastest = {"ideal": (0.0, 0.0), "flower": (0.0, 0.0)}
    runtimes = {"ideal": None, "flower": flower_runtime()}
    for _ in range(turns):
        for name, runtime in runtimes.items():
            clients = Clients(fleet, runtime)
            for _ in range(IN_FLIGHT):
                clients.dispatch()
            queue = clients.engine.queue
            began, before = time.process_time(), queue.processed
            while queue.processed < before + events:
                queue.run_instant()
            took = time.process_time() - began
            per_s = (queue.processed - before) / took, clients.replies / took
            fastest[name] = (max(fastest[name][0], per_s[0]), max(fastest[name][1], per_s[1]))
    of_events, of_tasks = (1 - fastest["flower"][i] / fastest["ideal"][i] for i in range(2))
    return {"events": of_events, "tasks": of_tasks}


class Ready(Executor):
    """Has the answer to every request."""

    def __init__(self, content: Any) -> None:
        self._content = content

    def start(self, app: Any, run: RunInfo) -> None:
        """Does nothing."""

    def submit(self, wave: Sequence[Request]) -> None:
        """Does nothing."""

    def result(self, request: Request) -> Result:
        """Returns the answer."""
        return Result(content=self._content)

    def discard(self, request: Request) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


def model_record() -> Any:
    """Returns the record of the MLP 784-64-10."""
    import numpy as np

    from fl.flower.records import to_record
    from fl.vectors.layout import Layout

    shapes = {"1.weight": (64, 784), "1.bias": (64,), "2.weight": (10, 64), "2.bias": (10,)}
    layout = Layout.of_entries((name, shape, "float32") for name, shape in shapes.items())
    return to_record(layout, np.zeros(layout.size, dtype=np.float32))


def reply_content() -> Any:
    """Returns what a client sends: a model and three metrics."""
    from flwr.app import MetricRecord, RecordDict

    metrics = MetricRecord({"num-examples": 64, "train-loss": 1.0, "steps": 2})
    return RecordDict({"arrays": model_record(), "metrics": metrics})


def make_grid(fleet: Fleet, executor: Executor, runtime: Runtime | None = None) -> Any:
    """Returns a grid whose executor is started."""
    from flwr.app import Context, Message
    from flwr.clientapp import ClientApp

    from fl.simulation.grid import SimGrid

    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(reply_content(), reply_to=message)

    executor.start(app, RunInfo(seed=0, num_partitions=len(fleet), run_config={SEED_KEY: 0}))
    return SimGrid(fleet, executor, runtime=runtime)


def grid(fleet: Fleet, executor: Executor, seconds: float, runtime: Runtime | None = None) -> float:
    """Returns tasks per second: waves of 1,000 messages, pulled as they arrive."""
    from flwr.app import ConfigRecord, Message, RecordDict

    sim = make_grid(fleet, executor, runtime)
    nodes = sim.get_node_ids()
    rng = random.Random(0)

    def wave() -> int:
        content = RecordDict(
            {"arrays": model_record(), "config": ConfigRecord({"server-round": 1, "lr": 0.1})}
        )
        messages = [
            Message(content, node, "train")
            for node in rng.sample(nodes, min(IN_FLIGHT, len(nodes)))
        ]
        return len(sim.send_and_receive(messages))

    gc.collect()  # of the queue's millions of events, which a run does not have
    with quick_garbage_collection():  # as in a run
        wave()
        tasks, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            tasks += wave()
        return tasks / (time.perf_counter() - began)


class Enough(Exception):
    """Ends a strategy that has run for long enough."""


def strategy(fleet: Fleet, executor: Executor, seconds: float) -> float:
    """Returns client updates per second of stock FedAvg with no-op clients."""
    from flwr.serverapp.strategy import FedAvg

    sim = make_grid(fleet, executor)
    began = [time.perf_counter(), 0.0]

    def evaluate(server_round: int, arrays: Any) -> None:
        if server_round == 1:  # the first round makes what the others reuse
            began[0] = time.perf_counter()
        elif server_round > 1 and time.perf_counter() - began[0] > seconds:
            began[1] = (server_round - 1) * IN_FLIGHT / (time.perf_counter() - began[0])
            raise Enough

    flower = FedAvg(
        fraction_train=IN_FLIGHT / len(fleet), min_train_nodes=IN_FLIGHT, fraction_evaluate=0.0
    )
    with contextlib.suppress(Enough):
        flower.start(
            grid=sim,
            initial_arrays=model_record(),
            num_rounds=10**9,
            timeout=math.inf,
            evaluate_fn=evaluate,
        )
    return began[1]


def measure(clients: int, seconds: float) -> dict[str, Any]:
    """Returns the figures for one population."""
    from fl.execution import SerialExecutor

    fleet = quiet_fleet(clients)
    with quick_garbage_collection():  # as in a run
        core = {
            "heap": bare_heap(clients, seconds),
            **{f"queue, {delays}": queue(clients, seconds, delays) for delays in DELAYS},
        }
        core["engine events"], core["engine tasks"] = engine(fleet, seconds)
        flower = flower_runtime()
        core["flower events"], core["flower tasks"] = engine(fleet, seconds, flower)
    return {
        "clients": clients,
        **core,
        "grid tasks": grid(fleet, Ready(reply_content()), seconds),
        "grid tasks, flower": grid(fleet, Ready(reply_content()), seconds, flower),
        "client tasks": grid(fleet, SerialExecutor(), seconds),
        "strategy tasks": strategy(fleet, SerialExecutor(), seconds),
    }


def main() -> None:
    """Runs the benchmark."""
    parser = report.parser("event_core", __doc__)
    parser.add_argument("--clients", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--seconds", type=float, default=None, help="of each measurement")
    parser.add_argument("--turns", type=int, default=None, help="the best of so many counts")
    arguments = parser.parse_args()
    seconds = arguments.seconds or (0.3 if arguments.quick else 1.0)
    turns = arguments.turns or (1 if arguments.quick else 3)
    logging.getLogger("flwr").setLevel(logging.ERROR)
    about = report.machine()
    # In turns over the populations: what else the machine does falls on all of them alike.
    taken = [[measure(n, seconds) for n in arguments.clients] for _ in range(turns)]
    rows = [
        {key: max(turn[i][key] for turn in taken) for key in taken[0][i]}
        for i in range(len(arguments.clients))
    ]
    names = [key for key in rows[0] if key != "clients"]
    report.table(
        "Per second; targets: "
        + ", ".join(f"{name} {bound:,.0f}" for name, bound in GOALS.items()),
        ("", *(f"{row['clients']:,} clients" for row in rows)),
        ((name, *(f"{row[name]:,.0f}" for row in rows)) for name in names),
    )
    with quick_garbage_collection():
        costs = runtime_costs(quiet_fleet(1_000), 10 * turns)
    report.table(
        "Cost of runtime=flower beside runtime=ideal, of what the engine does a second",
        ("events", "tasks"),
        [tuple(f"{cost:.1%}" for cost in costs.values())],
    )
    report.table(
        "Cost relative to the smallest population; target for the core: at most 2",
        ("", *(f"{row['clients']:,} clients" for row in rows)),
        ((name, *(f"{rows[0][name] / row[name]:.2f}" for row in rows)) for name in names),
    )
    goals = [
        report.Goal(f"{row['clients']:,} clients: {name} a second", row[name], bound)
        for row in rows
        for name, bound in GOALS.items()
    ]
    share = costs["events"]
    goals.append(report.Goal("runtime=flower: share of events a second", share, 0.1, most=True))
    report.publish(arguments.out, rows, arguments, about, goals)


if __name__ == "__main__":
    main()
