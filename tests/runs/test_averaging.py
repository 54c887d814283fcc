"""What is evaluated with `lawa`: means of models, whatever made them, also after a kill."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord
from hydra import compose, initialize_config_module

from fl.errors import ConfigError
from fl.flower.records import layout_of, to_record
from fl.randomness import generator
from fl.runs.averaging import LatestWeightAverage
from fl.runs.build import build
from fl.runs.evaluation import EvaluationSchedule
from fl.runs.experiment import app_of
from fl.runs.run import serve
from fl.runs.simulator import simulate


def record(w, steps=0, dtype=np.float32):
    w = np.asarray(w, dtype)
    return ArrayRecord({"w": Array(w), "n.running_mean": Array(2 * w), "n": Array(np.array(steps))})


def test_the_mean_of_k_models_on_a_line_is_its_middle_and_of_statistics_too():
    average = LatestWeightAverage(k=3)
    for number in range(1, 6):
        average.add(number, record([number, -number], number))
    mean = average.mean(record([5.0, -5.0], 5))
    np.testing.assert_array_equal(mean["w"].numpy(), np.float32([4, -4]))
    np.testing.assert_array_equal(mean["n.running_mean"].numpy(), np.float32([8, -8]))
    assert mean["n"].numpy() == 5  # no float: the latest
    assert mean["n"].dtype == "int64"


def test_of_one_model_the_mean_is_that_model():
    average, latest = LatestWeightAverage(k=1), record([0.1, 0.7])
    average.add(1, record([9.0, 9.0]))
    average.add(2, latest)
    np.testing.assert_array_equal(average.mean(latest)["w"].numpy(), latest["w"].numpy())


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_the_mean_of_equal_models_is_them_to_the_last_bit(dtype):
    model = record(generator(0, "lawa").standard_normal(1000), dtype=dtype)
    average = LatestWeightAverage(k=7)
    for number in range(1, 8):
        average.add(number, model)
    for name in ("w", "n.running_mean"):
        found = average.mean(model)[name]
        assert found.dtype == model[name].dtype
        np.testing.assert_array_equal(found.numpy(), model[name].numpy())


def test_the_initial_model_and_those_between_do_not_count():
    average, first = LatestWeightAverage(k=2, every=3), record([100.0, 0.0])
    average.add(0, first)
    assert average.mean(first) is first
    for number in range(1, 8):
        latest = record([number, 0])
        average.add(number, latest)
        kept = [n for n in range(1, number + 1) if n % 3 == 0]
        expected = np.mean(kept) if kept else number
        assert average.mean(latest)["w"].numpy()[0] == pytest.approx(expected)


def test_a_model_that_is_changed_in_place_afterwards_does_not_change_the_mean():
    layout = layout_of(ArrayRecord({"w": Array(np.ones(2, np.float32))}))
    w = np.ones(2, np.float32)
    average, model = LatestWeightAverage(k=2), to_record(layout, w)
    average.add(1, model)
    w[:] = 50.0
    average.add(2, to_record(layout, np.float32([3.0, 3.0])))
    np.testing.assert_array_equal(average.mean(model)["w"].numpy(), np.float32([2, 2]))


def test_at_a_noise_floor_the_mean_of_k_models_has_a_variance_of_one_kth():
    rng = generator(1, "lawa")
    average, square, of_mean, w = LatestWeightAverage(k=10), 0.0, 0.0, np.zeros(400)
    for number in range(1, 400):
        # SGD on |w|^2 / 2 at rate 1: models are independent draws of the gradient's noise.
        w = rng.standard_normal(400)
        average.add(number, record(w))
        if number > 10:
            square += (w**2).sum()
            of_mean += (average.mean(record(w))["w"].numpy() ** 2).sum()
    assert of_mean / square == pytest.approx(1 / 10, rel=0.05)


class Recorded:
    def __init__(self):
        self.rows, self.late = [], []

    def costs(self, number):
        return {"round": number}

    def evaluation(self, number, metrics, arrays):
        self.rows.append(dict(metrics))

    def late_evaluation(self, metrics, costs, arrays):
        self.late.append((costs["round"], dict(metrics)))

    def settle(self):
        pass

    def enough(self):
        return None


class Clock:
    virtual = True

    def elapsed(self):
        return 0.0


def test_models_that_are_not_evaluated_are_in_the_mean_and_both_are_reported():
    recorder = Recorded()
    schedule = EvaluationSchedule(
        lambda number, arrays: MetricRecord({"loss": float(arrays["w"].numpy()[0])}),
        recorder,
        Clock(),
        num_rounds=100,
        every=4,
        average=LatestWeightAverage(k=3),
    )
    for number in range(6):
        schedule(number, record([number, 0]))
    schedule.close()
    assert recorder.rows == [
        {"loss": 0.0, "latest_loss": 0.0},
        {"loss": 3.0, "latest_loss": 4.0},
    ]
    assert recorder.late == [(5, {"loss": 4.0, "latest_loss": 5.0})]


# ---- runs ----------------------------------------------------------------------------------------


def ran(*overrides):
    """Returns a run and the models that its strategy made."""
    common = ["num_clients=6", "num_rounds=6", "model.hidden=[8]", "views=false"]
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", overrides=[*common, *overrides])
    experiment = build(config)
    models, means = [], []
    add = LatestWeightAverage.add

    def noting(self, number, model):
        add(self, number, model)
        models.append(np.concatenate([array.numpy().ravel() for array in model.values()]))

    def server(grid, context, recorder):
        serve(experiment, config, grid, recorder)
        if recorder.averaged_arrays is not None:
            arrays = recorder.averaged_arrays.values()
            means.append(np.concatenate([array.numpy().ravel() for array in arrays]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LatestWeightAverage, "add", noting)
        app = app_of(experiment)
        run = simulate(server, app, experiment.fleet, executor="serial", progress=False, seed=0)
    return run, models, means


@pytest.mark.parametrize(
    "strategy",
    [["fedavg"], ["fedbuff"], ["diloco", "num_clients=3"], ["quafl"]],
    ids=lambda given: given[0],
)
def test_any_strategy_with_a_model_goes_on_from_its_own_and_has_the_mean_evaluated(strategy):
    name, *more = strategy
    setting = [f"strategy={name}", *more, "evaluate_every=2"]
    plain, _, nothing = ran(*setting)
    run, models, (mean,) = ran(*setting, "lawa.k=3")
    assert nothing == []
    assert run.summary["model_sha256"] == plain.summary["model_sha256"]
    assert run.summary["trace_sha256"] == plain.summary["trace_sha256"]
    expected = np.mean(models[-3:], axis=0, dtype=np.float64)
    np.testing.assert_allclose(mean, expected, rtol=1e-6, atol=1e-7)
    for row, other in zip(run.history, plain.history, strict=True):
        assert row["latest_loss"] == other["loss"]
    assert run.history[-1]["loss"] != run.history[-1]["latest_loss"]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["lawa.k=0"], "lawa.k is 0"),
        (["lawa.k=2", "lawa.every=0.5"], "lawa.every is 0.5"),
        (["lawa.k=2", "strategy=dpsgd"], "lawa.k is 2"),
        (["lawa.k=2", "strategy=sync_st"], "lawa.k is 2"),
    ],
)
def test_what_has_no_mean_is_refused(overrides, key):
    with pytest.raises(ConfigError, match=key):
        ran(*overrides)
