"""Runs that somebody else has made are data: a report shows what is usable, and reads nothing else.

Every value of a summary, and every cell of a table, is replaced by each of many nasty ones. The
page is made all the same, without the run or with what is in it, and what is in it does nothing.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from test_report import leave, read

from fl.errors import ConfigError
from fl.reports.files import read_file
from fl.reports.jobs import JOBS, read_jobs
from fl.reports.report import main, page
from fl.reports.runs import load_runs, read_run
from fl.reports.target import Target
from fl.runs.sweep import compare_jobs

SCRIPT = "<script>alert(1)</script>"
NASTY = [
    *(None, True, [], {}, [[1]], {"x": {"y": []}}),
    *(0, -1, 10**400, -(10**18), 1e308, -1e308, 1e-320, float("inf"), float("nan")),
    *("", "inf", "1e999", SCRIPT, '"><img src=x onerror=alert(1)>', "[/bold] [red", "$\\frac{1}$"),
    *("_hidden", "\x1b]0;owned\x07", "\ud800", "x" * 20_000, "a\nb\x00"),
]


def paths_of(value: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if prefix:
        yield prefix
    if isinstance(value, dict):
        for key, each in value.items():
            yield from paths_of(each, (*prefix, key))


def changed(value: dict[str, Any], path: tuple[str, ...], new: Any, *, name: bool) -> Any:
    """Returns a copy with another value at a path, or with another name there."""
    twin = copy.deepcopy(value)
    parent = twin
    for key in path[:-1]:
        parent = parent[key]
    if name:
        parent[str(new)] = parent.pop(path[-1])
    else:
        parent[path[-1]] = new
    return twin


@pytest.fixture
def summary(tmp_path: Path, row: Any) -> dict[str, Any]:
    leave(tmp_path / "a", row, 0, [0.1, 0.5], Target("accuracy", 0.4), lr=0.1)
    leave(tmp_path / "b", row, 1, [0.1, 0.6], Target("accuracy", 0.4), lr=0.2)
    found: dict[str, Any] = json.loads((tmp_path / "b" / "summary.json").read_text("utf-8"))
    found["config"] = {"lr": 0.2}
    found["versions"] = {"fl": "0"}
    return found


def test_every_value_of_a_summary_may_be_anything(
    tmp_path: Path, summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is drawn does not depend on the summary but for the target and the labels.
    monkeypatch.setattr("fl.reports.report._curves", lambda groups: [])
    refused: list[str] = []
    used = 0
    for path in paths_of(summary):
        for nasty in NASTY:
            for name in (False, True)[: 1 + isinstance(nasty, str)]:
                twin = changed(summary, path, nasty, name=name)
                (tmp_path / "b" / "summary.json").write_text(json.dumps(twin))
                runs, problems = load_runs([tmp_path])
                assert len(runs) + len(problems) == 2
                refused += problems
                if problems:
                    continue
                used += 1
                text = page(runs, base=tmp_path)
                text.encode("utf-8")
                assert SCRIPT not in text
                assert "<img src=x" not in text
                assert "\x1b" not in text
    text = page(load_runs([tmp_path / "a"])[0], refused)
    assert "\x1b" not in text
    assert used > 500 < len(refused)


@pytest.mark.parametrize("nasty", NASTY, ids=range(len(NASTY)))
def test_names_values_and_labels_are_drawn_or_left_out(
    tmp_path: Path, summary: dict[str, Any], monkeypatch: pytest.MonkeyPatch, nasty: Any
) -> None:
    monkeypatch.setattr("fl.reports.report._AXES", ("time_s",))  # drawing is slow
    name = json.dumps(nasty) if not isinstance(nasty, str) else nasty
    quoted = name.replace('"', '""')
    header = f'round,time_s,wall_s,bytes_down,bytes_up,energy_j,accuracy,"{quoted}"\n'
    rows = [f'{i},{i},1,1,1,1,0.5,"{quoted}"\n' for i in range(3)]
    number = f"{nasty}" if isinstance(nasty, int | float) else "1"
    rows += [f"3,3,1,1,1,1,{number},{number}\n", f"4,{number},1,1,{number},1,0.5,1\n"]
    encoded = "".join([header, *rows]).encode("utf-8", "surrogatepass")
    (tmp_path / "b" / "metrics.csv").write_bytes(encoded)
    load_runs([tmp_path])  # with a text for a number, mostly refused
    (tmp_path / "b" / "metrics.csv").write_bytes(
        "".join([header, *rows[3:]]).encode("utf-8", "surrogatepass")
    )
    (tmp_path / "b" / "summary.json").write_text(json.dumps(summary))
    hydra = tmp_path / "b" / ".hydra"
    hydra.mkdir()
    (hydra / "overrides.yaml").write_text(json.dumps([f"lr={name}", nasty]))
    runs, problems = load_runs([tmp_path])
    read(page(runs, problems, base=tmp_path))


def test_every_value_of_a_job_may_be_anything(tmp_path: Path, summary: dict[str, Any]) -> None:
    job = {"number": 1, "overrides": "a=1", "status": "failed", "directory": "x", "reason": "r"}
    lines = [
        json.dumps(changed(job, path, nasty, name=name))
        for path in paths_of(job)
        for nasty in NASTY
        for name in (False, True)
    ]
    (tmp_path / JOBS).write_text(
        "\n".join([*lines, "{" * 10**5, "\ud800", "\x00"]), "utf-8", "replace"
    )
    assert 10 < len(read_jobs(tmp_path)) < len(lines) / 2
    main([str(tmp_path)])
    text = (tmp_path / "report.html").read_text("utf-8")
    assert SCRIPT not in text
    assert "\x1b" not in text


@pytest.mark.parametrize("name", [b"\xff", b"javascript:alert(1)", b"<img src=x>", b"a\n\x1b[2J"])
def test_name_of_a_folder_may_be_anything(
    tmp_path: Path, row: Any, capsys: pytest.CaptureFixture[str], name: bytes
) -> None:
    folder = tmp_path / os.fsdecode(name)
    leave(folder, row, 0, [0.1, 0.5])
    (tmp_path / os.fsdecode(name + b"2")).mkdir()
    (tmp_path / os.fsdecode(name + b"2") / "summary.json").touch()
    main([str(tmp_path)])
    page_ = read((tmp_path / "report.html").read_text("utf-8"))
    assert page_.links == [f"{quote(name)}/"]
    assert "img" not in page_.tags or all(s.startswith("data:image/") for s in page_.sources)
    assert "\x1b" not in capsys.readouterr().err


def test_comparison_of_a_sweep_prints_names_as_they_are(
    tmp_path: Path, summary: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    twin = {**summary, "target": None, "final": {"[/x] [red]\x1b[2J": 1.0}, "best": {}}
    for name in "ab":
        (tmp_path / name / "summary.json").write_text(json.dumps(twin))
    compare_jobs(tmp_path)
    assert r"[/x] [red]\x1b[2J" in capsys.readouterr().out


SECRET = "secret of the user"


@pytest.mark.parametrize(
    "name", ["summary.json", "metrics.csv", "plots/clients.png", ".hydra/overrides.yaml", JOBS]
)
@pytest.mark.parametrize("kind", ["link", "pipe", "huge"])
def test_only_plain_files_of_a_reasonable_size_are_read(
    tmp_path: Path,
    summary: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    name: str,
    kind: str,
) -> None:
    (tmp_path / "secret").write_bytes(b"\x89PNG\r\n\x1a\n" + SECRET.encode())
    path = tmp_path / "b" / name
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(tmp_path / "secret")
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        with open(path, "wb") as file:
            file.truncate(10**12)  # takes no room on the disk
    main([str(tmp_path)])
    text = (tmp_path / "report.html").read_text("utf-8")
    told = capsys.readouterr()
    assert SECRET not in text + told.out + told.err
    assert "iVBORw0KGgpzZWNyZXQ" not in text  # the same, as it would stand in a picture
    if name in ("summary.json", "metrics.csv"):
        assert f"{path} cannot be read: " in told.err


def test_report_does_not_write_through_links(tmp_path: Path, summary: dict[str, Any]) -> None:
    (tmp_path / "victim").write_text("dear")
    for name in ("report.html", f".report.html.{os.getpid()}.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "victim")
    main([str(tmp_path)])
    assert (tmp_path / "victim").read_text() == "dear"
    assert not (tmp_path / "report.html").is_symlink()


def test_yaml_that_unfolds_into_more_than_the_memory_is_not_unfolded(
    tmp_path: Path, summary: dict[str, Any]
) -> None:
    bomb = "- &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    bomb += "".join(f"- &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12))
    for name in "ab":
        (tmp_path / name / ".hydra").mkdir()
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(bomb)
    assert "lr=0.1" in page(load_runs([tmp_path])[0])


@pytest.mark.parametrize("text", ["[" * 10**6, '{"a":' * 10**6, "[" * 900 + "]" * 900])
def test_nesting_without_end_is_refused(tmp_path: Path, summary: dict[str, Any], text: str) -> None:
    path = tmp_path / "b" / "summary.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="summary"):
        read_run(tmp_path / "b")
    if text.startswith("[") and text.endswith("]"):
        path.write_text(json.dumps({**summary, "config": {"x": json.loads(text)}}))
        with pytest.raises(ConfigError, match="lacks a usable config"):
            read_run(tmp_path / "b")
    (tmp_path / JOBS).write_text(text + "\n")
    assert read_jobs(tmp_path) == []


def test_file_is_read_whole_up_to_the_given_size(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    assert read_file(tmp_path / "a", 5) == b"12345"
    with pytest.raises(ConfigError, match="it has 5 bytes, more than 4"):
        read_file(tmp_path / "a", 4)
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        read_file(tmp_path / "b", 5)
