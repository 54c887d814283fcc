"""What is wrong with a command line, in the words of its keys.

Hydra and OmegaConf say what they cannot do; here that becomes what a user can change.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from importlib import import_module
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import MarkedYAMLError, YAMLError

import fl.runs.composing  # noqa: F401  what is composed below is composed once
from fl.errors import ConfigError, ConfigErrors, SimulationError
from fl.extras import EXTRAS, check_importable
from fl.runs.groups import (
    groups,
    is_choice,
    key_of,
    members_of,
    named_group,
    parts_of,
    text,
    top_groups,
    top_of,
    without_null,
)
from fl.runs.unread import few

_PYTHON = re.compile(r"(?<=[= ])(None|True|False)(?=[;,:) ]|\.? |\.?$)")


_AS_YAML = {"None": "null", "True": "true", "False": "false"}


def _as_yaml(found: re.Match[str]) -> str:
    return _AS_YAML[found[1]]


def explain(error: BaseException, there: DictConfig | None = None) -> str | None:
    """Returns what an exception says about the configuration; None if it does not.

    The exception, or one that caused it, must be ours, Hydra's, OmegaConf's or YAML's. There is one
    line for each thing that is wrong.

    Args:
        error: the exception.
        there: the configuration that could not be changed, for keys that are near.
    """
    from hydra.errors import HydraException

    chain = list(causes(error))
    for link in chain:
        if isinstance(link, YAMLError):
            return _unread(link)
    for kind in (ConfigError, HydraException, OmegaConfBaseException, SimulationError):
        for link in chain:
            # A simulation that stopped because of another exception needs its traceback.
            if isinstance(link, kind) and not (kind is SimulationError and link.__cause__):
                lines = (
                    link.problems if isinstance(link, ConfigErrors) else [_reworded(link, there)]
                )
                return "\n".join(_PYTHON.sub(_as_yaml, " ".join(line.split())) for line in lines)
    return None


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an exception and what it came of, the last first."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        yield error
        seen.append(error)
        error = error.__cause__ or error.__context__


def _unread(error: YAMLError) -> str:
    """Returns which file is no YAML, where, and why."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{mark.name}, line {mark.line + 1}: {error.problem}"
    return " ".join(str(error).split())


def _reworded(error: BaseException, there: DictConfig | None) -> str:
    """Returns an exception's message, or a better one where Hydra leaves the user to search."""
    message = str(error)
    if isinstance(error, ConfigError):
        return message
    if isinstance(error, OverrideParseException) and error.override not in message:
        said = message.split("\nSee https://")[0]
        return f"{error.override} cannot be read: {said}"
    if found := re.search(r"Could not override '([^']+)'", message):
        return no_key(found[1], there)
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
        return without_value(error, key)
    if "Expected a callable target" in message:
        return f"{key}._target_ must be the import path of something that can be called"
    if found := re.search(r"Error locating target '([^']+)'", message):
        return _not_importable(f"{key}._target_", found[1], error.__cause__)
    if found := re.search(r"Error in call to target '([^']+)'", message):
        lacking = re.search(r"missing \d+ required [\w-]+ arguments?: (.+)$", str(error.__cause__))
        if lacking:
            names = re.findall(r"'(\w+)'", lacking[1])
            given = " ".join(f"+{key}.{name}=VALUE" for name in names)
            return f"{key}: {found[1].rpartition('.')[2]} needs {', '.join(names)}: give {given}"
        stranger = re.search(r"unexpected keyword argument '(\w+)'", str(error.__cause__))
        remedy = without(key, stranger[1]) if stranger else ""
        name = found[1].rpartition(".")[2]
        return f"{key}: {name} refuses its arguments: {error.__cause__}{remedy}"
    return message.split("\nSee https://")[0]


def without(part: str, key: str) -> str:
    """Returns the remedy for a key that a part does not have."""
    return f"; leave it out (~{part}.{key}, if it is the member's)"


