"""Runs that go on from a snapshot end as if they had not been killed, and repeat little."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from killing import EARLY, HARSH, HARSH_FLEET, RUNS, SMALL, Run, journal_of, outcome

import fl.runs.journal.snapshots as snapshots_module
from fl.errors import ConfigError, NotFinite
from fl.flower.records import RowRecord, layout_of, to_record
from fl.runs.journal.encoding import cut
from fl.runs.journal.journal import Journal, framed, read_frame
from fl.runs.journal.lasting import Read, Written
from fl.runs.journal.snapshots import _MAGIC, EVENTS, SNAPSHOT, read_snapshot
from fl.strategies.fedopt import Moments

ALWAYS = "checkpoint.snapshot_s=1e-9"  # at every moment of rest
FEW = [*SMALL, *EARLY, "num_clients=8", "num_rounds=6", ALWAYS]
STRATEGIES = {
    "fedadam": ["strategy=fedadam"],
    "scaffold": ["strategy=scaffold"],
    "feddyn": ["strategy=feddyn"],
    "mifa": ["strategy=mifa"],
    "fedau": ["strategy=fedau"],
    "fedhyper": ["strategy=fedhyper_g"],
    "optex": ["strategy=optex"],
    "oort": ["strategy=fedavg", "selection=oort"],
    "tifl": ["strategy=fedavg", "selection=tifl"],
    "clustered": ["strategy=fedavg", "selection=clustered"],
    "power_of_choice": ["strategy=fedavg", "selection=power_of_choice"],
    "noise": ["strategy=fedavg", "strategy.noise_scale=0.9"],
    "rates": [
        *("strategy=fedavg", "+strategy.eta_schedule._target_=fl.clients.Warmup"),
        "+strategy.eta_schedule.steps=4",
    ],
    "median": ["strategy=fedavg", "aggregator=median"],
    "clients that evaluate": ["strategy=fedavg", "strategy.fraction_evaluate=0.5"],
    "best models": ["strategy=fedavg", "save_models=[final,best]"],
    "rare evaluations": ["strategy=fedavg", "evaluate_every=2"],
    "clients that go on": [
        "strategy=fedavg",
        "strategy.abort=false",
        "strategy.over_selection=1.5",
    ],
    "clients told to stop": ["strategy=fedavg", "strategy.over_selection=1.5"],
    "statistics": ["strategy=fedavg", "model=resnet8", "model.channels=[4,4,4]"],
}


@pytest.fixture(autouse=True)
def at_any_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets snapshots take all of a run's time, in this process and those that it forks."""
    monkeypatch.setattr(snapshots_module, "_SHARE", 1e9)


def goes_on(run: Run, directory: Path, caplog: pytest.LogCaptureFixture) -> int:
    """Resumes a run to its end; returns how many answers were before the snapshot, 0 without."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "fl.runs.journal"):
        run(directory, resume=True)
    lines = [r for r in caplog.records if r.msg.startswith("goes on from")]
    return int(lines[0].args[1]) if lines else 0  # type: ignore[arg-type, index]


def size_of(run: Run, directory: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Runs to the end; returns the bytes that the journal had."""
    sizes = []
    close = snapshots_module.Journal.close

    def noting(journal: Any) -> None:
        sizes.append(journal.size)
        close(journal)

    with monkeypatch.context() as patch:
        patch.setattr(snapshots_module.Journal, "close", noting)
        run(directory)
    return int(sizes[-1])


