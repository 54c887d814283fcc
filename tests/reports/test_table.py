import io

import pytest
from rich.console import Console

from fl.errors import ConfigError
from fl.reports import table
from fl.reports.run_writer import RunWriter, Totals
from fl.reports.runs import Run
from fl.reports.target import Target

TOTALS = Totals(
    virtual_s=7980.0,
    wall_s=20.0,
    bytes_down=1_200_000_000,
    bytes_up=300_000_000,
    compute_j=30_000.0,
    radio_j=5_000.0,
    idle_j=100.0,
    client_updates=500,
)


def cells(rendered):
    """Returns the rows of a printed table as lists of cells."""
    console = Console(file=io.StringIO(), width=200)
    console.print(rendered)
    lines = console.file.getvalue().splitlines()
    return [
        [cell.strip() for cell in line.strip("│┃").replace("┃", "│").split("│")]
        for line in lines
        if line[:1] in "│┃"
    ]


def test_one_run_in_full(tmp_path, row, trace):
    writer = RunWriter(None, {}, 0, Target("accuracy", 0.5))
    writer.evaluation(row(1, 7980.0, accuracy=0.625, loss=1.5))
    writer.evaluation(row(2, 9000.0, accuracy=0.5))
    (tmp_path / "metrics.csv").touch()
    writer.evaluation(row(3, 9000.0, accuracy=0.5, absent_nodes=2.0, staleness=0.0))
    summary = writer.finish(TOTALS, trace=trace, model_sha256="0123456789abcdef" * 4)
    rows = dict(cells(table.results({**summary, "extra": {"central": {"accuracy": 0.75}}})))
    assert (
        rows
        == {
            "accuracy": "0.5 (best 0.625 in round 1), central 0.75",
            "loss": "1.5 in round 1 (best 1.5 in round 1)",  # the last that there is
            "absent_nodes": "2",  # a count has no best
            "to accuracy >= 0.5": "2 h 13 min, 1.5 kB, 10.0 J, round 1",
            "simulated time": "2 h 13 min",
            "sent to clients": "1.2 GB",
            "sent by clients": "300.0 MB",
            "energy": "35.1 kJ (compute 30.0 kJ, communicating 5.0 kJ, idle 100.0 J)",
            "rounds": "3",
            "faults": "1 dropout, 1 download lost, 1 slowdown, 1 expired, 1 timeout",
            "client updates": "500",
            "time on this host": "20.0 s (25.0/s)",
            "model": "0123456789abcdef",
            "trace": trace.sha256()[:16],
        }
    )


def test_a_run_says_what_its_time_went_to_and_that_nobody_trained(trace):
    summary = RunWriter(None, {}, 0).finish(TOTALS, trace=trace)
    shares = {"compute": 0.25, "app_start": 0.7, "upload": 0.046, "download": 0.004}
    extra = {"time_shares": {"clients": shares}, "trained": False}
    rows = dict(cells(table.results({**summary, "extra": extra})))
    assert rows["of a client's task"] == "app_start 70 %, compute 25 %, upload 5 %"
    assert "client.train=false" in rows["training"]


def test_where_a_run_is_written_is_not_cut_by_the_width(tmp_path):
    folder = tmp_path / ("a-folder-named-by-many-overrides-" * 4)
    folder.mkdir()
    (folder / "metrics.csv").touch()
    summary = RunWriter(None, {}, 0).finish(Totals())
    console = Console(file=io.StringIO(), width=40)
    table.print_results(summary, folder, console=console)
    assert f"{folder}: metrics.csv" in console.file.getvalue().splitlines()


def test_a_comparison_is_upright_where_its_words_do_not_fit(tmp_path, row):
    runs = {f"strategy=number{i}": [run_with(tmp_path, row, 0.123456, 60.0)] for i in range(2)}
    printed = {}
    for width in (60, 200):
        console = Console(file=io.StringIO(), width=width)
        table.print_comparison(console, runs)
        printed[width] = console.file.getvalue()
        for text in ("strategy=number0", "strategy=number1", "0.1235", "2.0 kB"):
            assert text in printed[width]
    assert "final accuracy │ 0.1235" in printed[60]
    assert "final accuracy ┃ best accuracy" in printed[200]


def test_a_metric_of_the_initial_model_alone_is_no_result(tmp_path, row):
    runs = []
    for rounds in (0, 1):
        writer = RunWriter(None, {}, 0)
        for number in range(rounds + 1):
            writer.evaluation(row(number, 10.0, accuracy=0.1 * (number + 1)))
        writer.evaluation(row(rounds + 1, 11.0, train_loss=2.0))
        runs.append(Run(tmp_path, writer.finish(Totals(), status="failed"), writer.history))
    rows = cells(table.comparison({"none": runs[:1], "one": runs[1:]}, ["accuracy"]))
    assert [r[2] for r in rows] == ["final accuracy", "–", "0.2"]  # noqa: RUF001


