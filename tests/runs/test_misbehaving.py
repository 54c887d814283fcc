"""ClientApps that misbehave: a recorded fault or a clear error, and complete files either way.

What kills or blocks a process is in tests/execution/test_on_ray.py.
"""

from __future__ import annotations

import gzip
import json
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp import strategy as flower

from fl import simulate
from fl.aggregation import Mean, TrimmedMean
from fl.attacks import IPM
from fl.runs.run import outvoted
from fl.simulation.world.fleets import uniform
from fl.strategies import Exchange, FedAvg, Rounds

CLIENTS = 5
START = np.zeros(4, dtype=np.float32)


def honest(message):
    model = message.content["arrays"]["w"].numpy() + 1
    return RecordDict(
        {
            "arrays": ArrayRecord({"w": Array(model)}),
            "metrics": MetricRecord({"num-examples": 10, "train-loss": 0.5}),
        }
    )


def raises(message):
    raise RuntimeError("out of disk")


def exits(message):
    raise SystemExit(3)


def nothing(message):
    return None


def wrong_type(message):
    return {"arrays": START}


def wrong_key(message):
    content = honest(message)
    content["arrays"] = ArrayRecord({"v": Array(START)})
    return Message(content, reply_to=message)


def wrong_shape(message):
    content = honest(message)
    content["arrays"] = ArrayRecord({"w": Array(np.zeros(7, dtype=np.float32))})
    return Message(content, reply_to=message)


def wrong_dtype(message):
    content = honest(message)
    content["arrays"] = ArrayRecord({"w": Array(np.array(["a", "b", "c", "d"]))})
    return Message(content, reply_to=message)


def not_a_number(message):
    content = honest(message)
    content["arrays"] = ArrayRecord({"w": Array(START + np.nan)})
    return Message(content, reply_to=message)


def no_arrays(message):
    return Message(RecordDict({"metrics": MetricRecord({"num-examples": 1})}), reply_to=message)


def no_metrics(message):
    content = honest(message)
    del content["metrics"]
    return Message(content, reply_to=message)


def negative_examples(message):
    content = honest(message)
    content["metrics"] = MetricRecord({"num-examples": -5, "train-loss": 0.5})
    return Message(content, reply_to=message)


def pickled(message):
    content = honest(message)
    data = b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94"
    content["arrays"] = ArrayRecord({"w": Array("object", (1,), "numpy.ndarray", data)})
    return Message(content, reply_to=message)


ERROR_REPLIES = [raises, exits, nothing, wrong_type]
BAD_CONTENT = [
    wrong_key,
    wrong_shape,
    wrong_dtype,
    not_a_number,
    no_arrays,
    no_metrics,
    negative_examples,
    pickled,
]


def app_with(misbehaviour):
    app = ClientApp()

    @app.train()
    def train(message, context):
        if context.node_config["partition-id"] == 2 and message.content["config"]["bad"]:
            return misbehaviour(message)
        return Message(honest(message), reply_to=message)

    return app


def run(misbehaviour, strategy, directory, rounds=3):
    def server(grid, context, recorder):
        result = strategy.start(
            grid,
            ArrayRecord({"w": Array(START)}),
            num_rounds=rounds,
            timeout=1000,
            train_config=ConfigRecord({"bad": True}),
            evaluate_fn=recorder.recording(
                lambda r, arrays: MetricRecord({"mean": float(arrays["w"].numpy().mean())})
            ),
        )
        recorder.final(result.arrays)

    return simulate(
        server,
        app_with(misbehaviour),
        uniform(num_clients=CLIENTS, seed=0),
        executor="serial",
        directory=directory,
        progress=False,
    )


