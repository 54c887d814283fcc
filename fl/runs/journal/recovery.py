"""What a run does to survive its process, and what it checks before it goes on."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, MetricRecord, RecordDict

from fl.checks import boolean
from fl.errors import ConfigError
from fl.execution.executor import Executor
from fl.reports.files import printable
from fl.runs.journal.claim import FOLDER, Claim
from fl.runs.journal.command import COMMAND, resume_command
from fl.runs.journal.encoding import checksum, encode
from fl.runs.journal.journal import EXTENDS, FILE, LENGTHS, Journal, NotRepeated, check_replaceable
from fl.runs.journal.replay import Journaled
from fl.runs.journal.snapshots import RunSnapshots, Snapshot, read_snapshot, remove_snapshot

if TYPE_CHECKING:
    from fl.runs.evaluation import EvaluationSchedule
    from fl.runs.recorder import Recorder
    from fl.simulation.grid import SimGrid

log = logging.getLogger("fl")

again = logging.getLogger("fl.runs.journal")

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord]

_SOURCES = (".py", ".yaml")


@dataclass(frozen=True)
class RunStart:
    """How a run was started.

    Attributes:
        command: what it takes to start it again; `fl resume` reads it.
        code: hashes of the user's own code, by kind, which must not have changed either when it is
            resumed, unless the user says so.
        foreign: what `fl resume` has to be allowed to use.
        obstacle: why it could not be resumed; None if it can.
        resume: go on with the journal that is in the directory.
        changed_code: go on with other code than the run began with.
    """

    command: Mapping[str, Any] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)
    foreign: Sequence[str] = ()
    obstacle: str | None = None
    resume: bool = False
    changed_code: bool = False


class Recovery:
    """Keeps a journal of a run, from which `fl resume DIR` continues it; see `journal`.

    A run that completes removes its journal, or keeps it for a longer one.

    Args:
        limit_gb: most bytes of the journal, in 10^9: each client's reply is kept, and what it
            remembers. What comes after is not kept; None sets no limit.
        sync_s: host seconds between two orders to write everything to the disk, against power cuts.
        trust: keep a journal also where a ServerApp that is not ours uses what does not repeat.
        snapshot_s: least host seconds between two snapshots, which spare a run that goes on the
            repetition of what was before the last one; None takes none.
        keep: keep it when the run has completed, for `fl resume DIR num_rounds=...`.
        start: how the run was started.

    Raises:
        ConfigError: a number is out of its range.
    """

    def __init__(
        self,
        limit_gb: float | None = 20.0,
        sync_s: float = 10.0,
        trust: bool = False,
        keep: bool = False,
        start: RunStart | None = None,
        snapshot_s: float | None = 10.0,
    ) -> None:
        for name, value in (
            ("limit_gb", limit_gb),
            ("sync_s", sync_s),
            ("snapshot_s", snapshot_s),
        ):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} is {value}; it must be positive and finite")
        self.limit_gb = limit_gb
        self.sync_s = sync_s
        self.snapshot_s = snapshot_s
        boolean("keep", keep)
        self.trust = trust
        self.keep = keep
        self._start = RunStart() if start is None else start
        self._keeps = True
        self._stopped = False
        self._journal: Journal | None = None
        self._journaled: Journaled | None = None
        self._snapshot: Snapshot | None = None  # to go on from

    @classmethod
    def none(cls, start: RunStart | None = None) -> Recovery:
        """Returns the recovery of a run that keeps no journal."""
        recovery = cls(start=start, trust=True)
        recovery._keeps = False
        return recovery

    def of_app(self, code: str, obstacle: str | None) -> Recovery:
        """Returns the same recovery for a run of a Flower app.

        Args:
            code: hash of its files.
            obstacle: why its ServerApp could not be resumed; None if it can.
        """
        recovery = copy(self)
        start = self._start
        recovery._start = replace(start, code={**start.code, "app": code}, obstacle=obstacle)
        return recovery

    @contextmanager
    def keeping(
        self,
        directory: Path | None,
        facts: Mapping[str, Any],
        shorter: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> Iterator[None]:
        """Claims the directory and keeps the journal there, for the run in the block.

        A block that ends without an exception is a run that has completed: nothing is left to be
        resumed, and the journal is removed, unless it is to be kept.

        Args:
            directory: of the run; None keeps nothing.
            facts: what must not have changed when the run is resumed.
            shorter: returns the facts of the same run with another length, num_rounds or
                time_limit_s; None: it has none.

        Raises:
            ConfigError: another run has the directory, or it cannot be written; or a run that is to
                be resumed cannot be.
        """
        if directory is None:
            yield
            return
        claim = Claim(directory)
        completed = False
        try:
            self._journal = self._opened(claim.folder / FILE, facts, shorter)
            yield
            completed = True
        except (ConfigError, NotRepeated):
            raise  # and would again
        except BaseException as error:
            self._tell_how_to_go_on(directory, error)
            raise
        finally:
            if self._journal is not None:
                self._journal.close()
            if completed:
                for name in (COMMAND,) if self.keep else (FILE, COMMAND):
                    (claim.folder / name).unlink(missing_ok=True)
                remove_snapshot(claim.folder)
            claim.release(remove=completed)

    def _tell_how_to_go_on(self, directory: Path, error: BaseException) -> None:
        if self._journal is None or not self._start.command:
            return
        command = resume_command(directory, self._start.foreign)
        if isinstance(error, KeyboardInterrupt):
            again.info("this run can go on: %s", command)
            return
        refused = "; other versions, data or source of fl will be refused"
        if self._start.code:
            refused += ", and changed code of your own unless --changed-code is given"
        again.info("this run can go on when the cause is gone: %s%s", command, refused)

    def _opened(
        self,
        path: Path,
        facts: Mapping[str, Any],
        shorter: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None,
    ) -> Journal | None:
        start = self._start
        head: dict[str, Any] = {"command": dict(start.command)}
        obstacle = None if self.trust else start.obstacle
        if obstacle is not None and not start.resume:
            log.warning("this run cannot be resumed if it is stopped: %s", obstacle)
        if not self._keeps:
            obstacle = "it was started with checkpoint=off"
        if not start.resume:
            check_replaceable(path)
            remove_snapshot(path.parent)
        if obstacle is not None and not start.resume:
            # A head alone: whoever wants to resume the run is told why it cannot be.
            Journal(path, {**head, "obstacle": obstacle}).close()
            return None
        source = {"source": source_sha256()}
        facts = {**facts, **source}
        if start.resume:
            return self._reopened(
                path, facts, lambda before: {**(shorter or _no_shorter)(before), **source}
            )
        head |= {"facts": facts, "code": dict(start.code)}
        return Journal(path, head, limit_gb=self.limit_gb, sync_s=self.sync_s)

    def _reopened(
        self,
        path: Path,
        facts: Mapping[str, Any],
        shorter: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    ) -> Journal:
        code = dict(self._start.code)
        journal = Journal(path, None, limit_gb=self.limit_gb, sync_s=self.sync_s, code=code)
        try:
            check_head(path, journal.head)
            directory = path.parents[1]
            if EXTENDS in journal.head:
                facts = shorter(journal.head[EXTENDS])
            _check_unchanged(directory, journal.head["facts"], facts)
            if not self._start.changed_code:
                remedy = "; with --changed-code, the code as it is now answers what is left"
                _check_unchanged(directory, journal.head["code"], code, remedy)
                self._snapshot = read_snapshot(path.parent, journal)
            else:  # what lasts may be something else now
                remove_snapshot(path.parent)
        except BaseException:
            journal.close()
            raise
        return journal

    def report(self) -> dict[str, Any]:
        """Returns what the summary says.

        That is why the journal ends before the run, if it does, and after how many answers the
        user's code became another, with the hashes of what it became.
        """
        told: dict[str, Any] = {}
        if self._journal is not None and self._journal.stopped is not None:
            told["journal_stopped"] = self._journal.stopped
        if self._journal is not None and self._journal.changes:
            told["changed_code"] = self._journal.changes
        return told

    @property
    def replaying(self) -> bool:
        """Whether there may be answers that are not asked for yet."""
        return self._journal is not None and self._journal.replaying

    @property
    def wall_s(self) -> float | None:
        """Host seconds that the run took, in all its processes; None if nobody counts them."""
        return None if self._journal is None else self._journal.wall_s

    def executor(self, executor: Executor, *, keeps_errors: bool = True) -> Executor:
        """Returns an executor whose results are kept; see `Journaled` for `keeps_errors`."""
        if self._journal is None:
            return executor
        self._journaled = Journaled(executor, self._journal, keeps_errors=keeps_errors)
        return self._journaled

    def snapshots(
        self, grid: SimGrid, recorder: Recorder, schedule: EvaluationSchedule
    ) -> RunSnapshots | None:
        """Returns who keeps what there is of a run between rounds; None if nobody does."""
        if self._journal is None or self._journaled is None or self.snapshot_s is None:
            return None
        return RunSnapshots(
            self._journal.path.parent,
            self._journal,
            self._journaled,
            grid,
            recorder,
            schedule,
            every_s=self.snapshot_s,
            found=self._snapshot,
        )

    def remember(self, kind: str, request: list[Any], compute: Callable[[], Any]) -> Any:
        """Returns what `compute` returns, a plain value that a resumed run finds again.

        Args:
            kind: of the question.
            request: what tells it from any other of its kind, plain values.
            compute: answers it.
        """
        if self._journal is None or self._stopped:
            return compute()
        return self._journal.remember(kind, request, compute)

    def stop(self) -> None:
        """Keeps no further answers: the run has been stopped, and asks for them when it goes on."""
        self._stopped = True

    def evaluating(self, evaluate: EvaluateFn) -> EvaluateFn:
        """Returns `evaluate` with its results kept: a resumed run does not evaluate again.

        Args:
            evaluate: a function of round and model without any other effect.
        """
        if self._journal is None:
            return evaluate

        def kept(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            model = checksum(encode({}, {"": RecordDict({"": arrays})}))
            metrics: dict[str, Any] = self.remember(
                "evaluation",
                [server_round, model],
                lambda: dict(evaluate(server_round, arrays).items()),
            )
            return MetricRecord(metrics)

        return kept


def _no_shorter(before: Mapping[str, Any]) -> Mapping[str, Any]:
    raise ConfigError("this run has no length, and cannot go on from a shorter one")


def check_head(path: Path, head: Mapping[str, Any]) -> None:
    """Checks that a journal with this head can be resumed.

    Raises:
        ConfigError: it cannot; the message says why.
    """
    obstacle = head.get("obstacle")
    if obstacle is not None:
        raise ConfigError(f"{path.parents[1]} cannot be resumed: {obstacle}")
    if not isinstance(head.get("facts"), dict) or not isinstance(head.get("code"), dict):
        raise ConfigError(f"{path} cannot be used: it says nothing about its run")
    if EXTENDS not in head:
        return
    before = head[EXTENDS]
    if not isinstance(before, dict) or len(before) != 1 or not {*before} <= {*LENGTHS}:
        raise ConfigError(f"{path} cannot be used: it does not say what it makes longer")


def _check_unchanged(
    directory: Path, before: Mapping[str, Any], now: Mapping[str, Any], remedy: str = ""
) -> None:
    for name, value in before.items():
        if now.get(name) != value:
            raise ConfigError(
                f"{directory} cannot be resumed: its {name} was {printable(str(value))} when it "
                f"began, and is {now.get(name)} now. Put it back, or delete {directory / FOLDER} "
                f"and start the run again{remedy}"
            )


def source_sha256(paths: Iterable[Path] | None = None) -> str:
    """Returns the hash of source files, by default of fl's own code and configuration.

    Its own are hashed once in a process: that runs what it has loaded.
    """
    return _own_sha256() if paths is None else _sha256(paths)


@cache
def _own_sha256() -> str:
    root = Path(str(files("fl")))
    return _sha256(path for path in root.rglob("*") if path.suffix in _SOURCES)


def _sha256(paths: Iterable[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        digest.update(f"{path.name}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
