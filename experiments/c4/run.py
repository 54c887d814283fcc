"""What errors cost a job that C4 diagnoses, and one that it does not: time alone.

    python experiments/c4/run.py

Replaces the tables in README.md between the two `report` marks. Crashes are failures of a whole job
at exponential times. Slow parts are one of ten islands of `diloco`, of which eight take part, or
one link between two of these.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid
from hydra import compose, initialize_config_module

from fl import simulate
from fl.models import flops_per_example
from fl.reports.page import replace_tables
from fl.runs.build import build
from fl.runs.recorder import Recorder
from fl.simulation.kernel.links import PeerLinks
from fl.simulation.world.checkpointing import Checkpointing, JobTime

HERE = Path(__file__).parent
WORK_S, MTBF_S, SEEDS = 30 * 86400.0, 4 * 3600.0, 20
TIMEOUT_S, FOUND_S, RESTART_S = 600.0, 30.0, 300.0
PEOPLE_MIN = (0, 30, 60, 120)
PHASES, WORKERS, ISLANDS = 40, 8, 10
STRAGGLERS = "+strategy.stragglers._target_=fl.collectives.Stragglers"
SLOW_LINKS = "+strategy.slow_links._target_=fl.collectives.SlowLinks"


def crashes() -> str:
    """Returns the table of what crashes cost."""
    rows = [
        "| a crash is understood after | the job goes on after | time above that of the work |",
        "|---|---:|---:|",
    ]
    arms = {f"a timeout of 10 min and {p} min of people": TIMEOUT_S + 60 * p for p in PEOPLE_MIN}
    for what, found_s in {**arms, "C4's 30 s": FOUND_S}.items():
        by = Checkpointing(
            interval_s=600.0,
            state_bytes=20e9,
            host_bandwidth=10e9,
            storage_bandwidth=1e9,
            restart_s=found_s + RESTART_S,
            mtbf_s=MTBF_S,
        )
        x = np.array(
            [100 * (JobTime(by, seed).elapsed(WORK_S) / WORK_S - 1) for seed in range(SEEDS)]
        )
        minutes = (found_s + RESTART_S) / 60
        rows.append(f"| {what} | {minutes:.1f} min | {x.mean():.1f} ± {x.std(ddof=1):.1f} % |")
    return "\n".join(rows)


def phase_s(slow: str, *overrides: str) -> tuple[float, float]:
    """Returns the mean seconds of a phase, of all and of the last ten.

    Ten seconds of training and an all-reduce of eight as long, if nothing is slow. A slow island
    does half as much, a slow link has a tenth.
    """
    with initialize_config_module("fl.conf", version_base=None):
        given = ("strategy=diloco", f"num_clients={ISLANDS}", f"strategy.workers={WORKERS}")
        more = ("partition=iid", "client.train=false", "executor=serial", "fleet.jitter=0")
        config = compose("config", [*given, *more, *overrides])
        parts = build(config)
    model, fleet = parts.model(), parts.fleet
    steps, examples = config.strategy.rule.inner_steps, config.client.batch_size
    work = steps * examples * flops_per_example(model, parts.data.input_shape).training
    bits = 32 * sum(p.numel() for p in model.parameters())
    pace = np.ones(ISLANDS)
    bps = np.full((ISLANDS, ISLANDS), 2 * (WORKERS - 1) / WORKERS * bits / 10.0)
    if slow == "island":
        pace[1] = 0.5
    if slow == "link":
        bps[1, 2] /= 10.0
    edges = PeerLinks(fleet.peers.links, np.arange(ISLANDS), bps, np.zeros_like(bps))
    fleet = replace(fleet, devices=replace(fleet.devices, flops=work / 10.0 * pace), edges=edges)
    ends: list[float] = []

    def server(grid: Grid, context: Context, recorder: Recorder) -> None:
        result = parts.strategy.start(
            grid,
            parts.initial(),
            num_rounds=PHASES,
            evaluate_fn=lambda *_: ends.append(grid.clock.now()),  # type: ignore[attr-defined]
        )
        recorder.final(result.arrays)

    simulate(server, parts.app, fleet, executor=parts.executor, progress=False)
    took = np.diff(ends)
    return float(took.mean()), float(took[-10:].mean())


def slow_parts() -> str:
    """Returns the table of what slow parts cost."""
    rows = [
        f"| slow is | diagnosis | s a phase, of {PHASES} | of the last 10 |",
        "|---|---|---:|---:|",
    ]
    for slow, what in (("", "nothing"), ("island", "an island"), ("link", "a link")):
        for by, more in (("none", []), ("C4", [STRAGGLERS, SLOW_LINKS])):
            mean, last = phase_s(slow, *more)
            rows.append(f"| {what} | {by} | {mean:.1f} | {last:.1f} |")
            print(rows[-1], flush=True)
    return "\n".join(rows)


if __name__ == "__main__":
    replace_tables(HERE / "README.md", f"{crashes()}\n\n{slow_parts()}")
