"""All runs of this page, in one process, and its tables: see experiments/protocol.py.

FL_DATA_DIR=... python experiments/fedfix/run.py [METHOD ...]
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from protocol import CASE, Comparison, Method, main
from tuned import Report, Trial, by_seed, of_part, paired, spread

RATE = "client.rule.lr"
ASYNC = ("strategy=async_fedavg", "strategy.concurrency=null")
SLOWDOWN = "fleet/slowdown@fleet.client_slowdown"
QUARTER = 4
ASYNCHRONOUS = "async, eta 1"
"""With the server rate of the authors."""

COMPARISON = Comparison(
    page=Path(__file__).parent,
    common=("+experiment=fedfix", "executor.max_batch=1", "target.value=0.85"),
    cases={"F-80": (f"{SLOWDOWN}=linear",)},
    methods={
        "fedavg": Method(
            (
                *("strategy=fedavg", "strategy.fraction_train=1.0"),
                *("strategy.min_train_nodes=10", "aggregator.weighted=false"),
            ),
            {RATE: 0.03},
        ),
        ASYNCHRONOUS: Method((*ASYNC, "strategy.rule.eta=1"), {RATE: 0.003}),
        "async, eta 1/10": Method(ASYNC, {RATE: 0.03}),
        **{
            f"fedfix, {dt} s": Method(
                ("strategy=fedfix", f"strategy.rule.interval_s={dt}"), {RATE: 0.01}
            )
            for dt in (0.2, 0.5, 0.8)
        },
    },
    against="fedavg",
    trials=6,
    seeds=range(5),
    tune=("evaluate_every_s=3",),
    beside=[(ASYNCHRONOUS, {RATE: rate}) for rate in ("0.03", "0.1")],
)


def at_rates_of_fedfix(report: Report, case: str) -> str:
    """Returns the table of asynchronous FedAvg at rates at which FedFix is at its best."""
    lines = ["| client rate | method | accuracy (%) | less FedFix |", "|---:|---|---:|---:|"]
    best = report.of_case(case)
    for name, runs in best.items():
        if not name.startswith("fedfix"):
            continue
        base, rate = by_seed(runs), runs[0].given[RATE]
        lines.append(f"| {rate} | {name} | {spread(list(base.values()), 'accuracy')} | |")
        same = [
            run
            for run in of_part(report.methods[ASYNCHRONOUS], "beside")
            if run.given[CASE] == case and run.given[RATE] == rate
        ]
        if same:
            ends = by_seed(same)
            less = paired(ends, base, "accuracy")
            shown = spread(list(ends.values()), "accuracy")
            lines.append(f"| {rate} | {ASYNCHRONOUS} | {shown} | {less} |")
    return "\n".join(lines)


def swing(run: Trial) -> float:
    """Returns the standard deviation of a run's accuracy over the last quarter of its time."""
    rows = run.history[-math.ceil(len(run.history) / QUARTER) :]
    return stdev(row["accuracy"] for row in rows)


def swings(methods: dict[str, Sequence[Trial]], against: str) -> str:
    """Returns the table of what curves swing by, the smoothest first."""
    found = {
        name: {run.summary["seed"]: swing(run) for run in runs} for name, runs in methods.items()
    }
    lines = [f"| method | swing (points) | less {against} |", "|---|---:|---:|"]
    for name, of in sorted(found.items(), key=lambda item: fmean(item[1].values())):
        less = "" if name == against else paired(of, found[against], "accuracy")
        lines.append(f"| {name} | {spread(list(of.values()), 'accuracy')} | {less} |")
    return "\n".join(lines)


def tables(records: list[dict[str, Any]]) -> str:
    """Returns what stands between the marks of the page, made of what is kept with it."""
    report = COMPARISON.report()
    parts = [report.tables()]
    for case in report.cases:
        parts += [
            f"### Swings, {case}",
            swings(report.of_case(case), report.against),
            f"### At FedFix's rates, {case}",
            at_rates_of_fedfix(report, case),
        ]
    return "\n\n".join(parts)


if __name__ == "__main__":
    main(COMPARISON, tables)
