"""How long volunteers average, and how long a step takes them: nothing is trained.

    python experiments/dedloc/times.py

Replaces the tables in README.md between the two `report` marks. A vector is that of ALBERT-large,
18 million numbers in 16 bits, and a sample 10^12 FLOPs (24 layers of 1024, 512 tokens, forward and
backward). Runs have the model of a default run, whose links and speeds are scaled to that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid
from hydra import compose, initialize_config_module

from fl import simulate
from fl.collectives import (
    Collective,
    LoadBalancedAllReduce,
    ParameterServerAllReduce,
    RingAllReduce,
    times,
)
from fl.models import flops_per_example
from fl.reports.page import replace_tables
from fl.runs.build import build
from fl.runs.recorder import Recorder
from fl.simulation.kernel.links import RankLinks
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.fleets import volunteers
from fl.simulation.world.fleets.volunteers import MACHINES

HERE = Path(__file__).parent
PARAMETERS, SAMPLE_FLOPS = 18e6, 1e12
BYTES = int(2 * PARAMETERS)
TARGET, STEPS, SEEDS = 4096, 3, (0, 1, 2)
BY: dict[str, Collective] = {
    "a parameter server, all sent before anything comes back": ParameterServerAllReduce(),
    "the same, in small pieces": LoadBalancedAllReduce("one"),
    "ring, as numbered": RingAllReduce(),
    "ring, the slowest edge as fast as possible": RingAllReduce("widest"),
    "equal shares": LoadBalancedAllReduce("equal"),
    "shares by the linear program": LoadBalancedAllReduce(),
}


def bed(trainers: int, auxiliary: int = 0, client_mode: float = 0.0, seed: int = 0) -> Fleet:
    """Returns the paper's links, without delays."""
    return volunteers(
        trainers + auxiliary,
        seed,
        auxiliary=auxiliary,
        client_mode=client_mode,
        min_latency_s=0.0,
        max_latency_s=0.0,
    )


def averaging_s(fleet: Fleet, by: Collective, auxiliary: int = 0) -> float:
    """Returns the seconds of one averaging among all of a fleet."""
    m = len(fleet)
    given = RankLinks(fleet.peers, range(m))
    order = by.arranged(given)
    network = RankLinks(fleet.peers, order)
    sizes = [BYTES if rank < m - auxiliary else 0 for rank in order]
    closed = by.closed(network, sizes)
    if closed is not None:
        return closed.seconds
    return float(times(by.steps(network, sizes), network, np.zeros(m)).finished.max())


def averaging() -> str:
    """Returns the table of averaging times."""
    header = "| | 16 of the bed | 40, all reachable | 40, a quarter in client mode |"
    rows = [header, "|---|---:|---:|---:|"]
    fleets = [bed(16), bed(40), bed(40, client_mode=0.25)]
    for name, by in BY.items():
        cells = [f"{averaging_s(fleet, by):.1f} s" for fleet in fleets]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    helped = [bed(16, 4), bed(40, 4), bed(40, 4, client_mode=0.25)]
    for kind in ("equal", "balanced"):
        cells = [f"{averaging_s(fleet, LoadBalancedAllReduce(kind), 4):.1f} s" for fleet in helped]
        what = "equal shares" if kind == "equal" else "shares by the linear program"
        rows.append(f"| {what}, with 4 auxiliary peers | {' | '.join(cells)} |")
    floor = f"{8 * BYTES / 50e6:.1f} s"
    rows.append(f"| a vector through the slowest link, once | {floor} | {floor} | {floor} |")
    return "\n".join(rows)


class Steps(NamedTuple):
    """What the steps of a run took.

    Attributes:
        seconds: mean of a step, s.
        samples: mean of a step, over the target.
        least: of any step, over the target.
        computing: share of the peers' time.
        entered: fetches of the state, a step.
    """

    seconds: float
    samples: float
    least: float
    computing: float
    entered: float


