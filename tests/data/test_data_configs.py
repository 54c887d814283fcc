"""The configuration groups `data` and `partition` against the functions they name."""

import inspect
from functools import partial
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import fl
from fl.data import Source, federate
from fl.errors import ConfigError
from fl.runs.making import make

CONF = Path(fl.__file__).parent / "conf"
DATA = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
PARTITIONS = sorted(path.stem for path in (CONF / "partition").glob("*.yaml"))

ROOT = """
defaults: [_self_, partition: iid, model: mlp, data: digits]
hydra: {{searchpath: ['file://{conf}']}}
num_clients: 10
seed: 0
"""


@pytest.fixture
def configure(tmp_path):
    (tmp_path / "config.yaml").write_text(ROOT.format(conf=CONF))

    def configured(*overrides: str):
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return compose("config", overrides=list(overrides))

    return configured


@pytest.mark.parametrize("name", DATA)
def test_every_key_of_a_source_is_an_argument_and_the_other_way_round(configure, name):
    function = make(configure(f"data={name}"), "data")
    assert set(function.keywords) == set(inspect.signature(function.func).parameters)


@pytest.mark.parametrize("name", PARTITIONS)
def test_every_key_of_a_partition_is_an_argument_and_the_other_way_round(configure, name):
    rule = "{_target_:fl.strategies.GradientCoding,n:10}"  # says who holds what
    scheme = [f"+strategy.rule={rule}"] if name == "coded" else []
    function = make(configure(f"partition={name}", *scheme), "partition")
    parameters = set(inspect.signature(function.func).parameters)
    assert {"source", *function.keywords} == parameters


@pytest.mark.parametrize("path", [*CONF.glob("data/*"), *CONF.glob("partition/*")])
def test_every_file_opens_with_a_command_and_explains_its_keys(path):
    first, *_ = lines = path.read_text().splitlines()
    assert first.startswith(("# fl ", "# FL_DATA_DIR=... fl "))
    assert f"{path.parent.name}={path.stem}" in first
    plain = {"_target_", "_convert_", "defaults", "seed", "num_partitions"}
    for line in lines:
        key = line.partition(":")[0]
        assert line.startswith(("#", " ")) or key in plain or " # " in line, line


@pytest.mark.parametrize("name", ["synthetic", "synthetic_iid", "stdlib", "shakespeare"])
def test_sources_with_clients_of_their_own_default_to_them(configure, name):
    assert configure(f"data={name}").partition._target_ == "fl.data.partition.natural"
    other = configure(f"data={name}", "partition=dirichlet").partition
    assert other._target_ == "fl.data.partition.dirichlet"


def test_text_defaults_to_a_model_of_text(configure):
    assert configure("data=stdlib").model._target_ == "fl.models.CharLSTM"


@pytest.mark.parametrize(
    "overrides",
    [
        ["data=digits"],
        ["data=digits", "partition=dirichlet", "num_clients=40"],
        ["data=synthetic", "num_clients=12", "data.alpha=1", "data.beta=1"],
        ["data=synthetic_iid"],
        ["data=stdlib", "num_clients=30"],
        ["data=stdlib", "partition.num_partitions=null"],
    ],
    ids=" ".join,
)
def test_a_configuration_gives_one_partition_per_client(configure, overrides):
    config = configure(*overrides)
    data = federate(make(config, "data"), make(config, "partition"))
    expected = config.partition.num_partitions
    assert data.num_partitions == expected or expected is None
    assert min(data.size(p) for p in range(data.num_partitions)) >= 1
    x, y = data.client(0)
    assert tuple(x.shape[1:]) == data.input_shape
    assert int(y.max()) < data.num_classes


def test_errors_reach_the_user_as_they_are_raised(configure):
    config = configure("data=digits", "partition=natural")
    with pytest.raises(ConfigError, match="'digits' has no natural clients"):
        federate(make(config, "data"), make(config, "partition"))


def test_any_partitioner_of_flower_can_be_named_in_a_configuration(configure):
    config = OmegaConf.create(
        {
            "_target_": "fl.data.partition.deal",
            "seed": 0,
            "partitioner": {
                "_target_": "flwr_datasets.partitioner.ExponentialPartitioner",
                "_partial_": True,
                "num_partitions": 3,
            },
        }
    )
    source = make(configure(), "data")
    assert isinstance(source, partial)
    assert isinstance(source(), Source)
    data = federate(source, make(OmegaConf.create({"partition": config}), "partition"))
    assert data.num_partitions == 3
