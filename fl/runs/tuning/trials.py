"""Runs of points, each in a folder of its own and as far as it has been promoted.

What begins a run is a command line, in a process that has no other: `fl KEY=VALUE ...` for the
first rung, and `fl resume DIR num_rounds=N` from each to the next: nothing is trained twice.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import shutil
import sys
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from fl.errors import ConfigError
from fl.reports.runs import Run, read_run
from fl.runs.journal.claim import FOLDER
from fl.runs.tuning.space import Point

Length = Literal["num_rounds", "time_limit_s"]
_LONGEST_NAME = 100  # of a point's folder


@dataclass(frozen=True)
class Trials:
    """Where points run, and how far.

    Attributes:
        folder: of all runs.
        fixed: overrides of all runs.
        seeds: of a point's runs.
        length: the key by which a run is short or long.
        rungs: its values, ascending.
    """

    folder: Path
    fixed: tuple[str, ...]
    seeds: tuple[int, ...]
    length: Length
    rungs: tuple[float, ...]

    def place(self, point: Point, seed: int, rung: int) -> Path:
        """Returns the folder of a run."""
        name = re.sub(r"[^\w=,.+-]", "_", ",".join(point))[:_LONGEST_NAME]
        digest = hashlib.sha256("\n".join([*self.fixed, *point]).encode()).hexdigest()[:8]
        further = "".join(f"-{n}" for n in self.rungs[1 : rung + 1])
        return self.folder / f"{name}-{digest}" / f"seed={seed}-{self.rungs[0]}{further}"

    def words(self, point: Point, seed: int, rung: int) -> list[str]:
        """Returns the overrides of a run that begins."""
        return [*self.fixed, *point, f"seed={seed}", f"{self.length}={self.rungs[rung]}"]

    def run(self, point: Point, rung: int) -> str:
        """Runs a point's seeds to a rung, in this process; returns why not, if it cannot."""
        for seed in self.seeds:
            if self.result(point, seed, rung) is None:
                problem = self._run(point, seed, rung)
                if problem:
                    return problem
        return ""

    def result(self, point: Point, seed: int, rung: int) -> Run | None:
        """Returns a run that has been made; None if it has not, or not to its end."""
        try:
            run = read_run(self.place(point, seed, rung))
        except ConfigError:
            return None
        return run if run.summary["status"] in ("completed", "diverged") else None

    def _run(self, point: Point, seed: int, rung: int) -> str:
        place = self.place(point, seed, rung)
        place.parent.mkdir(parents=True, exist_ok=True)
        if (place / FOLDER).is_dir() and not _fl("resume", str(place), log=place):
            return ""
        shutil.rmtree(place, ignore_errors=True)
        if rung:
            before = self.place(point, seed, rung - 1)
            longer = f"{self.length}={self.rungs[rung]}"
            if (before / FOLDER).is_dir() and not _fl("resume", str(before), longer, log=place):
                forget(before)
                return ""
            shutil.rmtree(place, ignore_errors=True)  # whose length decides how it begins
        words = self.words(point, seed, rung)
        quoted = str(place).replace("\\", "\\\\").replace("'", "\\'")
        return _fl(*words, "checkpoint.keep=true", f"hydra.run.dir='{quoted}'", log=place)


def forget(place: Path) -> None:
    """Removes what a run kept for being made longer."""
    shutil.rmtree(place / FOLDER, ignore_errors=True)


def _fl(*words: str, log: Path) -> str:
    """Does what `fl` does with these words; returns the last line of an error, if there is one.

    Args:
        words: of the command line.
        log: of the run; what it prints goes to a file beside it.
    """
    from fl.cli import main  # which reads the command line that has brought us here

    file = log.with_name(f"{log.name}.log")
    with file.open("a", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    cwd, sys.argv = Path.cwd(), ["fl", *words]
    try:
        main()
    except SystemExit as end:
        if end.code:
            sys.stderr.flush()
            lines = file.read_text("utf-8", "replace").split("\n")
            told = [line for line in lines if line.startswith("fl: ")]
            return told[-1].removeprefix("fl: ") if told else f"it ended with status {end.code}"
    finally:
        os.chdir(cwd)  # a run that goes on does so where it was started
    return ""


class Workers:
    """Processes in which points run, each with PyTorch loaded once.

    Args:
        number: of them.
        trials: what they run.
    """

    def __init__(self, number: int, trials: Trials) -> None:
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(number, mp_context=context)
        self._trials = trials

    def run(self, point: Point, rung: int) -> Future[str]:
        """Begins to run a point."""
        return self._pool.submit(self._trials.run, point, rung)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            for process in multiprocessing.active_children():
                process.terminate()  # each run can go on from its journal
        self._pool.shutdown(cancel_futures=True)
