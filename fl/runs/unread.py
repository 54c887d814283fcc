"""What a configuration sets and nothing reads.

Some keys of the root and some groups are read by other keys only, which refer to them: `aggregator`
by the strategies that say `${aggregator}`. Others are read in one kind of run. So what a run reads
are the keys that it asks for itself, and all that they refer to; the rest may have defaults, but
must not be set. That goes for keys below as well: `fl.checks` has the arguments that a part
reads only beside others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from hydra._internal.utils import _locate  # what `_target_` stands for, without a line in the log
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, Node, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fl.checks import unread_arguments
from fl.errors import ConfigError
from fl.runs.groups import bases_of, members_of, parts_of, top_groups, usual_members

# Keys of the root that a run asks for: in every run, in one of a Flower app directory, and in one
# of our own parts.
ALWAYS = (
    "app",
    "battery",
    "callbacks",
    "checkpoint",
    "date",
    "executor",
    "fail_fast",
    "fleet",
    "may_be_unread",
    "network",
    "num_clients",
    "power",
    "progress",
    "runtime",
    "save_models",
    "seed",
    "target",
    "views",
)
OF_APPS = ("cost_model", "num_partitions", "run_config")
OF_OURS = (
    "attack",
    "central_epochs",
    "compressor",
    "downlink",
    "evaluate_every",
    "evaluate_every_s",
    "evaluate_train",
    "feedback",
    "hierarchy",
    "initial_model",
    "lawa",
    "metrics",
    "num_byzantine",
    "num_rounds",
    "personal",
    "round_timeout_s",
    "strategy",
    "tasks",
    "then",
    "time_limit_s",
    "train_config",
    "validation",
)
OF_A_TASK = ("adapter", "client", "data", "model", "partition")

_MOST_NAMES = 12
_REFERENCE = re.compile(r"\$\{([^\W\d][\w.]*)\}")


class Unread:
    """Says of any key of a configuration why nothing reads it.

    Args:
        config: of a run, without Hydra's own part.
    """

    def __init__(self, config: DictConfig) -> None:
        self._config = config
        self._read: set[str] = set()
        self._references: list[tuple[str, str]] = []  # of what is read: where, and to what
        for key in self._asked_for():
            self._follow(key)

    def why(self, path: str) -> str | None:
        """Returns why nothing reads a key, and what would; None if something does.

        Args:
            path: the key's dotted name.
        """
        if path in self._read or any(key.startswith(f"{path}.") for key in self._read):
            return None
        config, top = self._config, path.partition(".")[0]
        if config.get("app") is not None:
            return (
                f"has no effect with app={config.app}, which brings its own: leave it out, or "
                "change the app's configuration with +run_config.KEY=VALUE"
            )
        if top in OF_APPS:
            return "has no effect without app=DIR: it is for the ClientApps of others"
        if top in OF_A_TASK:
            return (
                "has no effect, as several tasks are learnt: change "
                f"tasks.{next(iter(config.tasks))}.{path}, for example"
            )
        if top == "evaluate_every":
            return "has no effect, as evaluate_every_s says when models are evaluated"
        if config.get("strategy") is None:
            return None  # there is nothing to go by, and whoever builds the run says so
        target = config.strategy.get("_target_", "?")
        rule = OmegaConf.select(config, "strategy.rule._target_")
        kind = str(rule or target).rpartition(".")[2]
        readers = "; ".join(
            f"{group}: {few(_nearest_first(group, names))}" for group, names in readers_of(top)
        )
        return (
            f"has no effect, as the strategy {kind} does not read {top}: leave it out, or choose "
            f"one that does ({readers or 'no member of a group does'})"
        )

    def of_no_task(self) -> Iterator[str]:
        """Yields what is read of the root's data or clients while every task has its own."""
        if not self._config.get("tasks"):
            return
        for path, reference in self._references:
            if (top := reference.partition(".")[0]) in OF_A_TASK:
                part = path.rpartition(".")[0] or path
                yield (
                    f"{path} is ${{{reference}}}, but several tasks are learnt, and each has a "
                    f"{top} of its own (tasks.{next(iter(self._config.tasks))}.{top}): give {part} "
                    "a value that does not go by it, or leave tasks out"
                )

    def arguments(self) -> Iterator[tuple[str, str]]:
        """Yields the keys that their parts do not read, "*" standing for any name, and why.

        Parts are imported for that.
        """
        if self._config.get("app") is None:
            yield "checkpoint.trust", "it is for the ServerApps of others, with app=DIR"
        for path in sorted(self._read):
            node = _select(self._config, path)
            if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
                continue
            if canonical(self._config, path) != path:
                continue  # a reference: it is looked at where it is
            try:
                values: Any = OmegaConf.to_container(node, resolve=True)
                part = _locate(node["_target_"])
            except Exception:  # whoever makes the part says what is wrong with it
                continue
            for name, only in unread_arguments(part, values).items():
                yield canonical(self._config, f"{path}.{name}"), only.format(at=f"{path}.")

    def _asked_for(self) -> Iterator[str]:
        config = self._config
        yield from ALWAYS
        if config.get("app") is not None:
            yield from OF_APPS
            return
        every_s = config.get("evaluate_every_s") is not None
        yield from (key for key in OF_OURS if not (every_s and key == "evaluate_every"))
        if not config.get("tasks"):
            yield from OF_A_TASK

    def _follow(self, path: str) -> None:
        """Notes a key, all keys below it, and all that they refer to."""
        parent, _, last = path.rpartition(".")
        above = _select(self._config, parent) if parent else self._config
        if isinstance(above, DictConfig) and path not in self._read:
            self._note(path, _child(above, last))

    def _note(self, path: str, node: Any) -> None:
        self._read.add(path)
        if isinstance(node, DictConfig) and not _is_empty(node):
            for key in map(str, node):
                self._note(f"{path}.{key}", _child(node, key))
        elif isinstance(node, ListConfig) and not _is_empty(node):
            for i in range(len(node)):
                self._note(f"{path}.{i}", node._get_node(i, validate_access=False))
        else:
            for reference in references(str(_value(node))):
                self._references.append((path, reference))
                self._follow(reference)


