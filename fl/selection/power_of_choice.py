"""Power-of-choice: of d candidates, train those whose loss is largest.

Cho, Wang, Joshi, "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice
Selection Strategies", arXiv:2010.01243 (AISTATS 2022), section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np

from fl.checks import at_least, read_if
from fl.errors import ConfigError
from fl.selection.selection import (
    Ask,
    Choice,
    Metrics,
    Opening,
    RoundEnd,
    weighted_sample,
)
from fl.selection.sizes import BySize, Sizes

Variant = Literal["pow-d", "cpow-d", "rpow-d"]


class Losses(NamedTuple):
    """What power-of-choice knows.

    Attributes:
        sizes: of the clients.
        candidates: A, of the round `drawn`.
        drawn: round of which they are.
        losses: F_k, by client: of the candidates, at the current model; for "rpow-d" the last that
            each client has reported from its training.
    """

    sizes: Sizes = Sizes()
    candidates: tuple[int, ...] = ()
    drawn: int = 0
    losses: Mapping[int, float] = {}


@read_if(lambda a: a["variant"] == "cpow-d", "batch", only="only {at}variant=cpow-d reads it")
@read_if(lambda a: a["variant"] == "rpow-d", "loss_key", only="only {at}variant=rpow-d reads it")
@dataclass(frozen=True)
class PowerOfChoice(BySize):
    """Biased selection of clients by their losses.

    Before every round

    1. d candidates A are drawn without replacement, client k in proportion to p_k = n_k / n;
    2. the server estimates the loss F_k(w) of each:
       "pow-d" sends w to all of A, and client k computes F_k on all its training examples;
       "cpow-d" likewise, on a batch of b of them;
       "rpow-d" takes the mean loss that client k reported from its last training, infinity if it
       has never trained, and sends nothing;
    3. the m candidates with the largest losses train; ties are broken at random.

    The new model is the plain mean of theirs. With d = m clients are drawn by p_k alone; d = n
    takes the m with the largest losses of all.

    What the first two variants ask for is d more downloads of the model, d numbers up, and the
    forward passes of d clients, before the round can begin. A candidate whose loss does not come in
    time, or is no finite number, does not train. One that claims a larger loss than it has takes
    the place of one other, in rounds in which it is a candidate, and changes nothing else.

    Attributes:
        candidates: d, at least m.
        variant: see above.
        batch: b.
        loss_key: metric of the replies to training.

    Raises:
        ConfigError: an argument is out of its range.
    """

    evaluates: ClassVar[bool] = True

    candidates: int = 20
    variant: Variant = "pow-d"
    batch: int = 32
    loss_key: str = "train-loss"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("candidates", self.candidates, 1)
        at_least("batch", self.batch, 1)
        if self.variant not in ("pow-d", "cpow-d", "rpow-d"):
            raise ConfigError(
                f"variant is {self.variant!r}; it must be 'pow-d', 'cpow-d' or 'rpow-d'"
            )

    @property
    def reads(self) -> Sequence[str]:
        """The loss of training, for "rpow-d"."""
        return (self.loss_key,) if self.variant == "rpow-d" else ()

    def refuses_count(self, count: int) -> str | None:
        """Refuses more clients than candidates."""
        if self.candidates >= count:
            return None
        return (
            f"selection.candidates is {self.candidates}; it must be at least {count}, the clients "
            "that a round asks to train: raise it, or have rounds ask fewer, by strategy.clients "
            "or strategy.fraction_train and min_train_nodes"
        )

    def init(self, num_rounds: int) -> Losses:
        """Returns the state in which nothing is known of any client."""
        return Losses()

    def ask(self, state: Losses, opening: Opening) -> tuple[Ask | None, Losses]:
        """Asks for sizes that are not known, then draws candidates and asks for their losses."""
        ask, state = super().ask(state, opening)
        if ask is not None or state.drawn == opening.server_round:
            return ask, state
        clients, p = self.with_examples(state, opening.idle)
        places = weighted_sample(opening.rng("candidates"), np.log(p), self.candidates)
        state = state._replace(
            candidates=tuple(clients[i] for i in places.tolist()), drawn=opening.server_round
        )
        if self.variant == "rpow-d":
            return None, state
        state = state._replace(losses={})
        config: dict[str, Any] = {"evaluate-on": "train"}
        if self.variant == "cpow-d":
            config["evaluate-examples"] = self.batch
        ask = Ask("evaluate", state.candidates, self.within_s, config)
        return (ask if state.candidates else None), state

    def refuses(self, ask: Ask, metrics: Metrics) -> str | None:
        """Refuses a candidate that reports no loss."""
        if ask.kind == "query":
            return super().refuses(ask, metrics)
        loss = metrics.get("loss")
        if isinstance(loss, bool) or not isinstance(loss, int | float) or not np.isfinite(loss):
            return "it reports no 'loss' that is a finite number"
        return None

    def told(self, state: Losses, ask: Ask, answers: Mapping[int, Metrics]) -> Losses:
        """Notes sizes, or the candidates' losses."""
        if ask.kind == "query":
            noted: Losses = super().told(state, ask, answers)
            return noted
        return state._replace(losses={i: float(metrics["loss"]) for i, metrics in answers.items()})

    def select(self, state: Losses, opening: Opening) -> tuple[Choice, Losses]:
        """Returns the candidates with the largest losses."""
        known, never = state.losses, np.inf if self.variant == "rpow-d" else -np.inf
        losses = np.array([known.get(client, never) for client in state.candidates])
        order = opening.rng("ties").permutation(len(losses))
        order = order[np.argsort(-losses[order], kind="stable")][: opening.count]
        chosen = [state.candidates[i] for i in order.tolist() if losses[i] > -np.inf]
        return Choice(chosen, (1.0,) * len(chosen)), state

    def learn(self, state: Losses, end: RoundEnd) -> Losses:
        """Notes the losses of training, for "rpow-d"."""
        if self.variant != "rpow-d":
            return state
        new = {reply.client: float(reply.metrics[self.loss_key]) for reply in end.replies}
        return state._replace(losses={**state.losses, **new})
