"""A step of PowerSGD and of data-parallel training, by bandwidth: nothing is trained.

    python experiments/powersgd/times.py          measures, and replaces the page's tables
    python experiments/powersgd/times.py tables   makes them of what was kept

Buckets, rings and the sizes of messages are those of runs: fl.collectives, fl.compression.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

from results import main

from fl.collectives import Buckets, RingAllReduce
from fl.compression import PowerSgd, Shapes
from fl.simulation.kernel.links import RankLinks
from fl.simulation.world.fleets import uniform

M, LATENCY_S = 16, 50e-6
GBPS = (1.0, 10.0, 100.0)
COMPUTE_S = (0.05, 0.1, 0.2)  # of a step: forward and backward pass
RANKS = (1, 2, 4)
HEADER = 7  # bytes of a message beside its numbers
Tensors = list[tuple[int, ...]]


def resnet18() -> Tensors:
    """Returns the tensors of ResNet-18 for 32 x 32 images, 11.2 million numbers."""
    found: Tensors = [(64, 3, 3, 3), (64,), (64,)]
    inside = 64
    for outside in (64, 128, 256, 512):
        for block in range(2):
            first = inside if block == 0 else outside
            found += [(outside, first, 3, 3), (outside,), (outside,)]
            found += [(outside, outside, 3, 3), (outside,), (outside,)]
            if first != outside:
                found += [(outside, first, 1, 1), (outside,), (outside,)]
        inside = outside
    return [*found, (10, 512), (10,)]


def lstm() -> Tensors:
    """Returns those of three LSTM layers of 650 over 28,869 words, 28.9 million numbers."""
    layer: Tensors = [(2600, 650), (2600, 650), (2600,), (2600,)]
    return [(28869, 650), *layer * 3, (28869,)]


MODELS = {"ResNet-18": resnet18(), "LSTM": lstm()}


def sizes(tensors: Tensors, rank: int, *, alternating: bool = False) -> list[int]:
    """Returns the bytes of PowerSGD's all-reduces, which follow one another.

    With alternating factors they are those of two steps, one each.
    """
    shapes = Shapes(tuple(tensors))
    factors = PowerSgd(rank=rank, alternating=True).init(shapes)
    p, q = factors["p"].size, factors["q"].size
    length = PowerSgd(rank=rank).length(shapes)
    rest = (length.least - HEADER) // 4 - p - q  # numbers of what is not compressed
    return [4 * (p + rest), 4 * (q + rest)] if alternating else [4 * (p + rest), 4 * q]


def ring_s(size: int, gbps: float) -> float:
    """Returns the seconds of an all-reduce."""
    bps = gbps * 1e9
    fleet = uniform(M, 0, down_bps=bps, up_bps=bps, latency_s=LATENCY_S / 2)
    closed = RingAllReduce().closed(RankLinks(fleet.peers, range(M)), [size] * M)
    assert closed is not None
    return closed.seconds


def ddp_s(tensors: Tensors, compute_s: float, gbps: float, buckets: Buckets | None) -> float:
    """Returns the seconds of a step that all-reduces float32; None: after the backward pass."""
    shapes = Shapes(tuple(tensors))
    if buckets is None:
        return compute_s + ring_s(4 * shapes.size, gbps)
    end = 0.0
    for bucket in buckets.of(shapes.sizes):
        ready = buckets.ready_s(bucket, [(compute_s, compute_s)])
        end = max(ready, end) + ring_s(int(bucket.share * 4 * shapes.size), gbps)
    return max(compute_s, end)


def measure() -> list[dict[str, Any]]:
    """Returns a record for each model, way, bandwidth and compute time."""
    found = []
    for model, tensors in MODELS.items():
        whole = 4 * Shapes(tuple(tensors)).size
        ways: dict[str, tuple[Buckets | Sequence[int], int]] = {
            "DDP, buckets of 1 and 25 MiB": (Buckets(), whole),
            "DDP, buckets of 5 MiB": (Buckets(mib=5, first_mib=None), whole),
            "all-reduce after the backward pass": ([whole], whole),
        }
        for rank in RANKS:
            both = sizes(tensors, rank)
            ways[f"PowerSGD, rank {rank}"] = (both, sum(both))
        turns = sizes(tensors, 2, alternating=True)
        ways["PowerSGD, rank 2, factors in turn"] = (turns, sum(turns) // 2)
        for way, (how, size) in ways.items():
            for gbps in GBPS:
                for compute_s in COMPUTE_S:
                    if isinstance(how, Buckets):
                        step_s = ddp_s(tensors, compute_s, gbps, how)
                    else:
                        link_s = sum(ring_s(each, gbps) for each in how)
                        step_s = compute_s + link_s / (2 if how is turns else 1)
                    of = {"model": model, "way": way, "gbps": gbps, "compute_s": compute_s}
                    found.append(of | {"step_s": step_s, "bytes": size})
    return found


def of_model(records: list[dict[str, Any]], model: str) -> Iterator[str]:
    """Yields the table of a model: ms a step, and DDP's time over it."""
    mine = [one for one in records if one["model"] == model]
    columns = [(gbps, compute_s) for gbps in GBPS for compute_s in COMPUTE_S]
    heads = " | ".join(f"{g:g} Gbit/s, {1000 * c:g} ms" for g, c in columns)
    yield f"| {model} | MB a step | {heads} |"
    yield "|---|---:|" + "---:|" * len(columns)
    ddp: dict[tuple[float, float], float] = {}
    for way in dict.fromkeys(one["way"] for one in mine):
        rows = {(r["gbps"], r["compute_s"]): r for r in mine if r["way"] == way}
        ddp = ddp or {column: rows[column]["step_s"] for column in columns}
        cells = []
        for column in columns:
            step_s = rows[column]["step_s"]
            cells.append(f"{1000 * step_s:.1f} ({ddp[column] / step_s:.2f})")
        size = rows[columns[0]]["bytes"] / 1e6
        yield f"| {way} | {size:.2f} | {' | '.join(cells)} |"


def tables(records: list[dict[str, Any]]) -> str:
    """Returns the page's tables."""
    return "\n\n".join("\n".join(of_model(records, model)) for model in MODELS)


if __name__ == "__main__":
    main(__file__, measure, tables)
