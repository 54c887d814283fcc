"""The command line.

fl key=value ...      runs one experiment
fl -m key=a,b ...     a sweep: every combination
fl init DIR           makes a project with parts of your own
fl partition ...      shows who has which examples
fl resume DIR         continues a run
fl tune ...           finds the settings at which a method is best
fl report DIR...      makes a page about runs
fl compare A B        says why two runs differ
"""

from __future__ import annotations

import copy
import math
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import configure_log, env_override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from fl.errors import ConfigError, DeploymentError
from fl.execution.garbage import seldom_garbage_collection
from fl.runs import sweep, usage
from fl.runs.composing import files_stay
from fl.runs.configuration import Given, check_values, take_away
from fl.runs.explaining import composition_problems, explain
from fl.runs.groups import is_choice, without_null
from fl.runs.journal.command import (
    Resuming,
    check_lost_by,
    forget,
    how_to_begin,
    how_to_start,
    resumed,
)
from fl.runs.signals import Stopped, stoppable
from fl.runs.trust import raised_in
from fl.runs.waiting import telling

if TYPE_CHECKING:
    from fl.runs.experiment import Experiment, ForeignApp


_COMMANDS_WITHOUT = {"report", "init", "calibrate", "compare"}
"""Commands whose words are no overrides of a configuration."""


class _Checked:
    """What `Check` has found out of the one run that this process was asked for."""

    prepared: Experiment | ForeignApp | None = None
    given: Given | None = None
    made: tuple[Path, ...] = ()  # directories that Hydra makes for it, the innermost first


class Check(Callback):
    """Checks a command before Hydra makes directories, and before anything slow starts."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Ends the process, with what is wrong, if jobs of the sweep cannot be composed."""
        if _can_be_composed(config):
            return
        if problems := _all_problems(sys.argv[1:]):
            _say(problems)
            sys.exit(1)

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Builds the run; ends the process, with what is wrong, if it cannot be."""
        with _as_job(config) as own:
            try:
                given = check_values(own)
                take_away(own, given)
                with telling("loading PyTorch and Flower, and building the run"):
                    from fl.runs.build import prepare  # heavy: once the configuration is complete

                    _Checked.prepared, _Checked.given = prepare(own, given), given
                place = Path(config.hydra.run.dir).absolute()
                if Resuming.run is None:
                    check_lost_by(place)
            except Exception as error:
                _tell(error, own)
                sys.exit(1)
        _Checked.made = tuple(path for path in (place, *place.parents) if not path.exists())


class CheckJobs(Callback):
    """Checks the jobs of a sweep before the first begins."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Names the jobs that cannot be built, and notes that they have failed; the others run.

        Of jobs that differ in their seed alone the first is looked at, and another only if it is
        refused: that is nearly always all that there is to see, in a fraction of the time. None of
        a sampler is known yet.
        """
        from fl.data.loading import loading_once  # heavy

        right: set[tuple[str, ...]] = set()
        jobs = sweep.jobs_of(config)
        with loading_once():
            for number, overrides in enumerate(jobs):
                but_seed = tuple(o for o in overrides if not o.startswith("seed="))
                if but_seed in right:
                    continue
                try:
                    job = _composed(config, number, overrides)
                except (HydraException, OmegaConfBaseException):
                    return  # Hydra ends the sweep, and says why
                with telling(f"looking at job {number + 1} of {len(jobs)} before the first begins"):
                    can_be = _can_be(job)
                if can_be:
                    right.add(but_seed)
        sweep.Sweep.nothing_to_do = bool(jobs) and not right


def _can_be_composed(config: DictConfig) -> bool:
    """Returns whether a job of each choice of members in a sweep can be; not of a sampler's.

    If all can, each override is right by itself.
    """
    jobs = {tuple(filter(is_choice, job)): job for job in sweep.jobs_of(config)}
    try:
        for job in jobs.values():
            _composed(config, 0, job)
    except (HydraException, OmegaConfBaseException):
        return False
    return bool(jobs)


def _composed(config: DictConfig, number: int, overrides: Sequence[str]) -> DictConfig:
    """Returns the configuration of a sweep's job, with what Hydra's launchers add to it."""
    loader = GlobalHydra.instance().config_loader()
    job = loader.load_sweep_config(config, list(overrides))
    with read_write(job), open_dict(job):
        job.hydra.job.id = job.hydra.job.num = number
        place = os.path.join(str(job.hydra.sweep.dir), str(job.hydra.sweep.subdir))
        job.hydra.runtime.output_dir = os.path.abspath(place)
    return job


def _can_be(job: DictConfig) -> bool:
    """Returns whether a sweep's job can be built, or was: its folder has a completed run."""
    if sweep.has_ended(Path(job.hydra.runtime.output_dir)):
        return True
    with _as_job(job) as own:
        try:
            given = check_values(own)
            from fl.runs.build import prepare

            take_away(own, given)
            prepare(own, given)
        except (Exception, SystemExit) as error:
            _fail(error, own)
            return False
    return True


