"""Parts made of a configuration's keys, whose errors have the keys in full."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict

from fl.errors import ConfigError, ConfigErrors
from fl.runs.explaining import causes, explain, without
from fl.runs.unread import canonical

OF_EVERY_RUN = ("executor", "fleet", "runtime")
OF_OUR_RUNS = ("strategy", *OF_EVERY_RUN)

# Groups whose members are made in two steps: the rest of their arguments is not in the YAML.
_LATER = frozenset({"checkpoint", "client", "data", "feedback", "model", "partition"})


class Problems:
    """Collects what is wrong, to tell all of it at once.

    Args:
        names: keys that have another one's value, to that key, by which the user sets it.
    """

    def __init__(self, names: Mapping[str, str] | None = None) -> None:
        self.messages: list[str] = []
        self._first: Exception | None = None
        self._names = names or {}

    def __iadd__(self, messages: Iterable[str]) -> Problems:
        """Adds messages, but those that it has."""
        said = (self._by_its_name(text) for text in messages)
        self.messages += [text for text in dict.fromkeys(said) if text not in self.messages]
        return self

    def _by_its_name(self, message: str) -> str:
        key = message.partition(" ")[0]
        return f"{self._names.get(key, key)}{message.removeprefix(key)}"

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Takes an exception of the block, if it says what is wrong with the configuration."""
        try:
            yield
        except Exception as error:
            message = explain(error)
            if message is None:
                raise
            self._first = self._first or error
            self += message.splitlines()

    def stop(self) -> None:
        """Raises a ConfigError if something is wrong."""
        if self.messages:
            one = len(self.messages) == 1
            error = ConfigError(self.messages[0]) if one else ConfigErrors(*self.messages)
            raise error from self._first


def referable(config: DictConfig) -> DictConfig:
    """Returns a copy in which data and partition say that they are made in two steps.

    `make` knows that; Hydra does not, where another part refers to them, as rates of availability
    to `${data}`.
    """
    config = deepcopy(config)
    with open_dict(config):
        for name in ("data", "partition"):
            if OmegaConf.is_dict(config.get(name)):
                config[name]["_partial_"] = True
    return config


def absent(config: DictConfig, names: Iterable[str]) -> Iterator[str]:
    """Yields which groups have no member, of those that a run cannot be without."""
    for name in names:
        if config.get(name) is None:
            full = f"{config._get_full_key(None)}.{name}".lstrip(".")
            choice = full if full == name else f"{name}@{full}"
            yield f"there is no {full}: choose one, {choice}=NAME (fl help {name} lists them)"


def make(config: DictConfig, name: str) -> Any:
    """Returns what a group's `_target_` gives: a part, or what makes it of the other arguments.

    Hydra finds an argument that does not exist only when the target is called, which for a partial
    one is later, out of its sight.

    Raises:
        ConfigError: the target has no such argument, or refuses one; the message has its full key.
    """
    part = config.get(name)
    if part is None:
        return None
    remedy = (
        f"it must be null or make a part of a run: choose a member, {name}=NAME, or in the "
        f"defaults of a YAML, - override /{name}: NAME"
    )
    if not OmegaConf.is_dict(part) or "_target_" not in part:
        raise ConfigError(f"{name} is {part}, without _target_; {remedy}")
    with blaming(config, name):
        made = instantiate(part, _partial_=True) if name in _LATER else instantiate(part)
    if isinstance(made, DictConfig | ListConfig | str | int | float):
        raise ConfigError(f"{name}._target_ is {part._target_}, which makes {made!r}; {remedy}")
    if isinstance(made, partial):
        with blaming(config, f"{name}._target_"):
            known = inspect.signature(made.func).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
        for key in made.keywords:
            if key not in known and not takes_all:
                target = config[name].get("_target_")
                there = ", ".join(known) or "no arguments"
                raise ConfigError(
                    f"there is no key '{name}.{key}'; {name} ({target}) has: {there}"
                    f"{without(name, key)}"
                )
    return made


@contextmanager
def blaming(config: DictConfig, name: str) -> Iterator[None]:
    """Turns an exception while a part is built into a message that has the part's full keys.

    A part says `lr is -1`, the name that its argument has in Python. From here that is
    `client.rule.lr`, or `aggregator.f` of a rule that a strategy refers to.

    Args:
        config: the configuration, or a part of it.
        name: the key there of the part that is built.

    Raises:
        ConfigError: anything but an error of Hydra that says what is wrong.
    """
    try:
        yield
    except Exception as error:
        full = f"{config._get_full_key(None)}.{name}".lstrip(".")
        root: Any = config._get_root()
        chain = list(causes(error))
        refused = next((link for link in chain if isinstance(link, ConfigError)), None)
        if refused is not None:
            place = canonical(root, next(filter(None, map(_where, chain)), full))
            lines = (_located(line, root, place) for line in str(refused).splitlines())
            raise ConfigErrors(*lines) from error
        said, where = explain(error), next(filter(None, map(_where, chain)), None)
        if said is not None and where is not None:
            raise ConfigError(said.replace(where, canonical(root, where))) from error
        if said is not None:
            raise
        raise ConfigError(
            f"{full} cannot be built from its keys: {type(error).__name__}: {error}"
        ) from error


def _where(error: BaseException) -> str | None:
    """Returns the key of the part that Hydra was making."""
    found = re.search(r"full_key: (\S+)", str(error))
    return found[1] if found else None


def _located(message: str, root: DictConfig, place: str) -> str:
    """Returns a part's message with the part's key before the argument that it is about.

    It begins with that argument, or with the name of the part's class; or it is about something
    else than one of its arguments, or has a full key already.
    """
    named = message.partition(": ")[0]
    for key in (place, *map(str, root)):  # a part that another one has asked, as a strategy F
        node: Any = OmegaConf.select(root, key) if key == place else root._get_node(key)
        target = node.get("_target_") if OmegaConf.is_dict(node) and node else None
        if isinstance(target, str) and target.rpartition(".")[2] == named:
            place, message = key, message.removeprefix(f"{named}: ")
            break
    keys = OmegaConf.select(root, place)
    begins = re.match(r"(\w+)([.=]?)", message)
    if begins and begins[2] == "." and begins[1] in root:
        return message
    if begins and OmegaConf.is_dict(keys) and begins[1] in keys:
        return f"{place}.{message}"
    return message if begins and begins[2] and begins[1] in root else f"{place}: {message}"
