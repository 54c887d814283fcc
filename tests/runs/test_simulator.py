"""One call that runs anybody's Flower app: what it gives, what it writes, and how it ends."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
import random
import time
import timeit
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from fl import ConfigError, CostModel, SimulatedRun, SimulationError, simulate
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.fleets import uniform

NEVER = float("inf")
D = 6  # scalars of the model
N = 3
ROUNDS = 2


# ---- an app of somebody else ---------------------------------------------------------------------


def model(value: float = 0.0) -> ArrayRecord:
    return ArrayRecord({"w": Array(np.full((2, 3), value))})


def client_app() -> ClientApp:
    """Client p adds p + 1 to the model, from 10 (p + 1) examples."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        trained = message.content["arrays"]["w"].numpy() + partition + 1
        metrics = MetricRecord(
            {"num-examples": 10 * (partition + 1), "train-loss": float(partition), "steps": 4}
        )
        content = RecordDict({"arrays": ArrayRecord({"w": Array(trained)}), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        loss = float(message.content["arrays"]["w"].numpy().mean())
        metrics = MetricRecord({"num-examples": 5, "loss": loss, "accuracy": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def server_app(strategy: Strategy | None = None, **start: Any) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        used = FedAvg() if strategy is None else strategy
        used.start(grid=grid, initial_arrays=model(), num_rounds=ROUNDS, **start)

    return app


def fleet(n: int = N, **kwargs: Any) -> Fleet:
    """Equal clients of 1 FLOP/s, whose transfers take no time."""
    return uniform(n, 0, **{"flops": 1.0, "down_bps": NEVER, "up_bps": NEVER, **kwargs})


def run(server: Any, client: Any = None, **kwargs: Any) -> SimulatedRun:
    on = kwargs.pop("on", None)
    settings: dict[str, Any] = {
        "executor": "serial",
        "progress": False,
        "cost_model": CostModel(flops_per_example=1.0),
    }
    client = client_app() if client is None else client
    return simulate(server, client, fleet() if on is None else on, **{**settings, **kwargs})


def happened(result: SimulatedRun, kind: Event) -> list[float]:
    return [t for t, k in zip(result.trace.time, result.trace.kind, strict=True) if k == kind]


# ---- what it gives -------------------------------------------------------------------------------


def test_a_stock_strategy_gives_its_model_and_the_time_it_took() -> None:
    result = run(server_app())
    # Training takes 10, 20 and 30 s, evaluation 5 s; the mean step is (1*10 + 2*20 + 3*30) / 60.
    np.testing.assert_allclose(result.arrays["w"].numpy(), ROUNDS * 140 / 60)
    totals = result.summary["totals"]
    assert totals["virtual_s"] == ROUNDS * (30.0 + 5.0)
    assert (totals["rounds"], totals["client_updates"]) == (ROUNDS, ROUNDS * N)
    assert result.summary["status"] == "completed"
    assert result.summary["faults"] == {}


def test_what_servers_and_clients_evaluate_is_recorded_with_the_virtual_time() -> None:
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": 0.1 * server_round, "curve": [1.0, 2.0]})

    history = run(server_app(evaluate_fn=evaluate)).history
    assert [(row["round"], row["time_s"], row["accuracy"]) for row in history] == [
        (0, 0.0, 0.0),
        (1, 35.0, 0.1),
        (2, 70.0, 0.2),
    ]
    # Losses 0, 1 and 2 with weights 10, 20 and 30, which are no metric themselves.
    assert [row["train_loss"] for row in history[1:]] == [80 / 60] * 2
    assert [row["train_steps"] for row in history[1:]] == [4.0] * 2
    assert [row["client_loss"] for row in history[1:]] == pytest.approx([140 / 60, 280 / 60])
    assert [row["client_accuracy"] for row in history[1:]] == [0.5, 0.5]
    assert [(row["curve[0]"], row["curve[1]"]) for row in history] == [(1.0, 2.0)] * 3
    assert not {"curve", "train_num_examples"} & set(history[1])
    # Bytes and joules are those at the evaluation, not of the whole run.
    assert 0 == history[0]["bytes_down"] < history[1]["bytes_down"] < history[2]["bytes_down"]
    assert 0 == history[0]["energy_j"] < history[1]["energy_j"]


def test_a_server_that_does_not_evaluate_leaves_a_row_for_each_round() -> None:
    history = run(server_app()).history
    assert [(row["round"], row["time_s"]) for row in history] == [(1, 35.0), (2, 70.0)]
    assert history[0]["client_loss"] == pytest.approx(140 / 60)


def test_a_round_that_nobody_answers_counts_as_a_round() -> None:
    def main(grid: Grid, context: Context, recorder: Any) -> None:
        content = RecordDict({"arrays": model()})
        for timeout in (5.0, None):
            grid.send_and_receive([Message(content, 2, "train")], timeout=timeout)

    result = run(main)  # 10 s a task, and the second begins after the first
    assert result.summary["faults"] == {"timeout": 1}
    assert [(row["round"], row["time_s"]) for row in result.history] == [(2, 20.0)]


class OwnStart(FedAvg):
    """Strategies written from Flower's examples override `start` to save checkpoints."""

    def start(self, grid, initial_arrays, num_rounds=3, timeout=3600, train_config=None,
              evaluate_config=None, evaluate_fn=None):  # fmt: skip
        return super().start(
            grid, initial_arrays, num_rounds, timeout, train_config, evaluate_config, evaluate_fn
        )


@pytest.mark.parametrize("strategy", [FedAvg, OwnStart])
def test_evaluation_is_recorded_once_however_the_strategy_is_started(strategy) -> None:
    def main(grid: Grid, context: Context, recorder: Any) -> None:
        strategy().start(grid, model(), 1, 100.0, None, None, evaluate)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        return MetricRecord({"accuracy": 0.5})

    start = strategy.start
    result = run(main)
    assert [row["round"] for row in result.history] == [0, 1]
    assert result.arrays is not None
    assert strategy.start is start, "put back"


def test_the_models_hash_is_of_names_types_shapes_and_bytes() -> None:
    result = run(server_app())
    digest = hashlib.sha256()
    array = result.arrays["w"]
    digest.update(f"w|{array.dtype}|(2, 3)|{array.stype}|".encode())
    digest.update(array.data)
    assert result.summary["model_sha256"] == digest.hexdigest()


def test_equal_seeds_give_equal_runs_and_another_seed_samples_others() -> None:
    def once(seed: int) -> tuple[str, str]:
        app = server_app(FedAvg(fraction_train=0.3, min_train_nodes=3))
        summary = run(app, on=fleet(10), seed=seed).summary
        return summary["trace_sha256"], summary["model_sha256"]

    assert once(1) == once(1)
    assert once(1) != once(2)


def test_a_run_leaves_the_callers_random_numbers_alone() -> None:
    before = (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    run(server_app())
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before  # noqa: NPY002


def test_host_time_is_not_virtual_time() -> None:
    real_sleep = time.sleep

    def slow() -> ClientApp:
        app = client_app()
        train = app._registered_funcs["train.default"]

        def slowly(message: Message, context: Context) -> Message:
            real_sleep(0.02)
            return train(message, context)

        app._registered_funcs["train.default"] = slowly
        return app

    results = [run(server_app(), app()) for app in (client_app, slow)]
    assert results[0].summary["trace_sha256"] == results[1].summary["trace_sha256"]


# ---- what work costs -----------------------------------------------------------------------------


def answering(*metrics: str, seconds: float = 0.0) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        time.sleep(seconds)
        record = MetricRecord(dict.fromkeys(metrics, 8))
        return Message(RecordDict({"metrics": record}), reply_to=message)

    return app


def send_once(grid: Grid, context: Context, recorder: Any) -> None:
    node = next(iter(grid.get_node_ids()))
    content = RecordDict({"arrays": model(), "config": ConfigRecord({"lr": 0.1})})
    grid.send_and_receive([Message(content, node, "train")])


@pytest.mark.parametrize(
    ("app", "cost_model", "expected"),
    [
        (answering("num-examples"), None, 6 * D * 8),
        (answering("num-examples", seconds=999.5), None, 6 * D * 8 + 999.5),
        (answering("num-examples"), CostModel(flops_per_example=2.0), 16.0),
        (answering("loss"), None, 1.0),
        (answering("loss", seconds=999.5), CostModel(seconds=20.0), 1019.5),
    ],
    ids=["6 d", "6 d and asleep", "per example", "constant", "constant and asleep"],
)
def test_a_foreign_client_is_charged_by_rule_and_for_what_it_sleeps(
    app, cost_model, expected
) -> None:
    began = time.perf_counter()
    result = run(send_once, app, cost_model=cost_model)
    assert happened(result, Event.COMPUTE_END) == [pytest.approx(expected, rel=1e-12)]
    assert time.perf_counter() - began < 999.5  # what was slept


def test_measured_time_is_charged_only_if_asked_for() -> None:
    def working() -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            end = time.perf_counter() + 0.05
            while time.perf_counter() < end:
                pass
            return Message(RecordDict(), reply_to=message)

        return app

    began = time.perf_counter()
    (took,) = happened(
        run(send_once, working, cost_model=CostModel(measured=100.0)), Event.COMPUTE_END
    )
    assert 100.0 * 0.05 <= took < 100.0 * (time.perf_counter() - began)


# ---- what the two apps see -----------------------------------------------------------------------


def test_an_app_with_a_polling_loop_of_its_own_runs_unmodified() -> None:
    app = ServerApp()
    arrivals = []

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(nodes := list(grid.get_node_ids())) < N:
            time.sleep(1)
        content = RecordDict({"arrays": model()})
        pending = set(grid.push_messages([Message(content, node, "train") for node in nodes]))
        while pending:
            for reply in grid.pull_messages(pending):
                pending.remove(reply.metadata.reply_to_message_id)
                arrivals.append((reply.metadata.src_node_id - nodes[0], grid.clock.now()))
            time.sleep(3)

    result = run(app)
    # Done at 10, 20 and 30 s; the app looks every 3 s.
    assert arrivals == [(0, 12.0), (1, 21.0), (2, 30.0)]
    assert result.summary["totals"]["virtual_s"] == 33.0
    assert result.arrays is None


def test_a_clients_state_stays_with_the_client() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        record = context.state.get("tasks", MetricRecord({"count": 0}))
        record["count"] += 1 + int(context.node_config["partition-id"])
        context.state["tasks"] = record
        return Message(RecordDict({"metrics": record.copy()}), reply_to=message)

    counts = []

    def main(grid: Grid, context: Context, recorder: Any) -> None:
        for nodes in ([2, 3], [3], [2, 3, 4]):
            replies = grid.send_and_receive(
                [Message(RecordDict(), node, "train") for node in nodes]
            )
            counts.append({r.metadata.src_node_id: r.content["metrics"]["count"] for r in replies})

    run(main, app)
    assert counts == [{2: 1, 3: 2}, {3: 4}, {2: 2, 3: 6, 4: 3}]


def test_both_apps_see_the_run_config_and_nobody_sees_the_others_changes() -> None:
    seen = []

    def make() -> ClientApp:
        app = ClientApp()

        @app.train()
        def train(message: Message, context: Context) -> Message:
            seen.append(dict(context.run_config))
            context.run_config["lr"] = -1.0
            return Message(RecordDict(), reply_to=message)

        return app

    def main(grid: Grid, context: Context, recorder: Any) -> None:
        seen.append(dict(context.run_config))
        context.run_config["lr"] = 99.0
        grid.send_and_receive([Message(RecordDict(), node, "train") for node in (2, 3)])

    config = {"lr": 0.1, "seed": 99}  # the app's own seed is the app's
    run(main, make, run_config=config, seed=4)
    assert seen == [{"lr": 0.1, "seed": 99, "fl.seed": 4}] * 3
    assert config == {"lr": 0.1, "seed": 99}


def clockwork() -> tuple[ServerApp, ClientApp]:
    """Two apps that do nothing without looking at some clock."""
    client, server = ClientApp(), ServerApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        began, measured = datetime.now(), time.perf_counter()
        random.seed(str(datetime.now()))
        time.sleep(began.microsecond / 1e6 + datetime.now(UTC).second + time.time_ns() % 7)
        age = time.time() - message.metadata.created_at
        step = random.random() + (datetime.utcnow().timestamp() % 5)
        metrics = MetricRecord(
            {
                "num-examples": 1 + int(time.monotonic()) % 3,
                "took": time.perf_counter() - measured,
                "rate": 1.0 / (time.process_time_ns() - int(1e9 * measured)),
                "age": age,
                "day": float(date.today().day),
                "clock": float(timeit.default_timer()),
            }
        )
        arrays = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + step)})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        random.seed(datetime.now().timestamp() + time.time())
        deadline = datetime.now() + timedelta(seconds=200)
        arrays, count = model(), 0
        while datetime.now() < deadline:
            count += 1
            result = FedAvg(fraction_evaluate=0.0, fraction_train=0.5).start(
                grid=grid,
                initial_arrays=arrays,
                num_rounds=1,
                train_config=ConfigRecord({"sent": time.time(), "on": time.strftime("%c")}),
            )
            arrays = result.arrays
            time.sleep(0.5 + random.random())
        assert 2 <= count < 200

    return server, client


def test_apps_that_do_everything_by_some_clock_are_a_function_of_their_seed() -> None:
    def once(seed: int) -> Any:
        server, client = clockwork()
        result = run(server, client, on=fleet(6), seed=seed)
        rows = [{k: v for k, v in row.items() if k != "wall_s"} for row in result.history]
        return result.summary["trace_sha256"], rows

    first, second = once(0), once(0)
    assert first == second
    assert first[1][0]["train_took"] > 0.0


def test_an_apps_date_is_the_runs() -> None:
    seen = []

    def main(grid: Grid, context: Context, recorder: Any) -> None:
        seen.append(datetime.now(UTC).replace(microsecond=0))
        time.sleep(3600.0)
        seen.append(datetime.now(UTC).replace(microsecond=0))

    run(main)
    assert seen == [datetime(2025, 1, 1, 0, tzinfo=UTC), datetime(2025, 1, 1, 1, tzinfo=UTC)]
    seen.clear()
    run(main, date="1999-12-31T23:30:00+02:00")
    assert seen[1] == datetime(1999, 12, 31, 22, 30, tzinfo=UTC)
    seen.clear()
    before = datetime.now(UTC)
    run(main, date="now")
    assert abs(seen[0] - before) < timedelta(minutes=5)


def test_a_date_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"date is 'tomorrow'; it must be a date such as 2025"):
        run(server_app(), date="tomorrow")


def test_the_user_is_told_once_that_every_run_has_the_same_date(caplog) -> None:
    def main(grid: Grid, context: Context, recorder: Any) -> None:
        for _ in range(3):
            time.strftime("%Y-%m-%d")
            date.today()

    def told() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "fl"]

    run(main)
    assert len(told()) == 1
    assert "date=now" in told()[0]
    caplog.clear()
    run(server_app())  # Flower's messages bear a date as well
    run(main, date="now")
    assert told() == []


