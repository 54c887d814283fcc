"""What the clients' computers are: compute speed, memory and power, one row per client.

Columns are NumPy arrays. A column that is equal for all clients may be a broadcast view
(`numpy.broadcast_to`), which costs no memory, so nothing in this package writes into a column.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError


@dataclass(frozen=True, eq=False)
class Devices:
    """Columns of device properties, one row per client.

    `flops` is an effective rate: the training FLOPs of a model (counted as
    `torch.utils.flop_counter` counts them, forward and backward) over the seconds a device of this
    kind needs. It is not the peak of a data sheet.

    Attributes:
        kind: index into `kinds`, integer, shape (n,).
        kinds: names of the kinds of device.
        flops: effective training speed in FLOP/s, float64, shape (n,).
        memory_bytes: memory that training may use, in bytes, float64, shape (n,).
        idle_w: power in W while waiting, float64, shape (n,).
        compute_w: power in W while training, float64, shape (n,).
        radio_w: power in W while sending or receiving, float64, shape (n,).
        jitter: sigma of the log-normal factor on the time of each task; the factor's mean is 1.
        mains: whether they are on the mains, without batteries of their own.
    """

    kind: NDArray[np.integer]
    kinds: tuple[str, ...]
    flops: NDArray[np.float64]
    memory_bytes: NDArray[np.float64]
    idle_w: NDArray[np.float64]
    compute_w: NDArray[np.float64]
    radio_w: NDArray[np.float64]
    jitter: float = 0.0
    mains: bool = False

    def __len__(self) -> int:
        return len(self.flops)

    def kind_name(self, client: int) -> str:
        """Returns the name of the client's kind of device."""
        return self.kinds[int(self.kind[client])]


class TaskSeconds(Protocol):
    """Task times that do not follow from FLOPs and speed."""

    @property
    def flops(self) -> float | None:
        """Work that takes these seconds, other work in proportion; None: every task does."""

    def of(self, client: int, dispatch: int) -> float:
        """Returns the seconds of the client's task number `dispatch`."""

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if there are no times for so many clients."""


@dataclass(frozen=True, eq=False)
class MeasuredSeconds:
    """Measured task times in place of FLOPs over speed: task k of client w takes seconds[k, w].

    Attributes:
        seconds: float32 or float64, shape (rounds, workers).
        wrap: whether clients and rounds beyond the file's reuse it from the beginning (modulo).
        source: where the numbers come from, for messages.
        flops: work that was measured, other work in proportion; None: every task takes as long.
    """

    seconds: NDArray[np.floating]
    wrap: bool = False
    source: str = "the measured seconds"
    flops: float | None = None

    def __post_init__(self) -> None:
        if self.seconds.ndim != 2 or self.seconds.size == 0:
            raise ConfigError(
                f"{self.source} has shape {self.seconds.shape}; it must be (rounds, workers), "
                "with at least one of each."
            )
        bad = np.argwhere(~(np.isfinite(self.seconds) & (self.seconds > 0)))
        if len(bad):
            k, worker = bad[0]
            raise ConfigError(
                f"{self.source}: round {k} of worker {worker} took {self.seconds[k, worker]} s; "
                f"it must be positive and finite ({len(bad)} entries are not). Correct the file."
            )

    def check_clients(self, num_clients: int) -> None:
        """Raises ConfigError if there are more clients than measured workers, unless `wrap`."""
        workers = self.seconds.shape[1]
        if num_clients > workers and not self.wrap:
            raise ConfigError(
                f"num_clients is {num_clients}, but {self.source} has {workers} workers. Use at "
                f"most {workers} clients, or set wrap: true to use the workers again from the "
                "first."
            )

    def of(self, client: int, dispatch: int) -> float:
        """Returns the seconds of the client's task number `dispatch`.

        Raises:
            ConfigError: the file has fewer rounds, and `wrap` is false.
        """
        rounds, workers = self.seconds.shape
        if dispatch >= rounds and not self.wrap:
            raise ConfigError(
                f"client {client} starts its task number {dispatch + 1}, but {self.source} has "
                f"{rounds} rounds. Run at most {rounds} tasks per client, or set wrap: true to use "
                "the rounds again from the first."
            )
        return float(self.seconds[dispatch % rounds, client % workers])
