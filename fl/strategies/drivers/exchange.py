"""What comes between a strategy and its clients, whatever the strategy.

Every vector passes the same stages, in this order:

1. the model is encoded by the downlink (`Codec.pack`), and clients decode it;
2. a client's update is encoded by the uplink, and decoded (`Codec.open`): a payload that no encoder
   can have made is an error reply; what travels beside the model goes the same ways, each vector
   as payloads of its own;
3. those of Byzantine clients are forged (`Forging`): on what was decoded, then through an encoder
   and a decoder of the attacker's own, so that a forged update looks and costs like another;
4. what has come is validated: its form, its numbers, its weight (`fl.aggregation.Guard`).

The strategy is given what is left, and knows of none of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fl.attacks import Attack
from fl.compression import Channel
from fl.errors import ConfigError
from fl.flower.grid_view import Control, GridView
from fl.stages import Cut
from fl.strategies.drivers.codec import Codec
from fl.strategies.drivers.forging import Forging
from fl.strategies.public_data import PublicData
from fl.submodels import Units
from fl.vectors.layout import Layout
from fl.vectors.rows import Row

Trusted = Callable[[int, ArrayRecord, ConfigRecord], Row]
"""Returns the server's own update, from the round, the model and the configuration that are sent:
see `fl.strategies.TrustedUpdate`."""


class Proxy(Protocol):
    """Losses of a model on the server's own examples of each cluster, as `ProxyLosses` has them.

    Attributes:
        flops: of one model's.
    """

    flops: float

    def __call__(self, x: Row) -> NDArray[np.float64]:
        """Returns the losses of a model of shape (d,), shape (K,)."""


@dataclass(frozen=True)
class Exchange:
    """What comes between; a strategy is given it by `Driver.within`.

    It has no state: a run makes its stages from it.

    Attributes:
        uplink: the channel of what clients send; None leaves it as it is.
        downlink: the channel of what they receive; likewise.
        attack: what Byzantine clients send; None forges nothing.
        byzantine: the clients that carry out an attack, on what they send or on their data, as
            indices in the fleet.
        num_clients: clients there are; read with an uplink.
        seed: of attacks that draw, and of compressors.
        layout: of the clients' model; None if all its entries are trained.
        layouts: of the models of several learning tasks, by name, instead.
        units: of the model, that parts of it may lack, for `sub_models`; see
            `fl.submodels.units_of`.
        classes: of the model's last layer, for `sub_models.masked_loss`; see
            `fl.submodels.classes_of`.
        levels: how much of the model each client holds, by its index, where its device decides;
            none leaves it to the strategy.
        trusted: makes the server's own update, for an aggregator that wants it.
        proxy: losses on the server's own examples of each cluster, for a strategy that wants them.
        public: examples of the server's own, for a strategy that learns from them.
        stages: of the model, for a strategy whose clients hold one each.
        initial: draws initial model j of a strategy with several, from 1; the first it is given.
        max_bytes: most bytes that the server keeps of all clients together for an uplink.

    Raises:
        ConfigError: updates are to be forged over an uplink, and no layout is known.
    """

    uplink: Channel | None = None
    downlink: Channel | None = None
    attack: Attack | None = None
    byzantine: frozenset[int] = frozenset()
    num_clients: int = 0
    seed: int = 0
    layout: Layout | None = None
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    units: Sequence[Units] = ()
    classes: Units | None = None
    levels: Sequence[float] = ()
    trusted: Trusted | None = None
    proxy: Proxy | None = None
    public: PublicData | None = None
    stages: Cut | None = None
    initial: Callable[[int], ArrayRecord] | None = None
    max_bytes: int = 2**30

    def __post_init__(self) -> None:
        known = self.layout is not None or bool(self.layouts)
        if self.attack is not None and self.uplink is not None and not known:
            raise ConfigError("forged updates over an uplink need the layout of the model")

    def layout_of(self, task: str = "") -> Layout | None:
        """Returns the layout of the model of a learning task; "" is the only one."""
        return self.layouts.get(task, self.layout)

    def check(self, grid: Grid) -> None:
        """Raises ConfigError if updates are to be forged on a grid that is not simulated."""
        if self.attack is not None and not GridView(grid).clock.virtual:
            raise ConfigError(
                f"{type(self.attack).__name__} is simulated: it replaces what clients send, so it "
                f"runs on the simulator only, and {type(grid).__name__} is a real grid: leave the "
                "attack out"
            )

    def codec(
        self,
        control: Control,
        arrays_key: str,
        config_key: str,
        carries: Sequence[str] = (),
        needs: Sequence[str] = (),
    ) -> Codec | None:
        """Returns the server's ends of the links for a new run; None if nothing is compressed.

        Args:
            control: of the run's grid.
            arrays_key: name of the model's record in messages.
            config_key: name of their configuration's.
            carries: records of messages with a vector beside the model, to be compressed.
            needs: likewise of replies.
        """
        if self.uplink is None and self.downlink is None:
            return None
        return Codec(self, control, arrays_key, config_key, carries, needs)

    def forging(self, task: str = "") -> Forging | None:
        """Returns what forges updates of a model in a new run; None if nothing does."""
        return None if self.attack is None else Forging(self.attack, self, task)
