"""What PyTorch does without its compiler, which takes most of a second to import.

Two things import it though nothing here is compiled: `torch.func.grad`, to say that the compiler's
own autograd shall stay out of it, and dispatch modes, as torch's counter of FLOPs is one, to say
that they are not to be compiled. Whoever compiles finds it as ever. Both touch what PyTorch does
not publish: tests/models/test_without_compiler.py pins it, for the versions in `CHECKED_WITH`.
"""

from __future__ import annotations

import inspect
import sys
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch.utils.flop_counter import _FlopCounterMode

CHECKED_WITH = ("2.13.0",)
"""Versions of PyTorch."""

_COMPILER = "torch._dynamo"


class _Until:
    """Stands for a module that is imported at the first question that it cannot answer itself.

    Python puts the module in its place when that is imported.
    """

    def __init__(self, module: str, **known: Any) -> None:
        self._module = module
        self.__dict__.update(known)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # of who only looks around
            raise AttributeError(name)
        return getattr(import_module(self._module), name)


def grad_without_compiler() -> None:
    """Lets `torch.func.grad` do without the compiler; to be called by modules that use it."""
    if _COMPILER not in sys.modules:
        # What is not imported is not active, so there is nothing to be switched off.
        autograd = _Until(f"{_COMPILER}.compiled_autograd", _disable=nullcontext)
        torch._dynamo = _Until(_COMPILER, compiled_autograd=autograd)  # type: ignore[assignment]


class Counting(_FlopCounterMode):  # type: ignore[no-untyped-call]
    """Counts for a `FlopCounterMode`, which does the same with the compiler.

    Args:
        counter: has the counts.
    """

    __torch_dispatch__ = inspect.unwrap(_FlopCounterMode.__torch_dispatch__)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False
