"""Metrics of any name, type and number: they are kept or refused, and nothing else changes."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from fl import ConfigError, CostModel, SimulatedRun, simulate
from fl.reports import Progress, RunWriter, Status, Target, read_run
from fl.reports.columns import Means
from fl.reports.history import COLUMNS, OWN, History, read_history
from fl.reports.report import page
from fl.reports.table import comparison, results
from fl.runs.recorder import Recorder
from fl.simulation.world.fleets import uniform

ROUNDS = 2

AWKWARD = [
    *OWN,
    *("event", "step", "time", "bytes", "energy", "client", "seed", "score", "loss", "accuracy"),
    *("train_loss", "client_loss", "query_loss", "server_time_s", "server_server_time_s"),
    *("cost/time_s", "best/score", "to_target/round", "by_bytes/score", "metrics/score", "/", "a/"),
    *("_hparams_/experiment", "tasks in flight", "tasks by stage", "staleness/histogram"),
    *(
        "",
        " ",
        "_",
        "-",
        "x-y",
        "x_y",
        ".",
        "..",
        "../../etc/passwd",
        "a" * 300,
        "a" * 301,
        "ä" * 99,
    ),
    *("a,b", 'a"b', "a'b", "a\nb", "a\r\nb", "a\rb", "a\x00b", "\x1b[31mred", "a\tb", "\u202eacc"),
    *(
        "<script>alert(1)</script>",
        "&lt;",
        "[bold]acc[/bold]",
        "[/acc]",
        "[red",
        "$acc$",
        r"$\frac$",
    ),
    *("\ud800", "名前", "💥", "__class__", "nan", "=1+1", "loss[0]", "%s %d", "{x}", "\\n"),
]


def client_app(metrics: MetricRecord) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = ArrayRecord({"w": Array(message.content["arrays"]["w"].numpy() + 1)})
        content = RecordDict({"arrays": arrays, "metrics": metrics.copy()})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(RecordDict({"metrics": metrics.copy()}), reply_to=message)

    return app


def run(
    server: dict[Any, Any], client: dict[str, Any] | None = None, **kwargs: Any
) -> SimulatedRun:
    """Runs FedAvg; its server reports "score", the number of the round, and what is given."""

    def main(grid: Grid, context: Context, recorder: Recorder) -> None:
        def evaluate(server_round: int, arrays: ArrayRecord) -> Any:
            return {**server, "score": float(server_round)}

        start = ArrayRecord({"w": Array(np.zeros(3))})
        FedAvg().start(grid, start, ROUNDS, evaluate_fn=evaluate)

    return simulate(
        main,
        client_app(MetricRecord({"num-examples": 10, **(client or {})})),
        uniform(2, 0),
        executor="serial",
        progress=False,
        cost_model=CostModel(flops_per_example=1e9),
        target=Target("score", 2.0),
        **kwargs,
    )


def costs(result: SimulatedRun) -> list[tuple[Any, ...]]:
    return [tuple(row[name] for name in COLUMNS if name != "wall_s") for row in result.history]


def flat(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list) else [value]


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


NAMES = st.one_of(st.sampled_from(AWKWARD), st.text(max_size=20), st.integers().map(str))
NUMBERS = st.one_of(
    st.floats(), st.integers(-(10**6), 10**6), st.booleans(), st.floats(width=32).map(np.float32)
)
OTHERS = st.one_of(
    st.none(),
    st.text(),
    st.binary(),
    st.just(10**400),
    st.just([]),
    st.just([[1.0]]),
    st.just({"a": 1}),
    st.just([0.5] * 1000),
    st.just([1.0, "x"]),
    st.just(np.zeros((2, 2))),
    st.just(complex(1, 2)),
    st.just(object()),
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kept=st.dictionaries(NAMES, NUMBERS | st.lists(NUMBERS, min_size=1, max_size=4), max_size=8),
    others=st.dictionaries(NAMES, OTHERS, max_size=4),
    reported=st.dictionaries(
        st.one_of(
            st.sampled_from([n for n in AWKWARD if n != "num-examples"]), st.text(max_size=9)
        ),
        st.one_of(
            st.floats(allow_nan=False, allow_infinity=False),
            st.integers(-(2**40), 2**40),
            st.lists(st.floats(0, 1), min_size=1, max_size=3),
        ),
        max_size=5,
    ),
)
def test_every_number_is_in_a_column_of_its_own_and_no_cost_changes(kept, others, reported) -> None:
    kept = {name: value for name, value in kept.items() if name not in {"score", *others}}
    others.pop("score", None)
    reported.pop("num-examples", None)
    plain, result = run({}, reported), run({**kept, **others}, reported)
    assert costs(result) == costs(plain)
    assert {**result.summary["target"], "wall_s": 0} == {**plain.summary["target"], "wall_s": 0}
    assert result.summary["trace_sha256"] == plain.summary["trace_sha256"]
    numbers = [number for value in kept.values() for number in flat(value)]
    client = [number for value in reported.values() for number in flat(value)]
    for row in result.history:
        own = [n for n in row if n not in COLUMNS and n != "score"]
        expected = numbers + (client * 2 if row["round"] else [])  # they train and evaluate
        assert len(own) == len(expected)
        values = [row[name] for name in own]
        for number in numbers:
            assert any(same(float(number), value) for value in values)
        assert row["score"] == row["round"]
    refused = result.summary["extra"].get("metrics", {}).get("refused", {})
    assert len(refused) == len({name for name in others})


@pytest.mark.parametrize(
    "names",
    [
        AWKWARD,
        [
            "$acc$",
            r"$\acc{$",
            "acc\\",
            "[/acc]",
            "_acc",
            "名acc前",
        ],  # those that are drawn first
        ["loss\n" * 9, "<b>loss</b>", "loss" * 60, "\ud800loss", "$loss"],
    ],
)
def test_all_that_is_made_of_a_run_can_be_made_and_read(names, tmp_path) -> None:
    values = [0.5, -1e300, 2**60, float("inf"), float("nan"), 3]
    metrics = {name: values[i % len(values)] for i, name in enumerate(names) if name != "score"}
    result = run(metrics, {"loss": 0.5}, directory=tmp_path / "run")
    again = read_run(tmp_path / "run")
    assert len(again.history) == len(result.history)
    for row, read in zip(result.history, again.history, strict=True):
        assert row.keys() == read.keys()
        assert all(same(row[name], read[name]) for name in row)
    assert again.summary == result.summary
    shown = io.StringIO()
    console = Console(file=shown, width=300)
    console.print(results(again.summary))
    console.print(comparison({"[/x]": [again]}, metrics=list(again.summary["final"])))
    assert "\x1b" not in shown.getvalue()
    assert "<b>loss" not in page([again])
    assert page([again]).count("<script") == 1  # its own
    log = EventAccumulator(str(tmp_path / "run" / "tb"), size_guidance={"scalars": 0})
    log.Reload()
    times = [event.value for event in log.Scalars("cost/time_s")]
    assert times == pytest.approx([row["time_s"] for row in result.history])
    assert log.Scalars("best/score")[-1].value == ROUNDS
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("name", COLUMNS)
def test_a_metric_called_like_a_cost_is_recorded_as_the_servers(name) -> None:
    result = run({name: 0.25})
    assert [row[f"server_{name}"] for row in result.history] == [0.25] * (ROUNDS + 1)
    assert result.summary["final"][f"server_{name}"] == 0.25
    listed = result.summary["extra"]["metrics"]["renamed"]
    assert listed == {f"'{name}'": f"server_{name}"}


def test_a_target_cannot_be_a_cost() -> None:
    with pytest.raises(ConfigError, match=r"'time_s'.*recorded as 'server_time_s'"):
        Target("time_s", 1.0)


def test_names_that_become_one_stay_apart() -> None:
    metrics = {"train_a": 1.0, "x[0]": 2.0, "x": [3.0], "y" * 300: 4.0, "y" * 301: 5.0}
    clients = {"a": 6.0, "a-b": 7.0, "a_b": 8.0, "train_a": 9.0}
    final = run(metrics, clients).summary["final"]
    values = sorted(v for n, v in final.items() if not n.startswith("client") and n != "score")
    assert values == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]
    assert (final["train_a"], final["x[0]"], final["server_x[0]"]) == (1.0, 2.0, 3.0)


def test_types_that_hold_a_number_are_numbers_and_integers_stay_integers() -> None:
    result = run(
        {
            "int": 3,
            "bool": True,
            "numpy": np.float32(0.5),
            "count": np.int64(7),
            "scalar": torch.tensor(0.25),
            "vector": torch.tensor([1, 2]),
            "large": 2**70,
        }
    )
    final = result.summary["final"]
    kept = {name: final[name] for name in final if name != "score"}
    assert kept == {
        **{"int": 3, "bool": 1, "numpy": 0.5, "count": 7, "scalar": 0.25},
        **{"vector[0]": 1, "vector[1]": 2, "large": 2.0**70},
    }
    assert type(kept["int"]) is type(kept["count"]) is int
    assert type(kept["large"]) is float


def test_what_is_refused_is_said_once_with_its_name_and_the_reason(caplog) -> None:
    result = run({"curve": [0.5] * 65, "name": "adam", "matrix": np.zeros((2, 2)), "huge": 10**400})
    told = [r.getMessage() for r in caplog.records if r.name == "fl"]
    assert [line.split(" is not recorded: it is ")[0] for line in told] == [
        "the metric 'curve'",
        "the metric 'name'",
        "the metric 'matrix'",
    ]
    assert "a list of 65 (numbers are, and lists of up to 64)" in told[0]
    assert result.summary["extra"]["metrics"]["refused"] == {
        "'curve'": "a list of 65",
        "'name'": "of type str",
        "'matrix'": "of type ndarray",
        "'huge'": "too large for a float",
    }


def test_what_clients_report_is_averaged_over_those_who_report_it() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        metrics = {"num-examples": 10 * (client + 1), "n": client, "each": [1.0, float(client)]}
        if client == 2:
            metrics |= {"only": 4, "mixed": 1.0, "num-examples": 30}
        else:
            metrics["mixed"] = [1.0 + client]
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)

    def main(grid: Grid, context: Context, recorder: Recorder) -> None:
        nodes = grid.get_node_ids()
        grid.send_and_receive([Message(RecordDict(), node, "train") for node in nodes])

    result = simulate(main, app, uniform(3, 0), executor="serial", progress=False)
    (row,) = result.history
    assert {n: row[n] for n in row if n not in COLUMNS} == {
        "train_n": pytest.approx((0 * 10 + 1 * 20 + 2 * 30) / 60),
        "train_each[0]": 1.0,
        "train_each[1]": pytest.approx(80 / 60),
        "train_only": 4.0,
        "train_mixed[0]": pytest.approx((1 * 10 + 2 * 20) / 30),
    }
    assert result.summary["extra"]["metrics"]["refused"] == {
        "'mixed' of clients that train": "of another form from some"
    }


def test_one_client_cannot_take_a_metric_from_the_others() -> None:
    means = Means()
    for value in (["a"], "text", 10**400, [1.0, 2.0], 1.0, 3.0):  # text is in older apps' metrics
        means.add({"loss": value})
    assert means.of_all() == {"loss": 2.0}
    assert set(means.left_out()) == {"loss"}


@pytest.mark.parametrize(
    "reports",
    [
        [
            {"num-examples": 3, "loss": 0.1, "steps": 2},
            {"num-examples": 0, "loss": 0.3, "steps": 1},
        ],
        [{"loss": 0.1}, {"loss": math.inf}],
        [{"num-examples": 3, "loss": 0.1}, {"num-examples": 2, "loss": [0.5, 0.25]}],  # not alike
        [{"num-examples": 3, "loss": 0.1}, {"loss": 0.7, "num-examples": 2}],
        [{"num-examples": -1, "loss": 0.1}, {"num-examples": 2.5, "loss": 0.5}],
        [{"num-examples": 10**30, "loss": 10**400}, {"num-examples": True, "loss": "text"}],
        [],
    ],
)
def test_what_many_report_is_added_as_if_one_by_one(reports: list[dict[str, Any]]) -> None:
    which = np.random.default_rng(0).integers(0, max(1, len(reports)), 50 * bool(reports))
    one_by_one, at_once = Means(), Means()
    for means in (one_by_one, at_once):
        means.add({"loss": 0.1, "num-examples": 7})
    for i in which:
        one_by_one.add(reports[i])
    at_once.add_all(reports, which)
    at_once.add_all(reports, which[:0])
    assert at_once.of_all() == one_by_one.of_all()
    assert list(at_once.of_all()) == list(one_by_one.of_all())
    assert at_once.left_out() == one_by_one.left_out()


def test_a_replys_second_metric_record_keeps_its_name() -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        records = {"metrics": MetricRecord({"a": 1.0}), "data": MetricRecord({"a": 2.0})}
        return Message(RecordDict(records), reply_to=message)

    def main(grid: Grid, context: Context, recorder: Recorder) -> None:
        grid.send_and_receive([Message(RecordDict(), n, "query") for n in grid.get_node_ids()])

    final = simulate(main, app, uniform(2, 0), executor="serial", progress=False).summary["final"]
    assert final == {"query_a": 1.0, "query_data/a": 2.0}


# ---- many, and long ------------------------------------------------------------------------------


class Counting(str):
    """Text that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counting.compared += 1
        return str.__eq__(self, other)


