"""A journal gives back what was noted, up to the first byte that is not as it was written."""

from __future__ import annotations

import errno
import logging
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from fl.errors import ConfigError, SimulationError
from fl.runs.journal import journal as journal_module
from fl.runs.journal.journal import Journal, read_head

HEAD = {"facts": {"seed": 3}}


def written(path: Path, count: int = 5, **options: Any) -> Journal:
    """Returns a journal with `count` answers, the i-th to question i; and the file's sizes."""
    journal = Journal(path, HEAD, **options)
    for i in range(count):
        note(journal, i)
    return journal


def note(journal: Journal, i: int) -> None:
    journal.note("test", [i], {"i": i}, {"content": RecordDict({"c": ConfigRecord({"i": i})})})


def answers(journal: Journal) -> list[int]:
    found = []
    while (answer := journal.recall("test", [len(found)])) is not None:
        facts, records = answer
        content = records["content"]
        assert content is not None
        assert content["c"]["i"] == facts["i"]
        found.append(facts["i"])
    return found


def test_answers_come_back_in_order_and_more_can_follow(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path).close()
    assert read_head(path) == HEAD
    again = Journal(path, None)
    assert answers(again) == [0, 1, 2, 3, 4]
    assert not again.replaying
    note(again, 5)
    again.close()
    assert answers(Journal(path, None)) == [0, 1, 2, 3, 4, 5]


def test_journal_cut_at_any_byte_gives_every_whole_answer_and_goes_on(tmp_path: Path) -> None:
    path, cut = tmp_path / "journal", tmp_path / "cut"
    journal = written(path, 0)
    ends = [journal.size]
    for i in range(3):
        note(journal, i)
        ends.append(journal.size)
    journal.close()
    data = path.read_bytes()
    assert ends[-1] == len(data)
    around = {end + i for end in ends for i in (-1, 0, 1)} & set(range(ends[0], len(data) + 1))
    for length in sorted(around | set(range(ends[0], len(data), 7))):
        cut.write_bytes(data[:length])
        whole = sum(end <= length for end in ends) - 1
        again = Journal(cut, None)
        assert answers(again) == list(range(whole))
        note(again, whole)
        again.close()
        assert answers(Journal(cut, None)) == list(range(whole + 1))


