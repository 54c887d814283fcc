"""The driver of synchronous gossip: every node trains, sends to its neighbours, and mixes.

The rule is `fl.strategies.gossip_rule.GossipRule`; this says when, and what becomes of messages.

A node goes on to its next round when its own work is done and what its neighbours sent in this
round has arrived. There is no other barrier: in virtual time a slow node holds back its neighbours
in the next round, theirs one round later, and so on. A neighbour's model of the same round is used,
also where the neighbour has gone on in the meantime.

All rows that are complete at one instant are mixed by one sparse product, X <- W X; where all nodes
are equally fast that is one product a round.

Who is away when its round begins, or fails in it, takes no part in the round: it keeps its model
and goes on when its neighbours do, without mixing; while nobody at all is there, all wait. What a
neighbour would have had from it, or from a payload that is lost, is given up: `GossipRule.keeps`
says who takes the weight. On a symmetric W, whose absent nodes are missing on both sides, the
matrix of those present is doubly stochastic again; a payload lost on one side of an edge makes it
row-stochastic for that round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import networkx as nx

from fl.aggregation import Aggregator, Mean, Recentred
from fl.checks import read_if
from fl.errors import ConfigError
from fl.flower.records import from_record
from fl.randomness import generator
from fl.strategies.drivers.aggregating import own_f
from fl.strategies.drivers.driver import Traits
from fl.strategies.drivers.peers.decentralized import Decentralized
from fl.strategies.drivers.peers.edges import Edges
from fl.strategies.drivers.peers.gossip_run import GossipRun
from fl.strategies.drivers.peers.swarm import Swarm
from fl.strategies.gossip_rule import GossipRule, MergingRule, TreeRule
from fl.submodels import Orders, Partners
from fl.topologies import Isolated, least_eigenvalue
from fl.vectors.rows import Row, is_finite

_EXACT = 1e-9  # eigenvalues are exact to less


_OWN_WEIGHTS = ("fl.strategies.MoNNA", "fl.strategies.RelaySGD")


def _reads_weights(a: Mapping[str, Any]) -> bool:
    if a["aggregator"] is None:
        return a["rule"].get("_target_") not in _OWN_WEIGHTS
    return bool(a["aggregator"].get("weighted", False))


@read_if(
    _reads_weights,
    "topology.weights",
    only="what a node aggregates by takes the graph of a topology alone",
)
@read_if(
    lambda a: a["aggregator"] is not None and "f" in a["aggregator"],
    "f",
    only="this aggregator has no number of Byzantine models",
)
@own_f
class Gossip(Decentralized):
    """Rounds of synchronous gossip of a node's rule.

    Round t has Q steps of gossip (`GossipRule.gossip_steps`), which use the matrices W_{tQ}, ...,
    W_{tQ+Q-1} of the topology.

    With an aggregator F other than the mean, a node makes F of its own model and those it has
    heard, with W's weights if F takes weights, instead of their sum by W: robust gossip, for
    methods that average models. An F that continues from its last result, such as centered
    clipping, continues from the node's own model (ClippedGossip, arXiv:2202.01545); one that is for
    updates is given the differences to it. Who has too few models for F, because others are away or
    their payloads lost, keeps its own.

    Of payloads that a node with an F receives at one instant, those of Byzantine nodes come first,
    which is the worst case and what the authors of MoNNA simulate, and the others in an order drawn
    from the seed.

    With a compressor (`Exchange.uplink`) messages are compressed by CHOCO, whatever the method: see
    `fl.strategies.choco`.

    Byzantine nodes train and mix like others, and are charged for it; when all that honest nodes
    send in a step is there, the attack makes of it what the Byzantine ones send, the same to all
    neighbours, through an encoder like everybody's. What is not finite is thrown away by who
    receives it.

    Args:
        rule: what a node does.
        aggregator: F; the mean weighted by W is the method's own sum, and so is None, or the
            rule's own F.
        f: how many Byzantine models F is to tolerate, instead of what it says itself; None leaves
            it as it is.
        gamma: consensus step size, in (0, 1]: x_i + gamma (mixed_i - x_i); None is 1, or what the
            compressor allows.
        **decentralized: arguments of `Decentralized` but `patience`.

    Attributes:
        states: of the nodes, as the rule has them; of the last run.

    Raises:
        ConfigError: an argument is out of its range; the topology's weights are not of a kind that
            the method is for; the method has no room for an aggregator, or a node has too few
            neighbours for it.
    """

    rules = GossipRule
    example = "DPSGD"
    rule: GossipRule

    def __init__(
        self,
        rule: GossipRule,
        *,
        aggregator: Aggregator | None = None,
        f: int | None = None,
        gamma: float | None = None,
        **decentralized: Any,
    ) -> None:
        super().__init__(rule, gamma=gamma, patience=None, **decentralized)
        self.aggregator = self._mixing(aggregator, f)
        if rule.above is not None:
            self._check_stays()
        if isinstance(rule, TreeRule):
            self._check_tree()
        kind = self.topology.stochasticity
        if self.aggregator is None and kind not in rule.weights:
            remedy = (
                "use strategy=sgp, which undoes the bias"
                if kind == "columns"
                else "use an undirected graph, such as topology=ring"
                if self.topology.directed
                else "use topology/weights=metropolis_hastings, or a regular graph"
            )
            raise ConfigError(
                f"{self.name}: the weights of {type(self.topology).__name__} are {kind!r}, it "
                f"needs one of {', '.join(rule.weights)}: {remedy}"
            )
        if rule.keeps == "columns" and self.topology.signed:
            raise ConfigError(
                f"topology is {type(self.topology).__name__}, which may give a node's own model a "
                f"negative weight, and {self.name} divides by the weights that arrive: use "
                "strategy=dfedavg, or topology=random_push"
            )
        if rule.above is not None:
            self._check_eigenvalues(rule.above)

    def _check_tree(self) -> None:
        """Raises ConfigError unless the graph stays and is a tree."""
        topology = self.topology
        if topology.period != 1 or topology.directed or not nx.is_tree(topology.graph(0)):
            raise ConfigError(
                f"topology is {type(topology).__name__}, and {self.name} relays sums, in which "
                "everybody counts once only on a tree that stays: use topology=tree, path or star"
            )

    def _check_stays(self) -> None:
        """Raises ConfigError unless W stays."""
        if self.topology.period != 1:
            raise ConfigError(
                f"topology is {type(self.topology).__name__}, whose graph changes from round to "
                f"round, and {self.name} takes differences of rounds of one graph: use "
                "topology=ring, torus or random_regular, or strategy=gradient_tracking"
            )

    def _check_eigenvalues(self, above: float) -> None:
        """Raises ConfigError unless W, which stays, has no eigenvalue that is too small."""
        kind = type(self.topology).__name__
        gamma = 1.0 if self.gamma is None else self.gamma
        least = 1 + gamma * (least_eigenvalue(self.topology.matrix(0)) - 1)
        if least <= above + _EXACT:
            raise ConfigError(
                f"gamma is {self.gamma}, and with {kind} the smallest eigenvalue of "
                f"I + gamma (W - I) is {least:.3g}; {self.name} needs one above {above:.3g}: set "
                "strategy.gamma=0.5, which takes half a step, or topology/weights=lazy"
            )

    def _mixing(self, chosen: Aggregator | None, f: int | None) -> Aggregator | None:
        """Returns F, as it is applied to models; None for the sum by W."""
        own = self.rule.aggregator
        if chosen is None or (isinstance(chosen, Mean) and chosen.weighted and own is None):
            F = own
        elif isinstance(self.topology, Isolated):
            raise ConfigError(
                f"aggregator is {chosen.name}, and nodes of {type(self.topology).__name__} hear "
                "nobody, so that there is nothing to combine: leave it out, or choose another "
                "topology, such as topology=ring"
            )
        elif own is not None:
            raise ConfigError(
                f"aggregator is {chosen.name}, and {self.name} is defined by its own, {own.name}: "
                "leave it out, or use strategy=dfedavg"
            )
        elif self.rule.linear:
            raise ConfigError(
                f"aggregator is {chosen.name}, and the messages of {self.name} have to be summed, "
                f"since {self.rule.linear}: leave it out, or use strategy=dfedavg or dpsgd"
            )
        elif chosen.reference == "trusted-update":
            raise ConfigError(
                f"aggregator is {chosen.name}, which wants a server's own update, and there is no "
                "server: use aggregator=monna, which trusts a node's own model"
            )
        elif self.topology.signed and getattr(chosen, "weighted", False):
            kind = type(self.topology).__name__
            raise ConfigError(
                f"aggregator.weighted is true, and {kind} may give a node's own model a negative "
                f"weight, which {chosen.name} cannot take: set it to false, or choose another "
                "topology, such as topology=random_regular_redrawn"
            )
        else:
            F = chosen if f is None else chosen.tolerating(f)
        if F is None:
            return None
        for e in range(self.topology.period or 1):
            fewest = min(len(heard) for heard in self.edges(e).heard)
            n = self.rule.waits_for(fewest) + 1
            try:
                F.check(n)
            except ConfigError as error:
                raise ConfigError(
                    f"a node of {type(self.topology).__name__} with {fewest} neighbours has {n} "
                    f"models to aggregate, with its own: {error}; lower f, or use a topology with "
                    "more neighbours, such as topology=complete"
                ) from None
        return F if "translation" in F.invariances else Recentred(F)

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        traits = super().traits
        if isinstance(self.rule, MergingRule):
            return replace(traits, compressors="none", merges=self.rule.by)
        return replace(traits, compressors="none") if isinstance(self.rule, TreeRule) else traits

    def first(self, swarm: Swarm) -> list[Row]:
        """Returns the model that each node begins with.

        Raises:
            ConfigError: they are to be drawn apart, and nothing draws them.
        """
        if not (isinstance(self.rule, MergingRule) and self.rule.drawn_apart):
            return super().first(swarm)
        draw = self.exchange.initial
        if draw is None:
            raise ConfigError(
                f"rule.initial is 'drawn', and nothing draws the initial models of {self.name} but "
                "the first: run the strategy within an Exchange that has `initial`, or set it to "
                "'same'"
            )
        drawn = [from_record(swarm.layout, draw(i)) for i in range(1, self.n)]
        return [swarm.w, *drawn]

    def run(self, swarm: Swarm, num_rounds: int) -> None:
        """Runs all rounds of all nodes."""
        self.states = [self.rule.init(w) for w in self.first(swarm)]
        GossipRun(self, swarm, num_rounds).run()

    def evaluate(
        self,
        t: int,
        rows: Sequence[Row],
        facts: Mapping[str, float] | None = None,
        at: Sequence[int] | None = None,
    ) -> None:
        """Evaluates the nodes' models after a round, now, in one order of their units."""
        if not t:
            self._partners: dict[int, Partners] = {}
        super().evaluate(t, self._in_one_order(rows), facts, at)

    def _in_one_order(self, rows: Sequence[Row]) -> Sequence[Row]:
        """Returns models with their units in the order of the first honest one's.

        Each computes what it did. Their mean and distances are of no use without, if nodes match
        units, as then each node has an order of its own.
        """
        layout, units = self.exchange.layout, self.exchange.units
        matches = isinstance(self.rule, MergingRule) and self.rule.by != "order"
        if not matches or layout is None or not units:
            return rows
        orders = Orders(layout, units)
        first = next(i for i in range(self.n) if i not in self.byzantine)
        rng = generator(self.seed, "one order")
        made = list(rows)
        for i, x in enumerate(rows):
            if i != first and is_finite(x) and is_finite(rows[first]):
                found = orders.by_weights(rows[first], x, rng, self._partners.get(i))
                self._partners[i] = found  # where the next round's search begins
                made[i] = orders.applied(x, found)
        return made

    def edges(self, step: int) -> Edges:
        """Returns the edges of a step; kept if the topology repeats itself."""
        period = self.topology.period
        if period is None:
            return Edges.of(self.topology.matrix(step))
        phase = step % period
        if phase not in self._edges:
            self._edges[phase] = Edges.of(self.topology.matrix(phase))
        return self._edges[phase]

    @cached_property
    def _edges(self) -> dict[int, Edges]:
        return {}