def steps(seed: int, *overrides: str) -> Steps:
    """Returns what three steps of 40 volunteers take."""
    common = [
        "strategy=dedloc",
        f"num_rounds={STEPS}",
        "num_clients=40",
        "partition=iid",
        f"seed={seed}",
        "client.train=false",
        "client.batch_size=8",
        f"strategy.rule.target_batch={TARGET}",
        "compressor=fp16",
    ]
    with initialize_config_module("fl.conf", version_base=None):
        first = build(compose("config", [*common, *overrides]))
        model = first.model()
        size = sum(p.numel() for p in model.parameters()) / PARAMETERS
        work = flops_per_example(model, first.data.input_shape).training / SAMPLE_FLOPS
        speeds = [f"fleet.machines.{k}.flops={m.flops * work}" for k, m in MACHINES.items()]
        links = [bps * size for bps in (200e6, 100e6, 100e6, 50e6)]
        scaled = [*speeds, f"fleet.bps={links}", f"fleet.auxiliary_bps={500e6 * size}"]
        config = compose("config", [*common, *overrides, *scaled])
    parts = build(config)
    ends: list[float] = []
    results: list[Any] = []

    def server(grid: Grid, context: Context, recorder: Recorder) -> None:
        result = parts.strategy.start(
            grid,
            parts.initial(),
            num_rounds=STEPS,
            evaluate_fn=lambda *_: ends.append(grid.clock.now()),  # type: ignore[attr-defined]
        )
        results.append(result)

    run = simulate(server, parts.app, parts.fleet, seed=seed, executor="serial", progress=False)
    told = results[0].train_metrics_clientapp
    samples = np.array([told[k]["samples"] for k in range(1, STEPS + 1)]) / TARGET
    kinds = run.trace.table().column("kind").to_pylist()
    totals = run.summary["totals"]
    return Steps(
        (ends[-1] - ends[0]) / STEPS,
        float(samples.mean()),
        float(samples.min()),
        totals["utilisation"],
        kinds.count("transfer") / STEPS,
    )


ARMS = {
    "a parameter server": ["allreduce=parameter_server"],
    "ring, as numbered": ["allreduce=ring"],
    "equal shares": ["allreduce.shares=equal"],
    "shares by the linear program": [],
    "and delayed updates": ["strategy.rule.delayed=true"],
    "and 4 auxiliary peers": ["strategy.auxiliary=4", "num_clients=44"],
}
UNDER_CHURN = ("equal shares", "shares by the linear program", "and delayed updates")
THERE = {
    "are always there": ["fleet/availability=always"],
    "come and go: sessions of 10 min, 5 between": [
        "fleet.availability.mean_on_s=600",
        "fleet.availability.mean_off_s=300",
    ],
    "are taken away in groups, every minute": [
        "fleet/availability=preemptions",
        "fleet.availability.mean_gap_s=60",
        "fleet.availability.mean_away_s=230",
    ],
}


def run_table() -> str:
    """Returns the table of steps, and prints it as it grows."""
    rows = [
        "| 40 volunteers, who | | s a step | samples over target, mean and least | computing | "
        "states fetched a step |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for where, there in THERE.items():
        for arm in ARMS if where == "are always there" else UNDER_CHURN:
            each = [steps(seed, *there, *ARMS[arm]) for seed in SEEDS]
            s = np.array([one.seconds for one in each])
            rows.append(
                f"| {where} | {arm} | {s.mean():.1f} ± {s.std(ddof=1):.1f} | "
                f"{np.mean([one.samples for one in each]):.3f}, "
                f"{min(one.least for one in each):.3f} | "
                f"{100 * np.mean([one.computing for one in each]):.1f} % | "
                f"{np.mean([one.entered for one in each]):.1f} |"
            )
            print(rows[-1], flush=True)
    return "\n".join(rows)


if __name__ == "__main__":
    tables = [averaging(), run_table()]
    replace_tables(HERE / "README.md", "\n\n".join(tables))
