"""What a round is in apps that talk to their clients in ways of their own."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from fl import CostModel, SimulatedRun, simulate
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleets import uniform
from fl.strategies import Events, FedBuff

N = 4
FIRST = 2  # node id of the first client


def model() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.zeros(3, dtype=np.float32))})


def client_app() -> ClientApp:
    """Client p takes p + 1 s; it reports p, and how many tasks of the kind it has done."""
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        time.sleep(client + 1)
        kind = message.metadata.message_type
        done = context.state.get("done", MetricRecord({"train": 0, "evaluate": 0, "query": 0}))
        done[kind] += 1
        context.state["done"] = done
        metrics = MetricRecord({"num-examples": 1, "p": client, "task": done[kind]})
        content = RecordDict({"metrics": metrics})
        if kind == "train":
            content["arrays"] = model()
        return Message(content, reply_to=message)

    app.train()(answer)
    app.evaluate()(answer)
    app.query()(answer)
    return app


def run(main: Any, **kwargs: Any) -> SimulatedRun:
    app = ServerApp()
    app.main()(main)
    fleet = kwargs.pop("fleet", uniform(N, 0, down_bps=float("inf"), up_bps=float("inf")))
    settings = {
        "executor": "serial",
        "progress": False,
        "cost_model": CostModel(flops_per_example=0.0),
    }
    return simulate(app, client_app(), fleet, **{**settings, **kwargs})


def messages(kind: str, nodes: Any, config: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    content = RecordDict({"arrays": model(), "config": ConfigRecord(config or {})})
    return [Message(content, node, kind, **kwargs) for node in nodes]


def rows(result: SimulatedRun, *names: str) -> list[tuple[Any, ...]]:
    return [tuple(row.get(name) for name in ("round", "time_s", *names)) for row in result.history]


def push_and_pull(grid: Grid, sent: list[Message]) -> None:
    """Sends messages, and asks for the replies until all are there."""
    pending = set(grid.push_messages(sent))
    while pending:
        for reply in grid.pull_messages(pending):
            pending.remove(reply.metadata.reply_to_message_id)
        time.sleep(0.5)


# ---- rounds that say which they are --------------------------------------------------------------


@pytest.mark.parametrize("exchange", ["send_and_receive", "push and pull"])
@pytest.mark.parametrize("named", ["server-round", "group_id"])
def test_exchanges_of_one_round_are_one_round(exchange, named) -> None:
    def main(grid: Grid, context: Context) -> None:
        for number in (1, 2, 3):
            for part in (grid.get_node_ids()[:2], grid.get_node_ids()[2:]):
                config = {"server-round": number} if named == "server-round" else {}
                group = {"group_id": str(number)} if named == "group_id" else {}
                sent = messages("train", part, config, **group)
                if exchange == "send_and_receive":
                    grid.send_and_receive(sent)
                else:
                    push_and_pull(grid, sent)

    result = run(main)
    seen = [(row["round"], row["train_p"], row["train_task"]) for row in result.history]
    assert seen == [(1, 1.5, 1.0), (2, 1.5, 2.0), (3, 1.5, 3.0)]  # means over both parts
    assert result.summary["totals"]["rounds"] == 3
    assert result.summary["totals"]["client_updates"] == 3 * N


def test_rounds_are_numbered_as_the_app_numbers_them() -> None:
    def main(grid: Grid, context: Context) -> None:
        for number in (0, 10, 20):
            grid.send_and_receive(messages("train", [FIRST], {"server-round": number}))

    assert rows(run(main)) == [(0, 1.0), (10, 2.0), (20, 3.0)]


@pytest.mark.parametrize("group", ["fl", "", "20250101123456", "-1", "²", "1.5"])
def test_a_group_id_that_is_no_rounds_number_makes_none(group) -> None:
    def main(grid: Grid, context: Context) -> None:
        for _ in range(2):
            grid.send_and_receive(messages("train", [FIRST], group_id=group))

    result = run(main)
    assert rows(result) == [(1, 1.0), (2, 2.0)]
    assert result.summary["totals"]["client_updates"] == 2


def test_four_exchanges_of_a_group_are_one_update_of_each_client() -> None:
    def main(grid: Grid, context: Context) -> None:
        for number in (1, 2):
            for _ in range(4):
                grid.send_and_receive(messages("train", grid.get_node_ids(), group_id=str(number)))

    assert run(main).summary["totals"]["client_updates"] == 2 * N


# ---- rounds that do not --------------------------------------------------------------------------


def test_a_loop_of_pushes_and_pulls_has_a_row_for_each_round() -> None:
    def main(grid: Grid, context: Context) -> None:
        for _ in range(3):
            push_and_pull(grid, messages("train", grid.get_node_ids()))
            push_and_pull(grid, messages("evaluate", grid.get_node_ids()[:1]))

    result = run(main)
    # 4 s and the half second until it looks, 1 s and half a second.
    assert rows(result, "train_p", "train_task", "client_task") == [
        (1, 6.0 - 0.5, 1.5, 1.0, 1.0),
        (2, 12.0 - 0.5, 1.5, 2.0, 2.0),
        (3, 18.0 - 0.5, 1.5, 3.0, 3.0),
    ]
    assert result.summary["totals"]["rounds"] == 3


def test_clients_that_are_lost_do_not_join_rounds() -> None:
    def main(grid: Grid, context: Context) -> None:
        for _ in range(6):
            pending = set(grid.push_messages(messages("train", grid.get_node_ids())))
            end = time.time() + 20.0
            while pending and time.time() < end:
                for reply in grid.pull_messages(pending):
                    pending.remove(reply.metadata.reply_to_message_id)
                time.sleep(0.5)

    fleet = uniform(20, 0, faults=Faults(message_loss=0.2))
    assert [row["round"] for row in run(main, fleet=fleet).history] == [1, 2, 3, 4, 5, 6]


def test_an_asynchronous_loop_has_a_row_for_as_many_replies_as_were_in_flight() -> None:
    def main(grid: Grid, context: Context) -> None:
        pending = set(grid.push_messages(messages("train", grid.get_node_ids())))
        for _ in range(3 * N):
            while not (replies := list(grid.pull_messages(pending))):
                time.sleep(0.5)
            for reply in replies:
                pending.remove(reply.metadata.reply_to_message_id)
                node = reply.metadata.src_node_id
                pending.update(grid.push_messages(messages("train", [node])))

    result = run(main)
    numbers = [row["round"] for row in result.history]
    assert numbers == list(range(1, len(numbers) + 1))
    updates = result.summary["totals"]["client_updates"]
    assert len(numbers) == -(-updates // N)
    # The fourth reply comes at 3 s: before it, client 0's at 1 and 2 s and client 1's at 2 s.
    assert result.history[0]["time_s"] == 3.0


def test_a_client_after_the_other_is_a_round_each() -> None:
    def main(grid: Grid, context: Context) -> None:
        for node in grid.get_node_ids():
            push_and_pull(grid, messages("train", [node]))

    assert [row["train_p"] for row in run(main).history] == [0.0, 1.0, 2.0, 3.0]


# ---- other kinds of messages ---------------------------------------------------------------------


def test_queries_are_recorded_and_make_the_rounds_of_an_app_that_does_not_train() -> None:
    def main(grid: Grid, context: Context) -> None:
        for _ in range(2):
            grid.send_and_receive(messages("query", grid.get_node_ids()))

    assert rows(run(main), "query_p", "query_task") == [(1, 4.0, 1.5, 1.0), (2, 8.0, 1.5, 2.0)]


def test_a_query_before_training_is_no_round_of_training() -> None:
    def main(grid: Grid, context: Context) -> None:
        grid.send_and_receive(messages("query", grid.get_node_ids()))
        FedAvg(fraction_evaluate=0.0).start(grid, model(), num_rounds=2)

    result = run(main)
    trained = [(row["round"], row["train_task"]) for row in result.history if "train_p" in row]
    assert trained == [(1, 1.0), (2, 2.0)]
    assert result.history[0]["query_task"] == 1.0
    assert result.summary["totals"]["rounds"] == 2


def test_evaluations_of_clients_alone_are_rounds() -> None:
    def main(grid: Grid, context: Context) -> None:
        for _ in range(3):
            push_and_pull(grid, messages("evaluate", [FIRST]))

    assert rows(run(main), "client_task") == [(1, 1.0, 1.0), (2, 2.5, 2.0), (3, 4.0, 3.0)]


def test_rounds_without_any_metrics_are_counted_all_the_same() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": model()}), reply_to=message)

    def main(grid: Grid, context: Context, recorder: Any) -> None:
        for _ in range(3):
            grid.send_and_receive(messages("train", grid.get_node_ids()))

    result = simulate(main, app, uniform(2, 0), executor="serial", progress=False)
    assert result.history == []
    assert result.summary["totals"]["rounds"] == 3


# ---- our strategies, which say themselves what they use ------------------------------------------


def test_a_strategy_that_says_which_updates_it_uses_is_counted_by_its_versions() -> None:
    def main(grid: Grid, context: Context) -> None:
        Events(FedBuff(buffer_size=2), concurrency=3).start(
            grid=grid,
            initial_arrays=model(),
            num_rounds=4,
            evaluate_fn=lambda version, arrays: (
                MetricRecord({"score": float(version)}) if version % 2 == 0 else None
            ),
        )

    result = run(main)
    assert [(row["round"], row["score"]) for row in result.history] == [(0, 0), (2, 2), (4, 4)]
    assert "staleness" in result.history[1]