def test_many_names_cost_as_many_comparisons(tmp_path: Path) -> None:
    # A look through a list for each name would be half of count² comparisons.
    count = 2000
    history = History(tmp_path / "metrics.csv")
    base = dict.fromkeys(COLUMNS, 0)
    names = [Counting(f"m{i}") for i in range(count)]
    Counting.compared = 0
    for _ in range(3):
        history.append({**base, **dict.fromkeys(names, 1.0)})
    assert Counting.compared < 100 * count
    assert len(history.metrics) == count
    assert read_history(tmp_path / "metrics.csv") == history.rows


def test_sixteen_thousand_names_are_kept_and_a_few_are_shown(tmp_path: Path) -> None:
    count = 16_000
    result = run({f"acc{i}": float(i) for i in range(count)}, directory=tmp_path, views=False)
    assert len(result.history[0]) == len(COLUMNS) + count + 1
    assert read_history(tmp_path / "metrics.csv") == result.history
    assert results(result.summary).row_count < 50
    out = io.StringIO()
    with Progress(console=Console(file=out, force_terminal=False)) as display:
        display.update(Status(1, 1.0, result.history[-1]))
    assert len(out.getvalue()) < 2000


def test_a_run_has_a_largest_number_of_columns() -> None:
    recorder = Recorder(RunWriter(None, {}, 0), Progress(enabled=False))
    recorder.evaluation(0, {f"m{i}": 1.0 for i in range(25_000)})
    (row,) = recorder.writer.history
    assert 19_000 < len(row) <= 20_000 + 1
    refused = recorder.report()["metrics"]
    assert len(refused["refused"]) + refused["more_refused"] == 25_000 - (len(row) - len(COLUMNS))


def test_a_name_of_a_million_characters_is_cut() -> None:
    (name,) = (n for n in run({"n" * 10**6: 1.0}).summary["final"] if n != "score")
    assert len(name) == 200
    assert name.endswith("n…")
