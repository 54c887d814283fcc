"""Predicted against real time, on two SuperNodes of this machine, which must be idle otherwise.

    python experiments/prediction/run.py ROOT [--repeats N] [--predict]
    python experiments/prediction/run.py tables

Calibrates, runs each case on a deployment with seeds 0 to N - 1, predicts each, keeps what they
took, and writes the tables of the page: medians, and the least and most. What is in ROOT already is
not run again, so that a run that was stopped goes on; `--predict` runs nothing, and takes what is
there; `tables` predicts nothing. Constants come of `fl calibrate --nodes 1`, and `start_s` from the
messages of the case `calibrated`; all other cases are held out.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from scipy.stats import kendalltau, ks_2samp

from fl.deployment.checking import Timed, in_phases, measured, predicted

sys.path.append(str(Path(__file__).parents[1]))

from results import Record, main

NAME = "prediction"  # of the runtime and the fleet
BASE = (
    *("data=digits", "num_clients=2", "target.value=0.8"),
    *("partition=iid", "client.batch_size=32", "client.rule.lr=0.05"),
)
LINK = {"rate": "10e6", "delay": "0.025"}
LINK_KEYS = ("fleet.down_bps=10e6", "fleet.up_bps=10e6", "fleet.latency_s=0.025")
LARGE = ("model.hidden=[4096]", "client.local_epochs=20")
SMALL = ("model.hidden=[1024]", "client.local_epochs=5")
EVENTS = ("strategy.retry_s=1",)
TOGETHER = "runtime.together=true"  # one command starts both SuperNodes
TIMES = ("client.train=false", "target=null")  # of predictions of times alone


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
    "nodes were not started together": ("together=false",),
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


def typical(records: Sequence[Record], key: str) -> float:
    """Returns the median of what runs took, s."""
    return median(float(record[key]) for record in records)


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
                fit(root)
                (root / "fitted").touch()


def fit(root: Path) -> None:
    """Fits the start of an app to the case `calibrated`."""
    place, conf = directory(root, "calibrated", 0), root / "conf"
    fl("calibrate", NAME, TOGETHER, *TIMES, "-cd", str(conf), "--runs", str(place))


def directory(root: Path, name: str, seed: int) -> Path:
    """Returns where a case's run is."""
    return root / f"{name.replace(', ', '-')}-{seed}"


def record_of(case: str, side: str, seed: int, timed: Timed) -> dict[str, Any]:
    """Returns what is kept of a run, or of a prediction."""
    times, target = timed.times, timed.summary.get("target") or {}
    ages = [float(age) for row in timed.rows if (age := row.get("staleness", "")) not in ("", None)]
    record = {"case": case, "side": side, "seed": seed}
    record |= {"round_s": times["round, median"], "whole_s": times["whole run"]}
    if target.get("reached"):
        record["target_s"] = target["time_s"]
    return record | {"ages": " ".join(map(str, ages))}


def compared(root: Path, repeats: int) -> list[dict[str, Any]]:
    """Returns the records of all cases and of their predictions, also without each term.

    Sides are `measured`; `trained`, a prediction of the same seed; `predicted`, of times alone, for
    several draws of when nodes look, which a prediction does not know; and, for each term, what is
    predicted likewise without it.
    """
    records = []
    for name, case in CASES.items():
        keys = (TOGETHER, *(LINK_KEYS if case.shaped else ()))
        for seed in range(repeats):
            real = measured(directory(root, name, seed))
            records.append(record_of(name, "measured", seed, real))
            simulated = predicted(real.overrides, NAME, root / "conf", keys)
            records.append(record_of(name, "trained", seed, simulated))
        for side, off in {"predicted": (), **TERMS}.items():
            changed = dict(key.split("=") for key in (*keys, *(f"runtime.{key}" for key in off)))
            more = [*(f"{key}={value}" for key, value in changed.items()), *TIMES]
            drawn = in_phases(real.overrides, NAME, root / "conf", more)
            records += [record_of(name, side, phase, timed) for phase, timed in enumerate(drawn)]
    return records


