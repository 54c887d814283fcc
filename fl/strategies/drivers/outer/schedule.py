"""When fragments are due: after which inner steps they are reduced, and gone on from."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FragmentSchedule:
    """Fragment p of P is reduced after the inner steps t for which (t - t_p) mod H = 0.

    t_p = p H / P: a fragment every H / P steps, fragment 1 being the first and fragment 0 the last
    of each H. So the first outer gradients of fragments other than 0 are of p H / P steps, as in
    torchft (github.com/pytorch/torchft).

    Attributes:
        inner_steps: H.
        count: P, which divides H.
        overlap: the lag in inner steps, at most H.
        local_every: inner steps after which workers of a site average among themselves, where they
            are not reduced with all; None if they never do. P is 1 then, and there is no lag.
    """

    inner_steps: int
    count: int
    overlap: int
    local_every: int | None = None

    def is_local(self, step: int) -> bool:
        """Returns whether what is reduced after so many inner steps is so within sites."""
        return self.local_every is not None and step % self.inner_steps > 0

    def sends(self, p: int, step: int) -> bool:
        """Returns whether fragment p is reduced after so many inner steps."""
        if self.local_every is not None:
            return step > 0 and step % self.local_every == 0
        first = p * self.inner_steps // self.count or self.inner_steps
        return step >= first and (step - first) % self.inner_steps == 0

    def sent(self, step: int) -> list[int]:
        """Returns the fragments that are reduced after so many inner steps."""
        return [p for p in range(self.count) if self.sends(p, step)]

    def merges(self, p: int, step: int) -> bool:
        """Returns whether workers go on from new outer parameters after so many inner steps."""
        if self.overlap == self.inner_steps:  # also the first time, when nothing has come yet
            return self.sends(p, step)
        return self.sends(p, step - self.overlap)

    def next_stop(self, step: int, last: int) -> int:
        """Returns the next step after `step` at which a worker sends or merges, at most `last`."""
        for stop in range(step + 1, last):
            if any(self.sends(p, stop) or self.merges(p, stop) for p in range(self.count)):
                return stop
        return last
