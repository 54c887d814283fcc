"""A pull towards the received model of clients that go on with a model of their own.

Ruan, Joe-Wong: FedSoft: Soft Clustered Federated Learning with Proximal Local Updating, AAAI 2022,
arXiv:2112.06053, by the authors' code (ycruan/FedSoft).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fl.clients.proximal import Proximal
from fl.clients.rule import Finished, Received, State


@dataclass(frozen=True)
class ProximalOwn(Proximal):
    """The gradient of f(w) + mu/2 |w - m|^2, m the received model, from where the last task ended.

    With m = sum_s u_s c_s and sum_s u_s = 1 this is the gradient of FedSoft's
    f(w) + lambda/2 sum_s u_s |w - c_s|^2. The client is never reset: m only pulls. Its own model,
    which it sends and predicts with, begins as the first m; in the authors' code, as a common
    model of all clients. If training diverges the client keeps the one before.

    Its batch-normalised passes move m's statistics on, which training does not read.
    """

    @property
    def keeps_statistics(self) -> Literal["sent"]:
        """Those of its own model."""
        return "sent"

    def vectors(self, is_plain: bool) -> int:
        """Returns 2, for the received model and its own."""
        return 2

    def first_memory(self, w: Tensor) -> dict[str, Tensor]:
        """Returns the received model."""
        return {"own": w}

    def begin(self, w: Tensor, received: Received) -> Tensor:
        """Returns its own model."""
        return received.memory["own"]

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns its own model, and keeps it."""
        own = torch.where(torch.isfinite(w).all(), w, received.memory["own"])
        return Finished(w, {}, {"own": own})

    def personal(self, received: Received) -> Tensor:
        """Returns its own model."""
        return received.memory["own"]
