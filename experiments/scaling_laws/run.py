"""Losses by model size and H at equal tokens, their exponents, and which H is fastest on a link.

    FL_DATA_DIR=... python experiments/scaling_laws/run.py        makes the runs that are not there
    python experiments/scaling_laws/run.py tables                 makes the tables of what is kept

Runs are kept with the page as soon as they are made; without results.parquet all are made. H = 1 is
data-parallel training, whose workers average gradients; others average models every H steps.

A rate is chosen for every size and H, on examples that nobody trains on: three neighbours on a
ladder of factors of about 3.3, from the best of a size near it, until the middle one is the best.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import combinations, pairwise
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).parents[1]))

from results import kept
from tuned import KeptRuns, Trial, by_run, interval, of_kept, spread

from fl.models import CharGPT, flops_per_example
from fl.reports.page import replace_tables

PAGE = Path(__file__).resolve().parent
Reals = NDArray[np.float64]

WIDTHS, EVERY = (8, 12, 20, 36, 64), (1, 5, 25)
STEPS, WORKERS, WINDOWS, WINDOW, LETTERS = 250, 2, 8, 32, 65
RATES = ("0.0003", "0.001", "0.003", "0.01", "0.03", "0.1", "0.3")
FIRST = 3  # of the ladder, where the first size begins
ORDER = (20, 8, 64, 12, 36)  # in which sizes are run: each begins at the rate of the nearest before
TUNING, SEEDS = 100, (0, 1, 2)
TIMED, PHASES = 20, 10
GBPS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
STEP_S, GBIT = 0.1, 2 * (WORKERS - 1) / WORKERS * 32  # an all-reduce of 1e9 numbers in float32
DRAWS = 10_000
QUIET = ("executor=serial", "progress=false", "views=false", "checkpoint=off")


# ---- runs ----------------------------------------------------------------------------------------


def model_of(width: int) -> CharGPT:
    """Returns a model."""
    return CharGPT((WINDOW,), LETTERS, width, 1)


@cache
def parameters(width: int) -> tuple[int, int]:
    """Returns the parameters of a model: all, and those that are not embeddings."""
    model = model_of(width)
    embedded = model.tokens.weight.numel() + model.positions.weight.numel()
    size = sum(p.numel() for p in model.parameters())
    return size, size - embedded


def overrides(width: int, h: int) -> tuple[str, ...]:
    """Returns what the runs of a size and an H have in common: a step takes 0.1 s."""
    if h == 1:
        of = ("strategy=data_parallel", "client.rule.clip_norm=1.0")
    else:
        of = ("strategy=local_sgd", f"strategy.rule.inner_steps={h}")
    flops = WINDOWS * flops_per_example(model_of(width), (WINDOW,), torch.int64).training
    return (
        *("+experiment=diloco", *of, f"num_clients={WORKERS}", f"num_rounds={STEPS // h}"),
        *(f"data.window={WINDOW}", f"model.width={width}", "model.layers=1"),
        *("compressor=none", f"client.batch_size={WINDOWS}", "fleet.network=co2-rdma"),
        f"fleet.gpu_flops={round(flops / STEP_S)}",
    )


def rate_key(h: int) -> str:
    """Returns the key of the rate that is chosen."""
    return "strategy.rule.optimizer.lr" if h == 1 else "client.rule.lr"


def trained(kept_runs: KeptRuns, part: str, width: int, h: int, rate: str, seed: int) -> Trial:
    """Returns a run: on links that take no time, evaluated every 50 steps."""
    every = STEPS // h if part == "tune" else 50 // h
    return kept_runs.run(
        *(f"h{h}", part, *overrides(width, h), f"evaluate_every={every}"),
        *(("validation=0.05",) if part == "tune" else ()),
        *("fleet.access_bps=1e15", f"seed={seed}", f"{rate_key(h)}={rate}"),
    )


def loss(run: Trial) -> float:
    """Returns the loss after the last step; infinity if the run diverged."""
    diverged = run.summary["status"] == "diverged"
    return math.inf if diverged else float(run.history[-1]["loss"])


def best_rate(kept_runs: KeptRuns, width: int, h: int, start: int) -> int:
    """Returns the place on the ladder of a rate that is better than both of its neighbours."""
    losses: dict[int, float] = {}
    while True:
        for place in range(max(start - 1, 0), min(start + 2, len(RATES))):
            if place not in losses:
                losses[place] = loss(trained(kept_runs, "tune", width, h, RATES[place], TUNING))
        best = min(losses, key=lambda place: losses[place])
        if best == start:
            return best
        start = best


def timed(kept_runs: KeptRuns, h: int, gbps: float) -> Trial:
    """Returns ten phases of a model of 1e9 parameters, with links of this bandwidth: time alone."""
    bps = gbps * parameters(TIMED)[0]
    given = (*overrides(TIMED, h), f"num_rounds={PHASES}", "client.train=false")
    return kept_runs.run(f"h{h}", "timed", *given, f"fleet.access_bps={bps}", "seed=0")


def measure() -> None:
    """Makes all runs that are not there."""
    kept_runs = KeptRuns(PAGE, QUIET)
    best: dict[tuple[int, int], int] = {}
    for k, width in enumerate(ORDER):
        near = min(ORDER[:k], key=lambda before: abs(math.log(before / width)), default=width)
        for h in EVERY:
            best[width, h] = best_rate(kept_runs, width, h, best.get((near, h), FIRST))
            for seed in SEEDS:
                trained(kept_runs, "final", width, h, RATES[best[width, h]], seed)
    for h in EVERY:
        for gbps in GBPS:
            timed(kept_runs, h, gbps)
    kept_runs.prune()


# ---- laws ----------------------------------------------------------------------------------------


class Law(NamedTuple):
    """L = (N_c / N)^a."""

    exponent: float
    n_c: float

    def at(self, n: float) -> float:
        """Returns the loss of a model of so many parameters."""
        return float((self.n_c / n) ** self.exponent)


def fitted(sizes: Reals, losses: Reals) -> Law:
    """Returns the law that is nearest to the logarithms of losses, by least squares.

    Args:
        sizes: N, shape (K,).
        losses: L, shape (K,).
    """
    slope, constant = np.polyfit(np.log(sizes), np.log(losses), 1)
    return Law(-float(slope), math.exp(constant / -slope))


def exponents(sizes: Reals, losses: Reals) -> Reals:
    """Returns the exponents of many tables of losses, shape (...), from shape (..., K)."""
    x = np.log(sizes) - np.log(sizes).mean()
    slopes: Reals = np.log(losses) @ x / (x @ x)
    return -slopes


def drawn_again(losses: Reals, draws: int, seed: int) -> Reals:
    """Returns means over seeds that are drawn again, the same ones for all methods.

    n - 1 seeds are drawn of n, with replacement and for each size by itself, by which the variance
    of the means has no bias, where n would make it (n - 1) / n of what it is: a third too small
    here (McCarthy and Snowden, "The bootstrap and finite population sampling", 1985).

    Args:
        losses: of each method, size and seed, shape (J, K, n).
        draws: how often, D.
        seed: of the generator.

    Returns:
        Shape (D, J, K).
    """
    _, k, n = losses.shape
    places = np.random.default_rng(seed).integers(n, size=(draws, k, n - 1))
    found = losses[:, np.arange(k)[:, None], places]  # (J, D, K, n - 1)
    means: Reals = np.moveaxis(found.mean(axis=-1), 0, 1)
    return means


def ends(values: Reals) -> str:
    """Returns the middle 95 % of values."""
    low, high = np.quantile(values, (0.025, 0.975))
    return f"{low:.4f} to {high:.4f}"


# ---- time to a loss ------------------------------------------------------------------------------


def crossing(x: Sequence[float], losses: Sequence[float], target: float) -> float:
    """Returns where a curve comes to a loss first, by a line between two evaluations.

    Infinity if it does not.
    """
    for (x0, y0), (x1, y1) in pairwise(zip(x, losses, strict=True)):
        if y0 > target >= y1:
            return x0 + (x1 - x0) * (y0 - target) / (y0 - y1)
    return math.inf


def share_of_step(gbps: float) -> float:
    """Returns the time of an all-reduce in steps, at a bandwidth in Gbit/s."""
    return GBIT / gbps / STEP_S


def level_gbps(few: tuple[float, int], more: tuple[float, int]) -> float:
    """Returns the bandwidth at which two values of H come to a loss in the same time.

    With n steps to it, of t = 0.1 s, and an all-reduce of 2 (M - 1) / M 32e9 bits every H steps

        n_1 (t + b / (H_1 W)) = n_2 (t + b / (H_2 W))

    for H_1 < H_2. Infinity if the larger H needs no more steps: then it is never the slower one.

    Args:
        few: n and H of the smaller H.
        more: n and H of the larger one.
    """
    saved = GBIT * (few[0] / few[1] - more[0] / more[1])
    lost = STEP_S * (more[0] - few[0])
    return saved / lost if lost > 0 else math.inf


# ---- tables --------------------------------------------------------------------------------------


class Measured:
    """The runs of the page.

    Attributes:
        widths: the sizes whose runs are all there.
        tuned: loss by H, width and rate, on the examples that choose.
        final: runs by H, width and seed.
        losses: of the final ones, shape (H, sizes, seeds).
        seconds: a step, with its share of the all-reduces, by H and Gbit/s.
    """

    def __init__(self, records: Sequence[dict[str, Any]]) -> None:
        self.tuned: dict[tuple[int, int, str], float] = {}
        self.final: dict[tuple[int, int, int], Trial] = {}
        self.seconds: dict[tuple[int, float], float] = {}
        for run in map(of_kept, by_run(records)):
            h, width = int(run.method.removeprefix("h")), int(run.given["model.width"])
            if run.part == "tune":
                self.tuned[h, width, run.given[rate_key(h)]] = loss(run)
            elif run.part == "final":
                self.final[h, width, run.summary["seed"]] = run
            else:
                gbps = float(run.given["fleet.access_bps"]) / parameters(TIMED)[0]
                self.seconds[h, round(gbps, 6)] = run.history[-1]["time_s"] / (PHASES * h)
        self.widths = [w for w in WIDTHS if (EVERY[-1], w, SEEDS[-1]) in self.final]
        self.losses = np.array(
            [[[loss(self.final[h, w, s]) for s in SEEDS] for w in self.widths] for h in EVERY]
        )

    @property
    def sizes(self) -> Reals:
        """Parameters that are not of embeddings, float64, shape (sizes,)."""
        return np.array([parameters(width)[1] for width in self.widths], dtype=float)

    def steps_to(self, h: int, target: float) -> float:
        """Returns the steps to a loss of the timed model, by the mean curve over seeds."""
        rounds, losses = self.curve(h)
        return crossing([h * each for each in rounds], losses, target)

    def seconds_to(self, h: int, gbps: float, target: float) -> float:
        """Returns the seconds to it."""
        return self.steps_to(h, target) * self.seconds[h, gbps]

    def curve(self, h: int) -> tuple[list[int], list[float]]:
        """Returns the rounds of the timed model's evaluations, and their mean losses over seeds."""
        runs = [self.final[h, TIMED, seed].history for seed in SEEDS]
        return [row["round"] for row in runs[0]], [
            fmean(row["loss"] for row in rows) for rows in zip(*runs, strict=True)
        ]

    def target(self) -> float:
        """Returns the least loss, of two decimals, that every H comes to."""
        return math.ceil(100 * max(min(self.curve(h)[1]) for h in EVERY)) / 100


