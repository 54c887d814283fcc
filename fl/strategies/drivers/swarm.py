"""Nodes that learn without a server: what gossip and asynchronous pairs have in common.

Flower has no client-to-client link, so the server's process relays: it holds every node's row and
mixes on behalf of the nodes. On the simulator payloads are charged to the edges between the nodes
and the server's link carries nothing (`fl.simulation.peers`); on a deployment they pass through it.
"""

from __future__ import annotations

import logging
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fl.attacks import Attack, Forged, Scene
from fl.checks import at_least, positive
from fl.compression import Channel
from fl.errors import ConfigError, NotFinite
from fl.flower.carried import carried, median_carried
from fl.flower.payload import payload_bytes
from fl.flower.private import trusted_record
from fl.flower.records import RowRecord, from_record, layout_of, record_vector, to_record
from fl.randomness import generator
from fl.strategies.choco import CHOCO
from fl.strategies.drivers.driver import RuleDriver, Traits
from fl.strategies.drivers.edges import Messages
from fl.strategies.drivers.events import EvaluateFn
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.tasks import TTL_S, Failures, Task, Tasks
from fl.strategies.gossip_rule import LocalTraining, NodeRule
from fl.topologies import Topology
from fl.vectors.layout import FLOAT_BYTES, Layout
from fl.vectors.rows import Row, is_finite

log = logging.getLogger("fl")

NODE_METRICS = (
    "node_accuracy",
    "node_loss",
    "node_accuracy_min",
    "node_accuracy_max",
    "consensus_distance",
    "consensus_rms",
    "absent_nodes",
    "lost_payloads",
)
"""What evaluations of a network without a server report beside the mean model's metrics."""


class NodeModels(RowRecord):
    """The mean of the nodes' models, as a record, with the nodes' own models beside it.

    Who evaluates it and knows nothing of nodes evaluates the mean model.
    """

    _nodes: tuple[Layout, tuple[Row, ...], tuple[Mapping[str, Array], ...], tuple[int, ...]]
    _facts: dict[str, float]

    @classmethod
    def of(
        cls,
        layout: Layout,
        rows: Sequence[Row],
        entries: Sequence[Mapping[str, Array]],
        evaluated: Sequence[int],
        facts: Mapping[str, float],
    ) -> NodeModels:
        """Returns the record.

        Args:
            layout: of the model.
            rows: the nodes' models, n of shape (d,).
            entries: what each node's model has outside the row; the mean model has their median.
            evaluated: indices of the nodes that are to be evaluated on their own.
            facts: metrics of the round beside those of the models.
        """
        items = dict(to_record(layout, mean_of(rows), median_carried(layout, entries)).items())
        made = trusted_record(cls, items)
        made._nodes = (layout, tuple(rows), tuple(entries), tuple(evaluated))
        made._facts = dict(facts)
        return made

    @property
    def facts(self) -> dict[str, float]:
        """Metrics of the round, and how far the nodes are apart.

        "consensus_distance" is (1/n) sum_i |x_i - xbar|^2, "consensus_rms" its root.
        """
        _, rows, _, _ = self._nodes
        mean = mean_of(rows)
        distance = sum(_squared_distance(row, mean) for row in rows) / len(rows)
        spread = {"consensus_distance": distance, "consensus_rms": math.sqrt(distance)}
        return {**spread, **self._facts}

    def evaluated(self) -> list[ArrayRecord]:
        """Returns the models of the nodes that are to be evaluated on their own."""
        layout, rows, entries, chosen = self._nodes
        return [to_record(layout, rows[i], entries[i]) for i in chosen]


def mean_of(rows: Sequence[Row]) -> Row:
    """Returns the mean of vectors, summed in float64: shape (d,), float32."""
    total = np.zeros(rows[0].shape, np.float64)
    for row in rows:
        total += row
    return (total / len(rows)).astype(np.float32)


def _squared_distance(x: Row, y: Row) -> float:
    difference = np.subtract(x, y, dtype=np.float64)
    return float(difference @ difference)


