"""Exponential graphs: neighbours at distances 1, 2, 4, ..., all at once or one after another.

Ying, Yuan, Chen, Hu, Pan, Yin: Exponential Graph is Provably Efficient for Decentralized Deep
Training, NeurIPS 2021, arXiv:2110.13363; Assran et al., arXiv:1811.10792, who came to them first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scipy.sparse import csr_array

from fl.topologies.topology import Weighted, circulant
from fl.topologies.weights import PushSum, Weights


@dataclass(frozen=True)
class ExponentialGraph(Weighted):
    """Node i sends to i + 2^j modulo n, j = 0..m-1, m = ceil(log2 n); all weights 1/(m+1).

    Doubly stochastic. Gap, by the norm, 2 / (m + 1) for even n.

    Attributes:
        num_nodes: n, at least 2.
        directed: as in the paper; if not, messages go both ways, to i - 2^j as well.
        weights: of the edges.
    """

    directed: bool = True
    weights: Weights = field(default=PushSum())

    @property
    def regular(self) -> bool:
        """All in- and out-degrees are equal."""
        return True

    def heard(self, t: int) -> csr_array:
        """Returns the graph."""
        out = {1 << j for j in range(_hops(self.num_nodes))}
        return circulant(self.num_nodes, out if self.directed else out | {-s for s in out})


@dataclass(frozen=True)
class OnePeerExponential(Weighted):
    """In round t node i sends to i + 2^(t mod m) modulo n, m = ceil(log2 n); both weights 1/2.

    Doubly stochastic in every round. The product over m rounds, in any order, is the exact mean if
    n = 2^m (Lemma 1 of the paper); for other n nodes agree only in the limit.

    Attributes:
        num_nodes: n, at least 2.
        weights: of the edges.
    """

    weights: Weights = field(default=PushSum())

    @property
    def period(self) -> int:
        """The m different distances."""
        return _hops(self.num_nodes)

    @property
    def directed(self) -> bool:
        """Yes."""
        return True

    @property
    def regular(self) -> bool:
        """All in- and out-degrees are 1."""
        return True

    def heard(self, t: int) -> csr_array:
        """Returns the graph of round t."""
        return circulant(self.num_nodes, {1 << t})


def _hops(n: int) -> int:
    """Returns ceil(log2 n)."""
    return (n - 1).bit_length()
