"""What a machine is on which aggregators run: how fast it adds, moves and starts, and its power."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fl.checks import not_negative, positive, within_unit
from fl.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AggregatorMachine:
    """A machine of a hierarchy. All of one hierarchy are alike.

    An aggregator is a process on it. It does one thing after the other; several do not slow each
    other down.

    Attributes:
        add_s_per_byte: that an aggregator takes to add a vector to its sum, for each byte of the
            vector, s.
        copy_s_per_byte: to copy a payload in memory once.
        encode_s_per_byte: to make bytes of a vector, or a vector of bytes, once.
        hop_s: to hand something on within the machine, whatever its size, s.
        nic_bps: its link to other machines, each way, bit/s; infinity is never full.
        nic_latency_s: one-way delay from machine to machine.
        cold_s: until a new process can work, s, in which its processor is busy.
        warm_s: until one that is alive and idle can.
        keep_alive_s: for which an idle process stays alive; infinity never ends it.
        idle_cpu: share of a core that a process takes while it is alive and waits.
        idle_w: power of the machine while a process is alive on it, W.
        work_w: that each process adds while it works.

    Raises:
        ConfigError: an argument is out of its range.
    """

    add_s_per_byte: float
    copy_s_per_byte: float
    encode_s_per_byte: float
    hop_s: float
    nic_bps: float
    nic_latency_s: float
    cold_s: float
    warm_s: float
    keep_alive_s: float
    idle_cpu: float
    idle_w: float
    work_w: float

    def __post_init__(self) -> None:
        for name in (
            *("add_s_per_byte", "copy_s_per_byte", "encode_s_per_byte", "hop_s"),
            *("nic_latency_s", "cold_s", "warm_s", "idle_w", "work_w"),
        ):
            not_negative(name, getattr(self, name))
        within_unit("idle_cpu", self.idle_cpu)
        if self.nic_bps != math.inf:
            positive("nic_bps", self.nic_bps)
        if self.keep_alive_s != math.inf:
            not_negative("keep_alive_s", self.keep_alive_s)
        if self.warm_s > self.cold_s:
            raise ConfigError(
                f"warm_s is {self.warm_s}, and cold_s {self.cold_s}: a process that "
                "is alive must not take longer than a new one"
            )

    def add_s(self, size: int) -> float:
        """Returns how long an aggregator adds a vector of so many bytes, s."""
        return self.add_s_per_byte * size

    def wire_s(self, size: int) -> float:
        """Returns how long a payload of so many bytes occupies a link between machines, s."""
        return 8 * size / self.nic_bps
