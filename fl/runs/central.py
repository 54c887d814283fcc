"""What all data in one place would give: the bound that federated training is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID

from fl.clients import TrainingApp
from fl.data import Partitions
from fl.flower.identity import RUN_ID, assume_identity
from fl.flower.private import give_id
from fl.randomness import SEED_KEY
from fl.runs.evaluation import central_evaluation
from fl.runs.experiment import Learning
from fl.vectors.threads import limit_threads


def train_centrally(experiment: Learning, epochs: int, seed: int) -> Mapping[str, float]:
    """Returns the metrics of the same model and client rule trained on all data in one place.

    Without a correction of gradients: it is for what clients do apart from each other.

    Args:
        experiment: its model, client rule and data are used.
        epochs: passes over the pooled training examples.
        seed: of the order of the examples.
    """
    data = experiment.data
    everything = Partitions.contiguous([len(data.train)])
    if data.test_in_train and data.test_partitions is not None:
        held_out = data.test_partitions.indices
        everything = Partitions.from_arrays([np.setdiff1d(everything.indices, held_out)])
    pooled = replace(
        data, partitions=everything, test_partitions=None, test_in_train=False, drift=None
    )
    app = TrainingApp(
        experiment.model,
        pooled,
        experiment.app.optimizer,
        batch_size=experiment.app.batch_size,
        drop_last=experiment.app.drop_last,
        local_epochs=epochs,
    )
    assume_identity()
    here = Learning(experiment.data, experiment.model, app, experiment.backdoored)
    message = Message(
        RecordDict({"arrays": here.initial(), "config": ConfigRecord({"server-round": 1})}),
        SUPERLINK_NODE_ID + 1,
        "train",
    )
    give_id(message, "central")
    node_config: Any = {"partition-id": 0, "num-partitions": 1}
    context = Context(RUN_ID, 0, node_config, RecordDict(), {SEED_KEY: seed})
    with limit_threads(1):
        reply = app(message, context)
    metrics: Any = central_evaluation(here)(1, reply.content.array_records["arrays"])
    return {name: float(value) for name, value in metrics.items()}