def _fail(error: BaseException, config: DictConfig, recorded: Path | None = None) -> None:
    """Tells why a sweep's job has failed, now and at the sweep's end."""
    job = sweep.this_job("failed")
    sweep.note(replace(job, reason="; ".join(_tell(error, config, f"{job}: ", recorded))))


@contextmanager
def _as_job(config: DictConfig) -> Iterator[DictConfig]:
    """Gives a run's own configuration, with Hydra's where it is for jobs and warnings on screen."""
    own = copy.deepcopy(config)
    with read_write(own), open_dict(own):
        del own["hydra"]
    to_screen = OmegaConf.to_container(config.hydra.job_logging, resolve=False)
    assert isinstance(to_screen, dict)
    handlers = to_screen.get("handlers", {})
    files = [name for name, handler in handlers.items() if "filename" in handler]
    for name in files:  # in the directory that is not there yet
        del handlers[name]
    for logger in (to_screen["root"], *to_screen.get("loggers", {}).values()):
        shown = logger.get("handlers", [])
        logger["handlers"] = [name for name in shown if name not in files]
    configure_log(OmegaConf.create(to_screen), config.hydra.verbose)
    known = HydraConfig.instance()
    before = known.cfg
    known.set_config(config)
    try:
        with env_override(config.hydra.job.env_set):
            yield own
    finally:
        known.cfg = before


@hydra.main(version_base=None, config_path="conf", config_name="config")
def _run(config: DictConfig) -> float | None:
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    prepared, given = _Checked.prepared, _Checked.given
    _Checked.prepared = _Checked.given = None
    directory = Path(HydraConfig.get().runtime.output_dir)
    before = _written(directory)
    if in_sweep and sweep.refused():
        _remove_if_empty(directory)
        return math.nan
    try:
        given = given or check_values(config)
        take_away(config, given)
        from fl.reports.target import final_value

        done = sweep.finished(config) if in_sweep else None
        if done is not None:
            sweep.note(job := sweep.this_job("skipped", directory=str(done.directory)))
            print(f"{job}: completed before, in {done.directory}")
            return final_value(done.summary)
        from fl.runs.build import prepare
        from fl.runs.experiment import ForeignApp
        from fl.runs.run import run_to_end

        prepared = prepare(config, given) if prepared is None else prepared
        if isinstance(prepared, ForeignApp):
            prepared.load()
        start = how_to_start()
        with _early_ray(prepared) if not in_sweep else nullcontext():
            run = run_to_end(config, prepared=prepared, **start)
    except KeyboardInterrupt:
        if not in_sweep and (again := how_to_begin(config, directory)):
            _say([f"this run can go on: {again}"])
        raise
    except BaseException as error:  # SystemExit as well: an app that exits has not completed
        forget(directory)
        _remove_if_empty(directory)
        recorded = directory if _written(directory) != before else None
        # Said here, because Hydra would put a line of its own before the message.
        if not in_sweep:
            _tell(error, config, recorded=recorded)
            sys.exit(1)
        _fail(error, config, recorded)
        return math.nan  # an exception would keep samplers and batches from going on
    if in_sweep:  # for which a run that diverged is a result as any other
        sweep.note(sweep.this_job("completed"))
    elif run.summary["status"] == "diverged":
        _say([f"the run diverged: {run.summary['error']}"])
        sys.exit(1)
    return final_value(run.summary)


def _written(directory: Path) -> int | None:
    """Returns what tells the summary of a run from that of an earlier one; None without any."""
    path = directory / "summary.json"
    return path.stat().st_mtime_ns if path.exists() else None


def _remove_if_empty(directory: Path) -> None:
    """Removes the directory of a job that was refused, if there is nothing but what Hydra notes."""
    hydra_config = HydraConfig.get()
    notes = directory / str(hydra_config.output_subdir)
    names = ("config.yaml", "hydra.yaml", "overrides.yaml")
    files = [*(notes / name for name in names), directory / f"{hydra_config.job.name}.log"]
    own = [path for path in files if path.is_file()]
    if any(path.suffix == ".log" and path.stat().st_size for path in own):
        return
    if {*directory.rglob("*")} - {notes} != {*own}:
        return
    for path in own:
        path.unlink()
    for folder in (notes, directory, *_Checked.made[1:]):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextmanager
