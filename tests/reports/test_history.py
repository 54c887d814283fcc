import errno
import math
import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from fl.errors import ConfigError
from fl.reports.history import COLUMNS, History, read_history


def test_the_file_is_complete_after_every_evaluation(tmp_path, row):
    path = tmp_path / "metrics.csv"
    history = History(path)
    assert read_history(path) == []
    for r in range(3):
        history.append(row(r, 2.5 * r, accuracy=0.1 * r))
        assert read_history(path) == history.rows
    assert path.read_text().splitlines() == [
        "round,time_s,wall_s,bytes_down,bytes_up,energy_j,accuracy",
        "0,0.0,0.0,0,0,0.0,0.0",
        "1,2.5,1.0,1000,500,10.0,0.1",
        "2,5.0,2.0,2000,1000,20.0,0.2",
    ]


def test_a_killed_process_leaves_every_evaluation_it_made(tmp_path):
    path = tmp_path / "metrics.csv"
    script = f"""
        import os, signal
        from pathlib import Path
        from fl.reports.history import COLUMNS, History
        history = History(Path({str(path)!r}))
        for r in range(1, 6):
            history.append({{**dict.fromkeys(COLUMNS, r), "accuracy": r / 8}})
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert [r["accuracy"] for r in read_history(path)] == [0.125, 0.25, 0.375, 0.5, 0.625]


@pytest.mark.parametrize("name", ["a,b", 'a"b', "a\nb", "a\rb", "a\r\nb", " ", "#", "ä"])
def test_any_name_is_one_column(tmp_path, row, name):
    history = History(tmp_path / "metrics.csv")
    history.append(row(1, 1.0, **{name: 0.5}))
    history.append(row(2, 2.0, **{name: 0.25, "after": 1.0}))
    assert read_history(tmp_path / "metrics.csv") == history.rows


def test_a_new_metric_adds_a_column_and_leaves_earlier_cells_empty(tmp_path, row):
    path = tmp_path / "metrics.csv"
    history = History(path)
    history.append(row(1, 1.0, accuracy=0.5))
    history.append(row(2, 2.0, accuracy=0.6, loss=1.5))
    history.append(row(3, 3.0, loss=1.25))
    lines = path.read_text().splitlines()
    assert lines[0].split(",") == [*COLUMNS, "accuracy", "loss"]
    assert [line.split(",")[6:] for line in lines[1:]] == [
        ["0.5", ""],
        ["0.6", "1.5"],
        ["", "1.25"],
    ]
    assert read_history(path) == history.rows
    assert "loss" not in history.rows[0]


def test_metric_order_within_a_row_does_not_matter(tmp_path, row):
    path = tmp_path / "metrics.csv"
    history = History(path)
    history.append(row(1, 1.0, a=1.0, b=2.0))
    history.append(row(2, 2.0, b=4.0, a=3.0))
    assert [(r["a"], r["b"]) for r in read_history(path)] == [(1.0, 2.0), (3.0, 4.0)]


def test_names_with_commas_and_quotes_survive(tmp_path, row):
    history = History(tmp_path / "metrics.csv")
    history.append(row(1, 1.0, **{'recall, "rare" classes': 0.5}))
    assert read_history(tmp_path / "metrics.csv") == history.rows


def test_numbers_keep_their_value_and_kind(tmp_path, row):
    path = tmp_path / "metrics.csv"
    history = History(path)
    values = {
        "third": 1 / 3,
        "integer": 2**60,
        "single": np.float32(0.1),
        "numpy": np.int64(-7),
        "nothing": math.nan,
        "diverged": -math.inf,
        "yes": True,
    }
    history.append(row(1, 1.0, **values))
    (back,) = read_history(path)
    assert back["third"] == 1 / 3
    assert back["integer"] == 2**60
    assert back["single"] == float(np.float32(0.1))
    assert back["numpy"] == -7
    assert math.isnan(back["nothing"])
    assert back["diverged"] == -math.inf
    assert back["yes"] == 1
    assert {type(v) for v in history.rows[0].values()} == {int, float}


def test_an_unfinished_last_line_is_left_out(tmp_path, row):
    path = tmp_path / "metrics.csv"
    history = History(path)
    history.append(row(1, 1.0, accuracy=0.5))
    with path.open("a") as file:
        file.write("2,2.0,2.")
    assert read_history(path) == history.rows


def test_without_a_path_rows_are_kept_in_memory(row):
    history = History()
    history.append(row(1, 1.0, accuracy=0.5))
    assert history.rows == [row(1, 1.0, accuracy=0.5)]


def test_a_missing_column_is_refused(row):
    bad = row(1, 1.0)
    del bad["energy_j"]
    with pytest.raises(ConfigError, match=r"lacks \['energy_j'\]"):
        History().append(bad)


def test_a_value_that_is_no_number_is_refused_and_nothing_is_kept(tmp_path, row):
    history = History(tmp_path / "metrics.csv")
    with pytest.raises(ConfigError, match="'per_class' of an evaluation is"):
        history.append(row(1, 1.0, per_class=[0.1, 0.2]))
    assert history.rows == []
    assert history.metrics == []
    assert read_history(tmp_path / "metrics.csv") == []


def test_reading_something_else_says_what_was_expected(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read_history(tmp_path / "metrics.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"starts with columns \['a', 'b'\]"):
        read_history(tmp_path / "other.csv")


def test_rows_that_find_the_disk_full_are_written_when_there_is_room(
    tmp_path, row, monkeypatch, caplog
):
    path = tmp_path / "metrics.csv"
    history = History(path)
    history.append(row(0, 0.0, accuracy=0.1))
    whole = read_history(path)

    def full(descriptor, data):
        if len(data) > 9:
            return real(descriptor, data[:9])  # half a line
        raise OSError(errno.ENOSPC, "No space left on device")

    real = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        for r in (1, 2):
            patch.setattr(History, "_rewrite", lambda _: full(0, b""))
            history.append(row(r, 1.0 * r, accuracy=0.2))
    assert caplog.text.count("cannot be written (No space left on device): its rows are kept") == 1
    assert read_history(path) == whole
    history.append(row(3, 3.0, accuracy=0.2))
    assert [row["round"] for row in read_history(path)] == [0, 1, 2, 3]


def test_rows_that_found_no_room_are_written_at_the_end_or_an_error_says_so(
    tmp_path, row, monkeypatch
):
    path = tmp_path / "metrics.csv"
    history = History(path)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(History, "_rewrite", full)
        history.append(row(0, 0.0, accuracy=0.1))
        with pytest.raises(OSError, match="No space left"):
            history.complete()
    assert read_history(path) == []
    history.complete()
    assert read_history(path) == history.rows
    path.unlink()
    history.complete()  # nothing is left to be written
    assert not path.exists()
