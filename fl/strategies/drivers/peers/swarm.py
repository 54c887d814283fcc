"""The nodes of a run that learn without a server: their tasks, and what crosses between them.

Flower has no client-to-client link, so the server's process relays: it holds every node's row and
mixes on behalf of the nodes. On the simulator payloads are charged to the edges between the nodes
and the server's link carries nothing (`fl.simulation.peers`); on a deployment they pass through it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fl.clients.app.choosing import model_key
from fl.clients.app.merging import BY_KEY, SHARES_KEY
from fl.errors import ConfigError, NotFinite
from fl.flower.carried import carried
from fl.flower.payload import payload_bytes
from fl.flower.records import from_record, layout_of, record_vector, to_record
from fl.strategies.drivers.tasks import Failures, Task, Tasks
from fl.strategies.gossip_rule import LocalTraining, MergedByNode
from fl.vectors.rows import Row

log = logging.getLogger("fl")


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
        self,
        nodes: Sequence[int],
        rows: Sequence[Row],
        rounds: Sequence[int],
        told: Mapping[int, Mapping[str, Any]] | None = None,
        merging: Sequence[MergedByNode] | None = None,
    ) -> list[Task[TaskStart]]:
        """Has nodes train, each from a model of its own, beginning now; returns their tasks.

        Args:
            nodes: which.
            rows: their models, shape (d,) each.
            rounds: in which they are, t.
            told: what nodes in a round are told besides.
            merging: what each of them merges with its model first; None if they do not.
        """
        if not nodes:
            return []
        contents: list[RecordDict] = []
        configs: dict[int, ConfigRecord] = {}
        for k, (i, x, t) in enumerate(zip(nodes, rows, rounds, strict=True)):
            if t not in configs:
                configs[t] = self._config_of(t, (told or {}).get(t, {}))
            model = to_record(self.layout, x, self.entries[i])
            content = RecordDict({self._arrays_key: model, self._config_key: configs[t]})
            if merging is not None and merging[k].others:
                self._add(content, i, merging[k])
            contents.append(content)
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

    def _config_of(self, t: int, more: Mapping[str, Any]) -> ConfigRecord:
        return ConfigRecord({**self._config, **more, "server-round": t + 1})

    def _add(self, content: RecordDict, i: int, merging: MergedByNode) -> None:
        """Adds to a message what its node is to merge with the model in it."""
        for k, x in enumerate(merging.others, 1):
            content[model_key(self._arrays_key, k)] = to_record(self.layout, x, self.entries[i])
        config = ConfigRecord(dict(content.config_records[self._config_key]))
        config[BY_KEY] = merging.by
        config[SHARES_KEY] = [float(share) for share in merging.shares]
        content[self._config_key] = config

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
