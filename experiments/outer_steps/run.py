"""All runs of this page, one after the other in one process, and its tables.

    FL_DATA_DIR=... python experiments/outer_steps/run.py [OUT [METHOD ...]]

The runs of a method are kept in OUT/METHOD (outputs/outer_steps by default); a run that is there is
not made again, and those of all methods that are there go with the page. A method has five points:
three of its own knob at an inner rate of 0.001, and two other inner rates at the best of them. They
are of two workers and of examples that nobody trains on, and the best is that of four workers too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).parents[1]))

import results
from tuned import Trial, at_edge, of_part, ranked, read_trials, records

import fl

PAGE = Path(__file__).parent
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
    """How a method is run, and the values of its own knob that are tried."""

    overrides: tuple[str, ...]
    knob: str
    tried: tuple[float, ...]
    updates: bool = False


METHODS = {
    "local_sgd": Method(("strategy=local_sgd",), INNER, (0.0003, 0.001, 0.003, 0.01, 0.03)),
    "diloco": Method(("strategy=diloco",), RATE, (0.05, 0.1, 0.2)),
    "eager": Method(("strategy=eager_updates",), RATE, (0.05, 0.1, 0.2)),
    "delayed": Method(("strategy=delayed_updates",), RATE, (0.05, 0.1, 0.2)),
    "streaming_e3m0": Method(
        ("strategy=streaming_diloco", "strategy.rule.fragments=1", "compressor=e3m0"),
        RATE,
        (0.05, 0.1, 0.2),
    ),
    "slowmo": Method(("strategy=slowmo",), "strategy.rule.beta", (0.2, 0.5, 0.8)),
    "async_diloco": Method(
        ("strategy=async_diloco", "fleet.jitter=0.5"), "strategy.rule.lr", (0.05, 0.1, 0.2), True
    ),
    "co2": Method(("strategy=co2",), "strategy.rule.alpha", (0.3, 0.6, 1.0)),
}


def pre_trained(out: Path) -> Path:
    """Returns the model that all begin with: 500 steps, without the examples that choose rates."""
    path = out / "pre-trained.safetensors"
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
            directory=out / "pre-trained",
        )
        assert run.directory is not None
        (run.directory / "model.safetensors").rename(path)
    return path


def trial(out: Path, name: str, part: str, seed: int, workers: int, *point: str) -> Trial:
    """Returns a run."""
    method = METHODS[name]
    each = workers if method.updates else 1  # outer gradients of a phase, each of which is a step
    given = (
        *("+experiment=diloco", *MODEL, *method.overrides, "client.batch_size=4"),
        *(f"num_clients={workers}", f"strategy.rule.inner_steps={INNER_STEPS}"),
        *(f"num_rounds={PHASES * each}", f"evaluate_every={(20 if part == 'tune' else 10) * each}"),
        *((HELD_OUT,) if part == "tune" else ()),
        *(f"initial_model={pre_trained(out)}", "target.value=2.05", f"seed={seed}", *point),
    )
    run = fl.run(*given, *FLEET, *QUIET)
    overrides = dict(each.removeprefix("+").partition("=")[::2] for each in given)
    return Trial(run.directory, run.summary, run.history, name, part, overrides)


class Kept:
    """The runs of a method that are there, in a folder of their own.

    Args:
        out: of all methods.
        name: of this one.
    """

    def __init__(self, out: Path, name: str) -> None:
        self.out, self.name, self.folder = out, name, out / name
        self.folder.mkdir(parents=True, exist_ok=True)
        there = (self.folder / results.FILE).exists()
        self.trials = read_trials(self.folder) if there else []
        self.records: list[dict[str, Any]] = results.kept(self.folder) if there else []

    def run(self, part: str, seed: int, workers: int, *point: str) -> None:
        """Runs this, if it is not there."""
        wanted = {f"num_clients={workers}", *point}
        for one in self.trials:
            said = {f"{k}={v}" for k, v in one.given.items()}
            if one.part == part and one.summary["seed"] == seed and wanted <= said:
                return
        made = trial(self.out, self.name, part, seed, workers, *point)
        self.trials.append(made)
        self.records += records([made])
        results.keep(self.folder, self.records)
        print(self.name, part, seed, workers, *point, made.history[-1]["loss"], flush=True)

    def best(self) -> list[str]:
        """Returns the overrides of the best point."""
        order = ranked(of_part(self.trials, "tune"), "num_clients", "2")
        if edge := at_edge(order[0][0], [point for point, _ in order]):
            print(f"{self.name}: at the edge of the grid: {', '.join(edge)}", file=sys.stderr)
        return [f"{key}={value}" for key, value in order[0][0]]


def run_method(out: Path, name: str) -> None:
    """Tunes a method, and runs its best point."""
    kept, (_, knob, tried, _) = Kept(out, name), METHODS[name]
    inner = () if knob == INNER else (f"{INNER}=0.001",)
    for value in tried:
        kept.run("tune", TUNING, 2, f"{knob}={value}", *inner)
    if inner:
        (own,) = (given for given in kept.best() if given.startswith(f"{knob}="))
        for rate in (0.0003, 0.003):
            kept.run("tune", TUNING, 2, own, f"{INNER}={rate}")
    best = kept.best()
    for workers in (2, 4):
        for seed in SEEDS:
            kept.run("final", seed, workers, *best)


def gathered(out: Path) -> Iterator[dict[str, Any]]:
    """Yields the records of all methods that are there."""
    for name in METHODS:
        if (out / name / results.FILE).exists():
            yield from results.kept(out / name)


def main(out: Path, names: Sequence[str]) -> None:
    """Runs methods, and keeps what is there with the page."""
    out.mkdir(parents=True, exist_ok=True)
    for name in names or METHODS:
        run_method(out, name)
    results.keep(PAGE, list(gathered(out)))


if __name__ == "__main__":
    main(Path(*sys.argv[1:2] or ["outputs/outer_steps"]), sys.argv[2:])
