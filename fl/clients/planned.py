"""ClientApps that know what their work costs before it is done."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp


@dataclass(frozen=True)
class Work:
    """What a task costs a device.

    Attributes:
        flops: FLOPs of the planned work.
        steps: how many local steps fit the message's "deadline-s" or "elapsed-s"; None without.
        memory_bytes: memory the task needs.
        past_flops: FLOPs of the work done before the message came.
        reply_bytes: of the reply's content, as `payload_bytes` counts them, if that is known before
            the work is done and the client keeps nothing of it. Then nobody has to wait for the
            work until the server reads the reply.
    """

    flops: float
    steps: int | None
    memory_bytes: int
    past_flops: float = 0.0
    reply_bytes: int | None = None

    @property
    def work(self) -> dict[str, int] | None:
        """Content of the record `fl.work` that the simulator adds to the message."""
        return None if self.steps is None else {"steps": self.steps}


class PlannedApp(ClientApp, ABC):
    """A ClientApp whose work the simulator plans, and may run for many clients together."""

    @property
    @abstractmethod
    def has_mods(self) -> bool:
        """Whether Flower mods, which are anybody's code, see its messages."""

    @property
    @abstractmethod
    def remembers(self) -> bool:
        """Whether its clients may keep something from one task to the next."""

    @abstractmethod
    def memory_bytes(self) -> int:
        """Returns the memory that training takes on a device, in bytes, for the largest batch."""

    @abstractmethod
    def plan(
        self, content: RecordDict, message_type: str, partition: int, seconds_per_flop: float
    ) -> Work:
        """Returns what a message's work costs, before it is done.

        Args:
            content: of the message.
            message_type: of the message; what follows a dot is ignored.
            partition: the client's partition-id.
            seconds_per_flop: of the client's device, for this task.

        Raises:
            ConfigError: the message's configuration makes no sense.
        """

    @abstractmethod
    def batch_key(self, message: Message, context: Context) -> Hashable | None:
        """Returns a key that tasks share if `train_contents` may run them together, or None."""

    @abstractmethod
    def train_contents(
        self, messages: Sequence[Message], contexts: Sequence[Context]
    ) -> list[RecordDict]:
        """Returns the contents of the replies to messages that share a batch key."""