def test_clients_share_partitions_if_there_are_fewer() -> None:
    seen = {}

    def make() -> ClientApp:
        app = ClientApp()

        @app.query()
        def query(message: Message, context: Context) -> Message:
            seen[context.node_id] = dict(context.node_config)
            return Message(RecordDict(), reply_to=message)

        return app

    def main(grid: Grid, context: Context, recorder: Any) -> None:
        grid.send_and_receive([Message(RecordDict(), n, "query") for n in grid.get_node_ids()])

    run(main, make, num_partitions=2)
    assert seen == {
        2 + client: {"partition-id": client % 2, "num-partitions": 2} for client in range(N)
    }


def test_clients_that_raise_are_error_replies_and_the_run_goes_on() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if context.node_config["partition-id"] == 1:
            raise RuntimeError("out of memory")
        return client_app()(message, context)

    result = run(server_app(FedAvg(fraction_evaluate=0.0)), app)
    assert result.summary["faults"] == {"client_error": ROUNDS}
    np.testing.assert_allclose(result.arrays["w"].numpy(), ROUNDS * 100 / 40)
    with pytest.raises(SimulationError, match="on client 1") as caught:
        run(server_app(), app, fail_fast=True)
    assert str(caught.value).endswith(": RuntimeError: out of memory")
    (note,) = caught.value.__notes__
    assert note.splitlines()[-1] == "RuntimeError: out of memory"
    assert 'raise RuntimeError("out of memory")' in note
    assert "executor.py" not in note


