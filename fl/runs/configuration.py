"""What can be wrong with a configuration as a whole, and how to say it, each thing in one line.

Every part checks its own arguments, by the names that they have in Python; `make` puts the key of
the part before them. This module finds what no part can see: values of another kind than the
default, keys that nobody knows, and keys that are set and not read (`fl.runs.unread`).
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra._internal.utils import _locate  # what `_target_` stands for, without a line in the log
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

import fl.runs.composing  # noqa: F401  what is composed below is composed once
from fl.errors import ConfigError, ConfigErrors, SimulationError
from fl.runs.groups import (
    is_choice,
    members_of,
    named_group,
    parts_of,
    text,
    top_groups,
    without_null,
)
from fl.runs.unread import (
    Unread,
    canonical,
    few,
    is_reference,
    unread_keys,
    what_is_set,
)

OF_EVERY_RUN = ("executor", "fleet")
OF_OUR_RUNS = ("strategy", *OF_EVERY_RUN)

# Groups whose members are made in two steps: the rest of their arguments is not in the YAML.
_LATER = frozenset({"checkpoint", "client", "data", "feedback", "model", "partition"})


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
    problems += _several(overrides)
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
            for key in (_key(group) for group, member in job.runtime.choices.items() if not member):
                if key == _top(key):
                    defaults.setdefault(key, None)
        keys = {o: _key(o) for o in overrides if not o.startswith("~")}
        known = {override: key for override, key in keys.items() if _top(key) in defaults}
        set_keys = what_is_set(config, defaults, known, groups)
        return cls(defaults, set_keys, job.mode == RunMode.MULTIRUN)


def _several(overrides: Iterable[str]) -> Iterator[str]:
    """Yields which choices name several members of a group that makes one part.

    Members may be several where each has a place of its own, as those of preaggregation.
    """
    parser = OverridesParser.create()
    for override in filter(is_choice, overrides):
        (parsed,) = parser.parse_overrides([override])
        names, (name, group) = parsed.value(), named_group(override)
        if not isinstance(names, list) or len(names) < 2:
            continue
        there = dict(members_of(group))
        own = [n for n in names if n in there and "# @package" not in text(group, n)]
        if sum(any("_target_" in part for part in parts_of(group, n)) for n in own) > 1:
            yield (
                f"{override} names {len(names)} members, and {name} is one part: choose one, "
                f"{name}={own[0]}, or run one after another, -m {name}={','.join(map(str, names))}"
            )


def _key(override: str) -> str:
    """Returns the key that an override is for: the package of a group, if it names one."""
    name, group = named_group(override)
    package = name.partition("@")[2].rpartition(":")[2]
    return package or group.replace("/", ".")


def _top(key: str) -> str:
    return key.partition(".")[0]


def _unknown(config: DictConfig, defaults: DictConfig) -> Iterator[str]:
    for name in map(str, config):
        if name not in defaults:
            yield _no_key(name, defaults)
    for group, default in defaults.items():
        if isinstance(default, DictConfig) and default and "_target_" not in default:
            for key in config[group] or {}:
                if key not in default:
                    yield _no_key(f"{group!s}.{key!s}", defaults)


def _of_another_kind(config: DictConfig, defaults: DictConfig, prefix: str) -> Iterator[str]:
    for key in map(str, config):
        try:
            value = config[key]
        except OmegaConfBaseException as error:
            yield _without_value(error, f"{prefix}{key}")
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
                yield f"{prefix}{key} is {value!r}; it must be {kind}, like the default {shown}"


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
    if _top(key) == key or not (isinstance(value, float) and math.isnan(value)):
        return said
    root: Any = config._get_root()
    try:
        make(root, _top(key))
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
                    f"{_without(name, key)}"
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
        chain = list(_causes(error))
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


_PYTHON = re.compile(r"(?<=[= ])(None|True|False)(?=[;,:) ]|\.? |\.?$)")
_AS_YAML = {"None": "null", "True": "true", "False": "false"}


def _as_yaml(found: re.Match[str]) -> str:
    return _AS_YAML[found[1]]


def explain(error: BaseException, there: DictConfig | None = None) -> str | None:
    """Returns what an exception says about the configuration; None if it does not.

    The exception, or one that caused it, must be ours, Hydra's or OmegaConf's. There is one line
    for each thing that is wrong.

    Args:
        error: the exception.
        there: the configuration that could not be changed, for keys that are near.
    """
    from hydra.errors import HydraException

    chain = list(_causes(error))
    for kind in (ConfigError, HydraException, OmegaConfBaseException, SimulationError):
        for link in chain:
            # A simulation that stopped because of another exception needs its traceback.
            if isinstance(link, kind) and not (kind is SimulationError and link.__cause__):
                lines = (
                    link.problems if isinstance(link, ConfigErrors) else [_reworded(link, there)]
                )
                return "\n".join(_PYTHON.sub(_as_yaml, " ".join(line.split())) for line in lines)
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _reworded(error: BaseException, there: DictConfig | None) -> str:
    """Returns an exception's message, or a better one where Hydra leaves the user to search."""
    message = str(error)
    if isinstance(error, ConfigError):
        return message
    if isinstance(error, OverrideParseException) and error.override not in message:
        said = message.split("\nSee https://")[0]
        return f"{error.override} cannot be read: {said}"
    if found := re.search(r"Could not override '([^']+)'", message):
        return _no_key(found[1], there)
    if found := re.search(r"already at '([^']+)'", message):
        return f"{found[1]} is there already: {found[1]}=VALUE, without the +, replaces it"
    if found := re.search(r"Error merging override \+*([^=]+)=(.*)", message):
        at, value = found[1], found[2]
        return (
            f"{at}={value} cannot take the place of what {at} holds: take that away first, "
            f"~{at} +{at}={value}"
        )
    if found := re.search(r"Could not find '([^']+)/([^']+)'", message):
        members = _members(found[1])
        if near := get_close_matches(found[2], members, n=3):
            offered = f"; did you mean {' or '.join(near)}? (fl --help lists all)"
        else:
            offered = f"; there are: {', '.join(members)}" if members else ""
        return f"there is no {found[1]}={found[2]}{offered}"
    where = re.search(r"full_key: (\S+)", message)
    key = where[1] if where else "the configuration"
    if isinstance(error, OmegaConfBaseException):
        return _without_value(error, key)
    if "Expected a callable target" in message:
        return f"{key}._target_ must be the import path of something that can be called"
    if found := re.search(r"Error locating target '([^']+)'", message):
        return _not_importable(f"{key}._target_", found[1], error.__cause__)
    if found := re.search(r"Error in call to target '([^']+)'", message):
        stranger = re.search(r"unexpected keyword argument '(\w+)'", str(error.__cause__))
        remedy = _without(key, stranger[1]) if stranger else ""
        name = found[1].rpartition(".")[2]
        return f"{key}: {name} refuses its arguments: {error.__cause__}{remedy}"
    return message.split("\nSee https://")[0]


