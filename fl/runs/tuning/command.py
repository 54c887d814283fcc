"""`fl tune KEY=A,B,C ...`: which values a method is best at."""

from __future__ import annotations

import argparse
import csv
import math
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fl.checks import at_least
from fl.errors import ConfigError
from fl.reports.atomic import replacing
from fl.reports.target import Target
from fl.runs import usage
from fl.runs.command_parser import CommandParser
from fl.runs.configuration import check_values, take_away
from fl.runs.python import composed
from fl.runs.settings import target_of
from fl.runs.tuning.halving import Halving
from fl.runs.tuning.search import Search
from fl.runs.tuning.space import Space
from fl.runs.tuning.trials import Length, Trials, Workers, forget
from fl.runs.waiting import telling

if TYPE_CHECKING:
    from fl.runs.experiment import Experiment, ForeignApp

USUAL = {"executor": "serial", "validation": "0.1", "progress": "false", "views": "false"}
"""What runs have unless the command line says otherwise."""

_LEAST = 5  # rounds of the first rung, unless told otherwise: after one, all are alike
_SHOWN = 20  # points, of the table


def main(words: Sequence[str]) -> bool:
    """Tunes, and says what was found; returns whether anything was.

    Raises:
        ConfigError: the arguments cannot be.
    """
    given = parser().parse_intermixed_args(words)
    if (answer := usage.answer(given.overrides)) is not None:
        print(answer)
        return True
    space, rungs, target = asked(given)
    folder: Path = given.out
    points = space.points(given.trials)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out is {folder}, which cannot be made: {error.strerror}") from error
    trials = Trials(folder.absolute(), space.fixed, _seeds(given.seeds), given.by, rungs)
    search = Search(space, trials, target, Halving(len(rungs), given.eta), points)
    console = Console()
    console.print(
        f"{len(points)} points, each to {given.by}={rungs[0]}; the best 1/{given.eta} go on "
        f"to {', '.join(map(str, rungs[1:]))}"
        if len(rungs) > 1
        else f"{len(points)} points, each to {given.by}={rungs[0]}"
    )
    with Workers(given.workers, trials) as workers:
        search.run(workers.run, given.workers, given.widen, lambda line: print(line, flush=True))
    for place in folder.glob("*/seed=*"):
        forget(place)
    _write(folder / "tuning.csv", search)
    return _show(console, search, given.overrides)


def parser() -> CommandParser:
    """Returns what reads the words after `fl tune`."""
    made = CommandParser(
        prog="fl tune",
        description="Finds the settings at which a method is best, by asynchronous successive "
        "halving: all points of a grid, or some of an interval, run for a few rounds, and the best "
        "of them on from there. Points are judged by target.metric on training examples that no "
        "client has (validation=0.1), so that the test set has no part in it. See docs/sweeps.md.",
    )
    made.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="as after fl -m: of keys with several values, KEY=A,B,C, those are tried; "
        "'KEY=interval(A,B)' and 'KEY=tag(log,interval(A,B))' are drawn from",
    )
    made.add_argument(
        "--out",
        "-o",
        type=Path,
        default=Path("tuning"),
        metavar="DIR",
        help="where runs and tuning.csv go; the same command with the same folder "
        "goes on where it was stopped (%(default)s)",
    )
    made.add_argument(
        "--seeds",
        default="100",
        metavar="A,B",
        help="of each point's runs, which are averaged; others than those of the "
        "results (%(default)s)",
    )
    made.add_argument(
        "--by",
        choices=("num_rounds", "time_limit_s"),
        default="num_rounds",
        help="what makes a run short or long (%(default)s)",
    )
    made.add_argument(
        "--first",
        type=float,
        metavar="N",
        help="length of the first rung, in rounds or simulated seconds (1/eta^2 of "
        "the whole, at least 5 rounds); the whole length makes it a plain grid",
    )
    made.add_argument(
        "--eta",
        type=int,
        default=3,
        metavar="N",
        help="one of so many points runs on, so many times as long (%(default)s)",
    )
    made.add_argument(
        "--trials",
        type=int,
        default=27,
        metavar="N",
        help="points to draw, if there is an interval (%(default)s)",
    )
    made.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="points that run side by side (%(default)s)",
    )
    made.add_argument(
        "--widen",
        type=int,
        default=3,
        metavar="N",
        help="how often a grid may grow while its best point lies at its edge (%(default)s)",
    )
    return made


def _seeds(text: str) -> tuple[int, ...]:
    words = text.split(",")
    if not all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        raise ConfigError(f"--seeds is {text!r}; it must be whole numbers, as 100,101")
    return tuple(dict.fromkeys(map(int, words)))


