"""Local training of one client, as a message and its own state ask for it; what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from flwr.app import Array
from numpy.typing import NDArray
from torch import Tensor

from fl.errors import ConfigError
from fl.vectors.rows import Row


@dataclass(slots=True)
class Training:
    """Local training that a message asks for.

    Attributes:
        seed, client, message_id: name the random streams.
        rows: the client's examples, as rows of the data set's training examples, int64, (n,).
        row: the received model, shape (d,), read-only; those of one broadcast share it.
        carried: entries of the model outside the row.
        server: vectors that came beside the model, (p,) each.
        memory: what the rule kept when this client last trained; None if this is the first time.
        scalars: what the rule made of the message's configuration.
        steps: how many steps to do.
        batch_size: examples of a step; None takes all of the client's.
        deadline_s: wall seconds after which no further step starts; None for a simulated device,
            whose time is in `steps`.
        in_order: take the examples in the order of the data, whatever the clients' `shuffle`.
        model: which of several received models `row` is; None if there was one, or it is a mixture.
        mixture: shares of several received models in `row`, shape (k,); None if it is no mixture.
        classes: of which the loss is, shape (C,), bool; None is all.
    """

    seed: int
    client: int
    message_id: str
    rows: NDArray[np.int64]
    row: Row
    carried: dict[str, Array]
    server: dict[str, Tensor]
    memory: dict[str, Tensor] | None
    scalars: dict[str, float]
    steps: int
    batch_size: int | None
    deadline_s: float | None
    in_order: bool = False
    model: int | None = None
    mixture: NDArray[np.float64] | None = None
    classes: NDArray[np.bool_] | None = None

    @property
    def examples(self) -> int:
        """Number of training examples the client has."""
        return len(self.rows)

    def again(self, message_id: str) -> Training:
        """Returns the same for another message; `dataclasses.replace` takes five times as long."""
        return Training(
            self.seed,
            self.client,
            message_id,
            self.rows,
            self.row,
            self.carried,
            self.server,
            self.memory,
            self.scalars,
            self.steps,
            self.batch_size,
            self.deadline_s,
            self.in_order,
            self.model,
            self.mixture,
            self.classes,
        )


def moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Returns the same tensors on a device; those that are there are not copied."""
    return {name: tensor.to(device) for name, tensor in tensors.items()}


def found_device(name: str) -> torch.device:
    """Returns the device of a name, where PyTorch can use it.

    Raises:
        ConfigError: it cannot.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"client.device is {name!r}, which PyTorch cannot use here "
            f"({str(error).splitlines()[0]}): use 'cpu', or a PyTorch built for the device"
        ) from error
    return device


HOST = torch.device("cpu")
"""Where models come from and what came of them goes to."""


@dataclass(slots=True)
class Trained:
    """What came of the training of n clients, as matrices with a row for each, in host memory.

    Attributes:
        rows: the models to upload, shape (n, d), float32; or (n, 0), if they are those that came.
        carried: entries of the models outside the rows, the same for all n.
        extras: vectors to upload beside them, (n, p) each, or (n, 0) for zeros.
        memory: what the clients keep, (n, ...) each.
        losses: mean loss over each client's steps.
        steps: how many steps each client did.
    """

    rows: Tensor
    carried: dict[str, Array]
    extras: dict[str, Tensor]
    memory: dict[str, Tensor]
    losses: list[float]
    steps: list[int]
