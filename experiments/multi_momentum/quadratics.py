"""Multi-momentum on quadratics: how near to the optimum steps of one cluster's gradient stay.

    python experiments/multi_momentum/quadratics.py

N = 10 clusters, f_c(x) = (x - b_c)^T A (x - b_c) / 2 with A = diag of d = 20 numbers from 0.1 to 1
and b_c = zeta N(0, I). A step has the gradient of one cluster, drawn uniformly, with noise
N(0, sigma^2 I / d). Every method has the rate of 2^-1, ..., 2^-8 that is nearest to the optimum on
seed 0, mean of the last tenth of 1,000 steps; shown are mean and deviation over seeds 1 to 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from statistics import fmean, stdev

import numpy as np

from fl.randomness import generator
from fl.strategies import FedAvg, FedAvgM, MultiMomentum
from fl.strategies.round_rule import RoundRule, Updates

N, D, STEPS = 10, 20, 1000
LADDER = [2.0**-i for i in range(1, 9)]
METHODS: dict[str, Callable[[], RoundRule]] = {
    "SGD": lambda: FedAvg(),
    "SGD, momentum 0.9": lambda: FedAvgM(eta=0.1, beta=0.9),
    "beta = 0 (FedVARP)": lambda: MultiMomentum(N, beta=0.0),
    "beta = 0.5": lambda: MultiMomentum(N, beta=0.5),
    "beta = 0.9": lambda: MultiMomentum(N, beta=0.9),
    "beta = 0.9, momentum 0.9": lambda: MultiMomentum(
        N, beta=0.9, server_optimizer=FedAvgM(eta=0.1, beta=0.9)
    ),
}
CASES = {
    "clusters differ": (1.0, 0.0),
    "both": (1.0, 1.0),
    "noise alone": (0.0, 1.0),
}


def distance(rule: RoundRule, rate: float, zeta: float, sigma: float, seed: int) -> float:
    """Returns |x - x*| / |x_0 - x*|, mean of the last tenth of the steps; inf if it diverges."""
    rng = generator(seed, "quadratics")
    a = np.linspace(0.1, 1.0, D)
    b = zeta * rng.standard_normal((N, D))
    best = b.mean(axis=0)
    state = rule.init((best + 1).astype(np.float32), D)
    errors = []
    for t in range(STEPS):
        c = int(rng.integers(N))
        noise = sigma / math.sqrt(D) * rng.standard_normal(D)
        delta = -rate * (a * (state.w - b[c]) + noise)
        state = rule.step(state, Updates(delta.astype(np.float32)[None], np.ones(1), clients=[c]))
        error = float(np.linalg.norm(state.w - best)) / math.sqrt(D)
        if not error < 1e3:
            return math.inf
        if t >= 0.9 * STEPS:
            errors.append(error)
    return fmean(errors)


def rows() -> Iterator[str]:
    """Yields the lines of the Markdown table."""
    yield "| method | " + " | ".join(CASES) + " |"
    yield "|---|" + "---:|" * len(CASES)
    for name, make in METHODS.items():
        cells = []
        for zeta, sigma in CASES.values():
            rate = min(LADDER, key=lambda r: distance(make(), r, zeta, sigma, 0))
            values = [distance(make(), rate, zeta, sigma, seed) for seed in range(1, 6)]
            cells.append(f"{fmean(values):.1e} ± {stdev(values):.0e} (2^{round(math.log2(rate))})")
        yield f"| {name} | " + " | ".join(cells) + " |"


if __name__ == "__main__":
    for line in rows():
        print(line, flush=True)
