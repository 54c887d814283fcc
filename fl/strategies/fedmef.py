"""FedMef: a sparse model whose mask moves, with weights driven out before they are pruned.

Huang, Zhuang, Chen, Lyu, "FedMef: Towards Memory-efficient Federated Dynamic Pruning",
arXiv:2403.14737 (CVPR 2024). Rules by the authors' library, FedPruning/FedPruning, and equations 2
to 5 as nclabteam/FedProC cites them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fl.checks import not_negative
from fl.clients.pruning import EXTRUSION_KEY, TOP_KEY
from fl.strategies.sparse import CosineSparseRule


@dataclass(frozen=True)
class FedMef(CosineSparseRule):
    """Prune and grow by the clients' largest gradients, after budget-aware extrusion.

    In a round of adjustment the floor(alpha_t h) smallest held numbers of each layer, those that
    are likely to be pruned, are driven to 0 by the clients, which tells the others what they knew;
    see `fl.clients.Pruning`. Clients send the gradients of as many numbers that are left out, those
    with the largest. The server prunes the smallest of its average, and grows what has the largest
    |mean gradient|; new numbers begin at 0.

    Its other part, scaled activation pruning, is `gamma` of `fl.submodels.SparseMask`.

    Attributes:
        extrusion: lambda, weight of |theta_low|^2 in the clients' loss, at least 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    extrusion: float = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("extrusion", self.extrusion)

    def asked(self, state: Any, server_round: int, ratio: float) -> Mapping[str, Any]:
        """Returns that gradients are to be sent, and what is to be driven to 0."""
        return {TOP_KEY: ratio, EXTRUSION_KEY: self.extrusion}