def killed_and_resumed(
    overrides: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    times: int = 3,
) -> int:
    """Returns how many answers the last of several resumptions has not repeated."""
    run = Run(overrides)
    size = size_of(run, tmp_path / "whole", monkeypatch)
    directory = tmp_path / "killed"
    for i in range(times):
        assert run.killed(directory, size * (i + 1) // (times + 1), resume=i > 0)
    spared = goes_on(run, directory, caplog)
    assert outcome(directory) == outcome(tmp_path / "whole")
    return spared


@pytest.mark.slow
@pytest.mark.parametrize("name", ["arrays", "aggregate"])
def test_a_run_goes_on_from_its_last_snapshot_to_the_same_end(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert killed_and_resumed([*RUNS[name], ALWAYS], tmp_path, monkeypatch, caplog) > 10


@pytest.mark.slow
@pytest.mark.parametrize("words", [["fleet/radio=states"], ["power=dvfs", "power.cap=0.5"]])
def test_what_devices_remember_is_in_a_snapshot(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    of_fleet = [*FEW, *HARSH_FLEET, "strategy=fedavg", *words]
    assert killed_and_resumed(of_fleet, tmp_path, monkeypatch, caplog) > 0


@pytest.mark.slow
@pytest.mark.parametrize("fleet", ["harsh", "uniform"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_what_strategies_and_selections_remember_is_in_a_snapshot(
    name: str,
    fleet: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = [*FEW, *(HARSH if fleet == "harsh" else ["fleet=uniform"]), *STRATEGIES[name]]
    if name in ("scaffold", "feddyn", "statistics"):
        words = [word for word in words if word not in HARSH or word in HARSH_FLEET]
    if name == "best models":
        words.remove("target=null")
    if name == "statistics":
        words = [w for w in words if not w.startswith("model") or w in STRATEGIES[name]]
    spared = killed_and_resumed(words, tmp_path, monkeypatch, caplog)
    assert spared > 0 or (name, fleet) == ("clients that go on", "harsh")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fedbuff", "gossip", "compressed", "diloco"])
def test_who_cannot_say_what_lasts_is_repeated_from_the_beginning(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert killed_and_resumed([*RUNS[name], ALWAYS], tmp_path, monkeypatch, caplog) == 0


# ---- what is refused -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run that was killed after a snapshot."""
    run, directory = Run([*FEW, "fleet=uniform", "strategy=fedavg"]), tmp_path_factory.mktemp("s")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots_module, "_SHARE", 1e9)
        assert run.killed(directory / "run", 40_000, resume=False)
    assert (directory / "run" / "checkpoint" / SNAPSHOT).exists()
    return run, directory / "run"


def changed(path: Path, change: Callable[[list[Any]], object]) -> None:
    """Writes a snapshot whose description is another, with a right checksum."""
    with open(path, "rb") as file:
        assert file.read(len(_MAGIC)) == _MAGIC
        data = read_frame(file)
    assert data is not None
    begin = 8 + int.from_bytes(data[:8], "little")
    head = json.loads(bytes(data[8:begin]))
    change(head)
    text = json.dumps(head).encode()
    whole = framed([len(text).to_bytes(8, "little"), text, data[begin:]])
    path.write_bytes(_MAGIC + b"".join(whole))


def flipped(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def state_of(head: list[Any]) -> Any:
    return head[2]["model"]


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a bit": (lambda c: flipped(c / SNAPSHOT, -3), "a record is damaged"),
    "its kind": (lambda c: flipped(c / SNAPSHOT, 0), "another version of fl"),
    "its end": (
        lambda c: (c / SNAPSHOT).write_bytes((c / SNAPSHOT).read_bytes()[:-9]),
        "a record is incomplete",
    ),
    "something after it": (
        lambda c: (c / SNAPSHOT).write_bytes((c / SNAPSHOT).read_bytes() + b"x"),
        "not as long as it was written",
    ),
    "an event": (lambda c: flipped(c / EVENTS, 8), "events in .*events are damaged"),
    "no events": (lambda c: (c / EVENTS).unlink(), "events is missing"),
    "another journal": (
        lambda c: changed(c / SNAPSHOT, lambda h: h[0].update(journal=1)),
        "belongs to another journal",
    ),
    "another number of arrays": (
        lambda c: changed(c / SNAPSHOT, lambda h: h[4].append(1)),
        "not as long as it says",
    ),
    "a place within a record": (
        lambda c: changed(c / SNAPSHOT, lambda h: h[0].update(size=h[0]["size"] - 1)),
        "no record that ends where it says",
    ),
    "an end beyond the journal": (
        lambda c: changed(c / SNAPSHOT, lambda h: h[0].update(size=10**12)),
        "no record that ends where it says",
    ),
}
OTHERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "a model of another length": (
        lambda c: changed(c / SNAPSHOT, lambda h: state_of(h)["_w"].__setitem__(3, [3])),
        "'_w' of GlobalModel is not what it must be|no plain value|reshape",
    ),
    "a part that is missing": (
        lambda c: changed(c / SNAPSHOT, lambda h: h[2].pop("tasks")),
        "it has the parts",
    ),
    "an attribute that is none": (
        lambda c: changed(c / SNAPSHOT, lambda h: state_of(h).update(evaluate=1)),
        "what lasts of GlobalModel",
    ),
    "a class that is not ours": (
        lambda c: changed(
            c / SNAPSHOT, lambda h: state_of(h).update(_version=["made", "subprocess:Popen", ["x"]])
        ),
        "'subprocess:Popen' is no plain value",
    ),
    "a class that is no state": (
        lambda c: changed(
            c / SNAPSHOT,
            lambda h: state_of(h).update(_version=["made", "fl.runs.journal.claim:Claim", ["x"]]),
        ),
        "Claim' is no plain value",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_snapshot_of_the_run_is_refused_and_named(
    damage: str, stopped: tuple[Run, Path], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(stopped[1] / "checkpoint", checkpoint)
    journal = Journal(checkpoint / "journal", None)
    assert read_snapshot(checkpoint, journal) is not None
    change, why = DAMAGES[damage]
    change(checkpoint)
    with pytest.raises(ConfigError, match=f"checkpoint/{SNAPSHOT} cannot be used: .*{why}") as no:
        read_snapshot(checkpoint, journal)
    journal.close()
    assert "Delete it: the run is then repeated from its beginning" in str(no.value)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [*OTHERS, "a bit"])
def test_what_is_no_state_of_the_run_is_refused_before_anything_is_trained(
    damage: str, stopped: tuple[Run, Path], tmp_path: Path
) -> None:
    run, directory = stopped
    shutil.copytree(directory, tmp_path / "run")
    journal = journal_of(tmp_path / "run").read_bytes()
    change, why = {**DAMAGES, **OTHERS}[damage]
    change(tmp_path / "run" / "checkpoint")
    with pytest.raises(ConfigError, match=f"checkpoint/{SNAPSHOT} cannot be used: .*({why})"):
        run(tmp_path / "run", resume=True)
    assert journal_of(tmp_path / "run").read_bytes() == journal


@pytest.mark.slow
def test_without_its_snapshot_the_run_is_repeated_to_the_same_end(
    stopped: tuple[Run, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, directory = stopped
    for name in ("with", "without"):
        shutil.copytree(directory, tmp_path / name)
    (tmp_path / "without" / "checkpoint" / SNAPSHOT).unlink()
    assert goes_on(run, tmp_path / "with", caplog) > 0
    assert goes_on(run, tmp_path / "without", caplog) == 0
    assert outcome(tmp_path / "with") == outcome(tmp_path / "without")
    assert not (tmp_path / "with" / "checkpoint").exists()


# ---- values --------------------------------------------------------------------------------------


class Part:
    lasting = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


class Own(NamedTuple):
    """A state that is not fl's."""

    x: Any
    y: int


def through(value: Any, into: Any = None) -> Any:
    """Returns a value as another part has it that was filled with it."""
    written, part = Written(), Part(into)
    state = json.loads(json.dumps(written.state(Part(value))))
    data = b"".join(written.blobs.buffers)
    read = Read(cut(memoryview(data), written.blobs.lengths), {f"{__name__}:Own": Own})
    read.into(part, state)
    read.fill()
    return part.value


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, 3, 2**70, -0.0, float("inf"), "é", [], [1, 2, 3], [2**63, 1], (1, True)),
        *({}, {1: "a", "b": (2.5, None)}, {(1, "x"): {2}}, Counter({5: 2, 7: -1}), frozenset("a")),
        *(Own([1.5], 2), {"a": Own(None, 1)}),
    ],
    ids=repr,
)
def test_plain_values_come_back_with_their_types(value: Any) -> None:
    found = through(value)
    assert (repr(found), type(found)) == (repr(value), type(value))


def test_arrays_come_back_with_their_bits_and_what_is_one_stays_one() -> None:
    row = np.array([0.1, np.nan, -0.0], np.float32)
    row.flags.writeable = False
    record = to_record(layout_of(ArrayRecord({"w": Array(row.copy())})), row)
    empty, flags = np.zeros((0, 3)), np.array([[True], [False]])
    strided = np.arange(6, dtype=np.int64).reshape(2, 3).T
    made = Moments(row, row, row)._replace(w=row)
    one = through((row, row, record, empty, flags, strided, np.float32(0.1), made))
    again, same, other, none, truths, turned, number, moments = one
    assert again is same is moments.w
    assert not again.flags.writeable
    assert again.tobytes() == row.tobytes()
    assert isinstance(other, RowRecord)
    assert other["w"].numpy().tobytes() == row.tobytes()
    assert (none.shape, none.dtype) == ((0, 3), empty.dtype)
    np.testing.assert_array_equal(truths, flags)
    np.testing.assert_array_equal(turned, strided)
    assert (number, type(number)) == (np.float32(0.1), np.float32)
    assert type(moments) is Moments


def test_records_and_reasons_come_back() -> None:
    metrics = MetricRecord({"a": 1, "b": [0.5]})
    content = RecordDict({"m": metrics, "c": ConfigRecord({"x": b"\0", "y": "z"})})
    state, entry, why = through((content, Array(np.array([1, 2])), {"": NotFinite("far")}))
    assert state == content
    np.testing.assert_array_equal(entry.numpy(), [1, 2])
    assert (type(why[""]), str(why[""])) == (NotFinite, "far")


def test_containers_stay_the_objects_that_others_know() -> None:
    known = {1: 2}
    assert through({3: 4}, known) is known == {3: 4}
    with pytest.raises(ValueError, match="'value' of Part is not what it must be"):
        through([1], {})


@pytest.mark.parametrize("value", [object(), np.array([None]), lambda: 0, 1j])
def test_what_is_no_plain_value_is_not_written(value: Any) -> None:
    with pytest.raises(TypeError, match="no plain value"):
        Written().state(Part(value))
