"""What `fl.runs.composing` relies on, and that what it remembers is what Hydra would compose."""

from importlib.metadata import version
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir, initialize_config_module
from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf, open_dict

import fl
from fl.runs import composing
from fl.runs.composing import CHECKED_WITH, files_stay

CONF = Path(fl.__file__).parent / "conf"
LINES = (
    [],
    ["strategy=fedprox", "seed=3", "client.rule.lr=0.5"],
    ["seed=3", "client.rule.lr=0.25", "strategy=fedprox"],
    ["~selection", "+train_config.a=1", "fleet=uniform", "hydra.job.name=other"],
    ["preaggregation=[nnm,bucketing]", "aggregator=krum", "compressor@then=int8"],
    ["tasks=digits_and_synthetic", "strategy=fedast", "hydra/job_logging=none"],
    ["+experiment=demo", "lawa={k:2,every:3}", "seed=1", "seed=2"],
)


@pytest.fixture
def forgetful(monkeypatch):
    """Begins without anything remembered."""
    monkeypatch.setattr(composing, "_of_packages", composing._Memory())


@pytest.fixture
def reads(monkeypatch):
    """The configurations that Hydra's own function reads."""
    paths, read = [], composing._read
    monkeypatch.setattr(
        composing, "_read", lambda self, path: paths.append(path) or read(self, path)
    )
    return paths


def composed(overrides):
    with initialize_config_module("fl.conf", version_base=None, job_name="fl"):
        return compose("config", overrides, return_hydra_config=True)


def shown(config):
    return OmegaConf.to_yaml(config), repr(config._metadata.flags)


def of_hydra(overrides, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(ConfigRepository, "load_config", composing._read)
        patch.setattr(config_loader_impl, "create_defaults_list", composing._tree)
        patch.setattr(defaults_list, "_create_interpolation_map", composing._choices)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", composing._merged)
        return composed(overrides)


def test_the_versions_were_checked():
    assert version("hydra-core") in CHECKED_WITH, (
        "read hydra/_internal/{config_loader_impl,defaults_list,config_repository}.py against "
        "fl/runs/composing.py, then add the version"
    )


@pytest.mark.parametrize("overrides", LINES, ids=" ".join)
def test_what_is_remembered_is_what_hydra_composes(overrides, forgetful, monkeypatch):
    of_others = [line for line in LINES if line != overrides]
    expected = shown(of_hydra(overrides, monkeypatch))
    assert shown(composed(overrides)) == expected  # composed
    for others in of_others:
        composed(others)
    assert shown(composed(overrides)) == expected  # remembered


def test_values_are_put_in_without_reading_a_file(forgetful, reads):
    composed(["strategy=fedprox", "seed=1"])
    assert reads
    reads.clear()
    config = composed(["strategy=fedprox", "seed=2", "client.correction.mu=0.5"])
    assert (config.seed, config.client.correction.mu, reads) == (2, 0.5, [])


def test_whoever_changes_a_configuration_changes_his_own():
    first = composed(["strategy=fedprox"])
    with open_dict(first):
        first.strategy.own = 1
        first.hydra.job.name = "own"
        del first.client["rule"]
    second = composed(["strategy=fedprox"])
    assert "own" not in second.strategy
    assert second.hydra.job.name == "fl"
    assert "rule" in second.client


@pytest.mark.parametrize("wrong", ["strategy=fedprx", "stratgy=fedprox", "client.rule.lrr=1"])
def test_what_cannot_be_composed_is_refused_every_time(wrong):
    for _ in range(2):
        with pytest.raises(ConfigCompositionException, match=wrong.partition("=")[0]):
            composed([wrong])
    assert composed(["strategy=fedprox"]).strategy


def test_folders_of_the_user_are_read_anew_but_in_a_block(tmp_path):
    (tmp_path / "experiment").mkdir()
    own = tmp_path / "experiment" / "own.yaml"

    def seed(number=None):
        if number is not None:
            own.write_text(f"# @package _global_\nseed: {number}\n")
        overrides = ["+experiment=own", f"hydra.searchpath=['file://{tmp_path}']"]
        return composed(overrides).seed

    assert (seed(1), seed(2)) == (1, 2)
    with files_stay():
        assert (seed(), seed(3)) == (2, 2)
        with files_stay():  # another command, in the same process
            assert (seed(), seed(4)) == (3, 3)
        assert seed() == 2
    assert seed() == 4


def test_a_list_of_defaults_may_name_what_was_chosen(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\ndefaults:\n  - /topology@mine: ${experiment}\n"
    (tmp_path / "experiment" / "ring.yaml").write_text(text)
    given = ["+experiment=ring", f"hydra.searchpath=['file://{tmp_path}']"]
    assert composed(given).mine == composed(["topology=ring"]).topology


def test_applications_of_others_are_left_alone(tmp_path):
    for number in (1, 2):
        (tmp_path / "config.yaml").write_text(f"a: {number}\n")
        with files_stay(), initialize_config_dir(str(tmp_path), version_base=None):
            assert compose("config").a == number
            (tmp_path / "config.yaml").write_text("a: 3\n")
            assert compose("config").a == 3


def test_of_many_things_the_last_asked_for_are_remembered(monkeypatch):
    monkeypatch.setattr(composing, "_MOST", 2)
    memory, made = composing._Memory(), []
    for key in "abacab":
        memory.of(key, lambda key=key: made.append(key))
    assert made == ["a", "b", "c", "b"]


def test_a_command_reads_each_file_once_and_merges_them_once(
    forgetful, reads, call, monkeypatch, capsys
):
    merged, of_hydra = [], composing._merged

    def merge(loader, defaults, repository):
        merged.append(defaults)
        return of_hydra(loader, defaults, repository)

    monkeypatch.setattr(composing, "_merged", merge)
    with pytest.raises(SystemExit):  # refused when it is built
        call("executor=serial", "strategy.fraction_train=2.0", "num_clients=8")
    assert "strategy.fraction_train" in capsys.readouterr().err
    assert len(merged) == 1
    assert len(reads) == len(set(reads))
