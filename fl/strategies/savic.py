"""SAVIC: local SGD whose clients share a diagonal preconditioner, renewed when they communicate.

Chezhegov, Skorik, Khachaturov, Shalagin, Avetisyan, Takac, Kholodov, Beznosikov: "Local
Methods with Adaptivity via Scaling", arXiv:2406.00846. Rules of the preconditioner: Adam,
arXiv:1412.6980; OASIS, arXiv:2109.05198.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from fl.checks import positive, share
from fl.errors import ConfigError
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row

_MOST = 2**31  # probes are told apart by numbers below


class Scaled(NamedTuple):
    """Model, shape (d,), preconditioner, shape (p,), and how often it has been renewed.

    Attributes:
        w: the model.
        D: of Adam and RMSProp the square of what gradients are divided by, before the bound.
        t: 0 before the first statistics.
    """

    w: Row
    D: Row
    t: int = 0


@dataclass(frozen=True)
class SAVIC(RoundRule):
    """The server of SAVIC, with S the clients of a round; see `fl.clients.SharedScaling`.

        clients do K steps of    y_i <- y_i - gamma D^-1 g_i
        w <- 1 / |S| sum_(i in S) y_i,    H <- 1 / |S| sum_(i in S) H_i
        rmsprop:   D^2 <- beta D^2 + (1 - beta) H^2,    H_i a gradient of client i
        adam:      the same, beta replaced by (beta - beta^t) / (1 - beta^t) at the t-th time
        oasis:     D <- beta D + (1 - beta) H,    H_i = z * (Hessian z), z random signs
        D of the steps: max(alpha, |D|)

    D is the same for all clients and for all steps of a round. It goes out beside the model, H_i
    comes back beside the reply: twice the bytes of FedAvg both ways. H_i is taken at the received
    model, on the first batch, so D lags by a round and nobody waits for it. In the first round
    there are no statistics: clients do one step, of which only H_i counts, and D is the first H.
    A compressor takes neither: steps are divided by D, so that an entry that it loses, or rounds to
    less, is a step many times too long.
    z is the same for all clients of a round, told by a number. Clients weigh the same, whatever
    their number of examples; those that did no step, nothing.

    D = 1 is `strategy=fedavg` of clients that weigh the same.

    Attributes:
        scaling: "adam", "rmsprop" or "oasis".
        beta: in [0, 1).
        alpha: least that gradients are divided by, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    carries: ClassVar[tuple[str, ...]] = ("scaling",)
    needs: ClassVar[tuple[str, ...]] = ("statistic",)
    exact: ClassVar[tuple[str, ...]] = ("scaling", "statistic")
    prepares: ClassVar[int] = 1
    folds: ClassVar[bool] = False

    scaling: Literal["adam", "rmsprop", "oasis"] = "adam"
    beta: float = 0.99
    alpha: float = 0.1

    def __post_init__(self) -> None:
        if self.scaling not in ("adam", "rmsprop", "oasis"):
            raise ConfigError(f"scaling is {self.scaling!r}; it must be adam, rmsprop or oasis")
        share("beta", self.beta)
        positive("alpha", self.alpha)

    def init(self, w: Row, p: int) -> Scaled:
        """Returns the model, and gradients as they are."""
        return Scaled(w, np.ones(p, np.float32))

    def broadcast(self, state: Scaled) -> Mapping[str, Row]:
        """Returns what gradients are divided by."""
        D = np.abs(state.D) if self.scaling == "oasis" else np.sqrt(state.D)
        return {"scaling": np.maximum(np.float32(self.alpha), D) if state.t else state.D}

    def configs(
        self, state: Scaled, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns the number of z, where there is one, and that the first round has one step."""
        told: dict[str, Any] = {} if state.t else {"local-steps": 1}
        if self.scaling == "oasis":
            told["savic-probe"] = int(rng.integers(_MOST))
        return [told] * n

    def step(self, state: Scaled, updates: Updates) -> Scaled:
        """Returns model and preconditioner after a round."""
        updates, t = updates.unweighted(), state.t + 1
        H = updates.extra("statistic").mean()
        if self.scaling != "oasis":
            H = H * H
        beta = self.beta
        if self.scaling == "adam":
            beta = (beta - beta**t) / (1 - beta**t)
        D = np.float32(beta) * state.D + np.float32(1 - beta) * H if state.t else H
        return Scaled(state.w + updates.mean() if state.t else state.w, D, t)
