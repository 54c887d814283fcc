"""Which arguments of `OuterSteps` do not go together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fl.aggregation import Mean
from fl.collectives import Requantising, RingAllReduce
from fl.errors import ConfigError
from fl.strategies.drivers.outer.all_reduce import adds

if TYPE_CHECKING:
    from fl.strategies.drivers.exchange import Exchange
    from fl.strategies.drivers.outer.outer import OuterSteps

_MEAN = "what is all-reduced is the plain mean of all workers, the same for all"
_LOCAL = "what a site's workers average are whole models, all of them there and as they are"
_ZERO = "an outer gradient of 0 is for the plain mean of whole models, of workers who wait for it"
_ALONE = (
    "who goes on alone does so by a whole outer gradient of its own, as it is, that all wait for"
)
_RING = "what passes around a slow link is a ring"
_SHARED = "who holds a shard of the state takes part in a ring of plain float32 gradients"
_SENDS_GRADIENTS = f"{_SHARED}, as with strategy=data_parallel"
_WHOLE = "what takes the gradient of a step as a whole begins after the backward pass"


def check_together(strategy: OuterSteps) -> None:
    """Raises ConfigError if two arguments are set that do not go together."""
    for first, is_, other, value, why in _clashes(strategy):
        raise ConfigError(
            f"{first} is {is_} and {other} is {value}, but {why}: leave {first} or {other} out"
        )


def check_payloads(strategy: OuterSteps, exchange: Exchange) -> None:
    """Raises ConfigError unless a collective that was chosen can carry what workers send."""
    uplink = exchange.uplink
    for key, other in (("compressor", uplink), ("attack", exchange.attack)):
        if strategy.local_every is not None and other is not None:
            raise ConfigError(
                f"local_every is {strategy.local_every} and {key} is {type(other).__name__}, but "
                f"{_LOCAL}: leave local_every or {key} out"
            )
        if strategy.joiners == "zero" and other is not None:
            raise ConfigError(
                f"joiners is zero and {key} is {type(other).__name__}, but {_ZERO}: leave joiners "
                f"or {key} out"
            )
        if strategy.sharding is not None and key == "compressor" and other is not None:
            raise ConfigError(
                f"sharding is set and compressor is {type(other).__name__}, but {_SHARED}: leave "
                "sharding or compressor out"
            )
        if strategy.failure is not None and strategy.failure.parts and other is not None:
            raise ConfigError(
                f"on_failure is alone and {key} is {type(other).__name__}, but {_ALONE}: choose "
                f"on_failure=retry, or leave {key} out"
            )
    collective, name = strategy.allreduce, type(strategy.allreduce).__name__
    compressor = type(uplink).__name__
    if isinstance(collective, Requantising) and uplink is not None:
        raise ConfigError(
            f"allreduce is {name}, which encodes every sum on its way, and compressor is "
            f"{compressor}: leave one of them out"
        )
    added = strategy.compress_mean or adds(uplink, strategy.aggregator)
    of = strategy.aggregator.name if uplink is None or uplink.adds else compressor
    if not added and strategy.buckets is not None:
        raise ConfigError(
            f"buckets is {strategy.buckets}, but what {of} needs is the gradient as a whole, which "
            "is there after the backward pass: leave buckets out"
        )
    if not added and collective not in (RingAllReduce(), strategy.default_allreduce):
        raise ConfigError(
            f"allreduce is {collective}, but what {of} needs cannot be added on its way, and is "
            "gathered: leave allreduce out"
        )


def _clashes(s: OuterSteps) -> Iterator[tuple[str, Any, str, Any, str]]:
    """Yields pairs of arguments with their values, and why they do not go together."""
    value: Any
    rule, collective = type(s.rule).__name__, type(s.allreduce).__name__
    fails, requantises = s.failure is not None, isinstance(s.allreduce, Requantising)
    # Whole models, that are averaged when all have trained.
    plain = s.rule.fragments == 1 and not (
        s.rule.sends_gradients or s.rule.own_outer or s.rule.overlap
    )
    if s.compress_mean or requantises:
        first = ("compress_mean", "true") if s.compress_mean else ("allreduce", collective)
        for name, value, wrong in (
            ("aggregator", s.aggregator.name, not isinstance(s.aggregator, Mean)),
            ("weighted_by_key", s.weighted_by_key, s.weighted_by_key is not None),
            ("drop", s.drop, s.compress_mean and s.drop > 0),
            ("rule", rule, s.rule.own_outer),
            ("allreduce", collective, s.compress_mean and requantises),
            ("on_failure", s.failure, s.compress_mean and fails),
        ):
            if wrong:
                yield *first, name, value, _MEAN
    if s.local_every is not None:
        for name, value, wrong in (
            ("rule", rule, not plain),
            ("aggregator", s.aggregator.name, not isinstance(s.aggregator, Mean)),
            ("joiners", s.joiners, s.joiners != "train"),
            ("drop", s.drop, s.drop > 0),
        ):
            if wrong:
                yield "local_every", s.local_every, name, value, _LOCAL
    if s.joiners == "zero":
        for name, value, wrong in (
            ("rule", rule, not plain),
            ("aggregator", s.aggregator.name, not isinstance(s.aggregator, Mean)),
            ("weighted_by_key", s.weighted_by_key, s.weighted_by_key is not None),
        ):
            if wrong:
                yield "joiners", "zero", name, value, _ZERO
    if s.failure is not None and s.failure.parts:
        for name, value, wrong in (
            ("rule", rule, not plain),
            ("aggregator", s.aggregator.name, not isinstance(s.aggregator, Mean)),
            ("weighted_by_key", s.weighted_by_key, s.weighted_by_key is not None),
            ("drop", s.drop, s.drop > 0),
            ("local_every", s.local_every, s.local_every is not None),
        ):
            if wrong:
                yield "on_failure", "alone", name, value, _ALONE
    if s.slow_links is not None and not isinstance(s.allreduce, RingAllReduce):
        yield "slow_links", s.slow_links, "allreduce", collective, _RING
    if s.slow_links is not None and s.compress_mean:
        yield "slow_links", s.slow_links, "compress_mean", "true", _RING
    if s.sharding is not None:
        for name, value, wrong in (
            ("rule", rule, not s.rule.sends_gradients),
            ("compress_mean", "true", s.compress_mean),
            ("buckets", s.buckets, s.buckets is not None),
            ("slow_links", s.slow_links, s.slow_links is not None),
            ("allreduce", s.allreduce, s.allreduce != RingAllReduce()),
            ("aggregator", s.aggregator.name, not isinstance(s.aggregator, Mean)),
            ("weighted_by_key", s.weighted_by_key, s.weighted_by_key is not None),
            ("accumulate", s.accumulate, s.accumulate > 1),
            ("on_failure", s.failure, fails),
            ("drop", s.drop, s.drop > 0),
        ):
            if wrong:
                reason = _SENDS_GRADIENTS if name == "rule" else _SHARED
                yield "sharding", "Cephalo", name, value, reason
    if s.buckets is not None:
        for name, value, wrong in (
            ("compress_mean", "true", s.compress_mean),
            ("allreduce", collective, requantises),
            ("on_failure", s.failure, fails),
            ("slow_links", s.slow_links, s.slow_links is not None),
        ):
            if wrong:
                yield "buckets", s.buckets, name, value, _WHOLE
    if not s.rule.sends_gradients:
        if s.buckets is not None:
            yield "rule", rule, "buckets", s.buckets, "its workers send no gradients"
        if s.accumulate > 1:
            yield "rule", rule, "accumulate", s.accumulate, "its workers send no gradients"
