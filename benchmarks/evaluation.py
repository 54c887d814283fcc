"""What the server's evaluation costs of a round, with the defaults of everything else.

    python benchmarks/evaluation.py [--quick] [--workloads mnist cifar10] [--out FILE]

LeafCNN on MNIST and ResNet-8 on CIFAR-10, 10 of 100 clients a round, evaluated after every round on
the 10,000 held-out images and never, by turns, on one process and on Ray. A round is the time from
one new model to the next, the first left out. The bound is the evaluation's share of the CPU time
of both, on one process: what is left where every core works all the time. Needs FL_DATA_DIR.
"""

from __future__ import annotations

import logging
import statistics
import time
from typing import Any

import report
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from fl import simulate
from fl.models import evaluate
from fl.runs import run
from fl.runs.build import build
from fl.runs.evaluation import EvaluationSchedule
from fl.runs.experiment import app_of
from fl.runs.recorder import Recorder
from fl.vectors.threads import limit_threads

WORKLOADS = {
    "mnist": ["data=mnist", "model=leaf_cnn"],
    "cifar10": ["data=cifar10", "model=resnet8"],
}
NEVER = 10**6
MOST = 0.1  # share of a round


class Timed(EvaluationSchedule):
    """Notes when each model is there, before it is evaluated, in s of the host and of this CPU."""

    came: list[tuple[float, float]]

    def __call__(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Notes the time, and does what it is to do."""
        Timed.came.append((report.host_s(), time.clock_gettime(time.CLOCK_PROCESS_CPUTIME_ID)))
        return super().__call__(server_round, arrays)


def configured(workload: str, executor: str, every: int, rounds: int) -> DictConfig:
    """Returns the configuration of a run."""
    own = ["num_clients=100", "strategy.fraction_train=0.1", f"executor={executor}"]
    own += [f"num_rounds={rounds + 1}", f"evaluate_every={every}"]
    with initialize_config_module("fl.conf", version_base=None):
        return compose("config", [*WORKLOADS[workload], *own])


def seconds(workload: str, executor: str, every: int, rounds: int) -> tuple[float, float]:
    """Returns the host's and this process's CPU seconds of a round, of those after the first."""
    config = configured(workload, executor, every, rounds)
    experiment = build(config)

    def server(grid: Grid, context: Context, recorder: Recorder) -> None:
        run.serve(experiment, config, grid, recorder)

    Timed.came = []
    simulate(
        server,
        app_of(experiment),
        experiment.fleet,
        num_partitions=100,
        executor=experiment.executor,
        progress=False,
        views=False,
    )
    first, last = Timed.came[1], Timed.came[1 + rounds]  # of the models 1 and 1 + rounds
    return (last[0] - first[0]) / rounds, (last[1] - first[1]) / rounds


def alone_s(workload: str) -> float:
    """Returns the CPU seconds of one evaluation on one thread."""
    experiment = build(configured(workload, "serial", 1, 1))
    model, examples = experiment.model(), experiment.data.test_set()
    with limit_threads(1):
        evaluate(model, examples)
        began = time.thread_time()
        evaluate(model, examples)
        return time.thread_time() - began


def measure(workload: str, rounds: int, turns: int) -> list[dict[str, Any]]:
    """Returns a row for each executor."""
    cpu_s, training_s = alone_s(workload), 0.0
    rows = []
    for executor in ("serial", "ray"):
        found: dict[int, list[float]] = {1: [], NEVER: []}
        for _ in range(turns):
            for every, of in found.items():
                wall, cpu = seconds(workload, executor, every, rounds)
                of.append(wall)
                if executor == "serial" and every == NEVER:
                    training_s = cpu
        evaluated, plain = (statistics.median(of) for of in found.values())
        rows.append(
            {
                "workload": workload,
                "executor": executor,
                "evaluated_s": evaluated,
                "plain_s": plain,
                "share": 1 - plain / evaluated,
                "evaluation_cpu_s": cpu_s,
                "training_cpu_s": training_s,
                "bound": cpu_s / (training_s + cpu_s),
            }
        )
    return rows


def main() -> None:
    """Measures the workloads and publishes the table."""
    parser = report.parser("evaluation", __doc__)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    settings = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    vars(run)["EvaluationSchedule"] = Timed
    about = report.machine()
    rounds, turns = (3, 1) if settings.quick else (5, 3)
    rows = [row for name in settings.workloads for row in measure(name, rounds, turns)]
    report.table(
        "seconds a round, and the evaluation's share of it",
        ("workload", "executor", "never", "each round", "share", "of CPU time"),
        [
            (
                row["workload"],
                row["executor"],
                f"{row['plain_s']:.2f}",
                f"{row['evaluated_s']:.2f}",
                f"{row['share']:.0%}",
                f"{row['bound']:.0%}",
            )
            for row in rows
        ],
    )
    goals = [
        report.Goal(
            f"{row['workload']}, {row['executor']}: evaluation's share of a round",
            row["share"],
            MOST,
            most=True,
        )
        for row in rows
    ]
    report.publish(settings.out, rows, settings, about, goals)


if __name__ == "__main__":
    main()
