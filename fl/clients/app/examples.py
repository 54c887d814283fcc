"""Training examples on their way from storage to a mini-batch."""

from __future__ import annotations

from functools import cached_property
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fl.data import FederatedData

MAX_POOL_BYTES = 512 * 2**20


class ExamplePool:
    """Gives any rows of a data set's training examples as tensors ready for a model.

    Storage is small (images as bytes), models want float32. Converting every batch anew takes a
    good part of a small model's training time, so the whole set is converted once, at first use,
    if the result takes at most `MAX_POOL_BYTES` in each process; the numbers are the same.

    Args:
        data: where the examples come from.
        device: where mini-batches are to be, and with them the training.
    """

    def __init__(self, data: FederatedData, device: torch.device | None = None) -> None:
        self.data = data
        self.device = torch.device("cpu") if device is None else device

    def __getstate__(self) -> dict[str, object]:
        """Leaves the converted examples behind: another process makes its own, if it needs them."""
        return {"data": self.data, "device": self.device}

    @cached_property
    def _pool(self) -> tuple[Tensor, Tensor] | None:
        width = 8 if self.data.task == "next-token" else 4
        if len(self.data.train) * prod(self.data.input_shape) * width > MAX_POOL_BYTES:
            return None
        return self._convert(np.arange(len(self.data.train)))

    def _convert(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        x, y = self.data.tensors(self.data.train, rows)
        return x.to(self.device), y.to(self.device)

    def take(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Returns inputs and targets of the given rows.

        Args:
            rows: of `data.train`, int64, any shape (...,).

        Returns:
            Inputs (..., *input_shape) and targets (...,) or (..., T) on the device; memory of their
            own.
        """
        flat = rows.reshape(-1)
        if self._pool is None:
            x, y = self._convert(flat)
        else:
            index = torch.from_numpy(flat).to(self.device)
            x, y = (part.index_select(0, index) for part in self._pool)
        return x.view(*rows.shape, *x.shape[1:]), y.view(*rows.shape, *y.shape[1:])
