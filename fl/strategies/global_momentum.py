"""FedAvg-M and SCAFFOLD-M: clients that mix the server's last direction into their steps.

Cheng, Huang, Wu, Yuan, "Momentum Benefits Non-IID Federated Learning Simply and Provably",
arXiv:2306.16504 (ICLR 2024); FedAvg-M is also FedCM, arXiv:2106.10874. Not to be taken for FedAvgM,
whose momentum is the server's alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fl.checks import at_least, fraction, positive
from fl.strategies.fednova import refused_steps
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class Moving(NamedTuple):
    """Model, shape (d,), direction, shape (p,), and how far the model last went along it."""

    w: Row
    g: Row
    length: float


@dataclass(frozen=True)
class FedAvgMomentum(RoundRule):
    """The server of FedAvg-M, with S the clients of a round; see `fl.clients.GlobalMomentum`.

        g <- 1 / (lr K |S|) sum_(i in S) (w - w_i)
        w <- w + eta / |S| sum_(i in S) (w_i - w)

    so that gamma of the paper, by which w goes along -g, is eta lr K. g starts at 0, which makes
    the first round's steps beta times as long, and travels beside the model. Clients weigh the
    same, whatever their number of examples; those that did no step, nothing. With beta = 1 this is
    FedAvg with equal weights, and with variance reduction (`client.correction.variance_reduction`)
    too.

    K is the metric "steps", as a mean over the clients, and the median with an aggregator other
    than the mean. lr is what clients start from: with a schedule over rounds, or weight decay or
    momentum on the client, g is what they did per step, in units of lr, and no mean of gradients.

    Attributes:
        beta: weight of the gradient, in (0, 1].
        lr: the clients' learning rate, above 0.
        eta: server learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    carries: ClassVar[tuple[str, ...]] = ("momentum",)
    reads: ClassVar[tuple[str, ...]] = ("steps",)
    tells: ClassVar[Mapping[str, str]] = {"momentum-beta": "beta"}
    folds: ClassVar[bool] = False

    beta: float = 0.1
    lr: float = 0.1
    eta: float = 1.0

    def __post_init__(self) -> None:
        fraction("beta", self.beta)
        positive("lr", self.lr)
        positive("eta", self.eta)

    @property
    def assumes(self) -> Mapping[str, str]:
        """The clients' learning rate."""
        return {"lr": "lr"}

    def init(self, w: Row, p: int) -> Any:
        """Returns the model at rest."""
        return Moving(w, np.zeros(p, np.float32), 0.0)

    def broadcast(self, state: Any) -> Mapping[str, Row]:
        """Returns g."""
        return {"momentum": state.g}

    def configs(
        self, state: Any, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns beta, and how far back the last model is, for every client."""
        return [{"momentum-beta": self.beta, "momentum-length": state.length}] * n

    def refuses(self, metrics: Mapping[str, Any]) -> str | None:
        """Refuses numbers of steps that nobody can have done."""
        return refused_steps(metrics)

    def step(self, state: Any, updates: Updates) -> Any:
        """Returns the state after a step."""
        updates = updates.unweighted()
        delta = updates.mean()
        length = self.lr * updates.typical(updates.metric("steps"))
        g = np.float32(-1 / length) * updates.of_trained(delta)
        w = state.w + np.float32(self.eta) * delta
        return state._replace(w=w, g=g, length=self.eta * length)


class ControlledMoving(NamedTuple):
    """As `Moving`, and the control variate, shape (p,)."""

    w: Row
    g: Row
    length: float
    c: Row


@dataclass(frozen=True)
class SCAFFOLDMomentum(FedAvgMomentum):
    """The server of SCAFFOLD-M; see `fl.clients.ControlledMomentum`.

        g, w as in FedAvg-M
        c <- c + 1 / N sum_(i in S) (c_i+ - c_i)

    c and g travel beside the model, and the change of c_i beside the reply. After every round c is
    the mean of all clients' c_i, unless a reply has been lost, left out or too late. With beta = 1
    this is SCAFFOLD.

    Attributes:
        num_clients: N.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    carries: ClassVar[tuple[str, ...]] = ("momentum", "c")
    needs: ClassVar[tuple[str, ...]] = ("delta_c",)

    num_clients: int = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("num_clients", self.num_clients, 1)

    def init(self, w: Row, p: int) -> ControlledMoving:
        """Returns the model at rest, without control."""
        zero = np.zeros(p, np.float32)
        return ControlledMoving(w, zero, 0.0, zero)

    def broadcast(self, state: ControlledMoving) -> Mapping[str, Row]:
        """Returns g and c."""
        return {**super().broadcast(state), "c": state.c}

    def step(self, state: ControlledMoving, updates: Updates) -> Any:
        """Returns the state after a step."""
        updates = updates.unweighted()
        share = np.float32(updates.weights.sum() / self.num_clients)
        c = state.c + share * updates.extra("delta_c").mean()
        return super().step(state, updates)._replace(c=c)
