"""What a round is in somebody's app, as far as its messages show."""

from __future__ import annotations

from flwr.app import Message

ROUND_KEY = "server-round"
"""Under which Flower's strategies send the number of the round, in a message's configuration."""

_LARGEST_GROUP = 10**6  # a larger number in a group id is somebody's date, or name


def round_of(message: Message) -> int | None:
    """Returns the number of the round that a message says it belongs to; None if it says none.

    That is "server-round" in its configuration, as Flower's strategies send it, or its group id if
    that is a number, as Flower's older server and its secure aggregation have it.
    """
    for record in message.content.config_records.values():
        number = record.get(ROUND_KEY)
        if isinstance(number, int) and not isinstance(number, bool) and number >= 0:
            return number
    return group_number(message.metadata.group_id)


def group_number(group_id: str) -> int | None:
    """Returns the number that a group id is; None if it is none."""
    if not (group_id.isascii() and group_id.isdecimal() and len(group_id) < 8):
        return None
    number = int(group_id)
    return number if number < _LARGEST_GROUP else None


class RoundCounter:
    """Counts the rounds of an app by the messages that it sends.

    Messages that say which round they belong to are of that round, however many exchanges it takes.
    In other apps, a round begins when more messages are sent than are still unanswered: with every
    cohort that the app waits for. Where clients are sent the next message one by one, as they
    answer, a round is as many replies as the first cohort had messages.

    Training leads: messages of other kinds belong to the round that goes on. In an app that has not
    trained, they make rounds of their own.

    Attributes:
        number: of the round that goes on; 0 before the first.
    """

    lasting = ("number", "_leader", "_named", "_size", "_answers", "_unanswered")

    def __init__(self) -> None:
        self.number = 0
        self._leader: str | None = None
        self._named = False  # messages say which round they belong to
        self._size = 0  # of the cohort that began the round; 0 before the first
        self._answers = 0  # to messages of this round
        self._unanswered = 0

    def sent(self, kind: str, number: int | None, count: int) -> bool:
        """Notes a cohort of messages; returns whether a round begins with it.

        Args:
            kind: of the messages: "train", "evaluate" or "query".
            number: of the round that they say they belong to.
            count: of the messages.
        """
        if kind == "train" and self._leader != "train":
            self._leader, self.number, self._size, self._unanswered = kind, 0, 0, 0
        elif self._leader is None:
            self._leader = kind
        if kind != self._leader:
            return False
        self._named = number is not None
        if number is None and count <= self._unanswered:
            self._unanswered += count
            self._size += count if self._answers == 0 else 0
            return False
        if number is not None and number == self.number and self._size:
            return False
        self.number = self.number + 1 if number is None else number
        self._size = self._unanswered = count
        self._answers = 0
        return True

    def answered(self, kind: str) -> bool:
        """Notes a reply that the app has pulled; returns whether a round begins with it."""
        if self._named or kind != self._leader:
            return False
        begins = self._answers >= self._size
        if begins:
            self.number += 1
            self._answers = 0
        self._answers += 1
        self._unanswered = max(0, self._unanswered - 1)
        return begins

    def ended(self) -> None:
        """Notes that the app waits for no message any more."""
        self._unanswered = 0
