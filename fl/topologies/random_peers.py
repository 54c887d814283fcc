"""Few messages a round, to peers drawn anew: pairs that exchange, and nodes that push."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_array

from fl.randomness import generator
from fl.topologies.topology import Weighted
from fl.topologies.weights import MetropolisHastings, PushSum, Weights


@dataclass(frozen=True)
class RandomMatching(Weighted):
    """In every round nodes are paired at random, and pairs average; one is left over if n is odd.

    One message per node and round, both ways at once; symmetric, and doubly stochastic.
    Boyd, Ghosh, Prabhakar, Shah: Randomized Gossip Algorithms, IEEE Trans. Inf. Theory 52 (2006).

    Attributes:
        num_nodes: n, at least 2.
        seed: of the draws.
        weights: of the edges.
    """

    seed: int = 0
    weights: Weights = field(default=MetropolisHastings())

    @property
    def period(self) -> None:
        """None."""
        return None

    def heard(self, t: int) -> csr_array:
        """Returns the pairs of round t."""
        n = self.num_nodes
        order = generator(self.seed, "topology", self._name, t).permutation(n)
        a, b = order[: n // 2], order[n // 2 : 2 * (n // 2)]
        ones = np.ones(2 * len(a), dtype=np.int8)
        return csr_array((ones, (np.append(a, b), np.append(b, a))), shape=(n, n))


@dataclass(frozen=True)
class RandomPush(Weighted):
    """In every round each node sends to k others drawn at random, and hears from as many as chance.

    With `PushSum` weights columns sum to 1; with `NeighbourAverage` it is the EL-Local of epidemic
    learning (de Vos et al., NeurIPS 2023, arXiv:2310.01972), whose rows sum to 1. A node hears
    nothing with probability (1 - k / (n - 1))^(n - 1).

    Attributes:
        num_nodes: n, at least 2.
        seed: of the draws.
        weights: of the edges.
        k: receivers of each node, from 1 to n - 1.

    Raises:
        ConfigError: k is out of range.
    """

    seed: int = 0
    weights: Weights = field(default=PushSum())
    k: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_neighbours(self.k)

    @property
    def period(self) -> None:
        """None."""
        return None

    @property
    def directed(self) -> bool:
        """Yes."""
        return True

    @property
    def regular(self) -> bool:
        """Only if everyone sends to all, or there are two."""
        return self.k == self.num_nodes - 1

    def heard(self, t: int) -> csr_array:
        """Returns the messages of round t."""
        n, k = self.num_nodes, self.k
        rng = generator(self.seed, "topology", self._name, t)
        drawn = np.stack([rng.choice(n - 1, size=k, replace=False) for _ in range(n)])
        receivers = drawn + (drawn >= np.arange(n)[:, None])  # all but oneself
        ones = np.ones(n * k, dtype=np.int8)
        return csr_array((ones, (receivers.ravel(), np.repeat(np.arange(n), k))), shape=(n, n))
