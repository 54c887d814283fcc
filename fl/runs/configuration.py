"""What can be wrong with a configuration as a whole, and how to say it, each thing in one line.

Every part checks its own arguments, by the names that they have in Python, and what makes it
(`fl.runs.making`) puts the key of the part before them. This module finds what no part can see:
values of another kind than the default, keys that nobody knows, and keys that are set and not read
(`fl.runs.unread`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from hydra import compose
from hydra._internal.utils import _locate  # what `_target_` stands for, without a line in the log
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

import fl.runs.composing  # noqa: F401  what is composed below is composed once
from fl.errors import ConfigError
from fl.runs.explaining import no_key, several, without_value
from fl.runs.groups import key_of, named_group, top_of
from fl.runs.making import Problems, make
from fl.runs.unread import Unread, is_reference, unread_keys, what_is_set


def check_values(config: DictConfig) -> Given:
    """Checks a Hydra job's configuration against the defaults it overrides; returns what was given.

    A value must be of its default's kind: a number, true or false, text, a list, or keys below;
    null is always allowed, and a default of null allows everything. Below a `_target_`, keys that
    were added are arguments, for the target to judge. What overrides set must be read.

    Raises:
        ConfigError: values are of another kind, nobody reads a key, or a group has several members
            where one can be. It tells of all of them.
    """
    problems = Problems()
    overrides: Any = OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False)
    problems += several(overrides)
    problems.stop()  # Hydra has mixed their keys
    given = Given.of_job(config)
    problems += _unknown(config, given.defaults)
    problems += _of_another_kind(config, given.defaults, "")
    problems += unread_keys(given.set, Unread(config), in_sweep=given.in_sweep)
    problems.stop()
    return given


def take_away(config: DictConfig, given: Given) -> None:
    """Takes arguments of members from classes that were put in their place and have none such.

    What the user has set stays, for the class to refuse.
    """
    for path in given.set:
        place, _, last = path.rpartition(".")
        if last != "_target_":
            continue
        node, default = OmegaConf.select(config, place), OmegaConf.select(given.defaults, place)
        if not (isinstance(node, DictConfig) and isinstance(default, DictConfig)):
            continue
        try:
            known = inspect.signature(_locate(node["_target_"])).parameters
        except Exception:  # whoever makes the part says what is wrong with it
            continue
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            continue
        for key in map(str, default):
            full = f"{place}.{key}"
            is_set = any(path == full or path.startswith(f"{full}.") for path in given.set)
            if key in node and key not in known and not key.startswith("_") and not is_set:
                with read_write(node), open_dict(node):
                    del node[key]


@dataclass(frozen=True)
class Given:
    """What the overrides of a Hydra job are about.

    Attributes:
        defaults: the configuration without them, but for the choice of members.
        set: the keys that they set to another value than they would have, to their text.
        in_sweep: whether the job is one of a sweep.
    """

    defaults: DictConfig
    set: Mapping[str, str]
    in_sweep: bool

    @classmethod
    def of_job(cls, config: DictConfig) -> Given:
        """Returns what is given for the job that Hydra runs."""
        job = HydraConfig.get()
        overrides: Any = OmegaConf.to_container(job.overrides.task, resolve=False)
        groups = {o for o in overrides if set(named_group(o)) & set(job.runtime.choices)}
        chosen = [o for o in overrides if o in groups]
        # Composing takes a good part of the time before a run begins.
        same = len(chosen) == len(overrides)
        path = [o for o in job.overrides.hydra if o.startswith("hydra.searchpath=")]
        defaults = deepcopy(config) if same else compose(job.job.config_name, [*path, *chosen])
        with open_dict(defaults):  # of a group without a member, whose keys may be given one by one
            for key in (
                key_of(group) for group, member in job.runtime.choices.items() if not member
            ):
                if key == top_of(key):
                    defaults.setdefault(key, None)
        keys = {o: key_of(o) for o in overrides if not o.startswith("~")}
        known = {override: key for override, key in keys.items() if top_of(key) in defaults}
        set_keys = what_is_set(config, defaults, known, groups)
        return cls(defaults, set_keys, job.mode == RunMode.MULTIRUN)


def _unknown(config: DictConfig, defaults: DictConfig) -> Iterator[str]:
    for name in map(str, config):
        if name not in defaults:
            yield no_key(name, defaults)
    for group, default in defaults.items():
        if isinstance(default, DictConfig) and default and "_target_" not in default:
            for key in config.get(group) or {}:
                if key not in default:
                    yield no_key(f"{group!s}.{key!s}", defaults)


def _of_another_kind(config: DictConfig, defaults: DictConfig, prefix: str) -> Iterator[str]:
    for key in map(str, config):
        try:
            value = config[key]
        except OmegaConfBaseException as error:
            yield without_value(error, f"{prefix}{key}")
            continue
        default = _value(defaults, key)
        if is_reference(config, key):
            continue  # what it refers to is looked at where it is
        special = _special(f"{prefix}{key}", value, default)
        if special is not None:
            yield _in_range(config, f"{prefix}{key}", special)
        elif isinstance(default, DictConfig) and isinstance(value, DictConfig):
            yield from _of_another_kind(value, default, f"{prefix}{key}.")
        elif default is not None and value is not None and not _makes_values(default):
            kind = kind_of(default)
            if kind_of(value) != kind:
                shown = OmegaConf.to_container(default) if OmegaConf.is_list(default) else default
                wrong = f"{prefix}{key} is {value!r}; it must be {kind}, like the default {shown}"
                # A mapping over a number is meant for the key beside it that holds one.
                by_name = _like(key, defaults) if isinstance(value, DictConfig) else None
                remedy = f"; by names, it is +{prefix}{by_name}.NAME=VALUE" if by_name else ""
                yield wrong + remedy


def _like(key: str, defaults: DictConfig) -> str | None:
    """Returns the key of much the same name that is a mapping, empty by default."""
    mappings = [
        str(name)
        for name in defaults
        if isinstance(held := _value(defaults, str(name)), DictConfig) and not held
    ]
    return next(iter(get_close_matches(key, mappings, n=1)), None)


def _makes_values(default: Any) -> bool:
    """Returns whether a default calls a function, by its name: what it returns may be given too."""
    target = default.get("_target_") if isinstance(default, DictConfig) else None
    return isinstance(target, str) and target.rpartition(".")[2].islower()


_CONVERT = ("none", "partial", "object", "all")  # what Hydra understands; it takes others as none


def _special(key: str, value: Any, default: Any) -> str | None:
    """Returns what is wrong by the rules for all keys of a name, and for every number."""
    last = key.rpartition(".")[2]
    if last in ("seed", "num_clients"):  # mostly references to the root's keys of these names
        least = int(last == "num_clients")
        whole = isinstance(value, int) and value >= least
        if (value is None or isinstance(value, int | float)) and not whole:
            return f"{key} is {value}; it must be a whole number, at least {least}"
    if last == "_convert_" and value not in _CONVERT:
        return f"{key} is {value!r}; it must be one of {', '.join(_CONVERT)}"
    if last == "_target_" and not value:
        return f"{key} is {value!r}; it must be the import path of what is called"
    if isinstance(value, float) and (math.isnan(value) or value == -math.inf):
        finite = not isinstance(default, float) or math.isfinite(default)
        if finite:  # attacks are free to send what is not a number
            return (
                f"{key} is {value}; it must be a number{'' if math.isnan(value) else ' above -inf'}"
            )
    return None


def _in_range(config: DictConfig, key: str, said: str) -> str:
    """Returns what is wrong with a number that is none, with the range if its part knows one.

    Args:
        config: where the number is.
        key: its full key.
        said: what is known without the part; returned for all other mistakes.
    """
    value = _value(config, key.rpartition(".")[2])
    if top_of(key) == key or not (isinstance(value, float) and math.isnan(value)):
        return said
    root: Any = config._get_root()
    try:
        make(root, top_of(key))
    except ConfigError as error:
        lines = str(error).splitlines()
        return next((line for line in lines if line.startswith(f"{key} is ")), said)
    except Exception:  # of another key
        return said
    return said


def _value(node: DictConfig, key: str) -> Any:
    """Returns a value; None if there is none, or if it refers to something that is missing."""
    try:
        return node.get(key)
    except OmegaConfBaseException:
        return None


def kind_of(value: Any) -> str:
    """Returns in words what kind of configuration value this is."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "a list" if OmegaConf.is_list(value) else "a group of keys"
