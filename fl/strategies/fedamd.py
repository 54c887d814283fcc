"""FedAMD: some clients refresh gradients that are cached, the others follow the mean of all.

Wu, Guo, Qu, He, Liu, Gao, "Anchor Sampling for Federated Learning with Partial Client
Participation", arXiv:2206.05891 (ICML 2023), Algorithm 1; authors' code HarliWu/FedAMD.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, positive, read_if, share
from fl.clients.anchor_sampling import ANCHOR_KEY
from fl.strategies.mifa import memorised, recalled
from fl.strategies.round_rule import RoundRule, Updates
from fl.vectors.rows import Row


class Anchored(NamedTuple):
    """The model, shape (d,), the cached gradients by client, shape (p,) each, and their sum."""

    w: Row
    total: Row
    latest: Mapping[int, Row]


@read_if(lambda a: a["every"] is None, "p", only="with {at}every there are no coins")
@dataclass(frozen=True)
class FedAMD(RoundRule):
    """The server of Algorithm 1; see `fl.clients.AnchorSampling`.

    In the first round all clients that are there are anchors. Later each of the A clients of a
    round is an anchor with probability p, the others are miners:

        vbar = mean of all v_i
        w <- w + eta mean over the miners of (w_i - w)
        v_i <- the anchors' gradients at w, as it was sent

    so that miners follow what was known before their round, and without one the model stays. With
    `every`, the sequential schedule, all clients of a round are anchors in the first round and
    every so many rounds from there, and miners in the others.

    The caches are here, as in the authors' code: a vector for each client. So they are right
    whatever replies are lost, late or left out, and whatever a device forgets. A client that has
    not been an anchor yet, as it was away in the first round, is not in the mean.

    An anchor is charged one pass over its examples and sends one vector, a miner two gradients a
    step and one vector; what it gets is two, and an anchor one. vbar and v_i travel beside the
    model, so a compressor of models leaves them as they are. Clients weigh the same, whatever their
    number of examples. An aggregator other than the mean combines miners' changes, and the
    anchors' changes of v_i, each apart; where either are fewer than it takes, the round is
    abandoned, so that `every` suits it better than coins. Statistics of normalisation layers move
    by the mean over all clients of a round, anchors with no change.

    Attributes:
        p: probability that a client is an anchor, in [0, 1): with 1 there never is a miner. None
            is (2 / (A + 2))^(1 / A), which the paper suggests; it is high where clients are few.
        every: rounds from one of anchors to the next, at least 2; None is by coins.
        anchor_steps: batches of a cached gradient; None is all examples of the client once.
        eta: server learning rate, above 0.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    carries: ClassVar[tuple[str, ...]] = ("vbar",)
    needs: ClassVar[tuple[str, ...]] = ("v",)
    tells: ClassVar[Mapping[str, str]] = {ANCHOR_KEY: "begins_with_anchors"}
    folds: ClassVar[bool] = False
    prepares: ClassVar[int] = 1

    begins_with_anchors: ClassVar[bool] = True

    p: float | None = None
    every: int | None = None
    anchor_steps: int | None = None
    eta: float = 1.0

    def __post_init__(self) -> None:
        if self.p is not None:
            share("p", self.p)
        if self.every is not None:
            at_least("every", self.every, 2)
        if self.anchor_steps is not None:
            at_least("anchor_steps", self.anchor_steps, 1)
        positive("eta", self.eta)

    @property
    def may_stay(self) -> str:
        """Which rounds have no miner."""
        if self.every is not None:
            return f"one of {self.every} rounds, strategy.rule.every, has anchors alone"
        p = "the paper's, which is high where clients are few" if self.p is None else self.p
        return (
            f"a round whose clients are all anchors leaves the model as it is, and strategy.rule.p "
            f"is {p}: lower it, or set strategy.rule.every"
        )

    def init(self, w: Row, p: int) -> Anchored:
        """Returns the model, and nothing known of any client."""
        return Anchored(w, np.zeros(p, np.float32), {})

    def asks_everybody(self, state: Anchored) -> bool:
        """Returns whether nothing is known yet."""
        return not state.latest

    def broadcast(self, state: Anchored) -> Mapping[str, Row]:
        """Returns vbar."""
        vbar, _ = recalled(state)
        return {"vbar": vbar}

    def carried_by(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Returns vbar for a miner."""
        return () if config[ANCHOR_KEY] else self.carries

    def configs(
        self, state: Anchored, server_round: int, n: int, rng: np.random.Generator
    ) -> Sequence[Mapping[str, Any] | None]:
        """Returns for each client whether it is an anchor, and then how much it looks at."""
        anchors = self.anchors(state, server_round, n, rng)
        work = {"local-epochs": 1}
        if self.anchor_steps is not None:
            work = {"local-steps": self.anchor_steps}
        return [{ANCHOR_KEY: True, **work} if i else {ANCHOR_KEY: False} for i in anchors.tolist()]

    def anchors(
        self, state: Anchored, server_round: int, n: int, rng: np.random.Generator
    ) -> NDArray[np.bool_]:
        """Returns who of n clients is an anchor, shape (n,)."""
        if not state.latest:
            return np.ones(n, np.bool_)
        if self.every is not None:
            return np.full(n, (server_round - 1) % self.every == 0)
        return rng.random(n) < (suggested(n) if self.p is None else self.p)

    def step(self, state: Anchored, updates: Updates) -> Anchored:
        """Returns model and caches after a round."""
        worked = updates.weights > 0
        anchor = np.array([told[ANCHOR_KEY] for told in updates.told], np.bool_)
        w = state.w
        if (miners := worked & ~anchor).any():
            equal = updates.unweighted()
            mean = replace(equal, weights=equal.weights * miners).mean()
            w = w + np.float32(self.eta) * mean
        if (anchors := worked & anchor).any():
            sent = replace(updates.extra("v"), weights=anchors.astype(np.float64))
            state, _ = memorised(state, sent)
        return state._replace(w=w)


def suggested(a: int) -> float:
    """Returns (2 / (A + 2))^(1 / A): with it 2 of A + 2 rounds have no miner."""
    return float((2 / (a + 2)) ** (1 / a))
