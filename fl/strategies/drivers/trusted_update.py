"""An update of examples that the server holds itself, for rules that trust it.

Cao, Fang, Liu, Gong: FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping, NDSS
2021, arXiv:2012.13995, section IV: the server collects a small clean root data set by itself and
trains on it, in each round, as the clients do on theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from torch import nn

from fl.clients import TrainingApp
from fl.data import FederatedData, Partitions
from fl.errors import ConfigError
from fl.flower.private import give_id
from fl.flower.records import from_record, layout_of
from fl.randomness import SEED_KEY, generator
from fl.vectors.rows import Row
from fl.vectors.threads import limit_threads


class TrustedUpdate:
    """What the clients' rule makes of the model on the server's own examples: g_0 = w_0 - w.

    The server does what a client would: the same rule, steps, batches and message configuration,
    but for "deadline-s", which is a matter of devices. It takes no simulated time: a server that
    trains while its clients do is not what a round waits for.

    Args:
        app: the clients' app.
        model: makes the model; only its structure is used.
        data: clean; the root examples are drawn from its training examples, uniformly and without
            replacement, as the paper's are from the union of the clients'.
        examples: how many; the paper has 100.
        seed: of the draw, and of the batches.

    Raises:
        ConfigError: there are not so many examples.
    """

    def __init__(
        self,
        app: TrainingApp,
        model: Callable[[], nn.Module],
        data: FederatedData,
        *,
        examples: int,
        seed: int,
    ) -> None:
        if not 1 <= examples <= len(data.train):
            raise ConfigError(
                f"strategy.root_examples is {examples}, of {len(data.train)} training examples: "
                "it must be at least 1, and at most so many"
            )
        rows = generator(seed, "root-examples").choice(len(data.train), examples, replace=False)
        root = replace(
            data,
            train=data.train.take(np.sort(rows)),
            partitions=Partitions.contiguous([examples]),
            test_partitions=None,
            clusters=None,
            drift=None,
        )
        self._app = TrainingApp(
            model,
            root,
            app.rule,
            local_layers=app.local_layers,
            batch_size=app.batch_size,
            local_epochs=app.local_epochs,
            local_steps=app.local_steps,
            shuffle=app.shuffle,
            drop_last=app.drop_last,
        )
        node_config = {"partition-id": 0, "num-partitions": 1}
        self._context = Context(0, SUPERLINK_NODE_ID, node_config, RecordDict(), {SEED_KEY: seed})  # type: ignore[arg-type]

    def __call__(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord) -> Row:
        """Returns g_0, shape (d,).

        The rule's memory goes on from the last call, so call it once in a round.

        Args:
            server_round: names the batches.
            arrays: the model that the clients get.
            config: that they get with it.
        """
        told = ConfigRecord({k: v for k, v in config.items() if k != "deadline-s"})
        content = RecordDict({"arrays": arrays, "config": told})
        message = Message(content, SUPERLINK_NODE_ID, "train")
        give_id(message, f"root.{server_round}")
        with limit_threads(1):
            reply = self._app(message, self._context)
        layout = layout_of(arrays)
        trained = reply.content.array_records["arrays"]
        # What is not finite is for the rule that is given it: the round then changes nothing.
        with np.errstate(over="ignore", invalid="ignore"):
            made = from_record(layout, trained, finite=False)
            return np.asarray(made - from_record(layout, arrays))