def _without(part: str, key: str) -> str:
    return f"; leave it out (~{part}.{key}, if it is the member's)"


def _not_importable(key: str, target: str, cause: BaseException | None) -> str:
    top = target.partition(".")[0]
    if find_spec(top) is None:
        return (
            f"{key} is {target}, and there is no module {top}: neither {top}.py nor {top}/ in "
            f"{Path.cwd()}, where fl was called, nor an installed package of that name"
        )
    module, _, name = target.rpartition(".")
    with suppress(Exception):  # which is the cause, and told below
        found = import_module(module)
        known = getattr(found, "__all__", None) or vars(found)
        near = get_close_matches(name, known, n=1)
        meant = f"; did you mean {module}.{near[0]}?" if near else ""
        return f"{key} is {target}, and the module {module} has no {name}{meant}"
    return f"{key} is {target}, which cannot be imported: {cause}"


def _without_value(error: OmegaConfBaseException, key: str) -> str:
    message = str(error).split("\n")[0]
    if found := re.search(r"Interpolation key '([^']+)' not found", message):
        group = _top(found[1])
        chosen = HydraConfig.get().runtime.choices.get(group) if HydraConfig.initialized() else None
        lacks = f"{group}={chosen} does not have" if chosen else "is not there"
        return (
            f"{key} is taken from {found[1]}, which {lacks}: choose another {group}, or give "
            f"{key}=VALUE"
        )
    if isinstance(error, MissingMandatoryValue):
        return f"{key} has no default: give {key}=VALUE"
    if found := re.search(r"Environment variable '([^']+)' not found", message):
        return f"{key} needs the environment variable {found[1]}: set it, or give {key}=VALUE"
    return f"{key}: {message}"


def _no_key(name: str, there: DictConfig | None = None) -> str:
    """Returns that there is no such key, and what may have been meant.

    Args:
        name: the key, or a group with its package.
        there: the configuration of the chosen members.
    """
    key = _key(name)
    top, _, rest = key.partition(".")
    if top in ("run_config", "train_config") and rest:
        return f"there is no key '{key}': to add it, write +{key}=VALUE"
    if rest == "_target_" and top in top_groups():
        return f"no {top} is chosen whose class this could replace: to give one, write +{key}=VALUE"
    present = set() if there is None else set(_keys(there, ""))
    others = set(_known_keys()) - present
    above = [key[: dot.start()] for dot in re.finditer(r"\.", key)]
    for part in (key, *reversed(above)):  # of some member of a group, but not of the chosen one
        if part in others and part not in top_groups():
            return (
                f"there is no key '{part}' here, only in other members of {top}: choose one that "
                f"has it ({few(_with_key(part))}); a sweep over {top}=A,B takes only keys that "
                "all members have: run one for each, with the same hydra.sweep.dir to compare them"
            )
        if part in present:
            break
    near = _nearest_key(key, present) or _nearest_key(key, others)
    return f"there is no key '{key}'{near} (fl --cfg job shows every key)"


