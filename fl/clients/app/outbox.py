"""What a client sends: the contents of its replies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fl.clients.app.choosing import MIXTURE_METRIC, MODEL_METRIC
from fl.clients.app.home import STATE_KEY, Home
from fl.clients.app.inbox import ARRAYS_KEY, MEMORY_KEY
from fl.clients.app.training import Trained, Training
from fl.clients.rule import Rule
from fl.flower.cohort_content import cohort_content
from fl.flower.content import content_of
from fl.flower.payload import payload_bytes
from fl.flower.private import trusted_record
from fl.flower.records import tensors_record, to_record, to_records, vector_record
from fl.submodels import CLASSES_KEY
from fl.vectors.rows import as_tensor

METRICS_KEY = "metrics"
METRICS = ("num-examples", "train-loss", "steps")
"""What a client reports of its training."""


class Outbox:
    """Writes replies for one model and rule.

    Args:
        home: says what of the model travels.
        rule: of the clients.
    """

    def __init__(self, home: Home, rule: Rule) -> None:
        self._home = home
        self._layout = home.sent.layout
        self._rule = rule

    def trained(
        self, trainings: Sequence[Training], trained: Trained
    ) -> list[tuple[RecordDict, dict[str, ArrayRecord]]]:
        """Returns the contents of replies, and the records that each client has to keep."""
        replies: list[tuple[RecordDict, dict[str, ArrayRecord]]] = []
        home, has_models = self._home, bool(trained.rows.shape[1])
        if has_models:
            others = home.sent_carried(trained.carried)
            records = to_records(self._layout, home.sent.take(trained.rows), others)
        else:
            records = [ArrayRecord() for _ in trainings]
        for i, training in enumerate(trainings):
            items: dict[str, Any] = {ARRAYS_KEY: records[i]}
            for name, vectors in trained.extras.items():
                sent = home.sent.take_trained(vectors[i]) if vectors.shape[1] else None
                items[name] = ArrayRecord() if sent is None else vector_record(sent)
            items[METRICS_KEY] = _metrics(
                training.examples,
                trained.losses[i],
                trained.steps[i],
                training.model,
                training.mixture,
            )
            items |= _classes(training)
            kept: dict[str, ArrayRecord] = {}
            if trained.memory:
                memory = {name: tensors[i] for name, tensors in trained.memory.items()}
                kept[MEMORY_KEY] = tensors_record(memory)
            if home.keeps and has_models:
                local = home.record_of(trained.rows[i], trained.carried)
                if local is not None:
                    kept[STATE_KEY] = local
            replies.append((content_of(items), kept))
        return replies

    def together(
        self,
        trainings: Sequence[Training],
        idle: Sequence[int],
        parts: Sequence[tuple[Sequence[int], Trained]],
    ) -> RecordDict:
        """Returns the one answer of clients that send a model of nothing but float32.

        Args:
            trainings: of the clients.
            idle: places of those that had no step to do.
            parts: places of the others, and what came of them.
        """
        take, n = self._home.sent.take, len(trainings)
        rows = np.empty((n, self._layout.size), np.float32)
        reports: list[tuple[int, float, int]] = [(0, 0.0, 0)] * n
        for i in idle:
            rows[i] = take(as_tensor(trainings[i].row)).numpy()
        for members, trained in parts:
            rows[members] = take(trained.rows).numpy()
            for i, loss, steps in zip(members, trained.losses, trained.steps, strict=True):
                reports[i] = trainings[i].examples, loss, steps
        columns = zip(METRICS, zip(*reports, strict=True), strict=True)
        return cohort_content(rows, {name: list(column) for name, column in columns})

    def unchanged(self, training: Training) -> tuple[RecordDict, dict[str, ArrayRecord]]:
        """Returns the content of the reply where there was no step to do, and nothing to keep."""
        sent = self._home.sent.take(as_tensor(training.row))
        others = self._home.sent_carried(training.carried)
        items: dict[str, Any] = {ARRAYS_KEY: to_record(self._layout, sent, others)}
        for name in self._rule.uploads:
            items[name] = vector_record(torch.zeros(self._layout.num_trainable))
        items[METRICS_KEY] = _metrics(0, 0.0, 0, training.model, training.mixture)
        items |= _classes(training)
        return content_of(items), {}

    def model_bytes(self, *, chosen: bool) -> int:
        """Returns the size of a reply that has a model of nothing but floats, and the metrics.

        Args:
            chosen: whether the model was one of several.
        """
        model = to_record(self._layout, np.zeros(self._layout.size, np.float32))
        metrics = _metrics(0, 0.0, 0, 0 if chosen else None)
        return payload_bytes(content_of({"": model, METRICS_KEY: metrics}))


def _metrics(
    examples: int,
    loss: float,
    steps: int,
    model: int | None,
    mixture: NDArray[np.float64] | None = None,
) -> MetricRecord:
    values: dict[str, Any] = dict(zip(METRICS, (examples, loss, steps), strict=True))
    if model is not None:
        values[MODEL_METRIC] = model
    if mixture is not None:
        values[MIXTURE_METRIC] = mixture.tolist()
    return trusted_record(MetricRecord, values)


def _classes(training: Training) -> dict[str, ArrayRecord]:
    """Returns the record of the classes of which a loss was, if it was not of all."""
    if training.classes is None:
        return {}
    return {CLASSES_KEY: ArrayRecord({CLASSES_KEY: Array(np.packbits(training.classes))})}


def metrics_reply(message: Message, metrics: dict[str, int | float]) -> Message:
    """Returns a reply with metrics and nothing else."""
    record = trusted_record(MetricRecord, metrics)
    return Message(content_of({METRICS_KEY: record}), reply_to=message)