def failing(error_of: Any) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        error = error_of(int(context.node_config["partition-id"]))
        if error is not None:
            raise error
        return client_app()(message, context)

    return app


def test_every_kind_of_client_error_is_shown_once_and_counted(caplog) -> None:
    def error_of(client: int) -> Exception | None:
        return [ValueError("bad"), KeyError("bad"), ValueError("bad"), ValueError("worse"), None][
            client % 5
        ]

    result = run(server_app(FedAvg(fraction_evaluate=0.0)), failing(error_of), on=fleet(10))
    told = [r.getMessage() for r in caplog.records if r.name == "fl"]
    kinds = ["KeyError: 'bad'", "ValueError: bad", "ValueError: worse"]
    assert sorted(line.splitlines()[-1] for line in told[:-1]) == kinds
    assert all("Traceback (most recent call last)" in line for line in told[:-1])
    assert told[-1].startswith("ClientApps failed 16 times: 8 x ValueError: bad; 4 x ")
    listed = result.summary["extra"]["client_errors"]
    assert sorted((error["error"], error["count"]) for error in listed) == [
        *((kinds[0], 2 * 2), (kinds[1], 2 * 4), (kinds[2], 2 * 2))
    ]
    assert {error["client"] % 5 for error in listed} <= {0, 1, 2, 3}
    assert result.summary["faults"] == {"client_error": 16}


