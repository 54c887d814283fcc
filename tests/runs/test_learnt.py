"""A run that was to learn something, and has not, has failed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from hydra import compose, initialize_config_module

import fl
from fl import SimulationError, simulate
from fl.runs.run import run_experiment
from fl.simulation.world.faults import Faults
from fl.simulation.world.fleets import uniform

N = 6
ROUNDS = 2


def clients(works):
    """Returns a ClientApp whose client p trains if `works(p)`; otherwise it raises."""
    app = ClientApp()

    def answer(message, context, arrays):
        partition = context.node_config["partition-id"]
        if not works(partition):
            raise ValueError("odd clients have no camera" if partition % 2 else "no space left")
        content = RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": 0.5})})
        if arrays:
            content["arrays"] = ArrayRecord({"w": Array(np.full(3, 1.0 + partition))})
        return Message(content, reply_to=message)

    app.train()(lambda message, context: answer(message, context, True))
    app.evaluate()(lambda message, context: answer(message, context, False))
    app.query()(lambda message, context: answer(message, context, False))
    return app


def server(strategy=None, ask=None):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        if ask is not None:
            nodes = grid.get_node_ids()
            grid.send_and_receive([Message(RecordDict(), node, ask) for node in nodes])
            return
        used = strategy or FedAvg(fraction_evaluate=0.0)
        used.start(grid, ArrayRecord({"w": Array(np.zeros(3))}), num_rounds=ROUNDS)

    return app


def run(server_app, client_app, tmp_path, **faults):
    fleet = uniform(N, 0, faults=Faults(**faults)) if faults else uniform(N, 0)
    run = simulate(
        server_app, client_app, fleet, executor="serial", progress=False, directory=tmp_path
    )
    return run.summary


def summary_of(tmp_path):
    return json.loads((tmp_path / "summary.json").read_text("utf-8"))


def test_app_none_of_whose_clients_trained_has_failed_for_the_reasons_they_gave(tmp_path):
    with pytest.raises(SimulationError, match="of 12 requests to train, none brought") as caught:
        run(server(), clients(lambda partition: False), tmp_path)
    for reason in ("6 failed with ValueError: odd clients have no camera", "no space left"):
        assert reason in str(caught.value)
    summary = summary_of(tmp_path)
    assert summary["status"] == "failed"
    assert "nothing was learnt" in summary["error"]


def test_app_whose_clients_all_disappear_has_failed_and_says_of_what(tmp_path):
    with pytest.raises(SimulationError, match="12 dropout"):
        run(server(), clients(lambda partition: True), tmp_path, dropout=1.0, detection_s=1.0)


def test_one_answer_of_one_client_is_enough(tmp_path):
    summary = run(server(), clients(lambda partition: partition == 3), tmp_path)
    assert summary["status"] == "completed"
    assert summary["faults"] == {"client_error": (N - 1) * ROUNDS}


@pytest.mark.parametrize("kind", ["query", "evaluate"])
def test_app_that_asks_nobody_to_train_has_not_failed_to_learn(tmp_path, kind):
    summary = run(server(ask=kind), clients(lambda partition: False), tmp_path)
    assert summary["status"] == "completed"


def test_app_that_evaluates_only_has_not_failed_to_learn(tmp_path):
    strategy = FedAvg(fraction_train=0.0, fraction_evaluate=1.0)
    assert run(server(strategy), clients(lambda partition: True), tmp_path)["status"] == "completed"


def test_answers_without_a_model_are_answers(tmp_path):
    app = ClientApp()

    @app.train()
    def train(message, context):
        metrics = MetricRecord({"num-examples": 1, "mean": 3.0})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    assert run(server(ask="train"), app, tmp_path)["status"] == "completed"


# ---- our own runs --------------------------------------------------------------------------------

TINY = [
    *("executor=serial", "progress=false", "views=false", "model=logistic", "partition=iid"),
    *("fleet=uniform", "num_clients=12", "num_rounds=2"),
]


def experiment(*overrides):
    with initialize_config_module("fl.conf", version_base=None):
        return run_experiment(compose("config", [*TINY, *overrides]))


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["strategy=fedamd", "strategy.rule.p=0.999999"], "strategy.rule.p is 0.999999"),
        (["selection._target_=every_strategy.Nobody"], "selection: Nobody selects nobody"),
    ],
)
def test_run_whose_model_never_changed_says_what_kept_it(overrides, why):
    with pytest.raises(SimulationError, match=why):
        experiment(*overrides)


@pytest.mark.parametrize("strategy", ["fedavg", "fedbuff", "dpsgd", "diloco", "favas", "adpsgd"])
def test_run_whose_time_is_up_before_its_first_new_model_has_failed(strategy):
    # A message alone takes longer than 1 ms; favas makes contact only after a second.
    with pytest.raises(SimulationError, match=r"time_limit_s=0\.001 ended the run before the firs"):
        experiment(f"strategy={strategy}", "time_limit_s=0.001")


def test_run_ends_at_its_limit_of_time_and_not_with_the_model_after_it():
    few = {"num_clients": 2, "num_rounds": 3, "fleet": "uniform", "executor": "serial"}
    whole = fl.run(**few, progress=False)
    times = [row["time_s"] for row in whole.history]
    limit_s = (times[1] + times[2]) / 2
    brief = fl.run(**few, progress=False, time_limit_s=limit_s)
    assert brief.summary["totals"]["virtual_s"] == limit_s
    assert [row["accuracy"] for row in brief.history] == [
        row["accuracy"] for row in whole.history[:2]
    ]


def test_run_whose_rounds_all_end_without_replies_has_failed_and_names_the_remedy():
    with pytest.raises(
        SimulationError, match=r"20 expired; .*with a larger round_timeout_s, clients"
    ):
        experiment("round_timeout_s=0.001")


def test_run_whose_replies_are_all_left_out_has_failed():
    # Krum with f = 4 needs 11 vectors. With fewer replies than were asked for, it waits for more.
    with pytest.raises(SimulationError, match="and the model never changed"):
        experiment(
            "strategy=fedavg",
            "aggregator=krum",
            "aggregator.f=4",
            "strategy.fraction_train=1.0",
            "fleet.faults.dropout=0.4",
            "fleet.faults.detection_s=1.0",
        )
