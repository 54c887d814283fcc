"""Constants from measurements: fits that know what they are to find, and runs that they predict."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import yaml
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

import fl
from fl.cli import main
from fl.deployment import fitting
from fl.deployment.calibrating import TIME, answer, conclude
from fl.deployment.checking import check, fit_start
from fl.deployment.local import LocalDeployment
from fl.deployment.measuring import (
    Measured,
    StepTime,
    from_metrics,
    measure_calls,
    process_age_s,
    to_metrics,
)
from fl.errors import ConfigError
from fl.flower.identity import assume_identity
from fl.flower.private import deflated, inflated
from fl.runs.build import build
from fl.runs.python import composed

A, B, F = 2e-4, 1.5e-9, 4e10


def steps(noise=0.0, repetitions=5):
    rng = np.random.default_rng(0)
    made = []
    for d in (1_000, 20_000, 300_000):
        for batch in (8, 128):
            seconds = A + B * d + 6.0 * d * batch / F
            drawn = seconds * (1 + noise * rng.standard_normal(repetitions))
            made.append(StepTime(d, 6.0 * d * batch, tuple(drawn.tolist())))
    return made


def measured(busy=1.0, **more):
    given = {
        "start": [4.0, 4.2, 4.1],
        "age": [5.0, 5.2, 5.1],
        "decode": [1e-9] * 3,
        "encode": [2e-9] * 3,
        "aggregate": [2e-10] * 3,
        "steps": steps(),
    }
    return Measured(**{**given, **more}, processor_s=10.0, wall_s=10.0 * busy)


def test_the_fit_finds_what_steps_were_made_of():
    fit = fitting.fit_steps(steps())
    assert fit.step_s.value == pytest.approx(A)
    assert fit.step_s_per_parameter.value == pytest.approx(B)
    assert fit.flops.value == pytest.approx(F)
    assert fit.worst < 1e-9


def test_intervals_of_a_noisy_fit_hold_what_it_was_made_of():
    fit = fitting.fit_steps(steps(noise=0.05, repetitions=30))
    for constant, true in ((fit.step_s, A), (fit.step_s_per_parameter, B), (fit.flops, F)):
        assert constant.low < true < constant.high
        assert constant.high / constant.low < 1.5
    assert 0 < fit.error < 0.05


def test_steps_of_nodes_that_were_measured_differently_are_fitted_together():
    fit = fitting.fit_steps([*steps(repetitions=3), *steps(repetitions=5)])
    assert fit.flops.value == pytest.approx(F)


def test_no_term_of_a_fit_is_negative():
    made = [StepTime(s.parameters, s.flops, tuple(x - A for x in s.seconds)) for s in steps()]
    assert fitting.fit_steps(made).step_s.value == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    "made",
    [steps()[:2], [StepTime(10, x, (0.1,)) for x in (1e6, 1e7, 1e8)], [StepTime(1, 1, (0.0,))] * 3],
)
def test_steps_that_say_nothing_are_refused(made):
    with pytest.raises(ConfigError):
        fitting.fit_steps(made)


def test_a_median_has_an_interval_if_there_are_samples_for_one():
    constant = fitting.median([1.0, 2.0, 9.0])
    assert (constant.value, constant.low, constant.high) == (2.0, 1.0, 9.0)
    assert "n = 3" in str(constant)
    assert "1 sample" in str(fitting.median([1.0]))
    with pytest.raises(ConfigError):
        fitting.median([])


def test_on_a_busy_host_a_start_is_processor_time():
    assert fitting.constants(measured())[0]["start_s"].value == 5.1
    assert fitting.constants(measured(busy=3.0))[0]["start_s"].value == 4.1
    assert not fitting.warning(measured())
    assert "3.00 times" in fitting.warning(measured(busy=3.0))


def test_what_was_measured_travels_as_metrics():
    assert from_metrics(to_metrics(measured())) == measured()
    for name, value in (
        ("decode", [-1.0]),
        ("start", [float("nan")]),
        ("flops", [1.0]),
        ("wall-s", 1),
        ("step-seconds", "much"),
    ):
        changed = {**to_metrics(measured()), name: value}
        with pytest.raises((ValueError, TypeError)):
            from_metrics(MetricRecord(changed))


def test_a_node_says_how_long_its_process_took_to_start():
    assume_identity()
    message = Message(RecordDict({"config": ConfigRecord({"work": False})}), 1, TIME)
    told = from_metrics(answer(message))
    assert 0 < told.start[0] <= time.process_time()
    assert told.age[0] == pytest.approx(process_age_s(), abs=1.0)
    assert told.steps == []


def test_a_message_comes_back_from_the_objects_that_it_travels_as():
    assume_identity()
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    message = Message(RecordDict({"arrays": ArrayRecord({"w": Array(x)})}), 1, "train")
    name, objects = deflated(message)
    assert (inflated(name, objects).content["arrays"]["w"].numpy() == x).all()
    inner = max(objects, key=lambda key: len(objects[key]))  # the chunk of bytes
    with pytest.raises(TypeError):
        inflated(inner, objects)


def test_what_is_written_are_members_that_a_run_can_choose(tmp_path, capsys):
    conclude(measured(busy=2.0), "mine", tmp_path, "On a test")
    with composed(
        ["runtime=mine", "fleet=mine", "executor=serial"], path=(f"file://{tmp_path}",)
    ) as config:
        experiment = build(config)
    assert experiment.runtime.start_s == 4.1
    assert experiment.runtime.poll_s == 3.0  # as runtime=flower has it
    assert experiment.runtime.reference_flops == pytest.approx(F)
    assert experiment.fleet.devices.flops[0] == pytest.approx(F)
    text = (tmp_path / "runtime" / "mine.yaml").read_text("utf-8")
    assert "n = 3" in text
    assert "2.00 times" in text
    assert "start_s" in capsys.readouterr().out


def test_the_spread_of_starts_has_an_interval():
    drawn = np.exp(0.2 * np.random.default_rng(0).standard_normal(200)).tolist()
    sigma = fitting.constants(measured(age=drawn))[0]["start_sigma"]
    assert sigma.low < 0.2 < sigma.high
    assert sigma.samples == 200
    assert "start_sigma" not in fitting.constants(measured(age=[4.0]))[0]


def test_calls_are_by_the_wall_and_on_a_busy_host_processor_time():
    calls = {"calls": [0.006, 0.007, 0.008], "call_age": [0.01, 0.02, 0.03]}
    assert fitting.constants(measured(**calls))[0]["call_s"].value == 0.02
    assert fitting.constants(measured(busy=3.0, **calls))[0]["call_s"].value == 0.007
    assert "call_s" not in fitting.constants(measured())[0]


@pytest.mark.slow
def test_a_call_takes_both_ends_some_milliseconds():
    found = Measured()
    with LocalDeployment([]) as local:
        measure_calls(found, local.address, local.superlink, repetitions=3)
    assert len(found.calls) == len(found.call_age) == 3
    for processor, wall in zip(found.calls, found.call_age, strict=True):
        assert 1e-4 < processor < 0.1
        assert wall > 1e-4


@pytest.mark.parametrize("text", ["a: 1\ncall_s: 0.5 # old\nb: 2\n", "a: 1\nb: 2\n"])
def test_one_key_of_a_file_is_set_and_the_others_stay(text, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    fitting.set_key(path, "call_s", fitting.median([0.25, 0.25]), "on a test")
    written = yaml.safe_load(path.read_text("utf-8"))
    assert written == {"a": 1, "call_s": 0.25, "b": 2}
    assert "0.25" in capsys.readouterr().out


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that is known to the last digit: a simulated one, said to be a deployment's."""
    folder, place = tmp_path_factory.mktemp("conf"), tmp_path_factory.mktemp("run")
    conclude(measured(), "mine", folder, "On a test")
    words = ["num_clients=3", "num_rounds=3", "strategy.fraction_train=1.0", "model=logistic"]
    own = ["runtime=mine", "fleet=mine", "executor=serial"]
    fl.run(*words, *own, directory=place / "run", config_dir=folder, views=False, progress=False)
    path = place / "run" / "summary.json"
    summary = json.loads(path.read_text("utf-8"))
    summary["extra"]["deployment"] = {"overrides": words}
    path.write_text(json.dumps(summary), "utf-8")
    return folder, path.parent