def test_of_many_kinds_of_client_errors_a_few_are_shown_and_the_rest_is_counted(
    caplog, tmp_path
) -> None:
    app = failing(lambda client: ValueError(f"client {client}\n" + "x" * 5000))
    with pytest.raises(SimulationError, match="nothing was learnt") as failed:
        run(server_app(FedAvg(fraction_evaluate=0.0)), app, on=fleet(150), directory=tmp_path)
    assert len(str(failed.value)) < 1000
    told = [r.getMessage() for r in caplog.records if r.name == "fl"]
    assert sum("Traceback" in line for line in told) == 5
    assert sum("ClientApp" in line for line in told) == 7
    extra = json.loads((tmp_path / "summary.json").read_text())["extra"]
    assert len(extra["client_errors"]) == 100
    assert sum(e["count"] for e in extra["client_errors"]) + extra["more_errors"] == 2 * 150
    assert max(len(e["error"]) for e in extra["client_errors"]) == 500


def test_one_client_error_is_not_told_twice(caplog) -> None:
    failed = []

    def error_of(client: int) -> Exception | None:
        if client or failed:
            return None
        failed.append(client)
        return ValueError("once")

    run(server_app(FedAvg(fraction_evaluate=0.0)), failing(error_of))
    assert len([r for r in caplog.records if r.name == "fl"]) == 1


