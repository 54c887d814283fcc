"""A run that was killed, at any moment and any number of times, ends as if it had not been."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killing import KEEPING, RUNS, Run, outcome

import fl.runs.journal.recovery as recovery_module
import fl.runs.journal.snapshots as snapshots_module


@pytest.fixture(scope="module", autouse=True)
def at_any_price() -> Iterator[None]:
    """Lets snapshots, of the run that takes them, take all of its time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshots_module, "_SHARE", 1e9)
        yield


@pytest.fixture(scope="module", params=RUNS)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def run(name: str) -> Run:
    return Run({**RUNS, **KEEPING}[name])


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """What the run leaves behind when nobody kills it, and its journal."""
    directory = tmp_path_factory.mktemp("whole")
    kept = directory / "kept"
    with pytest.MonkeyPatch.context() as patch:
        close = recovery_module.Journal.close

        def keeping(journal: Any) -> None:
            close(journal)
            shutil.copy(journal.path, kept)

        patch.setattr(recovery_module.Journal, "close", keeping)
        run(directory / "run")
    return outcome(directory / "run"), kept


def kill_and_resume(
    run: Run, whole: tuple[Any, Path], directory: Path, times: int, seed: int
) -> None:
    """Kills one run again and again, each time further on, and compares what it leaves behind."""
    expected, kept = whole
    rng = np.random.default_rng(seed)
    moments = np.sort(rng.integers(1, kept.stat().st_size, times)).tolist()
    for i, moment in enumerate(moments):
        assert run.killed(directory, moment, resume=i > 0)
    run(directory, resume=True)
    assert outcome(directory) == expected


def test_run_killed_at_random_moments_ends_like_one_that_was_not(
    run: Run, whole: tuple[Any, Path], tmp_path: Path
) -> None:
    kill_and_resume(run, whole, tmp_path, 2, seed=0)


@pytest.mark.slow
def test_run_killed_200_times_ends_like_one_that_was_not(
    run: Run, whole: tuple[Any, Path], tmp_path: Path
) -> None:
    kill_and_resume(run, whole, tmp_path, 200, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", KEEPING, indirect=True)
def test_run_that_keeps_parts_or_models_of_clients_ends_like_one_that_was_not_killed(
    run: Run, whole: tuple[Any, Path], tmp_path: Path
) -> None:
    kill_and_resume(run, whole, tmp_path, 4, seed=2)