class Sides:
    """The records of the cases, by case and side.

    Args:
        records: as `compared` returns them.
    """

    def __init__(self, records: Sequence[Record]) -> None:
        self.of: dict[tuple[str, str], list[Record]] = {}
        for record in records:
            self.of.setdefault((record["case"], record["side"]), []).append(record)

    def error(self, case: str, side: str = "predicted") -> float:
        """Returns the error of a case's median round, over what it took; medians of all runs."""
        return typical(self.of[case, side], "round_s") / self.took(case) - 1

    def took(self, case: str) -> float:
        """Returns the median of a case's median rounds, s."""
        return typical(self.of[case, "measured"], "round_s")

    def errors(self, case: str) -> list[float]:
        """Returns the error of each run of a case."""
        ours = typical(self.of[case, "predicted"], "round_s")
        return [ours / record["round_s"] - 1 for record in self.of[case, "measured"]]


def tables(records: Sequence[Record]) -> str:
    """Returns the page's tables."""
    return "\n".join(lines(Sides(records)))


def lines(sides: Sides) -> Iterator[str]:
    """Yields the lines of the page's tables."""
    yield "| case | median round, measured | predicted | error | whole run, measured | predicted |"
    yield "|---|---|---|---|---|---|"
    for name in CASES:
        both = [sides.of[name, side] for side in ("measured", "predicted")]
        rounds = " | ".join(f"{spread([r['round_s'] for r in side], '.2f')} s" for side in both)
        whole = " | ".join(f"{typical(side, 'whole_s'):.1f} s" for side in both)
        yield f"| {name} | {rounds} | {sides.error(name):+.1%} | {whole} |"
    yield ""
    for kind in ("rounds", "events", "gossip"):
        held = [n for n, case in CASES.items() if case.kind == kind and n != "calibrated"]
        each = [abs(error) for name in held for error in sides.errors(name)]
        own = [abs(sides.error(name)) for name in held]
        yield (
            f"- {kind}, held out: median of absolute errors {median(own):.1%} of {len(own)} cases; "
            f"of single runs {spread(each, '.1%')}, {len(each)} runs"
        )
    yield ""
    yield f"| error of the median round if | {' | '.join(CASES)} |"
    yield f"|---{'|---' * len(CASES)}|"
    for term in TERMS:
        errors = [f"{sides.error(name, term):+.0%}" for name in CASES]
        yield f"| {term} | {' | '.join(errors)} |"
    yield ""
    yield from ranks(sides)
    yield from ages(sides)


def ranks(sides: Sides) -> Iterator[str]:
    """Yields how the cases rank by time to the target, and by time of a round."""
    reached = {}
    for name in CASES:
        both = [sides.of[name, side] for side in ("measured", "trained")]
        if all("target_s" in record for side in both for record in side):
            reached[name] = [typical(side, "target_s") for side in both]
    for name, (real_s, predicted_s) in reached.items():
        yield f"- {name}: {real_s:.1f} s to the target, {predicted_s:.1f} s predicted"
    if len(reached) > 1:
        tau = kendalltau(*zip(*reached.values(), strict=True)).statistic
        yield f"- Kendall's tau of times to the target, {len(reached)} cases: {tau:.2f}"
    rounds = [(sides.took(n), typical(sides.of[n, "predicted"], "round_s")) for n in CASES]
    tau = kendalltau(*zip(*rounds, strict=True)).statistic
    yield f"- Kendall's tau of median rounds, {len(rounds)} cases: {tau:.2f}"


def ages(sides: Sides) -> Iterator[str]:
    """Yields how far apart the distributions of staleness are."""
    for name, case in CASES.items():
        if case.kind == "events":
            real, simulated = (
                np.array([float(age) for r in sides.of[name, side] for age in r["ages"].split()])
                for side in ("measured", "trained")
            )
            distance = ks_2samp(real, simulated).statistic
            yield (
                f"- {name}: staleness of {real.mean():.2f}, {simulated.mean():.2f} predicted, "
                f"Kolmogorov-Smirnov distance of rows {distance:.2f} ({len(real)} rows)"
            )


def measure() -> list[dict[str, Any]]:
    """Runs what the command line says; returns its records."""
    parser = argparse.ArgumentParser(description="Predicted against real time.")
    parser.add_argument("root", type=Path, metavar="ROOT", help="or `tables`")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="seeds of each case")
    parser.add_argument("--predict", action="store_true", help="run nothing, and predict again")
    given = parser.parse_args()
    if given.repeats < 1:
        parser.error(f"--repeats is {given.repeats}; it must be at least 1")
    place = given.root.absolute()
    if given.predict:
        fit(place)
    else:
        run(place, given.repeats)
    return compared(place, given.repeats)


if __name__ == "__main__":
    main(__file__, measure, tables)
