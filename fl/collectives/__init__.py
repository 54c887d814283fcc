"""Collectives: how workers without a server come to have the mean of what they have."""

from fl.collectives.buckets import Bucket, Buckets
from fl.collectives.butterfly import Butterfly
from fl.collectives.collective import (
    Closed,
    Collective,
    Network,
    Reals,
    Requantising,
    Transfers,
    step,
)
from fl.collectives.failure import Failure
from fl.collectives.hierarchical import Hierarchical
from fl.collectives.int8_ring import Int8Ring
from fl.collectives.load_balanced import LoadBalancedAllReduce, apportioned, balanced_shares
from fl.collectives.parameter_server import ParameterServerAllReduce
from fl.collectives.ring import Gather, RingAllReduce, around
from fl.collectives.ring_order import widest_ring
from fl.collectives.sharded import ShardedRing
from fl.collectives.slow_links import SlowLinks, SlowParts
from fl.collectives.stragglers import Stragglers
from fl.collectives.times import Times, times
from fl.collectives.tree import TreeAllReduce

__all__ = [
    "Bucket",
    "Buckets",
    "Butterfly",
    "Closed",
    "Collective",
    "Failure",
    "Gather",
    "Hierarchical",
    "Int8Ring",
    "LoadBalancedAllReduce",
    "Network",
    "ParameterServerAllReduce",
    "Reals",
    "Requantising",
    "RingAllReduce",
    "ShardedRing",
    "SlowLinks",
    "SlowParts",
    "Stragglers",
    "Times",
    "Transfers",
    "TreeAllReduce",
    "apportioned",
    "around",
    "balanced_shares",
    "step",
    "times",
    "widest_ring",
]
