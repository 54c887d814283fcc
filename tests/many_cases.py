"""Cases that take less time than a test does by itself: all of them are one test."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def for_each(names: str, cases: Iterable[Any]) -> Callable[[Callable[..., None]], Any]:
    """As `pytest.mark.parametrize`, but one test goes through the cases; one that fails is named.

    For tests that leave nothing behind, as fixtures are those of the first case. A case that skips
    leaves out itself alone.
    """
    keys, cases = [name.strip() for name in names.split(",")], list(cases)

    def decorated(test: Callable[..., None]) -> Any:
        @functools.wraps(test)
        def all_of_them(*args: Any, **kwargs: Any) -> None:
            for case in cases:
                given = dict(zip(keys, case if len(keys) > 1 else [case], strict=True))
                try:
                    test(*args, **kwargs, **given)
                except pytest.skip.Exception:
                    continue
                except Exception as error:
                    error.add_note(f"with {given}")
                    raise

        parameters = inspect.signature(test).parameters.values()
        asked = [p for p in parameters if p.name not in keys]
        all_of_them.__signature__ = inspect.Signature(asked)  # type: ignore[attr-defined]
        return all_of_them

    return decorated
