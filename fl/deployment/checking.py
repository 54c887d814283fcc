"""Predicted against measured: a real run of a deployment, simulated with a runtime and a fleet."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.extras import check_importable
from fl.runs.trust import check_targets

_FITS = 3  # of a start, each with the waiting that is predicted with the last
_PHASES = 5  # draws of when nodes look, in a prediction of times that knows nothing of it


@dataclass(frozen=True, eq=False)
class Timed:
    """What a run took, a deployment's or a simulated one.

    Attributes:
        overrides: that it was started with.
        summary: content of summary.json.
        rows: of metrics.csv.
        messages: from each message to its reply, s, shape (messages,).
        shares: predicted shares of that, by term; empty of a deployment.
        start_s: of the runtime with which it was predicted; NaN of a deployment.
    """

    overrides: Sequence[str]
    summary: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    messages: NDArray[np.float64]
    shares: Mapping[str, float] = field(default_factory=dict)
    start_s: float = math.nan

    @property
    def times(self) -> dict[str, float]:
        """The s of rounds, of messages and of the run."""
        points = [(float(row["round"]), float(row["time_s"])) for row in self.rows]
        rounds = [
            (later[1] - earlier[1]) / (later[0] - earlier[0])
            for earlier, later in pairwise(points)
            if later[0] > earlier[0]
        ]
        times: dict[str, float] = {}
        if rounds:
            times |= {"round, median": median(rounds), "round, mean": mean(rounds)}
        if len(self.messages):
            times |= {"message, median": float(np.median(self.messages))}
            times |= {"message, mean": float(self.messages.mean())}
        if points:
            times["whole run"] = points[-1][1]
        return times


def check(
    run: Path, name: str, folder: Path, more: Sequence[str] = ()
) -> dict[str, tuple[float, float]]:
    """Simulates what a deployment has run, prints both side by side, and returns them.

    Args:
        run: directory of the deployment's run.
        name: of a runtime and a fleet.
        folder: of configuration, that has them.
        more: overrides, such as links that the fleet does not know.

    Returns:
        s measured and predicted, by what they are of.

    Raises:
        ConfigError: the directory has no run of a deployment, or there is no such runtime.
    """
    real = measured(run)
    _runtime_file(name, folder)
    simulated = predicted(real.overrides, name, folder, more)
    both = {
        key: (real.times[key], seconds)
        for key, seconds in simulated.times.items()
        if key in real.times
    }
    print(f"{'':24}{'measured':>12}{'predicted':>12}{'error':>9}")
    for key, (measured_s, predicted_s) in both.items():
        error = predicted_s / measured_s - 1 if measured_s else float("nan")
        print(f"{key:24}{measured_s:10.2f} s{predicted_s:10.2f} s{error:+9.1%}")
    print("predicted shares of the time between messages and replies:")
    for term, share in sorted(simulated.shares.items(), key=lambda pair: -pair[1]):
        if share >= 0.001:
            print(f"  {term:22}{share:8.1%}")
    return both


def fit_start(runs: Sequence[Path], name: str, folder: Path, more: Sequence[str] = ()) -> None:
    """Sets the start_s of a runtime to that with which messages take as long as in real runs.

    It is the median of what messages took, less what is predicted of them beside the start: in the
    mean of several draws of when nodes look, as a few messages of one draw wait for what chance
    says. As waiting depends a little on the start, it is done more than once.

    Args:
        runs: directories of deployments' runs.
        name: of a runtime and a fleet.
        folder: of configuration, that has them.
        more: overrides, such as links that the fleet does not know.

    Raises:
        ConfigError: a directory has no run of a deployment, or there is no such runtime.
    """
    path = _runtime_file(name, folder)
    from fl.deployment.fitting import median as with_interval
    from fl.deployment.fitting import set_key

    reals = [measured(run) for run in runs]
    start: list[str] = []  # as the file has it
    for _ in range(_FITS):
        left: list[float] = []
        for real in reals:
            drawn = in_phases(real.overrides, name, folder, [*start, *more])
            beside = mean(run.times["message, mean"] - run.start_s for run in drawn)
            left += (real.messages - beside).tolist()
        found = with_interval(left)
        if found.value < 0:
            raise ConfigError(
                f"messages took {-found.value:.3g} s less than is predicted without a start: the "
                f"other constants of {path} are not those of these runs"
            )
        start = [f"runtime.start_s={found.value!r}"]
    set_key(path, "start_s", found, f"of messages in {', '.join(map(str, runs))}")


def _runtime_file(name: str, folder: Path) -> Path:
    path = folder / "runtime" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: fl calibrate {name} -cd {folder} writes it")
    return path


def measured(run: Path) -> Timed:
    """Returns what a deployment's run took.

    Args:
        run: its directory.

    Raises:
        ConfigError: there is none, it has not completed, or pyarrow is not installed.
    """
    check_importable("what a run took", "pyarrow")
    import pyarrow.parquet as pq

    try:
        summary = json.loads((run / "summary.json").read_text("utf-8"))
        trace = pq.read_table(run / "trace.parquet")
        with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{run} holds no run: {error}") from error
    if "overrides" not in summary.get("extra", {}).get("deployment", {}):
        raise ConfigError(
            f"{run} holds a simulated run; `python -m fl.deployment` and `flwr run` make real ones"
        )
    if summary["status"] != "completed":
        raise ConfigError(f"the run in {run} is {summary['status']}, and not completed")
    kinds = np.array(trace["kind"].to_pylist())
    time, client, dispatch = (
        np.array(trace[key].to_pylist()) for key in ("time_s", "client", "dispatch")
    )
    overrides = summary["extra"]["deployment"]["overrides"]
    return Timed(overrides, summary, rows, _messages(kinds, time, client, dispatch))


def predicted(overrides: Sequence[str], name: str, folder: Path, more: Sequence[str] = ()) -> Timed:
    """Returns what the simulator says that a run takes.

    Args:
        overrides: of the run.
        name: of a runtime and a fleet.
        folder: of configuration, that has them.
        more: overrides after these.

    Raises:
        ConfigError: there is no such runtime, or the run needs code that is not fl's.
    """
    from fl.runs.build import build  # heavy
    from fl.runs.python import composed
    from fl.runs.run import run_prepared

    own = [f"runtime={name}", f"fleet={name}", "executor=serial", "checkpoint=off"]
    own += ["views=false", "progress=false", "save_models=[]", *more]
    with composed([*overrides, *own], path=(f"file://{folder.absolute()}",)) as config:
        check_targets(config, ())
        start_s = float(config.runtime.start_s)
        run = run_prepared(config, build(config), None)
    trace = run.trace
    kinds = np.array([kind.name.lower() for kind in trace.kinds])
    messages = _messages(kinds, trace.time, trace.client, trace.dispatch)
    shares = run.summary["extra"].get("time_shares", {}).get("clients", {})
    return Timed(overrides, run.summary, run.history, messages, shares, start_s)


def in_phases(
    overrides: Sequence[str], name: str, folder: Path, more: Sequence[str] = ()
) -> list[Timed]:
    """Returns `predicted` for several draws of when nodes look, and of how long starts take."""
    return [
        predicted(overrides, name, folder, [*more, f"fleet.seed={seed}"]) for seed in range(_PHASES)
    ]


def _messages(
    kinds: NDArray[Any],
    time: NDArray[np.float64],
    client: NDArray[np.int64],
    dispatch: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Returns the s between each message and its reply."""

    def at(kind: str) -> dict[tuple[int, int], float]:
        rows = np.flatnonzero(kinds == kind)
        names = zip(client[rows].tolist(), dispatch[rows].tolist(), strict=True)
        return dict(zip(names, time[rows].tolist(), strict=True))

    begins, ends = at("dispatch"), at("upload_end")
    return np.array([ends[name] - begins[name] for name in ends if name in begins])
