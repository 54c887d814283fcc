"""What can be wrong with a configuration as a whole, and how to say it in one line.

Every part checks its own arguments. This module finds what no part can see: values of another kind
than the default, keys that nobody reads, and keys that have no effect in this kind of run.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from importlib.resources import files
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import OverrideParseException
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from fl.errors import ConfigError, SimulationError

_APP_ONLY = ("charge", "num_partitions", "run_config")
_OWN_ONLY = (
    "aggregator",
    "attack",
    "central_epochs",
    "client",
    "compressor",
    "data",
    "evaluate_every",
    "evaluate_train",
    "model",
    "num_byzantine",
    "num_rounds",
    "partition",
    "round_timeout_s",
    "strategy",
    "tasks",
    "train_config",
)


def check_values(config: DictConfig) -> None:
    """Checks a Hydra job's configuration against the defaults it overrides.

    A value must be of its default's kind: a number, true or false, text, a list, or keys below;
    null is always allowed, and a default of null allows everything. Below a `_target_`, keys that
    were added are arguments, for the target to judge.

    Raises:
        ConfigError: a value is of another kind, nobody reads a key, or a key has no effect.
    """
    job = HydraConfig.get()
    keys = {override: _key(override) for override in job.overrides.task}
    groups = [override for override, key in keys.items() if key in job.runtime.choices]
    defaults = compose(job.job.config_name, groups)
    for name in map(str, config):
        if name not in defaults:
            raise ConfigError(_no_key(name))
    _compare(config, defaults, "")
    for group, default in defaults.items():
        if isinstance(default, DictConfig) and default and "_target_" not in default:
            for key in config[group] or {}:
                if key not in default:
                    raise ConfigError(_no_key(f"{group!s}.{key!s}"))
    for override, key in keys.items():
        top = re.split(r"[./@]", key)[0]
        if config.app is not None and top in _OWN_ONLY:
            raise ConfigError(
                f"{override} has no effect with app={config.app}, which brings its own: leave it "
                "out, or change the app's configuration with +run_config.KEY=VALUE"
            )
        if config.get("tasks") and top in ("client", "data", "model", "partition"):
            raise ConfigError(
                f"{override} has no effect, as several tasks are learnt: change "
                f"tasks.{next(iter(config.tasks))}.{key}, for example"
            )
        if config.app is None and top in _APP_ONLY:
            raise ConfigError(
                f"{override} has no effect without app=DIR: it is for the ClientApps of others"
            )


def _key(override: str) -> str:
    return override.lstrip("+~").split("=")[0].split("@")[0]


def _compare(config: DictConfig, defaults: DictConfig, prefix: str) -> None:
    for key in map(str, config):
        try:
            value = config[key]
        except OmegaConfBaseException as error:
            raise ConfigError(_without_value(error, f"{prefix}{key}")) from error
        default = _value(defaults, key)
        _check_special(f"{prefix}{key}", value, default)
        if isinstance(default, DictConfig) and isinstance(value, DictConfig):
            _compare(value, default, f"{prefix}{key}.")
        elif default is not None and value is not None:
            kind = kind_of(default)
            if kind_of(value) != kind:
                raise ConfigError(
                    f"{prefix}{key} is {value!r}; it must be {kind}, like the default "
                    f"{OmegaConf.to_container(default) if OmegaConf.is_list(default) else default}"
                )


_CONVERT = ("none", "partial", "object", "all")  # what Hydra understands; it takes others as none


def _check_special(key: str, value: Any, default: Any) -> None:
    """Checks what holds for every key of a name, and for every number."""
    last = key.rpartition(".")[2]
    if last in ("seed", "num_clients"):  # mostly references to the root's keys of these names
        least = int(last == "num_clients")
        whole = isinstance(value, int) and value >= least
        if (value is None or isinstance(value, int | float)) and not whole:
            raise ConfigError(f"{key} is {value}; it must be a whole number, at least {least}")
    if last == "_convert_" and value not in _CONVERT:
        raise ConfigError(f"{key} is {value!r}; it must be one of {', '.join(_CONVERT)}")
    if last == "_target_" and not value:
        raise ConfigError(f"{key} is {value!r}; it must be the import path of what is called")
    if isinstance(value, float) and (math.isnan(value) or value == -math.inf):
        finite = not isinstance(default, float) or math.isfinite(default)
        if finite:  # attacks are free to send what is not a number
            raise ConfigError(f"{key} is {value}; it must be a number above -inf")


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


def make(config: DictConfig, name: str) -> Any:
    """Returns what a group's `_target_` gives; for a partial one, after checking its arguments.

    Hydra finds an argument that does not exist only when the target is called, which for a partial
    one is later, out of its sight.

    Raises:
        ConfigError: the target has no such argument.
    """
    with blaming(name):
        made = instantiate(config.get(name))
    if isinstance(made, DictConfig | ListConfig | str | int | float):
        target = config[name].get("_target_") if OmegaConf.is_dict(config[name]) else None
        got = f"{name} is {made}, without _target_"
        if target is not None:
            got = f"{name}._target_ is {target}, which makes {made!r}"
        raise ConfigError(
            f"{got}; it must be null or make a part of a run: choose a member, {name}=NAME"
        )
    if isinstance(made, partial):
        with blaming(f"{name}._target_"):
            known = inspect.signature(made.func).parameters
        takes_all = any(p.kind is p.VAR_KEYWORD for p in known.values())
        for key in made.keywords:
            if key not in known and not takes_all:
                target = config[name].get("_target_")
                there = ", ".join(known) or "no arguments"
                raise ConfigError(f"there is no key '{name}.{key}'; {name} ({target}) has: {there}")
    return made


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Turns an exception while a part is built into a message that names the part's keys.

    What Hydra calls at once it blames itself; this is for what is called later, with the same
    arguments from the configuration.

    Raises:
        ConfigError: anything but an error that says what is wrong.
    """
    try:
        yield
    except Exception as error:
        if explain(error) is not None:
            raise
        raise ConfigError(
            f"{name} cannot be built from its keys: {type(error).__name__}: {error}"
        ) from error


