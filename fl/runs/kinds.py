"""What the members of groups make, and what is wrong with what makes something else."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from flwr.serverapp.strategy import Strategy
from hydra._internal.utils import _locate  # what `_target_` stands for, without a line in the log
from omegaconf import DictConfig, OmegaConf

from fl.aggregation import Aggregator, PreAggregation
from fl.attacks import Attack, Combined, Poisoning
from fl.clients import Correction, Estimator, LocalLayers, Rule
from fl.collectives import Collective
from fl.compression import Channel, Compressor
from fl.errors import ConfigError
from fl.execution import Executor
from fl.models import Adapter
from fl.runs.making import Problems, blaming, make
from fl.selection import Selection
from fl.simulation.cost import CostModel
from fl.simulation.world.battery import Battery
from fl.simulation.world.checkpointing import Checkpointing
from fl.simulation.world.fleet import Fleet
from fl.simulation.world.hierarchies import AggregatorMachine, Hierarchy
from fl.simulation.world.networks import NetworkModel
from fl.simulation.world.power import Power
from fl.simulation.world.runtime import Runtime
from fl.simulation.world.slowdowns import Distribution
from fl.strategies.pipeline_rule import StageRecovery
from fl.strategies.round_rule import RoundRule
from fl.strategies.staleness import StalenessWeight
from fl.topologies import Topology, Weights

_KINDS: Mapping[str, Any] = {  # what the member of a group makes
    "strategy": Strategy,
    "fleet": Fleet,
    "executor": Executor,
    "runtime": Runtime,
    "compressor": Channel,
    "then": Compressor,
    "feedback": partial,
    "downlink": Channel,
    "attack": Attack | Poisoning | Combined,
    "cost_model": CostModel,
    "adapter": Adapter,
    "network": NetworkModel,
    "power": Power,
    "battery": Battery,
    "hierarchy": Hierarchy,
}


_INSIDE: Mapping[str, type] = {  # what is made for a part of these, if its key names a class
    "aggregator": Aggregator,
    "allreduce": Collective,
    "client.correction": Correction,
    "client.estimator": Estimator,
    "client.local_layers": LocalLayers,
    "client.rule": Rule,
    "fleet.checkpointing": Checkpointing,
    "fleet.client_slowdown": Distribution,
    "fleet.task_slowdown": Distribution,
    "hierarchy.machine": AggregatorMachine,
    "selection": Selection,
    "strategy.rule.recovery": StageRecovery,
    "strategy.rule.server_optimizer": RoundRule,
    "strategy.rule.staleness": StalenessWeight,
    "topology": Topology,
    "topology.base": Topology,
    "topology.weights": Weights,
}


def blamed(config: DictConfig, name: str, make: Callable[..., Any]) -> Any:
    """Returns a function whose errors have the full keys of the part that it makes."""

    def made(*args: Any) -> Any:
        with blaming(config, name):
            return make(*args)

    return made


def part_made(config: DictConfig, name: str) -> Any:
    """Returns what a group's member makes; None if there is none.

    Raises:
        ConfigError: it refuses its arguments, or is of another kind.
    """
    made = make(config, name)
    return None if made is None else expected(config, name, made, _KINDS[name])


def equipped(config: DictConfig, parts: Mapping[str, Any]) -> dict[str, Fleet]:
    """Returns the fleet with the network, power and battery that are configured, if there is one.

    Raises:
        ConfigErrors: there is no such part, or not for these clients.
    """
    fleet, problems = parts.get("fleet"), Problems()
    for name in ("network", "power", "battery"):
        with problems.noted():
            part = part_made(config, name)
            if part is not None and fleet is not None:
                with blaming(config, name):
                    fleet = replace(fleet, **{name: part})
    problems.stop()
    return {} if fleet is None else {"fleet": fleet}


def expected(config: DictConfig, name: str, made: Any, kind: Any) -> Any:
    """Returns what a part's `_target_` has made.

    Raises:
        ConfigError: it is of another kind.
    """
    if not isinstance(made, kind):
        key = config[name]._get_full_key("_target_")
        raise ConfigError(_wrong(key, config[name]._target_, type(made), kind))
    return made


def of_another_kind(config: DictConfig) -> Iterator[str]:
    """Yields what is wrong with classes that the keys of parts inside of others name."""
    before = {f"preaggregation.{key}": PreAggregation for key in config.get("preaggregation") or ()}
    for key, kind in {**_INSIDE, **before}.items():
        node = OmegaConf.select(config, key)
        if not OmegaConf.is_dict(node) or not isinstance(target := node.get("_target_"), str):
            continue
        try:
            found = _locate(target)
        except Exception:  # told where the part is made
            continue
        if isinstance(found, type) and not issubclass(found, kind):
            yield _wrong(f"{node._get_full_key(None)}._target_", target, found, kind)


def _wrong(key: str, target: str, made: type, kind: Any) -> str:
    kinds = " or ".join(k.__name__ for k in getattr(kind, "__args__", [kind]))
    return f"{key} is {target}, which makes {made.__name__}; it must make {kinds}"
