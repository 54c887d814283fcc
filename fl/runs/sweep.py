"""Sweeps: where their jobs go, which of them are done already, and what compares them at the end.

Hydra's sweeper makes the jobs and its launcher runs them: one after another in this process, or
side by side in others with `hydra/launcher=joblib`. What jobs must tell the process that waits for
them therefore goes through files of the sweep's directory.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fl.errors import ConfigError
from fl.reports.atomic import replacing
from fl.reports.files import SUMMARY_BYTES, printable, read_file
from fl.reports.jobs import JOBS, Job, by_overrides, read_jobs
from fl.runs.waiting import telling

if TYPE_CHECKING:
    from fl.reports.runs import Run

FILE = "comparison.png"
_WIDTH = 200
# Keys of executor=auto that ask for Ray; the address is of one that runs.
_OF_RAY = {f"executor.{key}" for key in ("num_actors", "cpus_per_actor", "gpus_per_actor")}
_OF_RAY |= {"executor.task_timeout_s"}
_LONGEST_NAME = 120  # of a job's folder; file systems take 255 bytes


class Sweep(Callback):
    """Prepares this process's sweep before its first job; `end` tidies up after its last.

    Jobs' folders are named by the overrides in which jobs differ.
    """

    directory: Path | None = None
    nothing_to_do = False  # all jobs are refused
    owns_ray = False

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Makes the sweep's directory, with an empty list of jobs."""
        given = OverridesParser.create().parse_overrides(_task(config))
        # Overrides for Hydra reach the jobs, whose configurations are composed anew.
        constant = [o.get_key_element() for o in given if not o.is_sweep_override()]
        quoted = ",".join(f"'{key.lstrip('+~')}'" for key in constant)
        config.hydra.overrides.hydra.append(
            f"hydra.job.config.override_dirname.exclude_keys=[{quoted}]"
        )
        directory = Path(config.hydra.sweep.dir)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            with replacing(directory / JOBS) as empty:
                empty.touch()
        except OSError as error:
            raise ConfigError(
                f"cannot write to hydra.sweep.dir={directory}: {error.strerror}"
            ) from error
        type(self).directory = directory

    @classmethod
    def end(cls) -> Path | None:
        """Stops the shared Ray; returns the directory of the sweep, None if there was no sweep."""
        if cls.owns_ray:
            from fl.execution.cluster import stop_shared

            stop_shared()
        directory, cls.directory = cls.directory, None
        cls.nothing_to_do = cls.owns_ray = False
        return directory


class ShareRay(Callback):
    """Starts one Ray for all jobs, unless there is a cluster to join, or no job needs it."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Starts it; `Sweep.end` stops it."""
        given = OverridesParser.create().parse_overrides(_task(config))
        if Sweep.nothing_to_do or not _needs_ray(config, given):
            return
        from fl.execution.cluster import start_shared

        try:
            with telling("starting Ray"):
                Sweep.owns_ray = start_shared(_most_actors(given))
        except ConfigError as error:  # the jobs that need it try, and fail, by themselves
            print(f"fl: {error}", file=sys.stderr)


