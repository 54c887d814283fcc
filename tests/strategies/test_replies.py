"""What is read from clients' replies, on any strategy."""

from flwr.app import Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg

from fl.flower.identity import assume_identity
from fl.strategies.replies import with_answers


def test_answers_are_counted_in_the_log_as_flowers_strategies_do(caplog):
    assume_identity()
    asked = [Message(RecordDict(), node, "evaluate") for node in (2, 3, 4)]
    metrics = RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.5})})
    replies = [Message(metrics, reply_to=asked[0]), Message(Error(3, "gone"), reply_to=asked[1])]
    caplog.set_level("INFO", "flwr")

    answered = with_answers(replies, "aggregate_evaluate")
    ours, _ = caplog.messages.copy(), caplog.clear()
    FedAvg().aggregate_evaluate(1, replies)

    assert answered == replies[:1]
    assert any("gone" in line for line in ours)
    assert ours == caplog.messages


def test_without_replies_nothing_is_logged(caplog):
    caplog.set_level("INFO", "flwr")
    assert with_answers([], "aggregate_train") == []
    assert not caplog.messages
