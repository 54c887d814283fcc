"""A server that trains the average of the clients on public data: what FedConv is to be held to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fl.checks import at_least, not_negative, positive
from fl.strategies.public_data import PublicData
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class ServerTrainingState(NamedTuple):
    """The model, shape (d,), and rounds so far."""

    w: Row
    t: int = 0


@dataclass(frozen=True)
class ServerTraining(RoundRule):
    """FedAvg, and some epochs of Adam on the server's public data after every round.

        w <- w + eta sum_i n_i (w_i - w) / sum_i n_i;   w <- Adam(loss on public data; w)

    With eta = 0 clients do not count, and the model is that of the public data only.

    Attributes:
        eta: at least 0.
        public_examples: labelled, that the server holds.
        batch_size: of the server's steps.
        server_epochs: of a round.
        server_lr: of Adam.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    eta: float = 1.0
    public_examples: int = 200
    batch_size: int = 32
    server_epochs: int = 10
    server_lr: float = 1e-4

    def __post_init__(self) -> None:
        not_negative("eta", self.eta)
        for name in ("public_examples", "batch_size", "server_epochs"):
            at_least(name, getattr(self, name), 1)
        positive("server_lr", self.server_lr)

    def init(self, w: Row, p: int) -> ServerTrainingState:
        """Returns the model before the first round."""
        return ServerTrainingState(w)

    def step(self, state: ServerTrainingState, updates: Updates) -> ServerTrainingState:
        """Returns the average after the server has trained it."""
        w = state.w + self.eta * updates.mean() if self.eta else state.w
        return ServerTrainingState(self.trained(w, updates.public_data, state.t), state.t + 1)

    def trained(self, w: Row, public: PublicData, t: int) -> Row:
        """Returns a model, shape (d,), after Adam."""
        row = torch.tensor(w, requires_grad=True)
        public.fit(
            [row],
            lambda: row,
            None,
            epochs=self.server_epochs,
            lr=self.server_lr,
            batch_size=self.batch_size,
            key=("model", t),
        )
        made: Row = row.detach().numpy()
        return made
