"""What a client sends that takes the time of its work and does none of it."""

from __future__ import annotations

import torch
from torch import Tensor

from fl.clients.app.training import Trained, Training
from fl.clients.rule import Received, Rule
from fl.vectors.layout import Layout
from fl.vectors.rows import as_tensor

LOSS = 1.0
"""What clients report that have none; a loss of 0 would end some methods."""


def untrained(layout: Layout, rule: Rule, task: Training, local: Tensor | None) -> Trained:
    """Returns a task's outcome with the model as it came, and zeros for what travels beside it.

    All of it has the form, and so the bytes, that training would give it.

    Args:
        layout: of the model.
        rule: of the client.
        task: of at least one step.
        local: see `Received`.
    """
    row = as_tensor(task.row)
    w = layout.select(row)
    memory = rule.first_memory(w, task.scalars) if task.memory is None else task.memory
    received = Received(w, task.server, memory, dict(task.scalars), task.steps, local)
    finished = rule.finish(w, rule.init(received), received, task.steps)
    return Trained(
        rows=row[None] if finished.w.numel() else row[None, :0],
        carried=task.carried,
        extras={name: torch.zeros_like(x)[None] for name, x in finished.extras.items()},
        memory={name: x.nan_to_num()[None] for name, x in finished.memory.items()},
        losses=[LOSS],
        steps=[task.steps],
    )
