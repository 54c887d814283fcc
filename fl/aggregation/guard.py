"""The one check before every rule: what a client sent is a vector, or it is left out.

A Byzantine client can send anything at all, and a faulty one nothing. A rule is for vectors, so
what is none is left out here, with the reason on record, and counts as one of the f that are
tolerated: n - k vectors are left for a rule that tolerates f - k. For rules that count n - f, such
as Krum's neighbours or NNM's, that is the same as taking the k for vectors infinitely far away.
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fl.aggregation.gram import Array, Float64, Index
from fl.aggregation.tolerance import check_f
from fl.errors import ConfigError


@dataclass(frozen=True)
class Dropped:
    """What was left out.

    Attributes:
        index: its place among the replies.
        reason: why, in words.
    """

    index: int
    reason: str


@dataclass(frozen=True, eq=False)
class Admitted:
    """What a rule may read.

    Attributes:
        x: the vectors, shape (m, d): the matrix that came in, if all of it may be read.
        kept: their places among the replies, ascending, shape (m,).
        f: how many of them may still be Byzantine, for `Aggregator.tolerating`.
        weights: their numbers of examples, shape (m,), if there are any.
        dropped: what was left out, by place.
    """

    x: Array
    kept: Index
    f: int
    weights: Float64 | None
    dropped: tuple[Dropped, ...]


@dataclass(frozen=True)
class Guard:
    """Leaves out replies that are missing, no vector of the right kind, or not finite.

    Attributes:
        f: most replies to leave out.

    Raises:
        ConfigError: f is negative.
    """

    f: int = 0

    def __post_init__(self) -> None:
        check_f("Guard", self.f)

    def __call__(
        self,
        replies: Array | Sequence[object],
        size: int,
        weights: Sequence[object] | Array | None = None,
        dtype: type[np.float32] | type[np.float64] = np.float32,
    ) -> Admitted:
        """Returns the replies that are vectors, as one matrix.

        Args:
            replies: a matrix of shape (n, size); or n objects of any kind, None if missing.
            size: d, the length a vector must have.
            weights: each client's number of examples, as it says itself: n objects of any kind.
            dtype: the type the numbers must have. Nothing is converted: another type is another
                message.

        Raises:
            ConfigError: more than f replies are left out, or all of them; the message has the
                reasons.
        """
        n = len(replies)
        if weights is not None and len(weights) != n:
            raise ConfigError(f"{len(weights)} weights for {n} replies: need one for each")
        reasons = [
            fault_of(reply, 1 if weights is None else weights[i], size, dtype)
            for i, reply in enumerate(replies)
        ]
        kept = np.array([i for i, reason in enumerate(reasons) if reason is None], dtype=np.intp)
        dropped = tuple(Dropped(i, reason) for i, reason in enumerate(reasons) if reason)
        self.check(dropped, n)
        if isinstance(replies, np.ndarray):
            x = replies if len(kept) == n else replies[kept]
        else:
            x = np.stack([np.asarray(replies[i]) for i in kept])
        return Admitted(
            x=x,
            kept=kept,
            f=self.f - len(dropped),
            weights=None if weights is None else np.array([weights[i] for i in kept], np.float64),
            dropped=dropped,
        )

    def check(self, dropped: Sequence[Dropped], n: int) -> None:
        """Raises ConfigError if more than f of n replies are left out, or all of them."""
        if len(dropped) > self.f or len(dropped) == n:
            listed = "; ".join(f"reply {d.index}: {d.reason}" for d in dropped[:5])
            more = f"; and {len(dropped) - 5} more" if len(dropped) > 5 else ""
            raise ConfigError(
                f"{len(dropped)} of {n} replies are unusable, at most f={self.f} are tolerated, "
                f"and one must be left ({listed}{more}): raise f, or find out why the clients fail"
            )


def fault_of(
    reply: object,
    weight: object,
    size: int,
    dtype: type[np.float32] | type[np.float64] = np.float32,
) -> str | None:
    """Returns why a reply cannot be used, in words; None if it can.

    Args:
        reply: None if missing.
        weight: the client's number of examples, as it says itself.
        size: d, the length a vector must have.
        dtype: the type its numbers must have.
    """
    return (
        _fault_of_form(reply, size, np.dtype(dtype))
        or _fault_of_weight(weight)
        or _fault_of_numbers(np.asarray(reply))
    )


def _fault_of_form(reply: object, size: int, dtype: np.dtype[Any]) -> str | None:
    if reply is None:
        return "missing"
    if not isinstance(reply, np.ndarray):
        return f"a {type(reply).__name__}, not an array"
    if reply.dtype != dtype:
        return f"type {reply.dtype}, not {dtype}"
    if reply.shape != (size,):
        return f"shape {reply.shape}, not ({size},)"
    return None


def _fault_of_weight(weight: object) -> str | None:
    if isinstance(weight, bool | np.bool_) or not isinstance(weight, numbers.Real):
        return f"number of examples is {weight!r:.40}, not a number"
    try:
        number = float(weight)
    except OverflowError:
        number = np.inf
    return None if 0 <= number < np.inf else f"number of examples is {weight!r:.40}"


def _fault_of_numbers(row: Array) -> str | None:
    # Infinity and NaN survive every addition, so one sum clears nearly every vector at once.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(row.sum()):
            return None
    bad = np.flatnonzero(~np.isfinite(row))
    if not len(bad):  # only the sum was too large
        return None
    return (
        f"{len(bad)} of {len(row)} numbers are not finite, the first {row[bad[0]]} "
        f"at index {bad[0]}"
    )
