"""Flower app directories, as `flwr run` takes them."""

from __future__ import annotations

import ast
import codecs
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fl.errors import ConfigError, ConfigErrors
from fl.execution import AppSource
from fl.randomness import SEED_KEY
from fl.runs.configuration import kind_of


@dataclass(frozen=True)
class FlowerApp:
    """A Flower app on disk.

    Attributes:
        directory: where its pyproject.toml is.
        serverapp, clientapp: "package.module:attribute".
        config: `[tool.flwr.app.config]`, nested tables flattened with dots as Flower does.
    """

    directory: Path
    serverapp: str
    clientapp: str
    config: dict[str, Any]

    def server(self) -> ServerApp:
        """Imports and returns the ServerApp."""
        app: ServerApp = _load(self.directory, self.serverapp, ServerApp)
        return app

    def client(self) -> AppSource:
        """Returns a source of the ClientApp that every worker process can import by itself."""
        return partial(_load, self.directory, self.clientapp, ClientApp)

    def files(self, reference: str) -> list[Path]:
        """Returns the app's files that "package.module:attribute" needs, as far as imports show.

        Raises:
            ConfigError: one of them is not Python.
        """
        found: dict[Path, None] = {}
        waiting = _modules(self.directory, reference.partition(":")[0])
        while waiting:
            path = waiting.pop()
            if path in found:
                continue
            found[path] = None
            for name in _imported(path, self.directory):
                waiting += _modules(self.directory, name)
        return sorted(found)

    def run_config(self, overrides: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the app's configuration with some values replaced, as `--run-config` does.

        Raises:
            ConfigError: an override names a key that the app does not have, or its value is of
                another kind than the app's own.
        """
        flat = _flatten(overrides)
        problems = []
        for key, value in flat.items():
            if key == SEED_KEY:
                raise ConfigError(
                    f"run_config.{key} is {value!r}, but it shows the run's own seed: give "
                    f"seed={value} instead"
                )
            if key not in self.config:
                near = get_close_matches(key, self.config, n=1)
                hint = f"; did you mean '{near[0]}'?" if near else ""
                known = ", ".join(sorted(self.config)) or "none"
                problems.append(f"run_config.{key} is no key of this app{hint} (it has: {known})")
            elif kind_of(value) != (kind := kind_of(self.config[key])):
                problems.append(
                    f"run_config.{key} is {value!r}; it must be {kind}, like the app's own "
                    f"{self.config[key]!r}"
                )
        if problems:
            raise ConfigErrors(*problems)
        return {**self.config, **flat}


def read_app(directory: Path | str) -> FlowerApp:
    """Reads the pyproject.toml of a Flower app directory.

    Raises:
        ConfigError: there is none, or it does not describe a Flower app.
    """
    folder = Path(directory).expanduser().resolve()
    path = folder / "pyproject.toml"
    if not path.is_file():
        raise ConfigError(
            f"app={directory}: {path} does not exist; give the folder of a Flower app, with the "
            "pyproject.toml that `flwr run` reads"
        )
    try:
        document = tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    components = _table(document, "tool", "flwr", "app", "components")
    for name in ("serverapp", "clientapp"):
        if ":" not in str(components.get(name, "")):
            raise ConfigError(
                f'{path} has no [tool.flwr.app.components] {name} = "package.module:attribute"'
            )
    return FlowerApp(
        folder,
        components["serverapp"],
        components["clientapp"],
        _flatten(_table(document, "tool", "flwr", "app", "config")),
    )


def _modules(directory: Path, name: str) -> list[Path]:
    """Returns the files in a folder that importing a module runs: its packages' and its own."""
    parts = name.split(".")
    found = []
    for i in range(1, len(parts) + 1):
        place = directory.joinpath(*parts[:i])
        found += [place.with_suffix(".py"), place / "__init__.py"]
    return [path for path in found if path.is_file()]


def _imported(path: Path, directory: Path) -> list[str]:
    """Returns the names of all modules that a file may import, wherever in it."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"{path} is not valid Python: {error}") from error
    package = path.parent.relative_to(directory).parts
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names


def _flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _load(directory: Path, reference: str, kind: type) -> Any:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    module_name, _, path = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, AttributeError) as error:
        cause = _why_not(error, directory, module_name)
        if cause is None:
            raise
        raise ConfigError(f"{reference} in {directory}: {cause}") from error
    own = _modules(directory, module_name)
    if own and Path(module.__file__ or "").resolve() not in [path.resolve() for path in own]:
        raise ConfigError(
            f"{reference} in {directory}: this process has already imported another module "
            f"{module_name!r}, {module.__file__}: run this app in a process of its own"
        )
    app: Any = module
    for attribute in path.split("."):
        if not hasattr(app, attribute):
            raise ConfigError(
                f"{reference} in {directory}: there is no {attribute!r} in it{_there(module, kind)}"
            )
        app = getattr(app, attribute)
    if not isinstance(app, kind):
        raise ConfigError(f"{reference} in {directory} is {_what(app, kind)}{_there(module, kind)}")
    return app


def _why_not(error: ImportError | AttributeError, directory: Path, module_name: str) -> str | None:
    """Returns why a module of an app cannot be imported; None if only its author can tell."""
    name = error.name or ""
    if isinstance(error, AttributeError):
        owner = getattr(error.obj, "__name__", "") if isinstance(error.obj, ModuleType) else ""
        return _other_flower(error, directory) if _top(owner) == "flwr" else None
    if _top(name) == "flwr":
        return _other_flower(error, directory)
    if not isinstance(error, ModuleNotFoundError):
        # Of the app's own modules, it is the app's bug, and the traceback shows where.
        own = not name or _modules(directory, _top(name))
        return None if own else f"{error}: the app needs another version of {_top(name)}"
    if f"{module_name}.".startswith(f"{name}."):
        return (
            f"there is no module {name!r} in that folder: correct [tool.flwr.app.components] in "
            "its pyproject.toml"
        )
    if _modules(directory, _top(name)):
        return f"it imports {name!r}, and there is no such module in the folder"
    return f"it needs {_top(name)!r}, which is not installed: install what the app depends on"


def _other_flower(error: Exception, directory: Path) -> str:
    document = tomllib.loads(_text(directory / "pyproject.toml"))
    needs = [str(need) for need in _table(document, "project").get("dependencies", [])]
    asked = [need for need in needs if re.match(r"flwr\b", need)]
    wants = f" (it asks for {', '.join(asked)})" if asked else ""
    return (
        f"{error}: the app was written for another version of Flower than {version('flwr')}, which "
        f"is installed{wants}"
    )


def _what(app: object, kind: type) -> str:
    """Returns in words what stands in the place of an app."""
    name = kind.__name__
    if app is None:
        return f"None, not a {name}"
    if isinstance(app, ServerApp | ClientApp):
        return (
            f"a {type(app).__name__}, not a {name}: serverapp and clientapp are in each other's "
            "place in [tool.flwr.app.components]"
        )
    if app is kind:
        return f"the class {name}, not an object of it: write app = {name}()"
    if inspect.isroutine(app):
        return f"a function, not a {name}: if it makes one, write app = {app.__name__}(...)"
    return f"a {type(app).__name__}, not a {name}"


def _there(module: ModuleType, kind: type) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, kind)]
    return f"; it has the {kind.__name__} {', '.join(names)}" if names else ""


def _top(name: str) -> str:
    return name.partition(".")[0]


def _text(path: Path) -> str:
    """Returns a file's text; an editor may have put a mark of UTF-8 in front.

    Raises:
        ConfigError: it is not UTF-8.
    """
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        what = "is in UTF-16" if utf16 else f"is not in UTF-8 ({error})"
        raise ConfigError(f"{path} {what}: save it as UTF-8") from error


def _table(document: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Returns a table within tables; an empty one if there is none."""
    for key in keys:
        value = document.get(key)
        document = value if isinstance(value, Mapping) else {}
    return document
