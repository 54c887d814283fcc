import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, Metadata, RecordDict
from torch import nn

from fl.data import Examples, FederatedData
from fl.data.federated import Partitions
from fl.flower.private import message_of
from fl.flower.records import from_record
from fl.models import MLP, LogisticRegression, per_example_loss
from fl.randomness import SEED_KEY, generator
from fl.vectors.layout import Layout

SEED = 3
CLASSES = 4
SHAPE = (6,)


@pytest.fixture
def federated() -> Callable[..., FederatedData]:
    """Makes data with partitions of the given sizes: Gaussian inputs, random classes."""

    def make(sizes: Sequence[int], test_sizes: Sequence[int] | None = None) -> FederatedData:
        rng = np.random.default_rng(7)

        def examples(n: int) -> Examples:
            x = rng.standard_normal((n, *SHAPE)).astype(np.float32)
            return Examples(x, rng.integers(0, CLASSES, n))

        return FederatedData(
            name="toy",
            train=examples(sum(sizes)),
            test=examples(max(sum(test_sizes or ()), 1)),
            partitions=Partitions.contiguous(sizes),
            num_classes=CLASSES,
            input_shape=SHAPE,
            test_partitions=None if test_sizes is None else Partitions.contiguous(test_sizes),
        )

    return make


@pytest.fixture
def mlp() -> nn.Module:
    torch.manual_seed(0)
    return MLP(SHAPE, CLASSES, hidden=(5,))


@pytest.fixture
def logistic() -> nn.Module:
    torch.manual_seed(0)
    return LogisticRegression(SHAPE, CLASSES, init="glorot")


@pytest.fixture
def content_of() -> Callable[..., RecordDict]:
    """Makes what a strategy sends: a model and a configuration."""

    def make(model: nn.Module | ArrayRecord, **config: Any) -> RecordDict:
        arrays = model if isinstance(model, ArrayRecord) else ArrayRecord(model.state_dict())
        named = {key.replace("_", "-"): value for key, value in config.items()}
        return RecordDict({"arrays": arrays, "config": ConfigRecord({"server-round": 1, **named})})

    return make


@pytest.fixture
def message_to() -> Callable[..., Message]:
    """Makes a message as a client receives it."""

    def make(
        content: RecordDict, client: int = 0, dispatch: int = 0, kind: str = "train"
    ) -> Message:
        metadata = Metadata(
            1, f"{client}.{dispatch}", 1, 2 + client, "", "1", time.time(), 3600.0, kind
        )
        return message_of(metadata, content=content)

    return make


@pytest.fixture
def context_of() -> Callable[..., Context]:
    """Makes the context of a client's node."""

    def make(client: int = 0, seed: int = SEED, partitions: int = 10) -> Context:
        node_config = {"partition-id": client, "num-partitions": partitions}
        return Context(1, 2 + client, node_config, RecordDict(), {SEED_KEY: seed})

    return make


@pytest.fixture
def torch_loop() -> Callable[..., np.ndarray]:
    """Trains as anybody would with PyTorch: the oracle. Returns the final row."""

    def train(
        model: nn.Module,
        data: FederatedData,
        optimizer: Callable[[Any], torch.optim.Optimizer],
        client: int,
        *,
        dispatch: int = 0,
        batch_size: int,
        epochs: int = 1,
        steps: int | None = None,
        seed: int = SEED,
        clip_norm: float | None = None,
        on_step: Callable[[torch.optim.Optimizer, int], None] | None = None,
        shuffle: bool = True,
        losses: list[float] | None = None,
    ) -> np.ndarray:
        model.train()
        opt = optimizer(model.parameters())
        x, y = data.client(client % data.num_partitions)
        stream = generator(seed, "batches", client, f"{client}.{dispatch}")
        done = 0
        for _ in range(10**6 if steps is not None else epochs):
            order = torch.from_numpy(stream.permutation(len(x)) if shuffle else np.arange(len(x)))
            for batch in order.split(batch_size):
                if steps is not None and done == steps:
                    break
                if on_step is not None:
                    on_step(opt, done)
                opt.zero_grad()
                loss = per_example_loss(model(x[batch]), y[batch]).mean()
                loss.backward()
                if clip_norm is not None:
                    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
                opt.step()
                done += 1
                if losses is not None:
                    losses.append(loss.item())
            if steps is not None and done == steps:
                break
        return from_record(Layout.of(model), ArrayRecord(model.state_dict()))

    return train
