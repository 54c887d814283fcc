"""Snapshots of a run between two rounds, from which it goes on without repeating what was before.

A snapshot is a file beside the journal that says where in the journal the run was, and what lasts
of its parts from one round to the next (`lasting`). A run that goes on begins as every run does,
fills its parts with that before its first round, and repeats only what the journal has after it. A
snapshot saves time and nothing else: without it, the journal has the whole run.

Who has nothing of a run but these attributes takes part by naming them. Strategies that do not, and
fleets in which something is always under way, are repeated from their beginning.

The events of the trace so far are in a file of their own, which grows with the run.
"""

from __future__ import annotations

import json
import logging
import os
import random
import time
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fl.errors import ConfigError
from fl.reports.atomic import replacing
from fl.reports.files import opened
from fl.runs.journal.encoding import Views, cut
from fl.runs.journal.journal import Journal, Position, framed, read_frame
from fl.runs.journal.lasting import Read, Written
from fl.simulation.kernel.trace import ROW_TYPE

if TYPE_CHECKING:
    from fl.runs.evaluation import EvaluationSchedule
    from fl.runs.journal.replay import Journaled
    from fl.runs.recorder import Recorder
    from fl.simulation.grid import SimGrid

log = logging.getLogger("fl.runs.journal")

SNAPSHOT, EVENTS = "snapshot", "events"
"""Files in the run's checkpoint: the latest snapshot, and the events of the trace."""

_MAGIC = b"fl-snapshot-1\n"
_LENGTH = 8  # bytes that say how long the description is
_SHARE = 0.01  # of the run's time that snapshots may take, beyond the first
_CHUNK = 2**22


@dataclass(frozen=True)
class Snapshot:
    """What a file says of a run.

    Attributes:
        path: of the file.
        position: in the journal.
        events: rows of the trace, and their CRC-32.
        parts: what lasts of them, by name.
        generators: states of the global generators.
        views: the numbers behind that.
    """

    path: Path
    position: Position
    events: tuple[int, int]
    parts: Mapping[str, Any]
    generators: Any
    views: Views


class RunSnapshots:
    """Writes snapshots of one run, and fills its parts with the one that it goes on from.

    See `fl.flower.grid_view.Snapshots`.

    Args:
        folder: of the checkpoint.
        journal: of the run.
        executor: whose results the journal has.
        grid: of the run.
        recorder: of the run.
        schedule: of its evaluations.
        every_s: least host seconds between two snapshots; further apart where they cost more than
            a hundredth of the run.
        found: to go on from; None begins.
    """

    def __init__(
        self,
        folder: Path,
        journal: Journal,
        executor: Journaled,
        grid: SimGrid,
        recorder: Recorder,
        schedule: EvaluationSchedule,
        *,
        every_s: float,
        found: Snapshot | None,
    ) -> None:
        self._path, self._events = folder / SNAPSHOT, folder / EVENTS
        self._journal = journal
        self._executor = executor
        self._grid = grid
        self._recorder = recorder
        self._schedule = schedule
        self._every_s = every_s
        self._found = found
        self._parts: dict[str, object] = {}  # none where there will be no snapshot
        self._due = time.monotonic() + every_s

    def begin(self, parts: Mapping[str, object]) -> None:
        """Fills the parts from the snapshot, if there is one.

        Raises:
            ConfigError: they have nothing of the kind.
        """
        if not parts or self._grid.never_rests:
            return
        own = {"grid": self._grid, "recorder": self._recorder, "schedule": self._schedule}
        self._parts = {**own, **parts}
        self._grid.trace.keep_in(self._events)
        if self._found is None:
            return
        found, self._found = self._found, None
        known = len(self._recorder.writer.history)
        now = Written()
        try:
            for part in self._parts.values():
                now.state(part)
            read = Read(found.views, now.classes)
            if found.parts.keys() != self._parts.keys():
                raise ValueError(f"it has the parts {sorted(found.parts)}")
            for name, part in self._parts.items():
                read.into(part, found.parts[name])
            python, numpy, pytorch = read.value(found.generators)
            _set_generators(python, numpy, pytorch)
        except (ValueError, TypeError, RuntimeError) as error:
            raise _useless(found.path, error) from error
        self._journal.skip(found.position)
        read.fill()
        self._grid.trace.go_on(*found.events)
        self._recorder.go_on(self._schedule.evaluate, known)
        log.info("goes on from %s, after %d answers", found.path, found.position.answers)
        self._due = time.monotonic() + self._every_s

    def rest(self) -> None:
        """Writes a snapshot, if one is due and nothing is under way."""
        if not self._parts or self._journal.replaying or time.monotonic() < self._due:
            return
        if self._journal.stopped is not None:  # what came since then is in no journal
            return
        if self._grid.at_rest and self._recorder.at_rest and self._executor.at_rest:
            began = time.perf_counter()
            self._write()
            cost_s = time.perf_counter() - began
            self._due = time.monotonic() + max(self._every_s, cost_s / _SHARE)

    def _write(self) -> None:
        written = Written()
        try:
            parts = {name: written.state(part) for name, part in self._parts.items()}
            generators = written.value(_generators())
            events = self._grid.trace.kept()
            self._journal.sync()
            position = self._journal.position
            head = json.dumps(
                [asdict(position), events, parts, generators, written.blobs.lengths],
                separators=(",", ":"),
            ).encode("ascii")
            size = len(head) + sum(written.blobs.lengths)
            if not self._journal.has_room(size):
                self._end(f"it would have {size} bytes, for which checkpoint.limit_gb has no room")
                return
            data = [len(head).to_bytes(_LENGTH, "little"), head, *written.blobs.buffers]
            with replacing(self._path) as temporary, open(temporary, "wb") as file:
                file.write(_MAGIC)
                file.writelines(framed(data))
        except (TypeError, ValueError, OverflowError) as error:
            self._end(str(error))
        except OSError as error:
            self._end(error.strerror or str(error))

    def _end(self, reason: str) -> None:
        self._parts = {}
        log.info(
            "there is no further snapshot of this run, which is repeated from the last one, or its "
            "beginning, if it is resumed: %s",
            reason,
        )


