"""Compressors beside a copy of the vector, on one machine in one run.

    python benchmarks/compression.py [--out FILE] [--d 1000000 10000000] [--only topk qsgd]

Four tables. Encoding and decoding of every compressor on a Gaussian vector, as multiples of copying
it to memory that is already mapped; the steps of the common ones, as a profile that says where the
time goes; ways to select the k largest entries, on one thread and on two; and the bytes of
positions beside the information bound. Times are the thread's own, the least of interleaved runs;
for the selection they are those of the wall. Machines differ and are
shared: only the ratios of one run mean something.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "2")  # the selection table asks for two at most

import numpy as np
import report
import torch

from fl.compression import (
    EF21,
    BlockTopK,
    Cast,
    Chain,
    Channel,
    Codebook,
    CountSketch,
    Demo,
    Diana,
    EControl,
    EF21Sgdm,
    ErrorFeedback,
    Identity,
    Induced,
    Marina,
    Natural,
    OneByteSpsa,
    PowerSgd,
    Qsgd,
    RandK,
    Shapes,
    Sign,
    TernGrad,
    Threshold,
    TopK,
    UniformQuantizer,
    Vector,
    indices,
    integers,
)
from fl.compression.largest import largest
from fl.compression.rounding import Words, stochastic_levels

TARGET = 10.0  # times a copy, for the common ones
COMMON = {"topk", "qsgd dense 4", "qsgd dense 8", "int8", "int8 nearest", "sign l1", "signsgd"}
LEAST_RUNS = 5
LEAST_SECONDS = 0.3


def channels() -> dict[str, Channel]:
    """Returns what is measured, by name."""
    return {
        "none": Identity(),
        "topk": TopK(density=0.01),
        "topk by tensor": TopK(density=0.01, scope="tensor"),
        "block topk": BlockTopK(density=0.01),
        "threshold": Threshold(2.5758),
        "randk": RandK(density=0.01),
        "randk block": RandK(density=0.01, contiguous=True),
        "qsgd dense 4": Qsgd(7, 512, sparse=False),
        "qsgd dense 8": Qsgd(127, 512, sparse=False),
        "qsgd shortest 4": Qsgd(7, 512),
        "qsgd sparse": Qsgd(1, None),
        "int8": UniformQuantizer(8),
        "int8 nearest": UniformQuantizer(8, stochastic=False),
        "int4": UniformQuantizer(4),
        "natural": Natural(),
        "terngrad": TernGrad(),
        "signsgd": Sign("none"),
        "sign l1": Sign("l1"),
        "sign l2": Sign("l2"),
        "codebook int8": Codebook(),
        "fp16": Cast("fp16"),
        "bf16": Cast("bf16"),
        "bf16 stochastic": Cast("bf16", stochastic=True),
        "fp8 e4m3": Cast("fp8_e4m3"),
        "e3m0": Cast("e3m0"),
        "powersgd 2": PowerSgd(2),
        "demo 32": Demo(),
        "count sketch": CountSketch(density=0.01, columns=20_000),
        "spsa byte": OneByteSpsa(),
        "topk > int8": Chain([TopK(density=0.01), UniformQuantizer(8)]),
        "induced": Induced(TopK(density=0.01), Natural()),
        "EF topk": ErrorFeedback(TopK(density=0.01)),
        "EF sign": ErrorFeedback(Sign("l1")),
        "EF21 topk": EF21(TopK(density=0.01)),
        "EF21-SGDM topk": EF21Sgdm(TopK(density=0.01)),
        "EControl topk": EControl(TopK(density=0.01)),
        "DIANA qsgd": Diana(Qsgd(127, 512, sparse=False)),
        "MARINA randk": Marina(RandK(density=0.1, scaled=True), p=0.01),
    }


def shapes_of(d: int) -> Shapes:
    """Returns a model of d entries: square matrices of 512 x 512 or less, and their biases."""
    side = min(512, math.isqrt(d) // 2)
    whole = d // (side * (side + 1))
    layers = [shape for _ in range(whole) for shape in ((side, side), (side,))]
    rest = d - whole * side * (side + 1)
    return Shapes((*layers, (rest,)) if rest else tuple(layers))


def least_ms(
    *runs: Callable[[], object], clock: Callable[[], float] = time.thread_time
) -> list[float]:
    """Returns the shortest of a few runs of each, in milliseconds; they take turns.

    Args:
        runs: what to measure, on one thread unless the clock is that of the wall.
        clock: in s; a thread's own time does not run while others have the core.
    """
    times: list[list[float]] = [[] for _ in runs]
    while len(times[0]) < LEAST_RUNS or sum(map(sum, times)) < LEAST_SECONDS:
        for run, of_run in zip(runs, times, strict=True):
            start = clock()
            run()
            of_run.append(clock() - start)
    return [1e3 * min(of_run) for of_run in times]


def measure(
    name: str, channel: Channel, x: Vector, before: Vector, shapes: Shapes
) -> dict[str, Any]:
    """Returns the row of one channel: its second message, after one of another vector."""
    target = np.empty_like(x)
    state, receiver = channel.init(shapes), channel.init_receiver(shapes)
    payload, state = channel.encode(before, shapes, state, np.random.default_rng(0))
    _, receiver = channel.receive(payload, shapes, receiver)
    payload, _ = channel.encode(x, shapes, state, np.random.default_rng(1))
    encode, decode, copy = least_ms(
        lambda: channel.encode(x, shapes, state, np.random.default_rng(1)),
        lambda: channel.receive(payload, shapes, receiver),
        lambda: np.copyto(target, x),
    )
    return {
        "table": "channels",
        "name": name,
        "d": x.size,
        "bytes": len(payload),
        "ratio": 4 * x.size / len(payload),
        "encode_ms": encode,
        "decode_ms": decode,
        "copy_ms": copy,
        "encode_copies": encode / copy,
        "decode_copies": decode / copy,
    }


def profile(x: Vector) -> list[dict[str, Any]]:
    """Returns what the steps of the common compressors cost, in copies of the vector."""
    d = x.size
    target, magnitude = np.empty_like(x), np.empty_like(x)
    factors = np.full(-(-d // 512), 1.0, dtype=np.float32)
    codes = stochastic_levels(x, factors, 512, 127, Words(0))
    k = d // 100
    support = largest(x, k)
    values = x[support]
    gaps = np.diff(support, prepend=-1)
    steps: dict[str, Callable[[], object]] = {
        "fresh copy, which maps its memory": lambda: x.copy(),
        "one pass of |x| into a buffer": lambda: np.abs(x, out=magnitude),
        "16 random bits an entry": lambda: Words(0).u16(d),
        "one random float32 an entry": lambda: np.random.default_rng(0).random(d, np.float32),
        "stochastic levels, random bits included": lambda: stochastic_levels(
            x, factors, 512, 127, Words(0)
        ),
        "levels to bytes": lambda: codes.tobytes(),
        "sum into 256 bins (codebook)": lambda: np.bincount(
            codes.view(np.uint8), weights=x, minlength=256
        ),
        "look-up in 256 numbers (codebook, fp8)": lambda: np.take(
            factors[:256], codes.view(np.uint8), mode="clip"
        ),
        "select the largest 1%": lambda: largest(x, k),
        "gather them": lambda: x[support],
        "code their gaps": lambda: integers.encode(gaps),
        "scatter them into zeros": lambda: _scatter(d, support, values),
    }
    rows = []
    for name, step in steps.items():
        ms, copy = least_ms(step, lambda: np.copyto(target, x))
        rows.append({"table": "steps", "name": name, "d": d, "ms": ms, "copies": ms / copy})
    return rows


def _scatter(d: int, support: Any, values: Vector) -> Vector:
    out = np.zeros(d, dtype=np.float32)
    out[support] = values
    return out


def radix(x: Vector, k: int) -> Any:
    """Selects the k largest through a histogram of the upper 16 bits of |x|; ties by index."""
    bits = x.view(np.uint32) & np.uint32(0x7FFFFFFF)
    upper = (bits >> np.uint32(15)).astype(np.uint16)
    reach = np.cumsum(np.bincount(upper, minlength=1 << 16)[::-1])[::-1]
    bound = int(np.searchsorted(-reach, -k, side="right")) - 1
    candidates = np.flatnonzero(upper >= bound)
    order = np.argpartition(bits[candidates], candidates.size - k)[candidates.size - k :]
    return np.sort(candidates[order])


def selection(x: Vector) -> list[dict[str, Any]]:
    """Returns the cost of ways to find the 1% largest entries, in copies of the vector."""
    k = x.size // 100
    tensor, target = torch.from_numpy(x), np.empty_like(x)

    def partition_floats() -> Any:
        magnitude = np.abs(x)
        return np.flatnonzero(magnitude >= np.partition(magnitude, x.size - k)[x.size - k])

    def partition_bits() -> Any:
        bits = x.view(np.uint32) & np.uint32(0x7FFFFFFF)
        return np.flatnonzero(bits >= np.partition(bits, x.size - k)[x.size - k])

    ways: dict[str, tuple[int, Callable[[], Any]]] = {
        "sample, then candidates (ours)": (1, lambda: largest(x, k)),
        "np.partition of |x|": (1, partition_floats),
        "np.partition of the bits": (1, partition_bits),
        "histogram of 16 upper bits": (1, lambda: radix(x, k)),
        "torch.topk, 1 thread": (1, lambda: np.sort(torch.topk(tensor.abs(), k)[1].numpy())),
        "torch.topk, 2 threads": (2, lambda: np.sort(torch.topk(tensor.abs(), k)[1].numpy())),
        "ours, torch on 2 threads": (2, lambda: largest(x, k)),
    }
    expected = largest(x, k)
    rows = []
    for name, (threads, way) in ways.items():
        torch.set_num_threads(threads)
        if not np.array_equal(way(), expected):
            raise RuntimeError(f"{name} selects other entries")
        ms, copy = least_ms(way, lambda: np.copyto(target, x), clock=time.perf_counter)
        rows.append({"table": "selection", "name": name, "d": x.size, "copies": ms / copy})
    torch.set_num_threads(1)
    return rows


def positions(d: int) -> list[dict[str, Any]]:
    """Returns bits per position of random supports, beside log2 binomial(d, k)."""
    rows = []
    for density in (0.1, 0.01, 0.001, 0.0001):
        k = max(round(density * d), 1)
        support = np.sort(np.random.default_rng(k).choice(d, k, replace=False))
        bound = (math.lgamma(d + 1) - math.lgamma(k + 1) - math.lgamma(d - k + 1)) / math.log(2)
        bits = 8 * len(indices.encode(support, d))
        lengths = integers.encoded_lengths(np.diff(support, prepend=-1))
        rows.append(
            {
                "table": "positions",
                "d": d,
                "density": density,
                "bound": bound / k,
                "bits": bits / k,
                "over": bits / bound,
                **{
                    code: 8 * lengths[number] / k
                    for number, code in enumerate(["fixed", "rice", "leb128", "gamma", "delta"])
                },
            }
        )
    return rows


def show(rows: Sequence[dict[str, Any]], sizes: Sequence[int]) -> None:
    """Prints the tables."""
    for d in sizes:
        of = [row for row in rows if row.get("d") == d]
        report.table(
            f"d = {d}: times a copy; * if a common one needs more than {TARGET:g}",
            ["compressor", "bytes", "smaller", "encode", "decode", ""],
            [
                [
                    row["name"],
                    row["bytes"],
                    f"{row['ratio']:.1f}",
                    f"{row['encode_copies']:.1f}",
                    f"{row['decode_copies']:.1f}",
                    "*"
                    if row["name"] in COMMON
                    and max(row["encode_copies"], row["decode_copies"]) > TARGET
                    else "",
                ]
                for row in of
                if row["table"] == "channels"
            ],
        )
        for kind in ("steps", "selection"):
            report.table(
                f"d = {d}: {kind}, in copies",
                ["", "copies"],
                [[r["name"], f"{r['copies']:.1f}"] for r in of if r["table"] == kind],
            )
        codes = ["fixed", "rice", "leb128", "gamma", "delta"]
        report.table(
            f"d = {d}: bits per position of a random support",
            ["density", "bound", "sent", "over", *codes],
            [
                [
                    f"{r['density']:g}",
                    f"{r['bound']:.2f}",
                    f"{r['bits']:.2f}",
                    f"{r['over']:.3f}",
                    *(f"{r[code]:.2f}" for code in codes),
                ]
                for r in of
                if r["table"] == "positions"
            ],
        )


def main() -> None:
    """Runs the benchmark and prints the tables."""
    parser: argparse.ArgumentParser = report.parser("compression", __doc__)
    parser.add_argument("--d", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--only", nargs="+", help="compressors whose names begin with one of these")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.d = [100_000]
    about = report.machine()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for d in arguments.d:
        x = np.random.default_rng(0).standard_normal(d, dtype=np.float32)
        before = np.random.default_rng(1).standard_normal(d, dtype=np.float32)
        for name, channel in channels().items():
            if arguments.only is None or name.startswith(tuple(arguments.only)):
                rows.append(measure(name, channel, x, before, shapes_of(d)))
        if arguments.only is None:
            rows += profile(x) + selection(x) + positions(d)
    show(rows, arguments.d)
    report.publish(arguments.out, rows, arguments, about)


if __name__ == "__main__":
    main()
