"""Which settings there are to try: keys, and the values of each."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, IntervalSweep, Override
from hydra.errors import HydraException

from fl.errors import ConfigError
from fl.randomness import uniform

Point = tuple[str, ...]
"""Overrides, one for each key that is tuned."""


@dataclass(frozen=True)
class SearchInterval:
    """Numbers between two bounds, of which each is as likely as another; or each power of ten.

    Whole numbers if `int(interval(...))` says so, the bounds among them.
    """

    low: float
    high: float
    log: bool
    whole: bool

    def at(self, u: float) -> str:
        """Returns the number at a quantile."""
        low, high = (self.low - 0.5, self.high + 0.5) if self.whole else (self.low, self.high)
        number = low * (high / low) ** u if self.log else low + (high - low) * u
        return str(round(number)) if self.whole else f"{number:.4g}"


@dataclass(frozen=True)
class Space:
    """What is tuned.

    Attributes:
        fixed: overrides of all runs.
        keys: what is tuned, and the values to try or the interval to draw from, for each key.
    """

    fixed: tuple[str, ...]
    keys: dict[str, tuple[str, ...] | SearchInterval]

    @classmethod
    def of(cls, words: Sequence[str]) -> Space:
        """Returns the space of overrides as `fl -m` has them.

        Raises:
            ConfigError: nothing is to be tuned, or an interval is none.
        """
        fixed: list[str] = []
        keys: dict[str, tuple[str, ...] | SearchInterval] = {}
        try:
            parsed = OverridesParser.create().parse_overrides(list(words))
        except HydraException as error:
            raise ConfigError(" ".join(str(error).split())) from error
        for word, override in zip(words, parsed, strict=True):
            key = word.partition("=")[0]
            if key in keys or any(other.partition("=")[0] == key for other in fixed):
                raise ConfigError(f"{key} is given twice: once with {word}")
            if not override.is_sweep_override():
                fixed.append(word)
            elif not (override.is_interval_sweep() or override.is_discrete_sweep()):
                raise ConfigError(f"{word} says no values that can be tuned: name them")
            elif isinstance(override.value(), Glob):
                raise ConfigError(f"{word} is a glob, which is no list of values: name them")
            elif override.is_interval_sweep():
                keys[key] = _interval(override)
            else:
                keys[key] = tuple(dict.fromkeys(map(str, override.sweep_string_iterator())))
        if not keys:
            raise ConfigError(
                "there is nothing to tune: give several values of a key, as "
                "client.rule.lr=0.01,0.1,1"
            )
        return cls(tuple(fixed), keys)

    @property
    def drawn(self) -> bool:
        """Whether points are drawn, as an interval has no end of them."""
        return any(isinstance(values, SearchInterval) for values in self.keys.values())

    def points(self, trials: int) -> list[Point]:
        """Returns the points to try: so many, or, if none are drawn, all of the grid."""
        if self.drawn:
            return [self._draw(i) for i in range(trials)]
        choices = [[f"{key}={v}" for v in _values(values)] for key, values in self.keys.items()]
        return list(itertools.product(*choices))

    def _draw(self, i: int) -> Point:
        found = []
        for key, values in self.keys.items():
            u = uniform(0, f"tune {key}", i)
            value = (
                values.at(u) if isinstance(values, SearchInterval) else values[int(u * len(values))]
            )
            found.append(f"{key}={value}")
        return tuple(found)

    def edges(self, best: Point) -> dict[str, str]:
        """Returns the keys at whose least or largest value a point lies, and the next value.

        Only of numbers of which several were tried: they go on by the ratio of the last two, or by
        their difference if not all are positive. None where points are drawn.
        """
        found: dict[str, str] = {}
        if self.drawn:
            return found
        for word in best:
            key, _, value = word.partition("=")
            numbers = sorted(_numbers(self.keys[key]))
            if len(numbers) < 2 or float(value) not in (numbers[0], numbers[-1]):
                continue
            edge, inner = numbers[0], numbers[1]
            if float(value) == numbers[-1]:
                edge, inner = numbers[-1], numbers[-2]
            beyond = edge * edge / inner if numbers[0] > 0 else 2 * edge - inner
            whole = all(number.is_integer() for number in numbers)
            if not whole or round(beyond) not in (0, edge):
                found[key] = str(round(beyond)) if whole else f"{beyond:.4g}"
        return found

    def wider(self, edges: dict[str, str]) -> tuple[Space, list[Point]]:
        """Returns the space with another value of some keys, and the points that it has more."""
        keys = {
            key: (*_values(values), edges[key]) if key in edges else values
            for key, values in self.keys.items()
        }
        wider = replace(self, keys=keys)
        before = {*self.points(0)}
        return wider, [point for point in wider.points(0) if point not in before]


def _values(values: tuple[str, ...] | SearchInterval) -> tuple[str, ...]:
    return () if isinstance(values, SearchInterval) else values


def _numbers(values: tuple[str, ...] | SearchInterval) -> Iterator[float]:
    """Yields the values if they are numbers that can be continued; nothing if one is none."""
    try:
        numbers = [*map(float, _values(values))]
    except ValueError:
        return
    if all(map(math.isfinite, numbers)):
        yield from numbers


def _interval(override: Override) -> SearchInterval:
    value = override.value()
    assert isinstance(value, IntervalSweep)
    low, high, log = float(value.start or 0), float(value.end or 0), "log" in value.tags
    if not math.isfinite(high - low) or not low < high or (log and low <= 0):
        raise ConfigError(
            f"{override.input_line} is no interval: its bounds must rise"
            f"{', and be positive for tag(log, ...)' if log else ''}"
        )
    return SearchInterval(low, high, log, whole=isinstance(value.start, int))
