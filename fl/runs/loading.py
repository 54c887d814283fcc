"""Data sets that several configurations have in common, loaded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from omegaconf import DictConfig, OmegaConf

_known: ContextVar[dict[str, Any] | None] = ContextVar("_known", default=None)


@contextmanager
def loading_once() -> Iterator[None]:
    """Loads each data set once in the block, for all configurations that are prepared there."""
    before = _known.set({})
    try:
        yield
    finally:
        _known.reset(before)


def load(data: DictConfig, make: Callable[[], Any]) -> Any:
    """Returns what `make` does; in a block of `loading_once` what it did for equal keys before."""
    known = _known.get()
    if known is None:
        return make()
    keys = OmegaConf.to_yaml(data, resolve=True)
    if keys not in known:
        known[keys] = make()
    return known[keys]
