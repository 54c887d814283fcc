"""Numbers that a message's configuration may hold, read with their bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fl.errors import ConfigError


def read_float(
    config: Mapping[str, Any], key: str, *, above: float | None = None, least: float | None = None
) -> float | None:
    """Returns `config[key]` as a float, or None if the key is absent.

    Args:
        config: the message's configuration.
        key: the key.
        above: bound the value must exceed.
        least: bound the value must reach.

    Raises:
        ConfigError: the value is not a number, not finite, or out of bounds.
    """
    value = config.get(key)
    if value is None:
        return None
    bound = f"above {above:g}" if above is not None else f"at least {least or 0:g}"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"the message's {key!r} is {value!r}; it must be a number, {bound}")
    if (
        not math.isfinite(value)
        or (above is not None and value <= above)
        or (least is not None and value < least)
    ):
        raise ConfigError(f"the message's {key!r} is {value}; it must be finite and {bound}")
    return float(value)


def read_int(config: Mapping[str, Any], key: str, *, least: int) -> int | None:
    """Returns `config[key]` as an int, or None if the key is absent.

    Raises:
        ConfigError: the value is not a whole number, or smaller than `least`.
    """
    value = config.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(
            f"the message's {key!r} is {value!r}; it must be a whole number, at least {least}"
        )
    if value < least:
        raise ConfigError(f"the message's {key!r} is {value}; it must be at least {least}")
    return value
