"""What the drivers without a server have in common: who the nodes are, what they send, evaluation.

The rules are `fl.strategies.gossip_rule`; `Swarm` is what a run's nodes are.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl.attacks import Attack, Forged, Scene
from fl.checks import at_least, fraction, positive
from fl.compression import Channel
from fl.errors import ConfigError, NotFinite
from fl.randomness import generator
from fl.strategies.choco import CHOCO
from fl.strategies.drivers.driver import RuleDriver, Traits
from fl.strategies.drivers.events.events import EvaluateFn
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.peers.edges import Messages
from fl.strategies.drivers.peers.node_models import NodeModels
from fl.strategies.drivers.peers.swarm import Swarm, TaskStart
from fl.strategies.drivers.tasks import TTL_S, Failures, Tasks
from fl.strategies.gossip_rule import NodeRule
from fl.strategies.sample_rule import SampleRule
from fl.strategies.walk_rule import WalkRule
from fl.topologies import Isolated, Topology
from fl.vectors.layout import FLOAT_BYTES
from fl.vectors.rows import Row, is_finite

log = logging.getLogger("fl")


class Decentralized(RuleDriver):
    """Base of the strategies without a server.

    Nodes 0..n-1 of the topology are the grid's clients in ascending order of their ids. All start
    at the initial model. The result is the mean of the nodes' models; with Byzantine nodes, of the
    honest ones.

    Args:
        rule: what a node does, or a token.
        topology: who hears whom.
        gamma: consensus step size, in (0, 1]; None is 1, or what the compressor allows.
        evaluated_nodes: how many nodes are evaluated on their own, drawn once from the seed; None
            takes all.
        **driver: arguments of `RuleDriver` but `min_available_nodes`, as every node must be there.

    Raises:
        ConfigError: an argument is out of its range.
    """

    reads_timeout: ClassVar[bool] = True
    rule: Any  # what a node does, or a token
    _told: bool = False  # that an attack could not be carried out

    def __init__(
        self,
        rule: NodeRule | WalkRule | SampleRule,
        *,
        topology: Topology,
        gamma: float | None = None,
        evaluated_nodes: int | None = None,
        **driver: Any,
    ) -> None:
        super().__init__(rule, min_available_nodes=topology.num_nodes, **driver)
        if gamma is not None:
            fraction("gamma", gamma)
        if evaluated_nodes is not None:
            at_least("evaluated_nodes", evaluated_nodes, 1)
        self.topology = topology
        self.gamma = gamma
        self.evaluated_nodes = evaluated_nodes

    @property
    def traits(self) -> Traits:
        """What the strategy is."""
        return Traits(
            meets="peers",
            sends="gradient" if "gradient" in self.rule.needs else "model",
            downlink=False,
            topology=True,
            alone=isinstance(self.topology, Isolated),
            needs=self.rule.needs,
        )

    def ends(self, uplink: Channel | None, downlink: Channel | None) -> tuple[Any, Any]:
        """Returns none: what is compressed crosses edges, of which a node's task knows nothing."""
        return None, None

    @property
    def byzantine(self) -> frozenset[int]:
        """Nodes that carry out an attack; their models are not evaluated."""
        return self.exchange.byzantine

    def within(self, exchange: Exchange) -> Self:
        """Returns a copy that sends and receives through an exchange.

        Raises:
            ConfigError: the method cannot work with a part of it.
        """
        if exchange.downlink is not None:
            raise ConfigError(
                f"downlink is set, and with {self.name} nobody broadcasts, since nodes send to "
                "each other: leave it out, and choose compressor=... for what they send"
            )
        if exchange.uplink is not None and self.traits.compressors == "none":
            raise ConfigError(
                f"compressor is {type(exchange.uplink).__name__}, and what nodes of {self.name} "
                "send is handed on, or merged with models of others, and would lack for good what "
                "it leaves out: leave it out, or use strategy=beer or dfedavg"
            )
        if exchange.uplink is not None and exchange.layout is not None:
            CHOCO(exchange.uplink, exchange.layout, self.rule.vectors)  # or else it says why not
        return super().within(exchange)

    @property
    def n(self) -> int:
        """The number of nodes."""
        return self.topology.num_nodes

    def first(self, swarm: Swarm) -> list[Row]:
        """Returns the model that each node begins with, shape (d,): the initial one."""
        return [swarm.w] * self.n

    @abstractmethod
    def run(self, swarm: Swarm, num_rounds: int) -> None:
        """Runs the method; calls `evaluate` after each round."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: EvaluateFn | None = None,
    ) -> Result:
        """Runs the strategy.

        Args:
            grid: Flower's, simulated or real.
            initial_arrays: the initial model of all nodes.
            num_rounds: rounds of every node.
            timeout: in methods that read it (`reads_timeout`), the longest time a node's local work
                may take, s.
            train_config: sent with every message; "server-round" is the round, from 1.
            evaluate_config: not used: nodes do not evaluate here.
            evaluate_fn: called with a round and the mean of the nodes' models after it, a
                `NodeModels`; first with round 0.

        Raises:
            ConfigError: an argument is out of its range, or there are fewer clients than nodes.
            SimulationError: nodes do nothing but fail.
            Diverged: they do nothing but diverge.
        """
        at_least("num_rounds", num_rounds, 1)
        positive("timeout", timeout)
        self.exchange.check(grid)
        tasks: Tasks[TaskStart] = Tasks(
            grid, timeout if self.reads_timeout else TTL_S, self.patience
        )
        failures = Failures("model", timeout if self.reads_timeout else None)
        ids, config = self._ids(tasks), dict(train_config or {})
        swarm = Swarm(tasks, initial_arrays, ids, config, self.keys, failures, self.rule.needs)
        result = Result()
        honest = [i for i in range(self.n) if i not in self.byzantine]

        last: dict[int, Row] = {}  # finite

        def evaluate(
            t: int, models: Sequence[Row], facts: Mapping[str, float], at: Sequence[int] | None
        ) -> None:
            places = honest if at is None else at
            rows = [models[i] for i in honest] if at is None else models
            lost = 0
            for k, model in enumerate(rows):
                row = swarm.layout.rounded(model)
                finite = is_finite(row)
                last[k], lost = (row, lost) if finite else (last.get(k, swarm.w), lost + 1)
            lost = max(lost, len(rows) * swarm.diverged.issuperset(honest))
            why_not = NotFinite(
                f"{lost} of {len(rows)} nodes' models are not finite; training may have "
                "diverged: lower the learning rate"
            )
            tasks.control.stepped(t, why_not if lost else None)
            result.arrays = NodeModels.of(
                swarm.layout,
                [last[k] for k in range(len(rows))],
                [swarm.entries[i] for i in places],
                self._chosen(len(rows)),
                facts,
                [ids[i] for i in places],
            )
            metrics = evaluate_fn(t, result.arrays) if evaluate_fn else None
            if metrics is not None:
                result.evaluate_metrics_serverapp[t] = metrics

        self._evaluate = evaluate
        self.evaluate(0, self.first(swarm))
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out
            self.run(swarm, num_rounds)
        return result

    def evaluate(
        self,
        t: int,
        rows: Sequence[Row],
        facts: Mapping[str, float] | None = None,
        at: Sequence[int] | None = None,
    ) -> None:
        """Evaluates models after a round, now.

        Args:
            t: the round.
            rows: models, shape (d,) each: of all nodes, or of those in `at`.
            facts: metrics of the round beside those of the models.
            at: the nodes that hold the models; None is every node its own.
        """
        self._evaluate(t, rows, facts or {}, at)

    def messages_of(self, swarm: Swarm, states: Sequence[Any]) -> tuple[Messages, float]:
        """Returns what nodes send to whom in a run, and gamma.

        Args:
            swarm: the nodes.
            states: those that the nodes begin with.

        Raises:
            ConfigError: copies of messages cannot follow by the compressor.
        """
        rule: NodeRule = self.rule
        first = [rule.message(state) for state in states]
        vectors, channel = rule.vectors, self.exchange.uplink
        whole_bytes = vectors * swarm.model_bytes + FLOAT_BYTES * rule.scalars
        choco = None
        if channel is not None:
            choco = CHOCO(channel, self.exchange.layout or swarm.layout, vectors)
        gamma = self.gamma
        if gamma is None:
            gamma = 1.0 if choco is None else choco.gamma
        return Messages(first, whole_bytes, choco, self.seed), gamma

    def forged(self, attack: Attack, honest: Row, own: Row, scene: Scene) -> Forged:
        """Returns the models that Byzantine nodes send, float32, and what the attack remembers.

        Those that they have themselves, if the attack is not defined for so few: then the user is
        told.

        Args:
            attack: what they carry out.
            honest: models of honest nodes, shape (h, d).
            own: those of the Byzantine ones, shape (f, d).
            scene: what else the attack may know.
        """
        try:
            with np.errstate(over="ignore", invalid="ignore"):  # what is sent may be anything
                rows, memory = attack(honest, own, scene)
                return Forged(rows.astype(np.float32), memory)
        except ConfigError as error:
            if not self._told:
                log.warning("%s; such nodes send what honest ones do", error)
            self._told = True
            return Forged(own, scene.memory)

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if there are fewer clients than nodes."""
        if num_clients < self.n:
            raise ConfigError(
                f"the topology has {self.n} nodes and the fleet {num_clients} clients: set "
                f"topology.num_nodes={num_clients} or less"
            )

    def _ids(self, tasks: Tasks[TaskStart]) -> list[int]:
        ids = tasks.peers.nodes()
        while len(ids) < self.n and not tasks.clock.virtual:
            tasks.clock.sleep(self.retry_s)
            ids = tasks.peers.nodes()
        self.check_clients(len(ids))
        return ids[: self.n]

    def _chosen(self, honest: int) -> list[int]:
        if self.evaluated_nodes is None or self.evaluated_nodes >= honest:
            return list(range(honest))
        rng = generator(self.seed, "evaluated nodes")
        return sorted(rng.choice(honest, self.evaluated_nodes, replace=False).tolist())
