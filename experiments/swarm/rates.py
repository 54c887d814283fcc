"""SWARM's rebalancing over 32 hours of preemptions: the pipeline's rate, by its slowest stage.

    python experiments/swarm/rates.py

Nothing is sent: a stage is as fast as it has peers, all of them equal, and the pipeline as fast as
its slowest stage. Who comes, goes and moves follows the strategy's rule; a peer that comes to a
stage serves it once it has downloaded it. The best there is has n // S peers in the slowest stage
at any time. run.sh has the same with micro-batches, for shorter.
"""

from __future__ import annotations

import heapq
import math

import numpy as np

from fl.randomness import generator
from fl.simulation.world.availability import ExponentialOnOff
from fl.stages import Rebalancing

HOURS, SEEDS = 32, range(10)
STAGES, PEERS = 3, 400
DOWNLOAD_S = 100.0
FIRST_S, LAST_S = 3600.0, (HOURS - 1) * 3600.0
JOINERS = ("anywhere", "where needed")


def shares(
    every_s: float, seed: int, *, joiners: str, on_s: float, off_s: float, peers: int, stages: int
) -> tuple[float, float, float]:
    """Returns the rate over the best there is: of all hours, of the first and of the last one."""
    there = ExponentialOnOff(peers, seed, on_s, off_s)
    rule, rates = Rebalancing(every_s, gain=0.0), dict.fromkeys(range(peers), 1.0)
    rng = generator(seed, "joins")
    serves: dict[int, int] = {}
    loads: dict[int, tuple[int, float]] = {}  # peer -> stage that it downloads, and until when
    online = np.flatnonzero(there.online(0.0)).tolist()
    for k, peer in enumerate(online):
        serves[peer] = k % stages
    changes = [(there.next_change(p, 0.0), p) for p in range(peers)]
    changes.sort()
    now, tick, end = 0.0, every_s, HOURS * 3600.0
    got, best = np.zeros(3), np.zeros(3)

    def stage_queues() -> list[dict[int, float]]:
        """A stage's load is what a unit of work takes it; those on their way count."""
        where = serves | {p: stage for p, (stage, _) in loads.items()}
        members: list[list[int]] = [[] for _ in range(stages)]
        for p, stage in where.items():
            members[stage].append(p)
        return [{p: 1 / len(own) ** 2 for p in own} for own in members]

    heapq.heapify(changes)
    while now < end:
        arrival = min((until for _, until in loads.values()), default=math.inf)
        then = min(changes[0][0], tick, arrival, end)
        counts = np.bincount(list(serves.values()), minlength=stages)
        n = len(serves) + len(loads)
        spans = (
            then - now,
            max(0.0, min(then, FIRST_S) - now),
            max(0.0, then - max(now, LAST_S)),
        )
        got += np.array(spans) * counts.min()
        best += np.array(spans) * (n // stages)
        now = then
        for p in [p for p, (_, until) in loads.items() if until <= now]:
            serves[p] = loads.pop(p)[0]
        if tick <= now:
            move = rule.move(stage_queues(), rates)
            if move is not None:
                serves.pop(move.peer, None)
                loads[move.peer] = (move.target, now + DOWNLOAD_S)
            tick += every_s
        while changes[0][0] <= now:
            _, p = heapq.heappop(changes)
            heapq.heappush(changes, (there.next_change(p, now), p))
            if there.is_online(p, now):
                needed = rule.busiest(stage_queues())
                stage = int(rng.integers(stages)) if joiners == "anywhere" else needed
                loads[p] = (stage, now + DOWNLOAD_S)
            else:
                serves.pop(p, None)
                loads.pop(p, None)
    overall, first, last = got / best
    return float(overall), float(first), float(last)


def main() -> None:
    """Prints the table of README.md."""
    print("| joiners go | peers, stages | T | overall | first hour | last hour |")
    print("|---|---|---|---:|---:|---:|")
    for joiners in JOINERS:
        for peers, stages in ((400, 3), (64, 4), (32, 4)):
            for every_s in (math.inf, 300.0, 60.0):
                found = np.array(
                    [
                        shares(
                            every_s,
                            seed,
                            joiners=joiners,
                            on_s=8 * 3600.0,
                            off_s=2 * 3600.0,
                            peers=peers,
                            stages=stages,
                        )
                        for seed in SEEDS
                    ]
                )
                mean, error = found.mean(0), found.std(0, ddof=1) / math.sqrt(len(found))
                cells = [
                    f"{100 * m:.1f} ± {100 * e:.1f} %" for m, e in zip(mean, error, strict=True)
                ]
                period = "none" if math.isinf(every_s) else f"{every_s:g} s"
                print(
                    f"| {joiners} | {peers}, {stages} | {period} | {' | '.join(cells)} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
