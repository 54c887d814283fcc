"""Attacks on data: what Byzantine clients train on, honestly."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.attacks.attack import Attack
from fl.data import Examples, FederatedData
from fl.errors import ConfigError
from fl.randomness import generator


class Poisoning(ABC):
    """Changes the examples of Byzantine clients."""

    @abstractmethod
    def check(self, data: FederatedData) -> None:
        """Raises ConfigError unless the data can be poisoned in this way."""

    @abstractmethod
    def poison(
        self, x: NDArray[Any], y: NDArray[np.int64], rng: np.random.Generator
    ) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Returns a client's examples as the attacker wants them.

        Args:
            x: inputs, shape (n, ...), as the data set stores them; not written to.
            y: targets, shape (n,) or (n, T); not written to.
            rng: for attacks that draw.
        """


@dataclass(frozen=True)
class Combined:
    """Byzantine clients that train on poisoned data, and forge what they send as well.

    Attributes:
        poisoning: of their data.
        forging: of what comes out of the training.

    Raises:
        ConfigError: a part is of another kind.
    """

    poisoning: Poisoning
    forging: Attack

    def __post_init__(self) -> None:
        if not isinstance(self.poisoning, Poisoning) or not isinstance(self.forging, Attack):
            raise ConfigError(
                f"Combined: poisoning={self.poisoning!r:.80}, forging={self.forging!r:.80}: need "
                "an attack on data, and one on what clients send"
            )


def byzantine_clients(num_clients: int, number: int, seed: int) -> tuple[int, ...]:
    """Returns which clients are Byzantine, drawn without replacement, in ascending order.

    Args:
        num_clients: of the fleet.
        number: how many are Byzantine.
        seed: of the draw.

    Raises:
        ConfigError: `number` is not between 1 and num_clients - 1.
    """
    if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number < num_clients:
        raise ConfigError(
            f"num_byzantine is {number!r} of {num_clients} clients; with an attack it must be a "
            f"whole number from 1 to {num_clients - 1}"
        )
    drawn = generator(seed, "byzantine").choice(num_clients, size=number, replace=False)
    return tuple(sorted(int(client) for client in drawn))


def poisoned(
    data: FederatedData, poisoning: Poisoning, clients: Collection[int], num_clients: int, seed: int
) -> FederatedData:
    """Returns the data with the training examples of some clients poisoned.

    Held-out examples are left as they are. The numbers drawn for a client depend on the seed and
    the client alone.

    Args:
        data: dealt to clients; not written to.
        poisoning: what is done.
        clients: the Byzantine ones.
        num_clients: of the fleet.
        seed: of attacks that draw.

    Raises:
        ConfigError: clients share partitions, or partitions share examples, so that honest clients
            would train on poisoned ones; or the attack does not fit the data.
    """
    poisoning.check(data)
    if data.drift is not None:
        raise ConfigError(
            "clients' examples change in time, so honest clients would come to have poisoned ones: "
            "leave partition.drift_s out, or use an attack on what clients send"
        )
    if data.num_partitions < num_clients:
        raise ConfigError(
            f"{num_clients} clients share {data.num_partitions} partitions, so honest clients "
            "would train on poisoned data: deal as many partitions as there are clients "
            "(partition.num_partitions)"
        )
    rows = {client: data.partitions[client] for client in clients}
    honest = [data.partitions[p] for p in range(num_clients) if p not in rows]
    if np.isin(np.concatenate(list(rows.values())), np.concatenate(honest)).any():
        raise ConfigError(
            "Byzantine and honest clients have examples in common, so honest clients would train "
            "on poisoned data: use a partition that deals every example once"
        )
    x, y = data.train.x.copy(), data.train.y.copy()
    for client, own in rows.items():
        rng = generator(seed, "poisoning", client)
        x[own], y[own] = poisoning.poison(x[own], y[own], rng)
    return replace(data, train=Examples(x, y))
