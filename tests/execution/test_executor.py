"""What every executor does with a task, tested on the worker and on the serial executor."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from client_apps import RUN, app_of, payload, reply, requests
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode

from fl.clients import AdamW, TrainingApp
from fl.data import Examples, FederatedData
from fl.data.federated import Partitions
from fl.errors import ConfigError
from fl.execution import SerialExecutor
from fl.execution.batches import form_batches
from fl.execution.contract import Payload, Request, Result
from fl.execution.executor import load_app
from fl.execution.virtual_time import virtual_time
from fl.execution.worker import Worker
from fl.models import LogisticRegression

CLIENTS = 10


def ours(**arguments: Any) -> TrainingApp:
    rng = np.random.default_rng(0)
    examples = Examples(
        rng.standard_normal((8 * CLIENTS, 4)).astype(np.float32), rng.integers(0, 3, 8 * CLIENTS)
    )
    data = FederatedData(
        name="toy",
        train=examples,
        test=examples,
        partitions=Partitions.contiguous([8] * CLIENTS),
        num_classes=3,
        input_shape=(4,),
    )
    rule = AdamW(lr=0.1, keep_moments=True)
    return TrainingApp(LogisticRegression((4,), 3), data, rule, batch_size=4, **arguments)


def model() -> Payload:
    weights = ArrayRecord(LogisticRegression((4,), 3).state_dict())
    return Payload(RecordDict({"arrays": weights, "config": ConfigRecord({"server-round": 1})}), 0)


def run_alone(train: Callable[[Message, Context], Any], state: RecordDict | None = None) -> Result:
    (request,) = requests(payload(), range(3, 4))
    return Worker(app_of(train), RUN).execute([replace(request, state=state)])[0]


def same(one: Result, other: Result) -> bool:
    return one.content == other.content and one.error == other.error and one.state == other.state


# ---- what a client's code can and cannot reach ---------------------------------------------------


def test_what_a_client_does_to_its_message_reaches_no_other_client() -> None:
    def spoil(message: Message, context: Context) -> Message:
        seen = len(message.content["config"]) + len(message.content)
        message.content["config"]["mine"] = 1
        message.content["more"] = ConfigRecord()
        return reply(message, seen=seen)

    sent = payload()
    results = Worker(app_of(spoil), RUN).execute(requests(sent, range(3)))
    assert [result.content["metrics"]["seen"] for result in results] == [3, 3, 3]
    assert sorted(sent.content["config"]) == ["what"]


def test_what_a_mod_does_to_its_message_reaches_no_other_client() -> None:
    def grow(message: Message, context: Context, call_next: Any) -> Message:
        message.content["config"]["seen"] = message.content["config"].get("seen", 0) + 1
        answer = call_next(message, context)
        answer.content["metrics"]["seen"] = message.content["config"]["seen"]
        return answer

    sent = model()
    worker = Worker(ours(mods=[grow]), RUN)
    seen = [
        worker.execute([request])[0].content["metrics"]["seen"]
        for request in requests(sent, range(3))
    ]
    assert seen == [1, 1, 1]


def test_what_a_client_does_after_replying_does_not_change_the_reply() -> None:
    kept: list[RecordDict] = []

    def remember(message: Message, context: Context) -> Message:
        for content in kept:
            content["metrics"]["num-examples"] = -1
        answer = reply(message)
        kept.append(answer.content)
        return answer

    results = Worker(app_of(remember), RUN).execute(requests(payload(), range(3)))
    assert [result.content["metrics"]["num-examples"] for result in results] == [10, 10, 10]


def test_foreign_task_changes_its_state_only_through_its_result() -> None:
    # A task may be executed and then lost with its device: the state must be what it was.
    def count(message: Message, context: Context) -> Message:
        context.state["tasks"]["count"] += 1
        context.state["new"] = ConfigRecord()
        return reply(message)

    state = RecordDict({"tasks": MetricRecord({"count": 1})})
    result = run_alone(count, state)
    assert state == RecordDict({"tasks": MetricRecord({"count": 1})})
    assert result.state["tasks"]["count"] == 2


@pytest.mark.parametrize("clients", [1, 4])
def test_our_task_changes_its_state_only_through_its_result(clients: int) -> None:
    worker = Worker(ours(), RUN)
    first = worker.execute(requests(model(), range(clients)))
    state = first[0].state
    before = state.copy()
    tasks = [
        replace(a, state=done.state)
        for a, done in zip(requests(model(), range(clients), 1), first, strict=True)
    ]
    once = worker.execute(tasks)
    assert state == before
    assert once[0].state != before
    # So a task that ran on an actor that died can run again.
    assert all(same(a, b) for a, b in zip(once, worker.execute(tasks), strict=True))


def test_client_that_keeps_no_state_has_none() -> None:
    assert run_alone(lambda message, context: reply(message)).state is None


# ---- errors --------------------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


class Cancelled(BaseException):
    pass


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ValueError("bad"), "<class 'ValueError'>:<'bad'>"),
        (SystemExit(3), "<class 'SystemExit'>:<'3'>"),
        (Cancelled("x"), "Cancelled'>:<'x'>"),
        (Unprintable(), "Unprintable'>"),
    ],
)
def test_whatever_a_client_raises_is_its_error_reply(error: BaseException, says: str) -> None:
    def fail(message: Message, context: Context) -> Message:
        context.state["half"] = ConfigRecord()
        time.sleep(7.0)
        raise error

    state = RecordDict({"whole": ConfigRecord({"x": 1})})
    with virtual_time():
        result = run_alone(fail, state)
    assert result.content is None
    assert result.error is not None
    assert result.error[0] == ErrorCode.CLIENT_APP_RAISED_EXCEPTION
    assert says in result.error[1]
    assert result.state == state  # as on a SuperNode: a task that failed leaves no trace
    assert result.slept_s == 7.0
    assert type(error).__name__ in result.details


def test_interrupt_from_the_keyboard_is_the_users() -> None:
    def interrupted(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_alone(interrupted)


def elsewhere(message: Message, context: Context) -> Message:
    return Message(RecordDict(), dst_node_id=77, message_type="train")


def not_content(message: Message, context: Context) -> Message:
    answer = reply(message)
    answer.content = {"arrays": [1.0]}  # type: ignore[assignment]
    return answer


def not_a_record(message: Message, context: Context) -> Message:
    answer = reply(message)
    answer.content.__dict__["_data"]["arrays"] = object()
    return answer


def not_a_value(message: Message, context: Context) -> Message:
    answer = reply(message)
    answer.content["metrics"].__dict__["_data"]["loss"] = lambda: 0.0
    return answer


def not_a_state(message: Message, context: Context) -> Message:
    context.state = {"count": 1}  # type: ignore[assignment]
    return reply(message)


@pytest.mark.parametrize(
    ("train", "says"),
    [
        (lambda message, context: None, "returned NoneType instead of a Message"),
        (lambda message, context: message.content, "returned RecordDict instead of a Message"),
        (
            elsewhere,
            "is for node 77 and answers message ''; it must be for node 1 and answer '3.0'",
        ),
        (not_content, "the reply's content is dict, not a RecordDict"),
        (not_a_record, "the reply's content holds object under 'arrays', not a record"),
        (not_a_value, "the reply's content holds what a record cannot, under 'metrics'"),
        (not_a_state, "Context.state is dict, not a RecordDict"),
    ],
)
def test_reply_that_no_runtime_could_send_is_an_error_that_says_why(
    train: Callable[[Message, Context], Any], says: str
) -> None:
    result = run_alone(train)
    assert result.content is None
    assert result.error is not None
    assert says in result.error[1]
    assert result.details == ""  # our own traceback would not help the author of the app


def test_error_reply_made_by_the_app_itself_is_passed_on() -> None:
    from flwr.app import Error

    def refuse(message: Message, context: Context) -> Message:
        return Message(Error(42, "no battery"), reply_to=message)

    assert run_alone(refuse).error == (42, "no battery")


def test_source_that_makes_no_client_app_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"client_app makes int: .* return a flwr.clientapp.Cl"):
        load_app(lambda: 3)  # type: ignore[arg-type, return-value]


# ---- batches -------------------------------------------------------------------------------------


def members(batches: list[list[Request]]) -> list[list[int]]:
    return [[request.client for request in batch] for batch in batches]


def test_wave_is_cut_into_an_even_number_of_equal_runs_in_order() -> None:
    wave = requests(model(), range(7))
    assert members(form_batches(ours(), RUN, wave, 3)) == [[0], [1, 2], [3, 4], [5, 6]]
    assert members(form_batches(ours(), RUN, wave, 4)) == [[0, 1, 2], [3, 4, 5, 6]]
    assert members(form_batches(ours(), RUN, wave, 7)) == [[0, 1, 2, 3, 4, 5, 6]]
    assert members(form_batches(ours(), RUN, wave, 1)) == [[i] for i in range(7)]


def test_what_cannot_train_together_runs_alone() -> None:
    wave = requests(model(), range(4))
    wave[1].message_type = "evaluate"
    assert sorted(members(form_batches(ours(), RUN, wave, 64))) == [[0, 2, 3], [1]]
    foreign = app_of(lambda message, context: reply(message))
    assert members(form_batches(foreign, RUN, wave, 64)) == [[0], [1], [2], [3]]


def executed(
    executor: SerialExecutor, wave: list[Request], app: ClientApp, order: list[int]
) -> dict[int, Result]:
    executor.start(app, RUN)
    executor.submit(wave)
    for i in range(len(wave)):
        if i not in order:
            executor.discard(wave[i])
    return {i: executor.result(wave[i]) for i in order}


def test_results_depend_neither_on_the_order_of_asking_nor_on_what_is_discarded() -> None:
    wave = requests(model(), range(6))
    everything = executed(SerialExecutor(max_batch=4), wave, ours(), [0, 1, 2, 3, 4, 5])
    some = executed(SerialExecutor(max_batch=4), wave, ours(), [5, 1, 2])
    assert all(same(some[i], everything[i]) for i in some)


def test_serial_executor_runs_only_the_batches_somebody_asks_for() -> None:
    executor = SerialExecutor(max_batch=2)
    executed(executor, requests(model(), range(6)), ours(), [4])
    assert executor.report() == {"executor": "serial", "batches": 1, "max_batch": 2}


def test_threads_are_limited_only_while_clients_train() -> None:
    def threads(message: Message, context: Context) -> Message:
        used = torch.get_num_threads()
        torch.set_num_threads(3)  # what a client changes does not last either
        return reply(message, threads=used)

    before = torch.get_num_threads()
    wave = requests(payload(), range(2))
    results = executed(SerialExecutor(threads=2), wave, app_of(threads), [0, 1])
    assert [o.content["metrics"]["threads"] for o in results.values()] == [2, 2]
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("arguments", [{"max_batch": 0}, {"threads": -1}, {"threads": 1.5}])
def test_serial_executor_refuses_arguments_by_name_and_value(arguments: dict[str, Any]) -> None:
    ((name, value),) = arguments.items()
    with pytest.raises(ConfigError, match=rf"{name} is {value}; it must be a whole num"):
        SerialExecutor(**arguments)
