"""What is said to whoever waits before there is anything to see."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

_TAKEN_BACK = "\r\x1b[2K"


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Says on a terminal, while the block lasts, what is being done; elsewhere nothing."""
    if not sys.stderr.isatty():
        yield
        return
    print(f"fl: {what} ...", end="\r", file=sys.stderr, flush=True)  # others write over it
    try:
        yield
    finally:
        print(_TAKEN_BACK, end="", file=sys.stderr, flush=True)
