"""What is called for a configuration that somebody else has written.

Hydra calls whatever a `_target_` names. On one's own command line that is the point of it. Where a
configuration comes from a run's directory or from the network, only the parts that fl and Flower
bring are called, and what the user has named.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from traceback import walk_tb
from typing import Any

from hydra._internal.utils import _locate  # what Hydra finds, not what Python would import
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fl.errors import ConfigError

ROOTS = (
    "fl.aggregation",
    "fl.attacks",
    "fl.clients",
    "fl.collectives",
    "fl.compression",
    "fl.data",
    "fl.models",
    "fl.selection",
    "fl.simulation",
    "fl.stages",
    "fl.strategies",
    "fl.submodels",
    "fl.topologies",
    "flwr.serverapp.strategy",
    "flwr_datasets.partitioner",
)
"""Modules whose classes and functions are parts of runs: none of them runs code that its arguments
name, or writes a file that they name."""

_PARTS = (  # of modules that hold more than parts
    "fl.execution.RayExecutor",
    "fl.execution.auto",
    "fl.execution.SerialExecutor",
    "fl.runs.journal.Recovery",
    "fl.runs.journal.Recovery.none",
)


def foreign_targets(config: DictConfig, allowed: Iterable[str] = ()) -> dict[str, str]:
    """Returns the `_target_`s of a configuration that are not to be called, by their keys.

    A name below a root is not enough: a module of ours has imported others, and they are attributes
    of it. What the name stands for must have been defined below a root as well.

    Args:
        config: nothing of it is called; modules below the roots are imported.
        allowed: more roots, or full names.

    Raises:
        ConfigError: a name below a root stands for nothing.
    """
    names = set(allowed)
    roots = (*ROOTS, *names)
    values: Any = OmegaConf.to_container(config, resolve=True)
    return {
        key: str(target)
        for key, target in _targets(values)
        if not (target in names or target in _PARTS or _defined_below(key, target, roots))
    }


def check_targets(config: DictConfig, allowed: Iterable[str] = ()) -> None:
    """Checks that a configuration calls parts of fl and of Flower only.

    Args:
        config: nothing of it is called.
        allowed: more modules, or full names, that may be called.

    Raises:
        ConfigError: it names something else.
    """
    if foreign := foreign_targets(config, allowed):
        told = ", ".join(f"{key}={target}" for key, target in foreign.items())
        raise ConfigError(
            f"{told} cannot be used here: what is called must be a part of fl, one of Flower's "
            "strategies or one of its partitioners"
        )


def raised_in(error: BaseException, config: DictConfig) -> str:
    """Returns which part of the user's own an exception came from, by key and value; "" if none.

    That is the class, or one that it inherits from, whose code was running; or the function, in
    whose module.

    Args:
        error: as it was caught.
        config: of the run.
    """
    try:
        foreign = foreign_targets(config)
    except (ConfigError, OmegaConfBaseException):  # the configuration is what was wrong
        return ""
    codes: dict[str, str] = {}
    for key in sorted(foreign, key=len, reverse=True):  # of keys that refer to another, that counts
        codes.update(dict.fromkeys(_code_of(foreign[key]), f"{key}={foreign[key]}"))
    for frame in reversed([frame for frame, _ in walk_tb(error.__traceback__)]):
        running = f"{frame.f_globals.get('__name__')}.{frame.f_code.co_qualname}."
        if found := [part for code, part in codes.items() if running.startswith(code)]:
            return found[-1]
    return ""


def _code_of(target: str) -> list[str]:
    """Returns how the full names of the code of a class or function begin that is no part of fl."""
    try:
        found = _locate(target)
    except Exception:  # it could not be imported
        return []
    kinds = found.__mro__ if isinstance(found, type) else ()
    names = [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds]
    names = names or [str(getattr(found, "__module__", target))]
    return [f"{name}." for name in names if not _is_below(name, ROOTS)]


def source_files(targets: Iterable[str]) -> list[Path]:
    """Returns the files of the user's modules among those that targets name.

    Of a package these are all its files. Python's own modules, and what was installed, have
    versions instead.
    """
    installed = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    found: set[Path] = set()
    for name in {target.partition(".")[0] for target in targets}:
        try:
            spec = find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None:
            continue
        path = Path(spec.origin)
        if not any(path.is_relative_to(folder) for folder in installed) and path.is_file():
            found.update(path.parent.rglob("*.py") if path.name == "__init__.py" else [path])
    return sorted(found)


def _targets(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the key and the value of every `_target_`, wherever in a configuration."""
    items: Iterable[tuple[Any, Any]] = ()
    if isinstance(values, Mapping):
        items = values.items()
    elif isinstance(values, list):
        items = enumerate(values)
    for key, value in items:
        if key == "_target_" and value is not None:
            yield f"{prefix}{key}", value
        else:
            yield from _targets(value, f"{prefix}{key}.")


def _defined_below(key: str, target: Any, roots: Iterable[str]) -> bool:
    if not isinstance(target, str) or not _is_below(target, roots):
        return False
    try:
        found = _locate(target)
    except Exception as error:  # whatever importing it raises
        raise ConfigError(f"{key} is {target}, which cannot be imported: {error}") from error
    return _is_below(getattr(found, "__module__", None), roots)


def _is_below(name: Any, roots: Iterable[str]) -> bool:
    return isinstance(name, str) and any(f"{name}.".startswith(f"{root}.") for root in roots)
