"""Predicted against measured: a real run of a deployment, simulated with a runtime and a fleet."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from fl.errors import ConfigError
from fl.runs.trust import check_targets

_OF_STARTS = re.compile(r"^start_s:.*$", re.MULTILINE)


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
    real = _read(run)
    predicted, shares = _simulated(real["overrides"], name, folder, more)
    both = {key: (real["times"][key], predicted[key]) for key in predicted if key in real["times"]}
    print(f"{'':24}{'measured':>12}{'predicted':>12}{'error':>9}")
    for key, (measured_s, predicted_s) in both.items():
        error = predicted_s / measured_s - 1 if measured_s else float("nan")
        print(f"{key:24}{measured_s:10.2f} s{predicted_s:10.2f} s{error:+9.1%}")
    print("predicted shares of the time between messages and replies:")
    for term, share in sorted(shares.items(), key=lambda pair: -pair[1]):
        if share >= 0.001:
            print(f"  {term:22}{share:8.1%}")
    return both


def fit_start(runs: Sequence[Path], name: str, folder: Path) -> None:
    """Sets the start_s of a runtime to what is left of the messages of real runs.

    That is the mean time of a message, less what is predicted without a start.

    Raises:
        ConfigError: a directory has no run of a deployment, or there is no such runtime.
    """
    path = folder / "runtime" / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(f"{path} does not exist: fl calibrate {name} -cd {folder} writes it")
    from fl.deployment.fitting import median as with_interval

    left: list[float] = []
    for run in runs:
        real = _read(run)
        without, _ = _simulated(real["overrides"], name, folder, ["runtime.start_s=0"])
        left += [seconds - without["message, mean"] for seconds in real["messages"].tolist()]
    found = with_interval(left)
    if found.value < 0:
        raise ConfigError(
            f"messages took {-found.value:.3g} s less than is predicted without a start: the other "
            f"constants of {path} are not those of these runs"
        )
    text = path.read_text("utf-8")
    line = f"start_s: {found.value!r} # {found}, of messages in {', '.join(map(str, runs))}"
    text = _OF_STARTS.sub(line, text) if _OF_STARTS.search(text) else f"{text}{line}\n"
    path.write_text(text, encoding="utf-8")
    print(f"{path}: start_s is {found}")


def _read(run: Path) -> dict[str, Any]:
    """Returns overrides, times, and s of each message of a deployment's run."""
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
    messages = _messages(kinds, time, client, dispatch)
    return {
        "overrides": summary["extra"]["deployment"]["overrides"],
        "messages": messages,
        "times": _times(rows, messages),
    }


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


def _times(rows: Sequence[Mapping[str, Any]], messages: NDArray[np.float64]) -> dict[str, float]:
    """Returns the s of rounds and messages."""
    points = [(float(row["round"]), float(row["time_s"])) for row in rows]
    rounds = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for earlier, later in pairwise(points)
        if later[0] > earlier[0]
    ]
    times: dict[str, float] = {}
    if rounds:
        times |= {"round, median": median(rounds), "round, mean": mean(rounds)}
    if len(messages):
        times |= {"message, median": float(np.median(messages))}
        times |= {"message, mean": float(messages.mean())}
    if points:
        times["whole run"] = points[-1][1]
    return times


def _simulated(
    overrides: Sequence[str], name: str, folder: Path, more: Sequence[str] = ()
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns predicted times of rounds and messages, and shares of the latter."""
    from fl.runs.build import build  # heavy
    from fl.runs.python import composed
    from fl.runs.run import run_prepared

    own = [f"runtime={name}", f"fleet={name}", "executor=serial", "checkpoint=off"]
    own += ["views=false", "progress=false", "save_models=[]", *more]
    with composed([*overrides, *own], path=(f"file://{folder.absolute()}",)) as config:
        check_targets(config, ())
        run = run_prepared(config, build(config), None)
    trace = run.trace
    kinds = np.array([kind.name.lower() for kind in trace.kinds])
    messages = _messages(kinds, trace.time, trace.client, trace.dispatch)
    rows: Any = run.history
    return _times(rows, messages), run.summary["extra"].get("time_shares", {}).get("clients", {})