def _not_importable(key: str, target: str, cause: BaseException | None) -> str:
    top = target.partition(".")[0]
    if top in EXTRAS:
        try:
            check_importable(f"{key}={target}", top)
        except ConfigError as error:
            return str(error)
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


def without_value(error: OmegaConfBaseException, key: str) -> str:
    """Returns what is wrong with a key that has no value."""
    message = str(error).split("\n")[0]
    if found := re.search(r"Interpolation key '([^']+)' not found", message):
        group = top_of(found[1])
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


def no_key(name: str, there: DictConfig | None = None) -> str:
    """Returns that there is no such key, and what may have been meant.

    Args:
        name: the key, or a group with its package.
        there: the configuration of the chosen members.
    """
    key = key_of(name)
    top, _, rest = key.partition(".")
    if top in ("run_config", "train_config"):
        if not rest:
            return f"{key} takes one key at a time: to add it, write +{key}.KEY=VALUE"
        return f"there is no key '{key}': to add it, write +{key}=VALUE"
    if rest == "_target_" and top in top_groups():
        return f"no {top} is chosen whose class this could replace: to give one, write +{key}=VALUE"
    for dot in re.finditer(
        r"\.|$", key
    ):  # what is empty by default, as a mapping by kind of device
        place = key[: dot.start()]
        held = None if there is None else OmegaConf.select(there, place, throw_on_missing=False)
        if isinstance(held, DictConfig) and not held:
            return f"{place} is empty by default: to add what it holds, write +{key}=VALUE"
    if isinstance(held, DictConfig):  # the key itself, so that what is given for it does not fit
        return f"{key} holds {', '.join(map(str, held))}, and not all that it is given"
    present = set() if there is None else set(_keys(there, ""))
    others = set(_known_keys()) - present
    above = [key[: dot.start()] for dot in re.finditer(r"\.", key)]
    for part in (key, *reversed(above)):  # of some member of a group, but not of the chosen one
        if part in others and part not in top_groups():
            having = few(_with_key(part, top))
            return (
                f"there is no key '{part}' here, only in other members of {top}: choose one that "
                f"has it ({having}); a sweep over {top}=A,B takes only keys that "
                "all members have: run one for each, with the same hydra.sweep.dir to compare them"
            )
        if part in present:
            break
    for group, _ in groups():
        place = group.replace("/", ".")
        if key == place and "/" in group and key not in present:  # chosen, where nobody asks for it
            above_it, _, last = group.rpartition("/")
            asks = re.compile(rf"^ *- (override )?{re.escape(last)}(@\S+)?:", re.MULTILINE)
            if having_it := [m for m, _ in members_of(above_it) if asks.search(text(above_it, m))]:
                return (
                    f"there is no key '{key}' here: {group} is chosen only with "
                    f"{' or '.join(f'{above_it}={m}' for m in having_it)}"
                )
        below = "/" in group and place not in present and key.startswith(f"{place}.")
        if below and (members := _with_key(key, group)):
            return (
                f"there is no key '{key}' here: choose a member that has it, "
                f"{group}={members[0]} ({few(members)})"
            )
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
        below = {n.rpartition(".")[2]: n for n in known if n.startswith(f"{top_of(key)}.")}
        near = [below[name] for name in get_close_matches(last, below, n=2, cutoff=0.8)]
    if not near and beside and parent:
        return f"; {parent} may have: {', '.join(beside)}"
    near = near or get_close_matches(key, known, n=1)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def several(overrides: Iterable[str]) -> Iterator[str]:
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
            key = key_of(override)
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
                    for choice in swept.get(top_of(key), [""]):
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
                said = next(several([override]), said)
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


def _with_key(key: str, group: str) -> list[str]:
    """Returns the members of a group that have a key, by what they are made of as well."""
    place = group.replace("/", ".")
    return [
        name
        for name, _ in (members_of(group) if group in dict(groups()) else ())
        if any(key in _keys(part, f"{place}.") for part in parts_of(group, name))
    ]
