"""Topologies: who hears whom in a round, with what weight, and how fast that averages.

The names below are loaded when first used: a run needs few of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import defer, lazily

if TYPE_CHECKING:
    from fl.topologies.base_graph import BaseGraph
    from fl.topologies.consensus import (
        consensus_rate,
        is_doubly_stochastic,
        least_eigenvalue,
        rounds_to_consensus,
        spectral_gap,
    )
    from fl.topologies.dense import Complete, Star
    from fl.topologies.exponential import ExponentialGraph, OnePeerExponential
    from fl.topologies.isolated import Isolated
    from fl.topologies.matcha import MATCHA
    from fl.topologies.mixing import mix, renormalised
    from fl.topologies.product import Hypercube, Torus
    from fl.topologies.random_graphs import ErdosRenyi, RandomRegular, WattsStrogatz
    from fl.topologies.random_peers import RandomMatching, RandomPush
    from fl.topologies.ring import DirectedRing, Path, Ring
    from fl.topologies.topology import Topology, Weighted, adjacency_of
    from fl.topologies.tree import Tree
    from fl.topologies.weights import (
        Lazy,
        LazyMetropolis,
        MaxDegree,
        MetropolisHastings,
        NeighbourAverage,
        PushSum,
        Stochasticity,
        Weights,
    )

# Three hundred modules, for graphs alone: whoever asks for a weight or a kind needs none.
defer("networkx")

__getattr__ = lazily(
    __name__,
    {
        "BaseGraph": "fl.topologies.base_graph",
        "Complete": "fl.topologies.dense",
        "DirectedRing": "fl.topologies.ring",
        "ErdosRenyi": "fl.topologies.random_graphs",
        "ExponentialGraph": "fl.topologies.exponential",
        "Hypercube": "fl.topologies.product",
        "Isolated": "fl.topologies.isolated",
        "Lazy": "fl.topologies.weights",
        "LazyMetropolis": "fl.topologies.weights",
        "MATCHA": "fl.topologies.matcha",
        "MaxDegree": "fl.topologies.weights",
        "MetropolisHastings": "fl.topologies.weights",
        "NeighbourAverage": "fl.topologies.weights",
        "OnePeerExponential": "fl.topologies.exponential",
        "Path": "fl.topologies.ring",
        "PushSum": "fl.topologies.weights",
        "RandomMatching": "fl.topologies.random_peers",
        "RandomPush": "fl.topologies.random_peers",
        "RandomRegular": "fl.topologies.random_graphs",
        "Ring": "fl.topologies.ring",
        "Star": "fl.topologies.dense",
        "Stochasticity": "fl.topologies.weights",
        "Topology": "fl.topologies.topology",
        "Torus": "fl.topologies.product",
        "Tree": "fl.topologies.tree",
        "WattsStrogatz": "fl.topologies.random_graphs",
        "Weighted": "fl.topologies.topology",
        "Weights": "fl.topologies.weights",
        "adjacency_of": "fl.topologies.topology",
        "consensus_rate": "fl.topologies.consensus",
        "is_doubly_stochastic": "fl.topologies.consensus",
        "least_eigenvalue": "fl.topologies.consensus",
        "mix": "fl.topologies.mixing",
        "renormalised": "fl.topologies.mixing",
        "rounds_to_consensus": "fl.topologies.consensus",
        "spectral_gap": "fl.topologies.consensus",
    },
)

__all__ = [
    "MATCHA",
    "BaseGraph",
    "Complete",
    "DirectedRing",
    "ErdosRenyi",
    "ExponentialGraph",
    "Hypercube",
    "Isolated",
    "Lazy",
    "LazyMetropolis",
    "MaxDegree",
    "MetropolisHastings",
    "NeighbourAverage",
    "OnePeerExponential",
    "Path",
    "PushSum",
    "RandomMatching",
    "RandomPush",
    "RandomRegular",
    "Ring",
    "Star",
    "Stochasticity",
    "Topology",
    "Torus",
    "Tree",
    "WattsStrogatz",
    "Weighted",
    "Weights",
    "adjacency_of",
    "consensus_rate",
    "is_doubly_stochastic",
    "least_eigenvalue",
    "mix",
    "renormalised",
    "rounds_to_consensus",
    "spectral_gap",
]
