"""Quantities in the form people read them: `2 h 13 min`, `1.2 GB`, `35.1 kJ`.

Prefixes are decimal (1 kB = 1000 B), as in link rates and in the SI. Every function accepts None
and numbers that are not finite, because a table must be printable whatever a run produced.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from fl.reports.files import printable

MISSING = "–"  # noqa: RUF001  (a dash in a table cell, not a minus sign)

_MINUTE, _HOUR, _DAY = 60, 3600, 86400
_BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_JOULE_UNITS = ("J", "kJ", "MJ", "GJ", "TJ")
_COUNT_UNITS = ("", "k", "M", "G", "T")
_LONGEST_NAME = 50


class Unit(NamedTuple):
    """A unit for an axis: divide by `divisor`, label with `symbol`."""

    divisor: float
    symbol: str


def duration(seconds: float | None) -> str:
    """Returns a time span given in s: `350 ms`, `12.3 s`, `2 min 5 s`, `2 h 13 min`, `3 d 4 h`."""
    if seconds is None or not math.isfinite(seconds):
        return _not_a_number(seconds)
    if seconds < 0:
        return "-" + duration(-seconds)
    if seconds == 0:
        return "0 s"
    # Each branch asks whether the *rounded* value still fits its unit: 59.96 s is 1 min.
    if round(seconds * 1e6) < 1000:
        return f"{seconds * 1e6:.3g} µs"
    if round(seconds * 1e3) < 1000:
        return f"{round(seconds * 1e3)} ms"
    if round(seconds, 1) < _MINUTE:
        return f"{seconds:.1f} s"
    if round(seconds) < _HOUR:
        return _two_parts(round(seconds), _MINUTE, "min", 1, "s")
    if round(seconds / _MINUTE) * _MINUTE < _DAY:
        return _two_parts(round(seconds / _MINUTE) * _MINUTE, _HOUR, "h", _MINUTE, "min")
    return _two_parts(round(seconds / _HOUR) * _HOUR, _DAY, "d", _HOUR, "h")


def size(num_bytes: float | None) -> str:
    """Returns an amount of data given in bytes: `812 B`, `1.2 GB`."""
    if num_bytes is None or not math.isfinite(num_bytes):
        return _not_a_number(num_bytes)
    return _prefixed(num_bytes, _BYTE_UNITS, whole_base=True)


def energy_part(name: str) -> str:
    """Returns what a part of the energy in a summary is called.

    "radio" is power while sending and receiving, over wires too, and while peers wait for each
    other in it.
    """
    return "communicating" if name == "radio" else name


def energy(joules: float | None) -> str:
    """Returns an energy given in J: `12.0 mJ`, `35.1 kJ`."""
    if joules is None or not math.isfinite(joules):
        return _not_a_number(joules)
    if 0 < abs(joules) < 0.1:
        return f"{joules * 1e3:.1f} mJ" if abs(joules) >= 1e-4 else f"{joules:.2g} J"
    return _prefixed(joules, _JOULE_UNITS, whole_base=False)


def count(number: float | None) -> str:
    """Returns a number of things: `950`, `12,345`, `1.2 M` (from a million on)."""
    if number is None or not math.isfinite(number):
        return _not_a_number(number)
    if abs(number) < 1e6:
        return f"{round(number):,}"
    return _prefixed(number, _COUNT_UNITS, whole_base=True)


def rate(per_second: float | None) -> str:
    """Returns a frequency in 1/s: `0.42/s`, `87.5/s`, `12,345/s`."""
    if per_second is None or not math.isfinite(per_second):
        return _not_a_number(per_second)
    if round(abs(per_second), 1) >= 100:
        return f"{count(per_second)}/s"
    return f"{per_second:.{1 if round(abs(per_second), 2) >= 1 else 2}f}/s"


def metric(value: float | None) -> str:
    """Returns a metric with four significant digits: `0.9132`, `2.303`, `1.2e-05`."""
    if value is None or not math.isfinite(value):
        return _not_a_number(value)
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def name(metric: str) -> str:
    """Returns a metric's name as it can be printed, cut to what a table or a line has room for."""
    metric = printable(metric)
    return metric if len(metric) <= _LONGEST_NAME else f"{metric[: _LONGEST_NAME - 1]}…"


def time_unit(largest_s: float) -> Unit:
    """Returns the unit in which an axis that ends at `largest_s` seconds is easy to read."""
    for limit, unit in (
        (1e-3, Unit(1e-6, "µs")),
        (1.0, Unit(1e-3, "ms")),
        (3 * _MINUTE, Unit(1.0, "s")),
        (3 * _HOUR, Unit(_MINUTE, "min")),
        (3 * _DAY, Unit(_HOUR, "h")),
    ):
        if largest_s < limit:
            return unit if largest_s > 0 else Unit(1.0, "s")
    return Unit(_DAY, "d")


def byte_unit(largest: float) -> Unit:
    """Returns the unit in which an axis that ends at `largest` bytes is easy to read."""
    power = _power(largest, len(_BYTE_UNITS))
    return Unit(1000.0**power, _BYTE_UNITS[power])


def energy_unit(largest_j: float) -> Unit:
    """Returns the unit in which an axis that ends at `largest_j` joules is easy to read."""
    power = _power(largest_j, len(_JOULE_UNITS))
    return Unit(1000.0**power, _JOULE_UNITS[power])


def _power(value: float, available: int) -> int:
    power = 0
    while abs(value) >= 1000.0 ** (power + 1) and power + 1 < available:
        power += 1
    return power


def _prefixed(value: float, units: tuple[str, ...], whole_base: bool) -> str:
    power = _power(value, len(units))
    if power == 0 and whole_base:
        return f"{round(value)} {units[0]}".rstrip()
    # 999_950 would print as 1000.0 k: the rounded number decides the prefix.
    if abs(round(value / 1000.0**power, 1)) >= 1000 and power + 1 < len(units):
        power += 1
    return f"{value / 1000.0**power:.1f} {units[power]}"


def _two_parts(total: int, large: int, large_name: str, small: int, small_name: str) -> str:
    whole, rest = divmod(total, large)
    tail = f" {rest // small} {small_name}" if rest else ""
    return f"{whole} {large_name}{tail}"


def _not_a_number(value: float | None) -> str:
    return MISSING if value is None else str(value)
