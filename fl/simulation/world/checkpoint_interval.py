"""How often a job that fails should write checkpoints: closed forms.

With C the time for which a checkpoint stalls the job, R that of a restart, M the mean time between
failures of the whole job, and tau the work between two checkpoints, in s. R does not move the best
interval.

Young, "A first order approximation to the optimum checkpoint interval", CACM 1974. Daly, "A higher
order estimate of the optimum checkpoint interval for restart dumps", FGCS 2006. Both from memory;
they are checked against `expected_s`.
"""

from __future__ import annotations

import math

from scipy.special import lambertw

_MOST_EXPONENT = 500.0  # beyond which a float ends


def young(c: float, m: float) -> float:
    """Returns sqrt(2 C M), s, the least of C / tau + tau / (2 M)."""
    return math.sqrt(2 * c * m)


def daly(c: float, m: float) -> float:
    """Returns sqrt(2 C M) (1 + sqrt(C / 2M) / 3 + (C / 2M) / 9) - C below C = 2 M, else M, s."""
    if c >= 2 * m:
        return m
    x = c / (2 * m)
    return young(c, m) * (1 + math.sqrt(x) / 3 + x / 9) - c


def exact(c: float, m: float) -> float:
    """Returns M (1 + W(-exp(-C / M - 1))), s, the least of `expected_s` / tau; W is Lambert's."""
    return float(m * (1 + lambertw(-math.exp(-c / m - 1)).real))


def expected_s(tau: float, c: float, r: float, m: float) -> float:
    """Returns M exp(R / M) (exp((tau + C) / M) - 1), s: what tau of work is expected to take.

    Failures are a Poisson process, and come during checkpoints and restarts as well.
    """
    if (tau + c + r) / m > _MOST_EXPONENT:
        return math.inf
    return m * math.exp(r / m) * math.expm1((tau + c) / m)