def name_of(h: int) -> str:
    """Returns what tables call an H."""
    return "data-parallel" if h == 1 else f"H = {h}"


def of_sizes(measured: Measured) -> Iterator[str]:
    """Yields the table of losses by size and H."""
    heads = " | ".join(name_of(h) for h in EVERY)
    yield f"| parameters | not of embeddings | {heads} |"
    yield "|---:|---:|" + "---:|" * len(EVERY)
    for k, width in enumerate(measured.widths):
        size, inner = parameters(width)
        cells = [spread(list(each[k]), "loss") for each in measured.losses]
        yield f"| {size:,} | {inner:,} | {' | '.join(cells)} |"


def of_gaps(measured: Measured) -> Iterator[str]:
    """Yields the table of what is lost against data-parallel training, in % of its loss."""
    yield f"| not of embeddings | {' | '.join(name_of(h) for h in EVERY[1:])} |"
    yield "|---:|" + "---:|" * (len(EVERY) - 1)
    base = measured.losses[0]
    for k, width in enumerate(measured.widths):
        cells = [
            interval(list(100 * (each[k] / base[k] - 1)), "loss") for each in measured.losses[1:]
        ]
        yield f"| {parameters(width)[1]:,} | {' | '.join(cells)} |"


def of_laws(measured: Measured) -> Iterator[str]:
    """Yields the table of exponents."""
    sizes = measured.sizes
    again = exponents(sizes, drawn_again(measured.losses, DRAWS, seed=0))  # (D, H)
    yield (
        "| | exponent a | 95 % | less data-parallel's | 95 % | without one size | N_c | furthest"
        " from the law | the largest, by the others' law |"
    )
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    of_base = 0.0
    for j, h in enumerate(EVERY):
        means = measured.losses[j].mean(axis=-1)
        law = fitted(sizes, means)
        apart = [100 * abs(law.at(n) / each - 1) for n, each in zip(sizes, means, strict=True)]
        others = [fitted(np.delete(sizes, k), np.delete(means, k)) for k in range(len(sizes))]
        without = [each.exponent for each in others]
        told = 100 * (others[-1].at(sizes[-1]) / means[-1] - 1)
        of_base = of_base or law.exponent
        less = ["", ""]
        if j:
            less = [f"{law.exponent - of_base:.4f}", ends(again[:, j] - again[:, 0])]
        cells = [
            *(name_of(h), f"{law.exponent:.4f}", ends(again[:, j]), *less),
            *(f"{min(without):.4f} to {max(without):.4f}", f"{law.n_c:.2g}"),
            *(f"{max(apart):.1f} %", f"{told:+.1f} %"),
        ]
        yield f"| {' | '.join(cells)} |"


