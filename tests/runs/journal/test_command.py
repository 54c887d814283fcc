"""`fl resume DIR`, as a user meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import hydra.core.utils as hydra_utils
import pytest
from killing import RUNS, die_at, journal_of, outcome

from fl.cli import main
from fl.execution import processes
from fl.runs.journal.claim import FOLDER, Claim
from fl.runs.journal.command import COMMAND, resumed
from fl.runs.journal.journal import FILE

QUICK = [*RUNS["aggregate"], "num_rounds=4"]


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(os.getcwd())
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


@pytest.mark.parametrize("file", ["config.yaml", "hydra.yaml", "overrides.yaml"])
def test_run_that_was_killed_while_hydra_wrote_its_files_begins(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str
) -> None:
    """The file is there, and empty."""
    save = hydra_utils._save_config

    def dying(config: Any, name: str, folder: Path) -> None:
        if name == file:
            folder.mkdir(exist_ok=True)
            (folder / name).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        save(config, name, folder)

    with monkeypatch.context() as patch:
        patch.setattr(hydra_utils, "_save_config", dying)
        fl_killed(monkeypatch, 10**9, *QUICK, f"hydra.run.dir={tmp_path}")
    assert (tmp_path / ".hydra" / file).read_bytes() == b""
    fl(monkeypatch, "resume", str(tmp_path))
    assert outcome(tmp_path)["summary"]["config"]["num_rounds"] == 4
    assert not (tmp_path / FOLDER).exists()


def test_directory_of_a_stopped_run_is_not_taken_by_another(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    directory = f"hydra.run.dir={tmp_path}"
    fl_killed(monkeypatch, 30_000, *QUICK, directory)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for other in ([], ["seed=7"], ["checkpoint=off"]):
        with pytest.raises(SystemExit) as stopped:
            fl(monkeypatch, *QUICK, *other, directory)
        assert stopped.value.code == 1
        told = capsys.readouterr().err
        assert f"fl resume {tmp_path} goes on with it" in told
        assert f"hydra.run.dir=DIR, or delete {tmp_path / FOLDER} first" in told
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert {k: v for k, v in after.items() if k.name != "lock"} == {
            k: v for k, v in before.items() if k.name != "lock"
        }
    fl(monkeypatch, "resume", str(tmp_path))
    assert outcome(tmp_path)["summary"]["seed"] == 0


def test_directory_of_a_run_that_had_no_answer_yet_is_free(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fl_killed(monkeypatch, 1, *QUICK, f"hydra.run.dir={tmp_path}")
    fl(monkeypatch, *QUICK, "seed=7", f"hydra.run.dir={tmp_path}")
    assert outcome(tmp_path)["summary"]["seed"] == 7


def test_sweep_that_was_killed_goes_on_by_the_same_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    sweep = ["-m", *QUICK, "seed=3,4", f"hydra.sweep.dir={tmp_path / 'killed'}"]
    fl_killed(monkeypatch, 30_000, *sweep)
    fl(monkeypatch, *sweep)
    assert capsys.readouterr().err.count("training goes on") == 1  # the second job begins
    fl(monkeypatch, *sweep[:-1], f"hydra.sweep.dir={tmp_path / 'plain'}")
    killed, plain = (sorted((tmp_path / name).glob("seed=*")) for name in ("killed", "plain"))
    assert len(killed) == 2
    for one, other in zip(killed, plain, strict=True):
        assert outcome(one)["summary"] == outcome(other)["summary"]
        assert not (one / FOLDER).exists()
    fl(monkeypatch, *sweep)
    assert not (killed[0] / FOLDER).exists()


def test_what_cannot_be_resumed_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def told(*arguments: str) -> str:
        return refusal(monkeypatch, capsys, *arguments)

    assert "arguments are required: DIR; usage: fl resume [-h]" in told()
    assert "'seed=3' is no num_rounds=N" in told(str(tmp_path), "seed=3")
    assert "nowhere does not exist; give the directory of a run" in told(str(tmp_path / "nowhere"))
    assert f"{tmp_path} holds no run, or one that was killed before it had" in told(str(tmp_path))
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / COMMAND).write_text("{")
    assert "command.json cannot be used: " in told(str(tmp_path))
    journal_of(tmp_path).write_bytes(b"fl-journal-2\nxyz")
    assert "cannot be used: a record is incomplete; start the run again" in told(str(tmp_path))
    (tmp_path / "summary.json").write_text("{")
    assert "summary.json cannot be read" in told(str(tmp_path))
    journal_of(tmp_path).unlink()
    (tmp_path / "summary.json").write_text(json.dumps({"status": "failed"}))
    assert "holds a run (failed) without a journal: start it again" in told(str(tmp_path))


def test_running_run_is_not_resumed_or_replaced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    fl_killed(monkeypatch, 30_000, *QUICK, f"hydra.run.dir={tmp_path}")
    before = journal_of(tmp_path).read_bytes()
    claim = Claim(tmp_path)
    error = refusal(monkeypatch, capsys, str(tmp_path))
    assert f"belongs to a run that is going on (process {os.getpid()})" in error
    assert journal_of(tmp_path).read_bytes() == before
    noted = (tmp_path / ".hydra" / "overrides.yaml").read_bytes()
    with pytest.raises(SystemExit):
        fl(monkeypatch, *QUICK, "seed=9", f"hydra.run.dir={tmp_path}")
    claim.release(remove=False)
    assert "belongs to a run that is going on" in capsys.readouterr().err
    assert (tmp_path / ".hydra" / "overrides.yaml").read_bytes() == noted


def test_help_says_how(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        fl(monkeypatch, "resume", "--help")
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("usage: fl resume ")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "fl", *arguments]


def await_journal(directory: Path, process: subprocess.Popen[Any], more: int) -> None:
    """Returns when the journal has got so many bytes more, or the process has ended."""
    while process.poll() is None and not journal_of(directory).is_file():
        time.sleep(0.1)
    before = journal_of(directory).stat().st_size if journal_of(directory).is_file() else 0
    while process.poll() is None and journal_of(directory).is_file():
        if journal_of(directory).stat().st_size > before + more:
            return
        time.sleep(0.01)


RAY = [*RUNS["fedbuff"], "num_rounds=150", "num_clients=30", "executor=ray"]
RAY += ["executor.num_actors=2"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_command_with_ray_that_is_killed_from_outside_is_resumed(tmp_path: Path, seed: int) -> None:
    """Nobody chooses the moment: the process gets `kill -9` while it works."""
    killed, plain = tmp_path / "killed", tmp_path / "plain"
    overrides = [*RAY, f"seed={seed}"]
    subprocess.run(command(*overrides, f"hydra.run.dir={plain}"), check=True)
    process = subprocess.Popen(command(*overrides, f"hydra.run.dir={killed}"))
    moments = 0
    while True:
        await_journal(killed, process, 400_000)
        process.kill()
        if process.wait() == 0:
            break
        moments += 1
        process = subprocess.Popen(command("resume", str(killed)))
    assert moments >= 2
    assert outcome(killed)["summary"] == outcome(plain)["summary"]


def test_run_that_is_stopped_while_ray_starts_tells_how_it_goes_on_and_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopping(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("fl.execution.cluster._init", stopping)
    directory = tmp_path / "run"
    small = ["model=logistic", "num_clients=10", "num_rounds=1", "views=false", "progress=false"]
    small.append("executor=ray")
    monkeypatch.setattr("sys.argv", ["fl", *small, f"hydra.run.dir={directory}"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 128 + signal.SIGTERM
    told = capsys.readouterr().err.splitlines()
    assert told[-2:] == [
        f"fl: this run can go on: fl resume {directory}",
        "fl: interrupted by SIGTERM",
    ]
    arguments, resumption = resumed([str(directory)])
    assert not resumption.journal
    assert {*small} <= {*arguments}


def left(mark: str) -> list[int]:
    """Processes that were started with this mark, and theirs, that still run."""
    return processes.marked("TEST_MARK", mark)


@pytest.mark.slow
@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_command_with_ray_that_is_asked_to_end_tells_its_results_and_leaves_no_process(
    tmp_path: Path, sign: signal.Signals
) -> None:
    """As Slurm, Docker and a terminal that closes do it."""
    mark = str(tmp_path)
    process = subprocess.Popen(
        command(*RAY, f"hydra.run.dir={tmp_path / 'run'}"),
        env={**os.environ, "TEST_MARK": mark},
        stderr=subprocess.PIPE,
        text=True,
    )
    await_journal(tmp_path / "run", process, 200_000)
    process.send_signal(sign)
    _, told = process.communicate()
    assert left(mark) == []
    assert process.returncode == 128 + sign
    assert f"this run can go on: fl resume {tmp_path / 'run'}\n" in told
    assert told.endswith(f"fl: interrupted by {sign.name}\n")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert summary["totals"]["client_updates"] > 0


@pytest.mark.slow
def test_command_with_ray_that_is_killed_or_told_twice_leaves_no_process_for_long(
    tmp_path: Path,
) -> None:
    for name, signs in (
        ("killed", [signal.SIGKILL]),
        ("twice", [signal.SIGTERM, signal.SIGTERM]),
    ):
        mark = str(tmp_path / name)
        process = subprocess.Popen(
            command(*RAY, f"hydra.run.dir={mark}"), env={**os.environ, "TEST_MARK": mark}
        )
        await_journal(Path(mark), process, 200_000)
        for sign in signs:
            process.send_signal(sign)
            time.sleep(0.05)
        process.wait()
    while any(left(str(tmp_path / name)) for name in ("killed", "twice")):  # about a minute
        time.sleep(0.5)
