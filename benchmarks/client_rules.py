"""What each client rule and correction costs over plain SGD, alone and trained together.

    python benchmarks/client_rules.py [--quick] [--out FILE]

The contenders are the members of `client` and `client/correction` in fl/conf, a correction with
plain SGD, at their defaults, and the corrections' variants with a second gradient a step. Each
trains the same clients of the MLP of `client_updates.py` (50,890 weights, 64 examples, two steps of
32), first one by one, then as one `torch.func.vmap` program, in
this process of one thread. They take turns with plain SGD: a ratio is the median over the turns of
a rule's time over that of plain SGD in the same turn and the same way. A rule that does not train
together says why.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import report
from client_updates import EXAMPLES, WORKLOADS, make_app, make_model

PLAIN = "sgd"
BATCH, STEPS = 32, 2
ALONE, TOGETHER = 4, 20  # clients of a turn
VARIANTS: dict[str, dict[str, Any]] = {
    "control_variates": {"option": "I"},
    "controlled_momentum": {"variance_reduction": True},
    "global_momentum": {"variance_reduction": True},
    "proxskip_shift": {"variance_reduction": True},
}


def contenders() -> Iterator[tuple[str, Any]]:
    """Yields what each member is called, and its rule."""
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate

    import fl
    from fl.clients import Corrected, Sgd

    conf = Path(fl.__file__).parent / "conf"
    with initialize_config_dir(str(conf), version_base=None):
        for path in sorted((conf / "client").glob("*.yaml")):
            config = compose("config", overrides=[f"client={path.stem}"])
            yield path.stem, instantiate(config.client.rule)
        for path in sorted((conf / "client" / "correction").glob("*.yaml")):
            config = compose("config", overrides=[f"client/correction={path.stem}"])
            correction = instantiate(config.client.correction)
            yield f"{PLAIN} with {path.stem}", Corrected(Sgd(lr=0.1), correction)
            if changed := VARIANTS.get(path.stem):
                said = ", ".join(f"{key}={value}" for key, value in changed.items())
                variant = replace(correction, **changed)
                yield f"{PLAIN} with {path.stem}, {said}", Corrected(Sgd(lr=0.1), variant)


def trainings(app: Any, rule: Any, n: int) -> list[Any]:
    """Returns what n clients are to do, that have never been asked before."""
    import numpy as np
    import torch

    from fl.clients.app.training import Training
    from fl.vectors.layout import Layout

    model = make_model("mlp")
    layout = Layout.of(model)
    row = torch.nn.utils.parameters_to_vector(model.parameters()).detach().numpy()
    scalars = dearest(rule)
    return [
        Training(
            seed=0,
            client=i,
            message_id=f"{i}.0",
            rows=np.asarray(app.data.partitions[i]),
            row=row,
            carried={},
            server={name: torch.zeros(layout.num_trainable) for name in rule.needs},
            memory=None,
            scalars=scalars,
            steps=STEPS,
            batch_size=BATCH,
            deadline_s=None,
        )
        for i in range(n)
    ]


def dearest(rule: Any) -> dict[str, float]:
    """Returns what a message makes of a rule's task; of several roles, that with most gradients."""
    from fl.errors import ConfigError

    found = []
    for values in product((1.0, 0.0), repeat=len(rule.requires)):
        told = dict(zip(rule.requires, values, strict=True))
        try:
            found.append(rule.scalars({"server-round": 1, **told}))
        except ConfigError:  # 0 is no value of every key
            continue
    made: dict[str, float] = max(found, key=lambda s: rule.role(s).gradients_per_step)
    return made


def ways(rule: Any) -> tuple[dict[str, Callable[[], object]], str]:
    """Returns how a rule's clients train, by name, and why not together."""
    import torch

    from fl.clients.app.trainer import Trainer
    from fl.vectors.layout import Layout

    app, model = make_app(WORKLOADS["mlp"]), make_model("mlp").train()
    layout = Layout.of(model)
    rule = rule.for_model(model, layout)
    trainer = Trainer(
        model,
        layout,
        app.data,
        rule,
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
    several = trainings(app, rule, TOGETHER)

    def alone() -> None:
        for training in several[:ALONE]:
            trainer.alone(training)

    if trainer.not_batchable:
        return {"alone": alone}, trainer.not_batchable
    return {"alone": alone, "together": lambda: trainer.together(several)}, ""


def measure(turns: int) -> list[dict[str, Any]]:
    """Returns a row for each contender."""
    made = {name: ways(rule) for name, rule in contenders()}
    clients = {"alone": ALONE, "together": TOGETHER}
    seconds: dict[tuple[str, str], list[float]] = {}
    for turn in range(turns + 1):  # the first one is for caches and imports
        for way, n in clients.items():
            for name, (how, _) in made.items():
                if way not in how:
                    continue
                began = time.perf_counter()
                how[way]()
                if turn:
                    taken = (time.perf_counter() - began) / n
                    seconds.setdefault((name, way), []).append(taken)
    rows = []
    for name, (how, why) in made.items():
        row: dict[str, Any] = {"rule": name, "why_alone": why}
        for way in how:
            ratios = [
                own / plain
                for own, plain in zip(seconds[name, way], seconds[PLAIN, way], strict=True)
            ]
            row[way] = statistics.median(ratios)
            row[f"{way}_s"] = statistics.median(seconds[name, way])
        rows.append(row)
    return rows


def main() -> None:
    """Runs the benchmark."""
    parser = report.parser("client_rules", __doc__)
    arguments = parser.parse_args()
    about = report.machine()
    import torch

    torch.set_num_threads(1)
    rows = measure(7 if arguments.quick else 25)
    report.table(
        f"Cost over plain SGD of an update of {STEPS} steps on {EXAMPLES} examples, MLP",
        ("", "one by one", "together", "ms one by one", "ms together", ""),
        (
            (
                row["rule"],
                f"{row['alone']:.2f}",
                f"{row['together']:.2f}" if "together" in row else "-",
                f"{1e3 * row['alone_s']:.2f}",
                f"{1e3 * row['together_s']:.2f}" if "together" in row else "-",
                row["why_alone"],
            )
            for row in rows
        ),
    )
    report.publish(arguments.out, rows, arguments, about)


if __name__ == "__main__":
    main()