def files(directory):
    """Returns the summary after checking that every file can be read."""
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    table = pq.read_table(directory / "trace.parquet")
    assert table.num_rows == summary["totals"]["events"]
    rows = (directory / "metrics.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) - 1 == summary["evaluations"]
    json.loads(gzip.decompress((directory / "timeline.json.gz").read_bytes()))
    return summary


def stock():
    return flower.FedAvg(fraction_evaluate=0.0, min_train_nodes=CLIENTS)


def robust():
    # Tolerates one reply that is no model, whatever it is.
    return Rounds(FedAvg(), aggregator=TrimmedMean(f=1), min_train_nodes=CLIENTS)


@pytest.mark.parametrize("misbehaviour", ERROR_REPLIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("strategy", [stock, robust], ids=lambda f: f.__name__)
def test_a_client_that_fails_is_an_error_reply_and_a_counted_fault(
    misbehaviour, strategy, tmp_path
):
    result = run(misbehaviour, strategy(), tmp_path)
    assert files(tmp_path)["faults"]["client_error"] == 3
    np.testing.assert_allclose(result.arrays["w"].numpy(), START + 3)


@pytest.mark.parametrize("misbehaviour", BAD_CONTENT, ids=lambda f: f.__name__)
def test_content_that_is_no_model_never_reaches_the_model_of_a_robust_aggregator(
    misbehaviour, tmp_path
):
    result = run(misbehaviour, robust(), tmp_path)
    assert files(tmp_path)["status"] == "completed"
    np.testing.assert_allclose(result.arrays["w"].numpy(), START + 3)


@pytest.mark.parametrize("misbehaviour", BAD_CONTENT, ids=lambda f: f.__name__)
def test_under_a_stock_strategy_the_run_ends_with_complete_files(misbehaviour, tmp_path):
    # What Flower's FedAvg makes of names and shapes is Flower's business: it refuses them by
    # raising. Either way the user has every file up to that point, and the reason.
    try:
        run(misbehaviour, stock(), tmp_path)
        status = "completed"
    except Exception:
        status = "failed"
    summary = files(tmp_path)
    assert summary["status"] == status
    assert (summary["error"] is None) == (status == "completed")
    assert summary["evaluations"] >= 1


NO_NUMBERS = [not_a_number, negative_examples, pickled, wrong_dtype]


@pytest.mark.parametrize("misbehaviour", NO_NUMBERS, ids=lambda f: f.__name__)
def test_numbers_that_are_none_are_a_fault_of_the_client_under_a_stock_strategy_too(
    misbehaviour, tmp_path
):
    result = run(misbehaviour, stock(), tmp_path)
    summary = files(tmp_path)
    assert (summary["status"], summary["faults"]) == ("completed", {"rejected": 3})
    np.testing.assert_allclose(result.arrays["w"].numpy(), START + 3)


@pytest.mark.parametrize("misbehaviour", BAD_CONTENT, ids=lambda f: f.__name__)
def test_the_mean_which_tolerates_nobody_goes_on_with_who_is_left(misbehaviour, tmp_path):
    strategy = Rounds(FedAvg(), min_train_nodes=CLIENTS)
    result = run(misbehaviour, strategy, tmp_path)
    summary = files(tmp_path)
    assert (summary["status"], summary["faults"]) == ("completed", {"rejected": 3})
    np.testing.assert_allclose(result.arrays["w"].numpy(), START + 3)


def test_a_client_that_sleeps_past_the_timeout_costs_virtual_time_only(tmp_path):
    def sleepy(message):
        time.sleep(100_000)
        return Message(honest(message), reply_to=message)

    began = time.perf_counter()
    result = run(sleepy, stock(), tmp_path)
    assert time.perf_counter() - began < 100_000
    summary = files(tmp_path)
    assert summary["faults"]["timeout"] == 3
    assert summary["totals"]["virtual_s"] == pytest.approx(3000)
    np.testing.assert_allclose(result.arrays["w"].numpy(), START + 3)


def test_a_server_app_that_raises_leaves_complete_files_and_raises(tmp_path):
    app = ServerApp()

    @app.main()
    def main(grid, context):
        strategy = stock()
        strategy.start(
            grid,
            ArrayRecord({"w": Array(START)}),
            num_rounds=1,
            train_config=ConfigRecord({"bad": False}),
            evaluate_fn=lambda r, arrays: MetricRecord({"mean": 0.0}),
        )
        raise RuntimeError("after one round")

    with pytest.raises(RuntimeError, match="after one round"):
        simulate(
            app,
            app_with(raises),
            uniform(num_clients=CLIENTS, seed=0),
            executor="serial",
            directory=tmp_path,
            progress=False,
        )
    summary = files(tmp_path)
    assert summary["status"] == "failed"
    assert "after one round" in summary["error"]
    assert summary["evaluations"] == 2


@pytest.mark.parametrize(
    ("F", "share"),
    # P(X > 1) = C(2, 2) C(8, 3) / C(10, 5) = 2 / 9 with X of two liars among five of ten.
    [(TrimmedMean(f=1), "22.2 %"), (TrimmedMean(f=2), ""), (Mean(), "")],
)
def test_a_user_is_told_how_often_more_liars_are_drawn_than_an_aggregator_bears(F, share):
    liars = Exchange(attack=IPM(), byzantine=frozenset({3, 7}), num_clients=10)
    strategy = Rounds(FedAvg(), clients=5, aggregator=F).within(liars)
    said = outvoted(strategy, 10, num_rounds=10)
    assert bool(said) == bool(share)
    assert share in said
    assert not outvoted(strategy.within(Exchange(num_clients=10)), 10, num_rounds=10)
