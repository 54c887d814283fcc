"""One ClientApp for several learning tasks: each message goes to the part it names."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fl.clients.app.inbox import CONFIG_KEY
from fl.clients.app.training_app import TrainingApp
from fl.errors import ConfigError
from fl.execution.contract import Payload, PlannedApp, Request, Result, RunInfo, Workload

TASK_KEY = "task"


class TaskApp(ClientApp, PlannedApp):
    """Answers a message with the part that its configuration names under "task".

    What a part keeps in `Context.state` is kept there under "task/key", so parts do not see each
    other's. A client takes part in every task, with the data of its partition-id in each.

    Args:
        parts: the app of each task.

    Raises:
        ConfigError: there is no part, or a name has a slash.
    """

    def __init__(self, parts: Mapping[str, TrainingApp]) -> None:
        super().__init__()
        if not parts:
            raise ConfigError("there are no tasks: name at least one")
        for name in parts:
            if "/" in name or not name:
                raise ConfigError(f"the task {name!r} cannot be called so: leave slashes out")
        self.parts = dict(parts)
        self.train()(self._answer)
        self.evaluate()(self._answer)
        self.query()(self._answer)

    @property
    def has_mods(self) -> bool:
        """Whether a part has mods."""
        return any(part.has_mods for part in self.parts.values())

    @property
    def remembers(self) -> bool:
        """Whether a part may: what it keeps comes back with the replies of all parts."""
        return any(part.remembers for part in self.parts.values())

    def memory_bytes(self) -> int:
        """Returns the memory of the task that needs most: a device trains one at a time."""
        return max(part.memory_bytes() for part in self.parts.values())

    def read(self, content: RecordDict) -> str:
        """Returns the task that a message's content names; see `task`."""
        return self.task(content)

    def plan(
        self, payload: Payload, message_type: str, partition: int, seconds_per_flop: float
    ) -> Workload:
        """Returns what a message's work costs, by the plan of its task's part."""
        part = self.parts[payload.read_by(self)]
        workload = part.plan(payload, message_type, partition, seconds_per_flop)
        return replace(workload, reply_bytes=None) if self.remembers else workload

    def batch_key(self, request: Request, run: RunInfo) -> Hashable | None:
        """Returns the task and its part's key; None if the request is to be answered alone."""
        try:
            task = request.payload.read_by(self)
        except ConfigError:
            return None
        key = self.parts[task].batch_key(_for_part(task, request), run)
        return None if key is None else (task, key)

    def trains(self, request: Request) -> bool:
        """Returns whether the task's part trains the request."""
        task = request.payload.read_by(self)
        return self.parts[task].trains(request)

    def train_many(self, requests: Sequence[Request], run: RunInfo) -> list[Result]:
        """Returns the results of requests of one task; see `TrainingApp.train_many`."""
        task = requests[0].payload.read_by(self)
        results = self.parts[task].train_many([_for_part(task, each) for each in requests], run)
        for request, result in zip(requests, results, strict=True):
            state = RecordDict() if request.state is None else request.state.copy()
            _put_back(task, state, result.state or RecordDict())
            result.state = state or None
        return results

    def task(self, content: RecordDict) -> str:
        """Returns the task that a message names.

        Raises:
            ConfigError: it names none, or one that does not exist.
        """
        config = content.get(CONFIG_KEY)
        name: Any = None if config is None else config.get(TASK_KEY)
        if name not in self.parts:
            raise ConfigError(
                f"the message's configuration has task {name!r}; the tasks are "
                f"{', '.join(self.parts)}: use a strategy that trains several models"
            )
        return str(name)

    def _answer(self, message: Message, context: Context) -> Message:
        task = self.task(message.content)
        own = Context(
            context.run_id,
            context.node_id,
            context.node_config,
            _state_of(task, context.state),
            context.run_config,
        )
        reply: Message = self.parts[task](message, own)
        _put_back(task, context.state, own.state)
        return reply


def _for_part(task: str, request: Request) -> Request:
    state = None if request.state is None else _state_of(task, request.state) or None
    return replace(request, state=state)


def _state_of(task: str, state: RecordDict) -> RecordDict:
    start = f"{task}/"
    return RecordDict(
        {k.removeprefix(start): record for k, record in state.items() if k.startswith(start)}
    )


def _put_back(task: str, state: RecordDict, own: RecordDict) -> None:
    start = f"{task}/"
    for key in [k for k in state if k.startswith(start)]:
        if key.removeprefix(start) not in own:
            del state[key]
    for key, record in own.items():
        state[start + key] = record