def test_a_fleet_on_which_things_go_wrong_is_a_run_like_any_other() -> None:
    faulty = fleet(20, faults=Faults(dropout=0.3, message_loss=0.1, detection_s=2.0))
    result = run(server_app(timeout=500.0), on=faulty)
    assert result.summary["status"] == "completed"
    assert {"dropout", "download_lost"} <= set(result.summary["faults"])


def test_waiting_for_clients_that_do_not_exist_is_an_error_not_a_hang() -> None:
    with pytest.raises(SimulationError, match=r"3 of 3 are.*min_available_nodes"):
        run(server_app(FedAvg(min_available_nodes=N + 1)))


# ---- what it leaves behind -----------------------------------------------------------------------

FILES = {"summary.json", "metrics.csv", "trace.parquet", "timeline.json.gz"}


def test_no_directory_means_no_files(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(server_app())
    assert result.directory is None
    assert list(tmp_path.iterdir()) == []


def test_a_directory_gets_everything(tmp_path: Path) -> None:
    result = run(server_app(), directory=tmp_path / "run", config={"a": 1}, extra={"b": 2})
    assert result.directory == tmp_path / "run"
    assert {path.name for path in result.directory.iterdir()} >= FILES | {"tb", "plots"}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary == result.summary
    assert (summary["config"], summary["extra"]["b"]) == ({"a": 1}, 2)
    assert summary["extra"]["executor"] == "serial"
    table = pq.read_table(tmp_path / "run" / "trace.parquet")
    assert table.num_rows == len(result.trace) == summary["totals"]["events"]


@pytest.fixture
def quick_plots(monkeypatch) -> None:
    """Drawing takes longest, and is tested elsewhere."""
    for name in ("metrics", "clients"):
        monkeypatch.setattr(f"fl.reports.plots.{name}", lambda *args, **kwargs: None)


class Stopped(Exception):
    pass


@pytest.mark.parametrize(
    ("error", "status"),
    [(Stopped("bad"), "failed"), (SystemExit(3), "failed"), (KeyboardInterrupt(), "interrupted")],
    ids=["exception", "sys.exit", "ctrl-c"],
)
def test_a_server_app_that_stops_leaves_complete_files_and_its_error(
    tmp_path: Path, quick_plots, error, status
) -> None:
    def main(grid: Grid, context: Context, recorder: Any) -> None:
        FedAvg().start(grid, model(), num_rounds=1)
        raise error

    real = time.sleep
    with pytest.raises(type(error)) as caught:
        run(main, directory=tmp_path)
    assert caught.value is error
    assert {path.name for path in tmp_path.iterdir()} >= FILES
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == status
    assert type(error).__name__ in summary["error"]
    assert summary["totals"]["virtual_s"] == 35.0
    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], float(row["time_s"])) for row in rows] == [("1", 35.0)]
    assert pq.read_table(tmp_path / "trace.parquet").num_rows == summary["totals"]["events"] > 0
    assert time.sleep is real
    assert gc.get_freeze_count() == 0


