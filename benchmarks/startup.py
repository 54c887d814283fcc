"""From typing `fl` to the first client training, and what bounds it; what a whole command computes.

    python benchmarks/startup.py [--quick] [--out FILE]

Each line is a process of its own, started from nothing, in turns:

    help      `fl --help`, to the end
    serial    `fl executor=serial`, until the first client trains
    ray       `fl`, until the first client trains on an actor
    python    an empty Python program, to the end
    torch     `import torch`, to the end: the least that training needs
    flower    `import torch, flwr.app`: the least that a Flower app needs
    ray bare  ray.init, and one actor that imports the same: the least that the Ray executor needs
    run       a run of one round with one client, to the end
    sweep     two strategies times three seeds of it, to the end

The first client's training is noticed by a client rule that writes down when it was first asked.
CPU seconds are those of the process, and of what it has started and waited for, to the end. Files
are in the page cache after the first turn, which is not counted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report

STAMP = "FL_STARTUP_STAMP"
RUN = ["-m", "fl", "client.rule._target_=startup_rule.StampedSgd", "num_rounds=1"]
TINY = ["data=digits", "model=mlp", "num_clients=8", "num_rounds=1", "executor=serial"]
RAY = """
import ray
ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
@ray.remote
class Actor:
    def ready(self):
        import torch, flwr.app
        return True
ray.get(Actor.remote().ready.remote())
"""


@dataclass(frozen=True)
class Start:
    """A way to start.

    Attributes:
        arguments: of Python.
        target_s: seconds allowed on two cores; None for what bounds the others.
        bound: the line to compare with.
    """

    arguments: list[str]
    target_s: float | None
    bound: str | None


STARTS = {
    "help": Start(["-m", "fl", "--help"], 2.0, "python"),
    "serial": Start([*RUN, "executor=serial"], 4.0, "flower"),
    "ray": Start([*RUN, "executor=ray"], 8.0, "ray bare"),
    "python": Start(["-c", ""], None, None),
    "torch": Start(["-c", "import torch"], None, None),
    "flower": Start(["-c", "import torch, flwr.app"], None, None),
    "ray bare": Start(["-c", RAY], None, None),
    "run": Start(["-m", "fl", *TINY], None, "flower"),
    "sweep": Start(
        ["-m", "fl", "-m", "strategy=fedavg,fedprox", "seed=0,1,2", *TINY], None, "flower"
    ),
}

OF_BOUND = {"serial": 1.3, "ray": 1.1}
"""The most that the fastest start may take of the bound's fastest."""


def seconds(start: Start) -> tuple[float, float]:
    """Returns host seconds to the first client training, or to the end, and CPU seconds to it."""
    with tempfile.TemporaryDirectory() as folder:
        stamp = Path(folder) / "stamp"
        own = Path(__file__).resolve().parent
        environment = {
            **os.environ,
            STAMP: str(stamp),
            "PYTHONPATH": os.pathsep.join(
                [str(own / "probes"), str(own.parent), os.environ.get("PYTHONPATH", "")]
            ),
        }
        arguments = list(start.arguments)
        if "fl" in arguments and "--help" not in arguments:
            arguments += [f"hydra.{kind}.dir={folder}/run" for kind in ("run", "sweep")]
            arguments.append("progress=false")
        before = os.times()
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, *arguments],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
        )
        ended = time.monotonic()
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
        after = os.times()
        user = after.children_user - before.children_user
        system = after.children_system - before.children_system
        return (float(stamp.read_text()) if stamp.exists() else ended) - began, user + system


def main() -> None:
    """Runs the benchmark."""
    parser = report.parser("startup", __doc__)
    parser.add_argument("--turns", type=int, default=None, help="how often each is started")
    arguments = parser.parse_args()
    turns = arguments.turns or (2 if arguments.quick else 6)
    about = report.machine()
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in STARTS}
    for turn in range(turns):
        for name, start in STARTS.items():
            took = seconds(start)
            if turn:
                taken[name].append(took)
    rows: list[dict[str, Any]] = [
        {
            "start": name,
            "seconds": statistics.median(host for host, _ in taken[name]),
            "fastest": min(taken[name])[0],
            "target_s": start.target_s,
            "of_bound": min(taken[name])[0] / min(taken[start.bound])[0] if start.bound else None,
            "cpu_s": statistics.median(cpu for _, cpu in taken[name]),
        }
        for name, start in STARTS.items()
    ]
    report.table(
        "Seconds to the first client training, or to the end",
        ("", "median s", "fastest s", "target s", "of its bound", "CPU s"),
        (
            (
                row["start"],
                f"{row['seconds']:.2f}",
                f"{row['fastest']:.2f}",
                row["target_s"] or "",
                "" if row["of_bound"] is None else f"{row['of_bound']:.2f}",
                f"{row['cpu_s']:.2f}",
            )
            for row in rows
        ),
    )
    goals = [
        report.Goal(f"{row['start']}: s", row["fastest"], row["target_s"], most=True)
        for row in rows
        if row["target_s"] is not None
    ]
    goals += [
        report.Goal(f"{row['start']}: of its bound", row["of_bound"], OF_BOUND[name], most=True)
        for row in rows
        if (name := row["start"]) in OF_BOUND
    ]
    report.publish(arguments.out, rows, arguments, about, goals)


if __name__ == "__main__":
    main()
