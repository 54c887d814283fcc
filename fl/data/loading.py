"""Data sets that several configurations, or parts of one, have in common: loaded and dealt once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any


@dataclass
class _Known:
    """What was made in a block, with its makers: while these live, no other has their address.

    Attributes:
        sources: every data set, by what makes it.
        dealt: how the last one was dealt, and by what. Splits are as many as seeds, and large.
    """

    sources: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    dealt: tuple[str, Any, Any, Any] | None = None


_known: ContextVar[_Known | None] = ContextVar("_known", default=None)


@contextmanager
def loading_once() -> Iterator[None]:
    """Loads each data set once in the block, for all that `load` it there; and those around it."""
    if _known.get() is not None:
        yield
        return
    before = _known.set(_Known())
    try:
        yield
    finally:
        _known.reset(before)


def load(make: Callable[[], Any]) -> Any:
    """Returns what `make` does; in a block of `loading_once` what an equal one did before.

    Args:
        make: a function, or a partial; equal ones look alike (`repr`).
    """
    known = _known.get()
    if known is None:
        return make()
    if repr(make) not in known.sources:
        known.sources[repr(make)] = make, make()
    return known.sources[repr(make)][1]


def deal(partition: Callable[[Any], Any], source: Any) -> Any:
    """Returns partition(source); in a block of `loading_once` that of the last call, if equal.

    Args:
        partition: as `make` of `load`.
        source: as `load` returned it.
    """
    known = _known.get()
    if known is None:
        return partition(source)
    last = known.dealt
    if last is None or last[0] != repr(partition) or last[1] is not source:
        known.dealt = last = repr(partition), source, partition, partition(source)
    return last[3]