def jobs_of(config: DictConfig) -> list[list[str]]:
    """Returns each job's overrides, in the order in which Hydra's own sweeper numbers them.

    There are none for a sampler, which proposes one job after another.
    """
    sweeper = config.hydra.sweeper
    if sweeper._target_ != f"{BasicSweeper.__module__}.{BasicSweeper.__qualname__}":
        return []
    own = [f"{key}={value}" for key, value in (sweeper.params or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    given = parser.parse_overrides([*own, *_task(config)])
    if any(o.is_sweep_override() and not o.is_discrete_sweep() for o in given):
        return []  # Hydra says that only samplers take an interval
    batches = BasicSweeper.split_arguments(given, sweeper.max_batch_size)
    return [list(job) for batch in batches for job in batch]


def _task(config: DictConfig) -> list[str]:
    """Returns the overrides of all jobs as given: references are for each job to follow."""
    overrides: Any = OmegaConf.to_container(config.hydra.overrides.task, resolve=False)
    return list(overrides)


def _needs_ray(config: DictConfig, given: Sequence[Override]) -> bool:
    chosen = [o for o in given if o.key_or_group == "executor"]
    names = [str(name) for o in chosen for name in _values(o)]
    if not names:
        names = [str(config.hydra.runtime.choices.get("executor"))]
    keys = {o.key_or_group for o in given}
    if "executor.address" in keys or "RAY_ADDRESS" in os.environ:
        return False
    return "ray" in names or ("auto" in names and not keys.isdisjoint(_OF_RAY))


def _most_actors(given: Sequence[Override]) -> int:
    numbers = [n for o in given if o.key_or_group == "executor.num_actors" for n in _values(o)]
    return max([number for number in numbers if isinstance(number, int)], default=0)


def _values(override: Override) -> list[Any]:
    if override.is_discrete_sweep():
        return list(override.sweep_iterator())
    return [override.value()]


def job_folder(*, _root_: DictConfig) -> str:
    """Returns the name of a job's folder: what it overrides, and a digest of its configuration.

    Equal configurations have equal names, in whichever sweep; different ones never share a folder.
    """
    overrides = re.sub(r"[^\w=,.+-]", "_", _root_.hydra.job.override_dirname)[:_LONGEST_NAME]
    own = OmegaConf.masked_copy(_root_, [key for key in map(str, _root_) if key != "hydra"])
    try:
        digest = digest_of(own)
    except (ConfigError, OmegaConfBaseException):  # the job will say what is wrong
        digest = digest_of(own, resolve=False)
    return f"{overrides}-{digest[:8]}" if overrides else digest[:8]


OmegaConf.register_new_resolver("fl_job_folder", job_folder, replace=True)


def digest_of(config: DictConfig, *, resolve: bool = True) -> str:
    """Returns the digest of a job's configuration, the one in its summary.json."""
    from fl.reports.run_writer import config_digest  # heavy

    values: Any = OmegaConf.to_container(config, resolve=resolve)
    return config_digest(values)


def side_by_side() -> int:
    """Returns how many jobs of this process's sweep run at a time, at most; 1 outside of sweeps."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return 1
    number = HydraConfig.get().launcher.get("n_jobs")
    if not isinstance(number, int) or number == 0:
        return 1
    if number > 0:
        return number
    from fl.vectors.threads import cores

    return max(1, cores() + 1 + number)  # as joblib reads it: -1 is all, -2 all but one


def has_ended(directory: Path) -> bool:
    """Returns whether a directory holds a run that has completed, or has diverged."""
    from fl.reports.runs import ENDED

    return _summary(directory / "summary.json").get("status") in ENDED


def finished(config: DictConfig) -> Run | None:
    """Returns the completed run of this configuration in the sweep's directory; None if none is.

    Raises:
        ConfigError: this job's folder holds a completed run of another configuration.
    """
    from fl.reports.runs import read_run, result_digest

    own = Path(HydraConfig.get().runtime.output_dir)
    values: Any = OmegaConf.to_container(config, resolve=True)
    digest = result_digest(values)
    for path in sorted(Path(HydraConfig.get().sweep.dir).rglob("summary.json")):
        of_run = _Ended.digest(path)
        if of_run is None:
            continue
        if of_run == digest:
            return read_run(path.parent)
        if path.parent.resolve() == own.resolve():
            raise ConfigError(
                f"{own} holds a completed run of another configuration, which would be lost: give "
                "another hydra.sweep.dir, or delete the folder"
            )
    return None


class _Ended:
    """What this process knows of summaries: each job looks at those of all others."""

    known: ClassVar[dict[Path, tuple[tuple[int, ...], str | None]]] = {}

    @classmethod
    def digest(cls, path: Path) -> str | None:
        """Returns a run's digest of what decides its result; None before it has ended.

        It is "" if nobody can say. What has diverged would diverge again, and has ended too.
        """
        from fl.reports.runs import ENDED, result_digest

        try:
            found = path.stat()
        except OSError:
            return None
        version = found.st_ino, found.st_mtime_ns, found.st_size
        if cls.known.get(path, ((), None))[0] != version:
            summary, digest = _summary(path), None
            if summary.get("status") in ENDED:
                of_run = summary.get("config")
                digest = result_digest(of_run) if isinstance(of_run, dict) else ""
            cls.known[path] = version, digest
        return cls.known[path][1]


def _summary(path: Path) -> Mapping[str, Any]:
    """Returns what a summary.json holds; nothing if it is damaged, so that its job runs again."""
    try:
        found = json.loads(read_file(path, SUMMARY_BYTES))
    except (ValueError, RecursionError):  # what is no plain file as well
        return {}
    return found if isinstance(found, dict) else {}


def this_job(status: Literal["completed", "skipped", "failed"], **more: Any) -> Job:
    """Returns what became of the job that this process runs."""
    hydra = HydraConfig.get()
    where = {"directory": hydra.runtime.output_dir, **more}
    return Job(hydra.job.num, hydra.job.override_dirname, status, **where)


def refused() -> bool:
    """Returns whether this process's job was refused before the sweep's first job began."""
    hydra = HydraConfig.get()
    own = hydra.job.num, hydra.runtime.output_dir, "failed"
    jobs = read_jobs(Path(hydra.sweep.dir))
    return own in {(job.number, job.directory, job.status) for job in jobs}


def note(job: Job) -> None:
    """Adds a job to the sweep's list; jobs that run side by side may do so at the same time."""
    line = json.dumps(asdict(job), ensure_ascii=False) + "\n"
    # One system call: lines of two processes do not mix.
    file = os.open(Path(HydraConfig.get().sweep.dir) / JOBS, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode("utf-8"))
    finally:
        os.close(file)


def conclude(directory: Path) -> bool:
    """Compares a sweep's jobs, and lists those that failed on standard error.

    Returns:
        Whether no job failed.
    """
    compare_jobs(directory)
    jobs = read_jobs(directory)
    failed = [job for job in jobs if job.status == "failed"]
    if failed:
        print(
            f"fl: {len(failed)} of {len(jobs)} jobs failed; the same command with "
            f"hydra.sweep.dir={directory} runs only what is missing:",
            file=sys.stderr,
        )
    for job in failed:
        print(f"  {job}: {job.reason}", file=sys.stderr)
    return not failed


def compare_jobs(directory: Path) -> None:
    """Prints the table of a sweep's runs and draws `comparison.png`; nothing for fewer than two.

    Runs that differ only in their seed are one row, named by the overrides in which rows differ.
    Those that did not come to their end, or cannot be read, are left out and named.
    """
    from rich.console import Console

    from fl.reports import plots
    from fl.reports.runs import ended, load_runs
    from fl.reports.table import print_comparison, print_path
    from fl.reports.tensorboard_log import write_hparams

    runs, problems = load_runs([directory])
    runs, unfinished = ended(runs)
    for problem in [*problems, *unfinished]:
        print(printable(f"fl: left out of the comparison: {problem}"), file=sys.stderr)
    if len(runs) < 2:
        return
    groups = by_overrides(runs)
    runs = [run for group in groups.values() for run in group]
    console = Console()
    if not console.is_terminal:  # a file or a pipe has no width that would have to be kept
        console = Console(width=_WIDTH)
    print_comparison(console, groups)
    write_hparams(directory, [run.summary for run in runs])
    target = runs[0].summary["target"]
    metric = target["metric"] if target else next(iter(runs[0].summary["final"]), None)
    drawn = {
        label: shown
        for label, group in groups.items()
        if (shown := [run for run in group if any(metric in row for row in run.history)])
    }
    if metric is not None and drawn:
        value = target["value"] if target else None
        plots.compare(drawn, metric, directory / FILE, target=value)
        print_path(console, directory / FILE, f": {metric} against time, bytes and rounds")
