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
from fl.clients.gradient import GradientSum
from fl.clients.rule import Batch, Finished, Received, Role, Scalar, State
from fl.errors import ConfigError

REFERENCE_KEY = "proxskip-reference"
REFERENCE = Role("reference", (), 0.0)


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

    With variance reduction it is ProxSkip-L-SVRGDA-FL: in a task whose message has a true
    "proxskip-reference" the client stays at the received model, keeps it as w_i with its gradient
    F_i(w_i) over the examples of the task's batches, and sends nothing. In others

        g <- g - g' + F_i(w_i),  g' the same batch's gradient at w_i,

    before h_i is taken away, at a second gradient a step; a client without reference takes g as it
    is.

    Attributes:
        variance_reduction: whether the client keeps a reference.
        clip_first: clip the batch's gradient alone and correct the result. By default the corrected
            one is clipped, which leaves the fixed point where it is.
    """

    counts_on_length: ClassVar[bool] = True

    variance_reduction: bool = False
    clip_first: bool = False

    @property
    def honours(self) -> Mapping[str, tuple[str, ...]]:
        """The probability, how many communications there were, and what is a reference."""
        return {"proxskip-p": (), "proxskip-communications": (), REFERENCE_KEY: ()}

    @property
    def requires(self) -> tuple[str, ...]:
        """The probability, and with variance reduction what is a reference."""
        return ("proxskip-p", REFERENCE_KEY) if self.variance_reduction else ("proxskip-p",)

    @property
    def gradients_per_step(self) -> float:
        """With variance reduction one more, at the reference."""
        return 1.0 if self.variance_reduction else 0.0

    def role(self, scalars: Mapping[str, Scalar]) -> Role:
        """Returns that of a reference, or of local steps."""
        return REFERENCE if scalars.get("reference") else super().role(scalars)

    def vectors(self, is_plain: bool) -> int:
        """Returns 2, for h_i and the one before, should the round come to nothing.

        With variance reduction 4: the reference, and its gradient.
        """
        return 4 if self.variance_reduction else 2

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
        told = {"p": p, "communications": read_int(config, "proxskip-communications", least=0) or 0}
        reference = config.get(REFERENCE_KEY)
        if self.variance_reduction != isinstance(reference, bool | int | float):
            raise ConfigError(
                f"the message's {REFERENCE_KEY!r} is {reference!r}, and client.correction."
                f"variance_reduction is {self.variance_reduction}: set both strategy.rule.q and "
                "client.correction.variance_reduction=true, or neither"
            )
        return told if reference is None else {**told, "reference": float(bool(reference))}

    def first_memory(self, w: Tensor) -> dict[str, Tensor]:
        """Returns h_i = 0, and nothing sent.

        "awaited" is the number of communications by which what was "sent" has become a model, and
        "scale" the gamma / p it was sent with.
        """
        one = torch.ones_like(w[:1])
        memory = {"h_i": torch.zeros_like(w), "sent": w, "scale": one, "awaited": -one}
        if self.variance_reduction:
            memory |= {"w_i": w, "F_i": torch.zeros_like(w), "referred": 0 * one}
        return memory

    def init(self, received: Received, is_plain: bool) -> State:
        """Returns h_i after the communication that made the received model, or no gradients."""
        memory = received.memory
        if received.scalars.get("reference"):
            return GradientSum(torch.zeros_like(received.w), torch.zeros_like(received.w[:1].sum()))
        agreed = memory["awaited"] == received.scalars["communications"]
        h = (received.w - memory["sent"]) / memory["scale"]
        return torch.where(agreed, h, memory["h_i"])

    def correct(
        self, g: Tensor, w: Tensor, state: State, received: Received, batch: Batch, lr: Scalar
    ) -> tuple[Tensor, State]:
        """Returns g - h_i, or 0 for a client that stays; and the state."""
        if received.scalars.get("reference"):
            total = GradientSum(state.g + g * batch.examples, state.examples + batch.examples)
            return torch.zeros_like(g), total
        if self.variance_reduction:
            memory = received.memory
            there, _ = batch.grad(memory["w_i"])
            g = g + memory["referred"] * (memory["F_i"] - there)
        return g - state, state

    def finish(self, w: Tensor, state: State, received: Received) -> Finished:
        """Returns v_i, and what its communication will make h_i of; or the reference alone."""
        scalars, memory, one = received.scalars, received.memory, torch.ones_like(w[:1])
        if scalars.get("reference"):
            F = state.g / state.examples
            # Under vmap, clients that received one model each need a row of their own to keep.
            x = received.w + torch.zeros_like(F)
            return Finished(w[:0], {}, {**memory, "w_i": x, "F_i": F, "referred": one})
        scale = one * scalars["lr"] / scalars["p"]
        sent = w - scale * state
        awaited = one * (scalars["communications"] + 1)
        h = {"h_i": state, "sent": sent, "scale": scale, "awaited": awaited}
        return Finished(sent, {}, {**memory, **h})