def of_links(measured: Measured) -> Iterator[str]:
    """Yields the table of seconds to a loss, the least in bold."""
    target = measured.target()
    heads = " | ".join(name_of(h) for h in EVERY)
    yield f"| Gbit/s | {heads} | an all-reduce, of a step |"
    yield "|---:|" + "---:|" * (len(EVERY) + 1)
    for gbps in GBPS:
        seconds = [measured.seconds_to(h, gbps, target) for h in EVERY]
        cells = [f"**{s:.1f}**" if s == min(seconds) else f"{s:.1f}" for s in seconds]
        yield f"| {gbps:g} | {' | '.join(cells)} | {share_of_step(gbps):.3g} |"
    cells = [f"{measured.steps_to(h, target):.0f}" for h in EVERY]
    yield f"| steps | {' | '.join(cells)} | |"


def of_levels(measured: Measured) -> Iterator[str]:
    """Yields the table of bandwidths at which two values of H are equally fast."""
    yield "| equally fast | at Gbit/s | where an all-reduce takes, of a step |"
    yield "|---|---:|---:|"
    target = measured.target()
    for few, more in combinations(EVERY, 2):
        n = [(measured.steps_to(h, target), h) for h in (few, more)]
        level = level_gbps(*n)
        yield f"| {name_of(few)}, {name_of(more)} | {level:,.0f} | {share_of_step(level):.2f} |"


