"""Client updates per second: `fl`, Flower's own engine, and bare PyTorch, side by side.

    python benchmarks/client_updates.py [--quick] [--workloads mlp cnn] [--out FILE]

Every contender does the same work: each round, every client trains the current model on its 64
random examples, batch 32, one epoch of SGD, and the server averages the models, weighted by
examples. The contenders are:

    fl, ray             stock Flower FedAvg on a `mobile` fleet (nobody away, no faults), Ray actors
    fl, serial          the same in one process
    fl rounds, ray      our `Rounds` of FedAvg, which reads the (n, d) rows directly
    fl rounds, serial
    Flower              the same ClientApp and FedAvg on Flower's engine, one CPU a client
    loop                a bare PyTorch loop: one process of one thread
    loop x cores        a process of one thread per core, a share of the clients each
    vmap                a bare `torch.func.vmap` program for all clients of a round, all cores

Each runs in a process of its own that stays alive. They take turns, a few rounds at a time, so that
what else the machine does falls on all alike. The figure is the median over the turns, of rounds
in the steady state; the time from the start of the process to the end of the first round is given
apart, with imports and start-up.
"""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import report

BATCH = 32
EXAMPLES = 64
LR = 0.1


@dataclass(frozen=True)
class Workload:
    """A model and how many clients train it each round."""

    name: str
    input_shape: tuple[int, ...]
    clients: int
    targets: dict[str, float]  # of the stock strategy over Flower, of ours over the best bare loop


WORKLOADS = {
    w.name: w
    for w in (
        Workload("logistic", (60,), 100, {"stock": 60.0, "rounds": 0.5}),
        Workload("mlp", (1, 28, 28), 100, {"stock": 30.0, "rounds": 0.85}),
        Workload("cnn", (1, 28, 28), 20, {"stock": 2.2, "rounds": 0.85}),
    )
}


def make_model(workload: str) -> Any:
    """Returns the workload's module, with the same initial values every time."""
    import torch

    from fl.models import MLP, LeafCNN, LogisticRegression

    torch.manual_seed(0)
    shape = WORKLOADS[workload].input_shape
    if workload == "logistic":
        return LogisticRegression(shape, 10)
    return MLP(shape, 10, hidden=(64,)) if workload == "mlp" else LeafCNN(shape, 10, width=512)


def make_arrays(workload: Workload) -> tuple[Any, Any]:
    """Returns inputs (clients, examples, ...) and classes (clients, examples)."""
    import numpy as np

    rng = np.random.default_rng(0)
    x = rng.standard_normal((workload.clients, EXAMPLES, *workload.input_shape), dtype=np.float32)
    return x, rng.integers(0, 10, (workload.clients, EXAMPLES))


def make_app(workload: Workload, mods: list[Any] | None = None) -> Any:
    """Returns the ClientApp that `fl` and Flower run."""
    from fl.clients import Sgd, TrainingApp
    from fl.data import Examples, FederatedData, Partitions

    x, y = make_arrays(workload)
    n = workload.clients
    data = FederatedData(
        name="random",
        train=Examples(x.reshape(n * EXAMPLES, *workload.input_shape), y.reshape(-1)),
        test=Examples(x[0], y[0]),
        partitions=Partitions.contiguous([EXAMPLES] * n),
        num_classes=10,
        input_shape=workload.input_shape,
    )
    model = partial(make_model, workload.name)
    return TrainingApp(model, data, Sgd(lr=LR), batch_size=BATCH, mods=mods)


# ---- contenders: functions of (workload, gate) that call the gate after every round ------------

Gate = Callable[..., None]


class Stopped(Exception):
    """Raised by a gate to end a contender that cannot be asked to stop."""


def _strategy(ours: bool) -> Any:
    if ours:
        from fl.strategies import FedAvg, Rounds

        return Rounds(FedAvg(), fraction_train=1.0)
    from flwr.serverapp import strategy

    return strategy.FedAvg(fraction_train=1.0, fraction_evaluate=0.0)


