"""Several models that are trained at once: each with its versions and its share of the requests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from fl.clients.app.task_app import TASK_KEY
from fl.errors import ConfigError
from fl.flower.private import trusted_record
from fl.strategies.drivers.events.server import GlobalModel, Sent, Server, Update
from fl.strategies.drivers.tasks import Task
from fl.vectors.rows import Row


class Models(GlobalModel):
    """The models of several learning tasks behind the interface of one.

    Args:
        arrays: named "task/array".

    Attributes:
        by_task: the model of each task, in the order of the arrays.

    Raises:
        ConfigError: an array's name has no task.
    """

    def __init__(self, arrays: ArrayRecord) -> None:
        # Not the base's: this holds models, and has no layout of its own.
        parts: dict[str, dict[str, Array]] = {}
        for name, array in arrays.items():
            task, slash, entry = name.partition("/")
            if not (task and slash and entry):
                raise ConfigError(
                    f"the array {name!r} belongs to no task: this strategy trains several models, "
                    "and needs names such as 'mnist/fc.weight'. With fl, choose tasks=..."
                )
            parts.setdefault(task, {})[entry] = array
        self.by_task = {task: GlobalModel(ArrayRecord(part)) for task, part in parts.items()}
        self._records: dict[str, tuple[int, ArrayRecord]] = {}

    @property
    def w(self) -> Row:
        """All models one after another, float32."""
        return np.concatenate([model.w for model in self.by_task.values()])

    @property
    def version(self) -> int:
        """How often any of the models has changed."""
        return sum(model.version for model in self.by_task.values())

    def record(self) -> ArrayRecord:
        """Returns all models; arrays of one that has not changed are the same objects as before."""
        for task, model in self.by_task.items():
            if task not in self._records or self._records[task][0] != model.version:
                self._records[task] = (model.version, model.record())
        arrays = {}
        for task, (_, record) in self._records.items():
            arrays.update({f"{task}/{name}": array for name, array in record.items()})
        return trusted_record(ArrayRecord, arrays)  # Flower's constructor would copy them

    def read(
        self,
        task: Task[Sent],
        reply: RecordDict,
        key: str,
        now: float,
        needs: Sequence[str] = (),
        p: int = 0,
    ) -> Update:
        """Returns the update in a reply, read by the layout of its task's model."""
        return self.by_task[task.memo.config[TASK_KEY]].read(task, reply, key, now, needs, p)

    def staleness(self, task: Task[Sent]) -> int:
        """Returns the versions of the task's own model since the one that it began with."""
        return self.by_task[task.memo.config[TASK_KEY]].staleness(task)

    def stay(self) -> None:
        """Raises: models change one by one, through the servers of their tasks."""
        raise TypeError("several models have no common next version: step a task's own server")

    def become(
        self, w: Row, contributors: Sequence[Update], *, of_one_version: bool = False
    ) -> None:
        """Raises: models change one by one, through the servers of their tasks."""
        raise TypeError("several models have no common next version: step a task's own server")


@dataclass(eq=False)
class TaskRun:
    """A learning task during a run.

    Attributes:
        name: of the task.
        server: of its model.
        requests: R, how many of the requests in flight may be its own.
        done: whether it has reached its goal.
        buffer: updates that have arrived and are not applied.
    """

    name: str
    server: Server
    requests: int = 0
    done: bool = False
    buffer: list[Update] = field(default_factory=list)

    @cached_property
    def weights(self) -> NDArray[np.bool_]:
        """Places of the model that are no biases, shape (d,)."""
        kept = np.ones(len(self.server.w), dtype=np.bool_)
        for entry in self.server.model.layout.floats:
            if entry.name.rpartition(".")[2] == "bias":
                kept[entry.offset : entry.offset + entry.size] = False
        return kept


def apportion(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Deals out a whole number in proportion to weights, by largest remainders.

    Args:
        total: at least 0.
        weights: at least 0; if all are 0, they count as equal.

    Returns:
        Whole numbers that add up to `total`; of equal remainders the earlier gets more.
    """
    if not any(weights.values()):
        weights = dict.fromkeys(weights, 1.0)
    whole = sum(weights.values())
    exact = {name: total * weight / whole for name, weight in weights.items()}
    dealt = {name: int(value) for name, value in exact.items()}
    order = sorted(exact, key=lambda name: dealt[name] - exact[name])
    for name in order[: total - sum(dealt.values())]:
        dealt[name] += 1
    return dealt
