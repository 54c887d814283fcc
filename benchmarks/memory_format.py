"""Images that lie with channels last in memory, beside images as stored: training and evaluation.

    python benchmarks/memory_format.py [--quick] [--out FILE]

One thread, as a client trains. A step is one of plain SGD on 32 images. An evaluation is of 2,000
images, in batches of 250 with channels last where the model takes them, beside batches of 1,000 as
stored. The two ways take turns, and the figure is the best of their turns.
"""

from __future__ import annotations

import time
from typing import Any

import report

BATCH = 32
STEPS = 5
EVALUATED = 2000


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

    from fl.models import per_example_loss
    from fl.models.channels_last import with_channels_last

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


def measure_evaluation(name: str, model: Any, shape: tuple[int, ...], turns: int) -> dict[str, Any]:
    """Returns the milliseconds of an evaluation, both ways."""
    import torch

    from fl.models import correct, evaluate, per_example_loss

    x, y = torch.randn(EVALUATED, *shape), torch.randint(0, 10, (EVALUATED,))

    def stored() -> None:
        with torch.inference_mode():
            for start in range(0, EVALUATED, 1000):
                inputs, targets = x[start : start + 1000], y[start : start + 1000]
                logits = model(inputs)
                per_example_loss(logits, targets).double().sum().item()
                correct(logits, targets).double().sum().item()

    ways = {"stored": stored, "turned": lambda: evaluate(model, (x, y))}
    best = dict.fromkeys(ways, float("inf"))
    model.eval()
    for _ in range(turns):
        for way, run in ways.items():
            began = time.perf_counter()
            run()
            best[way] = min(best[way], (time.perf_counter() - began) * 1e3)
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
    published = []
    for what, measured in (
        (f"a step of {BATCH} images", measure),
        (f"an evaluation of {EVALUATED:,} images", measure_evaluation),
    ):
        rows = [measured(name, *made, turns) for name, made in make_models().items()]
        report.table(
            f"Milliseconds of {what}",
            ("", "as stored", "channels last", "times as fast"),
            (
                (r["model"], f"{r['stored']:.1f}", f"{r['turned']:.1f}", f"{r['ratio']:.2f}")
                for r in rows
            ),
        )
        published += [{"what": what, **row} for row in rows]
    report.publish(arguments.out, published, arguments, about)


if __name__ == "__main__":
    main()
