"""What the clients of a round are sent: which model, how much of it, and what is beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from fl.clients.app.choosing import SMOOTHING_KEY, mixed, model_key
from fl.clients.app.inbox import EVALUATED, EVALUATED_KEY
from fl.flower.identity import client_of
from fl.randomness import generator
from fl.strategies.drivers.events.server import Sent, Server
from fl.strategies.drivers.rounds.parts import Division
from fl.strategies.drivers.tasks import Task
from fl.strategies.round_rule import HasModel, RoundRule
from fl.vectors.rows import Row


class RoundMessages:
    """Sends the models of a rule to clients.

    Args:
        rule: has one model or several, and says what each client is told.
        division: says what of a model each client is sent.
        state: returns what the rule knows now.
        buffers: places in a model's vector that clients change and do not train.
        seed: of what is drawn.
    """

    def __init__(
        self,
        rule: RoundRule,
        division: Division,
        state: Callable[[], HasModel],
        buffers: Sequence[slice],
        seed: int,
    ) -> None:
        self.division = division
        self._rule = rule
        self._state = state
        self._buffers = buffers
        self._seed = seed
        self._made: tuple[int, list[Row]] | None = None  # the rule's models, of which version

    def train(
        self,
        server: Server,
        nodes: Sequence[int],
        told: Callable[[int], Mapping[str, Any]],
    ) -> list[Task[Sent]]:
        """Has clients train, those of them that the rule asks; returns their tasks.

        Args:
            server: sends.
            nodes: Flower ids of the clients.
            told: returns what each message says beside what the rule does, by how many are sent.
        """
        rule, state, division = self._rule, self._state(), self.division
        rng = generator(self._seed, "configs", server.version)
        configs = rule.configs(state, server.version + 1, len(nodes), rng)
        asked = [(n, c) for n, c in zip(nodes, configs, strict=True) if c is not None]
        models = self.models(server)
        choice: Sequence[Row] = models if rule.clients_choose else ()
        cohorts = np.arange(len(asked)) % (1 if choice or rule.resizes else len(models))
        if rule.edges:
            cohorts = np.array([client_of(node) % rule.edges for node, _ in asked])
        elif cohorts.any():
            generator(self._seed, "cohorts", server.version).shuffle(cohorts)
        alike: dict[tuple[Any, ...], list[int]] = {}
        mixtures: list[tuple[int, Mapping[str, Any], Row]] = []  # clients with one model each
        for place, ((node, config), j) in enumerate(zip(asked, cohorts.tolist(), strict=True)):
            if (u := rule.mixture_for(state, node)) is not None:
                mixtures.append((node, config, mixed(server.model.layout, models, u)))
                continue
            part, knows = division.of(server, node, place), division.is_known(node)
            j = division.level(server, node, place) if rule.resizes else j
            alike.setdefault((j, part, knows, *sorted(config.items())), []).append(node)
        beside_rule = {**told(len(asked)), **division.told()}
        extras, tasks = rule.broadcast(state), []
        for (j, part, knows, *pairs), group in alike.items():
            config = dict(pairs)
            tasks += server.send(
                group,
                {**config, **beside_rule},
                old=(server.version, models[j]),
                extras={name: extras[name] for name in rule.carried_by(config)},
                part=part,
                places=not knows,
                models=choice,
                model=j,
            )
        for node, config, w in mixtures:
            told_one = {**config, **beside_rule}
            tasks += server.send([node], told_one, old=(server.version, w), extras=extras)
        return tasks

    def alike(
        self, server: Server, clients: int, told: Callable[[int], Mapping[str, Any]]
    ) -> tuple[RecordDict, Mapping[str, Any]] | None:
        """Returns the content that all of so many clients would be sent; None if they differ.

        And what it says beside the model.

        Args:
            server: would send it.
            clients: how many.
            told: as for `train`.
        """
        rule, state = self._rule, self._state()
        rng = generator(self._seed, "configs", server.version)
        first, *others = rule.configs(state, server.version + 1, clients, rng)
        if first is None or any(config != first for config in others):
            return None
        extras = rule.broadcast(state)
        beside = {name: extras[name] for name in rule.carried_by(first)}
        config = {**first, **told(clients)}
        return server.content(config, beside), config

    def evaluation(self, server: Server, keys: tuple[str, str], which: str) -> RecordDict:
        """Returns what clients are sent that are to evaluate the model on their own examples.

        Args:
            server: has the model.
            keys: names of the records: the models', and what the message says beside them.
            which: of a client's models, one of `EVALUATED`.
        """
        arrays_key, config_key = keys
        models = self.models(server) if self._rule.clients_choose else [server.w]
        records: dict[str, Any] = {
            model_key(arrays_key, j): server.model.record_of(w) for j, w in enumerate(models)
        }
        config = ConfigRecord({"server-round": server.version})
        if self._rule.clients_choose == "mixture":
            config[SMOOTHING_KEY] = getattr(self._rule, self._rule.tells[SMOOTHING_KEY])
        if which != EVALUATED[0]:
            config[EVALUATED_KEY] = which
        records[config_key] = config
        return RecordDict(records)

    def models(self, server: Server) -> Sequence[Row]:
        """Returns the models that are sent, shape (d,) each.

        What clients do not train is the server's in those of cohorts, and each one's own in those
        that clients choose from.
        """
        if self._rule.num_models == 1 and not self._rule.resizes:
            return [server.w]
        if self._made is None or self._made[0] != server.version:
            rows = []
            for model in self._rule.models(self._state()):
                row = np.array(model, dtype=np.float32)
                for place in () if self._rule.clients_choose else self._buffers:
                    row[place] = server.w[place]
                rows.append(server.model.layout.rounded(row))
            self._made = (server.version, rows)
        return self._made[1]
