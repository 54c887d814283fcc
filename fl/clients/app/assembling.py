"""What a client trains: made of a message, of what the client keeps, and of its examples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

from fl.clients.app.choosing import Chooser, mixed
from fl.clients.app.home import Home
from fl.clients.app.inbox import Instructions, read_fitting_steps, read_memory, read_partition
from fl.clients.app.merging import Merger
from fl.clients.app.planner import Planner
from fl.clients.app.training import Training
from fl.clients.rule import Rule
from fl.data import FederatedData
from fl.data.drift import DRIFT_BEGINS
from fl.errors import ConfigError
from fl.randomness import SEED_KEY
from fl.submodels import OWN_CLASSES_KEY


@dataclass(slots=True)
class Asked:
    """A message as one client has it before itself.

    Attributes:
        instructions: what the content says.
        message_id: of the message.
        partition: the client's partition-id.
        seed: `run_config["fl.seed"]`.
        state: the client's.
        sent_s: when the message was sent, s since `DRIFT_BEGINS`: by that drifting data go.
        work: what the device has time for, if the content does not say it.
    """

    instructions: Instructions
    message_id: str
    partition: int
    seed: object
    state: RecordDict | None
    sent_s: float
    work: Mapping[str, Any] | None = None

    @classmethod
    def by(cls, message: Message, context: Context, instructions: Instructions) -> Asked:
        """Returns what a message asks the client of a context, whose partition-id must be one."""
        return cls(
            instructions,
            message.metadata.message_id,
            read_partition(context),
            context.run_config.get(SEED_KEY),
            context.state,
            message.metadata.created_at - DRIFT_BEGINS,
        )


class Assembler:
    """Makes the tasks of clients with one model and rule.

    Args:
        home: says what of the model stays with the client.
        data: the clients' examples.
        rule: what a local step does.
        planner: counts the steps.
        chooser: chooses among several models that come, or mixes them.
        merger: merges them.
        learns: whether clients train at all.
    """

    def __init__(
        self,
        home: Home,
        data: FederatedData,
        rule: Rule,
        planner: Planner,
        chooser: Chooser,
        merger: Merger,
        *,
        learns: bool,
    ) -> None:
        self._home = home
        self._data = data
        self._rule = rule
        self._planner = planner
        self._chooser = chooser
        self._merger = merger
        self._learns = learns

    def training(self, asked: Asked) -> Training:
        """Returns what a client is to do.

        Raises:
            ConfigError: a value makes no sense.
        """
        instructions, task = asked.instructions, self.model(asked)
        deadline, elapsed = instructions.limits
        steps = self._planner.steps(instructions.amount, task.examples, task.batch_size)
        if elapsed is not None:
            deadline = elapsed
            steps = steps if elapsed > 0 else 0
        told = asked.work
        fitting = instructions.fitting_steps if told is None else read_fitting_steps(told)
        if fitting is not None:
            deadline = None
            steps = min(steps, fitting)
        task.server, task.scalars = instructions.server, instructions.scalars
        task.steps, task.deadline_s = steps, deadline
        if instructions.own_classes:
            task.classes = self._classes(task.rows)
        return task

    def model(self, asked: Asked) -> Training:
        """Returns a task of no steps: the model that the client goes on with, and its examples.

        Raises:
            ConfigError: a value makes no sense.
        """
        instructions, seed, state = asked.instructions, asked.seed, asked.state
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ConfigError(
                f"run_config[{SEED_KEY!r}] is {seed!r}; it must be a whole number: on a "
                f"deployment, set {SEED_KEY} under [tool.flwr.app.config] in pyproject.toml"
            )
        rows = self._data.rows(asked.partition % self._data.num_partitions, asked.sent_s)
        batch_size, chunks = self._planner.batch_size(instructions.batch_size), instructions.chunks
        if chunks is not None:
            batch_size = chunks.size(len(rows)) or None
            rows = chunks.rows(rows, instructions.amount[1])
        models = [self._home.completed(*model, state) for model in instructions.models]
        chosen, mixture, merging = 0, None, instructions.merging
        if merging is not None:
            row, others = models[0]
            if self._learns:
                row = self._merger.merged(models, merging, rows, seed, asked.message_id)
        elif instructions.smoothing is None:
            chosen = self._chooser.best(models, rows)
            row, others = models[chosen]
        else:
            mixture = self._chooser.shares(models, rows, instructions.smoothing)
            received = [own for own, _ in instructions.models]
            sent = mixed(self._home.sent.layout, received, mixture)
            _, apart = instructions.models[int(mixture.argmax())]
            row, others = self._home.completed(sent, apart, state)
        return Training(
            seed=seed,
            client=asked.partition,
            message_id=asked.message_id,
            rows=rows,
            row=row,
            carried=others,
            server={},
            memory=read_memory(state),
            scalars={},
            steps=0,
            batch_size=batch_size,
            deadline_s=None,
            in_order=chunks is not None,
            model=chosen if len(models) > 1 and mixture is None and merging is None else None,
            mixture=mixture,
        )

    def _classes(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Returns of which classes there are examples, shape (C,)."""
        if self._data.task != "classification":
            raise ConfigError(
                f"the message's {OWN_CLASSES_KEY!r} is true, and examples of {self._data.name!r} "
                "have no class"
            )
        return np.bincount(self._data.train.y[rows], minlength=self._data.num_classes) > 0

    def trial(self, most: int) -> list[Training]:
        """Returns tasks that nobody has asked for, of at most so many clients with examples."""
        rule, batch_size = self._rule, self._planner.batch_size(None)
        requires = {"server-round": 1, **dict.fromkeys(rule.requires, 1.0)}
        return [
            Training(
                seed=0,
                client=partition,
                message_id=f"trial.{partition}",
                rows=self._data.partitions[partition],
                row=np.zeros(self._home.whole.size, np.float32),
                carried={},
                server={name: torch.zeros(self._home.whole.num_trainable) for name in rule.needs},
                memory=None,
                scalars=rule.scalars(requires),
                steps=min(
                    2, self._planner.steps((None, None), self._data.size(partition), batch_size)
                ),
                batch_size=batch_size,
                deadline_s=None,
            )
            for partition in np.flatnonzero(self._data.partitions.sizes)[:most].tolist()
        ]