def run_fl(workload: Workload, gate: Gate, *, executor: str, ours: bool) -> None:
    """Runs `fl` with a stock strategy, or with ours."""
    import logging

    from flwr.app import ArrayRecord

    from fl.execution import RayExecutor, SerialExecutor
    from fl.runs.simulator import simulate
    from fl.simulation.world.availability import Always
    from fl.simulation.world.faults import Faults
    from fl.simulation.world.fleets import mobile

    logging.getLogger("flwr").setLevel(logging.WARNING)
    fleet = mobile(workload.clients, seed=0, availability=Always(workload.clients), faults=Faults())

    def server(grid: Any, context: Any, recorder: Any) -> None:
        _strategy(ours).start(
            grid=grid,
            initial_arrays=ArrayRecord(make_model(workload.name).state_dict()),
            num_rounds=10**9,
            timeout=1e9,
            evaluate_fn=lambda server_round, arrays: gate(server_round),
        )

    simulate(
        server,
        make_app(workload),
        fleet,
        executor=SerialExecutor() if executor == "serial" else RayExecutor(),
        progress=False,
    )


def run_flower(workload: Workload, gate: Gate) -> None:
    """Runs Flower's simulation engine on the same ClientApp."""
    import logging

    from flwr.app import ArrayRecord, Context, Message
    from flwr.serverapp import Grid, ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    from fl.randomness import SEED_KEY

    logging.getLogger("flwr").setLevel(logging.ERROR)

    def with_seed(message: Message, context: Context, call_next: Any) -> Message:
        # The ClientApp wants a seed in the run's configuration, which run_simulation cannot set,
        # and whose change it refuses.
        context.run_config[SEED_KEY] = 0
        try:
            reply: Message = call_next(message, context)
        finally:
            del context.run_config[SEED_KEY]
        return reply

    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        least = workload.clients
        FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_available_nodes=least).start(
            grid=grid,
            initial_arrays=ArrayRecord(make_model(workload.name).state_dict()),
            num_rounds=10**9,
            evaluate_fn=lambda server_round, arrays: gate(server_round),
        )

    run_simulation(
        app,
        make_app(workload, [with_seed]),
        num_supernodes=workload.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": cores(), "include_dashboard": False, "log_to_driver": False},
        },
    )


def run_loop(workload: Workload, gate: Gate) -> None:
    """Trains one client after another, as anybody would with PyTorch."""
    import torch

    torch.set_num_threads(1)
    x, y = map(torch.from_numpy, make_arrays(workload))
    train = loop_round(workload, x, y)
    w = torch.nn.utils.parameters_to_vector(make_model(workload.name).parameters()).detach()
    for server_round in range(10**9):
        gate(server_round)
        w = train(w) / workload.clients


def loop_round(workload: Workload, x: Any, y: Any) -> Callable[[Any], Any]:
    """Returns a function from the global model to the sum of the clients' models, as vectors."""
    import torch
    from torch.nn.functional import cross_entropy
    from torch.nn.utils import parameters_to_vector, vector_to_parameters

    model = make_model(workload.name)
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=LR)

    def train(w: Any) -> Any:
        total = torch.zeros_like(w)
        for i in range(len(x)):
            vector_to_parameters(w.clone(), parameters)
            for batch in torch.randperm(EXAMPLES).split(BATCH):
                optimizer.zero_grad()
                cross_entropy(model(x[i, batch]), y[i, batch]).backward()
                optimizer.step()
            with torch.no_grad():
                total += parameters_to_vector(parameters)
        return total

    return train


def run_loops(workload: Workload, gate: Gate) -> None:
    """Splits the clients over one process of one thread per core."""
    import torch

    w = torch.nn.utils.parameters_to_vector(make_model(workload.name).parameters()).detach()
    shared = w.share_memory_()
    sums = torch.zeros(cores(), len(w)).share_memory_()
    context = multiprocessing.get_context("spawn")
    pipes = []
    for k in range(cores()):
        here, there = context.Pipe()
        process = context.Process(
            target=_loop_share, args=(workload, k, shared, sums, there), daemon=True
        )
        process.start()
        pipes.append(here)
    for pipe in pipes:
        pipe.recv()
    for server_round in range(10**9):
        gate(server_round)
        for pipe in pipes:
            pipe.send(True)
        for pipe in pipes:
            pipe.recv()
        shared.copy_(sums.sum(0) / workload.clients)


