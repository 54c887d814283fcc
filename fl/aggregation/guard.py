"""The one check before every rule: what a client sent is a vector, or it is left out.

A Byzantine client can send anything at all, and a faulty one nothing. A rule is for vectors, so
what is none is left out here, with the reason on record, and counts as one of the f that are
tolerated: n - k vectors are left for a rule that tolerates f - k. For rules that count n - f, such
as Krum's neighbours or NNM's, that is the same as taking the k for vectors infinitely far away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fl.aggregation.gram import Array, Float64, Index
from fl.aggregation.tolerance import check_f
from fl.errors import ConfigError, NoStep, NotFinite
from fl.vectors.rows import is_finite

MOST_WEIGHT = 2**63
"""No number of examples is larger, and sums of such numbers are finite."""


@dataclass(frozen=True)
class Dropped:
    """What was left out.

    Attributes:
        index: its place among the replies.
        reason: why, in words.
        diverged: whether it is a vector, but not finite.
    """

    index: int
    reason: str
    diverged: bool = field(default=False, compare=False)


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
        f: most replies to leave out. With f = 0 there is no promise that leaving out more would
            break: all but one may be.

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
        left_out: Callable[[Sequence[Dropped]], None] | None = None,
        before: Sequence[Dropped] = (),
    ) -> Admitted:
        """Returns the replies that are vectors, as one matrix.

        Args:
            replies: a matrix of shape (n, size); or n objects of any kind, None if missing.
            size: d, the length a vector must have.
            weights: each client's number of examples, as it says itself: n objects of any kind.
            dtype: the type the numbers must have. Nothing is converted: another type is another
                message.
            left_out: called with what is left out, also if that is too much.
            before: other replies that were left out before, and count as well.

        Raises:
            NoStep: more than f replies are left out, or all of them, or no weight is positive; the
                message has the reasons.
            ConfigError: there are not as many weights as replies.
        """
        n = len(replies)
        if weights is not None and len(weights) != n:
            raise ConfigError(f"{len(weights)} weights for {n} replies: need one for each")
        said = [1] * n if weights is None else weights
        # One look at a matrix clears nearly all of its rows at once.
        fine = isinstance(replies, np.ndarray) and (
            replies.shape[1:] == (size,) and replies.dtype == dtype and is_finite(replies)
        )
        found = [
            None
            if fine and weight_of(weight) is not None
            else dropped_of(i, reply, weight, size, dtype)
            for i, (reply, weight) in enumerate(zip(replies, said, strict=True))
        ]
        kept = np.array([i for i, one in enumerate(found) if one is None], dtype=np.intp)
        dropped = tuple(one for one in found if one is not None)
        if left_out is not None:
            left_out(dropped)
        every = (*dropped, *before)
        self.check(every, n + len(before))
        admitted = None
        if weights is not None:
            admitted = np.array([weights[i] for i in kept], np.float64)
            check_weights(admitted)
        if isinstance(replies, np.ndarray):
            x = replies if len(kept) == n else replies[kept]
        else:
            x = np.stack([np.asarray(replies[i]) for i in kept])
        return Admitted(
            x=x,
            kept=kept,
            f=max(0, self.f - len(every)),
            weights=admitted,
            dropped=dropped,
        )

    def check(self, dropped: Sequence[Dropped], n: int) -> None:
        """Raises NoStep if more of n replies are left out than may be, or all of them."""
        if n == 0:
            raise NoStep("nobody has answered")
        if len(dropped) > self.f > 0 or len(dropped) == n:
            listed = "; ".join(f"reply {d.index}: {d.reason}" for d in dropped[:5])
            more = f"; and {len(dropped) - 5} more" if len(dropped) > 5 else ""
            if len(dropped) == n and all(one.diverged for one in dropped):
                raise NotFinite(
                    f"none of {n} replies is finite ({listed}{more}); training may have diverged: "
                    "lower the learning rate"
                )
            raise NoStep(
                f"{len(dropped)} of {n} replies are unusable, at most f={self.f} are tolerated, "
                f"and one must be left ({listed}{more}): raise f, or find out why the clients fail"
            )


def weight_of(value: object) -> float | None:
    """Returns what a client says that its update weighs, such as its number of examples.

    None if that is no number, or one below 0, above 2**63 or not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    return float(value) if 0 <= value <= MOST_WEIGHT else None  # NaN is in no interval


def check_weights(weights: Sequence[float] | Array) -> None:
    """Raises NoStep unless a weight is positive."""
    if not any(weight > 0 for weight in weights):
        raise NoStep(
            "no weight is positive, as of clients without examples or without time for a step: "
            "there is nothing to average"
        )


def dropped_of(
    index: int,
    reply: object,
    weight: object,
    size: int,
    dtype: type[np.float32] | type[np.float64] = np.float32,
) -> Dropped | None:
    """Returns that a reply is left out, and why; None if it can be used.

    Args:
        index: its place among the replies.
        reply: None if missing.
        weight: the client's number of examples, as it says itself.
        size: d, the length a vector must have.
        dtype: the type its numbers must have.
    """
    if (fault := _fault_of_form(reply, size, np.dtype(dtype))) is not None:
        return Dropped(index, fault)
    numbers = _fault_of_numbers(np.asarray(reply))
    reason = fault_of_weight(weight) or numbers
    return None if reason is None else Dropped(index, reason, diverged=numbers is not None)


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


def fault_of_weight(weight: object) -> str | None:
    """Returns why what a client says that its update weighs is no weight; None if it is one."""
    if weight_of(weight) is not None:
        return None
    kind = (
        "" if isinstance(weight, float | int) and not isinstance(weight, bool) else ", not a number"
    )
    return f"number of examples is {shown(weight)}{kind}"


def shown(value: object) -> str:
    """Returns what a client sent in a few characters, for a message."""
    # A whole number of 4,301 digits has no text: Python refuses to make it.
    if isinstance(value, int) and abs(value) > MOST_WEIGHT:
        return f"a whole number of {value.bit_length()} bits"
    return f"{value!r:.40}"


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
