"""INTELLECT-1's outer steps with 30 providers that come and go: times and losses.

    FL_DATA_DIR=... python experiments/intellect/run.py          runs all, and replaces the tables
    FL_DATA_DIR=... python experiments/intellect/run.py tables   makes them of what was kept

Times of phases and all-reduces are those that were published.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from results import main

import fl

PARAMETERS = 9_313  # of the small model
WORKERS, PROVIDERS, STEPS = 14, 30, 10
PHASE_S, ALL_REDUCE_S = 2280.0, 469.0  # published: median of a phase, and of a global all-reduce
STEP_FLOPS = 7_686_392  # of a batch of 4 windows
BPS = 2 * (WORKERS - 1) / WORKERS * 32 * PARAMETERS / ALL_REDUCE_S  # float32 around a ring
COMMON = (
    *("strategy=diloco", f"strategy.rule.inner_steps={STEPS}", "strategy.joiners=zero"),
    *("strategy.on_failure=retry", "strategy.detection_s=10", "strategy.waiting_s=10"),
    *("strategy.min_available_nodes=1", f"strategy.workers={WORKERS}"),
    *("data=shakespeare", "data.window=32", "partition=iid", "client.batch_size=4"),
    *("model=char_gpt", "model.width=24", "model.layers=1", "client.rule.lr=0.003"),
    *("fleet.network=co2-rdma", f"fleet.access_bps={BPS}", "fleet.gpus=1", "fleet.jitter=0"),
    *("fleet.utilisation=1", f"fleet.gpu_flops={STEPS * STEP_FLOPS / PHASE_S}"),
    *("executor=serial", "progress=false", "views=false", "checkpoint=off", "target=null"),
)
CHURN_H = {"none": None, "24 h": 24.0, "6 h": 6.0}  # mean time online; 1.5 times offline
SEEDS = (0, 1, 2)
TIMED, TRAINED = 100, 20  # phases


def there(hours: float | None) -> tuple[str, ...]:
    """Returns who is there: 14 providers always, or 30 of which two fifths are on the average."""
    if hours is None:
        return (f"num_clients={WORKERS}",)
    return (
        f"num_clients={PROVIDERS}",
        "fleet/availability=exponential",
        f"fleet.availability.mean_on_s={hours * 3600}",
        f"fleet.availability.mean_off_s={1.5 * hours * 3600}",
    )


def of_run(churn: str, seed: int, *, train: bool) -> list[dict[str, Any]]:
    """Returns a run's record, or, if it trains, one for each evaluation."""
    more = ("evaluate_every=5",) if train else ("client.train=false",)
    run = fl.run(
        *COMMON,
        *there(CHURN_H[churn]),
        *more,
        f"num_rounds={TRAINED if train else TIMED}",
        f"seed={seed}",
    )
    of = {
        "churn": churn,
        "seed": seed,
        "trained": train,
        "configuration": run.summary["config_digest"],
    }
    if train:
        names = ("round", "time_s", "loss")
        return [of | {name: row[name] for name in names} for row in run.history]
    events = run.trace.table().to_pydict()
    kinds = events["kind"]
    seconds = run.history[-1]["time_s"]
    updates = run.summary["totals"]["client_updates"]
    counted = {
        "phases": TIMED,
        "time_s": seconds,
        "outer_gradients": updates,
        "computing": updates * PHASE_S / seconds / (kinds.count("all_reduce") / TIMED),
        "fetched": kinds.count("transfer"),
        "failed": len(
            {t for t, k in zip(events["time_s"], kinds, strict=True) if k == "all_reduce_failed"}
        ),
    }
    return [of | counted]


def measure() -> list[dict[str, Any]]:
    """Returns the records of all runs."""
    found = []
    for churn in CHURN_H:
        for seed in SEEDS if CHURN_H[churn] else SEEDS[:1]:
            found += of_run(churn, seed, train=False)
        for seed in SEEDS:
            found += of_run(churn, seed, train=True)
        print(churn, found[-1], flush=True)
    return found


def spread(values: list[float], form: str) -> str:
    """Returns mean and deviation."""
    apart = f" ± {stdev(values):{form}}" if len(values) > 1 else ""
    return f"{fmean(values):{form}}{apart}"


def times(records: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the table of phases that train nothing."""
    heads = ("mean time online", "a phase, s", "outer gradients in it", "computing")
    yield f"| {' | '.join(heads)} | checkpoints fetched a phase | all-reduces begun again |"
    yield "|---|" + "---:|" * 5
    for churn in CHURN_H:
        mine = [one for one in records if one["churn"] == churn and not one["trained"]]
        cells = [
            spread([one["time_s"] / one["phases"] for one in mine], ".0f"),
            spread([one["outer_gradients"] / one["phases"] for one in mine], ".2f"),
            spread([100 * one["computing"] for one in mine], ".1f") + " %",
            spread([one["fetched"] / one["phases"] for one in mine], ".2f"),
            spread([one["failed"] / one["phases"] for one in mine], ".3f"),
        ]
        yield f"| {churn} | {' | '.join(cells)} |"


def losses(records: list[dict[str, Any]]) -> Iterator[str]:
    """Yields the table of losses, by phase."""
    trained = [one for one in records if one["trained"]]
    phases = sorted({one["round"] for one in trained} - {0})
    yield f"| mean time online | {' | '.join(f'{phase:g} phases' for phase in phases)} | hours |"
    yield "|---|" + "---:|" * (len(phases) + 1)
    for churn in CHURN_H:
        mine = [one for one in trained if one["churn"] == churn]
        cells = [
            spread([one["loss"] for one in mine if one["round"] == phase], ".3f")
            for phase in phases
        ]
        hours = [one["time_s"] / 3600 for one in mine if one["round"] == phases[-1]]
        yield f"| {churn} | {' | '.join(cells)} | {spread(hours, '.1f')} |"


def tables(records: list[dict[str, Any]]) -> str:
    """Returns the page's tables."""
    return "\n\n".join("\n".join(each(records)) for each in (times, losses))


if __name__ == "__main__":
    main(__file__, measure, tables)