def _loop_share(workload: Workload, k: int, w: Any, sums: Any, pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    x, y = (torch.from_numpy(part[k :: cores()].copy()) for part in make_arrays(workload))
    train = loop_round(workload, x, y)
    pipe.send(True)
    while pipe.recv():
        sums[k] = train(w.clone())
        pipe.send(True)


def run_vmap(workload: Workload, gate: Gate) -> None:
    """Trains all clients of a round as one program."""
    import torch
    from torch.func import functional_call, grad, vmap
    from torch.nn.functional import cross_entropy

    torch.set_num_threads(cores())
    x, y = map(torch.from_numpy, make_arrays(workload))
    model = make_model(workload.name)
    names, shapes = zip(*((k, p.shape) for k, p in model.named_parameters()), strict=True)
    sizes = [shape.numel() for shape in shapes]

    def loss(w: Any, x: Any, y: Any) -> Any:
        parts = w.split_with_sizes(sizes)
        own = {k: part.view(s) for k, part, s in zip(names, parts, shapes, strict=True)}
        return cross_entropy(functional_call(model, own, (x,)), y)

    gradients = {dim: vmap(grad(loss), in_dims=(dim, 0, 0)) for dim in (None, 0)}
    clients = torch.arange(workload.clients)[:, None]
    w = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    for server_round in range(10**9):
        gate(server_round)
        orders = torch.stack([torch.randperm(EXAMPLES) for _ in range(workload.clients)])
        own, dim = w, None
        for batch in orders.split(BATCH, dim=1):
            own, dim = own - LR * gradients[dim](own, x[clients, batch], y[clients, batch]), 0
        w = own.mean(0)


CONTENDERS: dict[str, Callable[[Workload, Gate], None]] = {
    "fl, ray": partial(run_fl, executor="ray", ours=False),
    "fl, serial": partial(run_fl, executor="serial", ours=False),
    "fl rounds, ray": partial(run_fl, executor="ray", ours=True),
    "fl rounds, serial": partial(run_fl, executor="serial", ours=True),
    "Flower": run_flower,
    "loop": run_loop,
    "loop x cores": run_loops,
    "vmap": run_vmap,
}


def cores() -> int:
    """Returns the number of cores this process may use."""
    return len(os.sched_getaffinity(0))


# ---- taking turns ------------------------------------------------------------------------------


class Turns:
    """The gate of a contender: lets it run so many rounds at a time, and times them."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._last = -1
        self._began = 0.0

    def __call__(self, server_round: int) -> None:
        """Called before the first round and after every other."""
        if server_round < self._last:
            return
        if server_round == self._last:
            self._pipe.send(report.host_s() - self._began)
        rounds = self._pipe.recv() if server_round else 1
        if not rounds:
            raise Stopped
        self._last = server_round + rounds
        self._began = report.host_s()


def _contend(workload: str, contender: str, pipe: Connection) -> None:
    # The parent reads the terminal for everybody; a contender that fails has its reason in stderr.
    with contextlib.suppress(Stopped):
        CONTENDERS[contender](WORKLOADS[workload], Turns(pipe))


class Contender:
    """A contender's process, seen from the parent."""

    def __init__(self, workload: str, name: str) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_contend, args=(workload, name, theirs))
        began = report.host_s()
        self._process.start()
        theirs.close()
        self.first_round_s = self._receive()
        self.start_s = report.host_s() - began
        self.rates: list[float] = []

    def _receive(self) -> float:
        try:
            return float(self._pipe.recv())
        except EOFError:
            raise SystemExit(f"{self.name} failed; see above") from None

    def run(self, rounds: int) -> float:
        """Returns the seconds that so many rounds take."""
        self._pipe.send(rounds)
        return self._receive()

    def stop(self) -> None:
        """Ends the process."""
        self._pipe.send(0)
        self._process.join(30)
        if self._process.is_alive():
            self._process.terminate()