@dataclass(frozen=True, slots=True, eq=False)
class TaskStart:
    """What a node's task began with.

    Attributes:
        node: its index in the topology.
        round: t.
        x: the model it trains from, shape (d,).
    """

    node: int
    round: int
    x: Row


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What came of a node's task.

    Attributes:
        task: what was asked.
        progress: what the node has learnt.
        metrics: what it reported.
    """

    task: Task[TaskStart]
    progress: LocalTraining
    metrics: Mapping[str, Any]


class Swarm:
    """The nodes of a run: their ids, their tasks, and the payloads between them.

    Args:
        tasks: on the grid.
        arrays: the initial model of all nodes.
        ids: Flower id of each node.
        config: sent with every message.
        keys: names of the records with the model and the configuration.
        failures: counts the answers that do not come.
        needs: names of the records with a vector that every answer has beside the model.

    Attributes:
        layout: of the model.
        w: the initial model, shape (d,).
        diverged: nodes whose last answer was not finite.
        entries: what each node's model has outside the row; every node keeps its own.
        model_bytes: payload of a model, as a message with it weighs.
    """

    def __init__(
        self,
        tasks: Tasks[TaskStart],
        arrays: ArrayRecord,
        ids: Sequence[int],
        config: Mapping[str, Any],
        keys: tuple[str, str],
        failures: Failures,
        needs: Sequence[str] = (),
    ) -> None:
        self.tasks = tasks
        self.ids = list(ids)
        self.layout = layout_of(arrays)
        self.w = from_record(self.layout, arrays)
        self.model_bytes = payload_bytes(RecordDict({"arrays": arrays}))
        self._arrays_key, self._config_key = keys
        self._config = dict(config)
        self._needs = needs
        self.entries = [carried(self.layout, arrays)] * len(ids)
        self.diverged: set[int] = set()
        self._failures = failures

    def __len__(self) -> int:
        """Returns n, the number of nodes."""
        return len(self.ids)

    @property
    def now(self) -> float:
        """Time in s."""
        return self.tasks.now()

    def available(self, nodes: Iterable[int]) -> list[int]:
        """Returns those nodes that are there now."""
        there = set(self.tasks.nodes())
        return [i for i in nodes if self.ids[i] in there]

    def train(
        self, nodes: Sequence[int], rows: Sequence[Row], rounds: Sequence[int]
    ) -> list[Task[TaskStart]]:
        """Has nodes train, each from a model of its own, beginning now; returns their tasks."""
        if not nodes:
            return []
        contents: list[RecordDict] = []
        configs: dict[int, ConfigRecord] = {}
        for i, x, t in zip(nodes, rows, rounds, strict=True):
            if t not in configs:
                configs[t] = ConfigRecord({**self._config, "server-round": t + 1})
            model = to_record(self.layout, x, self.entries[i])
            contents.append(RecordDict({self._arrays_key: model, self._config_key: configs[t]}))
        memos = [TaskStart(i, t, x) for i, x, t in zip(nodes, rows, rounds, strict=True)]
        return self.tasks.send_from_peers(contents, [self.ids[i] for i in nodes], memos)

    def receive(self, until: float) -> list[tuple[int, Answer | None]]:
        """Returns the nodes that finish at the next instant at which some do, and their answers.

        Args:
            until: time in s at which to stop waiting.

        Returns:
            None for a node that failed, or whose reply holds no finite model of the right form, or
            whose task must be lost; its answer may come later.

        Raises:
            SimulationError: nodes do nothing but fail.
            Diverged: they do nothing but diverge.
        """
        answers = []
        for task, reply in self.tasks.receive(until):
            answer = self._read(task, reply)
            if answer is None:
                diverged = not reply.has_error() and task.memo.node in self.diverged
                self._failures.add(task, reply, self.now, len(self), diverged=diverged)
            else:
                self._failures.clear()
            answers.append((task.memo.node, answer))
        return answers

    def applied(self, answer: Answer, staleness: int = 0) -> None:
        """Reports that what a node learnt has entered its model."""
        self.tasks.control.applied(answer.task.message_id, staleness, answer.metrics)

    def send(
        self, j: int, i: int, size: int, *, fanout: int = 1, fanin: int = 1, index: int = 0
    ) -> tuple[float, bool]:
        """Sends a payload from node j to node i now; returns when it arrives, and whether."""
        return self.tasks.peers.transfer(
            self.ids[j], self.ids[i], size, self.now, fanout=fanout, fanin=fanin, index=index
        )

    def _read(self, task: Task[TaskStart], reply: Message) -> Answer | None:
        if reply.has_error():
            log.debug("node %d: %s", task.memo.node, reply.error.reason)
            return None
        try:
            record = reply.content.get(self._arrays_key)
            if not isinstance(record, ArrayRecord):
                raise ConfigError(
                    f"the reply has no ArrayRecord '{self._arrays_key}', only "
                    f"{sorted(reply.content)}"
                )
            x = from_record(self.layout, record)
            vectors = {name: self._vector(reply, name) for name in self._needs}
            self.entries[task.memo.node] = carried(self.layout, record)
        except ConfigError as error:
            if isinstance(error, NotFinite):
                self.diverged.add(task.memo.node)
            log.warning("node %d left out: %s", task.memo.node, error)
            self.tasks.control.rejected(task.message_id)
            return None
        self.diverged.discard(task.memo.node)
        metrics: Mapping[str, Any] = next(iter(reply.content.metric_records.values()), {})
        return Answer(task, LocalTraining(task.memo.x, x, vectors), metrics)

    def _vector(self, reply: Message, name: str) -> Row:
        record = reply.content.get(name)
        if not isinstance(record, ArrayRecord):
            raise ConfigError(
                f"the reply has no record '{name}', only {sorted(reply.content)}: use client={name}"
            )
        row: Row = record_vector(record, self.layout.size, f"record '{name}'").numpy()
        return row


class Decentralized(RuleDriver):
    """Base of the strategies without a server.

    Nodes 0..n-1 of the topology are the grid's clients in ascending order of their ids. All start
    at the initial model. The result is the mean of the nodes' models; with Byzantine nodes, of the
    honest ones.

    Args:
        rule: what a node does.
        topology: who hears whom.
        gamma: consensus step size, in (0, 1]; None is 1, or what the compressor allows.
        evaluated_nodes: how many nodes are evaluated on their own, drawn once from the seed; None
            takes all.
        **driver: arguments of `RuleDriver` but `min_available_nodes`, as every node must be there.

    Raises:
        ConfigError: an argument is out of its range.
    """

    reads_timeout: ClassVar[bool] = True
    rule: NodeRule
    _told: bool = False  # that an attack could not be carried out

    def __init__(
        self,
        rule: NodeRule,
        *,
        topology: Topology,
        gamma: float | None = None,
        evaluated_nodes: int | None = None,
        **driver: Any,
    ) -> None:
        super().__init__(rule, min_available_nodes=topology.num_nodes, **driver)
        if gamma is not None:
            positive("gamma", gamma)
            if gamma > 1:
                raise ConfigError(f"gamma is {gamma}; it must be at most 1")
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
        attack = exchange.attack
        if attack is not None and attack.knowledge == "aggregation" and not self.traits.aggregates:
            raise ConfigError(
                f"attack is {type(attack).__name__}, which searches against an aggregator, and "
                f"{self.name} has none: use strategy=dpsgd, dfedavg or monna, or an attack that "
                "knows none"
            )
        if exchange.uplink is not None and exchange.layout is not None:
            CHOCO(exchange.uplink, exchange.layout, self.rule.vectors)  # or else it says why not
        return super().within(exchange)

    @property
    def n(self) -> int:
        """The number of nodes."""
        return self.topology.num_nodes

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
        chosen = self._chosen(len(honest))

        last = [swarm.w] * self.n  # finite

        def evaluate(t: int, rows: Sequence[Row], facts: Mapping[str, float]) -> None:
            lost = 0
            for i in honest:
                row = swarm.layout.rounded(rows[i])
                finite = is_finite(row)
                last[i], lost = (row, lost) if finite else (last[i], lost + 1)
            lost = max(lost, len(honest) * swarm.diverged.issuperset(honest))
            why_not = NotFinite(
                f"{lost} of {len(honest)} nodes' models are not finite; training may have "
                "diverged: lower the learning rate"
            )
            tasks.control.stepped(t, why_not if lost else None)
            rows, entries = [last[i] for i in honest], [swarm.entries[i] for i in honest]
            result.arrays = NodeModels.of(swarm.layout, rows, entries, chosen, facts)
            metrics = evaluate_fn(t, result.arrays) if evaluate_fn else None
            if metrics is not None:
                result.evaluate_metrics_serverapp[t] = metrics

        self._evaluate = evaluate
        self.evaluate(0, [swarm.w] * self.n)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is left out
            self.run(swarm, num_rounds)
        return result

    def evaluate(
        self, t: int, rows: Sequence[Row], facts: Mapping[str, float] | None = None
    ) -> None:
        """Evaluates the nodes' models after a round, now."""
        self._evaluate(t, rows, facts or {})

    def messages_of(self, swarm: Swarm, states: Sequence[Any]) -> tuple[Messages, float]:
        """Returns what nodes send to whom in a run, and gamma.

        Args:
            swarm: the nodes.
            states: those that the nodes begin with.

        Raises:
            ConfigError: copies of messages cannot follow by the compressor.
        """
        first = [self.rule.message(state) for state in states]
        vectors, channel = self.rule.vectors, self.exchange.uplink
        rest = len(first[0]) - vectors * swarm.layout.size
        whole_bytes = vectors * swarm.model_bytes + FLOAT_BYTES * rest
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
