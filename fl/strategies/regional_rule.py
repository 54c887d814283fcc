"""What a rule is whose clients meet servers of regions, which meet a global one.

    state = rule.joined(rule.init(w, p), node, region)
    state, sends = rule.met(state, Arrivals([update]))  # at the region's server
    state = rule.step(state, Arrivals([of_region]))     # at the global one: the next version
    state = rule.merged(state, region, state.w)         # at the region's again

`fl.strategies.Regions` does everything else.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from fl.strategies.event_rule import Arrivals, EventRule
from fl.vectors.rows import Row


class RegionalRule(EventRule):
    """What the servers of regions do when a client answers, and the global one when a region does.

    `step` makes the next version of the global model, by the change of a region that arrives there.
    """

    @abstractmethod
    def joined(self, state: Any, node: int, region: int) -> Any:
        """Returns the state with a client that has not been asked before."""

    @abstractmethod
    def met(self, state: Any, updates: Arrivals) -> tuple[Any, bool]:
        """Returns the state after a region's server has an update, and whether it sends its own.

        Raises:
            NotFinite: the region's model would not be finite.
        """

    @abstractmethod
    def sent(self, state: Any, region: int) -> tuple[Row, Row]:
        """Returns where a region began, and where it is, shape (d,) each."""

    @abstractmethod
    def merged(self, state: Any, region: int, w: Row) -> Any:
        """Returns the state when the global model that answers a region is there, shape (d,)."""
