"""Anchors, who send a large gradient, and miners, who follow the mean of all: clients of FedAMD.

Wu, Guo, Qu, He, Liu, Gao: Anchor Sampling for Federated Learning with Partial Client Participation,
ICML 2023, arXiv:2206.05891, Algorithm 1; authors' code HarliWu/FedAMD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fl.clients.correction import Correction
from fl.clients.gradient import GradientSum
from fl.clients.rule import Batch, Finished, Received, Role, Scalar, State
from fl.errors import ConfigError

ANCHOR_KEY = "fedamd-anchor"
ANCHOR = Role("anchor", (), 0.0)
MINER = Role("miner", ("vbar",), 1.0)


class Followed(NamedTuple):
    """The direction of a miner's last step, and where it was taken, shape (p,) each."""

    v: Tensor
    y: Tensor


@dataclass(frozen=True)
class AnchorSampling(Correction):
    """The clients of FedAMD, whose messages say by "fedamd-anchor" what each is in its round.

        anchor:  v_i = gradient at the received model x, over the examples of the task's batches
        miner:   v <- v - g(y_last) + g(y),  y_last <- y,  a step along v;    v = vbar, y_last = x
                 at first, and both gradients of the same batch

    An anchor sends v_i, in the record "v", and no model; a miner sends its model, and no v. vbar is
    a record of a miner's message alone. So a message and its reply have two vectors for an anchor
    and three for a miner. A miner's step takes two gradients, of which the first step's are the
    same. Anchors and miners train apart.

    What a client is sent is all it needs: it keeps nothing.

    Attributes:
        clip_first: clip the batch's gradient alone and correct the result. By default a miner's
            direction is clipped, and v_i is not.
    """

    clip_first: bool = False

    @property
    def needs(self) -> tuple[str, ...]:
        """The mean of all clients' v_i."""
        return ("vbar",)

    @property
    def uploads(self) -> tuple[str, ...]:
        """The client's own."""
        return ("v",)

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """What the client is."""
        return {ANCHOR_KEY: ()}

    @property
    def requires(self) -> tuple[str, ...]:
        """What the client is."""
        return (ANCHOR_KEY,)

    @property
    def gradients_per_step(self) -> float:
        """A miner's second gradient."""
        return MINER.gradients_per_step

    def vectors(self, is_plain: bool) -> int:
        """Returns 3, a miner's vbar, v and y_last."""
        return 3

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns {"anchor": 1 or 0} of this task.

        Raises:
            ConfigError: the message does not say it.
        """
        anchor = config.get(ANCHOR_KEY)
        if not isinstance(anchor, bool | int | float):
            raise ConfigError(
                f"the message's {ANCHOR_KEY!r} is {anchor!r}, and AnchorSampling needs true or "
                "false: use strategy=fedamd, or another correction"
            )
        return {"anchor": float(bool(anchor))}

    def role(self, scalars: Mapping[str, Scalar]) -> Role:
        """Returns that of an anchor or of a miner."""
        return ANCHOR if scalars["anchor"] else MINER

    def init(self, received: Received, is_plain: bool) -> State:
        """Returns no gradients, or vbar."""
        if received.scalars["anchor"]:
            return GradientSum(torch.zeros_like(received.w), torch.zeros_like(received.w[:1].sum()))
        return Followed(received.server["vbar"], received.w)

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns 0 for an anchor, which stays at x, or a miner's v; and the state."""
        if received.scalars["anchor"]:
            total = GradientSum(state.g + g * batch.examples, state.examples + batch.examples)
            return torch.zeros_like(g), total
        there, _ = batch.grad(state.y)
        v = state.v - there + g
        return v, Followed(v, w)

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns v_i, or the model."""
        nothing = w[:0]
        if received.scalars["anchor"]:
            return Finished(nothing, {"v": state.g / state.examples}, {})
        return Finished(w, {"v": nothing}, {})
