"""The contract of client work, fulfilled by an app that is none of ours."""

import pickle
from collections.abc import Hashable, Sequence
from typing import Any

import pytest
from client_apps import RUN, payload, requests
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fl.execution import SerialExecutor
from fl.execution.contract import Payload, PlannedApp, Request, Result, RunInfo, Workload
from fl.flower.payload import payload_bytes


class Counting(ClientApp):
    """Replies how many were trained with it, and what the message's configuration says."""

    has_mods = False

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.evaluate()(lambda message, _: Message(message.content, reply_to=message))

    def read(self, content: RecordDict) -> str:
        self.reads += 1
        return str(content["config"]["what"])

    def memory_bytes(self) -> int:
        return 1

    def plan(
        self, sent: Payload, message_type: str, partition: int, seconds_per_flop: float
    ) -> Workload:
        return Workload(1.0)

    def batch_key(self, request: Request, run: RunInfo) -> Hashable | None:
        return request.payload.read_by(self) if self.trains(request) else None

    def trains(self, request: Request) -> bool:
        return request.message_type == "train"

    def train_many(self, asked: Sequence[Request], run: RunInfo) -> list[Result]:
        what = [request.payload.read_by(self) for request in asked]
        return [
            Result(RecordDict({"m": MetricRecord({"n": len(asked)}), "c": ConfigRecord({"w": w})}))
            for w in what
        ]


def answered(app: Any, wave: list[Request], max_batch: int = 64) -> list[Result]:
    executor = SerialExecutor(max_batch=max_batch)
    executor.start(app, RUN)
    executor.submit(wave)
    return [executor.result(request) for request in wave]


@pytest.mark.parametrize(("max_batch", "together"), [(64, 3), (1, 1)])
def test_one_way_trains_one_request_or_several(max_batch: int, together: int) -> None:
    wave = [*requests(payload("a"), range(3)), *requests(payload("b"), range(3, 6))]
    results = answered(Counting(), wave, max_batch)
    assert [result.content["m"]["n"] for result in results] == [together] * 6
    assert [result.content["c"]["w"] for result in results] == [*"aaabbb"]


def test_what_is_no_training_is_answered_as_flower_calls_an_app() -> None:
    (request,) = requests(payload("a"), range(1))
    request.message_type = "evaluate"
    (result,) = answered(Counting(), [request])
    assert result.content == request.payload.content


def test_a_broadcast_is_read_once_by_an_app() -> None:
    one, other, sent = Counting(), Counting(), payload("a")
    answered(one, requests(sent, range(5)))
    answered(one, requests(sent, range(5), dispatch=1), max_batch=1)
    answered(other, requests(sent, range(5)))
    assert (one.reads, other.reads) == (1, 1)


def test_a_payload_crosses_processes_without_what_was_read_of_it() -> None:
    app, sent = Counting(), payload("a")
    sent.read_by(app)
    there = pickle.loads(pickle.dumps(sent))
    assert there.content == sent.content
    assert there.size == sent.size == payload_bytes(sent.content)
    assert there.read_by(app) == "a"
    assert app.reads == 2


def test_an_app_that_does_not_plan_is_not_taken_for_one_that_does() -> None:
    def train(message: Message, context: Context) -> Message:
        return Message(message.content, reply_to=message)

    app = ClientApp()
    app.train()(train)
    assert not isinstance(app, PlannedApp)
    assert isinstance(Counting(), PlannedApp)
