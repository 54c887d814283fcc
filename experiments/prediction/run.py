"""Predicted against real time, on two SuperNodes of this machine, which must be idle otherwise.

    python experiments/prediction/run.py ROOT [--repeats N] [--predict]

Calibrates, runs each case on a deployment with seeds 0 to N - 1, predicts each, and prints the
tables of the page: medians, and the least and most. What is in ROOT already is not run again, so
that a run that was stopped goes on; `--predict` runs nothing, and takes what is there. Constants
come of `fl calibrate --nodes 1`, and `start_s` from the messages of the case `calibrated`; all
other cases are held out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import numpy as np
from scipy.stats import kendalltau, ks_2samp

from fl.deployment.checking import Timed, measured, predicted

NAME = "prediction"  # of the runtime and the fleet
ROUND = "round, median"
BASE = (
    *("data=digits", "num_clients=2", "target.value=0.8"),
    *("partition=iid", "client.batch_size=32", "client.rule.lr=0.05"),
)
LINK = {"rate": "10e6", "delay": "0.025"}
LINK_KEYS = ("fleet.down_bps=10e6", "fleet.up_bps=10e6", "fleet.latency_s=0.025")
LARGE = ("model.hidden=[4096]", "client.local_epochs=20")
SMALL = ("model.hidden=[1024]", "client.local_epochs=5")
EVENTS = ("strategy.retry_s=1",)


@dataclass(frozen=True)
class Case:
    """A run.

    Attributes:
        kind: of strategy: rounds, events or gossip.
        overrides: beside those of all cases.
        shaped: whether each SuperNode is behind a link of 10 Mbit/s and 25 ms.
    """

    kind: str
    overrides: Sequence[str]
    shaped: bool = False


BUFFER = ("strategy=fedbuff", "strategy.rule.buffer_size=2", *EVENTS)

CASES = {
    "calibrated": Case("rounds", ("strategy=fedavg", "num_rounds=6", *LARGE)),
    "fedavg, small": Case("rounds", ("strategy=fedavg", "num_rounds=6", *SMALL)),
    "fedavg, large, link": Case("rounds", ("strategy=fedavg", "num_rounds=5", *LARGE), True),
    "fedavg, small, link, int8": Case(
        "rounds", ("strategy=fedavg", "num_rounds=5", "compressor=int8", *SMALL), True
    ),
    "fedbuff, small": Case("events", ("num_rounds=6", *BUFFER, *SMALL)),
    "fedbuff, large, link, top-k": Case(
        "events", ("num_rounds=5", "compressor=ef_topk_int8", *BUFFER, *LARGE), True
    ),
    "fedasync, small, link": Case(
        "events", ("strategy=fedasync", "num_rounds=12", *EVENTS, *SMALL), True
    ),
    "dfedavg, small": Case(
        "gossip", ("strategy=dfedavg", "topology=complete", "num_rounds=5", *SMALL)
    ),
}
TERMS = {
    "processes are there": ("start_s=0", "object_retry_s=0"),
    "apps start when all is there": ("starts_ahead=false",),
    "nobody polls": (
        *("poll_s=0", "reply_poll_s=0", "server_poll_s=0", "task_poll_s=0", "exchange_poll_s=0"),
    ),
    "steps take their FLOPs alone": ("step_s=0", "step_s_per_parameter=0"),
    "bytes cost nothing to make": (
        *("decode_s_per_byte=0", "encode_s_per_byte=0"),
        *("send_s_per_byte=0", "receive_s_per_byte=0"),
    ),
    "one round trip, no calls": (
        *("trips_down=0.5", "trips_up=0.5", "call_s=0", "lanes=null", "framing_bytes=0"),
    ),
}
"""What is switched off, to the keys of the runtime that do it."""


@dataclass
class Both:
    """A case, as it was and as it is predicted, one for each seed."""

    case: Case
    real: list[Timed] = field(default_factory=list)
    simulated: list[Timed] = field(default_factory=list)
    without: dict[str, list[float]] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The error of the median round, over what it took; of both the median of all seeds."""
        return typical(self.simulated, ROUND) / typical(self.real, ROUND) - 1

    @property
    def errors(self) -> list[float]:
        """The same of each seed."""
        pairs = zip(self.simulated, self.real, strict=True)
        return [simulated.times[ROUND] / real.times[ROUND] - 1 for simulated, real in pairs]


def typical(runs: Sequence[Timed], key: str) -> float:
    """Returns the median of what runs took, s."""
    return median(run.times[key] for run in runs)


def spread(values: Sequence[float], form: str) -> str:
    """Returns the median of values, with the least and the most where there are several."""
    ends = f" ({min(values):{form}} to {max(values):{form}})" if len(values) > 1 else ""
    return f"{median(values):{form}}{ends}"


def fl(*words: str) -> None:
    """Runs `fl`."""
    subprocess.run([sys.executable, "-m", "fl", *words], check=True)


