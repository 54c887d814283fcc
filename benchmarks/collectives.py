"""What the collectives of many islands cost the host: their plans, their arithmetic, whole runs.

    python benchmarks/collectives.py [--quick] [--islands N ...] [--out FILE]

A plan is what it takes to know the seconds and the bytes of an all-reduce among so many islands, of
the fleet `datacenters`; it is made once for the same islands. `int8_ring` has arithmetic of its own
in every all-reduce, on random outer gradients. A run is `strategy=diloco client.train=false`, which
passes time alone, three rounds, without its start. CPU seconds, which other work on the machine
disturbs less, and their ratios to the ring's.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import report
from flwr.app import Context
from flwr.serverapp import Grid
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from fl import simulate
from fl.collectives import Requantising, times
from fl.runs.build import build
from fl.runs.recorder import Recorder
from fl.simulation.kernel.links import RankLinks

KINDS = ("ring", "int8_ring", "butterfly", "tree", "hierarchical", "load_balanced")
ROUNDS = 3
PAYLOAD = 100_000_000  # bytes of float32, of a plan


def configuration(kind: str, islands: int) -> Any:
    """Returns the configuration of a run."""
    with initialize_config_module("fl.conf", version_base=None):
        return compose(
            "config",
            [
                *("strategy=diloco", f"allreduce={kind}", f"num_clients={islands}"),
                *("data=digits", "partition=iid", "client.train=false", "executor=serial"),
                f"num_rounds={ROUNDS}",
            ],
        )


def plan_s(config: Any, islands: int) -> float:
    """Returns the CPU seconds of a plan."""
    by, peers = instantiate(config.allreduce), instantiate(config.fleet).peers
    began = report.cpu_s()
    network = RankLinks(peers, range(islands))
    network = RankLinks(peers, [int(k) for k in by.arranged(network)])
    sizes = [PAYLOAD] * islands
    if by.closed(network, sizes) is None:
        times(by.steps(network, sizes), network, np.zeros(islands))
    return report.cpu_s() - began


def arithmetic_s(config: Any, islands: int) -> float:
    """Returns the CPU seconds of an all-reduce's own arithmetic, on the MLP's 4,810 weights."""
    by = instantiate(config.allreduce)
    if not isinstance(by, Requantising):
        return 0.0
    x = np.random.default_rng(0).standard_normal((islands, 4_810)).astype(np.float32)
    began = report.cpu_s()
    by.reduced(x)
    return report.cpu_s() - began


def run_s(config: Any) -> tuple[float, float]:
    """Returns the CPU and host seconds of a run."""
    parts = build(config)
    taken = (0.0, 0.0)

    def server(grid: Grid, context: Context, recorder: Recorder) -> None:
        nonlocal taken
        began, busy = report.host_s(), report.cpu_s()
        initial = parts.initial()
        result = parts.strategy.start(grid=grid, initial_arrays=initial, num_rounds=ROUNDS)
        taken = report.cpu_s() - busy, report.host_s() - began
        recorder.final(result.arrays)

    with tempfile.TemporaryDirectory() as folder:
        simulate(
            server,
            parts.app,
            parts.fleet,
            executor=parts.executor,
            directory=Path(folder),
            progress=False,
            views=False,
        )
    return taken


def main() -> None:
    """Measures all collectives and publishes the table."""
    parser = report.parser("collectives", __doc__)
    parser.add_argument("--islands", type=int, nargs="+")
    settings = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    about = report.machine()
    rows: list[dict[str, Any]] = []
    for islands in settings.islands or ([100] if settings.quick else [100, 1000]):
        for kind in KINDS:
            config = configuration(kind, islands)
            cpu, host = run_s(config)
            row = {"islands": islands, "allreduce": kind, "run_cpu_s": cpu, "run_host_s": host}
            row["plan_s"] = plan_s(config, islands)
            row["arithmetic_s"] = arithmetic_s(config, islands)
            rows.append(row)
            ring = next(r["run_cpu_s"] for r in rows if r["islands"] == islands)
            row["ratio"] = cpu / ring
    report.table(
        f"all-reduces among islands, {ROUNDS} of them in a run",
        ("islands", "allreduce", "run, CPU s", "over ring", "host s", "plan, CPU s", "arithmetic"),
        [
            (
                str(row["islands"]),
                row["allreduce"],
                f"{row['run_cpu_s']:.2f}",
                f"{row['ratio']:.2f}",
                f"{row['run_host_s']:.1f}",
                f"{row['plan_s']:.3f}",
                f"{row['arithmetic_s']:.2f}",
            )
            for row in rows
        ],
    )
    report.publish(settings.out, rows, settings, about)


if __name__ == "__main__":
    main()
