"""The shift of ProxSkip: what a client's gradient is at the solution, learnt from communications.

Zhang, Choudhury, Stich, Loizou, arXiv:2306.05100 (ICLR 2024), ProxSkip-VIP-FL; authors' code
isayantan/ProxSkipVIP. Mishchenko, Malinovsky, Stich, Richtarik, arXiv:2202.09357 (ICML 2022),
Algorithm 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fl.clients.app.message_config import read_float, read_int
from fl.clients.correction import Correction
from fl.clients.rule import Batch, Finished, Received, Scalar, State
from fl.errors import ConfigError


@dataclass(frozen=True)
class ProxSkipShift(Correction):
    """Gradients less the shift h_i, as the clients of ProxSkip-VIP-FL have them.

        g <- g - h_i,    at every step until the message's coin falls
        what is sent:    v_i = x_i - gamma / p h_i,  x_i the model after the last step
        when x, the mean of all v_i, arrives:    h_i <- p / gamma (x - v_i)

    The last line is h_i + p / gamma (x - x_i). p is the message's "proxskip-p", gamma the task's
    learning rate, and "proxskip-communications" says how many communications have made the model:
    one more than when the client last sent something, or x is not the mean of that and h_i stays
    as it is. So a round that came to nothing leaves no trace, and a client that missed one goes on
    with the h_i that it had.

    h_i is 0 at first and, with full gradients, that of f_i at the solution in the end. With
    mini-batches this is ProxSkip-SGDA-FL. SGD with momentum keeps the fixed point, and nothing else
    of the theory. With AdamW, whose steps are no multiple of a gradient, neither is h_i, and
    nothing is learnt. A client that did no step keeps everything; a device that crashes begins at 0
    again.

    Attributes:
        clip_first: clip the batch's gradient alone and correct the result. By default the corrected
            one is clipped, which leaves the fixed point where it is.
    """

    counts_on_length: ClassVar[bool] = True

    clip_first: bool = False

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """The probability, and how many communications there were."""
        return {"proxskip-p": (), "proxskip-communications": ()}

    @property
    def requires(self) -> tuple[str, ...]:
        """The probability."""
        return ("proxskip-p",)

    def vectors(self, is_plain: bool) -> int:
        """Returns 2, for h_i and the one before, should the round come to nothing."""
        return 2

    def scalars(self, config: Mapping[str, Any]) -> dict[str, float]:
        """Returns {"p": probability, "communications": their number} of this task.

        Raises:
            ConfigError: the message has no p in (0, 1], or a number that is none.
        """
        p = read_float(config, "proxskip-p", above=0.0)
        if p is None or p > 1:
            raise ConfigError(
                f"the message's 'proxskip-p' is {p}; ProxSkipShift needs one above 0 and at most "
                "1: use strategy=proxskip, or another correction"
            )
        return {"p": p, "communications": read_int(config, "proxskip-communications", least=0) or 0}

    def first_memory(self, w: Tensor) -> dict[str, Tensor]:
        """Returns h_i = 0, and nothing sent.

        "awaited" is the number of communications by which what was "sent" has become a model, and
        "scale" the gamma / p it was sent with.
        """
        one = torch.ones_like(w[:1])
        return {"h_i": torch.zeros_like(w), "sent": w, "scale": one, "awaited": -one}

    def init(self, received: Received, is_plain: bool) -> State:
        """Returns h_i after the communication that made the received model."""
        memory = received.memory
        agreed = memory["awaited"] == received.scalars["communications"]
        h = (received.w - memory["sent"]) / memory["scale"]
        return torch.where(agreed, h, memory["h_i"])

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns g - h_i."""
        return g - state, state

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns v_i, and what its communication will make h_i of."""
        scalars, one = received.scalars, torch.ones_like(w[:1])
        scale = one * scalars["lr"] / scalars["p"]
        sent = w - scale * state
        awaited = one * (scalars["communications"] + 1)
        return Finished(sent, {}, {"h_i": state, "sent": sent, "scale": scale, "awaited": awaited})
