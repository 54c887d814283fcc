"""The command line.

fl key=value ...      runs one experiment
fl -m key=a,b ...     a sweep: every combination
fl resume DIR         continues a run
fl report DIR...      makes a page about runs
"""

from __future__ import annotations

import gc
import math
import os
import sys
import traceback
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fl import sweep
from fl.configuration import check_values, explain
from fl.execution.garbage import START_THRESHOLDS


class _Resumed:
    """Whether this process goes on with a journal."""

    journal = False


@hydra.main(version_base=None, config_path="conf", config_name="config")
def _run(config: DictConfig) -> float | None:
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    try:
        check_values(config)
        done = sweep.finished(config) if in_sweep else None
        if done is not None:
            from fl.metrics.target import final_value

            sweep.note(job := sweep.this_job("skipped", directory=str(done.directory)))
            print(f"{job}: completed before, in {done.directory}")
            return final_value(done.summary)
        with _early_ray(config) if not in_sweep else nullcontext():
            from fl.experiment import run_experiment  # heavy: once the configuration is complete

            value = run_experiment(config, resume=_Resumed.journal)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # SystemExit as well: an app that exits has not completed
        # Said here, because Hydra would put a line of its own before the message.
        if not in_sweep:
            _tell(error)
            sys.exit(1)
        job = sweep.this_job("failed")
        sweep.note(replace(job, reason=_tell(error, f"{job}: ")))
        return math.nan  # an exception would keep samplers and batches from going on
    if in_sweep:
        sweep.note(sweep.this_job("completed"))
    return value


def _early_ray(config: DictConfig) -> AbstractContextManager[None]:
    """Starts the Ray that the run is going to ask for while its libraries are imported."""
    executor = config.get("executor")
    if (
        not isinstance(executor, DictConfig)
        or executor.get("_target_") != "fl.execution.RayExecutor"
        or executor.get("address") is not None
        or "RAY_ADDRESS" in os.environ
    ):
        return nullcontext()
    actors, each = executor.get("num_actors"), executor.get("cpus_per_actor")
    known = actors is None or (type(actors) is int and actors > 0)
    if not known or type(each) not in (int, float) or not 0 < each < math.inf:
        return nullcontext()  # the executor says what is wrong with them
    from fl.execution.cluster import started

    modules = ["fl.experiment"]
    if not config.get("app"):
        modules.append("torch._dynamo")  # which PyTorch's counter of FLOPs imports when it is used
    return started(actors, each, meanwhile=modules)


def main() -> None:
    """Runs the command line; exits with status 1, and a message, if a run failed."""
    gc.set_threshold(*START_THRESHOLDS)
    # With this set, Hydra raises what it would print, so that one place words all messages.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    try:
        if sys.argv[1:2] == ["report"]:
            from fl import report  # heavy

            report.main(sys.argv[2:])
            return
        if sys.argv[1:2] == ["resume"]:
            from fl.recovery.command import resumed

            again = resumed(sys.argv[2:])
            if again is None:
                return
            sys.argv[1:], _Resumed.journal = again
        try:
            _run()
        finally:
            directory = sweep.Sweep.end()
            complete = directory is None or sweep.conclude(directory)
    except KeyboardInterrupt:
        print("fl: interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # outside of a job: Hydra, reading the arguments
        print(f"fl: {explain(error) or error}", file=sys.stderr)
        sys.exit(1)
    if not complete:
        sys.exit(1)


def _tell(error: BaseException, where: str = "") -> str:
    """Prints and returns what went wrong: for all but wrong input, after a traceback."""
    message = explain(error)
    if message is None:
        traceback.print_exception(error)
        message = f"the run failed: {type(error).__name__}: {error}"
        if HydraConfig.initialized():
            message += f" (what it recorded is in {HydraConfig.get().runtime.output_dir})"
    else:
        for note in getattr(error, "__notes__", []):  # the traceback of a client's error
            print(note, file=sys.stderr)
    print(f"fl: {where}{message}", file=sys.stderr)
    return message
