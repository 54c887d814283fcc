"""Where clients run: in this process, or on Ray actors."""

from fl.execution.executor import AppSource, Executor
from fl.execution.on_ray import RayExecutor
from fl.execution.serial import SerialExecutor

__all__ = ["AppSource", "Executor", "RayExecutor", "SerialExecutor"]
