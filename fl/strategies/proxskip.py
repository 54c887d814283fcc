"""ProxSkip: local steps until a coin falls, with shifts that make their fixed point the solution.

Zhang, Choudhury, Stich, Loizou, "Communication-Efficient Gradient Descent-Ascent Methods for
Distributed Variational Inequalities: Unified Analysis and Local Updates", arXiv:2306.05100 (ICLR
2024), ProxSkip-VIP-FL; authors' code isayantan/ProxSkipVIP. For the minimum of a mean it is
Scaffnew: Mishchenko, Malinovsky, Stich, Richtarik, "ProxSkip: Yes! Local Gradient Steps Provably
Lead to Communication Acceleration! Finally!", arXiv:2202.09357 (ICML 2022), Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fl.checks import fraction
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class Agreed(NamedTuple):
    """The model, shape (d,), and how many communications have made it."""

    w: Row
    communications: int = 0


@dataclass(frozen=True)
class ProxSkip(RoundRule):
    """The server of ProxSkip-VIP-FL; `fl.clients.ProxSkipShift` has what clients do.

        K ~ Geometric(p) local steps for every client:    x_i <- x_i - gamma (g_i - h_i)
        then a communication:    x <- mean_i (x_i - gamma / p h_i)
                                 h_i <- h_i + p / gamma (x - x_i),    x_i <- x

    A coin with probability p after every step, the same for all clients, says when they
    communicate; its steps are drawn here at once, and the message says how many there are. The sum
    of the h_i is 0 after a communication, whatever it was before.

    A communication takes all clients: x without the part of client j is off by gamma / p h_j / N,
    which does not vanish at the solution. A round that lacks a reply is therefore as if it had not
    been (`min_fraction: 1.0`): the model stays, and clients begin again from it with the h_i that
    they had. With a smaller `min_fraction`, or where `min_available_nodes` lets a round begin
    without all, those that are there communicate; then every loss moves the model by that much.
    Clients weigh the same, whatever their number of examples; those without any have no part in
    the mean. Nothing travels but the model.

    Attributes:
        p: probability of a communication after a step, in (0, 1]. 1 is distributed gradient
            descent. Theory has sqrt(gamma mu) with mu the strong monotonicity of the operator.

    Raises:
        ConfigError: p is out of range.
    """

    tells: ClassVar[Mapping[str, str]] = {"proxskip-p": "p", "local-steps": "mean_steps"}
    folds: ClassVar[bool] = False
    everybody: ClassVar[bool] = True

    p: float = 0.2

    def __post_init__(self) -> None:
        fraction("p", self.p)

    @property
    def mean_steps(self) -> int:
        """About how many local steps there are between communications, 1 / p."""
        return max(1, round(1 / self.p))

    def init(self, w: Row, p: int) -> Agreed:
        """Returns the model before any communication."""
        return Agreed(w)

    def configs(
        self, state: Agreed, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns p, how many steps there are until the coin falls, and which communication is."""
        steps = int(rng.geometric(self.p))
        told = {
            "proxskip-p": self.p,
            "proxskip-communications": state.communications,
            "local-steps": steps,
        }
        return [told] * n

    def step(self, state: Agreed, updates: Updates) -> Agreed:
        """Returns the model after a communication."""
        delta = updates.unweighted().mean()
        return Agreed(state.w + delta, state.communications + 1)
