"""Every strategy on fleets where somebody is away, silent, broken or slow.

Four clients learn digits; a task takes half a minute, and `round_timeout_s` is two minutes. What is
measured is who contributed, and how the run ended. `docs/fleets.md` has the table; write it anew by

    PYTHONPATH=tests/simulation python tests/strategies/test_fleets.py
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from every_strategy import CODED, LEARNING, LOCAL, MODELS, PARTIAL
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from stand_ins import Scripted, ScriptedFaults

import fl
from fl import simulate
from fl.errors import SimulationError
from fl.reports.page import BEGIN, END, replace_tables
from fl.reports.participation import participation
from fl.runs.build import build
from fl.runs.experiment import app_of, initial_of
from fl.simulation.kernel.trace import Event
from fl.simulation.world.faults import Faults, TaskFaults
from fl.simulation.world.fleets import uniform
from fl.strategies.drivers.driver import Driver

PAGE = Path(fl.__file__).parents[1] / "docs" / "fleets.md"
STRATEGIES = LEARNING
QUICK = ("adpsgd", "demo", "diloco", "favas", "fedbuff", "tifl")  # one of most drivers
NEEDS_ALL = ("demo", "just_one_byte", "onebit_adam")  # the message of every client in every round

N = 4
EVERYBODY, LAST = range(N), [N - 1]
HOUR, TIMEOUT_S = 3600.0, 120.0
BACK_S = 2 * HOUR + 200.0
AS_MUCH = {"fedbn": 61, "dimat": 4}  # FLOPs of a task, over those of a step of a linear model
SPEED = 14e3  # FLOP/s: a step of 128 examples takes about half a minute


def always(who, **fault: float) -> Faults:
    fates = {(i, k): TaskFaults(**fault) for i in who for k in range(2000)}
    return ScriptedFaults(script=fates)


@dataclass(frozen=True)
class Setting:
    """A fleet, and how long a run lasts on it: rounds at most, and s."""

    title: str
    fleet: Mapping[str, object]
    rounds: int = 200
    limit_s: float = 900.0


SETTINGS = {
    "empty": Setting(
        "empty for an hour, twice",
        {
            "availability": Scripted(
                N, {i: [HOUR, HOUR + 200.0, BACK_S] for i in EVERYBODY}, offline=EVERYBODY
            )
        },
        limit_s=BACK_S + 900.0,
    ),
    "late": Setting(
        "one comes late", {"availability": Scripted(N, {LAST[0]: [300.0]}, offline=LAST)}
    ),
    "silent": Setting("one never answers", {"faults": always(LAST, dropout_at=0.5)}),
    "fails": Setting("one always fails", {"faults": always(LAST, crash_at=0.5)}),
    "slow": Setting("all are slow", {"flops": SPEED / 100}, limit_s=4e4),
    "nobody": Setting(
        "nobody comes", {"availability": Scripted(N, {}, offline=EVERYBODY)}, 20, float("inf")
    ),
    "all silent": Setting(
        "nobody answers", {"faults": always(EVERYBODY, dropout_at=0.5)}, 20, float("inf")
    ),
    "all fail": Setting(
        "everybody fails", {"faults": always(EVERYBODY, crash_at=0.5)}, 20, float("inf")
    ),
}

ENDS = {
    r"asked \d+ times in a row which clients .*no other will ever come": "nobody comes",
    r"tasks in a row brought no .*To go on, ": "tasks only fail",
    r"contacts in a row brought no answer within strategy\.interaction_s": "tasks only fail",
    r"none of the \d+ clients that were timed answered within selection\.profiling_s": "no tier",
    r"needs the message of every worker in every round": "a message is missing",
}
"""How runs end that cannot go on: what the error says, and what the table does."""

SMALL = {  # arguments of strategies, where they have them: so that four clients are enough
    "fraction_train": 1.0,
    "min_train_nodes": 1,
    "min_available_nodes": 1,
    "num_nodes_to_select": 2,
    "clients": 3,
    "num_clusters": 1,
    "concurrency": 3,
    "buffer_size": 2,
    "sample_size": N,
    "batch": 4,
    "backup": 0,
    "contacted": 2,
    "local_steps": 1,
    "waiting_s": 100.0,
    "interval_s": 60.0,
    "inner_steps": 1,
    "fragments": 1,
    "overlap": 0,
    "min_steps": 1,
    "max_steps": 2,
    "p": 1.0,
}
WORKERS = ("async_sgd", "ringmaster", "rennala")  # work with the clients that they began with
TASK = ["client.batch_size=128", "client.local_epochs=null", "client.local_steps=1"]


@cache
def config_of(name: str):
    overrides = [f"strategy={name}", "data=digits", "partition=iid", "model=logistic"]
    overrides += ["executor=serial", f"num_clients={N}", "target=null"]
    # A linear model has no layers to spare.
    spare = ["model=mlp", "model.hidden=[8]"] if name in (*PARTIAL, *LOCAL) else []
    overrides += MODELS.get(name, spare)
    with initialize_config_module("fl.conf", version_base=None):
        found = compose("config", overrides)
        given = {**SMALL, **({"concurrency": None} if name in WORKERS else {})}
        for key, value in given.items():
            for place in ("strategy", "strategy.rule"):
                if OmegaConf.select(found, f"{place}.{key}") is not None:
                    overrides.append(f"{place}.{key}={'null' if value is None else value}")
        if name in ("ifca", "fedsoft"):  # several would take longer than these clients have
            overrides.append("strategy.rule.num_models=1")
        if name == "tifl":
            overrides.append("selection.num_tiers=2")
        if "local_epochs" in found.strategy:
            overrides += ["client.local_epochs=1", "client.batch_size=128"]
        elif found.get("tasks"):
            overrides += [f"tasks.{task}.{key}" for task in found.tasks for key in TASK]
            overrides += [
                f"{part}@tasks.{task}.{part}={small}"
                for task in found.tasks
                for part, small in (
                    ("model", "logistic"),
                    ("partition", "coded" if name in CODED else "iid"),
                )
            ]
        else:
            overrides += TASK
        if name in CODED:  # parts have two chunks; of what is repeated one copy would be used
            overrides += ["strategy.batch_size=64", "strategy.rule.code=cyclic"]
            overrides.append("strategy.mu=0.5")  # or the last of equally fast ones never counts
        if name == "per_fedavg":  # whose step takes two of the model's
            overrides.append("client.local_steps=2")
        return compose("config", overrides)


class LongEnough(Exception):
    """The run has lasted as long as it should."""


@cache
def outcome(name: str, setting: str) -> tuple[int, int, str]:
    """Runs a strategy; returns how many contributed, how many were there, and the error if any."""
    logging.getLogger("flwr").setLevel(logging.ERROR)  # it tells of every round
    config, given = config_of(name), SETTINGS[setting]
    experiment = build(config)
    ended = []

    def server(grid, context, recorder):
        def evaluate(version, arrays):
            if grid.clock.now() > given.limit_s:
                raise LongEnough

        error = ""
        try:
            experiment.strategy.start(
                grid=grid,
                initial_arrays=initial_of(experiment.tasks)
                if experiment.tasks
                else experiment.initial(),
                num_rounds=given.rounds,
                timeout=TIMEOUT_S,
                evaluate_fn=evaluate,
            )
        except LongEnough:
            pass
        except SimulationError as raised:
            error = str(raised)
        found = participation(grid.trace, grid.control.answers, grid.were_available())
        if setting == "empty" and not error:  # and after the second hour they are all at work again
            worked = grid.trace.client[grid.trace.kind == Event.COMPUTE_END]
            later = grid.trace.time[grid.trace.kind == Event.COMPUTE_END] > BACK_S
            assert set(worked[later]) == set(EVERYBODY)
        ended.append((found["contributed"], found["available"], error))

    devices = {"flops": SPEED, **given.fleet}
    devices["flops"] = np.multiply(devices["flops"], AS_MUCH.get(name, 1)).tolist()
    fleet = uniform(N, 0, **devices, down_bps=1e9, up_bps=1e9)
    try:
        simulate(
            server, app_of(experiment), fleet, num_partitions=N, executor="serial", progress=False
        )
    except SimulationError:  # that nothing was learnt is what some of them are about
        assert ended[0][0] == 0
    return ended[0]


def cell(name: str, setting: str) -> str:
    contributed, available, error = outcome(name, setting)
    if not error:
        return f"{contributed} of {available}" if contributed else "none"
    said = [short for pattern, short in ENDS.items() if re.search(pattern, error)]
    assert len(said) == 1, f"{name}, {setting}: {error}"
    return f"ends: {said[0]}"


def right(name: str, setting: str) -> str:
    """Returns a pattern of what is right, from the kind of strategy alone."""
    strategy = build(config_of(name)).strategy
    waits_for_all = name in NEEDS_ALL
    if setting in ("empty", "late"):  # the second hour begins in the middle of a task
        return "ends: a message is missing" if waits_for_all and setting == "empty" else "4 of 4"
    if setting in ("silent", "fails"):
        if name == "pipeline":  # the stage before has nobody to send to
            return "2 of 4"
        if name == "split_learning":  # the last client is the server
            return "ends: tasks only fail"
        if name == "m_sgc":  # most of what a worker has nobody else has
            return "ends: tasks only fail"
        return "ends: a message is missing" if waits_for_all else "3 of 4"
    if setting == "slow":
        if isinstance(strategy, Driver) and not strategy.reads_timeout:
            return "4 of 4"
        return "none|ends: (no tier|tasks only fail|a message is missing)"
    if setting == "nobody":
        return "ends: nobody comes"
    return "none|ends: (no tier|tasks only fail|a message is missing)"


def table(names=STRATEGIES) -> str:
    titles = [setting.title for setting in SETTINGS.values()]
    lines = [f"| | {' | '.join(titles)} |", f"|---|{'---|' * len(titles)}"]
    lines += [f"| `{n}` | {' | '.join(cell(n, setting) for setting in SETTINGS)} |" for n in names]
    return "\n".join(lines)


def rows_of_page() -> dict[str, list[str]]:
    text = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return {name.strip("`"): cells for name, *cells in rows}


def check(name: str) -> None:
    cells = {setting: cell(name, setting) for setting in SETTINGS}
    for setting, found in cells.items():
        assert re.fullmatch(right(name, setting), found), f"{setting}: {outcome(name, setting)}"
    assert rows_of_page()[name] == list(cells.values()), "docs/fleets.md says something else"


def test_the_page_has_every_strategy() -> None:
    assert list(rows_of_page()) == STRATEGIES


@pytest.mark.parametrize("name", QUICK)
def test_of_each_driver_one_starves_nobody_and_ends_when_nothing_can_come(name) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in QUICK])
def test_no_strategy_starves_anybody_and_all_end_when_nothing_can_come(name) -> None:
    check(name)


if __name__ == "__main__":
    replace_tables(PAGE, table())