def explain(error: BaseException) -> str | None:
    """Returns in one line what an exception says about the configuration; None if it does not.

    The exception, or one that caused it, must be ours, Hydra's or OmegaConf's.
    """
    from hydra.errors import HydraException

    chain = list(_causes(error))
    for kind in (ConfigError, HydraException, OmegaConfBaseException, SimulationError):
        for link in chain:
            # A simulation that stopped because of another exception needs its traceback.
            if isinstance(link, kind) and not (kind is SimulationError and link.__cause__):
                return " ".join(_reworded(link).split())
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _reworded(error: BaseException) -> str:
    """Returns an exception's message, or a better one where Hydra leaves the user to search."""
    message = str(error)
    if isinstance(error, ConfigError):
        return message
    if isinstance(error, OverrideParseException) and error.override not in message:
        return f"{error.override} cannot be read: {message}"
    if found := re.search(r"Could not override '([^']+)'", message):
        return _no_key(found[1])
    if found := re.search(r"Could not find '([^']+)/([^']+)'", message):
        members = _members(found[1])
        return f"there is no {found[1]}={found[2]}; there are: {', '.join(members)}"
    where = re.search(r"full_key: (\S+)", message)
    key = where[1] if where else "the configuration"
    if isinstance(error, OmegaConfBaseException):
        return _without_value(error, key)
    if found := re.search(r"Error locating target '([^']+)'", message):
        return f"{key}._target_ is {found[1]}, which cannot be imported: {error.__cause__}"
    if found := re.search(r"Error in call to target '([^']+)'", message):
        return f"{key}: {found[1].rpartition('.')[2]} refuses its arguments: {error.__cause__}"
    return message.split("\nSee https://")[0]


def _without_value(error: OmegaConfBaseException, key: str) -> str:
    message = str(error).split("\n")[0]
    if isinstance(error, MissingMandatoryValue):
        return f"{key} has no default: give {key}=VALUE"
    if found := re.search(r"Environment variable '([^']+)' not found", message):
        return f"{key} needs the environment variable {found[1]}: set it, or give {key}=VALUE"
    return f"{key}: {message}"


def _no_key(key: str) -> str:
    top, _, rest = key.partition(".")
    if top in ("run_config", "train_config") and rest:
        return f"there is no key '{key}': to add it, write +{key}=VALUE"
    if key in _known_keys():  # of some member of a group, but not of the one that was chosen
        return (
            f"there is no key '{key}' here, only in other members of {top}: choose one that has "
            f"it; a sweep over {top}=A,B takes only keys that all members have: run one for each"
        )
    return f"there is no key '{key}'{_nearest_key(key)} (fl --cfg job shows every key)"


def _nearest_key(key: str) -> str:
    known = sorted(set(_known_keys()))
    parent, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    near = [beside[name] for name in get_close_matches(last, beside, n=3)]
    if not near:  # right, but in the wrong place
        near = [name for name in known if name.rpartition(".")[2] == last][:3]
    if not near and beside and parent:
        return f"; {parent} may have: {', '.join(beside)}"
    near = near or get_close_matches(key, known, n=1)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _members(group: str) -> list[str]:
    folder = files("fl").joinpath("conf", *group.split("/"))
    names = [entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.is_file()]
    return sorted(name for name in names if not name.startswith("_"))


def _known_keys() -> Iterator[str]:
    """Yields the dotted names of the keys of the root configuration and of all group members."""

    def collect(node: Any, prefix: str) -> Iterator[str]:
        if isinstance(node, DictConfig):
            for key in map(str, node):
                if key not in ("defaults", "hydra", "_target_"):
                    yield f"{prefix}{key}"
                    yield from collect(node._get_node(key), f"{prefix}{key}.")

    for entry in files("fl").joinpath("conf").iterdir():
        if entry.is_dir():
            yield entry.name
            for member in entry.iterdir():
                if member.name.endswith(".yaml"):
                    prefix = "" if entry.name == "experiment" else f"{entry.name}."
                    yield from collect(OmegaConf.create(member.read_text("utf-8")), prefix)
        elif entry.name.endswith(".yaml"):
            yield from collect(OmegaConf.create(entry.read_text("utf-8")), "")
