"""FedDST: clients move the mask of a sparse model in the middle of their training.

Bibikar, Vikalo, Wang, Chen, "Federated Dynamic Sparse Training: Computing Less, Communicating Less,
Yet Learning Better", arXiv:2112.09824 (AAAI 2022); the authors' code, bibikar/feddst.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.clients.pruning import REGROW_KEY
from fl.strategies.round_rule import Updates
from fl.strategies.sparse import CosineSparseRule
from fl.submodels import by_magnitude


@dataclass(frozen=True)
class FedDST(CosineSparseRule):
    """Prune and grow on the clients, and magnitude pruning of what they bring on the server.

    In a round of adjustment each client moves floor(alpha_t h) of the h held numbers of each layer
    after half of its steps, see `fl.clients.Pruning`, and returns its mask. Each number becomes the
    mean over the clients that hold it, weighted by examples; of each layer the server keeps as many
    as before, those of largest magnitude among all that anybody holds.
    """

    def asked(self, state: Any, server_round: int, ratio: float) -> Mapping[str, Any]:
        """Returns that clients are to move the mask."""
        return {REGROW_KEY: ratio}

    def adjusted(self, state: Any, updates: Updates, ratio: float) -> Any:
        """Returns the state with the largest numbers of those that clients hold."""
        if updates.holds is None:
            return state
        anybody = updates.holds[updates.weights > 0].any(axis=0) & (state.w != 0)
        w = np.where(anybody, state.w, np.float32(0))
        mask = by_magnitude(state.layers, w)
        return state._replace(w=np.where(mask, w, np.float32(0)), mask=mask)
