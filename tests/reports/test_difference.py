"""Why two runs differ: the key, the figure, the row and the event in which they first part."""

from __future__ import annotations

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fl.errors import ConfigError
from fl.reports import difference
from fl.reports.run_writer import RunWriter, Totals
from fl.reports.runs import read_run


@pytest.fixture
def run_of_seed(tmp_path, row):
    """Makes the directory of a run whose loss is its seed in every row."""

    def make(seed):
        directory = tmp_path / f"seed{seed}"
        writer = RunWriter(
            directory, {"seed": seed, "lr": 0.1}, seed, tensorboard=False, plots=False
        )
        for r in range(3):
            writer.evaluation(row(r, 60.0 * r, loss=float(seed), accuracy=r / 2))
        writer.finish(Totals(virtual_s=120.0, compute_j=3.0, radio_j=1.0, wall_s=2.0))
        return directory

    return make


def events(path, times, kinds=None, rows_of_a_group=1000):
    """Writes a trace of so many events."""
    kinds = kinds or ["dispatch"] * len(times)
    columns = {
        "time_s": pa.array(times, pa.float64()),
        "kind": pa.array(kinds).dictionary_encode(),
        "client": pa.array(range(len(times)), pa.int64()),
    }
    pq.write_table(pa.table(columns), path, row_group_size=rows_of_a_group)
    return path


@pytest.mark.parametrize("changed", [0, 3, 69_999])
def test_the_first_event_that_differs_is_found_however_the_files_are_cut(tmp_path, changed):
    times = [float(i) for i in range(70_000)]
    a = events(tmp_path / "a", times, rows_of_a_group=70_000)
    later = [t + 0.5 if i >= changed else t for i, t in enumerate(times)]
    b = events(tmp_path / "b", later, rows_of_a_group=9_999)
    number, lines = difference.first_event(a, b)
    assert number == changed
    assert lines[0] == ("time_s", float(changed), changed + 0.5)
    assert ("kind", "dispatch", "dispatch") in lines


def test_equal_events_are_equal_however_their_names_are_numbered(tmp_path):
    a = events(tmp_path / "a", [0.0, 1.0, 2.0], ["dispatch", "reply", "reply"])
    table = pq.read_table(a)
    other = pa.DictionaryArray.from_arrays([1, 0, 0], ["reply", "dispatch"])
    pq.write_table(table.set_column(1, "kind", other), tmp_path / "b")
    assert difference.first_event(a, tmp_path / "b") is None


@pytest.mark.parametrize("more", ["a", "b"])
def test_a_trace_that_goes_on_differs_where_the_other_ends(tmp_path, more):
    lengths = {"a": 5, "b": 5, more: 7}
    a, b = (events(tmp_path / n, [float(i) for i in range(lengths[n])]) for n in "ab")
    number, lines = difference.first_event(a, b)
    assert number == 5
    there = 1 if more == "a" else 2
    assert lines[0][there] == 5.0
    assert lines[0][3 - there] == "-"


@pytest.mark.parametrize("content", [b"", b"PAR1" * 100, b"\x00" * 4000])
def test_what_is_no_trace_is_named(tmp_path, content):
    a = events(tmp_path / "a", [0.0])
    (tmp_path / "b").write_bytes(content)
    with pytest.raises(ConfigError, match=str(tmp_path / "b")):
        difference.first_event(a, tmp_path / "b")


def test_names_that_would_fill_the_memory_are_refused(tmp_path):
    a = events(tmp_path / "a", [0.0] * 1000, ["x" * 100_000] * 1000)
    with pytest.raises(ConfigError, match=str(a)):
        difference.first_event(a, a)


def test_a_run_is_the_same_as_its_copy_and_differs_from_another_seed(tmp_path, run_of_seed, capsys):
    a, b = run_of_seed(0), run_of_seed(1)
    copy = shutil.copytree(a, tmp_path / "copy")
    assert difference.main([str(a), str(copy)])
    assert "Results: the same" in capsys.readouterr().out
    assert not difference.main([str(a), str(b)])
    assert ("seed", 0, 1) in difference.configurations(read_run(a), read_run(b))
    row, lines = difference.first_row(read_run(a), read_run(b))
    assert row == 0
    assert {key for key, *_ in lines} >= {"loss"}


def test_where_a_run_ran_and_how_long_it_took_is_no_difference(tmp_path, run_of_seed):
    a = run_of_seed(0)
    b = shutil.copytree(a, tmp_path / "b")
    summary = json.loads((b / "summary.json").read_text())
    summary["config"]["executor"] = {"_target_": "fl.execution.RayExecutor", "num_actors": 2}
    summary["totals"]["wall_s"] += 5
    (b / "summary.json").write_text(json.dumps(summary))
    text = (b / "metrics.csv").read_text().splitlines()
    (b / "metrics.csv").write_text(
        "\n".join([text[0], *(_later(line) for line in text[1:])]) + "\n"
    )
    a, b = read_run(a), read_run(b)
    assert difference.configurations(a, b) == []
    assert difference.results(a, b) == []
    assert difference.first_row(a, b) is None


def _later(line):
    cells = line.split(",")
    cells[2] = str(float(cells[2]) + 1)  # wall_s
    return ",".join(cells)


def test_a_changed_figure_is_shown_with_both_values(tmp_path, run_of_seed):
    a = run_of_seed(0)
    b = shutil.copytree(a, tmp_path / "b")
    summary = json.loads((b / "summary.json").read_text())
    accuracy = summary["final"]["accuracy"]
    summary["final"]["accuracy"] = 0.125
    (b / "summary.json").write_text(json.dumps(summary))
    assert difference.results(read_run(a), read_run(b)) == [("accuracy", accuracy, 0.125)]


def test_the_columns_in_which_the_first_event_differs_are_named(tmp_path, run_of_seed, capsys):
    a, b = run_of_seed(0), run_of_seed(1)
    events(a / difference.TRACE, [1.0, 2.0])
    events(b / difference.TRACE, [1.0, 3.0])
    summary = json.loads((b / "summary.json").read_text())
    (b / "summary.json").write_text(json.dumps({**summary, "trace_sha256": "other"}))
    assert not difference.main([str(a), str(b)])
    said = " ".join(capsys.readouterr().out.split())
    assert "First event that differs: number 2 of the trace, in time_s ┏" in said