def read_snapshot(folder: Path, journal: Journal) -> Snapshot | None:
    """Returns the snapshot in a checkpoint; None if there is none.

    Args:
        folder: of the checkpoint.
        journal: that is to be replayed.

    Raises:
        ConfigError: it is damaged, or not of this run.
    """
    path = folder / SNAPSHOT
    if not os.path.lexists(path):
        return None
    with opened(path, path.lstat().st_size) as file:
        try:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise ValueError("it is none, or one of another version of fl")
            data = read_frame(file)
            if data is None or file.read(1):
                raise ValueError("it is not as long as it was written")
            begin = _LENGTH + int.from_bytes(data[:_LENGTH], "little")
            told, events, parts, generators, lengths = json.loads(bytes(data[_LENGTH:begin]))
            views = cut(data[begin:], lengths)
            position, rows = Position(**told), (*map(int, events),)
            if not isinstance(parts, dict) or len(rows) != 2 or min(rows) < 0:
                raise ValueError("it does not say what lasts of a run")
            _check(position)
            journal.check_position(position)
            _check_events(folder / EVENTS, *rows)
        except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
            raise _useless(path, error) from error
    return Snapshot(path, position, rows, parts, generators, views)


def remove_snapshot(folder: Path) -> None:
    """Removes the snapshot of a checkpoint, if there is one, and the events with it."""
    for name in (SNAPSHOT, EVENTS):
        (folder / name).unlink(missing_ok=True)


def _useless(path: Path, error: Exception) -> ConfigError:
    return ConfigError(
        f"{path} cannot be used: {error}. Delete it: the run is then repeated from its beginning, "
        "by its journal"
    )


def _check(position: Position) -> None:
    whole = (position.journal, position.place, position.size, position.answers)
    if not all(type(number) is int and number >= 0 for number in whole):
        raise ValueError("it does not say where in the journal it is")
    if type(position.wall_s) is not float or type(position.changes) is not list:
        raise ValueError("it does not say what was before it")


def _check_events(path: Path, rows: int, crc: int) -> None:
    """Raises ValueError if a file does not begin with so many events of that CRC-32."""
    left, found = rows * ROW_TYPE.itemsize, 0
    if not os.path.lexists(path):
        raise ValueError(f"{path} is missing")
    with opened(path, path.lstat().st_size) as file:
        while left > 0 and (data := file.read(min(left, _CHUNK))):
            found = zlib.crc32(data, found)
            left -= len(data)
    if left or found != crc:
        raise ValueError(f"the first {rows} events in {path} are damaged")


def _generators() -> tuple[Any, Any, Any]:
    """Returns the states of the global generators of `random`, NumPy and torch."""
    import torch

    numpy = np.random.get_state(legacy=True)  # noqa: NPY002  (rules of others may draw from it)
    return random.getstate(), numpy, torch.get_rng_state().numpy()


def _set_generators(python: Any, numpy: Any, pytorch: Any) -> None:
    import torch

    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(torch.from_numpy(pytorch))
