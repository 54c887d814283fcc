"""Losses of a small character GPT whose stages are lost by chance, by recovery: no time, no bytes.

Trains in one place what `strategy=pipeline` trains through its stages, with the same rules, cut,
micro-batches and draws; tests/strategies/test_pipeline.py shows that the two are equal to rounding.
Prints a line of JSON for every run.

    python experiments/checkfree/convergence.py --rates 0.001 0.002 0.004 0.01 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module

from fl.models import evaluate
from fl.randomness import generator, uniform
from fl.runs.build import build
from fl.strategies import (
    CheckFree,
    CheckFreePlus,
    CopiedStage,
    DrawnAnew,
    OuterAdam,
    PipelineTraining,
    RollBack,
    StageRecovery,
)

STAGES, MICRO_BATCHES, BATCH = 7, 2, 8
SETTING = [
    "strategy=pipeline",
    f"strategy.num_stages={STAGES}",
    "strategy.ends=together",
    f"strategy.micro_batches={MICRO_BATCHES}",
    "strategy.rule.clip_norm=1",
    "model=char_gpt",
    "model.width=24",
    "model.layers=6",
    "data=shakespeare",
    "data.window=32",
    "partition=iid",
    f"num_clients={STAGES}",
    f"client.batch_size={BATCH}",
    "executor=serial",
]
RECOVERIES: dict[str, StageRecovery] = {
    "none": RollBack(),  # and checkpoints or redundancy, which lose nothing but time
    "checkfree": CheckFree(),
    "checkfree_plus": CheckFreePlus(),
    "copy": CopiedStage(),
    "redraw": DrawnAnew(),
}


class OnePlace:
    """The model of a configuration, trained as its stages would be."""

    def __init__(self, seed: int) -> None:
        with initialize_config_module("fl.conf", version_base=None):
            config = compose("config", overrides=[*SETTING, f"seed={seed}"])
        self.seed = seed
        self.experiment = build(config)
        exchange = self.experiment.strategy.exchange
        self.cut, self.layout = exchange.stages, self.experiment.app.layout
        self.model = self.experiment.model()
        self.rows = self.experiment.data.partitions[0]
        self.places = [self.layout.of_names(stage.entries) for stage in self.cut.stages]
        self.first = self.stages_of(self.model)
        x, y = self.experiment.data.test_set()
        self.test = x[:128], y[:128]

    def stages_of(self, model: torch.nn.Module) -> list[np.ndarray]:
        """Returns the stages' parameters."""
        state = model.state_dict()
        return [
            layout.flatten({e.name: state[e.name] for e in layout.entries}).numpy()
            for layout in self.places
        ]

    def batch(self, step: int, m: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns what `fl.clients.StageApp` takes of the first client's examples."""
        n = len(self.rows)
        places = (step * MICRO_BATCHES + m) * BATCH + np.arange(BATCH)
        order = places % n
        for epoch in set((places // n).tolist()):
            here = places // n == epoch
            stream = generator(self.seed, "micro-batches", 0, epoch)
            order[here] = stream.permutation(n)[order[here]]
        return self.experiment.data.tensors(self.experiment.data.train, self.rows[order])

    def gradients(self, rows: list[np.ndarray], step: int, swaps: bool) -> list[np.ndarray]:
        """Returns the stages' mean gradients."""
        w = [torch.from_numpy(row.copy()).requires_grad_() for row in rows]
        entries: dict[str, Any] = {}
        for layout, own in zip(self.places, w, strict=True):
            entries |= layout.split(own)
        total = torch.zeros(())
        for m in range(MICRO_BATCHES):
            x, y = self.batch(step, m)
            for k in self.cut.route(swapped=swaps and m % 2 == 1):
                x = self.cut.forward(k, entries, x)
            total = total + torch.nn.functional.cross_entropy(x.flatten(0, 1), y.flatten())
        return [g.double().numpy() for g in torch.autograd.grad(total / MICRO_BATCHES, w)]

    def loss(self, rows: list[np.ndarray]) -> float:
        """Returns the mean loss on the first 128 held-out windows, in nats a character."""
        entries: dict[str, torch.Tensor] = {}
        for layout, row in zip(self.places, rows, strict=True):
            entries |= layout.split(torch.from_numpy(row.copy()))
        self.model.load_state_dict(entries)
        return evaluate(self.model, self.test).loss


def train(
    place: OnePlace, name: str, rate: float, steps: int, lr: float, every: int
) -> dict[str, Any]:
    """Returns the losses of one run."""
    seed = place.seed
    rule = PipelineTraining(RECOVERIES[name], OuterAdam(lr=lr, beta2=0.999), 1.0)
    states = [rule.init(row) for row in place.first]
    losses, lost = [], 0
    redrawn = 0

    def drawn(i: int) -> np.ndarray:
        nonlocal redrawn
        redrawn += 1
        record = place.experiment.drawn(redrawn)
        state = {k: torch.from_numpy(np.array(a.numpy())) for k, a in record.items()}
        layout = place.places[i]
        return layout.flatten({e.name: state[e.name] for e in layout.entries}).numpy()

    for t in range(steps):
        struck = [i for i in range(1, STAGES) if t and uniform(seed, "lost stage", i, t + 1) < rate]
        if struck and name != "none":
            states = rule.recover(states, struck, place.cut.middle, drawn)
            lost += len(struck)
        gradients = place.gradients([s.w for s in states], t, rule.recovery.swaps)
        states = [rule.step(s, g) for s, g in zip(states, gradients, strict=True)]
        if (t + 1) % every == 0:
            losses.append(round(place.loss([s.w for s in states]), 5))
    return {"seed": seed, "recovery": name, "rate": rate, "lr": lr, "lost": lost, "losses": losses}


def main() -> None:
    """Makes the runs that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.001, 0.002, 0.004, 0.01])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--recoveries", nargs="+", default=list(RECOVERIES))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--lr", type=float, default=0.003)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for seed in args.seeds:
        place = OnePlace(seed)
        for name in args.recoveries:
            for rate in [0.0] if name == "none" else args.rates:
                made = train(place, name, rate, args.steps, args.lr, args.every)
                print(json.dumps(made), flush=True)


if __name__ == "__main__":
    main()
