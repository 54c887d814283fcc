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
from fl.clients.proxskip import REFERENCE_KEY
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class Agreed(NamedTuple):
    """The model, shape (d,), and how it came about.

    Attributes:
        w: the model.
        communications: how many have made it.
        references: rounds in which clients took a reference.
        steps: local steps that might have renewed it since.
    """

    w: Row
    communications: int = 0
    references: int = 0
    steps: int = 0


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

    With q this is ProxSkip-L-SVRGDA-FL: g_i is F_ij(x_i) - F_ij(w_i) + F_i(w_i) for a batch j, and
    after every step a second coin with probability q sets w_i to the client's model. If it fell in
    a round, here w_i is the model of the communication after that, for which there is a round of
    its own: clients pass over their examples once, and send nothing. So is the first.

    Attributes:
        p: probability of a communication after a step, in (0, 1]. 1 is distributed gradient
            descent. Theory has sqrt(gamma mu) with mu the strong monotonicity of the operator.
        q: probability of a new reference after a step, in (0, 1]; None has no variance reduction,
            as clients with `ProxSkipShift.variance_reduction` false. Theory has 2 gamma mu.

    Raises:
        ConfigError: p or q is out of range.
    """

    tells: ClassVar[Mapping[str, str]] = {
        "proxskip-p": "p",
        REFERENCE_KEY: "has_references",
        "local-steps": "mean_steps",
    }
    folds: ClassVar[bool] = False
    everybody: ClassVar[bool] = True

    p: float = 0.2
    q: float | None = None

    def __post_init__(self) -> None:
        fraction("p", self.p)
        if self.q is not None:
            fraction("q", self.q)

    @property
    def has_references(self) -> bool | None:
        """True if clients take references; None if messages do not speak of them."""
        return None if self.q is None else True

    @property
    def may_stay(self) -> str:
        """Rounds in which clients take a reference."""
        if self.q is None:
            return super().may_stay
        return "with strategy.rule.q rounds in which clients take a reference leave the model"

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
        """Returns p, how many steps there are until the coin falls, and which communication is.

        Or that clients take a reference, by one epoch.
        """
        told = {
            "proxskip-p": self.p,
            "proxskip-communications": state.communications,
            "local-steps": int(rng.geometric(self.p)),
        }
        if self.q is not None:
            renewed = rng.random() < 1 - (1 - self.q) ** state.steps or not state.references
            told[REFERENCE_KEY] = renewed
            if renewed:
                del told["local-steps"]
                told["local-epochs"] = 1
        return [told] * n

    def step(self, state: Agreed, updates: Updates) -> Agreed:
        """Returns the model after a communication, or the same if clients took a reference."""
        steps = 0
        if self.q is not None:
            told = updates.told[0]
            if told[REFERENCE_KEY]:
                return state._replace(references=state.references + 1, steps=0)
            steps = state.steps + told["local-steps"]
        w = state.w + updates.unweighted().mean()
        return Agreed(w, state.communications + 1, state.references, steps)
