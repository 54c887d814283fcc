"""QuAFL: the server and a few interrupted clients average their models.

Zakerinia, Talaei, Nadiradze, Alistarh, "Communication-Efficient Federated Learning With Data and
Client Heterogeneity" (first titled QuAFL), arXiv:2206.10032, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fl.strategies.event_rule import Answers, PollingRule
from fl.strategies.fedavg import Model
from fl.vectors.rows import Row


@dataclass(frozen=True)
class QuAFL(PollingRule):
    """Averages the server's model with those of interrupted clients, and each of these with it.

    At every contact with a set S of s clients,

        server:      X   <- (X + sum_{i in S} Y_i) / (s + 1)
        client i:    X_i <- (X + s Y_i) / (s + 1),    X the server's model before

    where Y_i is client i's model after at most K steps from X_i. With an aggregator F, the sum over
    S is s (X + F(Y_1 - X, ..., Y_s - X)).

    The paper sends Q(X) down, Q(Y_i) up, with a lattice quantiser that decodes relative to the
    receiver's own model. Here the server follows X_i and sends it, which is as many bytes; what the
    client answers is compressed as its change of X_i, which both sides hold, by
    `compressor=...` (uniform or QSGD are near the paper's). The server keeps one model for every
    client ever contacted.
    """

    def init(self, w: Row, p: int) -> Model:
        """Returns the initial state."""
        return Model(w)

    def step(self, state: Model, answers: Answers) -> tuple[Model, Sequence[Row]]:
        """Averages as above."""
        s, x = len(answers), state.w
        total = answers.total([u.x for u in answers], x)
        places = [np.float32(1 / (s + 1)) * (x + np.float32(s) * u.x) for u in answers]
        return Model(total / np.float32(s + 1)), places
