"""Whom a round asks: what goes between a selection and the clients before a round, and after it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fl.aggregation import weight_of
from fl.errors import ConfigError
from fl.randomness import generator
from fl.selection import Ask, Choice, Opening, Reply, RoundEnd, Selection, Trial
from fl.selection.checked import ask_of, choice_of, trial_of
from fl.strategies.drivers.events.server import Sent, Server, Update
from fl.strategies.drivers.tasks import Task

log = logging.getLogger("fl")


class RoundSelection:
    """Asks a selection who trains, and keeps what it knows between the rounds of a run.

    Args:
        selection: says who trains.
        num_rounds: of the run.
        seed: of what the selection draws.
        keys: names of the records of a message: the model's, and what it says beside it.
        weighted_by_key: metric that says how many examples a client has.
    """

    lasting = ("known",)

    def __init__(
        self,
        selection: Selection,
        num_rounds: int,
        seed: int,
        keys: tuple[str, str],
        weighted_by_key: str,
    ) -> None:
        self.selection = selection
        self.known = selection.init(num_rounds)
        self._seed = seed
        self._keys = keys
        self._weighted_by_key = weighted_by_key
        self._timed: set[str] = set()  # messages to clients that are timed beside the rounds

    @property
    def at_rest(self) -> bool:
        """Whether no client is being timed beside the rounds."""
        return not self._timed

    def free(self, idle: Sequence[int]) -> int:
        """Returns how many of the idle clients could be asked to train now."""
        trial, known = trial_of(self.selection, self.known, idle)
        timed = 0 if trial is None else len(trial.clients)
        return timed + len(self.selection.eligible(known, idle))

    def trial(self, idle: Sequence[int]) -> Trial | None:
        """Returns what the selection wants to time clients by, if it wants to."""
        trial, self.known = trial_of(self.selection, self.known, idle)
        return trial

    def time(self, tasks: Sequence[Task[Sent]]) -> None:
        """Notes that these tasks time clients beside the rounds."""
        self._timed.update(task.message_id for task in tasks)

    def eligible(self, idle: Sequence[int]) -> Sequence[int]:
        """Returns which of the idle clients the next round may ask."""
        return self.selection.eligible(self.known, idle)

    def check_count(self, count: int) -> None:
        """Raises ConfigError if the selection cannot choose so many clients."""
        if (why := self.selection.refuses_count(count)) is not None:
            raise ConfigError(why)

    def choice(self, server: Server, idle: Sequence[int], count: int) -> Choice:
        """Returns who trains, after asking clients what the selection wants to know of them."""
        opening = Opening(
            server.version + 1,
            idle,
            server.tasks.nodes(),
            count,
            lambda key: self._rng(server, key),
            server.tasks.charge,
        )
        ask, self.known = ask_of(self.selection, self.known, opening)
        while ask is not None:
            self.known = self.selection.told(self.known, ask, self._answers(server, ask))
            ask, self.known = ask_of(self.selection, self.known, opening)
        choice, self.known = choice_of(self.selection, self.known, opening)
        return choice

    def _rng(self, server: Server, purpose: str) -> np.random.Generator:
        if purpose == "clients":
            return server.rng()  # of the clients that are evaluated on as well
        return generator(self._seed, purpose, server.version)

    def _answers(self, server: Server, ask: Ask) -> dict[int, Mapping[str, Any]]:
        """Returns what clients answer before a round, by node."""
        arrays_key, config_key = self._keys
        records: dict[str, Any] = {
            config_key: ConfigRecord({**ask.config, "server-round": server.version})
        }
        if ask.kind == "evaluate":
            records[arrays_key] = server.model.record()
        content = RecordDict(records)
        answers: dict[int, Mapping[str, Any]] = {}
        for reply in server.tasks.ask(content, ask.clients, ask.within_s, ask.kind):
            if reply.has_error():
                continue
            metrics: Any = next(iter(reply.content.metric_records.values()), {})
            node = reply.metadata.src_node_id
            if (why := self.selection.refuses(ask, metrics)) is None:
                answers[node] = metrics
            else:
                log.warning("what node %d answers is left out: %s", node, why)
                server.tasks.control.rejected(reply.metadata.reply_to_message_id)
        return answers

    # ---- what the selection learns ---------------------------------------------------------------

    def has_timed(self, server: Server, update: Update) -> bool:
        """Learns from the answer of a client that was timed beside the rounds; False of others."""
        if update.task.message_id not in self._timed:
            return False
        self._timed.discard(update.task.message_id)
        self._learn(RoundEnd(server.version + 1, [self._reply(update)], trial=True))
        return True

    def failed(self, server: Server, task: Task[Sent], seconds: float) -> None:
        """Learns that a client has failed after so many seconds, if it was timed beside them."""
        if task.message_id in self._timed:
            self._timed.discard(task.message_id)
            self._learn(RoundEnd(server.version + 1, failed={task.node: seconds}, trial=True))

    def late(self, update: Update) -> None:
        """Learns that a client of a round that is over has answered."""
        self.known = self.selection.late(self.known, update.node, update.seconds)

    def ended(
        self,
        server: Server,
        replies: Sequence[Update],
        missed: Mapping[int, float],
        failures: Mapping[int, float],
        *,
        trial: bool,
    ) -> None:
        """Learns from a round that has ended, before its step; or from a trial.

        Args:
            server: whose round it is.
            replies: those that came in time.
            missed: seconds for which the others were waited for, by node.
            failures: after how many seconds others have failed, by node.
            trial: whether it was one.
        """
        said = [self._reply(update) for update in replies]
        self._learn(RoundEnd(server.version + 1, said, missed, failures, trial))

    def _learn(self, end: RoundEnd) -> None:
        self.known = self.selection.learn(self.known, end)

    def _reply(self, update: Update) -> Reply:
        examples = weight_of(update.metrics.get(self._weighted_by_key)) or 0.0
        delta = update.delta if self.selection.keeps_changes else None
        return Reply(update.node, update.seconds, examples, update.metrics, delta)
