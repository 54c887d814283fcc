"""Cephalo: batch and state of data-parallel training, apportioned to unequal machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fl.checks import at_least, fraction, not_negative, positive, read_if, share
from fl.errors import ConfigError

Reals = NDArray[np.float64]
_MOST = 256  # parts that a batch is dealt in: the programme grows with their cube


class Machine(NamedTuple):
    """What is known of a machine.

    Attributes:
        memory: bytes.
        forward: seconds of a forward pass of m samples, (a, s) of a + s m.
        backward: of a backward pass, likewise.
    """

    memory: float
    forward: tuple[float, float]
    backward: tuple[float, float]


class BatchPart(NamedTuple):
    """A machine's part of the batch: so many micro-batches of `size` samples."""

    size: int
    micro_batches: int

    @property
    def samples(self) -> int:
        """Of all of them."""
        return self.size * self.micro_batches


@read_if(lambda a: a["even"] == "memory", "even_below", only="{at}even=memory reads it")
@dataclass(frozen=True)
class Cephalo:
    """Who takes how much of the batch, by compute, and of the state, by memory, independently.

    State is sharded (ZeRO-3, PyTorch's FSDP): parameters are gathered for the forward pass and
    again for the backward pass, beside which gradients are reduced and scattered. With l
    micro-batches of m samples, whose layers follow on each other so that a layer is gathered once,
    machine i takes

        T_i(m, l) = max(t_g, l f_i(m)) + max(t_g + t_s, l b_i(m) + (l - 1) o)

    with t_g and t_s the seconds of a gather and of a scatter, 1.25 times as much where m samples do
    not fit beside an even share of the state, and o an overhead. The batch B is dealt by

        minimise max_i T_i(m_i, l_i)    subject to    sum_i m_i l_i = B,  m_i, l_i >= 1,
            a_i(m_i) <= usable memory_i for all i,
            sum_i a_i(m_i) + state <= usable sum_i memory_i,

    a_i(m) the bytes of buffers and of the activations of m samples, which further micro-batches do
    not add to: they are offloaded. A dynamic programme over machines, samples and sum_i m_i is
    exact. Gradients are averaged by samples, so that a step is that of one machine with the batch.

    State is dealt by `even`: "shards" makes the largest shard as small as the usable memories let
    it be; "memory" the largest share of a memory that is used, all in all, once one of even shards
    is `even_below` or more: the emptiest machines are filled up together.

    Guo, Anand, Chen, Daudjee, "Cephalo: Harnessing Heterogeneous GPU Clusters for Training
    Transformer Models", ICS 2025, arXiv:2411.01075; rules and numbers are those of the code,
    github.com/benson-guo/cephalo. The paper's text was not at hand.

    Attributes:
        batch: B, samples of a step.
        memory: bytes of each client, in turn.
        sample_bytes: of the activations of a sample.
        fixed_bytes: beside the samples and the state: buffers of communication.
        state_bytes: of parameters, gradients and moments, for each parameter.
        usable: share of the memory that may be planned with.
        uneven: factor on t_g and t_s if shards are uneven.
        even: "shards", the default of the authors' code, or "memory".
        even_below: as above.
        overhead_s: o.
        recompute: whether a backward pass does the forward pass again, f_i more for each
            micro-batch, as the authors' code does. The simulator charges passes without it.
        granule: samples that are dealt together, which divides B: at most 256 parts are dealt.

    Raises:
        ConfigError: an argument is out of its range.
    """

    batch: int
    memory: Sequence[float] = (24e9,)
    sample_bytes: float = 0.0
    fixed_bytes: float = 2.0 * 2**30
    state_bytes: float = 16.0
    usable: float = 0.75
    uneven: float = 1.25
    even: str = "shards"
    even_below: float = 0.5
    overhead_s: float = 0.0
    recompute: bool = False
    granule: int = 1

    def __post_init__(self) -> None:
        at_least("batch", self.batch, 1)
        at_least("granule", self.granule, 1)
        if self.batch % self.granule:
            raise ConfigError(
                f"granule is {self.granule}, and batch {self.batch}: it must divide it"
            )
        if self.batch // self.granule > _MOST:
            raise ConfigError(
                f"batch is {self.batch}, in parts of granule {self.granule}; at most {_MOST} parts "
                f"are dealt: set granule to {-(-self.batch // _MOST)} or more"
            )
        if not len(self.memory):
            raise ConfigError("memory is empty; give the bytes of each client, in turn")
        for i, one in enumerate(self.memory):
            positive(f"memory[{i}]", one)
        for name in ("sample_bytes", "fixed_bytes", "state_bytes", "overhead_s"):
            not_negative(name, getattr(self, name))
        fraction("usable", self.usable)
        share("even_below", self.even_below)
        if self.even not in ("shards", "memory"):
            raise ConfigError(f"even is {self.even!r}; it must be shards or memory")
        if self.uneven < 1:
            raise ConfigError(f"uneven is {self.uneven}; it must be at least 1")

    def check_machines(self, m: int) -> None:
        """Raises ConfigError if a batch has no sample for each of M machines."""
        if self.batch // self.granule < m:
            raise ConfigError(
                f"strategy.sharding deals a batch of {self.batch} samples in parts of granule "
                f"{self.granule}, and there are {m} workers, of whom each takes one at least: "
                f"raise strategy.sharding.batch to {m * self.granule} or more, or lower "
                "strategy.sharding.granule"
            )

    def seconds(
        self, machine: Machine, part: BatchPart, gather_s: float, scatter_s: float
    ) -> float:
        """Returns T_i(m, l), s, with gathers and scatters of so many seconds."""
        m, count = part
        forward = count * (machine.forward[0] + machine.forward[1] * m)
        backward = count * (machine.backward[0] + machine.backward[1] * m)
        if self.recompute:
            backward += forward
        backward += (count - 1) * self.overhead_s
        return max(gather_s, forward) + max(gather_s + scatter_s, backward)

    def largest(self, memory: float, state: float = 0.0) -> int:
        """Returns how many samples of a micro-batch fit beside so many bytes of state."""
        left = self.usable * memory - state - self.fixed_bytes
        if left < 0:
            return 0
        return int(min(left / self.sample_bytes, self.batch)) if self.sample_bytes else self.batch

    def divided(
        self,
        machines: Sequence[Machine],
        parameters: int,
        gather_s: float = 0.0,
        scatter_s: float = 0.0,
    ) -> list[BatchPart]:
        """Returns every machine's part of the batch.

        Args:
            machines: M of them, at most as many as there are parts to deal.
            parameters: of the model.
            gather_s: t_g, s.
            scatter_s: t_s, s.

        Raises:
            ConfigError: they have not enough memory, or are too many.
        """
        g, B = self.granule, self.batch // self.granule
        even = self.state_bytes * parameters / len(machines)
        # best[j, k]: least max T of the machines so far, of j granules in all, and sum of m of k.
        best = np.full((B + 1, B + 1), np.inf)
        best[0, 0] = 0.0
        chosen: list[NDArray[np.int32]] = []
        for machine in machines:
            now, how = np.full_like(best, np.inf), np.zeros((B + 1, B + 1, 2), np.int32)
            fits_even = self.largest(machine.memory, even)
            for m in range(1, min(self.largest(machine.memory) // g, B) + 1):
                factor = 1.0 if m * g <= fits_even else self.uneven
                for count in range(1, B // m + 1):
                    part = BatchPart(m * g, count)
                    T = self.seconds(machine, part, factor * gather_s, factor * scatter_s)
                    before = np.maximum(best[: B + 1 - m * count, : B + 1 - m], T)
                    there = now[m * count :, m:]
                    better = before < there
                    there[better] = before[better]
                    how[m * count :, m:][better] = m, count
            best = now
            chosen.append(how)
        capacity = self.usable * sum(machine.memory for machine in machines)
        used = self.state_bytes * parameters + len(machines) * self.fixed_bytes
        k = np.arange(B + 1)
        times = np.where(used + k * g * self.sample_bytes <= capacity, best[B], np.inf)
        if not np.isfinite(times).any():
            raise ConfigError(self._why_not(len(machines), parameters, capacity))
        j, k_left = B, int(times.argmin())
        parts = []
        for how in reversed(chosen):
            m, count = map(int, how[j, k_left])
            parts.append(BatchPart(m * g, count))
            j, k_left = j - m * count, k_left - m
        return parts[::-1]

    def shards(
        self, machines: Sequence[Machine], parts: Sequence[BatchPart], parameters: int
    ) -> Reals:
        """Returns each machine's share of the state, shape (M,), of sum 1.

        Raises:
            ConfigError: they have not enough memory, even if all of it is used.
        """
        memory = np.array([machine.memory for machine in machines], np.float64)
        base = np.array([self.fixed_bytes + self.sample_bytes * part.size for part in parts])
        state, m = self.state_bytes * parameters, len(machines)
        if not state:
            return np.full(m, 1.0 / m)
        if self.even == "shards":
            room = np.maximum(self.usable * memory - base, 0.0) / state
            if room.sum() < 1:
                raise ConfigError(self._why_not(m, parameters, float(memory.sum())))
            # min(c, room_i) adds up to 1: those with less room than c are full.
            order = np.argsort(room, kind="stable")
            full = np.concatenate([[0.0], np.cumsum(room[order])[:-1]])
            c = (1.0 - full) / (m - np.arange(m))
            return np.asarray(np.minimum(room, c[int(np.argmax(c <= room[order]))]), np.float64)
        if ((base + state / m) / memory).max() < self.even_below:
            return np.full(m, 1.0 / m)
        order = np.argsort(base / memory, kind="stable")
        # Filled up to the level u, the first k hold u sum(memory) - sum(base) of the state.
        level = (state + np.cumsum(base[order])) / np.cumsum(memory[order])
        following = np.append((base / memory)[order][1:], np.inf)
        u = level[int(np.argmax(level <= following))]
        if u > 1:
            raise ConfigError(self._why_not(m, parameters, float(memory.sum())))
        held = np.maximum(u * memory - base, 0.0)
        return np.asarray(held / held.sum(), np.float64)

    def _why_not(self, m: int, parameters: int, capacity: float) -> str:
        return (
            f"strategy.sharding.batch is {self.batch}, of which {m} clients with {capacity:.3g} "
            "bytes in all that are usable cannot take a part each beside the state of "
            f"{parameters} parameters: lower it, or granule, sample_bytes or state_bytes of "
            "strategy.sharding, or raise strategy.sharding.memory"
        )
