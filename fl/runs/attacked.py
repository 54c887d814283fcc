"""Who attacks in a run, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from omegaconf import DictConfig

from fl.attacks import Attack, Backdoor, Combined, Poisoning, byzantine_clients, poisoned
from fl.data import Examples, FederatedData
from fl.errors import ConfigError
from fl.runs.kinds import expected
from fl.runs.making import blaming, make
from fl.runs.settings import places_of


class Attackers(NamedTuple):
    """Who attacks, and how.

    Attributes:
        byzantine: the clients that do.
        poisoning: of data, by the key that it is from; of a learning task, its own or that of all.
        forging: of what is sent.
    """

    byzantine: tuple[int, ...] = ()
    poisoning: Mapping[str, tuple[str, Poisoning]] = {}
    forging: Attack | None = None


def attackers(config: DictConfig, attack: Attack | Poisoning | Combined | None) -> Attackers:
    """Returns who attacks, and how."""
    poisoning: dict[str, tuple[str, Poisoning]] = {}
    forging = attack if isinstance(attack, Attack) else None
    for task, place in places_of(config).items():
        if isinstance(attack, Combined):
            forging = attack.forging
            poisoning[task] = ("attack.poisoning", attack.poisoning)
        elif isinstance(attack, Poisoning):
            poisoning[task] = ("attack", attack)
        if task and place.get("attack") is not None:
            own = make(place, "attack")
            if isinstance(own, Attack | Combined):
                raise ConfigError(
                    f"tasks.{task}.attack._target_ is {place.attack._target_}, which forges what "
                    "clients send, and they send updates of all tasks: choose it by attack=..., "
                    f"and for the data of one task attack@tasks.{task}.attack=label_flip or "
                    "backdoor"
                )
            own = expected(place, "attack", own, Poisoning)
            poisoning[task] = (f"tasks.{task}.attack", own)
    if attack is None and not poisoning:
        if config.num_byzantine and config.get("attack") is None:
            raise ConfigError(
                f"num_byzantine is {config.num_byzantine}, but there is no attack: choose one, for "
                "example attack=alie, or leave num_byzantine out"
            )
        return Attackers()
    byzantine = byzantine_clients(config.num_clients, config.num_byzantine, config.seed)
    return Attackers(byzantine, poisoning, forging)


def poisoned_data(
    data: FederatedData, attack: Attackers, config: DictConfig, task: str
) -> tuple[FederatedData, Examples | None]:
    """Returns what clients train on, and held-out examples as a backdoor wants them classified.

    Raises:
        ConfigError: the data cannot be poisoned in this way.
    """
    if task not in attack.poisoning:
        return data, None
    key, poisoning = attack.poisoning[task]
    clients, seed = config.num_clients, config.seed
    try:
        with blaming(config, key):
            dirty = poisoned(data, poisoning, attack.byzantine, clients, seed)
    except ConfigError as error:
        if not task or key.startswith("tasks."):
            raise
        raise ConfigError(
            f"{error} (tasks.{task}). To poison the data of some tasks, or each in its own way, "
            f"choose attack@tasks.NAME.attack=... in the place of attack"
        ) from error
    backdoored = None
    if isinstance(poisoning, Backdoor):
        backdoored = Examples(*poisoning.test_set(data.test.x, data.test.y))
    return dirty, backdoored