def test_a_failed_run_shows_its_error_and_what_it_has():
    writer = RunWriter(None, {}, 0, Target("accuracy", 0.5))
    summary = writer.finish(Totals(), status="failed", error="Traceback\nValueError: [red]7[/red]")
    rows = dict(cells(table.results(summary)))
    assert rows["error"] == "ValueError: [red]7[/red]"  # as it is, not as markup
    assert rows["to accuracy >= 0.5"] == "the run made no evaluation"
    assert rows["trace"] == "–"  # noqa: RUF001
    assert "faults" not in rows


def run_with(tmp_path, row, accuracy, time_s, target=None, status="completed"):
    writer = RunWriter(None, {}, 0, target)
    writer.evaluation(row(1, time_s, accuracy=accuracy))
    summary = writer.finish(Totals(virtual_s=time_s, bytes_up=2000), status=status)
    return Run(tmp_path, summary, writer.history)


def test_groups_show_mean_and_deviation_over_seeds(tmp_path, row):
    # Sample deviations: of 0.5, 0.6, 0.7 it is 0.1; of 60, 120, 180 s it is 60 s = 1 min... in s
    # the mean 120 s is below three minutes, so the unit is s.
    runs = [run_with(tmp_path, row, a, t) for a, t in ((0.5, 60.0), (0.6, 120.0), (0.7, 180.0))]
    rows = cells(table.comparison({"act=[relu]": runs, "b": runs[:1]}))
    assert rows == [
        ["runs", "seeds", "final accuracy", "best accuracy", "time", "bytes", "energy"],
        [
            "act=[relu]",
            "3",
            "0.60 ± 0.10",
            "0.60 ± 0.10",
            "120 ± 60 s",
            "2.0 kB ± 0",
            "0.0 J ± 0",
        ],
        ["b", "1", "0.5", "0.5", "1 min", "2.0 kB", "0.0 J"],
    ]


def test_groups_with_a_target_show_its_cost_and_how_many_seeds_reached_it(tmp_path, row):
    target = Target("accuracy", 0.55)
    runs = [
        run_with(tmp_path, row, 0.5, 60.0, target),
        run_with(tmp_path, row, 0.6, 600.0, target),
        run_with(tmp_path, row, 0.7, 840.0, target, status="failed"),
    ]
    header, cell = cells(table.comparison({"a": runs}))
    assert header[-3:] == ["time to 0.55", "bytes to 0.55", "energy to 0.55"]
    # 10 and 14 min: mean 12, deviation sqrt(8) = 2.8; the round costs 1500 bytes and 10 J in both.
    assert cell[-3:] == ["12.0 ± 2.8 min (2/3)", "1.5 kB ± 0 (2/3)", "10.0 J ± 0 (2/3)"]
    assert cell[1] == "2 of 3"


def test_equal_values_have_the_digits_of_one(tmp_path, row):
    runs = [run_with(tmp_path, row, 0.9103, 60.0) for _ in range(2)]
    assert cells(table.comparison({"a": runs}))[1][2:5] == ["0.9103 ± 0"] * 2 + ["1 min ± 0"]


def test_rows_keep_the_order_given(tmp_path, row):
    run = run_with(tmp_path, row, 0.5, 60.0)
    names = ["z", "a", "m"]
    assert [r[0] for r in cells(table.comparison({n: [run] for n in names}))[1:]] == names


def test_metrics_can_be_chosen_and_may_be_missing(tmp_path, row):
    run = run_with(tmp_path, row, 0.5, 60.0)
    header, cell = cells(table.comparison({"a": [run]}, metrics=["f1"]))
    assert header[2:4] == ["final f1", "time"]  # no run has a best
    assert cell[2] == "–"  # noqa: RUF001


def test_metrics_that_change_in_any_run_are_shown_before_those_that_do_not(row):
    runs = {}
    for label, metrics in (("x", {"a": [1, 1], "b": [2, 2], "c": [3, 4]}), ("y", {"d": [5, 6]})):
        writer = RunWriter(None, {}, 0, None)
        for r in (0, 1):
            writer.evaluation(row(r, 60.0 * r, **{n: float(v[r]) for n, v in metrics.items()}))
        runs[label] = [Run(None, writer.finish(TOTALS, status="completed"), writer.history)]
    header, *_ = cells(table.comparison(runs))
    assert header[2:6] == ["final c", "final d", "final a", "time"]


def test_an_empty_comparison_is_refused():
    with pytest.raises(ConfigError, match="at least one run"):
        table.comparison({})