def run(root: Path, repeats: int) -> None:
    """Calibrates, and runs what is not there yet."""
    conf = root / "conf"
    if not (conf / "runtime" / f"{NAME}.yaml").is_file():
        fl("calibrate", NAME, "--nodes", "1", "-cd", str(conf))
    for seed in range(repeats):  # outside: one that is stopped early has some of each
        for name, case in CASES.items():
            place = directory(root, name, seed)
            if not (place / "summary.json").is_file():
                print(f"== {name}, seed {seed}", flush=True)
                shutil.rmtree(place, ignore_errors=True)  # of a run that was stopped
                link = [f"--{key}={value}" for key, value in LINK.items()] if case.shaped else []
                deploy = [sys.executable, "-m", "fl.deployment", "--directory", str(place), *link]
                subprocess.run([*deploy, *BASE, f"seed={seed}", *case.overrides], check=True)
            if name == "calibrated" and not (root / "fitted").exists():
                fl("calibrate", NAME, "-cd", str(conf), "--runs", str(place))
                (root / "fitted").touch()


def directory(root: Path, name: str, seed: int) -> Path:
    """Returns where a case's run is."""
    return root / f"{name.replace(', ', '-')}-{seed}"


def compared(root: Path, repeats: int) -> dict[str, Both]:
    """Returns all cases with their predictions, also without each term."""
    found = {name: Both(case) for name, case in CASES.items()}
    for name, both in found.items():
        links = LINK_KEYS if both.case.shaped else ()
        for seed in range(repeats):
            real = measured(directory(root, name, seed))
            both.real.append(real)
            both.simulated.append(predicted(real.overrides, NAME, root / "conf", links))
            for term, keys in TERMS.items():
                more = ("client.train=false", *(f"runtime.{key}" for key in keys))
                times = predicted(real.overrides, NAME, root / "conf", (*links, *more)).times
                both.without.setdefault(term, []).append(times[ROUND] / real.times[ROUND] - 1)
    return found


def tables(found: Mapping[str, Both]) -> Iterator[str]:
    """Yields the lines of the page's tables."""
    yield "| case | median round, measured | predicted | error | whole run, measured | predicted |"
    yield "|---|---|---|---|---|---|"
    for name, both in found.items():
        sides = (both.real, both.simulated)
        rounds = " | ".join(f"{spread([t.times[ROUND] for t in side], '.2f')} s" for side in sides)
        whole = " | ".join(f"{typical(side, 'whole run'):.1f} s" for side in sides)
        yield f"| {name} | {rounds} | {both.error:+.1%} | {whole} |"
    yield ""
    for kind in ("rounds", "events", "gossip"):
        held = [b for n, b in found.items() if b.case.kind == kind and n != "calibrated"]
        each = [abs(error) for both in held for error in both.errors]
        own = [abs(both.error) for both in held]
        yield (
            f"- {kind}, held out: median of absolute errors {median(own):.1%} of {len(own)} cases; "
            f"of single runs {spread(each, '.1%')}, {len(each)} runs"
        )
    yield ""
    yield f"| error of the median round if | {' | '.join(found)} |"
    yield f"|---{'|---' * len(found)}|"
    for term in TERMS:
        errors = [f"{median(both.without[term]):+.0%}" for both in found.values()]
        yield f"| {term} | {' | '.join(errors)} |"
    yield ""
    yield from ranks(found)
    yield from ages(found)


def ranks(found: Mapping[str, Both]) -> Iterator[str]:
    """Yields how the cases rank by time to the target, and by time of a round."""
    reached = {
        name: [
            median(t.summary["target"]["time_s"] for t in side) for side in (b.real, b.simulated)
        ]
        for name, b in found.items()
        if all(t.summary["target"]["reached"] for t in (*b.real, *b.simulated))
    }
    for name, (real_s, predicted_s) in reached.items():
        yield f"- {name}: {real_s:.1f} s to the target, {predicted_s:.1f} s predicted"
    if len(reached) > 1:
        tau = kendalltau(*zip(*reached.values(), strict=True)).statistic
        yield f"- Kendall's tau of times to the target, {len(reached)} cases: {tau:.2f}"
    rounds = [[typical(side, ROUND) for side in (b.real, b.simulated)] for b in found.values()]
    tau = kendalltau(*zip(*rounds, strict=True)).statistic
    yield f"- Kendall's tau of median rounds, {len(rounds)} cases: {tau:.2f}"


def ages(found: Mapping[str, Both]) -> Iterator[str]:
    """Yields how far apart the distributions of staleness are."""
    for name, both in found.items():
        if both.case.kind == "events":
            real, simulated = (
                np.array(
                    [
                        float(age)
                        for run in side
                        for row in run.rows
                        if (age := row.get("staleness", "")) != ""
                    ]
                )
                for side in (both.real, both.simulated)
            )
            distance = ks_2samp(real, simulated).statistic
            yield (
                f"- {name}: staleness of {real.mean():.2f}, {simulated.mean():.2f} predicted, "
                f"Kolmogorov-Smirnov distance of rows {distance:.2f} ({len(real)} rows)"
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Predicted against real time.")
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="seeds of each case")
    parser.add_argument("--predict", action="store_true", help="run nothing")
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error(f"--repeats is {given.repeats}; it must be at least 1")
    place = given.root.absolute()
    if not given.predict:
        run(place, given.repeats)
    print("\n".join(tables(compared(place, given.repeats))))
