"""What a sweep's jobs left: the list of them, and how they are told apart."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from fl.errors import ConfigError
from fl.reports.files import read_file

if TYPE_CHECKING:
    from fl.reports.runs import Run

JOBS = "jobs.jsonl"
"""What became of the jobs of the last command that swept into a directory, one JSON a line."""

_JOBS_BYTES = 64 * 10**6  # most that this list may have
_OF_HYDRA_BYTES = 10**5  # and each of the files that Hydra writes about a run
_MAIN = ("strategy", "data", "compressor")  # groups


@dataclass(frozen=True)
class Job:
    """What became of a job.

    Attributes:
        number: of the job, as Hydra counts.
        overrides: those in which the jobs differ, "key=value,key=value".
        status: "skipped" is a job that had been completed before.
        directory: where its run is.
        reason: why it failed.
    """

    number: int
    overrides: str
    status: Literal["completed", "skipped", "failed"]
    directory: str
    reason: str | None = None

    def __str__(self) -> str:
        """Names the job in a message."""
        return f"job {self.number} ({self.overrides})" if self.overrides else f"job {self.number}"


def read_jobs(directory: Path) -> list[Job]:
    """Returns the jobs of the last command that swept into a directory, those that came to an end.

    A line that cannot be read, of a disk that ran full, is left out.
    """
    path = directory / JOBS
    jobs: list[Job] = []
    for line in read_file(path, _JOBS_BYTES).splitlines() if path.exists() else ():
        try:
            job = Job(**json.loads(line))
            Path(job.directory).resolve()  # refuses what is no name of a folder
        except (ValueError, TypeError, RecursionError):
            continue
        texts = (job.overrides, job.status, job.directory, job.reason or "")
        if type(job.number) is int and all(isinstance(text, str) for text in texts):
            jobs.append(job)
    return sorted(jobs, key=lambda job: job.number)


EVERY = "all runs"
"""The label of runs of which nothing was overridden differently."""

DEFAULTS = "defaults"
"""The label of runs that override nothing of what others beside them do."""


def by_overrides(runs: Sequence[Run], beside: Sequence[Run] = ()) -> dict[str, list[Run]]:
    """Returns a sweep's runs under labels made of what was overridden differently, but the seed.

    Runs with equal overrides whose configurations differ all the same (they were made by two
    versions of the defaults) are told apart by what differs.

    Args:
        runs: any.
        beside: others that are shown with them, from which labels tell them apart as well.
    """
    from fl.reports.runs import bears_on_results, group_runs

    changed = [overrides(run) for run in runs]
    every = [*changed, *map(overrides, beside)]
    keys = dict.fromkeys(key for found in every for key in found)
    varying = [
        key
        for key in keys
        if key != "seed" and bears_on_results(key) and len({found.get(key) for found in every}) > 1
    ]
    groups: dict[str, list[Run]] = {}
    for run, found in zip(runs, changed, strict=True):
        parts = [f"{key}={found[key]}" for key in varying if key in found]
        groups.setdefault(", ".join(parts), []).append(run)
    labelled: dict[str, list[Run]] = {}
    for label, group in groups.items():
        alike = group_runs(group)
        for difference, members in alike.items():
            parts = [part for part in (label, difference if len(alike) > 1 else "") if part]
            labelled[", ".join(parts) or (DEFAULTS if varying else EVERY)] = members
    return labelled


def title(run: Run) -> str:
    """Returns what a run that nothing is beside is called: its overrides, or its main parts."""
    from fl.reports.runs import bears_on_results

    found = {k: v for k, v in overrides(run).items() if k != "seed" and bears_on_results(k)}
    if not found:
        chosen = members(run)
        found = {what: chosen[what] for what in _MAIN if what in chosen}
    return ", ".join(f"{key}={value}" for key, value in found.items()) or EVERY


def members(run: Run) -> dict[str, str]:
    """Returns which member of each group a run has, of those groups of which it has one.

    Of a run that Hydra did not start, they are the classes of its configuration's parts.
    """
    settings = _of_hydra(run, "hydra.yaml")
    for key in ("hydra", "runtime", "choices"):
        settings = settings.get(key) if isinstance(settings, Mapping) else None
    if isinstance(settings, Mapping):
        return {
            str(group): member
            for group, member in settings.items()
            if isinstance(member, str) and not str(group).startswith(("_base/", "hydra/"))
        }
    found = {}
    for what, part in run.summary["config"].items():
        rule = part.get("rule", part) if isinstance(part, Mapping) else None
        if isinstance(rule, Mapping) and isinstance(rule.get("_target_"), str):
            found[str(what)] = rule["_target_"].rpartition(".")[2]
    return found


def overrides(run: Run) -> dict[str, str]:
    """Returns what the command line of a run changed.

    That is nothing for runs that Hydra did not start, or if its list is none.
    """
    lines = _of_hydra(run, "overrides.yaml")
    if not isinstance(lines, list):
        lines = []
    given = [line for line in lines if isinstance(line, str)]
    taken = [f"{line[1:]}=null" if line[:1] == "~" and "=" not in line else line for line in given]
    return dict(line.partition("=")[::2] for line in taken)


def _of_hydra(run: Run, name: str) -> Any:
    """Returns what Hydra wrote about a run; None if it did not, or if that cannot be read."""
    if run.directory is None:
        return None
    path = run.directory / ".hydra" / name
    try:
        return yaml.safe_load(read_file(path, _OF_HYDRA_BYTES)) if path.exists() else None
    except (ConfigError, RecursionError, ValueError, yaml.YAMLError):
        return None