def _nearest_key(key: str, of: Collection[str]) -> str:
    known = sorted(of)
    parent, _, last = key.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    near = [beside[name] for name in get_close_matches(last, beside, n=3)]
    if not near:  # right, or nearly, but in the wrong place
        near = [name for name in known if name.rpartition(".")[2] == last][:3]
    if not near and parent:
        below = {n.rpartition(".")[2]: n for n in known if n.startswith(f"{_top(key)}.")}
        near = [below[name] for name in get_close_matches(last, below, n=2, cutoff=0.8)]
    if not near and beside and parent:
        return f"; {parent} may have: {', '.join(beside)}"
    near = near or get_close_matches(key, known, n=1)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def composition_problems(
    overrides: Sequence[str], config_name: str, more: Sequence[str] = ()
) -> list[str]:
    """Returns what is wrong with overrides that cannot be composed, each by itself.

    Of a group whose choice is wrong nothing below is looked at: it may be right for the member that
    was meant. Of a sweep each choice of a member is looked at.

    Args:
        overrides: as on the command line.
        config_name: of the root configuration.
        more: overrides that are right.
    """
    parser = OverridesParser.create()
    problems: dict[str, list[str]] = {override: [] for override in overrides}
    right, wrong, swept = list(more), list[str](), dict[str, list[str]]()
    with _another_hydra():
        # Choices first: they decide which keys there are.
        for override in sorted(overrides, key=lambda o: not is_choice(o)):
            key = _key(override)
            if any(key.startswith(f"{group}.") for group in wrong):
                continue
            try:
                (parsed,) = parser.parse_overrides([override])
                texts = [override]
                if parsed.is_discrete_sweep():
                    name = override.partition("=")[0]
                    texts = [f"{name}={value}" for value in parsed.sweep_string_iterator()]
                elif parsed.is_sweep_override():
                    continue  # its values are a sampler's
                if is_choice(override):
                    for text in without_null(texts):
                        compose(config_name, [*right, text])
                else:  # must be a key of every member that is swept over
                    for choice in swept.get(_top(key), [""]):
                        chosen = without_null(filter(None, [choice]))
                        compose(config_name, [*right, *chosen, texts[0]])
            except Exception as error:
                there = None
                with suppress(Exception):
                    there = compose(config_name, right)
                said = explain(error, there) or str(error)
                if "Config group override must be" in said:
                    name = named_group(override)[0]
                    said = (
                        f"{override} names no member: leave it out, or ~{name} takes the group away"
                    )
                said = next(_several([override]), said)
                problems[override] += said.splitlines()
                wrong += [key] if is_choice(override) else []
            else:
                right += without_null(texts[:1])
                if is_choice(override) and len(texts) > 1:
                    swept[key] = texts
    return [message for found in problems.values() for message in found]


@contextmanager
def _another_hydra() -> Iterator[None]:
    """Makes `compose` work in the block, whether or not Hydra is running a command."""
    running, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_module("fl.conf", version_base=None):
            yield
    finally:
        GlobalHydra.instance().hydra = running


def _members(group: str) -> list[str]:
    folder = files("fl").joinpath("conf", *group.split("/"))
    if not folder.is_dir():
        return []  # a group of the user's own
    names = [entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.is_file()]
    return sorted(names)


def _known_keys() -> Iterator[str]:
    """Yields the dotted names of the keys of the root configuration and of all group members."""
    root = files("fl").joinpath("conf", "config.yaml")
    yield from _keys(OmegaConf.create(root.read_text("utf-8")), "")
    for group in top_groups():
        yield group
        prefix = "" if group in _OF_THE_ROOT else f"{group}."
        for name, _ in members_of(group):
            for part in parts_of(group, name):
                yield from _keys(part, prefix)


_OF_THE_ROOT = ("experiment", "goal", "length")  # groups whose members set keys of the root


def _keys(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, DictConfig):
        for key in map(str, node):
            if key not in ("defaults", "hydra", "_target_"):
                yield f"{prefix}{key}"
                yield from _keys(node._get_node(key), f"{prefix}{key}.")


def _with_key(key: str) -> list[str]:
    """Returns the members of a key's group that have it, by what they are made of as well."""
    group = _top(key)
    return [
        name
        for name, _ in (members_of(group) if group in top_groups() else ())
        if any(key in _keys(part, f"{group}.") for part in parts_of(group, name))
    ]
