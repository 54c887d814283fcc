"""Aggregation rules beside the bare cost of what they are made of, on one machine in one run.

    python benchmarks/aggregation.py [--out FILE] [--n 10 30 100] [--d 100000 1000000]

For each number of vectors n and length d, in float32: a copy of the matrix, a sort of each
coordinate, and the product X X^T, then every rule. A rule's cost is given in milliseconds, as a
multiple of the bare cost it is measured by, and as the memory it takes at its peak, as a share of
the matrix. Everything runs on one thread; times are the thread's own, the least of runs that take
turns. Machines differ and are shared: only the ratios of one run mean something.
"""

from __future__ import annotations

import os
import time
import tracemalloc
from collections.abc import Callable
from typing import Any, Literal

os.environ["OMP_NUM_THREADS"] = "1"  # read once, when NumPy is imported

import numpy as np
import report
from numpy.typing import NDArray

from fl import aggregation
from fl.aggregation import Aggregator, PreAggregated
from fl.aggregation.gram import gram

Matrix = NDArray[np.float32]
Measure = Literal["copy", "sort", "gram", "gram+sort"]

LEAST_SECONDS = 0.3  # repeat a measurement for so long, and at least three times


def least_ms(*runs: Callable[[], object]) -> list[float]:
    """Returns the shortest of a few runs of each, in milliseconds.

    They take turns, so that what else the machine does falls on all of them alike.
    """
    times: list[list[float]] = [[] for _ in runs]
    while len(times[0]) < 3 or sum(map(sum, times)) < LEAST_SECONDS:
        for run, of_run in zip(runs, times, strict=True):
            start = time.thread_time()
            run()
            of_run.append(time.thread_time() - start)
    return [1e3 * min(of_run) for of_run in times]


def peak_share(run: Callable[[], object], matrix: Matrix) -> float:
    """Returns the most memory that NumPy held during a run, as a share of the matrix."""
    tracemalloc.start()
    run()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak / matrix.nbytes


def vectors(n: int, d: int, f: int) -> Matrix:
    """Returns n - f vectors about a common mean, and f copies of one that is shifted."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, d), dtype=np.float32)
    x += rng.standard_normal(d, dtype=np.float32)
    x[n - f :] = x[: n - f].mean(axis=0) - np.float32(1.5)
    return x[rng.permutation(n)]


def rules(n: int, f: int) -> list[tuple[str, Measure, Aggregator]]:
    """Returns (name, the bare cost it is measured by, rule)."""
    a = aggregation
    smea_f = {10: 1, 30: 2}.get(n, 1)  # it looks at all subsets
    return [
        ("mean", "copy", a.Mean()),
        ("sign majority", "copy", a.SignMajority()),
        ("norm clipping", "gram", a.NormClipping(1.0)),
        ("norm elimination", "gram", a.NormElimination(f)),
        ("centered clipping", "gram", a.CenteredClipping(100.0)),
        ("FLTrust", "gram", a.FLTrust()),
        ("MoNNA", "gram", a.NearestNeighbourAveraging(f)),
        ("median", "sort", a.Median()),
        ("trimmed mean", "sort", a.TrimmedMean(f)),
        ("MeaMed", "sort", a.MeaMed(f)),
        ("geometric median", "gram", a.GeometricMedian()),
        ("Krum", "gram", a.Krum(f)),
        ("Multi-Krum", "gram", a.MultiKrum(f)),
        ("CAF", "gram", a.CAF(f)),
        ("MDA", "gram", a.MDA(f)),
        (f"SMEA f={smea_f}", "gram", a.SMEA(smea_f)),
        ("FABA", "gram", a.FABA(f)),
        ("Flag", "gram", a.FlagAggregator()),
        ("Bulyan", "gram+sort", a.Bulyan(min(f, (n - 3) // 4))),
        ("NNM > Krum", "gram", PreAggregated([a.NNM()], a.Krum(), f)),
        ("ARC > NNM > Krum", "gram", PreAggregated([a.ARC(), a.NNM()], a.Krum(), f)),
        ("bucketing > Krum", "gram", PreAggregated([a.Bucketing(2)], a.Krum(bound="2f+1"), f)),
        ("NNM > trimmed mean", "gram+sort", PreAggregated([a.NNM()], a.TrimmedMean(), f)),
        ("ARC > trimmed mean", "sort", PreAggregated([a.ARC()], a.TrimmedMean(), f)),
        ("bucketing > median", "sort", PreAggregated([a.Bucketing(2)], a.Median(), f)),
    ]


def measure(n: int, d: int) -> list[dict[str, Any]]:
    """Returns one row per bare cost and rule."""
    f = max(1, n // 10)
    x = vectors(n, d, f)
    target = np.empty_like(x)
    distinct = np.random.default_rng(1).standard_normal((n, d), dtype=np.float32)
    close = distinct + np.float32(100.0)
    bare: dict[Measure, Callable[[], object]] = {
        "copy": lambda: np.copyto(target, x),
        "sort": lambda: np.sort(x, axis=0),
        "gram": lambda: x @ x.T,
        "gram+sort": lambda: (x @ x.T, np.sort(x, axis=0)),
    }
    rows: list[dict[str, Any]] = []

    def add(name: str, of: Measure, run: Callable[[], object]) -> None:
        ms, beside = least_ms(run, bare[of])
        row = {"n": n, "d": d, "rule": name, "ms": ms, "of": of, "ratio": ms / beside}
        rows.append(row | {"peak": peak_share(run, x)})

    for of, bare_run in bare.items():
        add(of, of, bare_run)
    for name, matrix in (("distinct", distinct), ("copies", x), ("close", close)):
        add(f"our Gram, {name}", "gram", lambda matrix=matrix: gram(matrix))  # type: ignore[misc]
    for name, of, rule in rules(n, f):

        def run(rule: Aggregator = rule) -> object:
            reference = x[0] if rule.reference != "unused" else None
            return rule(x, rng=np.random.default_rng(0), reference=reference)

        add(name, of, run)
    return rows


def main() -> None:
    """Runs the benchmark, prints a table for each size, and writes the JSON file."""
    parser = report.parser("aggregation", __doc__)
    parser.add_argument("--n", type=int, nargs="+", default=[10, 30, 100], help="vectors")
    parser.add_argument("--d", type=int, nargs="+", default=[100_000, 1_000_000], help="length")
    arguments = parser.parse_args()
    about = report.machine()
    rows: list[dict[str, Any]] = []
    for d in arguments.d[:1] if arguments.quick else arguments.d:
        for n in arguments.n[:2] if arguments.quick else arguments.n:
            measured = measure(n, d)
            rows += measured
            report.table(
                f"n = {n}, d = {d}, f = {max(1, n // 10)}",
                ["rule", "ms", "times", "of", "peak / matrix"],
                [
                    (
                        row["rule"],
                        f"{row['ms']:.2f}",
                        f"{row['ratio']:.2f}",
                        row["of"],
                        f"{row['peak']:.2f}",
                    )
                    for row in measured
                ],
            )
    report.publish(arguments.out, rows, arguments, about)


if __name__ == "__main__":
    main()