def test_an_interrupt_while_clients_work_stops_the_run(tmp_path: Path, quick_plots) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(server_app(), app, directory=tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "interrupted"


# ---- arguments -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("apps", "told"),
    [
        ((None, client_app()), "server_app is NoneType; it must be a ServerApp, or a function of"),
        ((server_app(), None), "client_app is NoneType; it must be a ClientApp, or a function tha"),
        ((client_app(), client_app()), "server_app is ClientApp; it must be a ServerApp"),
        ((server_app(), server_app()), "client_app is ServerApp; it must be a ClientApp"),
        ((ServerApp, client_app()), "server_app is the class ServerApp; it must be a ServerApp"),
        ((server_app(), ClientApp), "client_app is the class ClientApp; it must be a ClientApp"),
        ((server_app(), lambda: None), "client_app makes NoneType: a function in its place must"),
    ],
)
def test_what_is_no_app_is_refused(apps, told) -> None:
    with pytest.raises(ConfigError, match=told):
        simulate(*apps, fleet(), executor="serial", progress=False)


def test_an_unknown_executor_is_refused() -> None:
    with pytest.raises(
        ConfigError, match="executor is 'threads'; it must be one of auto, ray, serial"
    ):
        run(server_app(), executor="threads")


def test_no_partitions_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_partitions is 0"):
        run(server_app(), num_partitions=0)
