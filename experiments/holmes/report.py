"""Holmes' placement on clusters whose network cards do not know each other.

    python experiments/holmes/report.py

A GPT of 7.5 billion parameters on 8 machines of 8 A100s: tensor parallelism within a machine,
stages and pipelines between them. Times are those of `fl.stages.NicAware`; nothing is fitted, and
the share of a GPU's peak is assumed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fl.stages import Machines, NicAware, TransformerStage

GPUS, PEAK, SHARE = 8, 312e12, 0.5
WIDTH, LAYERS, SEQUENCE = 4096, 36, 2048
IB, ROCE, ETHERNET = 200e9, 200e9, 25e9
BATCH = 1536  # sequences of a step, 4 in a micro-batch
STAGES, PIPELINES = 2, 4
LAYER = TransformerStage(WIDTH, SEQUENCE, micro_batch=4, boundary_bits=16, gradient_bits=32)

RULE = NicAware(
    stages=STAGES,
    pipelines=PIPELINES,
    num_layers=LAYERS,
    micro_batches=BATCH // 4 // PIPELINES,
    layer_flops=LAYER.work.forward_flops + LAYER.work.backward_flops,
    boundary_bytes=2 * LAYER.work.boundary_bytes,
    gradient_bytes=LAYER.work.gradient_bytes,
)


def clusters(*cards: tuple[int, float, float]) -> Machines:
    """Returns clusters, by machines, bit/s of their cards, and share of the peak."""
    nics = [(n, bps, GPUS * PEAK * share) for n, bps, share in cards]
    return Machines.of(nics, between_bps=ETHERNET)


def crossed(machines: Machines) -> float:
    """Returns the time of the placement that takes machines as they come from each in turn."""
    n = len(machines)
    turn = np.argsort(np.arange(n) % (n // 2), kind="stable")
    return RULE.scored(machines, turn.reshape(STAGES, PIPELINES)).seconds


def main() -> None:
    """Prints the tables of README.md."""
    flops = RULE.layer_flops * LAYERS * BATCH // 4

    def row(name: str, seconds: float) -> str:
        return f"| {name} | {seconds:.1f} | {flops / seconds / GPUS / 8 / 1e12:.0f} |"

    print("| 8 machines of 8 GPUs | s a step | TFLOP/s of a GPU |\n|---|---:|---:|")
    half = SHARE
    for name, machines in (
        ("InfiniBand everywhere", clusters((8, IB, half))),
        ("Ethernet everywhere", clusters((8, ETHERNET, half))),
        ("4 InfiniBand, 4 RoCE: by cards", clusters((4, IB, half), (4, ROCE, half))),
    ):
        print(row(name, RULE.place(machines).seconds))
    hybrid = clusters((4, IB, half), (4, ROCE, half))
    print(row("4 InfiniBand, 4 RoCE: in turn, whatever cards", crossed(hybrid)))
    slow = clusters((4, IB, half), (4, ROCE, half / 2))
    print(row("4 of half the speed: layers by speed", RULE.place(slow).seconds))
    print(row("4 of half the speed: as many layers", replace(RULE, even=True).place(slow).seconds))


if __name__ == "__main__":
    main()
