"""FedProx: devices may return partial work instead of being dropped.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks",
arXiv:1812.06127 (MLSys 2020); protocol as in the authors' code, litian96/FedProx.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fl.checks import read_if
from fl.errors import ConfigError
from fl.strategies.fedavg import FedAvg


@read_if(
    lambda a: a["straggler_fraction"] > 0,
    "drop_stragglers",
    only="there are stragglers only with {at}straggler_fraction above 0",
)
@dataclass(frozen=True)
class FedProx(FedAvg):
    """FedAvg of clients with a proximal term, and the paper's protocol for stragglers.

    Of the S devices selected in a round, round(S (1 - s)) are active and train E epochs. The other
    are stragglers: each has time for e epochs only, e uniform on {1, ..., E - 1} as in the authors'
    code (the paper, section 5.2, writes [1, E]). FedProx averages what they return, weighted by the
    devices' numbers of examples; FedAvg, to which the paper compares, drops them. Which devices are
    selected and which are stragglers depends on the seed and the round, not on the method.

    The proximal term mu/2 |w - w_t|^2 is the clients' (`client/correction=proximal`); mu goes out
    with the model.

    Attributes:
        mu: at least 0; with 0 and without stragglers this is FedAvg.
        straggler_fraction: s in [0, 1).
        local_epochs: E, at least 2 if there are stragglers; None, without stragglers, leaves it to
            the clients how much they do.
        drop_stragglers: do not train stragglers at all (the paper's FedAvg).

    Raises:
        ConfigError: an argument is out of its range.
    """

    tells: ClassVar[Mapping[str, str]] = {"local-epochs": "local_epochs", "proximal-mu": "mu"}

    mu: float = 0.1
    straggler_fraction: float = 0.0
    local_epochs: int | None = 20
    drop_stragglers: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.mu < np.inf:
            raise ConfigError(f"mu is {self.mu}; it must be at least 0 and finite")
        s, epochs = self.straggler_fraction, self.local_epochs
        if not 0 <= s < 1:
            raise ConfigError(f"straggler_fraction is {s}; it must lie in [0, 1)")
        if epochs is None and not s:
            return
        least = 2 if s else 1
        if isinstance(epochs, bool) or not isinstance(epochs, int):
            raise ConfigError(
                f"local_epochs is {epochs!r}; it must be a whole number, at least "
                f"{least}: set it, if client.local_steps leaves client.local_epochs null"
            )
        if epochs < least:
            raise ConfigError(
                f"local_epochs is {epochs}; it must be at least {least}, and 2 with "
                "stragglers, because a straggler does between 1 and local_epochs - 1"
            )

    def configs(
        self, state: Any, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns for each device how many epochs it has time for; None for one that is dropped."""
        if self.local_epochs is None:
            return [{"proximal-mu": self.mu}] * n
        active = round(n * (1 - self.straggler_fraction))
        stragglers = set(rng.permutation(n)[active:].tolist())
        epochs = rng.integers(1, max(self.local_epochs, 2), size=n)
        told: list[Mapping[str, Any] | None] = []
        for i in range(n):
            e = int(epochs[i]) if i in stragglers else self.local_epochs
            config = {"local-epochs": e, "proximal-mu": self.mu}
            told.append(None if self.drop_stragglers and i in stragglers else config)
        return told