def of_tuning(measured: Measured) -> Iterator[str]:
    """Yields the table of rates, the best in bold."""
    yield "| not of embeddings | H | rates, and losses on examples that nobody trains on |"
    yield "|---:|---:|---|"
    for width in measured.widths:
        for h in EVERY:
            tried = {
                r: measured.tuned[h, width, r] for r in RATES if (h, width, r) in measured.tuned
            }
            best = min(tried, key=lambda rate: tried[rate])
            shown = [
                f"**{rate}: {value:.3f}**" if rate == best else f"{rate}: {value:.3f}"
                for rate, value in tried.items()
            ]
            yield f"| {parameters(width)[1]:,} | {h} | {', '.join(shown)} |"


def tables(records: Sequence[dict[str, Any]]) -> str:
    """Returns the page's tables."""
    measured = Measured(records)
    parts = {
        "Losses": [of_sizes(measured)],
        "More than data-parallel training, %": [of_gaps(measured)],
        "Laws": [of_laws(measured), "![losses by size](sizes.png)"],
        f"Seconds to a loss of {measured.target():.2f}": [
            *(of_links(measured), of_levels(measured), "![seconds by bandwidth](bandwidth.png)")
        ],
        "Tuning": [of_tuning(measured)],
    }
    return "\n\n".join(
        f"### {title}\n\n"
        + "\n\n".join(each if isinstance(each, str) else "\n".join(each) for each in found)
        for title, found in parts.items()
    )


def draw(measured: Measured) -> None:
    """Draws losses by size, and seconds by bandwidth."""
    from fl.reports.plots import PALETTE, drawing

    sizes = measured.sizes
    with drawing(5, 3.6, PAGE / "sizes.png") as figure:
        axes = figure.subplots()
        for j, h in enumerate(EVERY):
            means = measured.losses[j].mean(axis=-1)
            law = fitted(sizes, means)
            axes.plot(
                sizes, means, "o", color=PALETTE[j], label=f"{name_of(h)}: {law.exponent:.3f}"
            )
            axes.plot(sizes, [law.at(n) for n in sizes], color=PALETTE[j], lw=1)
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="parameters that are not of embeddings",
            ylabel="loss",
        )
        axes.yaxis.set_minor_formatter("{x:.2f}")
        axes.legend(title="and its exponent")
    target = measured.target()
    with drawing(5, 3.6, PAGE / "bandwidth.png") as figure:
        axes = figure.subplots()
        for j, h in enumerate(EVERY):
            seconds = [measured.seconds_to(h, gbps, target) for gbps in GBPS]
            axes.plot(GBPS, seconds, "o-", color=PALETTE[j], label=name_of(h))
        axes.set(xscale="log", yscale="log", xlabel="Gbit/s", ylabel=f"s to a loss of {target:.2f}")
        axes.legend()


if __name__ == "__main__":
    if sys.argv[1:] != ["tables"]:
        measure()
    draw(Measured(kept(PAGE)))
    replace_tables(PAGE / "README.md", tables(kept(PAGE)))
