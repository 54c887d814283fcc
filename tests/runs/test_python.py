"""Runs from Python: the same as on the command line, and what a notebook shows of them."""

from __future__ import annotations

import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import fl
from fl.errors import ConfigError
from fl.reports.runs import read_run
from fl.runs.python import composed

SMALL = {
    "data": "digits",
    "model": "logistic",
    "num_clients": 6,
    "num_rounds": 2,
    "executor": "serial",
    "progress": False,
    "views": False,
}


def test_it_is_the_run_of_the_command_line(tmp_path, monkeypatch, capsys):
    from fl.cli import main

    where = tmp_path / "line"
    words = ["strategy=fedbuff", "client.rule.lr=0.05", "client.local_epochs=2"]
    words += [f"{key}={str(value).lower()}" for key, value in SMALL.items()]
    monkeypatch.setattr("sys.argv", ["fl", *words, f"hydra.run.dir={where}"])
    main()
    ours = fl.run(
        "client.rule.lr=0.05",
        strategy="fedbuff",
        directory=tmp_path / "python",
        **SMALL,
        **{"client.local_epochs": 2},
    )
    line = read_run(where)
    for key in ("config_digest", "trace_sha256", "model_sha256"):
        assert ours.summary[key] == line.summary[key]
    assert read_run(tmp_path / "python").summary["model_sha256"] == line.summary["model_sha256"]
    assert (tmp_path / "python" / "model.safetensors").exists()


def test_without_a_directory_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = fl.run(**SMALL)
    assert run.directory is None
    assert not list(tmp_path.iterdir())
    assert repr(run) == f"<SimulatedRun completed: 2 rounds, {final(run)}>"
    assert list(run.frame()["round"]) == [0, 1, 2]
    assert run.frame().columns.tolist()[:2] == ["round", "time_s"]
    assert len(run.plot("accuracy").axes) == 3
    assert "simulated time" in run._repr_html_()


def final(run):
    return ", ".join(f"{k} {v:.4g}" for k, v in list(run.summary["final"].items())[:2])


@pytest.mark.parametrize(
    "value",
    [
        *(1, 0.1, 1e-30, float("inf"), True, None, "a b", "it's", "x=y,z", "${seed}", ""),
        *('a "b" \\ c', "a\\", "\\\\'x", "a\\'b'"),
        *([1, "a", None], {"a": 1, "b": [True, "c d"]}, []),
    ],
    ids=str,
)
def test_values_arrive_as_they_are(value):
    with composed([]) as config:
        before = OmegaConf.to_container(config.run_config)
    assert before == {}
    from fl.runs.python import _text

    with composed([f"+run_config.x={_text(value)}"]) as config:
        found = OmegaConf.to_container(config, resolve=False)["run_config"]["x"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"strategy": "fedbuf"}, "strategy=fedbuf"),
        ({"client.rule.lrr": 1}, "client.rule.lrr"),
        ({"num_rounds": "x"}, "num_rounds is 'x'"),
        ({"seed": object()}, "of type object"),
        ({"hydra.run.dir": "x"}, "hydra.run.dir"),
    ],
)
def test_what_cannot_be_is_refused_as_on_the_command_line(keys, says):
    with pytest.raises(ConfigError, match=says):
        fl.run(**{**SMALL, **keys})


def test_a_program_that_is_a_hydra_application_keeps_its_own():
    before = HydraConfig.instance().cfg, GlobalHydra.instance().hydra
    with composed(["seed=3"]) as config:
        with composed(["seed=4"]) as inner:
            assert inner.seed == 4
        assert config.seed == 3
        assert HydraConfig.get().overrides.task == ["seed=3"]
    assert (HydraConfig.instance().cfg, GlobalHydra.instance().hydra) == before


def test_configuration_of_ones_own_is_found(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "few.yaml").write_text(
        "# few digits\ndefaults: [digits]\ntest_fraction: 0.5\n"
    )
    run = fl.run(config_dir=tmp_path, **{**SMALL, "data": "few"})
    assert run.summary["config"]["data"]["test_fraction"] == 0.5