def asked(given: argparse.Namespace) -> tuple[Space, tuple[float, ...], Target]:
    """Returns what is tried, how far in each rung, and by what it is judged.

    All points are built, so that none is refused after others have run.

    Args:
        given: of the command line.

    Raises:
        ConfigError: one cannot be, or keys are given that the search decides on itself.
    """
    for name in ("eta", "trials", "workers", "widen"):
        at_least(f"--{name}", getattr(given, name), {"eta": 2, "widen": 0}.get(name, 1))
    _seeds(given.seeds)
    words, length, first, eta = given.overrides, given.by, given.first, given.eta
    keys = [word.lstrip("+").partition("=")[0] for word in words]
    for key in keys:
        if key == "seed":
            raise ConfigError("seed is the search's to choose: give --seeds in its place")
        if key.startswith(("hydra", "checkpoint")):
            raise ConfigError(f"{key} is the search's to choose: --out says where runs go")
    usual = [f"{key}={value}" for key, value in USUAL.items() if key not in keys]
    space = Space.of([*usual, *words])
    with telling("looking at the points before the first begins"):
        from fl.data.loading import loading_once  # heavy
        from fl.runs.build import prepare

        with loading_once():
            for point in space.points(given.trials):
                with composed([*space.fixed, *point]) as config:
                    whole, target = config[length], target_of(config)
                    present = check_values(config)
                    take_away(config, present)
                    _check_learns(prepare(config, present))
    if target is None:
        raise ConfigError("target is null: set target.metric to what points are judged by")
    if whole is None:
        raise ConfigError(f"{length} is null: give {length}=..., to which the best points run")
    return space, _rungs(length, whole, first, eta), target


def _check_learns(prepared: Experiment | ForeignApp) -> None:
    from fl.runs.experiment import Experiment  # heavy

    if not isinstance(prepared, Experiment):
        raise ConfigError("app is not null, and fl tune evaluates parts of fl: leave it out")
    if not prepared.app.learns:
        raise ConfigError("client.train is false, so that no point learns anything: leave it out")


def _rungs(length: Length, whole: float, first: float | None, eta: int) -> tuple[float, ...]:
    """Returns the lengths of runs, ascending; those in rounds are whole numbers."""
    rounds = length == "num_rounds"
    least = 1 if rounds else 1e-9
    if first is None:
        first = max(min(_LEAST, int(whole)), int(whole) // eta**2) if rounds else whole / eta**2
    if not least <= first <= whole or (rounds and first != int(first)):
        number = "a whole number from 1 to" if rounds else "above 0 and at most"
        raise ConfigError(f"--first is {first:g}; it must be {number} {length}={whole:g}")
    shorter = [first * eta**k for k in range(64) if first * eta ** (k + 1) <= whole * (1 + 1e-9)]
    if rounds:
        return (*map(int, shorter), int(whole))
    return tuple(float(f"{seconds:.6g}") for seconds in (*shorter, whole))


def _write(path: Path, search: Search) -> None:
    """Writes every point, each with what it came to in the last rung that it reached."""
    keys, trials = list(search.space.keys), search.trials
    try:
        with replacing(path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            seeds = [f"{search.target.metric} of seed {seed}" for seed in trials.seeds]
            writer.writerow([*keys, trials.length, search.target.metric, *seeds, "failed"])
            for p, rung in _order(search):
                values = search.values.get((p, rung), [math.nan] * len(trials.seeds))
                chosen = dict(word.split("=", 1) for word in search.points[p])
                reached = [trials.rungs[rung], fmean(values), *values, search.failed.get(p, "")]
                writer.writerow([*(chosen[key] for key in keys), *reached])
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error


def _order(search: Search) -> list[tuple[int, int]]:
    """Returns all points and the last rung of each, the best first."""
    losses = search.halving.losses
    last = {p: k for k, of in enumerate(losses) for p in of}
    return sorted(last.items(), key=lambda item: (-item[1], losses[item[1]][item[0]], item[0]))


def _show(console: Console, search: Search, words: Sequence[str]) -> bool:
    best, metric = search.halving.winner(), search.target.metric
    if best is None:
        why = next(iter(search.failed.values()), "all diverged")
        console.print(f"no point has come to any {metric}: {why} ({search.trials.folder})")
        return False
    table = Table("", *search.space.keys, search.trials.length, metric)
    edges = search.space.edges(search.points[best[0]])
    for place, (p, rung) in enumerate(_order(search)[:_SHOWN], 1):
        cells = []
        for word in search.points[p]:
            key, _, value = word.partition("=")
            cells.append(value + " *" * (p == best[0] and key in edges))
        values = search.values.get((p, rung), [])
        spread = f" ± {stdev(values):.2g}" if len(values) > 1 else ""
        shown = f"{fmean(values):.4g}{spread}" if values else "failed"
        table.add_row(str(place), *cells, str(search.trials.rungs[rung]), shown)
    console.print(table)
    if edges:
        print(f"* at the edge of what was tried: {', '.join(edges)} may be better still")
    lengths = search.trials.rungs
    done = sum(
        lengths[k] - (lengths[k - 1] if k else 0)
        for k, of in enumerate(search.halving.losses)
        for _ in of
    )
    print(
        f"{done} of {len(search.points) * lengths[-1]} {search.trials.length} of all points in full"
    )
    tuned = {*search.space.keys}
    others = [word for word in words if word.partition("=")[0] not in tuned]
    command = shlex.join(["fl", "-m", *others, *search.points[best[0]], "seed=0,1,2"])
    print(f"with the test set: {command}")
    return True
