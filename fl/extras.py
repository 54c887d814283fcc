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


def check_importable(key: str, *modules: str) -> None:
    """Imports modules: a package that is there may be broken.

    Args:
        key: as of `check_installed`.
        *modules: by their full names.

    Raises:
        ConfigError: as `imported`.
    """
    for module in modules:
        imported(key, module)


def imported(key: str, module: str) -> Any:
    """Returns a module of a package that may be missing or broken.

    Args:
        key: as of `check_installed`.
        module: its full name.

    Raises:
        ConfigError: its package, or another one that it needs, is missing, or its import raises
            anything; the message says what to install.
    """
    package = module.partition(".")[0]
    if package in EXTRAS:
        check_installed(key, package)
    try:
        return import_module(module)
    except Exception as error:
        missing = (error.name or "") if isinstance(error, ModuleNotFoundError) else ""
        if package in EXTRAS and missing.partition(".")[0] not in ("", package):
            raise ConfigError(_MISSING.format(key, missing, EXTRAS[package])) from error
        why = (str(error).splitlines() or [""])[0]
        spec = find_spec(package)
        at = "" if spec is None else f" at {spec.origin}"
        said = _BROKEN.format(key, package, at, type(error).__name__, why)
        raise ConfigError(said) from error


_MISSING = "{} needs the package {}: pip install 'fl-simulator[{}]'"
_BROKEN = (
    "{0} needs the package {1}, which is there{2} and cannot be imported ({3}: {4}): rename the "
    "file if it is yours, or install it again (pip install --force-reinstall --no-deps {1})"
)
