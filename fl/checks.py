"""Arguments of a part: their bounds, and those that only some values of its others make it read.

A part with choices has arguments of each of them. One that is set beside a choice that does not
read it makes another run than its user believes, and nobody notices. So a part says which those
are, and whoever reads a user's configuration refuses them:

    @read_if(lambda a: a["kind"] == "capped", "most", only="{at}kind=capped reads it")
    class Method: ...
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from fl.errors import ConfigError

Part = TypeVar("Part", bound=Callable[..., Any])
Values = Mapping[str, Any]


@dataclass(frozen=True)
class _Condition:
    holds: Callable[[Values], bool]
    names: tuple[str, ...]
    only: str


_CONDITIONS: dict[Any, list[_Condition]] = {}


def at_least(name: str, value: int, bound: int) -> None:
    """Raises a ConfigError unless a whole number reaches its bound."""
    if isinstance(value, bool) or not isinstance(value, int) or value < bound:
        raise ConfigError(f"{name} is {value!r}; it must be a whole number, at least {bound}")


def boolean(name: str, value: object) -> None:
    """Raises a ConfigError unless a value is true or false."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r:.80}; it must be true or false")


def is_a(name: str, value: object, kind: type, such_as: str = "") -> None:
    """Raises a ConfigError unless a value is of a kind; names an example of one."""
    if not isinstance(value, kind):
        package = ".".join(kind.__module__.split(".")[:2])
        example = f", such as {such_as}" if such_as else ""
        raise ConfigError(
            f"{name} is {value!r:.80}; it must be a {package}.{kind.__name__}{example}"
        )


def positive(name: str, value: float) -> None:
    """Raises a ConfigError unless a number is positive and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigError(f"{name} is {value!r}; it must be finite and above 0")


def not_negative(name: str, value: float) -> None:
    """Raises a ConfigError unless a number is at least 0 and finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {value!r}; it must be finite and at least 0")


def share(name: str, value: float) -> None:
    """Raises a ConfigError unless a number lies in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"{name} is {value!r}; it must be at least 0 and below 1")


def fraction(name: str, value: float) -> None:
    """Raises a ConfigError unless a number lies in (0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"{name} is {value!r}; it must be above 0 and at most 1")


def within_unit(name: str, value: float) -> None:
    """Raises a ConfigError unless a number lies in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ConfigError(f"{name} is {value!r}; it must be in [0, 1]")


def read_if(holds: Callable[[Values], bool], *names: str, only: str) -> Callable[[Part], Part]:
    """Returns a decorator of a class, or of a function that makes a part.

    Args:
        holds: from the part's arguments to whether it reads those below. Arguments that are parts
            themselves are mappings, as they are in a configuration.
        *names: of the arguments; one of an argument that is a part has a dot, and "*" stands for
            any name.
        only: what reads them, or counts instead, for a message; "{at}" is put before the names of
            the part's own arguments.
    """

    def noted(part: Part) -> Part:
        _CONDITIONS.setdefault(part, []).append(_Condition(holds, names, only))
        return part

    return noted


def unread_arguments(part: Any, given: Values) -> dict[str, str]:
    """Returns the names of arguments that a part does not read, with what does instead.

    Args:
        part: a class, of which the conditions of its bases hold too, or a function.
        given: its arguments; those left out have their defaults.
    """
    kinds = part.__mro__ if isinstance(part, type) else (part,)
    unread = {}
    for kind in kinds:
        for condition in _CONDITIONS.get(kind, ()):
            parameters = inspect.signature(kind).parameters.values()
            defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
            if not condition.holds({**defaults, **given}):
                unread.update(dict.fromkeys(condition.names, condition.only))
    return unread
