"""How many examples each client has, for selections that draw by it.

Nobody knows that of a client before it has said so: clients are asked (`query`) before the first
round in which they are there, and again before later ones as long as they have not answered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.aggregation import weight_of
from fl.checks import at_least, positive
from fl.selection.selection import Ask, Metrics, Opening, Selection


class Sizes(NamedTuple):
    """Number of examples by client, and the round before which clients were asked last."""

    of: Mapping[int, float] = {}
    asked: int = 0


@dataclass(frozen=True)
class BySize(Selection):
    """Base of selections whose state has the field `sizes`.

    Attributes:
        within_s: how long answers are waited for, s.
        most_examples: more than that count as so many, at least 1; None believes what is said. A
            client that claims more is drawn more often, and weighs more, than it should.

    Raises:
        ConfigError: an argument is out of its range.
    """

    within_s: float = 60.0
    most_examples: int | None = None

    def __post_init__(self) -> None:
        positive("within_s", self.within_s)
        if self.most_examples is not None:
            at_least("most_examples", self.most_examples, 1)

    def ask(self, state: Any, opening: Opening) -> tuple[Ask | None, Any]:
        """Asks the clients whose size is not known."""
        sizes: Sizes = state.sizes
        unknown = [client for client in opening.idle if client not in sizes.of]
        if not unknown or sizes.asked == opening.server_round:
            return None, state
        state = state._replace(sizes=sizes._replace(asked=opening.server_round))
        return Ask("query", unknown, self.within_s), state

    def refuses(self, ask: Ask, metrics: Metrics) -> str | None:
        """Refuses a client that does not say how many examples it has."""
        if weight_of(metrics.get("num-examples")) is None:
            return "it reports no 'num-examples' that is a finite number, at least 0"
        return None

    def told(self, state: Any, ask: Ask, answers: Mapping[int, Metrics]) -> Any:
        """Notes the sizes."""
        sizes: Sizes = state.sizes
        new = {client: float(metrics["num-examples"]) for client, metrics in answers.items()}
        return state._replace(sizes=sizes._replace(of={**sizes.of, **new}))

    def with_examples(
        self, state: Any, clients: Sequence[int]
    ) -> tuple[list[int], NDArray[np.float64]]:
        """Returns those of the clients that are known to have examples, and their shares p_i."""
        most = np.inf if self.most_examples is None else self.most_examples
        known = [client for client in clients if state.sizes.of.get(client, 0.0) > 0]
        sizes = np.array([min(state.sizes.of[client], most) for client in known])
        return known, sizes / sizes.sum() if known else sizes
