"""The configuration group `client` against the constructors it names."""

import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import get_class
from omegaconf import OmegaConf

import fl
from fl.clients import ExponentialDecay, TrainingApp
from fl.runs.making import make

FOLDER = Path(fl.__file__).parent / "conf" / "client"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# Others are one of these with other values.
OWN_RULES = [
    "adamw",
    "coded_gradient",
    "conservative",
    "gradient",
    "microadam",
    "momentum",
    "muon",
    "per_fedavg",
    "pfedme",
    "sam",
    "sgd",
]
PARTS = sorted(path for kind in ("correction", "estimator") for path in (FOLDER / kind).glob("*"))
SUPPLIED = {"model", "data", "metrics", "mods", "uplink", "downlink"}
SUPPLIED |= {"correction", "local_layers", "contact", "estimator"}


def keys_of(node) -> set[str]:
    return {key for key in node if not key.startswith("_")}


def member(name):
    with initialize_config_module("fl.conf", version_base=None):
        config = compose("config", [f"client={name}"]).client
    OmegaConf.set_struct(config, False)
    return config


def test_there_is_a_configuration_for_every_rule():
    rules = {member(name).rule._target_ for name in NAMES}
    assert rules == {member(name).rule._target_ for name in OWN_RULES}
    assert len(rules) == len(OWN_RULES)


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_the_constructors_arguments(name):
    config = member(name)
    app = inspect.signature(TrainingApp).parameters
    assert keys_of(config) - SUPPLIED == set(app) - SUPPLIED
    rule = inspect.signature(get_class(config.rule._target_)).parameters
    assert keys_of(config.rule) == set(rule)


@pytest.mark.parametrize("path", PARTS, ids=lambda path: path.stem)
def test_keys_of_what_goes_with_a_rule_are_its_arguments(path):
    config = OmegaConf.load(path)
    assert keys_of(config) == set(inspect.signature(get_class(config._target_)).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_it_makes_an_app(name, federated, mlp):
    config = member(name)
    steps = "round_schedule" in config.rule
    if steps:
        config.rule.round_schedule = {"_target_": "fl.clients.ExponentialDecay", "gamma": 0.99}
    app = make(OmegaConf.create({"client": config}), "client")(
        model=lambda: mlp, data=federated((4, 5))
    )
    assert isinstance(app, TrainingApp)
    if not steps:
        return
    assert app.rule.lr == config.rule.lr
    assert app.rule.round_schedule == ExponentialDecay(0.99)
