"""The bounds on n and f that every rule states, and the errors that state them."""

from __future__ import annotations

from math import comb

from fl.errors import ConfigError


def check_f(rule: str, f: int) -> None:
    """Raises ConfigError unless f is a number of vectors."""
    if isinstance(f, bool) or not isinstance(f, int) or f < 0:
        raise ConfigError(f"{rule}: f={f!r}: must be an integer of at least 0")


def chance_of_more(f: int, m: int, byzantine: int, n: int) -> float:
    """Returns P(X > f) of X Byzantine vectors among m that are drawn uniformly of n.

    X is hypergeometric: P(X = k) = C(b, k) C(n - b, m - k) / C(n, m).
    """
    most = min(byzantine, m)
    ways = sum(comb(byzantine, k) * comb(n - byzantine, m - k) for k in range(f + 1, most + 1))
    return ways / comb(n, m)


def check_bound(rule: str, n: int, f: int, factor: int, constant: int, why: str = "") -> None:
    """Raises ConfigError unless n >= factor f + constant, with what would be right.

    Args:
        rule: its name.
        n: how many vectors there are.
        f: how many of them may be Byzantine.
        factor: of the bound.
        constant: of the bound.
        why: what holds only within the bound, or how to leave it.
    """
    if n >= factor * f + constant:
        return
    most = (n - constant) // factor
    remedy = f"lower f to {most} or less" if most >= 0 else "no f is small enough"
    raise ConfigError(
        f"{rule}: n={n} vectors, of which f={f} may be Byzantine: needs n >= {factor} f + "
        f"{constant}{f' ({why})' if why else ''}: {remedy}, or aggregate at least "
        f"{factor * f + constant} vectors"
    )