def references(value: Any) -> list[str]:
    """Returns the keys that a value refers to, before it is resolved."""
    return _REFERENCE.findall(value) if isinstance(value, str) else []


def is_reference(node: DictConfig, key: str) -> bool:
    """Returns whether a value is another key's."""
    raw = _value(_child(node, key))
    return isinstance(raw, str) and _REFERENCE.fullmatch(raw) is not None


def canonical(config: DictConfig, path: str) -> str:
    """Returns the name under which a key is set: `aggregator.f` for a strategy's `rule.f`."""
    known = ""
    for name in path.split("."):
        known = f"{known}.{name}" if known else name
        raw = _raw(config, known)
        found = _REFERENCE.fullmatch(raw) if isinstance(raw, str) else None
        if found and isinstance(_select(config, found[1]), DictConfig):
            known = found[1]
    return known


def what_is_set(
    config: DictConfig, defaults: DictConfig, overrides: Mapping[str, str], groups: set[str]
) -> dict[str, str]:
    """Returns the keys that overrides set to another value than they would have, and by what.

    Those that the configuration says may go unread, in `may_be_unread`, are left out.

    Args:
        config: what came of the overrides.
        defaults: the same choices of members, without other overrides.
        overrides: text of each override to the key that it is for.
        groups: overrides that choose a member of a group.
    """
    found: dict[str, str] = {}
    for override, key in overrides.items():
        node = _select(config, key)
        if override in groups:
            if node is not None:
                found[key] = override
            continue
        # What a reference leads to is set elsewhere.
        raw = _raw(config, key)
        whole = isinstance(raw, str) and _REFERENCE.fullmatch(raw) is not None
        for path, value in [(key, raw)] if whole else _leaves(node, key):
            if _raw(defaults, path) != value:
                found[path] = override if path == key else f"{path}={value}"
    allowed = config.get("may_be_unread")
    allowed = () if allowed is None else allowed
    if isinstance(allowed, str) or not all(isinstance(key, str) for key in _entries(allowed)):
        raise ConfigError(
            f"may_be_unread is {allowed!r}; it must be a list of keys, such as [client.local_steps]"
        )
    return {
        path: override
        for path, override in found.items()
        if not any(path == key or path.startswith(f"{key}.") for key in allowed)
    }


def _entries(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) else [value]


def scalar_references(config: DictConfig) -> dict[str, str]:
    """Returns the keys that have another one's value, to that key; parts are left out."""
    found = {}
    for path, value in _leaves(config, ""):
        reference = _REFERENCE.fullmatch(value) if isinstance(value, str) else None
        if reference and not isinstance(_select(config, reference[1]), DictConfig):
            found[path] = reference[1]
    return found


