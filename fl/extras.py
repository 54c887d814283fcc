"""Packages that only some parts need, and that an installation without extras does not have.

`pip install fl-simulator` is to be small; what is named here comes with extras of the same
distribution (pyproject.toml). Whoever needs one of them imports it where it is first used, so that
everything else works without.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from fl.errors import ConfigError

EXTRAS = {
    "datasets": "data",
    "flwr_datasets": "data",
    "mlflow": "mlflow",
    "pandas": "data",
    "pyarrow": "data",
    "ray": "ray",
    "timm": "vision",
    "torchvision": "vision",
    "transformers": "huggingface",
    "wandb": "wandb",
}
"""The extra that brings a package, by the name under which the package is imported."""


def installed(package: str) -> bool:
    """Returns whether a package can be imported; it is not."""
    try:
        return find_spec(package) is not None
    except ValueError:  # imported, and without a spec
        return True


def check_installed(key: str, *packages: str) -> None:
    """Checks that packages are there, without importing them.

    Args:
        key: of the configuration, or what else it is that needs them, for the message.
        *packages: keys of `EXTRAS`.

    Raises:
        ConfigError: one is missing; the message says how to install it.
    """
    for package in packages:
        if not installed(package):
            raise ConfigError(_MISSING.format(key, package, EXTRAS[package]))


def imported(key: str, package: str) -> Any:
    """Returns a package of `EXTRAS`.

    Raises:
        ConfigError: it, or another one that its extra brings, is missing.
    """
    check_installed(key, package)
    try:
        return import_module(package)
    except ImportError as error:
        missing = error.name or package
        raise ConfigError(_MISSING.format(key, missing, EXTRAS[package])) from error


_MISSING = "{} needs the package {}: pip install 'fl-simulator[{}]'"
