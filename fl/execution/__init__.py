"""Where clients run: in this process, or on Ray actors.

The names below are loaded when first used: an actor's process has to be set up before PyTorch is
imported, and Ray is started meanwhile.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fl.execution.executor import AppSource, Executor
    from fl.execution.on_ray import RayExecutor
    from fl.execution.serial import SerialExecutor

_HOMES = {
    "AppSource": "fl.execution.executor",
    "Executor": "fl.execution.executor",
    "RayExecutor": "fl.execution.on_ray",
    "SerialExecutor": "fl.execution.serial",
}

__all__ = ["AppSource", "Executor", "RayExecutor", "SerialExecutor"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'fl.execution' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
