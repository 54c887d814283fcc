"""Links: the clients' access, the server's link that transfers share, and links between clients.

Rates are bits per second, sizes bits, times virtual seconds. `SharedLink` is the server's link
seen by the transfers in flight; it knows neither clients nor events.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from operator import attrgetter
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from fl.errors import ConfigError, SimulationError
from fl.randomness import uniform

MSS_BITS = 1460 * 8
"""Payload of a full TCP segment on Ethernet: 1500 bytes less 40 bytes of headers."""

MATHIS_CONSTANT = math.sqrt(1.5)
"""C of Mathis et al. for periodic loss, with an acknowledgement for every segment."""

FLOOR_FRACTION = 0.01
"""A transfer's drawn bandwidth is at least this fraction of the link's mean."""


def mathis_bps(rtt_s: float, loss: float) -> float:
    """Returns the rate at which TCP's congestion avoidance settles under random packet loss.

    rate = MSS / RTT * C / sqrt(p), with C = sqrt(3/2). With delayed acknowledgements (one for
    every other segment) C is sqrt(3/4), a third less; we use the larger figure, so this is a bound.

    Source: Mathis, Semke, Mahdavi, Ott, "The macroscopic behavior of the TCP congestion avoidance
    algorithm", ACM CCR 27(3), 1997. The constant is also that of Floyd's response function
    w = sqrt(1.5 / p), and of Padhye et al. 1998 for small p, sqrt(3 / (2 b p)) with b = 1.

    Args:
        rtt_s: round-trip time in s; 0 gives infinity.
        loss: packet loss probability in [0, 1); 0 gives infinity.

    Returns:
        Bound on one flow's throughput in bit/s.
    """
    if loss == 0.0 or rtt_s == 0.0:
        return math.inf
    return MSS_BITS / rtt_s * MATHIS_CONSTANT / math.sqrt(loss)


@dataclass(frozen=True, eq=False)
class Links:
    """Columns of the clients' access links, one row per client.

    Attributes:
        down_bps: towards the client, bit/s, float64, shape (n,); infinity means no limit.
        up_bps: from the client, likewise.
        latency_s: one-way delay in s, float64, shape (n,).
        loss: packet loss probability, float64, shape (n,); see `mathis_bps`. A lost packet is sent
            again and costs time. The loss of a whole message is `Faults.message_loss`.
        down_sigma_bps: standard deviation of each download's bandwidth, shape (n,), or None.
        up_sigma_bps: the same for uploads.
    """

    down_bps: NDArray[np.float64]
    up_bps: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    loss: NDArray[np.float64]
    down_sigma_bps: NDArray[np.float64] | None = None
    up_sigma_bps: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        return len(self.down_bps)

    def down_cap(
        self, seed: int, client: int, transfer: int, server_latency_s: float = 0.0
    ) -> float:
        """Returns the bandwidth that one download of the client gets if nothing else limits it.

        The smaller of the bandwidth drawn for this transfer and TCP's rate under the link's loss
        at RTT = 2 * (client's latency + server's latency). The draw is a normal distribution with
        the columns' mean and standard deviation, truncated below at 1% of the mean (FLASH
        truncates at 0, where a transfer would never end).

        Args:
            seed: root seed of the run.
            client: index of the client.
            transfer: running number of the client's transfer; its dispatch number will do.
            server_latency_s: one-way delay of the server's link, in s.

        Returns:
            bit/s, positive, possibly infinite; a pure function of the arguments.
        """
        return self._cap(
            "down-bps", self.down_bps, self.down_sigma_bps, seed, client, transfer, server_latency_s
        )

    def up_cap(self, seed: int, client: int, transfer: int, server_latency_s: float = 0.0) -> float:
        """Returns the bandwidth of one upload; see `down_cap`."""
        return self._cap(
            "up-bps", self.up_bps, self.up_sigma_bps, seed, client, transfer, server_latency_s
        )

    def _cap(
        self,
        purpose: str,
        mean: NDArray[np.float64],
        sigma: NDArray[np.float64] | None,
        seed: int,
        client: int,
        transfer: int,
        server_latency_s: float,
    ) -> float:
        bps = float(mean[client])
        if sigma is not None and sigma[client] > 0:
            u = uniform(seed, purpose, client, transfer)
            bps = _truncated_normal(bps, float(sigma[client]), FLOOR_FRACTION * bps, u)
        loss = float(self.loss[client])
        if loss > 0:
            rtt_s = 2.0 * (float(self.latency_s[client]) + server_latency_s)
            bps = min(bps, mathis_bps(rtt_s, loss))
        return bps


def _truncated_normal(mean: float, sigma: float, low: float, u: float) -> float:
    """Returns the u-quantile of Normal(mean, sigma) given that it is at least `low`."""
    below = float(ndtr((low - mean) / sigma))
    # For u next to 1 the sum may round to 1, whose quantile is infinite.
    v = min(below + (1.0 - below) * u, 1.0 - 2.0**-53)
    return max(low, mean + sigma * float(ndtri(v)))


@dataclass(frozen=True)
class ServerLink:
    """The server's own link. Transfers in flight share it, see `SharedLink`.

    Args:
        down_bps: capacity for what the server receives, bit/s; infinity means no bottleneck.
        up_bps: capacity for what the server sends, bit/s.
        latency_s: one-way delay in s, added to that of the client's link.

    Raises:
        ConfigError: a capacity is not positive, or the latency is negative or not finite.
    """

    down_bps: float = math.inf
    up_bps: float = math.inf
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        for name in ("down_bps", "up_bps"):
            value = getattr(self, name)
            if not value > 0:
                raise ConfigError(
                    f"server.{name} is {value}; it must be a positive number of bits per second, "
                    "or .inf for a link that is never the bottleneck."
                )
        if not (math.isfinite(self.latency_s) and self.latency_s >= 0):
            raise ConfigError(
                f"server.latency_s is {self.latency_s}; it must be finite and at least 0."
            )


@dataclass(frozen=True, eq=False)
class Edges:
    """Direct links between clients, for gossip and for islands of machines.

    A path from i to j crosses i's access link upwards, j's downwards and, where sites are given,
    the wide-area path between the two sites.

    Attributes:
        links: the clients' access links.
        site: site of each client, integer, shape (n,), or None.
        site_bps: bandwidth of a flow from site to site, bit/s, shape (m, m), or None.
        site_latency_s: one-way delay from site to site in s, shape (m, m), or None. Where given it
            replaces the latencies of the access links, which it includes.
    """

    links: Links
    site: NDArray[np.integer] | None = None
    site_bps: NDArray[np.float64] | None = None
    site_latency_s: NDArray[np.float64] | None = None

    def bandwidth_bps(self, i: int, j: int) -> float:
        """Returns the bandwidth of a transfer from client i to client j, in bit/s."""
        bps = min(float(self.links.up_bps[i]), float(self.links.down_bps[j]))
        return min(bps, self._path_bps(i, j))

    def _path_bps(self, i: int, j: int) -> float:
        if self.site is None or self.site_bps is None:
            return math.inf
        return float(self.site_bps[self.site[i], self.site[j]])

    def transfer_s(self, i: int, j: int, size: int, *, fanout: int = 1, fanin: int = 1) -> float:
        """Returns the seconds that a payload's bytes flow from client i to client j.

            8 size / min(up_i / fanout, down_j / fanin, path)

        Args:
            i: index of the sender.
            j: index of the receiver.
            size: bytes.
            fanout: payloads that i sends at once.
            fanin: payloads that j receives at once.
        """
        bps = min(float(self.links.up_bps[i]) / fanout, float(self.links.down_bps[j]) / fanin)
        return 8.0 * size / min(bps, self._path_bps(i, j))

    def latency_s(self, i: int, j: int) -> float:
        """Returns the one-way delay from client i to client j, in s."""
        if self.site is not None and self.site_latency_s is not None:
            return float(self.site_latency_s[self.site[i], self.site[j]])
        return float(self.links.latency_s[i]) + float(self.links.latency_s[j])


class SharedLink:
    """One link shared by the flows in flight, max-min fair, each flow with its own cap.

    At every instant flow i gets rate_i = min(cap_i, level), and the level is such that the rates
    add up to the capacity; if the caps add up to less, every flow gets its cap ("water filling",
    Bertsekas and Gallager, Data Networks, section 6.5.2). A fluid model: rates change at once when
    a flow comes, goes or gets another cap.

    The caller moves time forward: it asks `next_completion`, and at that time calls
    `pop_completed`. Calls must come in order of time, and no call may pass over a completion.

    With infinite capacity each flow runs at its own cap and ends exactly at start + size / cap;
    a flow whose cap is infinite too ends at once.

    Cost: flows of equal cap form one group, whatever their number. A call costs O(log n), the shift
    of a list of n pointers, and some additions for every group whose cap the level passes: about
    one group where caps are spread out, many where they crowd around the level without being
    equal. Calls at one instant pay for the level's way from the first state to the last.

    Args:
        capacity_bps: bit/s, positive, may be infinite.

    Raises:
        ConfigError: the capacity is not positive.
    """

    def __init__(self, capacity_bps: float) -> None:
        if not capacity_bps > 0:
            raise ConfigError(
                f"capacity_bps is {capacity_bps}; a shared link needs a positive capacity, or .inf "
                "for one that is never the bottleneck."
            )
        self.capacity_bps = float(capacity_bps)
        self._flows: _Sharing = (
            _Unlimited() if math.isinf(capacity_bps) else _WaterFilling(self.capacity_bps)
        )

    def __len__(self) -> int:
        """Returns the number of flows in flight."""
        return len(self._flows)

    def add(self, now: float, flow: int, size_bits: float, cap_bps: float) -> None:
        """Starts a flow.

        Args:
            now: virtual time in s.
            flow: the caller's number for it, not in flight yet; ties are resolved in its order.
            size_bits: what it has to carry; 0 completes now.
            cap_bps: the most it can get, positive, may be infinite.

        Raises:
            ConfigError: size or cap out of range.
            SimulationError: the flow is in flight already, or time is out of order.
        """
        if not (size_bits >= 0 and math.isfinite(size_bits)):
            raise ConfigError(
                f"flow {flow} has size_bits {size_bits}; it must be finite and at least 0."
            )
        _check_cap(flow, cap_bps)
        if flow in self._flows:
            raise SimulationError(f"flow {flow} is already in flight at t={now} s.")
        self._flows.add(now, flow, size_bits, cap_bps)

    def remove(self, now: float, flow: int) -> float:
        """Takes a flow off the link and returns the bits that it had still to carry.

        Raises:
            SimulationError: no such flow is in flight, or time is out of order.
        """
        self._check_known(now, flow)
        return self._flows.remove(now, flow)

    def set_cap(self, now: float, flow: int, cap_bps: float) -> None:
        """Gives a flow another cap, for what is left of it.

        Raises:
            ConfigError: the cap is not positive.
            SimulationError: no such flow is in flight, or time is out of order.
        """
        _check_cap(flow, cap_bps)
        self._check_known(now, flow)
        self._flows.set_cap(now, flow, cap_bps)

    def rate_bps(self, flow: int) -> float:
        """Returns the flow's rate since the last call, in bit/s.

        Raises:
            KeyError: no such flow is in flight.
        """
        return self._flows.rate_bps(flow)

    def next_completion(self) -> float:
        """Returns the time in s at which the next flow ends if none comes or goes; else infinity.

        Never before the time of the last call.
        """
        return self._flows.next_completion()

    def pop_completed(self, now: float) -> list[int]:
        """Takes off the flows that have ended by `now`.

        Returns:
            Their numbers, in order of time, and at the same instant in order of flow number. Ends
            less than 2**-44 of `now` apart count as the same instant: that is rounding.
        """
        return self._flows.pop_completed(now)

    def _check_known(self, now: float, flow: int) -> None:
        if flow not in self._flows:
            raise SimulationError(f"flow {flow} is not in flight at t={now} s.")


def _check_cap(flow: int, cap_bps: float) -> None:
    if not cap_bps > 0:
        raise ConfigError(
            f"flow {flow} has cap_bps {cap_bps}; a flow needs a positive rate, or .inf for no cap."
        )


class _Sharing(Protocol):
    """What `SharedLink` asks of its two implementations."""

    def __len__(self) -> int: ...
    def __contains__(self, flow: int) -> bool: ...
    def add(self, now: float, flow: int, size: float, cap: float) -> None: ...
    def remove(self, now: float, flow: int) -> float: ...
    def set_cap(self, now: float, flow: int, cap: float) -> None: ...
    def rate_bps(self, flow: int) -> float: ...
    def next_completion(self) -> float: ...
    def pop_completed(self, now: float) -> list[int]: ...


def _check_order(now: float, last: float, completion: float) -> None:
    if now < last:
        raise SimulationError(f"a shared link at t={last} s cannot go back to t={now} s.")
    if completion < now - _slack(now):
        raise SimulationError(
            f"a flow ended at t={completion} s; call pop_completed before moving to t={now} s."
        )


def _slack(now: float) -> float:
    """Returns 256 units in the last place of `now`: what rounding can put between equal times."""
    return now * 2.0**-44


class _Unlimited:
    """Flows on a link without limit: each at its own cap, one heap of end times."""

    def __init__(self) -> None:
        self._now = 0.0
        self._ends: dict[int, tuple[float, float]] = {}  # flow -> (end, cap)
        self._heap: list[tuple[float, int]] = []  # (end, flow); stale if not what _ends says

    def __len__(self) -> int:
        return len(self._ends)

    def __contains__(self, flow: int) -> bool:
        return flow in self._ends

    def add(self, now: float, flow: int, size: float, cap: float) -> None:
        self._move(now)
        self._insert(now, flow, size, cap)

    def remove(self, now: float, flow: int) -> float:
        self._move(now)
        return self._delete(now, flow)

    def set_cap(self, now: float, flow: int, cap: float) -> None:
        self._move(now)
        if cap != self._ends[flow][1]:
            self._insert(now, flow, self._delete(now, flow), cap)

    def rate_bps(self, flow: int) -> float:
        return self._ends[flow][1]

    def next_completion(self) -> float:
        heap, ends = self._heap, self._ends
        while heap:
            end, flow = heap[0]
            entry = ends.get(flow)
            if entry is not None and entry[0] == end:
                return max(end, self._now)
            heappop(heap)
        return math.inf

    def pop_completed(self, now: float) -> list[int]:
        done: list[int] = []
        while (at := self.next_completion()) <= now + _slack(now):
            batch: list[int] = []
            while self.next_completion() <= at + _slack(at):
                flow = heappop(self._heap)[1]
                del self._ends[flow]
                batch.append(flow)
            batch.sort()
            done += batch
        self._move(now)
        return done

    def _move(self, now: float) -> None:
        _check_order(now, self._now, self.next_completion())
        self._now = now

    def _insert(self, now: float, flow: int, size: float, cap: float) -> None:
        end = now + size / cap
        self._ends[flow] = (end, cap)
        heappush(self._heap, (end, flow))
        if len(self._heap) > 2 * len(self._ends) + 64:
            self._heap = [(end, flow) for flow, (end, _) in self._ends.items()]
            heapify(self._heap)

    def _delete(self, now: float, flow: int) -> float:
        end, cap = self._ends.pop(flow)
        return (end - now) * cap if end > now else 0.0


_UNITS_PER_BPS = 2.0**40
"""Caps are added up as integers of this fineness, exactly: 4096 bit/s and more lose nothing."""


class _Group:
    """The flows of one cap. All of them get the same rate, min(cap, level), at any time.

    So one counter, the bits served to each of them since the group began, serves all: a flow that
    came when the counter was s ends when it is s + size. The counter is linear in time while the
    group is free (at its own cap), and linear in the volume, the integral of the level, while it is
    held (at the level). Passing from one to the other touches the group, not its flows.
    """

    __slots__ = ("cap", "count", "heap", "held", "mark", "moved", "served", "stamp", "units")

    def __init__(self, cap: float, held: bool, mark: float) -> None:
        self.cap = cap
        self.units = int(cap * _UNITS_PER_BPS) or 1
        self.held = held
        self.mark = mark  # a time while free, a volume while held
        self.served = 0.0  # the counter at `mark`
        self.heap: list[tuple[float, int]] = []  # (counter at the end, flow)
        self.count = 0
        self.stamp = 0  # number of the group's valid entry in a heap of ends
        self.moved = False  # whether it changed sides since that entry was made


_CAP = attrgetter("cap")


class _WaterFilling:
    """Flows on a link of finite capacity.

    Groups are kept in order of their caps: the first ones are free, the rest are held.

    A group's next end is in one of two heaps, of times and of volumes. While the group is free the
    time is right however the level changes, while it is held the volume is. When it changes sides
    its entry stays where it is: the group's rate is never above its cap nor above the level, so
    the entry says too early an end, and is made anew when it comes to the top. A level that swings
    across the caps of many groups costs each of them an addition, not a place in a heap.

    The level is found when it is needed, not at each of several calls at one instant. It is
    computed from exact integers: it is a function of the flows in flight, with no trace of those
    that came and went.
    """

    def __init__(self, capacity: float) -> None:
        self._capacity = capacity
        self._units = int(capacity * _UNITS_PER_BPS)
        self._now = 0.0
        self._level = math.inf
        self._volume = 0.0  # bits that a flow held all the time has got
        self._flows: dict[int, tuple[_Group, float]] = {}  # flow -> group, counter at the end
        self._groups: dict[float, _Group] = {}  # by cap
        self._order: list[_Group] = []  # by cap, ascending
        self._free_groups = 0  # so many at the front of them are free
        self._free_units = 0  # sum of the caps of free flows
        self._held_count = 0  # number of held flows
        self._free_ends: list[tuple[float, int, _Group]] = []  # (time, stamp, group)
        self._held_ends: list[tuple[float, int, _Group]] = []  # (volume, stamp, group)
        self._stamps = 0
        self._next: float | None = None  # what next_completion found, if nothing changed since

    def __len__(self) -> int:
        return len(self._flows)

    def __contains__(self, flow: int) -> bool:
        return flow in self._flows

    def add(self, now: float, flow: int, size: float, cap: float) -> None:
        self._move(now)
        self._insert(flow, size, cap)

    def remove(self, now: float, flow: int) -> float:
        self._move(now)
        group, end = self._flows[flow]
        remaining = max(0.0, end - self._served(group))
        self._delete(flow)
        return remaining

    def set_cap(self, now: float, flow: int, cap: float) -> None:
        self._move(now)
        if min(cap, self._capacity) != self._flows[flow][0].cap:
            self._insert(flow, self.remove(now, flow), cap)

    def rate_bps(self, flow: int) -> float:
        self.next_completion()  # finds the level
        group = self._flows[flow][0]
        return self._level if group.held else group.cap

    def next_completion(self) -> float:
        if self._next is None:
            self._fill()
            self._settle()
            at = self._free_ends[0][0] if self._free_ends else math.inf
            if self._held_ends:
                at = min(at, self._next_held())
            self._next = max(at, self._now)
        return self._next

    def pop_completed(self, now: float) -> list[int]:
        done: list[int] = []
        while (at := self.next_completion()) <= now + _slack(now):
            limit = at + _slack(at)
            volume_limit = -math.inf
            if self._held_ends and self._next_held() <= limit:
                # The head is taken by its own volume: computing its time and going back may round
                # to just below it, and nothing would end at the time announced.
                volume_limit = max(
                    self._held_ends[0][0], self._volume + self._level * (limit - self._now)
                )
            self._advance(min(at, now))
            done += self._take(limit, volume_limit)
            if at >= now:
                return done
        self._move(now)
        return done

    def _take(self, limit: float, volume_limit: float) -> list[int]:
        """Takes off the flows that end up to a time or a volume."""
        batch: list[int] = []
        while True:
            # Equal ends of one group have equal keys, so they go together.
            if self._free_ends and self._free_ends[0][0] <= limit:
                group = self._free_ends[0][2]
            elif self._held_ends and self._held_ends[0][0] <= volume_limit:
                group = self._held_ends[0][2]
            else:
                break
            flow = group.heap[0][1]
            self._delete(flow)
            batch.append(flow)
            self._settle()
        batch.sort()
        return batch

    def _move(self, now: float) -> None:
        if now != self._now:
            completion = self.next_completion()
            if not self._now < now <= completion:
                _check_order(now, self._now, completion)
            self._advance(now)

    def _advance(self, now: float) -> None:
        if self._held_count:
            self._volume += self._level * (now - self._now)
        self._now = now
        self._next = None

    def _next_held(self) -> float:
        return self._now + (self._held_ends[0][0] - self._volume) / self._level

    def _served(self, group: _Group) -> float:
        if group.held:
            return group.served + (self._volume - group.mark)
        return group.served + group.cap * (self._now - group.mark)

    def _insert(self, flow: int, size: float, cap: float) -> None:
        self._next = None
        # No flow can get more than the link has, so larger caps are all the same.
        cap = min(cap, self._capacity)
        group = self._groups.get(cap)
        if group is None:
            # A cap between the two sides begins free; `_fill` says where it belongs.
            order, place = self._order, bisect_left(self._order, cap, key=_CAP)
            held = place > self._free_groups
            group = _Group(cap, held, self._volume if held else self._now)
            order.insert(place, group)
            self._free_groups += not held
            self._groups[cap] = group
            end = size
        else:
            end = self._served(group) + size
        heappush(group.heap, (end, flow))
        group.count += 1
        self._flows[flow] = (group, end)
        if group.held:
            self._held_count += 1
        else:
            self._free_units += group.units
        if group.heap[0][1] == flow:
            self._schedule(group)

    def _delete(self, flow: int) -> None:
        self._next = None
        group, end = self._flows.pop(flow)
        group.count -= 1
        if group.held:
            self._held_count -= 1
        else:
            self._free_units -= group.units
        heap = group.heap
        if group.count == 0:
            del self._groups[group.cap]
            del self._order[bisect_left(self._order, group.cap, key=_CAP)]
            self._free_groups -= not group.held
            group.stamp = 0
        elif heap[0] == (end, flow):
            while not self._current(group, heap[0]):
                heappop(heap)
            self._schedule(group)
        elif len(heap) > 2 * group.count + 64:
            group.heap = [entry for entry in heap if self._current(group, entry)]
            heapify(group.heap)

    def _current(self, group: _Group, entry: tuple[float, int]) -> bool:
        known = self._flows.get(entry[1])
        return known is not None and known[0] is group and known[1] == entry[0]

    def _schedule(self, group: _Group) -> None:
        """Puts the end of the group's first flow into the heap of its side."""
        self._stamps += 1
        group.stamp = self._stamps
        group.moved = False
        left = group.heap[0][0] - group.served
        if group.held:
            ends, key = self._held_ends, group.mark + left
        else:
            ends, key = self._free_ends, group.mark + left / group.cap
        heappush(ends, (key, group.stamp, group))
        if len(ends) > 2 * len(self._groups) + 64:
            ends[:] = [entry for entry in ends if entry[2].stamp == entry[1]]
            heapify(ends)

    def _settle(self) -> None:
        """Makes the tops of both heaps right: drops what is gone, moves what changed sides."""
        for ends in (self._free_ends, self._held_ends):
            while ends:
                _, stamp, group = ends[0]
                if group.stamp != stamp:
                    heappop(ends)
                elif group.moved:
                    heappop(ends)
                    self._schedule(group)
                else:
                    break

    def _fill(self) -> None:
        """Finds the level: holds fast groups down while the link is full, then lets slow ones go.

        With F the caps of the free flows, h the number of held ones and C the capacity, the level
        is (C - F) / h. A free group is too fast if cap * h > C - F, which for h = 0 reads F > C; a
        held one is below the level if cap * h <= C - F. Letting a group go raises the level, so no
        free group becomes too fast again.
        """
        if not self._held_count:
            if self._level < math.inf:
                self._restart_volume()
            if self._free_units <= self._units:
                return
        order, free, now, volume = self._order, self._free_groups, self._now, self._volume
        spare, count = self._units - self._free_units, self._held_count
        while free > 0:
            group = order[free - 1]
            if group.units * count <= spare:
                break
            free -= 1
            spare += group.units * group.count
            count += group.count
            group.served += group.cap * (now - group.mark)
            group.mark = volume
            group.held = group.moved = True
        while free < len(order):
            group = order[free]
            if group.units * count > spare:
                break
            free += 1
            spare -= group.units * group.count
            count -= group.count
            group.served += volume - group.mark
            group.mark = now
            group.held, group.moved = False, True
        self._free_groups = free
        self._free_units, self._held_count = self._units - spare, count
        if count:
            self._level = spare / (count * int(_UNITS_PER_BPS))
        else:
            self._restart_volume()

    def _restart_volume(self) -> None:
        """Begins the volume anew while no group is held; ends in volumes become times."""
        self._level, self._volume = math.inf, 0.0
        ends, self._held_ends = self._held_ends, []
        for _, stamp, group in ends:
            if group.stamp == stamp:
                self._schedule(group)