def _early_ray(prepared: Experiment | ForeignApp) -> Iterator[None]:
    """Starts the Ray that the run is going to ask for."""
    from fl.execution import RayExecutor

    executor = prepared.executor
    if (
        not isinstance(executor, RayExecutor)
        or executor.address is not None
        or "RAY_ADDRESS" in os.environ
    ):
        yield
        return
    from fl.execution.cluster import started

    with ExitStack() as stack:
        with telling("starting Ray"):
            stack.enter_context(started(executor.num_actors, executor.cpus_per_actor))
        yield


def main() -> None:
    """Runs the command line; exits with status 1, and a message, if a run failed."""
    # With this set, Hydra raises what it would print, so that one place words all messages.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        with seldom_garbage_collection(), stoppable():
            complete = _command(sys.argv[1:])
    except Stopped as error:
        print(f"fl: interrupted by {error}", file=sys.stderr)
        sys.exit(error.status)
    except KeyboardInterrupt:  # no signal: an app has raised it
        print("fl: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # outside of a job: Hydra, reading the arguments
        message = explain(error)
        known = message is not None or isinstance(error, DeploymentError | OSError)
        lines = [str(error)] if message is None else message.splitlines()
        overrides = not _COMMANDS_WITHOUT.intersection(sys.argv[1:2])
        if overrides and not isinstance(error, ConfigError | DeploymentError | YAMLError):
            problems = _all_problems(sys.argv[1:])
            lines, known = problems or lines, known or bool(problems)
        if not known:
            traceback.print_exception(error)
            lines = [f"{type(error).__name__}: {error}"]
        _say(lines)
        sys.exit(1)
    if not complete:
        sys.exit(1)


def _command(arguments: list[str]) -> bool:
    """Does what the arguments say; returns whether no job of a sweep failed."""
    if arguments[:1] == ["report"]:
        from fl.reports import report  # heavy

        report.main(arguments[1:])
        return True
    if arguments[:1] == ["init"]:
        from fl.runs import project  # heavy

        project.main(arguments[1:])
        return True
    if arguments[:1] == ["calibrate"]:
        from fl.deployment import calibrate

        calibrate.main(arguments[1:])
        return True
    if arguments[:1] == ["compare"]:
        from fl.reports import difference

        return difference.main(arguments[1:])
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())  # for a `_target_` of the user's own, as with python -m
    if arguments[:1] == ["partition"]:
        from fl.runs import dealing  # heavy

        dealing.main(arguments[1:])
        return True
    if arguments[:1] == ["tune"]:
        from fl.runs.tuning import command  # heavy

        return command.main(arguments[1:])
    if arguments[:1] == ["resume"]:
        again = resumed(arguments[1:])
        if again is None:
            return True
        sys.argv[1:], Resuming.run = again
    elif told := usage.answer(arguments):
        try:
            print(told, flush=True)
        except BrokenPipeError:  # whoever reads has seen enough; nor is there more at the exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    else:
        sys.argv[1:] = without_null(arguments)
    try:
        with files_stay():
            _run()
    finally:
        Resuming.run = None
        directory = sweep.Sweep.end()
        complete = directory is None or sweep.conclude(directory)
    return complete


def _all_problems(words: Sequence[str]) -> list[str]:
    """Returns what is wrong with each override by itself, where Hydra stops at the first."""
    folder = usage.flag(words, "--config-dir", "-cd")
    name = usage.flag(words, "--config-name", "-cn") or "config"
    path = [] if folder is None else [f"hydra.searchpath=['file://{Path(folder).absolute()}']"]
    return composition_problems(usage.given(words), name, path)


def _tell(
    error: BaseException, config: DictConfig, where: str = "", recorded: Path | None = None
) -> list[str]:
    """Prints and returns what went wrong: for all but wrong input, after a traceback."""
    message = explain(error)
    if message is None:
        traceback.print_exception(error)
        of = f" in {part}" if (part := raised_in(error, config)) else ""
        message = f"the run failed{of}: {type(error).__name__}: {error}"
    else:
        for note in getattr(error, "__notes__", []):  # the traceback of a client's error
            print(note, file=sys.stderr)
    lines = message.splitlines()
    note = "" if recorded is None else f" (what it recorded is in {recorded})"
    _say([*lines[:-1], f"{lines[-1]}{note}"], where)
    return lines


def _say(lines: Sequence[str], where: str = "") -> None:
    for line in lines:
        print(f"fl: {where}{line}", file=sys.stderr)
