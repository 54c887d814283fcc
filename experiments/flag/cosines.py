"""How near the Flag Aggregator of its authors' code is to the mean of unit vectors.

    python experiments/flag/cosines.py          measures, and replaces the page's table
    python experiments/flag/cosines.py tables   makes it of what was kept

Gradients are those of workers that train a perceptron on the digits, with batches of their own.
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy

sys.path.append(str(Path(__file__).parents[1]))

from results import main
from sklearn.datasets import load_digits

from fl.aggregation import FlagAggregator
from fl.models import MLP

P, BATCH, RATE = 15, 32, 0.2
STEPS, BYZANTINE, COMPONENTS, ITERATIONS = (0, 20, 200), (0, 1, 3), (8, 2), (1, 100)
SEEDS = range(5)
Matrix = NDArray[np.float64]


def gradients(seed: int) -> dict[int, Matrix]:
    """Returns the workers' gradients after so many steps by their mean, shape (P, d) each."""
    torch.manual_seed(seed)
    pixels, target = load_digits(return_X_y=True)
    x, y = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(target)
    model = MLP((8, 8, 1), 10, hidden=[32])
    parameters = list(model.parameters())
    found = {}
    for step in range(max(STEPS) + 1):
        rows = []
        for _ in range(P):
            batch = torch.randint(len(x), (BATCH,))
            loss = cross_entropy(model(x[batch].reshape(-1, 8, 8, 1)), y[batch])
            grad = torch.autograd.grad(loss, parameters)
            rows.append(torch.cat([part.reshape(-1) for part in grad]))
        stacked = torch.stack(rows)
        if step in STEPS:
            found[step] = stacked.numpy().astype(np.float64)
        flat = torch.nn.utils.parameters_to_vector(parameters) - RATE * stacked.mean(0)
        torch.nn.utils.vector_to_parameters(flat.detach(), parameters)
    return found


def cosine(x: Matrix, components: int, iterations: int) -> float:
    """Returns that between the rule and the mean of unit vectors."""
    rule = FlagAggregator(components=components, iterations=iterations, form="repo")
    a, b = rule(x), (x / np.linalg.norm(x, axis=1, keepdims=True)).mean(0)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def measure() -> list[dict[str, Any]]:
    """Returns a record for each seed and setting."""
    found = []
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        for step, rows in gradients(seed).items():
            for f in BYZANTINE:
                x = rows.copy()
                x[:f] = rng.random((f, x.shape[1]))  # the authors' attack
                for m in COMPONENTS:
                    for iterations in ITERATIONS:
                        of = {"seed": seed, "step": step, "f": f, "m": m, "iterations": iterations}
                        found.append(of | {"cosine": cosine(x, m, iterations)})
    return found


def tables(records: list[dict[str, Any]]) -> str:
    """Returns the page's table: means, and the least of the seeds."""
    columns = [(m, iterations) for m in COMPONENTS for iterations in ITERATIONS]
    said = {1: "1 iteration", 100: "100"}
    heads = " | ".join(f"m = {m}, {said[iterations]}" for m, iterations in columns)
    lines = [f"| steps | f | {heads} |", "|---:|---:|" + "---:|" * len(columns)]
    for step in STEPS:
        for f in BYZANTINE:
            cells = []
            for m, iterations in columns:
                of = {"step": step, "f": f, "m": m, "iterations": iterations}.items()
                values = [one["cosine"] for one in records if of <= one.items()]
                cells.append(f"{fmean(values):.4f} ({min(values):.4f})")
            lines.append(f"| {step} | {f} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main(__file__, measure, tables)
