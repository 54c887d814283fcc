"""How long the k-th gradient of an iteration takes, estimated from arrivals under monotonicity."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Table = NDArray[np.float64]

_SWEEPS = 200
_TOLERANCE = 1e-6  # of the largest entry
_FAINT = 1e-6  # weight of a cell without samples, next to 1 for a sample


class ArrivalTimes:
    """Estimates T(h, k), the mean time to the k-th gradient after an iteration that waited for h.

    The estimate is the least-squares fit to all samples among tables with

        T(h, k) <= T(h, k + 1)    and    T(h, k) >= T(h + 1, k),

    because more gradients take longer, and the more workers the last iteration waited for, the more
    are free when this one begins. Cells without samples take the least value that their neighbours
    allow (arXiv:2004.14696, section 3.2).

    Args:
        n: number of workers.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._sum = np.zeros((n, n))
        self._count = np.zeros((n, n))
        self._fit: Table | None = None

    def add(self, h: int, k: int, seconds: float) -> None:
        """Takes a sample: after an iteration that waited for h, the k-th gradient took so long."""
        self._sum[h - 1, k - 1] += seconds
        self._count[h - 1, k - 1] += 1
        self._fit = None

    def enlarge(self, n: int) -> None:
        """Goes on with n workers, more than before; samples are kept."""
        more = n - self.n
        self._sum = np.pad(self._sum, (0, more))
        self._count = np.pad(self._count, (0, more))
        self.n, self._fit = n, None

    def table(self) -> Table:
        """Returns T in s, shape (n, n), row h - 1, column k - 1; needs at least one sample."""
        if self._fit is None:
            self._fit = self._estimate()
        return self._fit

    def _estimate(self) -> Table:
        seen = self._count > 0
        means = np.where(seen, self._sum / np.maximum(self._count, 1), np.nan)
        # Rows without samples add nothing to a fit: they are filled in afterwards.
        rows = np.flatnonzero(seen.any(axis=1))
        start = np.where(seen[rows], means[rows], least_allowed(means)[rows])
        weight = np.where(seen[rows], self._count[rows], _FAINT)
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
