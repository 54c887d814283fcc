"""Bandwidth for a share of time spent computing: the published tables from a model of layers.

    python experiments/diloco/utilisation.py [OUT]

An inner step of a model of L layers is a graph of 4 L - 1 nodes: L forward, L - 1 backward by
activations, L backward by weights, L reductions. The first 3 L - 1 take turns on the processor and
are of equal length; the reductions take turns on the link and take bits / bandwidth. A layer's
reduction begins when its weights' gradient is there, and its next forward waits for it, `overlap`
steps later. Nothing else takes time: no latency, no network within a worker.

A fragment is three layers, l mod P, and is reduced every H steps. Utilisation is computing time
over all time, once the pattern repeats. The published numbers are all, as far as they were found,
rounded members of 50 numbers from 0.1 to 1000 with equal ratios, which is the grid here; a table's
entry is the one whose utilisation is nearest to the target, in units of 2^30 bits a second.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

GRID = np.logspace(-1, 3, 50)  # Gbit/s
GIGABIT = 2**30  # bits
TARGETS = (0.5, 0.8, 0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Profile:
    """A model: layers, parameters, seconds of a step without communication."""

    name: str
    layers: int
    parameters: float
    step_s: float


@dataclass(frozen=True)
class Method:
    """When which bits are reduced.

    Attributes:
        every: H.
        fragments: whether three layers at a time are.
        overlap: whole steps that lie between the end of a reduction and whoever waits for it.
        bits: of a parameter.
    """

    name: str
    every: int
    fragments: bool
    overlap: int
    bits: float


def utilisation(profile: Profile, method: Method, gbps: np.ndarray) -> np.ndarray:
    """Returns the utilisation at each bandwidth."""
    layers, node = profile.layers, profile.step_s / (3 * profile.layers - 1)
    sending = profile.parameters / layers * method.bits / (gbps * GIGABIT)  # s per layer
    count = max(1, layers // 3) if method.fragments else 1
    due = {}  # step within H -> layers that are reduced after it
    for layer in range(layers):
        p = layer % count
        due.setdefault((p * method.every // count) % method.every, []).append(layer)

    now, link = np.zeros_like(gbps), np.zeros_like(gbps)
    free = {}  # (layer, step) -> when its reduction has ended; read `overlap` + 1 steps later
    marks = []
    for step in range(4 * method.every + method.overlap):
        if step % method.every == 0:
            marks.append(now)
        reduced = due.get(step % method.every, [])
        for layer in range(layers):
            now = np.maximum(now, free.pop((layer, step - 1 - method.overlap), 0.0)) + node
        for layer in reversed(range(layers)):
            now = now + node  # by weights
            if layer in reduced:
                link = np.maximum(link, now) + sending
                free[layer, step] = link
            if layer:
                now = now + node  # by activations
    return method.every * profile.step_s / (marks[3] - marks[2])


def table(profile: Profile, method: Method) -> list[float]:
    """Returns the bandwidths of the grid whose utilisations are nearest to the targets."""
    reached = utilisation(profile, method, GRID)
    return [float(GRID[np.abs(reached - target).argmin()]) for target in TARGETS]


def steps_apart(ours: float, published: float) -> int:
    """Returns by how many steps of the grid two numbers differ."""
    place = [int(np.abs(np.log(GRID / value)).argmin()) for value in (ours, published)]
    return place[0] - place[1]


# Layers: 24 are published for 1B; those of 100B are an assumption.
SIZES = {"1B": Profile("1B", 24, 1e9, 0.1), "100B": Profile("100B", 108, 100e9, 4.9)}
METHODS = {
    "data-parallel": Method("data-parallel", 1, False, 0, 16),
    "DiLoCo": Method("DiLoCo", 100, False, 0, 16),
    "Streaming": Method("Streaming", 100, True, 0, 16),
    "+ overlap of 1 step": Method("+ overlap of 1 step", 100, True, 1, 16),
    "+ 4 bits": Method("+ 4 bits", 100, True, 1, 4),
}
PUBLISHED = {
    ("1B", "data-parallel"): (86.8, 152.6, 184.2, 222.3, 569.0),
    ("1B", "DiLoCo"): (1.4, 6.2, 13.3, 23.3, 86.8),
    ("1B", "Streaming"): (1.4, 5.2, 9.1, 16.0, 28.1),
    ("1B", "+ overlap of 1 step"): (1.4, 4.3, 6.2, 9.1, 11.0),
    ("1B", "+ 4 bits"): (0.4, 0.9, 1.7, 2.0, 3.0),
    ("100B", "data-parallel"): (184.2, 323.8, 390.7, 390.7, 471.5),
    ("100B", "DiLoCo"): (3.0, 11.0, 23.3, 49.4, 184.2),
    ("100B", "Streaming"): (2.4, 6.2, 9.1, 11.0, 19.3),
    ("100B", "+ overlap of 1 step"): (1.7, 3.6, 4.3, 5.2, 5.2),
    ("100B", "+ 4 bits"): (0.5, 0.9, 1.1, 1.1, 1.4),
}
EAGER = {  # Gbit/s for 99%, H = 100, 4 bits: a whole phase of overlap
    "1B": (Profile("1B", 24, 1e9, 0.1), 0.2),
    "10B": (Profile("10B", 48, 10e9, 0.8), 0.3),  # layers and step: from memory
    "100B": (SIZES["100B"], 0.4),
}


def eager_gbps(profile: Profile, every: int, bits: float, target: float) -> float:
    """Returns the bandwidth at which all bits of a phase reach the target within it."""
    return profile.parameters * bits * target / (every * profile.step_s) / GIGABIT


def compare() -> tuple[list[str], list[int]]:
    """Returns lines of a table, and the distances of its entries in steps of the grid."""
    lines = [
        "| model, method | 50% | 80% | 90% | 95% | 99% |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    apart: list[int] = []
    for (size, name), published in PUBLISHED.items():
        ours = table(SIZES[size], METHODS[name])
        apart += [steps_apart(a, b) for a, b in zip(ours, published, strict=True)]
        cells = [f"{a:.1f} ({b:g})" for a, b in zip(ours, published, strict=True)]
        lines.append(f"| {size}, {name} | {' | '.join(cells)} |")
    return lines, apart


def main(out: Path) -> None:
    """Prints the tables and draws the curves."""
    out.mkdir(parents=True, exist_ok=True)
    lines, apart = compare()
    within, exact = sum(abs(step) <= 1 for step in apart), sum(step == 0 for step in apart)
    print("\nGbit/s: ours (published)\n")
    print("\n".join(lines))
    print(f"\n{exact} of {len(apart)} equal, {within} within a step of the grid;", end=" ")
    print(f"from {min(apart)} to {max(apart)} steps")
    print("\nA whole phase of overlap, 4 bits, H = 100, 99%, Gbit/s:\n")
    for size, (profile, published) in EAGER.items():
        ours = eager_gbps(profile, 100, 4, 0.99)
        print(f"{size}: {ours:.2f} ({published})")

    figure, axes = plt.subplots(1, 2, figsize=(10, 3.6), sharey=True, layout="constrained")
    for axis, (size, profile) in zip(axes, SIZES.items(), strict=True):
        for i, (name, method) in enumerate(METHODS.items()):
            axis.semilogx(GRID, 100 * utilisation(profile, method, GRID), f"C{i}", label=name)
            axis.plot(PUBLISHED[size, name], [100 * t for t in TARGETS], f"C{i}o", ms=4)
        axis.set(xlabel="Gbit/s", title=f"{size}, {profile.step_s:g} s a step")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("computing, %")
    axes[0].legend(fontsize="small", title="dots: published")
    figure.savefig(out / "utilisation.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
