"""All runs of this page, one after the other in one process.

    FL_DATA_DIR=... python experiments/outer_steps/run.py [METHOD ...]

Runs that are kept with the page are not made again: without results.parquet all are. What all begin
with is in outputs/outer_steps.

A method has seven points: five of its own knob at an inner rate of 0.001, and two other inner rates
at the best of them, or four and three; Local SGD has seven inner rates. They are of two workers and
of examples that nobody trains on, and the best is that of four workers too.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1]))

from tuned import KeptRuns, Trial, at_edge, ranked

import fl

PAGE, OUT = Path(__file__).resolve().parent, Path("outputs/outer_steps")
INNER_STEPS, PHASES = 5, 100
MODEL = ("data.window=32", "model.width=24", "model.layers=1", "compressor=none")
QUIET = ("executor=serial", "progress=false", "views=false", "checkpoint=off")
FLEET = (
    "fleet.network=co2-rdma",
    "fleet.access_bps=1e15",
    "fleet.gpu_flops=76863918",
)  # 0.1 s a step
HELD_OUT, TUNING, SEEDS = "validation=0.05", 100, (0, 1, 2)
RATE, INNER = "strategy.rule.optimizer.lr", "client.rule.lr"


class Method(NamedTuple):
    """How a method is run, and the values of its own knob that are tried.

    Attributes:
        inner: inner rates at the best of them, beside 0.001.
        updates: whether rounds are outer gradients, and not phases.
    """

    overrides: tuple[str, ...]
    knob: str
    tried: tuple[float, ...]
    inner: tuple[float, ...] = (0.0003, 0.003)
    updates: bool = False


METHODS = {
    "local_sgd": Method(
        ("strategy=local_sgd",), INNER, (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
    ),
    "diloco": Method(("strategy=diloco",), RATE, (0.025, 0.05, 0.1, 0.2, 0.4)),
    "eager": Method(("strategy=eager_updates",), RATE, (0.025, 0.05, 0.1, 0.2, 0.4)),
    "delayed": Method(("strategy=delayed_updates",), RATE, (0.0125, 0.025, 0.05, 0.1, 0.2)),
    "streaming_e3m0": Method(
        ("strategy=streaming_diloco", "strategy.rule.fragments=1", "compressor=e3m0"),
        RATE,
        (0.025, 0.05, 0.1, 0.2),
        inner=(0.0003, 0.003, 0.01),
    ),
    "slowmo": Method(("strategy=slowmo",), "strategy.rule.beta", (0.0, 0.1, 0.2, 0.5, 0.8)),
    "async_diloco": Method(
        ("strategy=async_diloco", "fleet.jitter=0.5"),
        "strategy.rule.lr",
        (0.025, 0.05, 0.1, 0.2, 0.4),
        updates=True,
    ),
    "co2": Method(("strategy=co2",), "strategy.rule.alpha", (0.0625, 0.125, 0.25, 0.5, 1.0)),
    "sparse_loco": Method(
        ("strategy=sparse_loco", "compressor=sparse_loco"),
        "strategy.rule.alpha",
        (0.25, 0.5, 1.0, 2.0, 4.0),
    ),
}


def pre_trained() -> Path:
    """Returns the model that all begin with: 500 steps, without the examples that choose rates."""
    path = OUT / "pre-trained.safetensors"
    if not path.exists():
        run = fl.run(
            "+experiment=diloco",
            *MODEL,
            *QUIET,
            "strategy=data_parallel",
            "num_clients=1",
            "client.batch_size=32",
            "num_rounds=500",
            "evaluate_every=500",
            f"{RATE}=0.01",
            HELD_OUT,
            f"seed={TUNING}",
            "target=null",
            directory=OUT / "pre-trained",
        )
        assert run.directory is not None
        (run.directory / "model.safetensors").rename(path)
    return path


def run_method(kept: KeptRuns, name: str) -> None:
    """Tunes a method, and runs its best point."""
    method = METHODS[name]

    def trial(part: str, seed: int, workers: int, *point: str) -> Trial:
        each = workers if method.updates else 1  # outer gradients of a phase, each of them a step
        every = each * (20 if part == "tune" else 10)
        return kept.run(
            *(name, part, "+experiment=diloco", *MODEL, *method.overrides, "client.batch_size=4"),
            *(f"num_clients={workers}", f"strategy.rule.inner_steps={INNER_STEPS}"),
            *(f"num_rounds={PHASES * each}", f"evaluate_every={every}"),
            *((HELD_OUT,) if part == "tune" else ()),
            *(f"initial_model={pre_trained()}", "target.value=2.05", f"seed={seed}", *point),
        )

    inner = () if method.knob == INNER else (f"{INNER}=0.001",)
    tuned = [trial("tune", TUNING, 2, f"{method.knob}={value}", *inner) for value in method.tried]
    if inner:
        own = ranked(tuned, "num_clients", "2")[0][1][0].given[method.knob]
        for rate in method.inner:
            tuned.append(trial("tune", TUNING, 2, f"{method.knob}={own}", f"{INNER}={rate}"))
    order = ranked(tuned, "num_clients", "2")
    best = order[0][1][0].given
    if edge := at_edge(order[0][0], [point for point, _ in order]):
        print(f"{name}: at the edge of the grid: {', '.join(edge)}", file=sys.stderr)
    point = [f"{key}={best[key]}" for key in dict.fromkeys((method.knob, INNER))]
    for workers in (2, 4):
        for seed in SEEDS:
            trial("final", seed, workers, *point)


def main(*names: str) -> None:
    """Runs methods, all if none is named."""
    OUT.mkdir(parents=True, exist_ok=True)
    kept = KeptRuns(PAGE, (*FLEET, *QUIET))
    for name in names or METHODS:
        run_method(kept, name)
    if not names:
        kept.prune()


if __name__ == "__main__":
    main(*sys.argv[1:])
