"""Topologies: who hears whom in a round, with what weight, and how fast that averages."""

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
