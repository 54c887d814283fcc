"""What a run on a deployment is told, and the experiment's configuration composed from it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from fl.errors import ConfigError
from fl.runs.choices import announce
from fl.runs.configuration import check_values
from fl.runs.experiment import Experiment
from fl.runs.explaining import explain
from fl.runs.python import composed
from fl.runs.trust import check_targets

# Keys that say what the simulator does. On a deployment they can have no effect.
_OF_THE_SIMULATOR = {
    "app": "flwr run DIR runs another app",
    "fleet": (
        "the devices, links, availability and faults of a deployment are those of its SuperNodes"
    ),
    "hierarchy": "SuperNodes exchange with the SuperLink alone",
    "network": "the links of a deployment are there",
    "power": "the power of a deployment's devices is set on them",
    "battery": "the batteries of a deployment are what they are",
    "runtime": "what software takes is what it takes",
    "executor": "SuperNodes run the clients",
    "checkpoint": "the server of a deployment keeps nothing to resume a run from",
    "date": "clocks of a deployment show the time of their hosts",
    "fail_fast": "an exception in a ClientApp is an error reply, and in the log of its SuperNode",
}


@dataclass(frozen=True)
class Settings:
    """The app's part of a run's configuration, `[tool.flwr.app.config]` in pyproject.toml.

    Attributes:
        overrides: of the Hydra configuration, as on the command line of `fl`.
        directory: where the server writes the run; empty for a name made of the run's id.
        nodes: SuperNodes that must be connected before the run begins; 0 means all clients.
        wait_s: s to wait for them.
        calibrate: name of a runtime and a fleet that are to be measured, instead of an experiment,
            and written into the directory; "" runs the experiment.
    """

    overrides: tuple[str, ...] = ()
    directory: str = ""
    nodes: int = 0
    wait_s: float = 600.0
    calibrate: str = ""


@dataclass(frozen=True)
class Own:
    """What an app brings beside the parts of fl, and what travels with it as its code does.

    Attributes:
        config_dir: folder with members of groups, as `-cd` has it; None if there is none.
        modules: whose functions and classes a `_target_` may name.
    """

    config_dir: Path | None = None
    modules: tuple[str, ...] = ()


def read_settings(run_config: Mapping[str, Any]) -> Settings:
    """Returns the settings in `Context.run_config`.

    Raises:
        ConfigError: a value is of the wrong kind, or out of range.
    """
    text, directory = run_config.get("overrides", ""), run_config.get("directory", "")
    calibrate = run_config.get("calibrate", "")
    for name, value in (("overrides", text), ("directory", directory), ("calibrate", calibrate)):
        if not isinstance(value, str):
            raise ConfigError(
                f"the run's {name} is {value!r}; it must be text, in quotes: --run-config "
                "'overrides=\"strategy=fedbuff num_rounds=5\"'"
            )
    nodes, wait_s = run_config.get("nodes", 0), run_config.get("wait-s", 600.0)
    if isinstance(nodes, bool) or not isinstance(nodes, int) or nodes < 0:
        raise ConfigError(
            f"the run's nodes is {nodes!r}; it must be a whole number, and 0 waits for all clients"
        )
    if isinstance(wait_s, bool) or not isinstance(wait_s, int | float) or not 0 < wait_s < math.inf:
        raise ConfigError(f"the run's wait-s is {wait_s!r}; it must be a positive number of s")
    try:
        overrides = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"the run's overrides are {text!r}: {error}") from error
    return Settings(overrides, directory, nodes, float(wait_s), calibrate)


def compose_experiment(overrides: Sequence[str], own: Own | None = None) -> DictConfig:
    """Returns the configuration that `fl` would have run with these overrides.

    Args:
        overrides: as on the command line.
        own: parts of the app's own; None: there are none.

    Raises:
        ConfigError: an override is not one, has no effect on a deployment, or asks for something
            that only the simulator can do.
    """
    for override in overrides:
        if override.lstrip("+~").startswith("hydra"):
            raise ConfigError(
                f"{override} has no effect on a deployment: the run's directory says where it is "
                "written, and there is nothing else of Hydra's to configure"
            )
    own = Own() if own is None else own
    path = () if own.config_dir is None else (f"file://{own.config_dir.absolute()}",)
    try:
        with composed(overrides, path=path) as config:
            # A strategy may choose a fleet for the simulator; nobody has asked for it.
            strategy = HydraConfig.get().runtime.choices["strategy"]
            places = [f"hydra.searchpath=[{','.join(path)}]"] if path else []
            usual = compose("config", [*places, f"strategy={strategy}"])
            _check_simulator_only(config, usual)
            check_values(config)
            check_targets(config, own.modules)
            announce(apart_from=_OF_THE_SIMULATOR)
            for client in _clients(config):
                client.batching = "off"  # a SuperNode is one client, and trains it alone
            return config
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(explain(error) or str(error)) from error


def _check_simulator_only(config: DictConfig, defaults: DictConfig) -> None:
    for key, reason in _OF_THE_SIMULATOR.items():
        if _plain(config.get(key)) != _plain(defaults.get(key)):
            raise ConfigError(
                f"{key} is set, and is of the simulator only: {reason}; leave it out, or the "
                "+experiment=... that sets it"
            )
    if config.personal.every is not None:  # which the strategy's goal may have set
        raise ConfigError(
            f"personal.every is {config.personal.every}, and is of the simulator only: set it to "
            "null; clients of a deployment are asked by messages, with "
            "strategy.fraction_evaluate=0.5 and strategy.evaluate_model=personal, and what they "
            "reach is target.metric=client_accuracy"
        )
    for client in _clients(config):
        if client.batching not in ("auto", "off", False):
            raise ConfigError(
                f"client.batching is {client.batching}, and is of the simulator only: a SuperNode "
                "trains one client; leave it out"
            )


def _clients(config: DictConfig) -> list[DictConfig]:
    """Returns the configurations of the clients' rules: of every task, or the only one."""
    if config.get("tasks"):
        return [part.client for part in config.tasks.values()]
    return [config.client]


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def check_deployable(experiment: Experiment) -> None:
    """Checks that an experiment has no part that only the simulator has.

    Raises:
        ConfigError: it has an attack on what clients send, or reads the memory of devices.
    """
    if experiment.strategy.exchange.levels:
        raise ConfigError(
            "strategy.sub_models.capacity is ByMemory, which reads the devices of the fleet, and "
            "is of the simulator only: set strategy/capacity=fixed and "
            "strategy.sub_models.capacity.levels, whose entry i is of the SuperNode with "
            "partition-id=i"
        )
    attack = experiment.strategy.exchange.attack
    if attack is not None:
        raise ConfigError(
            f"attack is {type(attack).__name__}, and is of the simulator only: the server "
            "would forge what clients send, from the honest updates of their round; leave it out, "
            "or use an attack on the clients' data (label_flip, backdoor)"
        )
