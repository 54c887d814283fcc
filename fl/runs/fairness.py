"""How good and how equal what clients have is: numbers about the accuracies of all."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def fairness(accuracies: Sequence[float], examples: Sequence[int]) -> dict[str, float]:
    """Returns what says how N accuracies q_i lie, one of each client, by name.

    - "accuracy": the mean; "accuracy_weighted": the mean with the numbers of examples as weights;
    - "accuracy_worst_decile": the mean of the ceil(N / 10) lowest; "accuracy_best_decile" of the
      highest;
    - "std": sqrt(1/N sum_i (q_i - mean)^2);
    - "jain": Jain's index (sum_i q_i)^2 / (N sum_i q_i^2), in [1/N, 1];
    - "entropy": of q_i / sum_j q_j, divided by log N, in [0, 1], with 0 log 0 = 0.

    Both of the last are 1 if all q_i are equal, also if all are 0 or N is 1.

    Args:
        accuracies: at least one, in [0, 1].
        examples: as many, each at least 1.
    """
    q = np.sort(np.asarray(accuracies, dtype=np.float64))
    n, total = len(q), float(q.sum())
    tenth = math.ceil(n / 10)
    jain = entropy = 1.0
    if total > 0:
        jain = total**2 / (n * float(q @ q))
        share = q[q > 0] / total
        if n > 1:
            entropy = float((share * np.log(1 / share)).sum()) / math.log(n)
    return {
        "accuracy": float(q.mean()),
        "accuracy_weighted": float(np.average(accuracies, weights=examples)),
        "accuracy_worst_decile": float(q[:tenth].mean()),
        "accuracy_best_decile": float(q[-tenth:].mean()),
        "std": float(q.std()),
        "jain": jain,
        "entropy": entropy,
    }
