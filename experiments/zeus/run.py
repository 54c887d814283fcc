"""Zeus beside the default: on the authors' traces, and on jobs that recur in the simulator.

    python experiments/zeus/run.py --traces DIR    # summary_train.csv, summary_power_*.csv of
                                                   # ml-energy/zeus
    python experiments/zeus/run.py --measure

Prints the tables of README.md. A job recurs 2 |B| |P| times, as in the paper; what is compared is
the mean of its last five recurrences with all runs that they took, against runs at the default
batch size and the highest power limit.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import numpy as np

import fl
from fl.runs.tuning.zeus import RecurringJob, Zeus, recur

SEEDS = range(10)
ETA = 0.5
LAST = 5
EPOCHS = 60
GPUS = ("a40", "v100", "rtx6000", "p100")

# dataset, optimizer, default batch size, target, epochs at most. The first is in the authors'
# script; the others are table 1 of the paper, from memory.
TRACED = {
    "DeepSpeech2, LibriSpeech": ("librispeech", "adamw", 192, 40.0, 16),
    "BERT, SQuAD": ("squad", "adamw", 32, 84.0, EPOCHS),
    "BERT, Sentiment140": ("sentiment140", "adamw", 128, 0.84, EPOCHS),
    "ResNet-50, ImageNet": ("imagenet", "adadelta", 256, 0.65, EPOCHS),
    "ShuffleNet V2, CIFAR-100": ("cifar100", "adadelta", 1024, 0.60, 200),
    "NeuMF, MovieLens-1M": ("movielens-1m", "adam", 1024, 0.41, EPOCHS),
}

SIZES = (8, 16, 32, 64, 128, 256, 512)
CAPS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
LIMIT_W = 250.0  # of the V100 whose curve is taken
RUNS = range(5)

# Rates grow with the batch: by its square root for Adam, in proportion for SGD.
MEASURED: Mapping[str, tuple[int, float, list[str], float, float]] = {
    "MLP, digits, AdamW": (32, 0.94, ["data=digits", "model=mlp", "client=adamw"], 2e-3, 0.5),
    "MLP, digits, SGD": (64, 0.94, ["data=digits", "model=mlp"], 0.1, 1.0),
    "logistic, digits, SGD": (128, 0.93, ["data=digits", "model=logistic"], 0.1, 1.0),
}
DEVICE = [
    *("strategy=fedavg", "num_clients=1", "partition=iid", "client.local_epochs=1"),
    *("strategy.fraction_train=1.0", "fleet=uniform", "fleet.flops=1e9", "fleet.compute_w=220"),
    *("fleet.down_bps=inf", "fleet.up_bps=inf", "runtime.step_s=0.001", "power=v100"),
    *("executor=serial", "progress=false", "views=false", "target.metric=accuracy"),
    *("target.stop=true", "round_timeout_s=1e6", "evaluate_every=1"),
]


class Compared(NamedTuple):
    """What a job takes under Zeus over what it takes by default, one entry a seed."""

    energy: list[float]
    time: list[float]
    batch_sizes: list[int]


def compared(job: RecurringJob, default: int, seeds: range = SEEDS) -> Compared:
    """Returns energy and time of the last recurrences over those of the default."""
    sizes = sorted(job.epochs)
    limits = {limit for profile in job.profile.values() for limit in profile}
    recurrences = 2 * len(sizes) * len(limits)
    seconds, watts = job.profile[default][max(job.profile[default])]
    epochs = fmean(n for n in job.epochs[default] if n is not None)
    found = Compared([], [], [])
    for seed in seeds:
        runs = recur(Zeus(sizes, default), job, recurrences, np.random.default_rng(seed), eta=ETA)
        last = [run for run in runs if run.recurrence >= recurrences - LAST]
        found.energy.append(sum(run.energy_j for run in last) / LAST / (epochs * seconds * watts))
        found.time.append(sum(run.time_s for run in last) / LAST / (epochs * seconds))
        found.batch_sizes.append(last[-1].batch_size)
    return found


def row(name: str, default: int, job: RecurringJob) -> str:
    """Returns a row of a table."""
    found = compared(job, default)
    saved = [100 * (1 - x) for x in found.energy]
    time = [100 * (1 - x) for x in found.time]
    chosen = max(set(found.batch_sizes), key=found.batch_sizes.count)
    return (
        f"| {name} | {default} | {chosen} | {fmean(saved):.1f} ± {stdev(saved):.1f} % "
        f"| {fmean(time):.1f} ± {stdev(time):.1f} % |"
    )


def traced(folder: Path, gpu: str) -> Iterator[tuple[str, int, RecurringJob]]:
    """Yields the jobs of the authors' traces on a GPU."""
    with (folder / "summary_train.csv").open() as file:
        training = list(csv.DictReader(file))
    with (folder / f"summary_power_{gpu}.csv").open() as file:
        power = list(csv.DictReader(file))
    for name, (dataset, optimizer, default, target, most) in TRACED.items():
        epochs: dict[int, list[int | None]] = defaultdict(list)
        profile: dict[int, dict[float, tuple[float, float]]] = defaultdict(dict)
        for line in power:
            if (line["dataset"], line["optimizer"]) == (dataset, optimizer):
                of = profile[int(line["batch_size"])]
                taken = float(line["time_per_epoch"]), float(line["average_power"])
                of[float(line["power_limit"])] = taken
        for line in training:
            if (line["dataset"], line["optimizer"]) != (dataset, optimizer):
                continue
            b, n = int(line["batch_size"]), float(line["target_epoch"] or "nan")
            if math.isclose(float(line["target_metric"]), target) and b in profile:
                epochs[b].append(None if math.isnan(n) else int(n))
        # Some batch sizes do not fit into some GPUs' memory.
        fits = max(b for b in epochs if b <= default)
        yield name, fits, RecurringJob(epochs, profile, most)