def test_a_run_that_went_as_predicted_is_predicted_without_an_error(run, capsys, monkeypatch):
    folder, place = run
    both = check(place, "mine", folder)
    assert set(both) > {"round, median", "message, mean", "whole run"}
    for real, predicted in both.values():
        assert predicted == pytest.approx(real, rel=1e-9)
    words = ["calibrate", "mine", "-cd", str(folder), "--check", str(place)]
    monkeypatch.setattr("sys.argv", ["fl", *words])
    main()
    assert "app_start" in capsys.readouterr().out


def test_starts_are_found_in_the_messages_of_a_run(run, tmp_path, capsys):
    folder, place = run
    for group in ("runtime", "fleet"):
        (tmp_path / group).mkdir()
        text = (folder / group / "mine.yaml").read_text("utf-8")
        text = text.replace("start_s: 5.1", "start_s: 1.0")
        (tmp_path / group / "mine.yaml").write_text(text, "utf-8")
    fit_start([place], "mine", tmp_path)
    assert "start_s is" in capsys.readouterr().out
    with composed(["runtime=mine"], path=(f"file://{tmp_path}",)) as config:
        # Polls at other times are within their periods.
        assert config.runtime.start_s == pytest.approx(5.1, abs=0.5)


@pytest.mark.parametrize("words", [["1x"], ["a", "--nodes", "0"], ["a", "--check", "nowhere"]])
def test_a_command_that_cannot_be_says_why(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fl", "calibrate", *words])
    with pytest.raises(SystemExit):
        main()
    assert words[-1] in capsys.readouterr().err


def test_without_words_it_says_what_it_takes(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fl", "calibrate"])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert said.startswith("fl: the following arguments are required: NAME; ")
    assert "usage: fl calibrate [-h] [--config-dir DIR] [--nodes N | --runs RUN" in said
