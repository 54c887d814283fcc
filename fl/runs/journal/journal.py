"""The journal of a run: every answer that cannot be had again without training.

A run is a function of its configuration and seed. The only expensive part of that function is what
clients answer, so a run that is repeated from its beginning, with the answers at hand, costs events
and aggregation alone, and arrives with every state as it was: the strategy's, whatever it hides in
its objects, the clients', all random streams, the event queue and the messages in flight.

The file is a head, and records in the order in which the run asked for them; each is its length, a
CRC-32, the journal it belongs to, its place there, and its bytes (`encoding`). Records are only
ever appended, each by one system call, so a process that is killed leaves whole records
and at most one that is not. What follows the last good record is cut off when the run goes on. A
whole record in another place than its own was put there by somebody, and is refused.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import struct
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fl.errors import ConfigError, SimulationError
from fl.reports.atomic import replacing

if TYPE_CHECKING:
    from flwr.app import RecordDict

    from fl.runs.journal.encoding import Buffer

log = logging.getLogger("fl.runs.journal")
log.setLevel(logging.INFO)  # where a run goes on is worth a line, once

FILE = "journal"
_MAGIC = b"fl-journal-2\n"
_FRAME = struct.Struct("<QI")  # length of what follows, CRC-32 of place and bytes
_PLACE = struct.Struct("<QQ")  # of the journal, drawn when it is made; of the record, the head is 0
EXTENDS = "extends"
"""In the head of a longer run's journal: the length, by its key, of the run that has answered."""
LENGTHS = ("num_rounds", "time_limit_s")
_CHANGE = "changed code"  # what is asked in a record that is no answer
_GB = 10**9
_MANY_PARTS = 512  # buffers that one system call takes; Linux allows 1024


class NotRepeated(SimulationError):
    """A run asks other questions than the first time: it would be stopped here again."""


@dataclass(frozen=True)
class Position:
    """A place between two records of a journal.

    Attributes:
        journal: what tells it from any other.
        place: of the record before; the head is 0.
        size: bytes up to its end.
        answers: before it.
        wall_s: host seconds that the run had taken.
        changes: of the code, before it.
    """

    journal: int
    place: int
    size: int
    answers: int
    wall_s: float
    changes: list[dict[str, Any]]


Answer = tuple[dict[str, Any], "dict[str, RecordDict | None]"]
"""Facts and records, as `fl.runs.journal.encoding` has them."""


