"""A training step on images that lie with channels last in memory, beside one on images as stored.

    python benchmarks/memory_format.py [--quick] [--out FILE]

One thread, as a client trains; 32 images a step of plain SGD. The two ways take turns, a few steps
at a time, and the figure is the best of their turns.
"""

from __future__ import annotations

import time
from typing import Any

import report

BATCH = 32
STEPS = 5


def make_models() -> dict[str, tuple[Any, tuple[int, ...]]]:
    """Returns modules and the shape of their inputs, by name."""
    from torch import nn

    from fl.models import LeafCNN, ResNet8

    grey, colour = (1, 28, 28), (3, 32, 32)
    small = nn.Sequential(
        *(nn.Conv2d(1, 10, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Conv2d(10, 20, 5), nn.MaxPool2d(2), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(320, 50), nn.ReLU(), nn.Linear(50, 10)),
    )
    return {
        "LeafCNN, 28x28": (LeafCNN(grey, 10, width=512), grey),
        "LeafCNN, 32x32 colour": (LeafCNN(colour, 10, width=512), colour),
        "ResNet-8, 32x32 colour": (ResNet8(colour, 10), colour),
        "two small convolutions, 28x28": (small, grey),
    }


def measure(name: str, model: Any, shape: tuple[int, ...], turns: int) -> dict[str, Any]:
    """Returns the milliseconds of a step, both ways."""
    import torch

    from fl.clients.app.examples import with_channels_last
    from fl.models import per_example_loss

    optimizer = torch.optim.SGD(model.train().parameters(), lr=0.01)
    x, y = torch.randn(BATCH, *shape), torch.randint(0, 10, (BATCH,))
    best = {"stored": float("inf"), "turned": float("inf")}
    for _ in range(turns):
        for way in best:
            began = time.perf_counter()
            for _ in range(STEPS):
                optimizer.zero_grad()
                inputs = with_channels_last(x) if way == "turned" else x
                per_example_loss(model(inputs), y).mean().backward()
                optimizer.step()
            best[way] = min(best[way], (time.perf_counter() - began) / STEPS * 1e3)
    return {"model": name, **best, "ratio": best["stored"] / best["turned"]}


def main() -> None:
    """Runs the benchmark."""
    parser = report.parser("memory_format", __doc__)
    arguments = parser.parse_args()
    about = report.machine()
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    turns = 5 if arguments.quick else 20
    rows = [measure(name, *made, turns) for name, made in make_models().items()]
    report.table(
        f"Milliseconds of a step of {BATCH} images",
        ("", "as stored", "channels last", "times as fast"),
        (
            (row["model"], f"{row['stored']:.1f}", f"{row['turned']:.1f}", f"{row['ratio']:.2f}")
            for row in rows
        ),
    )
    report.publish(arguments.out, rows, arguments, about)


if __name__ == "__main__":
    main()
