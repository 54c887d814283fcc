"""How fast 40 volunteers learn, by how they average.

    FL_DATA_DIR=... python experiments/dedloc/learning/run.py          makes all runs, and the table
    FL_DATA_DIR=... python experiments/dedloc/learning/run.py tables   the table of what was kept

A vector takes what that of ALBERT-large does on these links, and a step of all volunteers computes
as long as one of 4,096 of its samples: see times.py.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.append(str(Path(__file__).parents[2]))

from results import main

import fl
from fl.models import MLP, flops_per_example
from fl.simulation.world.fleets.volunteers import MACHINES

TIMES = runpy.run_path(str(Path(__file__).parents[1] / "times.py"))
SEEDS, STEPS, TARGET, MICRO_BATCH = (0, 1, 2), 12, 1280, 8
ACCURACY, AFTER_S = 0.7, (300, 600)
ARMS = {name: how for name, how in TIMES["ARMS"].items() if not name.startswith("and ")}
THERE = {"are always there": ["fleet/availability=always"]}


def scaled() -> list[str]:
    """Returns the overrides of speeds and links."""
    model = MLP((28, 28, 1), 10, hidden=[32])
    size = sum(p.numel() for p in model.parameters()) / TIMES["PARAMETERS"]
    sample_flops = TIMES["SAMPLE_FLOPS"] * TIMES["TARGET"] / TARGET
    work = flops_per_example(model, (28, 28, 1)).training / sample_flops
    speeds = [f"fleet.machines.{k}.flops={m.flops * work}" for k, m in MACHINES.items()]
    return [*speeds, f"fleet.bps={[bps * size for bps in (200e6, 100e6, 100e6, 50e6)]}"]


COMMON = (
    *("strategy=dedloc", "num_clients=40", f"strategy.rule.target_batch={TARGET}"),
    *("data=mnist", "data.num_train=10000", "data.num_test=2000", "partition=iid"),
    *("model=mlp", "model.hidden=[32]", f"client.batch_size={MICRO_BATCH}", "compressor=fp16"),
    *("strategy.rule.optimizer.lr=0.1", f"num_rounds={STEPS}", "evaluate_every=2"),
    *("executor=serial", "progress=false", "views=false", "checkpoint=off", "target=null"),
)


def measure() -> list[dict[str, Any]]:
    """Returns a record for each evaluation of each run."""
    found = []
    for there, given in THERE.items():
        for arm, how in ARMS.items():
            for seed in SEEDS:
                run = fl.run(*COMMON, *scaled(), *given, *how, f"seed={seed}")
                digest = run.summary["config_digest"]
                of = {"volunteers": there, "by": arm, "seed": seed, "configuration": digest}
                names = ("round", "time_s", "loss", "accuracy")
                found += [of | {name: row[name] for name in names} for row in run.history]
            print(there, arm, found[-1], flush=True)
    return found


def spread(values: list[float], form: str) -> str:
    """Returns mean and deviation."""
    return f"{fmean(values):{form}} ± {stdev(values):{form}}"


def reached(rows: list[dict[str, Any]]) -> str:
    """Returns when the first of two evaluations in a row is at the target, s."""
    for row, after in pairwise(rows):
        if min(row["accuracy"], after["accuracy"]) >= ACCURACY:
            return f"{row['time_s']:.0f}"
    return "–"  # noqa: RUF001


def lines(records: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the table."""
    after = " | ".join(f"loss after {s:,} s" for s in AFTER_S)
    yield f"| 40 volunteers who | | s a step | s to {100 * ACCURACY:g} % | {after} | in the end |"
    yield "|---|---|---:|---:|" + "---:|" * (len(AFTER_S) + 1)
    for there in THERE:
        for arm in ARMS:
            runs = []
            for seed in SEEDS:
                of = {"volunteers": there, "by": arm, "seed": seed}.items()
                runs.append([one for one in records if of <= one.items()])
            cells = [spread([rows[-1]["time_s"] / rows[-1]["round"] for rows in runs], ".1f")]
            cells.append(", ".join(map(reached, runs)))
            for s in AFTER_S:
                last = [[row for row in rows if row["time_s"] <= s][-1]["loss"] for rows in runs]
                cells.append(spread(last, ".3f"))
            cells.append(spread([rows[-1]["loss"] for rows in runs], ".3f"))
            yield f"| {there} | {arm} | {' | '.join(cells)} |"


def tables(records: list[dict[str, Any]]) -> str:
    """Returns the page's table."""
    return "\n".join(lines(records))


if __name__ == "__main__":
    main(__file__, measure, tables)