class Journal:
    """The journal of one run, being replayed or being written.

    Replaying, `recall` returns the answers one by one. At the end of the last good record, the
    journal becomes one that is written.

    When it cannot be written any more (the disk is full, the limit is reached), the run goes on
    without: what is there stays good, and a resumed run repeats what came later.

    Args:
        path: of the file.
        head: what is said about the run. A new file begins with it; None opens the file that is
            there, to replay it.
        limit_gb: most bytes of the file, in 10^9; None sets no limit.
        sync_s: host seconds between two orders to write everything to the disk. A killed process
            loses nothing in any case; a power cut, what came after the last.
        code: hashes of the user's own code, by kind, for a file that is opened: where they are not
            those of its head, or of the latest change, a change is noted before it goes on.

    Attributes:
        head: what the file says about the run.
        changes: of the code, each with the number of answers before it, as far as they are known.
        size: bytes of the file up to its last good record.
        answers: given or kept so far.
        stopped: why nothing is written any more; None while it is.

    Raises:
        ConfigError: the file cannot be made, is missing, or its head is damaged.
    """

    def __init__(
        self,
        path: Path,
        head: Mapping[str, Any] | None,
        *,
        limit_gb: float | None = None,
        sync_s: float = 10.0,
        code: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self.changes: list[dict[str, Any]] = []
        self.stopped: str | None = None
        self.answers = 0
        self._limit = None if limit_gb is None else limit_gb * _GB
        self._sync_s = sync_s
        self._began = time.perf_counter()
        self._synced = time.monotonic()
        self._reader: IO[bytes] | None = None
        self._last = 0  # place of the last good record
        self._code = code
        if head is not None:
            self.head = dict(head)
            self._journal, self.size = _create(path, self.head)
        else:
            self.head, self._journal, self._reader = _opened(path)
            self.size = self._reader.tell()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW)

    @property
    def replaying(self) -> bool:
        """Whether there may be more answers to recall."""
        return self._reader is not None

    @property
    def wall_s(self) -> float:
        """Host seconds that the run has taken, in all processes that wrote this journal."""
        return time.perf_counter() - self._began

    def recall(self, kind: str, request: list[Any]) -> Answer | None:
        """Returns the next answer; None at the end of the journal, and ever after.

        Args:
            kind: of the question.
            request: what tells it from any other question, plain values.

        Raises:
            NotRepeated: the journal has the answer to another question here, so the run does not
                repeat itself.
            ConfigError: the next record belongs to another journal, or to another place in this.
        """
        if self._reader is None:
            return None
        answer = self._next(self._reader)
        while answer is not None and answer[0]["asked"] == [_CHANGE]:
            self.changes.append({"answers": self.answers, "code": answer[0].get("code")})
            answer = self._next(self._reader)
        if answer is None:
            self._go_on(self._reader)
            return None
        facts, records = answer
        self.check(facts["asked"], [kind, *request])
        self.answers += 1
        self._began = time.perf_counter() - facts["wall_s"]
        return facts, records

    @property
    def position(self) -> Position:
        """Where the journal is."""
        changes = list(self.changes)
        return Position(self._journal, self._last, self.size, self.answers, self.wall_s, changes)

    def skip(self, position: Position) -> None:
        """Goes on reading at a place that `check_position` has found good."""
        assert self._reader is not None
        self._reader.seek(position.size)
        self._last, self.size, self.answers = position.place, position.size, position.answers
        self.changes = list(position.changes)
        self._began = time.perf_counter() - position.wall_s

    def check_position(self, position: Position) -> None:
        """Checks that a place lies after what has been read, and between two records.

        Raises:
            ValueError: it does not, or belongs to another journal.
        """
        assert self._reader is not None
        if position.journal != self._journal:
            raise ValueError("it belongs to another journal")
        reader, here, place = self._reader, self._reader.tell(), self._last
        end = os.fstat(reader.fileno()).st_size
        try:
            while reader.tell() < position.size:
                frame = reader.read(_FRAME.size + _PLACE.size)
                if len(frame) < _FRAME.size + _PLACE.size:
                    break
                length = _FRAME.unpack_from(frame)[0]
                if _PLACE.unpack_from(frame, _FRAME.size) != (self._journal, place + 1):
                    break
                reader.seek(length - _PLACE.size, os.SEEK_CUR)
                place += 1
            good = (reader.tell(), place) == (position.size, position.place)
        finally:
            reader.seek(here)
        if not (good and position.size <= end):
            raise ValueError(f"{self.path} has no record that ends where it says")

    def check(self, then: list[Any], now: list[Any]) -> None:
        """Checks that a question is the one to which the journal has an answer.

        Args:
            then: kind and request of the first time.
            now: likewise.

        Raises:
            NotRepeated: it is another one.
        """
        if then == now:
            return
        why = (
            "Something decides that is neither in the configuration nor in the seed (the "
            "host's clock, threads, files, another processor)"
        )
        if self._code not in (None, self.head.get("code")):
            why = "Its code was changed, and asks something else than before"
        if EXTENDS in self.head:
            ((key, value),) = self.head[EXTENDS].items()
            why = (
                f"With {key}={value} it was not the beginning of the longer "
                "run: a schedule depends on the length, clients go on while others end, or the "
                "last model was evaluated out of turn (evaluate_every)"
            )
        raise NotRepeated(
            f"the run does not repeat itself: answer {self.answers + 1} of {self.path} is to "
            f"{then}, but now {now} was asked. {why}; the run cannot be resumed"
        )

    def note(
        self,
        kind: str,
        request: list[Any],
        facts: Mapping[str, Any],
        records: Mapping[str, RecordDict | None] | None = None,
    ) -> None:
        """Appends an answer.

        Args:
            kind: as for `recall`.
            request: as for `recall`.
            facts: plain values.
            records: message contents or client states, by name.
        """
        if self.stopped is not None:
            return
        from fl.runs.journal.encoding import encode

        whole = {**facts, "asked": [kind, *request], "wall_s": self.wall_s}
        try:
            parts = encode(whole, records or {})
        except (TypeError, ValueError) as error:
            self._stop(f"an answer to {kind} {request} cannot be kept: {error}")
            return
        self._append([_PLACE.pack(self._journal, self._last + 1), *parts])
        self.answers += kind != _CHANGE

    def remember(self, kind: str, request: list[Any], compute: Callable[[], Any]) -> Any:
        """Returns what `compute` returns, a plain value; on replay, what it returned then."""
        answer = self.recall(kind, request)
        if answer is not None:
            return answer[0]["value"]
        value = compute()
        self.note(kind, request, {"value": value})
        return value

    def has_room(self, size: int) -> bool:
        """Returns whether there may be so many bytes more."""
        return self._limit is None or self.size + size <= self._limit

    def sync(self) -> None:
        """Writes everything to the disk.

        Raises:
            OSError: it cannot be.
        """
        os.fsync(self._descriptor)
        self._synced = time.monotonic()

    def close(self) -> None:
        """Writes everything to the disk and closes the file; a second time does nothing."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                os.fsync(descriptor)
            except OSError as error:
                self._stop(_reason(error))
            os.close(descriptor)

    # ---- reading -----------------------------------------------------------------------------

    def _next(self, reader: IO[bytes]) -> Answer | None:
        from fl.runs.journal.encoding import decode

        try:
            record = _read_record(reader)
            if record is None:
                return None
            journal, place, data = record
            facts, records = decode(data)
            if not isinstance(facts["asked"], list) or not isinstance(facts["wall_s"], float):
                raise ValueError("it does not say what was asked")
        except (ValueError, TypeError, KeyError):
            return None
        if (journal, place) != (self._journal, self._last + 1):
            what = "one of another journal" if journal != self._journal else f"record {place}"
            raise ConfigError(
                f"{self.path} is no longer as it was written: after record {self._last} comes "
                f"{what}, so it was put together from parts, or a part of it is missing. Put the "
                f"original back, or delete {self.path.parent} and start the run again"
            )
        self._last = place
        self.size = reader.tell()
        return facts, records

    def _go_on(self, reader: IO[bytes]) -> None:
        """Cuts off what follows the last good record, and writes from there."""
        reader.close()
        self._reader = None
        lost = os.fstat(self._descriptor).st_size - self.size
        if lost:
            log.warning(
                "the last %d bytes of %s are damaged or incomplete: what they held is done again",
                lost,
                self.path,
            )
            os.ftruncate(self._descriptor, self.size)
        latest = self.changes[-1]["code"] if self.changes else self.head.get("code")
        if self._code not in (None, latest):
            self.changes.append({"answers": self.answers, "code": self._code})
            self.note(_CHANGE, [], {"code": self._code})
        log.info("resumed after %d answers of %s; training goes on", self.answers, self.path)

    # ---- writing -----------------------------------------------------------------------------

    def _append(self, record: list[Buffer]) -> None:
        parts = framed(record)
        length = sum(len(part) for part in parts)
        if not self.has_room(length):
            most_gb = (self._limit or 0) / _GB
            self._stop(f"it would be larger than checkpoint.limit_gb={most_gb:g}")
            return
        try:
            _write(self._descriptor, self.size, parts)
            self.size += length
            self._last += 1
            if time.monotonic() >= self._synced + self._sync_s:
                self.sync()
        except OSError as error:
            self._stop(_reason(error))

    def _stop(self, reason: str) -> None:
        if self.stopped is not None:
            return
        self.stopped = reason
        log.warning(
            "%s is not written any more: %s. The run goes on; if it is killed, what it does from "
            "here on has to be done again",
            self.path,
            reason,
        )


def read_head(path: Path) -> dict[str, Any]:
    """Returns what a journal says about its run.

    Raises:
        ConfigError: the file is missing, or its beginning is damaged.
    """
    head, _, reader = _opened(path)
    reader.close()
    return head


def longer(path: Path, new: Path, changes: Mapping[str, Any]) -> None:
    """Writes the journal that a longer run begins with: the answers of one that has completed.

    Args:
        path: of the journal that was kept.
        new: of the other one.
        changes: what its head says otherwise.

    Raises:
        ConfigError: the one cannot be read, or the other not written.
    """
    head, journal, reader = _opened(path)
    place = _PLACE.pack(journal, 0)
    with reader:
        try:
            with replacing(new) as temporary, temporary.open("wb") as file:
                text = json.dumps({**head, **changes}).encode()
                file.write(b"".join([_MAGIC, *framed([place, text])]))
                shutil.copyfileobj(reader, file, 2**20)
        except OSError as error:
            raise ConfigError(f"{new} cannot be written: {_reason(error)}") from error


def holds_answers(path: Path) -> bool:
    """Whether something would be lost if this file were replaced by a new journal.

    A journal that cannot be read, of another version of fl say, may hold anything.
    """
    if not path.is_file():
        return False
    try:
        reader = _opened(path)[2]
    except ConfigError:
        return True
    with reader:
        return bool(reader.read(1))


def check_replaceable(path: Path) -> None:
    """Checks that a new run may have a journal's place.

    Raises:
        ConfigError: it holds answers of a run that has not completed.
    """
    if holds_answers(path):
        directory = path.parents[1]
        raise ConfigError(
            f"{directory} holds a run that was stopped, and what its clients answered: fl resume "
            f"{directory} goes on with it. For a new run give another directory, hydra.run.dir=DIR,"
            f" or delete {path.parent} first"
        )


def _create(path: Path, head: Mapping[str, Any]) -> tuple[int, int]:
    """Makes a journal of a head alone, whole or not at all.

    Returns:
        What tells its records from any other journal's, and its size in bytes.
    """
    journal = int.from_bytes(os.urandom(8))
    place = _PLACE.pack(journal, 0)
    data = b"".join([_MAGIC, *framed([place, json.dumps(head).encode()])])
    try:
        with replacing(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {_reason(error)}") from error
    return journal, len(data)


def _opened(path: Path) -> tuple[dict[str, Any], int, IO[bytes]]:
    try:
        file = open(path, "rb")  # noqa: SIM115  (the journal keeps it open)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {_reason(error)}") from error
    try:
        if file.read(len(_MAGIC)) != _MAGIC:
            raise ValueError("it is no journal, or one of another version of fl")
        record = _read_record(file)
        if record is None:
            raise ValueError("its beginning is incomplete")
        journal, place, data = record
        head = json.loads(bytes(data))
        if place or not isinstance(head, dict):
            raise ValueError("its beginning says nothing about a run")
    except (OSError, ValueError, RecursionError) as error:
        file.close()
        raise ConfigError(f"{path} cannot be used: {error}; start the run again") from error
    return head, journal, file


def _read_record(file: IO[bytes]) -> tuple[int, int, memoryview] | None:
    """Returns the next record, None at the end of the file.

    Returns:
        The journal it belongs to, its place there, and its bytes.

    Raises:
        ValueError: what follows is damaged or incomplete.
    """
    data = read_frame(file)
    if data is None:
        return None
    if len(data) < _PLACE.size:
        raise ValueError("a record is damaged")
    journal, place = _PLACE.unpack_from(data)
    return journal, place, data[_PLACE.size :]


def read_frame(file: IO[bytes]) -> memoryview | None:
    """Returns the bytes that `framed` was given; None at the end of the file.

    Raises:
        ValueError: what follows is damaged or incomplete.
    """
    frame = file.read(_FRAME.size)
    if not frame:
        return None
    if len(frame) < _FRAME.size:
        raise ValueError("a record is incomplete")
    length, crc = _FRAME.unpack(frame)
    if length > os.fstat(file.fileno()).st_size - file.tell():  # before memory is asked for
        raise ValueError("a record is incomplete")
    data = memoryview(file.read(length))
    if len(data) < length or zlib.crc32(data) != crc:
        raise ValueError("a record is damaged")
    return data


def framed(parts: list[Buffer]) -> list[Buffer]:
    """Returns parts as one record: with their length and CRC-32 before them."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(part, crc)
    return [_FRAME.pack(sum(len(part) for part in parts), crc), *parts]


def _write(descriptor: int, size: int, parts: list[Buffer]) -> None:
    """Appends all parts to a file of so many bytes, or none.

    Raises:
        OSError: it cannot be done.
    """
    if len(parts) > _MANY_PARTS:
        parts = [b"".join(parts)]
    try:
        written = os.writev(descriptor, parts)
        if written < sum(len(part) for part in parts):  # the disk is full, or a signal came
            rest = memoryview(b"".join(parts))
            while written < len(rest):
                written += os.write(descriptor, rest[written:])
    except BaseException:  # the user's interruption as well: half a record would end the journal
        os.ftruncate(descriptor, size)
        raise


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full"
    return error.strerror or str(error)
