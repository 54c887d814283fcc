"""What the final models know of each label: test accuracy, by label and by run.

    FL_DATA_DIR=... python experiments/fedau/labels.py outputs/fedau

A line of a Markdown table for every pattern and method, mean over the seeds: how many of the ten
labels are recognised in less than a tenth of their test images, and the lowest and the highest
accuracy on a label.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean

import numpy as np
import torch
from safetensors.torch import load_file

from fl.data import load_cifar10
from fl.models import LogisticRegression, build
from fl.reports import find_runs
from fl.reports.jobs import overrides

MISSED = 0.1


def by_label(file: Path, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
    """Returns a model's accuracy on each label, shape (10,)."""
    model = build(LogisticRegression, tuple(x.shape[1:]), 10, seed=0)
    model.load_state_dict(load_file(file))
    with torch.no_grad():
        right = (model(x).argmax(dim=1) == y).float()
    return np.array([right[y == label].mean() for label in range(10)])


def rows(root: Path) -> list[str]:
    """Returns the lines of the table."""
    source = load_cifar10(num_train=1)
    assert source.scaling is not None
    x = torch.from_numpy(source.scaling(source.test.x))
    y = torch.from_numpy(source.test.y)
    found: dict[tuple[str, str], list[np.ndarray]] = defaultdict(list)
    for folder in sorted(root.iterdir()):
        for run in find_runs(folder / "final"):
            assert run.directory is not None
            pattern = overrides(run)["fleet/availability"]
            accuracies = by_label(run.directory / "model.safetensors", x, y)
            found[pattern, folder.name].append(accuracies)
    lines = [
        "| pattern | method | labels missed | lowest (%) | highest (%) |",
        "|---|---|---:|---:|---:|",
    ]
    for (pattern, method), values in sorted(found.items()):
        missed = fmean(float((v < MISSED).sum()) for v in values)
        low, high = fmean(float(v.min()) for v in values), fmean(float(v.max()) for v in values)
        lines.append(
            f"| {pattern} | {method} | {missed:.1f} | {100 * low:.0f} | {100 * high:.0f} |"
        )
    return lines


if __name__ == "__main__":
    print("\n".join(rows(Path(sys.argv[1]))))
