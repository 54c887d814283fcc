"""Where clients run: in this process, on Ray actors, or on one and then the other.

The names below are loaded when first used: an actor's process has to be set up before PyTorch is
imported, and Ray is started meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fl.lazy import lazily

if TYPE_CHECKING:
    from fl.execution.executor import AppSource, Executor
    from fl.execution.moving import auto
    from fl.execution.on_ray import RayExecutor
    from fl.execution.serial import SerialExecutor

__getattr__ = lazily(
    __name__,
    {
        "AppSource": "fl.execution.executor",
        "Executor": "fl.execution.executor",
        "RayExecutor": "fl.execution.on_ray",
        "SerialExecutor": "fl.execution.serial",
        "auto": "fl.execution.moving",
    },
)

__all__ = ["AppSource", "Executor", "RayExecutor", "SerialExecutor", "auto"]
