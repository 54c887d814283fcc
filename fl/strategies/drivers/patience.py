"""How long a server waits for a client, by how long its tasks have taken so far."""

from __future__ import annotations

import math
from collections import Counter

_FIRST_S = 12 * 3600.0  # as long as Flower's messages live, if nobody says otherwise
_FADING = 0.9
_LOST = 3.0  # so many times the time after which it is late, a client has lost its task,
_LOST_NEW = 100.0  # or, one that nobody knows: the slowest of a fleet may be much slower than most


class Patience:
    """Bounds on how long a client may be silent while it has something to do.

    Let l_i be the longest that client i has taken for a task, where longer ago counts less, and l
    that of all clients together:

        l_i <- max(t, 0.9 l_i),    l <- max(t, 0.9 l)    for every task that took t seconds.

    Without fading a client with one bad moment would be waited for ever after. A client is

    - *late* after `factor` l_i: the server does without it for now;
    - taken to have *lost* its task after three times that: no answer will come. Each further one
      that it loses before it answers takes twice as long, so that a client that is only slow has
      few tasks at a time, and is heard in the end, however slow it is.

    A client that has never answered is late after `factor` l, and has lost its task after a hundred
    times that. As long as nobody has answered, a client is late after 12 hours, and loses nothing.

    Args:
        factor: above 0; None has patience for ever.
    """

    def __init__(self, factor: float | None) -> None:
        self._factor = math.inf if factor is None else factor
        self._longest: dict[int, float] = {}
        self._of_all = 0.0
        self._losses: Counter[int] = Counter()  # of a client since its last answer

    def measured(self, node: int, seconds: float) -> None:
        """Takes in how long a client took for a task."""
        self._longest[node] = max(seconds, _FADING * self._longest.get(node, 0.0))
        self._of_all = max(seconds, _FADING * self._of_all)
        del self._losses[node]

    def lost(self, node: int) -> None:
        """Takes in that a client has lost its task."""
        self._losses[node] += 1

    def knows(self, node: int) -> bool:
        """Returns whether a client has answered."""
        return node in self._longest

    def late_after(self, node: int) -> float:
        """Returns the seconds after which a client is late."""
        longest = self._longest.get(node, self._of_all)
        if math.isinf(self._factor):
            return math.inf
        return self._factor * longest if longest else _FIRST_S  # or tasks take no time at all

    def lost_after(self, node: int) -> float:
        """Returns the seconds after which a client is taken to have lost its task."""
        if not self._of_all:
            return math.inf
        factor = _LOST if self.knows(node) else _LOST_NEW
        return factor * 2.0 ** self._losses[node] * self.late_after(node)