def unread_groups(config: DictConfig) -> list[str]:
    """Returns a message for each group of the root that is chosen, and that nothing reads."""
    asked_for = {*ALWAYS, *OF_APPS, *OF_OURS, *OF_A_TASK}
    chosen = [key for key in top_groups() if key not in asked_for and config.get(key) is not None]
    unread = Unread(config)
    return [f"{key} {why}" for key in chosen if (why := unread.why(key)) is not None]


def unread_keys(
    set_keys: Mapping[str, str], unread: Unread, *, in_sweep: bool = False
) -> list[str]:
    """Returns a message for each key that is set and that no part of the run asks for.

    Args:
        set_keys: as from `what_is_set`.
        unread: of the configuration.
        in_sweep: whether other jobs may read them.
    """
    found = [(path, override, unread.why(path)) for path, override in set_keys.items()]
    return [
        f"{override} {why}{_in_sweep(path) if in_sweep else ''}"
        for path, override, why in found
        if why is not None
    ]


def unread_below(
    set_keys: Mapping[str, str],
    unread: Mapping[str, str],
    references: frozenset[str] = frozenset(),
    *,
    in_sweep: bool = False,
) -> list[str]:
    """Returns a message for each key that is set and that its part does not read.

    Args:
        set_keys: as from `what_is_set`.
        unread: keys that are not read, "*" standing for any name, to what reads them or counts
            instead.
        references: keys that are read where another one refers to them.
        in_sweep: whether other jobs may read them.
    """
    return [
        f"{override} has no effect: {why}{_in_sweep(path) if in_sweep else ''}"
        for path, override in set_keys.items()
        if path not in references
        for pattern, why in unread.items()
        if fnmatchcase(path, pattern) or fnmatchcase(path, f"{pattern}.*")
    ]


def _in_sweep(path: str) -> str:
    return f". If other jobs of the sweep read it, say so: may_be_unread=[{path}]"


def referred_to(config: DictConfig) -> frozenset[str]:
    """Returns all keys that some other refers to."""
    return frozenset(
        key for _, value in _leaves(config, "") for key in references(value) if "." in key
    )


def few(names: Sequence[str]) -> str:
    """Returns names for a message; of very many, the first."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} others" if more > 0 else "")


@cache
def readers_of(key: str) -> tuple[tuple[str, list[str]], ...]:
    """Returns groups, and their members that refer to a key of the root."""
    found: dict[str, list[str]] = {}
    for group in top_groups():
        for name, _ in members_of(group):
            referred = {
                reference.partition(".")[0]
                for part in parts_of(group, name)
                for _, value in _leaves(part, "")
                for reference in references(value)
            }
            if key in referred:
                found.setdefault(group, []).append(name)
    return tuple(found.items())


def _nearest_first(group: str, names: Sequence[str]) -> list[str]:
    """Returns members, first those that have most in common with the chosen one, or the default."""
    usual = dict(usual_members()).get(group, "")
    chosen = HydraConfig.get().runtime.choices.get(group) if HydraConfig.initialized() else None
    made_of = bases_of(group, chosen or usual)
    return sorted(names, key=lambda n: (-len(bases_of(group, n) & made_of), n != usual))


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yields dotted names and values, before they are resolved, at or below a node."""
    if isinstance(node, DictConfig) and not _is_empty(node):
        for key in map(str, node):
            yield from _leaves(_child(node, key), f"{path}.{key}" if path else key)
    else:
        yield path, _value(node)


def _value(node: Any) -> Any:
    """Returns what a node holds, before it is resolved."""
    if OmegaConf.is_config(node) and not node._is_interpolation():
        return OmegaConf.to_container(node, resolve=False)
    return node._value() if isinstance(node, Node) else node


def _raw(config: DictConfig, path: str) -> Any:
    """Returns a value before it is resolved; None if there is none."""
    parent, _, last = path.rpartition(".")
    node = _select(config, parent) if parent else config
    return _value(_child(node, last)) if isinstance(node, DictConfig) else None


def _child(node: DictConfig, key: str) -> Any:
    return None if _is_empty(node) else node._get_node(key, validate_access=False)


def _is_empty(node: DictConfig | ListConfig) -> bool:
    """Returns whether a node has no keys of its own: it is null, missing, or a reference."""
    return node._is_none() or node._is_missing() or node._is_interpolation()


def _select(config: DictConfig, path: str) -> Any:
    try:
        return OmegaConf.select(config, path)
    except OmegaConfBaseException:
        return None