def measured(
    name: str, sizes: Sequence[int] = SIZES, caps: Sequence[float] = CAPS, seeds: range = RUNS
) -> tuple[int, RecurringJob]:
    """Returns the default batch size of a job, and what its runs take in the simulator."""
    default, target, parts, lr, power = MEASURED[name]

    def ran(b: int, seed: int, rounds: int, cap: float) -> Any:
        rate = lr * (b / default) ** power
        own = [f"client.batch_size={b}", f"client.rule.lr={rate:g}", f"target.value={target}"]
        more = [f"seed={seed}", f"num_rounds={rounds}", f"power.cap={cap}"]
        return fl.run(*DEVICE, *parts, *own, *more).summary

    profile: dict[int, dict[float, tuple[float, float]]] = {}
    for b in sizes:
        profile[b] = {}
        for cap in caps:
            summary = ran(b, 0, 1, cap)["totals"]
            seconds = summary["virtual_s"]
            profile[b][cap * LIMIT_W] = seconds, summary["energy_j"]["total"] / seconds
    epochs = {
        b: [
            summary["target"]["round"] if summary["target"]["reached"] else None
            for summary in (ran(b, seed, EPOCHS, 1.0) for seed in seeds)
        ]
        for b in sizes
    }
    for b in sizes:
        print(f"    {name} b={b}: epochs {epochs[b]}, {profile[b][LIMIT_W][0]:.3f} s an epoch")
    return default, RecurringJob(epochs, profile, EPOCHS)


def main() -> None:
    """Prints what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--traces", type=Path)
    parser.add_argument("--measure", action="store_true")
    given = parser.parse_args()
    if not given.traces and not given.measure:
        parser.error("nothing to do: give --traces DIR, --measure, or both")
    heads = "| job | default batch | last batch | energy saved | time saved |"
    heads += "\n|---|---:|---:|---:|---:|"
    for gpu in GPUS if given.traces else ():
        print(f"\n{gpu}\n\n{heads}")
        for job in traced(given.traces, gpu):
            print(row(job[0], *job[1:]))
    if given.measure:
        rows = [row(name, *measured(name)) for name in MEASURED]
        print("\n".join(["", heads, *rows]))


if __name__ == "__main__":
    main()
