"""The command line: `fl key=value ...` runs one experiment, `fl -m key=a,b ...` a sweep.

`fl resume DIR` continues a run.
"""

from __future__ import annotations

import os
import sys
import traceback

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fl.configuration import check_values, explain
from fl.sweep import Comparison, compare_jobs


class _JobFailed(Exception):
    """A job of a sweep failed, and the user was told."""


class _Resumed:
    """Whether this process goes on with a journal."""

    journal = False


@hydra.main(version_base=None, config_path="conf", config_name="config")
def _run(config: DictConfig) -> float | None:
    try:
        check_values(config)
        from fl.experiment import run_experiment  # heavy: only once the configuration is complete

        return run_experiment(config, resume=_Resumed.journal)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit as well: an app that exits has not completed
        # Said here, because Hydra would put a line of its own before the message.
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:  # the other jobs run all the same
            _tell(error, f"job {job.job.num} ({job.job.override_dirname}): ")
            raise _JobFailed from error
        _tell(error)
        sys.exit(1)


def main() -> None:
    """Runs the command line; exits with status 1, and a message, if a run failed."""
    # With this set, Hydra raises what it would print, so that one place words all messages.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        if sys.argv[1:2] == ["resume"]:
            from fl.recovery.command import resumed

            again = resumed(sys.argv[2:])
            if again is None:
                return
            sys.argv[1:], _Resumed.journal = again
        try:
            _run()
        finally:
            directory, Comparison.directory = Comparison.directory, None
            if directory is not None:
                compare_jobs(directory)
    except KeyboardInterrupt:
        print("fl: interrupted", file=sys.stderr)
        sys.exit(130)
    except _JobFailed:
        sys.exit(1)
    except Exception as error:  # outside of a job: Hydra, reading the arguments
        print(f"fl: {explain(error) or error}", file=sys.stderr)
        sys.exit(1)


def _tell(error: BaseException, where: str = "") -> None:
    """Prints what went wrong: one line for a wrong input, for all else the traceback as well."""
    message = explain(error)
    if message is None:
        traceback.print_exception(error)
        message = f"the run failed: {type(error).__name__}: {error}"
        if HydraConfig.initialized():
            message += f" (what it recorded is in {HydraConfig.get().runtime.output_dir})"
    print(f"fl: {where}{message}", file=sys.stderr)
