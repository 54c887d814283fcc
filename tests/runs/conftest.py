"""`fl` in the process of the tests."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator

import pytest

from fl.cli import main


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Runs `fl` in this process; what it does to logging is undone."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main sets it, and it would stay
    root, flower = logging.getLogger(), logging.getLogger("flwr")
    before = (root.handlers[:], root.level, flower.level, flower.propagate)

    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["fl", *arguments])
        main()

    yield run
    root.handlers[:], root.level, flower.level, flower.propagate = before