def measure(
    workload: Workload, names: list[str], turns: int, turn_s: float
) -> list[dict[str, Any]]:
    """Returns one row for each contender."""
    contenders = [Contender(workload.name, name) for name in names]
    rounds = {}
    for c in contenders:
        seconds = c.run(1)  # caches are warm now
        rounds[c.name] = max(1, round(turn_s / min(seconds, c.run(1))))
    for turn in range(turns):
        for c in contenders if turn % 2 == 0 else reversed(contenders):
            seconds = c.run(rounds[c.name])
            c.rates.append(workload.clients * rounds[c.name] / seconds)
    for c in contenders:
        c.stop()
    return [
        {
            "workload": workload.name,
            "contender": c.name,
            "updates_per_s": statistics.median(c.rates),
            "slowest": min(c.rates),
            "fastest": max(c.rates),
            "start_s": c.start_s,
        }
        for c in contenders
    ]


def show(workload: Workload, rows: list[dict[str, Any]]) -> None:
    """Prints one workload's table."""
    rates = {row["contender"]: row["updates_per_s"] for row in rows}
    flower = rates.get("Flower", math.nan)
    bare = max((v for k, v in rates.items() if k[:2] != "fl" and k != "Flower"), default=math.nan)
    for row in rows:
        row["of_flower"] = row["updates_per_s"] / flower
        row["of_best_bare"] = row["updates_per_s"] / bare
    report.table(
        f"{workload.name}: {workload.clients} clients a round. Targets: fl at "
        f"{workload.targets['stock']:g} x Flower, fl rounds at {workload.targets['rounds']:g} of "
        "the best bare loop",
        ("", "updates/s", "slowest", "fastest", "x Flower", "of best bare", "start s"),
        (
            (
                row["contender"],
                f"{row['updates_per_s']:,.0f}",
                f"{row['slowest']:,.0f}",
                f"{row['fastest']:,.0f}",
                f"{row['of_flower']:.2f}",
                f"{row['of_best_bare']:.2f}",
                f"{row['start_s']:.1f}",
            )
            for row in rows
        ),
    )


def goals(rows: list[dict[str, Any]]) -> list[report.Goal]:
    """Returns what both of ours are to be, each with its faster executor."""
    found = []
    for name, workload in WORKLOADS.items():
        for ours, kind, of, other in (
            ("fl, ", "stock", "of_flower", "times Flower's engine"),
            ("fl rounds, ", "rounds", "of_best_bare", "of the best bare loop"),
        ):
            ratios = [
                row[of]
                for row in rows
                if row["workload"] == name and row["contender"].startswith(ours)
            ]
            if ratios and not math.isnan(max(ratios)):
                what = f"{name}: {ours.rstrip(', ')}, {other}"
                found.append(report.Goal(what, max(ratios), workload.targets[kind]))
    return found


def main() -> None:
    """Runs the benchmark."""
    parser = report.parser("client_updates", __doc__)
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--contenders", nargs="+", default=None, choices=CONTENDERS)
    parser.add_argument("--turns", type=int, default=None, help="how often each contender runs")
    parser.add_argument("--seconds", type=float, default=None, help="of one turn")
    arguments = parser.parse_args()
    turns = arguments.turns or (3 if arguments.quick else 5)
    seconds = arguments.seconds or (0.3 if arguments.quick else 0.8)
    about = report.machine()
    names = arguments.contenders or list(CONTENDERS)
    rows: list[dict[str, Any]] = []
    for name in arguments.workloads:
        measured = measure(WORKLOADS[name], names, turns, seconds)
        show(WORKLOADS[name], measured)
        rows += measured
    report.publish(arguments.out, rows, arguments, about, goals(rows))


if __name__ == "__main__":
    main()
