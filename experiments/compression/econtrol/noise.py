"""EControl and EF21 on quadratics with noise, by the number of clients.

    python experiments/compression/econtrol/noise.py          measures, and replaces the table
    python experiments/compression/econtrol/noise.py tables   makes it of what was kept

The task is that of ../quadratics.py, for 6,000 steps. All clients and settings are one array, whose
first steps are compared with those of the project's compressors.
"""

from __future__ import annotations

import math
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[2]))

from results import main

from fl.compression import EF21, EControl, TopK
from fl.randomness import generator

D, STEPS = 20, 6000
CLIENTS, TUNING, SEEDS = (4, 16, 64), 0, (1, 2, 3, 4, 5)
RATES = [2.0**-k for k in range(2, 12)]
ETAS = {"EF21": (0.0,), "EControl": (0.01, 0.02, 0.05, 0.1)}
EDGE = r" \*"  # at what is at the edge of its grid
Point = tuple[float, float]
"""Learning rate and eta; EF21 is EControl with eta = 0."""


def distances(points: Sequence[Point], n: int, seed: int, steps: int = STEPS) -> list[float]:
    """Returns |x - x*| / |x_0 - x*| of each point, mean of the last tenth of the steps."""
    rng = generator(seed, "quadratics", n)
    a = np.linspace(0.1, 1.0, D)
    optima = rng.standard_normal((n, D))
    best = optima.mean(axis=0)
    lr, eta = (np.array(each)[:, None] for each in zip(*points, strict=True))
    x = np.broadcast_to(best + 1.0, (len(points), D)).copy()
    h: NDArray[np.float64] = np.zeros((len(points), n, D))
    e = np.zeros_like(h)
    errors = np.zeros(len(points))
    late = range(math.ceil(0.9 * steps), steps)
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(steps):
            g = a * (x[:, None] - optima) + rng.standard_normal((n, D)) / math.sqrt(D)
            if t == 0:
                h = g
            else:
                difference = g - h
                wanted = eta[:, None] * e + difference
                at = np.abs(wanted).argmax(axis=2, keepdims=True)
                sent = np.zeros_like(h)
                np.put_along_axis(sent, at, np.take_along_axis(wanted, at, axis=2), axis=2)
                h = h + sent
                e += difference - sent
            x = x - lr * h.mean(axis=1)
            if t in late:
                errors += np.linalg.norm(x - best, axis=1) / math.sqrt(D)
    errors /= len(late)
    return [float(error) if error < 1e3 else math.inf for error in errors]


def check() -> None:
    """Compares 100 steps with those of the compressors.

    Raises:
        AssertionError: they differ by more than float32 rounds.
    """
    page = runpy.run_path(str(Path(__file__).parents[1] / "quadratics.py"))
    page["distance"].__globals__["STEPS"] = 100
    top = TopK(density=1 / D)
    for eta, channel in ((0.0, EF21(top)), (0.05, EControl(top, eta=0.05))):
        theirs = page["distance"](channel, 0.125, 4, 1.0, 1.0, 3)
        (ours,) = distances([(0.125, eta)], 4, 3, 100)
        assert math.isclose(ours, theirs, rel_tol=1e-4), (ours, theirs)


def measure() -> list[dict[str, Any]]:
    """Returns a record for each point that was tried, and each seed of the best."""
    check()
    found = []
    for n in CLIENTS:
        for rule, etas in ETAS.items():
            points = [(lr, eta) for lr in RATES for eta in etas]
            tried = dict(zip(points, distances(points, n, TUNING), strict=True))
            best = min(tried, key=lambda point: tried[point])
            ends = [(TUNING, point, error) for point, error in tried.items()]
            ends += [(seed, best, distances([best], n, seed)[0]) for seed in SEEDS]
            for seed, (lr, eta), error in ends:
                of = {"n": n, "rule": rule, "part": "tune" if seed == TUNING else "final"}
                found.append(of | {"seed": seed, "lr": lr, "eta": eta, "distance": error})
    return found


def tables(records: list[dict[str, Any]]) -> str:
    """Returns the page's table."""
    lines = [
        "| rule | n | rate | eta | distance | next best point, tuning |",
        "|---|" + "---:|" * 5,
    ]
    for rule in ETAS:
        for n in CLIENTS:
            mine = [one for one in records if one["rule"] == rule and one["n"] == n]
            tried = sorted(
                (one["distance"], one["lr"], one["eta"]) for one in mine if one["part"] == "tune"
            )
            (_, lr, eta), (_, next_lr, next_eta) = tried[:2]
            edges = (min(ETAS[rule]), max(ETAS[rule])) if len(ETAS[rule]) > 1 else ()
            chosen = f"{rate(lr)} | {eta:g}{EDGE if eta in edges else ''}"
            ends = [one["distance"] for one in mine if one["part"] == "final"]
            lines.append(
                f"| {rule} | {n} | {chosen} | {fmean(ends):.4f} ± {stdev(ends):.4f} | "
                f"{rate(next_lr)}, {next_eta:g} |"
            )
    return "\n".join(lines)


def rate(lr: float) -> str:
    """Returns a power of 2; a star stands at the edge of the grid."""
    return f"2^{round(math.log2(lr))}{EDGE if lr in (RATES[0], RATES[-1]) else ''}"


if __name__ == "__main__":
    main(__file__, measure, tables)
