"""One ClientApp for several learning tasks: each message goes to the part it names."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from flwr.app import Context, Message, RecordDict

from fl.clients.app import CONFIG_KEY
from fl.clients.planned import PlannedApp, Work
from fl.errors import ConfigError

TASK_KEY = "task"


class TaskApp(PlannedApp):
    """Answers a message with the part that its configuration names under "task".

    What a part keeps in `Context.state` is kept there under "task/key", so parts do not see each
    other's. A client takes part in every task, with the data of its partition-id in each.

    Args:
        parts: the app of each task.

    Raises:
        ConfigError: there is no part, or a name has a slash.
    """

    def __init__(self, parts: Mapping[str, PlannedApp]) -> None:
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

    def plan(
        self, content: RecordDict, message_type: str, partition: int, seconds_per_flop: float
    ) -> Work:
        """Returns what a message's work costs, by the plan of its task's part."""
        part = self.parts[self.task(content)]
        work = part.plan(content, message_type, partition, seconds_per_flop)
        return replace(work, reply_bytes=None) if self.remembers else work

    def batch_key(self, message: Message, context: Context) -> Hashable | None:
        """Returns the task and its part's key; None if the message is to be answered alone."""
        try:
            task = self.task(message.content)
        except ConfigError:
            return None
        with self._own_state(task, context) as own:
            key = self.parts[task].batch_key(message, own)
        return None if key is None else (task, key)

    def train_contents(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> list[RecordDict]:
        """Returns the contents of the replies to messages of one task that share a batch key."""
        task = self.task(messages[0].content)
        own = [_with_state(context, _state_of(task, context)) for context in contexts]
        contents = self.parts[task].train_contents(messages, own)
        for context, part in zip(contexts, own, strict=True):
            _put_back(task, context, part.state)
        return contents

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
        with self._own_state(task, context) as own:
            reply: Message = self.parts[task](message, own)
        return reply

    @contextmanager
    def _own_state(self, task: str, context: Context) -> Iterator[Context]:
        own = _with_state(context, _state_of(task, context))
        yield own
        _put_back(task, context, own.state)


def _state_of(task: str, context: Context) -> RecordDict:
    start = f"{task}/"
    return RecordDict(
        {
            k.removeprefix(start): record
            for k, record in context.state.items()
            if k.startswith(start)
        }
    )


def _with_state(context: Context, state: RecordDict) -> Context:
    return Context(context.run_id, context.node_id, context.node_config, state, context.run_config)


def _put_back(task: str, context: Context, state: RecordDict) -> None:
    start = f"{task}/"
    for key in [k for k in context.state if k.startswith(start)]:
        if key.removeprefix(start) not in state:
            del context.state[key]
    for key, record in state.items():
        context.state[start + key] = record
