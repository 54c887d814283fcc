"""Which of many settings run on: asynchronous successive halving (ASHA).

Li, Jamieson, Rostamizadeh, Gonina, Hardt, Recht, Talwalkar, "A System for Massively Parallel
Hyperparameter Tuning", arXiv:1810.05934, Algorithm 2.
"""

from __future__ import annotations

import math


class Halving:
    """Promotes a point to the next rung as soon as it is among the best 1/eta of those in its own.

    Nothing waits for a rung to be full: where no point can be promoted, a new one begins. So the
    best of few may be promoted though later ones turn out better.

    Args:
        rungs: K, of lengths that grow by eta from one to the next; 1 only ranks.
        eta: at least 2.
    """

    def __init__(self, rungs: int, eta: int) -> None:
        self.eta = eta
        self.losses: list[dict[int, float]] = [{} for _ in range(rungs)]
        self._promoted: list[set[int]] = [set() for _ in range(rungs)]

    def tell(self, point: int, rung: int, loss: float) -> None:
        """Notes what a point has at the end of a rung; infinity if it has come to nothing."""
        self.losses[rung][point] = loss

    def promoted(self) -> tuple[int, int] | None:
        """Returns a point that is to run on, and the rung to which; None if none is."""
        for k in reversed(range(len(self.losses) - 1)):
            order = self.ranked(k)
            for point in order[: len(self.losses[k]) // self.eta]:
                if point not in self._promoted[k]:
                    self._promoted[k].add(point)
                    return point, k + 1
        return None

    def winner(self) -> tuple[int, int] | None:
        """Returns the best point of the highest rung that has one, and its rung."""
        for k in reversed(range(len(self.losses))):
            if order := self.ranked(k):
                return order[0], k
        return None

    def unfinished(self) -> tuple[int, int] | None:
        """Returns the winner, and the rung to which it runs on; None if it is in the last one.

        Asked when no point is left: few points make rungs of which no 1/eta is one. If a point has
        come to nothing as it ran on, the next one takes its place.
        """
        best = self.winner()
        if best is None or best[1] == len(self.losses) - 1:
            return None
        point, k = best
        self._promoted[k].add(point)
        return point, k + 1

    def ranked(self, rung: int) -> list[int]:
        """Returns the points of a rung that have come to something, the best first.

        One that came to nothing in a later rung has come to nothing.
        """
        losses, later = self.losses[rung], self.losses[rung + 1 :]
        whole = [p for p in losses if all(math.isfinite(of.get(p, losses[p])) for of in later)]
        return sorted((p for p in whole if math.isfinite(losses[p])), key=lambda p: (losses[p], p))
