"""Messages made of others."""

from flwr.app import Message, MetricRecord, RecordDict

from fl.flower.identity import assume_identity
from fl.flower.messages import with_content


def content(x: int) -> RecordDict:
    return RecordDict({"metrics": MetricRecord({"x": x})})


def test_a_message_with_other_content_leaves_the_first_as_it_is():
    assume_identity()
    message = Message(content(1), 3, "train", ttl=7.0, group_id="5")
    made = with_content(message, content(2))
    assert made.content == content(2)
    assert message.content == content(1)
    assert made.metadata == message.metadata
    assert (made.metadata.ttl, made.metadata.group_id) == (7.0, "5")
    assert type(made) is Message
    assert not made.has_error()
