"""What a resumed run checks, finds again and tells, and how a run goes on when the disk is full."""

from __future__ import annotations

import json
import logging
import os
import random
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from killing import RUNS, SMALL, Run, journal_of, outcome

import fl.runs.journal.recovery as recovery_module
from fl import simulate
from fl.clients.app.batching import Batching
from fl.errors import ConfigError, SimulationError
from fl.execution import SerialExecutor
from fl.execution.contract import Payload, Request, Result, RunInfo
from fl.runs.journal import Journal, Journaled, Recovery, RunStart
from fl.runs.journal.journal import NotRepeated, read_head
from fl.runs.recorder import Recorder
from fl.runs.simulator import SimulatedRun
from fl.simulation.world.fleets import uniform
from fl.strategies import Rounds


@pytest.fixture(scope="module")
def fedbuff() -> Run:
    return Run(RUNS["fedbuff"])


# ---- what is checked -------------------------------------------------------------------------


def test_run_with_another_configuration_is_refused(fedbuff: Run, tmp_path: Path) -> None:
    assert fedbuff.killed(tmp_path, 30_000, resume=False)
    other = Run([*RUNS["fedbuff"], "client.rule.lr=0.02"])
    with pytest.raises(ConfigError, match=r"cannot be resumed: its configuration was \w+ when"):
        other(tmp_path, resume=True)
    fedbuff(tmp_path, resume=True)  # as good as before


