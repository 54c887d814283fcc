"""Who contributed to a run, and why the others did not."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import ErrorCode
from stand_ins import (
    NEVER,
    Client,
    Scripted,
    ScriptedFaults,
    content_of,
    driven,
    fleet_of,
    grid_of,
    message_to,
)

from fl import simulate
from fl.execution.contract import Result
from fl.reports.participation import participation, told
from fl.reports.table import results
from fl.simulation.world.faults import TaskFaults
from fl.strategies import FedAvg, FedBuff, Rounds

GOOD, RAISES, DROPS, LOST, SLOW, UNASKED, AWAY, LAST = range(8)
REJECTED = 8


def answer(request):
    if request.client == RAISES:
        return Result(error=(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, "it raised"))
    return Result(content=content_of(8))


def fleet(n=9):
    script = {(DROPS, k): TaskFaults(dropout_at=0.5) for k in range(99)}
    script |= {(LOST, k): TaskFaults(lose_upload=k % 2 == 0, lose_download=True) for k in range(99)}
    clients = [Client(flops=0.05 if i == SLOW else 1.0) for i in range(n)]
    away = Scripted(n, {AWAY: [1e6]}, offline=[AWAY])
    return fleet_of(
        clients, faults=ScriptedFaults(detection_s=1.0, script=script), availability=away
    )


EXPECTED = {
    "never_asked": [UNASKED],
    "failed": [RAISES, REJECTED],
    "dropped_out": [DROPS],
    "message_lost": [LOST],
    "too_late": [SLOW],
    "unfinished": [LAST],
}


def test_each_client_that_never_contributed_counts_with_what_became_of_its_tasks(caplog):
    grid = grid_of(fleet(), flops=1.0, answer=answer)
    for _ in range(3):
        asked = [GOOD, RAISES, DROPS, LOST, SLOW, REJECTED]
        for reply in grid.send_and_receive([message_to(i) for i in asked], timeout=10.0):
            if reply.metadata.src_node_id == message_to(REJECTED).metadata.dst_node_id:
                grid.control.rejected(reply.metadata.reply_to_message_id)
    grid.push_messages([message_to(LAST)])
    found = participation(grid.trace, grid.control.answers, grid.were_available())
    assert {why: others["clients"] for why, others in found["others"].items()} == EXPECTED
    assert (found["available"], found["contributed"]) == (8, 1)
    line = told(found)
    assert line.startswith(
        "7 of 8 available clients: 1 never asked (client 5); 2 failed (clients 1, 8); "
    )


def test_a_strategy_that_reports_its_updates_is_believed():
    # With nobody else's word, client 1 would count: its answer came.
    grid = grid_of(fleet_of([Client(), Client()]))
    names = grid.push_messages([message_to(0), message_to(1)])
    grid.clock.sleep(1.0)
    grid.pull_messages(names)
    grid.control.applied(names[0], 0, {})
    grid.control.discarded(names[1], 3)
    found = participation(grid.trace, grid.control.answers, grid.were_available())
    assert found == {
        "available": 2,
        "contributed": 1,
        "others": {"too_late": {"number": 1, "clients": [1]}},
    }


def test_nothing_is_said_where_everybody_contributed():
    grid = grid_of(fleet_of([Client(), Client()]))
    grid.send_and_receive([message_to(0), message_to(1)])
    found = participation(grid.trace, grid.control.answers, grid.were_available())
    assert found == {"available": 2, "contributed": 2, "others": {}}
    assert told(found) == ""


@pytest.mark.parametrize(
    "strategy", [driven(FedBuff, buffer_size=1, concurrency=2), Rounds(FedAvg(), clients=2)]
)
def test_the_summary_and_the_table_of_a_run_say_who_never_contributed(strategy):
    app = ClientApp()

    @app.train()
    def train(message, context):
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("no data")
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({**message.content, "metrics": metrics}), reply_to=message)

    def server(grid, context, recorder):
        initial = ArrayRecord({"w": Array(np.zeros(2, np.float32))})
        strategy.start(grid, initial, num_rounds=4, train_config=ConfigRecord())

    away = Scripted(3, {2: [NEVER]}, offline=[2])
    run = simulate(
        server, app, fleet_of([Client()] * 3, availability=away), executor="serial", progress=False
    )
    assert run.summary["participation"] == {
        "available": 2,
        "contributed": 1,
        "others": {"failed": {"number": 1, "clients": [1]}},
    }
    cells = [str(cell) for column in results(run.summary).columns for cell in column.cells]
    assert "1 of 2 available clients: 1 failed (client 1)" in cells
