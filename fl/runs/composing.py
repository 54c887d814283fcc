"""Composing configurations: what Hydra would do again and again is done once.

For a configuration Hydra reads some thirty files, makes a tree of what they choose, and merges
them: a tenth of a second. Values come at the very end, and cost next to nothing. But a command
composes at least three configurations with the same choices of members (to see whether it is a
sweep, to run, and for the defaults of what is set), and a sweep three for each of its jobs.

PyYAML reads a file ten times as fast by libyaml, where it has that, as without.

So files are remembered as they were read, trees by the choices that they come from, and what is
merged by the files that a tree names; whoever asks gets a copy of his own. And jobs of a sweep may
have a group taken away, as a run may by GROUP=null. Hydra publishes no place
for that: this is the one module of `fl` that changes how Hydra composes, and
tests/runs/test_composing.py pins what is assumed here, for the versions in `CHECKED_WITH`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import yaml
from hydra import version
from hydra._internal import config_loader_impl
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository, IConfigRepository
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.default_element import ResultDefault
from hydra.core.override_parser.types import Override
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig
from omegaconf import _utils as omegaconf_utils

from fl.runs.groups import without_null

CHECKED_WITH = ("1.3.8",)
"""Versions of hydra-core."""

_MOST = 300  # things remembered; a configuration takes half a megabyte, and a file little


class _Memory:
    """What was made, by what it depends on; of more than `_MOST` things those last asked for."""

    def __init__(self) -> None:
        self._known: OrderedDict[Hashable, Any] = OrderedDict()

    def of(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = make()
        self._known.move_to_end(key)
        if len(self._known) > _MOST:
            self._known.popitem(last=False)
        return self._known[key]


_of_packages = _Memory()
_of_files: _Memory | None = None


@contextmanager
def files_stay() -> Iterator[None]:
    """Says that no configuration file outside of packages changes in the block.

    Those in packages are code, which does not change while a process runs.
    """
    global _of_files
    before, _of_files = _of_files, _Memory()
    try:
        yield
    finally:
        _of_files = before


def _remembered(repository: IConfigRepository, key: Hashable, make: Callable[[], Any]) -> Any:
    """Returns what `make` does, or did for the same key and the same places to find files in."""
    places = tuple((s.provider, s.scheme(), s.path) for s in repository.get_sources())
    if ("main", "pkg", "fl.conf") not in places:  # of an application that is not ours
        return make()
    in_packages = all(scheme != "file" for _, scheme, _ in places)
    memory = _of_packages if in_packages else _of_files
    return make() if memory is None else memory.of((version.getbase(), places, key), make)


_read = ConfigRepository.load_config
_tree = create_defaults_list
_merged = ConfigLoaderImpl._compose_config_from_defaults_list
_job = ConfigLoaderImpl.load_sweep_config


def _read_once(self: ConfigRepository, config_path: str) -> ConfigResult | None:
    """In the place of `ConfigRepository.load_config`, which reads a file."""
    found: ConfigResult | None = _remembered(self, config_path, lambda: _read(self, config_path))
    return deepcopy(found)


def _tree_once(
    repo: IConfigRepository,
    config_name: str | None,
    overrides_list: list[Override],
    prepend_hydra: bool,
    skip_missing: bool,
) -> DefaultsList:
    """In the place of `create_defaults_list`, which decides what is merged, and what comes then."""
    given = [o for o in overrides_list if not o.is_sweep_override()]
    groups = [repo.group_exists(override.key_or_group) for override in given]
    choices = [o for o, is_group in zip(given, groups, strict=True) if is_group]
    lines = tuple(override.input_line for override in choices)
    tree: DefaultsList = _remembered(
        repo,
        (config_name, lines, prepend_hydra, skip_missing),
        lambda: _tree(repo, config_name, choices, prepend_hydra, skip_missing),
    )
    values = [
        override
        for override, is_group in zip(given, groups, strict=True)
        if not is_group or isinstance(override.value(), dict)
    ]
    return replace(tree, config_overrides=values)


def _merged_once(
    self: ConfigLoaderImpl, defaults: list[ResultDefault], repo: IConfigRepository
) -> DictConfig:
    """In the place of `_compose_config_from_defaults_list`, which reads and merges files."""
    key = tuple(map(repr, defaults))
    config: DictConfig = _remembered(repo, key, lambda: _merged(self, defaults, repo))
    return deepcopy(config)


_loader = omegaconf_utils.get_yaml_loader


@cache
def _fast_loader() -> Any:
    """In the place of OmegaConf's loader, which is made anew for each file: reads by libyaml."""
    loader = _loader()
    if not yaml.__with_libyaml__:
        return loader

    class FastLoader(yaml.cyaml.CParser, loader):  # type: ignore[misc, valid-type]
        def __init__(self, stream: Any) -> None:
            yaml.cyaml.CParser.__init__(self, stream)
            yaml.constructor.SafeConstructor.__init__(self)
            yaml.resolver.Resolver.__init__(self)

    return FastLoader


def _swept(self: ConfigLoaderImpl, master_config: DictConfig, sweep_overrides: list[str]) -> Any:
    """In the place of `ConfigLoaderImpl.load_sweep_config`: a job's GROUP=null takes it away."""
    return _job(self, master_config, without_null(sweep_overrides))


ConfigRepository.load_config = _read_once  # type: ignore[method-assign]
config_loader_impl.create_defaults_list = _tree_once  # type: ignore[attr-defined]
ConfigLoaderImpl._compose_config_from_defaults_list = _merged_once  # type: ignore[method-assign]
ConfigLoaderImpl.load_sweep_config = _swept  # type: ignore[method-assign]
omegaconf_utils.get_yaml_loader = _fast_loader
