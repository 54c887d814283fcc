"""FedProx: devices may return partial work instead of being dropped.

Li, Sahu, Zaheer, Sanjabi, Talwalkar, Smith, "Federated Optimization in Heterogeneous Networks",
arXiv:1812.06127 (MLSys 2020); protocol as in the authors' code, litian96/FedProx.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid, strategy

from fl.arguments import read_if
from fl.errors import ConfigError
from fl.randomness import generator


@read_if(
    lambda a: a["straggler_fraction"] > 0,
    "drop_stragglers",
    only="there are stragglers only with {at}straggler_fraction above 0",
)
class FedProx(strategy.FedProx):
    """Flower's FedProx with the paper's protocol for stragglers.

    Of the S devices selected in a round, round(S (1 - s)) are active and train E epochs. The other
    are stragglers: each has time for e epochs only, e uniform on {1, ..., E - 1} as in the authors'
    code (the paper, section 5.2, writes [1, E]). FedProx averages what they return, weighted by the
    devices' numbers of examples; FedAvg, to which the paper compares, drops them. Which devices are
    selected and which are stragglers depends on the seed and the round, not on the method.

    The proximal term mu/2 |w - w_t|^2 is the clients' (`client=proximal`); mu goes out with the
    model.

    Args:
        proximal_mu: mu >= 0; with 0 and without stragglers this is FedAvg.
        straggler_fraction: s in [0, 1).
        local_epochs: E >= 2 if there are stragglers.
        drop_stragglers: do not train stragglers at all (the paper's FedAvg).
        seed: of the choice of stragglers and their epochs.
        **flower: arguments of `flwr.serverapp.strategy.FedProx`.

    Raises:
        ConfigError: an argument is out of its range; or, in a round, all devices would be dropped.
    """

    tells: ClassVar[Mapping[str, str]] = {"local-epochs": "local_epochs"}

    def __init__(
        self,
        *,
        proximal_mu: float,
        straggler_fraction: float = 0.0,
        local_epochs: int = 20,
        drop_stragglers: bool = False,
        seed: int = 0,
        **flower: Any,
    ) -> None:
        if not proximal_mu >= 0:
            raise ConfigError(f"proximal_mu is {proximal_mu}; it must be at least 0")
        if not 0 <= straggler_fraction < 1:
            raise ConfigError(f"straggler_fraction is {straggler_fraction}; it must lie in [0, 1)")
        least = 2 if straggler_fraction else 1
        if isinstance(local_epochs, bool) or not isinstance(local_epochs, int):
            raise ConfigError(
                f"local_epochs is {local_epochs!r}; it must be a whole number, at least "
                f"{least}: set it, if client.local_steps leaves client.local_epochs null"
            )
        if local_epochs < least:
            raise ConfigError(
                f"local_epochs is {local_epochs}; it must be at least {least}, and 2 with "
                "stragglers, because a straggler does between 1 and local_epochs - 1"
            )
        super().__init__(proximal_mu=proximal_mu, **flower)
        self.straggler_fraction = straggler_fraction
        self.local_epochs = local_epochs
        self.drop_stragglers = drop_stragglers
        self.seed = seed

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Samples S devices and tells each how many epochs it has time for."""
        config["local-epochs"] = self.local_epochs
        messages = list(super().configure_train(server_round, arrays, config, grid))
        rng = generator(self.seed, "stragglers", server_round)
        active = round(len(messages) * (1 - self.straggler_fraction))
        stragglers = set(rng.permutation(len(messages))[active:].tolist())
        epochs = rng.integers(1, max(self.local_epochs, 2), size=len(messages))
        contents: dict[int, RecordDict] = {}  # equal messages share their content
        for i in sorted(stragglers):
            e = int(epochs[i])
            if e not in contents:
                own = ConfigRecord({**config, "local-epochs": e})
                contents[e] = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: own})
            messages[i].content = contents[e]
        if self.drop_stragglers:
            if stragglers and not active:
                raise ConfigError(
                    f"strategy.straggler_fraction is {self.straggler_fraction}, so none of the "
                    f"{len(messages)} devices of a round is active, and drop_stragglers drops them "
                    "all: lower it, select more devices, or keep stragglers"
                )
            return [message for i, message in enumerate(messages) if i not in stragglers]
        return messages
