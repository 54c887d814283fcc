"""What a part of the model costs a client over the whole, and what parts cost a server.

    python benchmarks/sub_models.py [--quick] [--out FILE]

Clients of the MLP of `client_updates.py` (50,890 weights, 64 examples, two steps of 32) train the
whole model, slices with a share of its hidden units, drawn for each client, or whole models with
quarters of the weights masked; first one by one, then as one `torch.func.vmap` program, in this
process of one thread. They take turns: a ratio is the median over the turns of a part's time over
that of the whole in the same turn and the same way. The server's figure is for extracting the parts
of 10 clients and taking the mean over those that hold a number.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import report
from client_updates import WORKLOADS, make_app, make_model

BATCH, STEPS = 32, 2
ALONE, TOGETHER, HOLDERS = 4, 20, 10
PARTS = {"whole": 1, "slice 1/2": 0.5, "slice 1/4": 0.25, "mask 3/4": 4, "mask 1/2": 7}


def part_of(name: str, layout: Any, units: Any, w: Any, client: int) -> Any:
    """Returns what a client holds of the model."""
    import numpy as np

    from fl.submodels import EveryParameterMatters, FederatedDropout, Whole

    masks = name.startswith("mask")
    rule: Any = EveryParameterMatters(rank="permutation") if masks else FederatedDropout()
    rng = np.random.default_rng(client)
    level = 1 if name == "whole" else PARTS[name]
    return rule.extract(Whole(layout, units, w), level, client, lambda _: rng)


def ways(name: str) -> dict[str, Callable[[], object]]:
    """Returns what is done with a kind of part, by name."""
    import numpy as np
    import torch

    from fl.clients import Masked
    from fl.clients.app.trainer import Trainer
    from fl.clients.app.training import Training
    from fl.strategies.round_rule import Updates
    from fl.submodels import resized, units_of
    from fl.vectors.layout import Layout

    app, model = make_app(WORKLOADS["mlp"]), make_model("mlp")
    layout = Layout.of(model)
    units = units_of(model, layout, WORKLOADS["mlp"].input_shape, tokens=False)
    w = layout.flatten(model.state_dict()).numpy()
    masks = name.startswith("mask")
    several = [part_of(name, layout, units, w, client) for client in range(TOGETHER)]
    if not masks:
        model = resized(model, layout, several[0].size)
    trainer = Trainer(
        model.train(),
        Layout.of(model),
        app.data,
        Masked(app.rule) if masks else app.rule,
        train=True,
        shuffle=True,
        drop_last=False,
        batching="on",
        device=torch.device("cpu"),
        has_mods=False,
        local=None,
        estimator=None,
        contact=None,
    )
    trainings = []
    for client, part in enumerate(several):
        row = part.of(w) if name != "whole" else w
        server = {}
        if masks:
            row = part.put(np.zeros_like(w), row)
            server = {"mask": torch.from_numpy((row != 0).astype(np.float32))}
        trainings.append(
            Training(
                seed=0,
                client=client,
                message_id=f"{client}.0",
                rows=np.asarray(app.data.partitions[client]),
                row=row,
                carried={},
                server=server,
                memory=None,
                scalars={"lr": 0.1},
                steps=STEPS,
                batch_size=BATCH,
                deadline_s=None,
            )
        )

    def alone() -> None:
        for training in trainings[:ALONE]:
            trainer.alone(training)

    deltas = np.random.default_rng(0).standard_normal((HOLDERS, len(w)), dtype=np.float32)

    def server_side() -> None:
        holds = np.ones((HOLDERS, len(w)), dtype=bool)
        held = part_of(name, layout, units, w, 0)
        for i in range(HOLDERS if name != "whole" else 0):
            if i and not masks:  # masks are those of a level
                held = part_of(name, layout, units, w, i)
            holds[i] = False
            holds[i, held.positions] = True
        Updates(deltas, np.ones(HOLDERS), holds=None if holds.all() else holds).mean()

    return {"alone": alone, "together": lambda: trainer.together(trainings), "server": server_side}


def measure(turns: int) -> list[dict[str, Any]]:
    """Returns a row for each kind of part."""
    made = {name: ways(name) for name in PARTS}
    per = {"alone": ALONE, "together": TOGETHER, "server": 1}
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(turns + 1):  # the first one is for caches and imports
        for way, n in per.items():
            for name in made:
                began = time.perf_counter()
                made[name][way]()
                if turn:
                    taken = (time.perf_counter() - began) / n
                    seconds.setdefault((name, way), []).append(taken)
    rows = []
    for name in made:
        row: dict[str, Any] = {"part": name}
        for way in per:
            own, whole = seconds[name, way], seconds["whole", way]
            row[way] = statistics.median(a / b for a, b in zip(own, whole, strict=True))
            row[f"{way}_s"] = statistics.median(own)
        rows.append(row)
    return rows


def main() -> None:
    """Runs the benchmark."""
    arguments = report.parser("sub_models", __doc__).parse_args()
    about = report.machine()
    import torch

    torch.set_num_threads(1)
    rows = measure(7 if arguments.quick else 25)
    report.table(
        "Cost over the whole model of an update, and ms of the server for 10 clients, MLP",
        ("", "one by one", "together", "ms one by one", "ms together", "ms of the server"),
        (
            (
                row["part"],
                f"{row['alone']:.2f}",
                f"{row['together']:.2f}",
                f"{1e3 * row['alone_s']:.2f}",
                f"{1e3 * row['together_s']:.2f}",
                f"{1e3 * row['server_s']:.1f}",
            )
            for row in rows
        ),
    )
    report.publish(arguments.out, rows, arguments, about)


if __name__ == "__main__":
    main()