def test_run_of_other_source_is_refused(
    fedbuff: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fedbuff.killed(tmp_path, 30_000, resume=False)
    monkeypatch.setattr(recovery_module, "source_sha256", lambda paths=None: "other")
    with pytest.raises(ConfigError, match=r"its source was \w+ when it began, and is other now"):
        fedbuff(tmp_path, resume=True)


def test_source_hash_sees_every_change(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    hashes = set()
    for text in ("x = 1", "x = 2", ""):
        path.write_text(text)
        hashes.add(recovery_module.source_sha256([path]))
    hashes.add(recovery_module.source_sha256([]))
    assert len(hashes) == 4


# ---- what is found again ---------------------------------------------------------------------


def make_client() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        w = message.content["arrays"]["w"].numpy() + np.random.normal(size=2)  # noqa: NPY002
        content = RecordDict({"arrays": ArrayRecord({"w": Array(w)}), "m": MetricRecord({"a": 1})})
        return Message(content, reply_to=message)

    return app


def run_of(
    draw: Callable[[], float], directory: Path, *, resume: bool = False, **options: Any
) -> SimulatedRun:
    """Runs a server that sends `draw()` with its model, four times to two clients."""

    def server(grid: Grid, _: Context, recorder: Recorder) -> None:
        arrays = ArrayRecord({"w": Array(np.zeros(2))})
        for _round in range(4):
            content = RecordDict({"arrays": arrays, "config": ConfigRecord({"x": draw()})})
            messages = [Message(content, node, "train") for node in grid.get_node_ids()]
            replies = list(grid.send_and_receive(messages))
            w = np.mean([reply.content["arrays"]["w"].numpy() for reply in replies], axis=0)
            arrays = ArrayRecord({"w": Array(w)})
        recorder.final(arrays)

    recovery = Recovery(start=RunStart(resume=resume))
    fleet = uniform(num_clients=2, seed=0)
    return simulate(
        server,
        make_client,
        fleet,
        directory=directory,
        executor="serial",
        recovery=recovery,
        progress=False,
        views=False,
        **options,
    )


class _Stopped(BaseException):
    """Stands for the end of the process."""


def stopping(draw: Callable[[], float], after: int) -> Callable[[], float]:
    """Returns `draw`, ending the process at the call after so many."""
    calls = iter(range(after))

    def stopped() -> float:
        if next(calls, None) is None:
            raise _Stopped
        return draw()

    return stopped


def test_server_that_draws_from_its_seeded_generator_repeats_itself(tmp_path: Path) -> None:
    whole = run_of(random.random, tmp_path / "whole")
    with pytest.raises(_Stopped):
        run_of(stopping(random.random, 2), tmp_path / "part")
    again = run_of(random.random, tmp_path / "part", resume=True)
    for name in ("trace_sha256", "model_sha256"):
        assert again.summary[name] == whole.summary[name]


def test_time_in_the_server_app_goes_on_from_where_the_run_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = 1_000_000_000
    monkeypatch.setattr("fl.runs.simulator.host_date", lambda: began)
    whole = run_of(lambda: time.time(), tmp_path / "whole", date="now")
    with pytest.raises(_Stopped):
        run_of(stopping(lambda: time.time(), 3), tmp_path / "part", date="now")
    monkeypatch.setattr("fl.runs.simulator.host_date", lambda: began + 5000)
    seen: list[float] = []
    again = run_of(
        lambda: seen.append(time.time()) or seen[-1], tmp_path / "part", resume=True, date="now"
    )
    assert began <= min(seen) <= max(seen) < began + 1000
    assert again.summary["model_sha256"] == whole.summary["model_sha256"]


def test_run_with_another_date_is_refused(tmp_path: Path) -> None:
    with pytest.raises(_Stopped):
        run_of(stopping(random.random, 2), tmp_path)
    with pytest.raises(ConfigError, match="its date was None when it began, and is 2030-01-01 now"):
        run_of(random.random, tmp_path, resume=True, date="2030-01-01")


def test_server_that_does_not_repeat_itself_stops_instead_of_going_astray(tmp_path: Path) -> None:
    def entropy() -> float:
        return float(int.from_bytes(os.urandom(6), "big"))

    with pytest.raises(_Stopped):
        run_of(stopping(entropy, 2), tmp_path)
    with pytest.raises(SimulationError, match="the run does not repeat itself: answer 1 of "):
        run_of(entropy, tmp_path, resume=True)


def test_measured_choice_of_batching_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(
        [
            *SMALL,
            "strategy=fedavg",
            "client.batching=measured",
            "num_clients=12",
            "fleet=uniform",
            "num_rounds=3",
        ]
    )
    for name, faster, later in (("on", 1.0, 9.0), ("off", 9.0, 1.0)):
        for together_s in (faster, later):
            choice = Batching(
                "measured", together_s < 5, "" if together_s < 5 else "slow", 5.0, together_s
            )
            monkeypatch.setattr("fl.clients.app.trainer.compare", lambda *_, found=choice: found)
            directory = tmp_path / name
            if together_s == faster:
                assert run.killed(directory, 60_000, resume=False)
            else:
                run(directory, resume=True)
        found = outcome(directory)["summary"]["extra"]["batching"]
        assert found["together_s"] == faster


def test_model_of_an_evaluated_round_is_not_evaluated_again(
    fedbuff: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fedbuff.killed(tmp_path / "part", 60_000, resume=False)
    counts = []
    evaluate = recovery_module.Recovery.evaluating

    def counting(recovery: Any, function: Any) -> Any:
        def counted(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            counts.append(server_round)
            found: MetricRecord = function(server_round, arrays)
            return found

        return evaluate(recovery, counted)

    monkeypatch.setattr(recovery_module.Recovery, "evaluating", counting)
    fedbuff(tmp_path / "part", resume=True)
    assert 0 < len(counts) < 11
    assert counts == sorted(counts)
    assert counts[-1] == 10


def test_run_that_completed_leaves_no_checkpoint(fedbuff: Run, tmp_path: Path) -> None:
    fedbuff(tmp_path)
    assert not (tmp_path / "checkpoint").exists()


def test_run_that_was_killed_while_it_wrote_its_results_writes_them(
    fedbuff: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise _Stopped

    with monkeypatch.context() as patch:
        patch.setattr("fl.reports.run_writer._write_trace", killed)
        with pytest.raises(_Stopped):
            fedbuff(tmp_path)
    assert not (tmp_path / "trace.parquet").exists()
    with monkeypatch.context() as patch:
        patch.setattr(SerialExecutor, "result", killed)  # nothing is trained
        fedbuff(tmp_path, resume=True)
    fedbuff(tmp_path / "whole")
    again, whole = outcome(tmp_path), outcome(tmp_path / "whole")
    again["files"].remove("whole")
    assert again == whole


# ---- waves -----------------------------------------------------------------------------------


class _Batches(SerialExecutor):
    """Answers with the wave in which it got a request."""

    def __init__(self) -> None:
        super().__init__()
        self.waves: list[list[tuple[int, Any]]] = []
        self.forgotten: list[int] = []

    def start(self, app: Any, run: RunInfo) -> None:
        pass

    def submit(self, wave: Any) -> None:
        self.waves.append([(member.client, member.payload.content["c"]["i"]) for member in wave])

    def result(self, request: Request) -> Result:
        found = next(i for i, w in enumerate(self.waves) if request.client in dict(w))
        return Result(slept_s=float(found))

    def discard(self, request: Request) -> None:
        self.forgotten.append(request.client)


def wave_of(*clients: int) -> list[Request]:
    return [
        Request(c, 0, Payload(RecordDict({"c": ConfigRecord({"i": c})}), 8), "train", "", 1.0)
        for c in clients
    ]


def test_wave_of_which_a_part_is_in_the_journal_is_executed_whole(tmp_path: Path) -> None:
    """What trains together decides the last bits, also of those whose outcome is not needed."""
    path = tmp_path / "journal"
    first, second, third = wave_of(0, 1), wave_of(2, 3, 4), wave_of(5, 6)
    journal = Journal(path, {})
    executor = Journaled(_Batches(), journal)
    executor.submit(first)
    executor.submit(second)
    for member in (*first, second[0]):
        executor.result(member)
    journal.close()

    journal, inner = Journal(path, None), _Batches()
    executor = Journaled(inner, journal)
    for wave in (first, second):
        executor.submit(wave)
    for member in (*first, second[0]):
        assert executor.result(member).slept_s == (0.0 if member in first else 1.0)
        member.payload = Payload(RecordDict(), 0)  # as the grid does when a reply has arrived
    executor.discard(second[1])
    assert inner.waves == []
    executor.submit(third)
    executor.result(second[2])
    assert inner.waves == [[(2, 2), (3, 3), (4, 4)], [(5, 5), (6, 6)]]
    assert inner.forgotten == [2, 3]
    executor.discard(third[0])
    executor.submit(wave_of(7))
    assert inner.waves[2:] == [[(7, 7)]]
    assert inner.forgotten == [2, 3, 5]


@pytest.mark.parametrize(
    "wrong",
    [
        *([], {}, [{}], [[0, None, 0.0, 0.0]], [[0, [1], 0.0, 0.0, ""]], [[0, "x", 0.0, 0.0, ""]]),
        *([[0, None, "x", 0.0, ""]], [[0, None, 0.0, None, ""]], [[[], None, 0.0, 0.0, ""]] * 2),
        *(
            [[[], None, 0.0, 0.0, ""], [["x", 1], None, 0.0, 0.0, ""]],
            [[[], None, 0.0, 0.0, 0]] * 3,
        ),
    ],
)
def test_answer_of_another_form_is_refused(tmp_path: Path, wrong: Any) -> None:
    path = tmp_path / "journal"
    (member,) = wave_of(0)
    journal = Journal(path, {})
    executor = Journaled(_Batches(), journal)
    nothing = {f"{what} {i}": None for what in ("content", "state") for i in range(2)}
    journal.note("result", executor._key(member), {"answers": wrong}, nothing)
    journal.close()
    executor = Journaled(_Batches(), Journal(path, None))
    executor.submit([member])
    with pytest.raises(ConfigError, match=r"an answer (that is no client's|to nobody)"):
        executor.result(member)


# ---- disks -----------------------------------------------------------------------------------


def test_run_goes_on_when_the_disk_is_full_and_can_be_resumed_from_what_was_kept(
    fedbuff: Run, tmp_path: Path
) -> None:
    """The operating system refuses files of more than 30 kB; all others are smaller."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
            fedbuff(tmp_path)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    fedbuff(tmp_path / "whole")
    limited, whole = outcome(tmp_path), outcome(tmp_path / "whole")
    assert limited["summary"]["extra"].pop("journal_stopped") == "File too large"
    assert limited["summary"] == whole["summary"]


def test_run_that_cannot_be_resumed_says_so_at_its_start_and_when_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start(directory: Path, **options: Any) -> None:
        recovery = Recovery(start=RunStart(obstacle="it uses threads"), **options)
        with recovery.keeping(directory, {}):
            raise _Stopped

    with caplog.at_level(logging.WARNING, logger="fl"), pytest.raises(_Stopped):
        start(tmp_path / "no")
    assert "this run cannot be resumed if it is stopped: it uses threads" in caplog.text
    assert read_head(journal_of(tmp_path / "no"))["obstacle"] == "it uses threads"
    with pytest.raises(ConfigError, match="cannot be resumed: it uses threads"):
        run_of(random.random, tmp_path / "no", resume=True)
    with pytest.raises(_Stopped):
        start(tmp_path / "yes", trust=True)
    assert "obstacle" not in read_head(journal_of(tmp_path / "yes"))


@pytest.mark.parametrize("options", [{"limit_gb": 0}, {"sync_s": -1.0}, {"limit_gb": float("nan")}])
def test_numbers_out_of_range_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"\w+ is .*; it must be positive"):
        Recovery(**options)


def test_run_without_a_journal_says_so_when_asked(tmp_path: Path) -> None:
    run = Run([*RUNS["aggregate"], "checkpoint=off"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rounds, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"
    with pytest.raises(ConfigError, match="it was started with checkpoint=off"):
        run(tmp_path, resume=True)


class _Together(_Batches):
    """Answers all of a wave when the first of it is asked for."""

    def submit(self, wave: Any) -> None:
        super().submit(wave)
        self._pending.update(dict.fromkeys(wave, wave))

    def result(self, request: Request) -> Result:
        for member in self._pending.get(request, ()):
            if self._pending.pop(member, None) is not None:
                self._results[member] = Result(slept_s=float(member.client))
        return self._results.pop(request)

    def discard(self, request: Request) -> None:
        super().discard(request)
        SerialExecutor.discard(self, request)


def test_answers_that_came_together_are_one_record_and_nothing_is_asked_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"

    def ask(executor: Journaled, waves: list[list[Request]]) -> None:
        first, second = waves
        executor.submit(first)
        assert executor.result(first[1]).slept_s == 1.0
        executor.submit(second)
        executor.discard(first[2])  # whose answer is there, and in the journal
        assert executor.result(first[0]).slept_s == 0.0

    waves = [wave_of(0, 1, 2), wave_of(3, 4)]
    journal = Journal(path, {})
    sizes = [journal.size]
    executor = Journaled(_Together(), journal)
    ask(executor, waves)
    sizes.append(journal.size)
    assert executor.result(waves[1][0]).slept_s == 3.0
    sizes.append(journal.size)
    assert executor.result(waves[1][1]).slept_s == 4.0
    assert journal.size == sizes[2] > sizes[1] > sizes[0]  # each wave in one record
    journal.close()

    os.truncate(path, sizes[1])  # killed before the second wave was answered
    journal, inner = Journal(path, None), _Together()
    executor = Journaled(inner, journal)
    waves = [wave_of(0, 1, 2), wave_of(3, 4)]
    ask(executor, waves)
    assert inner.waves == []
    with caplog.at_level("INFO", logger="fl.runs.journal"):
        assert executor.result(waves[1][1]).slept_s == 4.0
    assert "resumed after 3 answers" in caplog.text
    assert inner.waves == [[(3, 3), (4, 4)]]
    assert inner.forgotten == []
    assert executor.result(waves[1][0]).slept_s == 3.0
    journal.close()

    journal, inner = Journal(path, None), _Together()
    executor = Journaled(inner, journal)
    waves = [wave_of(0, 1, 2), wave_of(3, 4)]
    executor.submit(waves[0])
    assert executor.result(waves[0][1]).slept_s == 1.0
    other = Request(0, 0, waves[0][1].payload, "train", "", 1.0)
    executor.submit([other])
    with pytest.raises(NotRepeated, match=r"does not repeat itself: .*, but now \['result', 0"):
        executor.result(other)


def test_wave_whose_record_was_used_in_part_is_not_executed_for_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, {})
    executor, (wave, last) = Journaled(_Together(), journal), (wave_of(0, 1), wave_of(2))
    executor.submit(wave)
    executor.result(wave[0])
    journal.close()

    journal, inner = Journal(path, None), _Together()
    executor, (wave, last) = Journaled(inner, journal), (wave_of(0, 1), wave_of(2))
    executor.submit(wave)
    executor.result(wave[0])
    executor.submit(last)
    assert executor.result(last[0]).slept_s == 2.0  # the journal ends here
    assert executor.result(wave[1]).slept_s == 1.0  # and has had this before
    assert inner.waves == [[(2, 2)]]
