"""Flower app directories, as `flwr run` takes them."""

from __future__ import annotations

import ast
import importlib
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fl.configuration import kind_of
from fl.errors import ConfigError, ConfigErrors
from fl.execution import AppSource


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
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    app = document.get("tool", {}).get("flwr", {}).get("app", {})
    components = app.get("components", {})
    for name in ("serverapp", "clientapp"):
        if ":" not in str(components.get(name, "")):
            raise ConfigError(
                f'{path} has no [tool.flwr.app.components] {name} = "package.module:attribute"'
            )
    return FlowerApp(
        folder,
        components["serverapp"],
        components["clientapp"],
        _flatten(app.get("config", {})),
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
    module_name, _, attribute = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{reference} in {directory}: {error}; install what the app needs, or correct "
            "[tool.flwr.app.components]"
        ) from error
    app = getattr(module, attribute, None)
    if not isinstance(app, kind):
        raise ConfigError(
            f"{reference} in {directory} is {type(app).__name__}, not a {kind.__name__}"
        )
    return app
