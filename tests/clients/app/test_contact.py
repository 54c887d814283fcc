"""When a client contacts the server before its local work is done."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from every_strategy import configured, ran
from flwr.app import ArrayRecord
from together import why_alone

from fl.clients import DriftNoticed, Periodic, Plateau, Sgd, TrainingApp
from fl.errors import ConfigError
from fl.execution.contract import Payload
from fl.flower.records import from_record
from fl.models import flops_per_example
from fl.runs.build import build

SIZE, EPOCHS = 12, 6
STILL = Sgd(1e-12)  # whose losses do not fall


@pytest.fixture
def data(federated):
    return federated((SIZE, 7))


def app_of(mlp, data, rule, contact):
    return TrainingApp(mlp, data, rule, contact=contact, batch_size=4, local_epochs=EPOCHS)


def test_a_plateau_is_an_epoch_that_gains_too_little():
    rule = Plateau(0.1)
    assert not rule.now([1.0], None)
    assert not rule.now([1.0, 0.9], None)
    assert rule.now([1.0, 0.91], 5.0)
    assert rule.now([1.0, 0.5, 0.5], None)
    assert rule.now([1.0, float("nan")], None)
    assert not Plateau(0.0).now([1.0, 1.0], None)


def test_drift_is_a_first_epoch_that_is_worse_than_the_last_one_before():
    rule = DriftNoticed(0.5)
    assert not rule.now([9.0], None)
    assert not rule.now([1.5], 1.0)
    assert rule.now([1.51], 1.0)
    assert not rule.now([1.51, 1.6], 1.0)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Periodic(0.0), "period_s"),
        (lambda: Plateau(1.5), "fall"),
        (lambda: DriftNoticed(-0.5), "rise"),
    ],
    ids=["period_s", "fall", "rise"],
)
def test_arguments_out_of_range_are_refused(make, key):
    with pytest.raises(ConfigError, match=rf"{key}.*(0\.0|1\.5|-0\.5)"):
        make()


def test_a_client_without_progress_stops_after_two_epochs_and_is_charged_for_those(
    data, mlp, content_of, message_to, context_of
):
    app, content = app_of(mlp, data, STILL, Plateau()), content_of(mlp)
    reply = app(message_to(content), context_of())
    assert reply.content["metrics"]["steps"] == 2 * 3
    plan = app.plan(Payload(content), "train", 0, 1e-9)
    per_example = flops_per_example(mlp, (6,), torch.float32).training
    assert plan.flops == EPOCHS * SIZE * per_example
    assert plan.flops_of(6) == 2 * SIZE * per_example
    assert "its own loss" in why_alone(app, message_to(content), context_of())
    falls = app_of(mlp, data, Sgd(0.3), Plateau(0.0))(message_to(content), context_of())
    assert falls.content["metrics"]["steps"] > 6


def test_drift_is_noticed_by_the_loss_that_the_client_remembers(
    data, mlp, content_of, message_to, context_of
):
    app, context = app_of(mlp, data, STILL, DriftNoticed(0.5)), context_of()
    steps = []
    worse = ArrayRecord({name: -40 * values for name, values in mlp.state_dict().items()})
    for dispatch, model in enumerate([mlp, mlp, worse, worse]):
        reply = app(message_to(content_of(model), 0, dispatch), context)
        steps.append(reply.content["metrics"]["steps"])
    assert steps == [18, 18, 3, 18]  # the last finds what it remembers since


def test_a_period_is_a_deadline_of_the_clients_own(data, mlp, content_of, message_to, context_of):
    app = app_of(mlp, data, Sgd(0.1), Periodic(2.0))
    told = TrainingApp(mlp, data, Sgd(0.1), batch_size=4, local_epochs=EPOCHS)
    step = 4 * flops_per_example(mlp, (6,), torch.float32).training
    for fits, told_s in ((5, {}), (2, {"deadline_s": 0.8})):
        plan = app.plan(Payload(content_of(mlp, **told_s)), "train", 0, 0.4 / step)
        assert plan.steps == fits
        assert plan.flops == fits * step
    same = told.plan(Payload(content_of(mlp, deadline_s=2.0)), "train", 0, 0.4 / step)
    assert same.steps == 5
    free = app.plan(Payload(content_of(mlp, elapsed_s=1.2)), "train", 0, 0.4 / step)
    assert free.steps == 3
    replies = [
        a(message_to(content_of(mlp, **more), 0), context_of(0))
        for a, more in ((told, {"local_steps": 5}), (app, {"local_steps": 5}))
    ]
    one, other = (from_record(app.layout, reply.content["arrays"]) for reply in replies)
    np.testing.assert_array_equal(one, other)


COMMON = ["client.rule.lr=1e-12", "num_rounds=2", "fleet.flops=1e7"]


def test_what_is_not_done_takes_no_time_and_who_fails_had_begun():
    runs = []
    of = [*COMMON, "fleet.faults.dropout=0.3", "strategy.min_fraction=0"]
    for more in (["client/contact=plateau", "client.local_epochs=9"], ["client.local_epochs=2"]):
        runs.append(ran("fedavg", *of, *more)[1])
    one, other = runs
    assert one.summary["faults"]["dropout"] == other.summary["faults"]["dropout"] > 0
    assert one.summary["totals"]["energy_j"] == other.summary["totals"]["energy_j"]
    assert one.history[-1]["time_s"] == other.history[-1]["time_s"]
    assert one.history[-1]["train_steps"] == other.history[-1]["train_steps"]


@pytest.mark.parametrize("strategy", ["quafl", "dpsgd", "data_parallel"])
def test_where_others_say_how_much_is_done_it_is_refused(strategy):
    with pytest.raises(ConfigError, match=r"client\.contact is set"):
        build(configured(strategy, "client/contact=plateau"))
