"""How long the k-th gradient of an iteration takes, estimated from arrivals under monotonicity."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

_SWEEPS = 200
_TOLERANCE = 1e-6  # of the largest entry
_FAINT = 1e-6  # weight of a cell without samples, next to 1 for a sample


@dataclass(frozen=True, eq=False)
class ArrivalTimes:
    """Estimates T(h, k), the mean time to the k-th gradient after an iteration that waited for h.

    The estimate is the least-squares fit to all samples among tables with

        T(h, k) <= T(h, k + 1)    and    T(h, k) >= T(h + 1, k),

    because more gradients take longer, and the more workers the last iteration waited for, the more
    are free when this one begins. Cells without samples take the least value that their neighbours
    allow (arXiv:2004.14696, section 3.2).

    Attributes:
        total: sum of the samples of T(h, k), shape (n, n) for n workers, row h - 1, column k - 1.
        count: their number, shape (n, n).
    """

    total: Table
    count: Table

    @classmethod
    def unknown(cls, n: int) -> ArrivalTimes:
        """Returns it without a sample, for n workers."""
        return cls(np.zeros((n, n)), np.zeros((n, n)))

    @property
    def n(self) -> int:
        """The number of workers."""
        return len(self.total)

    def with_sample(self, h: int, k: int, seconds: float) -> ArrivalTimes:
        """Returns it with a sample: after an iteration that waited for h, T(h, k) was so long."""
        total, count = self.total.copy(), self.count.copy()
        total[h - 1, k - 1] += seconds
        count[h - 1, k - 1] += 1
        return ArrivalTimes(total, count)

    def enlarged(self, n: int) -> ArrivalTimes:
        """Returns it for n workers, more than before; samples are kept."""
        more = (0, n - self.n)
        return ArrivalTimes(np.pad(self.total, more), np.pad(self.count, more))

    @cached_property
    def table(self) -> Table:
        """T in s, shape (n, n), row h - 1, column k - 1; needs at least one sample."""
        seen = self.count > 0
        means = np.where(seen, self.total / np.maximum(self.count, 1), np.nan)
        # Rows without samples add nothing to a fit: they are filled in afterwards.
        rows = np.flatnonzero(seen.any(axis=1))
        start = np.where(seen[rows], means[rows], least_allowed(means)[rows])
        weight = np.where(seen[rows], self.count[rows], _FAINT)
        whole = np.full((self.n, self.n), np.nan)
        whole[rows] = monotone_fit(start, weight)
        return least_allowed(whole)


def least_allowed(table: Table) -> Table:
    """Fills in a table's missing cells (NaN), each with the least value monotonicity allows.

    That is the largest of those below it in order (greater or equal h, smaller or equal k), or
    where there is none, the smallest of those above.
    """
    missing = np.isnan(table)
    low = np.where(missing, -np.inf, table)
    low = np.maximum.accumulate(np.maximum.accumulate(low, axis=1)[::-1], axis=0)[::-1]
    high = np.where(missing, np.inf, table)
    high = np.minimum.accumulate(np.minimum.accumulate(high[:, ::-1], axis=1)[:, ::-1], axis=0)
    return np.where(missing, np.where(np.isfinite(low), low, high), table)


def monotone_fit(values: Table, weights: Table) -> Table:
    """Returns the weighted least-squares fit that rises along rows and falls along columns.

    Dykstra's algorithm (JASA 1983): projections onto tables with rising rows and onto those with
    falling columns take turns, each corrected by what it changed the last time. Both are isotonic
    regressions in one dimension.

    Args:
        values: shape (m, n).
        weights: positive, shape (m, n).
    """
    fit = values
    by_rows = np.zeros_like(values)
    by_columns = np.zeros_like(values)
    for _ in range(_SWEEPS):
        before = fit
        rising = _rising_rows(fit + by_rows, weights)
        by_rows = fit + by_rows - rising
        fit = -_rising_rows(-(rising + by_columns).T, weights.T).T
        by_columns = rising + by_columns - fit
        if np.abs(fit - before).max() <= _TOLERANCE * np.abs(fit).max():
            break
    # The projections meet in the limit only: what is left of a violation is removed.
    return np.asarray(np.maximum.accumulate(fit, axis=1))


def _rising_rows(values: Table, weights: Table) -> Table:
    from scipy.optimize import isotonic_regression  # heavy, and only one strategy comes here

    return np.stack(
        [
            isotonic_regression(row, weights=weight).x if (np.diff(row) < 0).any() else row
            for row, weight in zip(values, weights, strict=True)
        ]
    )