def test_changed_byte_ends_the_journal_before_it_and_the_user_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    journal = written(path, 2)
    good = journal.size
    note(journal, 2)
    note(journal, 3)
    journal.close()
    data = path.read_bytes()
    for place in range(good, len(data) - 1, 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        caplog.clear()
        with caplog.at_level(logging.WARNING, logger="fl.runs.journal"):
            again = Journal(path, None)
            found = answers(again)
        assert found in ([0, 1], [0, 1, 2])
        lost = len(data) - again.size
        assert f"the last {lost} bytes of {path} are damaged" in caplog.text
        assert path.stat().st_size == again.size
        again.close()


def test_other_question_than_the_first_time_stops_the_run(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path).close()
    again = Journal(path, None)
    again.recall("test", [0])
    with pytest.raises(
        SimulationError, match=r"does not repeat itself: answer 2 .* now \['test', 7"
    ):
        again.recall("test", [7])


@pytest.mark.parametrize("head", [b"", b"fl-journal-1\n", b"fl-journal-1\n" + bytes(12), b"PAR1"])
def test_file_that_is_no_journal_is_refused(tmp_path: Path, head: bytes) -> None:
    path = tmp_path / "journal"
    path.write_bytes(head)
    with pytest.raises(ConfigError, match=r"cannot be used: .*; start the run again"):
        Journal(path, None)


def fill_up(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Makes a disk with room for so many more bytes."""
    left = [room]

    def writev(descriptor: int, parts: list[Any]) -> int:
        return write(descriptor, b"".join(parts))

    def write(descriptor: int, data: Any) -> int:
        if not left[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(descriptor, bytes(data[: left[0]]))
        left[0] -= done
        return done

    real = os.write
    monkeypatch.setattr(journal_module.os, "writev", writev)
    monkeypatch.setattr(journal_module.os, "write", write)


def test_full_disk_leaves_whole_answers_and_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "journal"
    journal = written(path, 1)
    fill_up(monkeypatch, room=10)  # less than an answer: half of it is on the disk
    with caplog.at_level(logging.WARNING, logger="fl.runs.journal"):
        note(journal, 1)
        note(journal, 2)
    monkeypatch.undo()
    note(journal, 3)  # there is room again, but what is in between is missing
    journal.close()
    assert caplog.text.count("is not written any more: the disk is full. The run goes on") == 1
    assert journal.stopped == "the disk is full"
    assert answers(Journal(path, None)) == [0]


def test_limit_ends_the_journal_before_it_is_passed(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    size = written(path, 2).size
    journal = written(path, 3, limit_gb=(size + 50) / 1e9)  # an answer has some 120 bytes
    assert path.stat().st_size == journal.size <= size + 50
    assert str(journal.stopped).startswith("it would be larger than checkpoint.limit_gb=")
    assert answers(Journal(path, None)) == [0, 1]


def test_answer_that_cannot_be_kept_ends_the_journal_not_the_run(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = written(path, 2)
    journal.note("test", [2], {"i": object()})
    assert "cannot be kept" in str(journal.stopped)
    assert answers(Journal(path, None)) == [0, 1]


def test_interrupted_write_leaves_no_half_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "journal"
    journal = written(path, 2)

    def interrupted(descriptor: int, parts: list[Any]) -> int:
        os.write(descriptor, b"".join(parts)[:9])
        raise KeyboardInterrupt

    monkeypatch.setattr(journal_module.os, "writev", interrupted)
    with pytest.raises(KeyboardInterrupt):
        note(journal, 2)
    monkeypatch.undo()
    note(journal, 2)
    journal.close()
    assert answers(Journal(path, None)) == [0, 1, 2]


def test_host_seconds_go_on_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = written(path, 0)
    journal._began -= 1000.0  # an earlier process worked so long
    note(journal, 0)
    journal.close()
    again = Journal(path, None)
    assert again.wall_s < 500
    answers(again)
    assert 1000 <= again.wall_s < 1500


# ---- journals that somebody has put together -----------------------------------------------------


def records_of(path: Path, count: int = 5) -> tuple[bytes, list[bytes]]:
    """Writes a journal; returns the bytes of its head, and of each answer."""
    journal = Journal(path, HEAD)
    ends = [journal.size]
    for i in range(count):
        note(journal, i)
        ends.append(journal.size)
    journal.close()
    data = path.read_bytes()
    return data[: ends[0]], [data[a:b] for a, b in pairwise(ends)]


SPLICES = {
    "part of another journal with the same answers": ("a0 a1 b2 b3", 2, "one of another journal"),
    "head of another journal": ("b0 b1", 0, "one of another journal"),
    "one answer missing": ("a0 a1 a3 a4", 2, "record 4"),
    "the first missing": ("a1 a2", 0, "record 2"),
    "two exchanged": ("a0 a2 a1 a3", 1, "record 3"),
    "one twice": ("a0 a1 a1 a2", 2, "record 2"),
}


@pytest.mark.parametrize("splice", SPLICES)
def test_journal_that_was_put_together_is_refused_with_what_is_wrong_and_not_cut(
    tmp_path: Path, splice: str
) -> None:
    path = tmp_path / "journal"
    answers_of = {}
    head, answers_of["a"] = records_of(path)
    _, answers_of["b"] = records_of(tmp_path / "other")
    names, good, what = SPLICES[splice]
    data = head + b"".join(answers_of[name[0]][int(name[1])] for name in names.split())
    path.write_bytes(data)
    again = Journal(path, None)
    for i in range(good):
        assert again.recall("test", [i]) is not None
    with pytest.raises(ConfigError, match=f"after record {good} comes {what}, so it was put tog"):
        again.recall("test", [good])
    again.close()
    assert path.read_bytes() == data


def test_bytes_cut_out_of_the_middle_end_the_journal_there(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    head, answers_ = records_of(path)
    path.write_bytes(head + answers_[0] + answers_[1][:-9] + answers_[2] + answers_[3])
    assert answers(Journal(path, None)) == [0]


def test_change_of_code_is_noted_once_with_the_answers_before_it(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, {**HEAD, "code": {"app": "old"}})
    note(journal, 0)
    journal.close()

    def resumed(code: str, *more: int) -> list[Any]:
        again = Journal(path, None, code={"app": code})
        found = answers(again)
        for i in more:
            note(again, i)
        again.close()
        assert found == list(range(len(found)))
        return [(change["answers"], change["code"]["app"]) for change in again.changes]

    assert resumed("old", 1) == []
    assert resumed("new") == [(2, "new")]
    assert resumed("new", 2, 3) == [(2, "new")]
    assert resumed("newer", 4) == [(2, "new"), (4, "newer")]
    assert resumed("old") == [(2, "new"), (4, "newer"), (5, "old")]
