"""Messages made of others."""

from __future__ import annotations

import copy

from flwr.app import Message, RecordDict


def with_content(message: Message, content: RecordDict) -> Message:
    """Returns a message with the same metadata and other content; the message stays as it is.

    Args:
        message: has content, no error.
        content: of the new message.
    """
    made = copy.copy(message)
    made.content = content
    return made
