"""`fl resume DIR`, as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from killing import RUNS, die_at, journal_of, outcome

from fl.cli import _Resumed, main
from fl.recovery.claim import FOLDER, Claim
from fl.recovery.journal import FILE

QUICK = [*RUNS["aggregate"], "num_rounds=4"]


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(os.getcwd())
    monkeypatch.setattr(_Resumed, "journal", False)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")


def fl(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["fl", *arguments])
    main()


def fl_killed(monkeypatch: pytest.MonkeyPatch, at: int, *arguments: str) -> None:
    """Runs the command in another process, which dies when its journal has `at` bytes."""
    child = os.fork()
    if child == 0:
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            die_at(at)
            fl(monkeypatch, *arguments)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL


def refusal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> str:
    with pytest.raises(SystemExit) as stopped:
        fl(monkeypatch, "resume", *arguments)
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("fl: ")
    assert "Traceback" not in error
    return error


def test_killed_run_is_resumed_by_its_directory_from_anywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The directory's name needs quoting in Hydra's grammar."""
    (tmp_path / "elsewhere").mkdir()
    odd, plain = tmp_path / "it's 1, {2}=3", tmp_path / "plain"
    fl(monkeypatch, *QUICK, f"hydra.run.dir={plain}")
    quoted = str(odd).replace("'", "\\'")
    fl_killed(monkeypatch, 30_000, *QUICK, f"hydra.run.dir='{quoted}'")
    assert not (odd / "summary.json").exists()
    here = os.getcwd()
    monkeypatch.chdir(tmp_path / "elsewhere")
    fl(monkeypatch, "resume", f"../{odd.name}")
    assert os.getcwd() == here
    assert outcome(odd)["summary"] == outcome(plain)["summary"]
    assert (odd / ".hydra" / "overrides.yaml").read_text() == (
        plain / ".hydra" / "overrides.yaml"
    ).read_text()
    capsys.readouterr()
    fl(monkeypatch, "resume", str(odd))
    assert capsys.readouterr().err == f"{odd} has completed: there is nothing to resume\n"


def test_killed_job_of_a_sweep_is_resumed_by_its_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sweep = [f"hydra.sweep.dir={tmp_path}", "+hydra.searchpath=[]"]
    fl_killed(monkeypatch, 30_000, "-m", *QUICK, "seed=3,4", *sweep)
    (journal,) = tmp_path.rglob(FILE)  # the other job had not begun
    job = journal.parents[1]
    fl(monkeypatch, "resume", str(job))
    assert outcome(job)["summary"]["seed"] == 3
    assert [path.parent for path in tmp_path.rglob("summary.json")] == [job]


def test_run_that_was_killed_before_it_had_a_journal_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fl_killed(monkeypatch, 30_000, *QUICK, f"hydra.run.dir={tmp_path}")
    journal_of(tmp_path).unlink()
    fl(monkeypatch, "resume", str(tmp_path))
    assert outcome(tmp_path)["summary"]["config"]["num_rounds"] == 4
    assert not (tmp_path / FOLDER).exists()


def test_what_cannot_be_resumed_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def told(*arguments: str) -> str:
        return refusal(monkeypatch, capsys, *arguments)

    assert "give one directory of a run: fl resume DIR, not []" in told()
    assert "give one directory of a run" in told(str(tmp_path), "seed=3")
    assert "nowhere does not exist; give the directory of a run" in told(str(tmp_path / "nowhere"))
    assert f"{tmp_path} holds no run; give the directory of one" in told(str(tmp_path))
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "hydra.yaml").write_text("hydra: [1")
    assert "hydra.yaml cannot be used: " in told(str(tmp_path))
    (tmp_path / FOLDER).mkdir()
    journal_of(tmp_path).write_bytes(b"fl-journal-1\nxyz")
    assert "cannot be used: a record is incomplete; start the run again" in told(str(tmp_path))
    (tmp_path / "summary.json").write_text("{")
    assert "summary.json cannot be read" in told(str(tmp_path))
    journal_of(tmp_path).unlink()
    (tmp_path / "summary.json").write_text(json.dumps({"status": "failed"}))
    assert "holds a run (failed) without a journal: start it again" in told(str(tmp_path))


def test_running_run_is_not_resumed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fl_killed(monkeypatch, 30_000, *QUICK, f"hydra.run.dir={tmp_path}")
    before = journal_of(tmp_path).read_bytes()
    claim = Claim(tmp_path)
    error = refusal(monkeypatch, capsys, str(tmp_path))
    claim.release(remove=False)
    assert f"belongs to a run that is going on (process {os.getpid()})" in error
    assert journal_of(tmp_path).read_bytes() == before


def test_help_says_how(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    fl(monkeypatch, "resume", "--help")
    assert capsys.readouterr().out.startswith("usage: fl resume DIR\n")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_command_with_ray_that_is_killed_from_outside_is_resumed(tmp_path: Path, seed: int) -> None:
    """Nobody chooses the moment: the process gets `kill -9` while it works."""

    def command(*arguments: str) -> list[str]:
        return [sys.executable, "-m", "fl", *arguments]

    overrides = [*RUNS["fedbuff"], "num_rounds=150", "num_clients=30", "executor=ray"]
    overrides += ["executor.num_actors=2", f"seed={seed}"]
    killed, plain = tmp_path / "killed", tmp_path / "plain"
    subprocess.run(command(*overrides, f"hydra.run.dir={plain}"), check=True)
    process = subprocess.Popen(command(*overrides, f"hydra.run.dir={killed}"))
    moments = 0
    while True:
        for _ in range(600):
            if journal_of(killed).is_file() or process.poll() is not None:
                break
            time.sleep(0.1)
        before = journal_of(killed).stat().st_size if journal_of(killed).is_file() else 0
        while process.poll() is None and journal_of(killed).is_file():
            if journal_of(killed).stat().st_size > before + 400_000:
                process.kill()
            time.sleep(0.01)
        if process.wait() == 0:
            break
        moments += 1
        process = subprocess.Popen(command("resume", str(killed)))
    assert moments >= 2
    assert outcome(killed)["summary"] == outcome(plain)["summary"]
