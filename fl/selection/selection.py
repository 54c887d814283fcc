"""Who trains in a round: a pure rule with explicit state.

A selection is a frozen dataclass of hyperparameters. `fl.strategies.Rounds` goes through a round
with it in this order, and keeps its state:

    state = selection.init(num_rounds)
    trial, state = selection.trial(state, idle)         # who is to be timed first, if anybody
    ask, state = selection.ask(state, opening)          # what is asked before, until None
    state = selection.told(state, ask, answers)
    choice, state = selection.select(state, opening)
    state = selection.learn(state, end)                 # what the round brought

Clients are the numbers that the grid gives them, whatever they are. What they report is finite
where a rule reads it, and may be a lie.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.vectors.rows import Row

Metrics = Mapping[str, Any]


class Trial(NamedTuple):
    """Clients that train only to be timed; what they return is discarded.

    Attributes:
        clients: who.
        within_s: how long they are waited for, s.
        alone: in a round of its own, of all of them, without a version of the model; otherwise
            beside the rounds, each until it answers or fails.
    """

    clients: Sequence[int]
    within_s: float
    alone: bool


class Ask(NamedTuple):
    """What clients are asked before a round; the message, its answer and their time count.

    Attributes:
        kind: "query" for what they have ("num-examples"), without a model; "evaluate" for what the
            current model does on their own data ("num-examples", "loss", "accuracy").
        clients: who.
        within_s: how long they are waited for, s.
        config: what the message says.
    """

    kind: Literal["evaluate", "query"]
    clients: Sequence[int]
    within_s: float
    config: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Opening:
    """A round that is to begin.

    Attributes:
        server_round: from 1.
        idle: available clients without a task that may be selected, at least one.
        here: all available clients.
        count: how many to select; fewer if there are not so many.
        rng: gives the generator of a purpose, for this round.
        charge: gives the charge of clients' batteries, in [0, 1], shape (n,); None if they have
            none, or nobody knows.
    """

    server_round: int
    idle: Sequence[int]
    here: Sequence[int]
    count: int
    rng: Callable[[str], np.random.Generator]
    charge: Callable[[Sequence[int]], NDArray[np.float64] | None] = lambda clients: None


class Choice(NamedTuple):
    """Clients of a round.

    Attributes:
        clients: each once.
        weights: what each one's update weighs, positive; None leaves it to what they report.
    """

    clients: Sequence[int]
    weights: Sequence[float] | None = None


class Reply(NamedTuple):
    """What a client returned.

    Attributes:
        client: who.
        seconds: from asking to hearing, s.
        examples: that it learnt from, by what it says; finite, at least 0.
        metrics: all that it says; what the selection `reads` is finite.
        delta: how it changed the model, shape (d,), float32; None unless it `keeps_changes`.
    """

    client: int
    seconds: float
    examples: float
    metrics: Metrics
    delta: Row | None = None


class RoundEnd(NamedTuple):
    """What a round brought.

    Attributes:
        server_round: from 1.
        replies: usable ones that were in time.
        missed: who was too late, to how long it was waited for, s.
        failed: who failed before, to the time until then, s; infinity if the time to live ran out.
        trial: whether all that was for was to time clients.
    """

    server_round: int
    replies: Sequence[Reply] = ()
    missed: Mapping[int, float] = {}
    failed: Mapping[int, float] = {}
    trial: bool = False


class Selection(ABC):
    """Says who trains in a round.

    Attributes:
        evaluates: whether it asks clients to evaluate the model.
        by_accuracy: whether it goes by the accuracy that they then report.
        by_charge: whether it goes by the charge of their batteries.
        keeps_changes: whether it learns from the clients' changes of the model, all of which are
            then held at once.
    """

    evaluates: ClassVar[bool] = False
    by_accuracy: ClassVar[bool] = False
    by_charge: ClassVar[bool] = False
    keeps_changes: ClassVar[bool] = False

    @property
    def reads(self) -> Sequence[str]:
        """Metrics of the replies that must be finite numbers; a reply without is left out."""
        return ()

    def refuses_count(self, count: int) -> str | None:
        """Returns why it cannot select so many clients, however many there are; None if it can."""
        return None

    def init(self, num_rounds: int) -> Any:
        """Returns the state before the first round of so many."""
        return ()

    def trial(self, state: Any, idle: Sequence[int]) -> tuple[Trial | None, Any]:
        """Returns who is to be timed now, with at least one client; None if nobody."""
        return None, state

    def eligible(self, state: Any, idle: Sequence[int]) -> Sequence[int]:
        """Returns those of the idle clients that may be selected."""
        return idle

    def ask(self, state: Any, opening: Opening) -> tuple[Ask | None, Any]:
        """Returns what is to be asked next before the round, of at least one client; None ends."""
        return None, state

    def refuses(self, ask: Ask, metrics: Metrics) -> str | None:
        """Returns why an answer with these metrics is of no use, in words; None if it is."""
        return None

    def told(self, state: Any, ask: Ask, answers: Mapping[int, Metrics]) -> Any:
        """Returns the state after the answers, by client; those missing have not come in time."""
        return state

    @abstractmethod
    def select(self, state: Any, opening: Opening) -> tuple[Choice, Any]:
        """Returns who trains; nobody abandons the round."""

    def learn(self, state: Any, end: RoundEnd) -> Any:
        """Returns the state after a round, or after some were timed beside the rounds."""
        return state

    def late(self, state: Any, client: int, seconds: float) -> Any:
        """Returns the state after an update that came when its round had ended."""
        return state


def sample(rng: np.random.Generator, clients: Sequence[int], k: int) -> list[int]:
    """Returns k of the clients, drawn uniformly without replacement; all if there are fewer."""
    if k >= len(clients):
        chosen = rng.permutation(len(clients))
    else:
        chosen = rng.choice(len(clients), size=k, replace=False)
    return [clients[i] for i in chosen.tolist()]


def weighted_sample(
    rng: np.random.Generator, log_weights: NDArray[np.float64], k: int
) -> NDArray[np.intp]:
    """Returns k places drawn one after the other without replacement, in proportion to weights.

    The k smallest of independent exponential times with the weights as rates (Efraimidis and
    Spirakis, 2006): exact for weights of any size beside each other.

    Args:
        rng: draws them.
        log_weights: logarithms of the weights, finite, shape (n,): powers of them may be too small
            for a number.
        k: at most n; the places are in the order of the draws.
    """
    log_times = np.log(rng.exponential(size=len(log_weights))) - log_weights
    return np.argsort(log_times, kind="stable")[:k]
