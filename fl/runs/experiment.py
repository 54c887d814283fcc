"""What a run consists of when everything is built and checked: an experiment, or a foreign app."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from flwr.app import ArrayRecord
from torch import nn

from fl.clients import PartialApp, StageApp, TaskApp, TrainingApp
from fl.data import Examples, FederatedData
from fl.execution import Executor
from fl.execution.executor import load_app
from fl.execution.virtual_time import TaskClock, answering, virtual_time
from fl.flower.records import model_record
from fl.randomness import torch_seed
from fl.runs.apps import FlowerApp
from fl.runs.transcript import shown_once
from fl.simulation.cost import CostModel
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.hierarchies import Hierarchy
from fl.simulation.world.runtime import Runtime
from fl.strategies import Driver


@dataclass(frozen=True)
class Learning:
    """What is learnt.

    Attributes:
        data: the data set, dealt to clients; clean, where the app's is poisoned.
        model: makes the model; its last positional argument is the seed, and equal ones make equal
            models.
        app: what clients run.
        backdoored: held-out examples as an attacker wants them classified, for a backdoor.
    """

    data: FederatedData
    model: partial[nn.Module]
    app: TrainingApp
    backdoored: Examples | None = None

    def initial(self) -> ArrayRecord:
        """Returns what travels of the initial model."""
        return model_record(self.app.layout, self.model())

    def drawn(self, j: int) -> ArrayRecord:
        """Returns another initial model, the j-th independent draw, from 1."""
        *arguments, seed = self.model.args
        seed = torch_seed(seed, "initial model", j)
        model = self.model.func(*arguments, seed, **self.model.keywords)
        return model_record(self.app.layout, model)


@dataclass(frozen=True)
class Experiment(Learning):
    """The parts of an experiment with our own ClientApp, built and checked.

    Attributes:
        strategy: the server's algorithm.
        fleet: the clients' devices, links, availability and faults.
        executor: where clients run.
        runtime: what the software on the way takes.
        hierarchy: machines that add updates up on their way to the server; None has none.
        tasks: what is learnt, by name, if it is several models at once; the data, model and app
            above are then those of the first.
        parts: what clients run that hold parts of the model; None if all hold all of it.
        ignored: keys of parts that have no effect beside the other parts, to what counts instead.
        warm: the model that the run begins with, if it is not a fresh one.
    """

    strategy: Driver = field(kw_only=True)
    fleet: Fleet = field(kw_only=True)
    executor: Executor = field(kw_only=True)
    runtime: Runtime = field(default_factory=Runtime, kw_only=True)
    hierarchy: Hierarchy | None = field(default=None, kw_only=True)
    tasks: Mapping[str, Learning] = field(default_factory=dict)
    parts: PartialApp | StageApp | None = None
    ignored: Mapping[str, str] = field(default_factory=dict)
    warm: ArrayRecord | None = None

    def initial(self) -> ArrayRecord:
        """Returns the initial model; those of several tasks as one, see `initial_of`."""
        if self.warm is not None:
            return self.warm
        return initial_of(self.tasks) if self.tasks else super().initial()


def app_of(experiment: Experiment) -> TrainingApp | TaskApp | PartialApp | StageApp:
    """Returns what the clients of an experiment run."""
    tasks = experiment.tasks
    if experiment.parts is not None:
        return experiment.parts
    return TaskApp({name: t.app for name, t in tasks.items()}) if tasks else experiment.app


def initial_of(tasks: Mapping[str, Learning]) -> ArrayRecord:
    """Returns the initial models of several tasks, their arrays named "task/array"."""
    initial = {name: task.initial() for name, task in tasks.items()}
    return ArrayRecord(
        {f"{t}/{name}": x for t, part in initial.items() for name, x in part.items()}
    )


@dataclass(frozen=True)
class ForeignApp:
    """A Flower app directory, and the parts of the run that it is given.

    Attributes:
        app: the directory; nothing of it is imported yet.
        run_config: keys of its configuration to replace.
        fleet: the clients' devices, links, availability and faults.
        executor: where clients run.
        runtime: what the software on the way takes.
        cost_model: what the work of its ClientApp costs.
        epoch: the date at virtual time 0, s since 1970.
    """

    app: FlowerApp
    run_config: Mapping[str, Any]
    fleet: Fleet
    executor: Executor
    runtime: Runtime
    cost_model: CostModel | None
    epoch: int

    def load(self) -> None:
        """Imports the app's code, so that what is wrong with it is known before anything starts."""
        with shown_once(), virtual_time(), answering(TaskClock(), self.epoch):
            self.app.server()  # its modules may look at a clock when they are imported
            load_app(self.app.client(), self.epoch)
