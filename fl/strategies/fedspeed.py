"""FedSpeed: FedDyn's regulariser with gradients taken where the loss is worst.

Sun, Shen, Huang, Ding, Tao, "FedSpeed: Larger Local Interval, Less Communication Round, and Higher
Generalization Accuracy", arXiv:2302.10429 (ICLR 2023); authors' code woodenchild95/FL-Simulator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fl.errors import ConfigError
from fl.strategies.feddyn import FedDyn, Regularised
from fl.strategies.round_rule import Updates


@dataclass(frozen=True)
class FedSpeed(FedDyn):
    """The two servers of FedSpeed, with `client=sam` and `fl.clients.DynamicRegularization`.

    Clients step by the gradient at the worst point nearby, corrected by their dual (a_i, ghat_i in
    the paper) and a pull of weight alpha = 1 / lambda. The server's next model is

        duals: all       mean_(i in S) w_i - h / alpha,  h the mean of all N clients' a_i
        duals: active    mean_(i in S) (w_i - a_i / alpha)

    The first is the server of the authors' code, which is FedDyn's; the second that of the paper,
    which has only the duals of the round. With all clients in every round they agree; with a part
    of them the second does not settle (a test shows it on quadratics; so report users of the code).

    Departures: those of FedDyn. The gradient is that of the worst point alone (alpha of the paper's
    mixture is 1), as in its experiments.

    Attributes:
        duals: whose duals move the model.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    tells: ClassVar[Mapping[str, str]] = {**FedDyn.tells, "feddyn-sends-dual": "sends_dual"}

    duals: Literal["all", "active"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.duals not in ("all", "active"):
            raise ConfigError(f"duals is {self.duals!r}; it must be 'all' or 'active'")

    @property
    def sends_dual(self) -> bool:
        """Whether clients send their duals with the model."""
        return self.duals == "active"

    def configs(
        self, state: Regularised, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns alpha, and whether the dual is sent, for every client."""
        return [{"feddyn-alpha": self.alpha, "feddyn-sends-dual": self.sends_dual}] * n

    def step(self, state: Regularised, updates: Updates) -> Regularised:
        """Returns model and pull after a step; with active duals the pull stays 0."""
        if not self.sends_dual:
            return super().step(state, updates)
        return state._replace(w=state.w + updates.unweighted().mean())
