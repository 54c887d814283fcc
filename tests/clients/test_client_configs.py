"""The configuration group `client` against the constructors it names."""

import inspect
from pathlib import Path

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

import fl
from fl.clients import ExponentialDecay, TrainingApp

FOLDER = Path(fl.__file__).parent / "conf" / "client"
# A member with `defaults` is another one with other values; tests/test_configs.py composes it.
NAMES = sorted(
    path.stem for path in FOLDER.glob("*.yaml") if "defaults" not in OmegaConf.load(path)
)
CORRECTIONS = sorted(path.stem for path in (FOLDER / "correction").glob("*.yaml"))
SUPPLIED = {"model", "data", "mods", "uplink", "downlink", "correction"}


def keys_of(node) -> set[str]:
    return {key for key in node if not key.startswith("_")}


def test_there_is_a_configuration_for_every_rule():
    assert NAMES == [
        "adamw",
        "gradient",
        "microadam",
        "momentum",
        "sam",
        "sgd",
    ]


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_the_constructors_arguments_and_defaults_agree(name):
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    app = inspect.signature(TrainingApp).parameters
    assert keys_of(config) == set(app) - SUPPLIED
    rule = inspect.signature(get_class(config.rule._target_)).parameters
    assert keys_of(config.rule) == set(rule)


@pytest.mark.parametrize("name", CORRECTIONS)
def test_keys_of_a_correction_are_its_arguments(name):
    config = OmegaConf.load(FOLDER / "correction" / f"{name}.yaml")
    assert keys_of(config) == set(inspect.signature(get_class(config._target_)).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_it_makes_an_app(name, federated, mlp):
    config = OmegaConf.load(FOLDER / f"{name}.yaml")
    steps = "lr" in config.rule
    if steps:
        config.rule.round_schedule = {"_target_": "fl.clients.ExponentialDecay", "gamma": 0.99}
    app = instantiate(config)(model=lambda: mlp, data=federated((4, 5)))
    assert isinstance(app, TrainingApp)
    if not steps:
        return
    assert app.rule.lr == config.rule.lr
    assert app.rule.round_schedule == ExponentialDecay(0.99)


@pytest.mark.parametrize("name", [*NAMES, *(f"correction/{name}" for name in CORRECTIONS)])
def test_every_key_has_a_comment(name):
    for line in (FOLDER / f"{name}.yaml").read_text().splitlines():
        bare = line.startswith(("#", "_target_", "rule:", "  _target_"))
        assert bare or "# " in line, line
