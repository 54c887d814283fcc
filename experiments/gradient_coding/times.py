"""Times of coded schemes: FL_DATA_DIR=... python experiments/gradient_coding/times.py.

Replays the published parameters on the stored profile and on a law, chooses parameters on the
profile, and measures what decoding makes of rounding. Prints the tables of README.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl.simulation.world.measurements import read_worker_seconds
from fl.strategies import (
    MSGC,
    SRSGC,
    CodedScheme,
    CyclicCode,
    GradientCode,
    GradientCoding,
    RepetitionCode,
    fastest,
    replayed,
)

N, STORED, PUBLISHED = 256, 26, 480  # workers; jobs on the stored profile, and on the law
SEEDS = range(5)
SEARCHED = ("s", "B", "W", "lam")
LOADS = (0.0, 0.25, 0.5, 0.75, 1.0)
Seconds = NDArray[np.float64]

# The load of each, as published: the authors' GC of s = 15 accepts fewer than 15 stragglers.
SCHEMES: dict[str, tuple[CodedScheme, float]] = {
    "none": (GradientCoding(N, s=0), 1 / N),
    "GC, s = 15": (GradientCoding(N, code="cyclic", s=14), 16 / N),
    "SR-SGC (2, 3, 23)": (SRSGC(N, code="cyclic", B=2, W=3, lam=23), 13 / N),
    "M-SGC (1, 2, 27)": (MSGC(N, code="cyclic", B=1, W=2, lam=27), 56 / 7424),
}
RUN_S = {"none": 1321.18, "GC, s = 15": 1095.14, "SR-SGC (2, 3, 23)": 1019.46}
RUN_S["M-SGC (1, 2, 27)"] = 916.37
PROBED_S = dict(zip(SCHEMES, (122.64, 109.36, 105.92, 103.73), strict=True))


def stored() -> dict[float, Seconds]:
    """Returns the stored profiles by load, shape (30, 256) each."""
    path = Path(os.environ["FL_DATA_DIR"]) / "traces" / "lambda_worker_seconds.npz"
    return {load: read_worker_seconds(path, load).astype(np.float64) for load in LOADS}


def slope(profiles: dict[float, Seconds]) -> float:
    """Returns the seconds of a unit of load, by a regression of means."""
    return float(np.polyfit(LOADS, [seconds.mean() for seconds in profiles.values()], 1)[0])


def law(profile: Seconds, seed: int, rounds: int) -> tuple[Seconds, float, float]:
    """Returns times of Gilbert-Elliott workers, and the chain's two probabilities.

    Who straggles in a profile (more than twice the fastest of the round) is in the slow state. The
    chain moves as the profile's workers do, and times are drawn from its own, state by state.
    """
    slow = profile > 2 * profile.min(axis=1, keepdims=True)
    stay = (slow[1:] & slow[:-1]).sum() / slow[:-1].sum()
    enter = (slow[1:] & ~slow[:-1]).sum() / (~slow[:-1]).sum()
    rng = np.random.default_rng(seed)
    state = rng.random(N) < enter / (enter + 1 - stay)
    times = np.empty((rounds, N))
    for row in times:
        row[:] = np.where(state, rng.choice(profile[slow], N), rng.choice(profile[~slow], N))
        state = rng.random(N) < np.where(state, stay, enter)
    return times, float(enter), float(1 - stay)


def shown(seconds: float, uncoded: float) -> str:
    """Returns a time, and its ratio to that without a code."""
    return f"{seconds:,.1f} ({seconds / uncoded:.3f})"


def replays(profile: Seconds, base: float, jobs: int) -> dict[str, tuple[float, int]]:
    """Returns seconds and waited-out rounds of each scheme."""
    found = {}
    for name, (scheme, load) in SCHEMES.items():
        times = replayed(scheme, profile + load * base, jobs)
        found[name] = times.total_s, int(times.waited_out.sum())
    return found


def published(profile: Seconds, own: float) -> Iterator[str]:
    """Yields the table of the published parameters."""
    law_rounds = PUBLISHED + 4
    laws = [law(profile, seed, law_rounds)[0] for seed in SEEDS]
    columns: dict[str, dict[str, float]] = {"published, run": RUN_S, "published, probed": PROBED_S}
    waits: dict[str, dict[str, float]] = {}
    for base in (2.2013, own):
        here = replays(profile, base, STORED)
        name = f"stored, {base:.2f} s"
        columns[name] = {scheme: each[0] for scheme, each in here.items()}
        waits[name] = {scheme: each[1] / STORED for scheme, each in here.items()}
        many = [replays(times, base, PUBLISHED) for times in laws]
        name = f"law, {base:.2f} s"
        columns[name] = {s: float(np.mean([each[s][0] for each in many])) for s in SCHEMES}
        waits[name] = {
            s: float(np.mean([each[s][1] for each in many])) / PUBLISHED for s in SCHEMES
        }
    yield "| scheme | " + " | ".join(columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for scheme in SCHEMES:
        cells = [shown(column[scheme], column["none"]) for column in columns.values()]
        yield f"| {scheme} | " + " | ".join(cells) + " |"
    order = [" < ".join(short(s) for s in sorted(c, key=c.__getitem__)) for c in columns.values()]
    yield "| order | " + " | ".join(order) + " |"
    yield ""
    yield "| share of rounds that are waited out | published, run | " + " | ".join(waits) + " |"
    yield "|---|---:|" + "---:|" * len(waits)
    run = dict(zip(SCHEMES, (496.0, 129.0, 242.4, 295.8), strict=True))
    for scheme in SCHEMES:
        cells = [f"{100 * column[scheme]:.0f} %" for column in waits.values()]
        yield f"| {scheme} | {100 * run[scheme] / 496:.0f} % | " + " | ".join(cells) + " |"


def short(scheme: str) -> str:
    """Returns the name of a scheme without its parameters."""
    return scheme.split(",")[0].split(" (")[0]


def candidates() -> dict[str, list[CodedScheme]]:
    """Returns the parameters that are tried, by scheme: delays of at most 4 rounds."""
    return {
        "GC": [GradientCoding(N, "cyclic", s=s) for s in range(61)],
        "SR-SGC": [
            SRSGC(N, "cyclic", B=B, W=x * B + 1, lam=lam)
            for lam in range(1, 81)
            for B in range(1, 5)
            for x in range(1, 4)
        ],
        "M-SGC": [
            MSGC(N, "cyclic", B=B, W=W, lam=lam)
            for lam in range(1, 61)
            for W in range(2, 6)
            for B in range(1, W)
            if W - 2 + B <= 4
        ],
    }


def parameters(profile: Seconds, own: float) -> Iterator[str]:
    """Yields the table of the parameters that are the fastest on the profile."""
    yield "| scheme | tried | fastest at 2.20 s | s | fastest at " + f"{own:.2f} s | s |"
    yield "|---|---:|---|---:|---|---:|"
    for name, schemes in candidates().items():
        cells = []
        for base in (2.2013, own):
            best = fastest(schemes, profile, STORED, seconds_per_load=base)
            values = [f"{k} = {v}" for k, v in vars(best.scheme).items() if k in SEARCHED]
            cells += [", ".join(values).replace("lam", "lambda"), f"{best.total_s:.2f}"]
        yield f"| {name} | {len(schemes)} | " + " | ".join(cells) + " |"


def rounding(code: GradientCode, patterns: int = 20) -> float:
    """Returns the median error of decoded sums, in units of that of a sum of the chunks."""
    rng, errors = np.random.default_rng(0), []
    for _ in range(patterns):
        g = rng.standard_normal((code.n, 1000))
        sent = (code.matrix @ g).astype(np.float32).astype(np.float64)
        there = np.ones(code.n, bool)
        there[rng.choice(code.n, code.s, replace=False)] = False
        error = np.abs(code.decode(there) @ sent - g.sum(axis=0)).mean()
        errors.append(error / np.abs(g.astype(np.float32).sum(axis=0) - g.sum(axis=0)).mean())
    return float(np.median(errors))


def codes() -> Iterator[str]:
    """Yields the table of what decoding makes of rounding."""
    yield "| n | s | fractional repetition | cyclic |"
    yield "|---:|---:|---:|---:|"
    for n, s in ((8, 1), (16, 3), (16, 7), (64, 7), (256, 15)):
        cells = [f"{rounding(kind(n, s)):,.1f}" for kind in (RepetitionCode, CyclicCode)]
        yield f"| {n} | {s} | " + " | ".join(cells) + " |"


def main() -> None:
    """Replays everything, and prints the tables."""
    profiles = stored()
    profile, own = profiles[0.0], slope(profiles)
    _, enter, leave = law(profile, 0, 1)
    parts = [
        f"The law's chain, from the stored profile: fast to slow {enter:.3f}, slow to fast "
        f"{leave:.3f}. A unit of load takes {own:.2f} s there, 2.20 s in the published runs.",
        *("**Seconds, and the ratio to uncoded work**", "\n".join(published(profile, own))),
        *("**Parameters that are the fastest on the stored profile**",),
        "\n".join(parameters(profile, own)),
        "**Error of a decoded sum of float32 gradients, in units of that of adding up the chunks**",
        "\n".join(codes()),
    ]
    print("\n\n".join(parts))


if __name__ == "__main__":
    main()
