"""What outer gradients pass between the workers: decoding, forging, an aggregator, and its price.

There is no server in these methods. The process that runs the strategy does the arithmetic that
every worker would do for itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fl.aggregation import Aggregator, Dropped, Guard, Mean
from fl.clients.app.island import Fragments
from fl.collectives import Buckets, Collective, Failure, Gather, Requantising
from fl.compression import Channel, MeanLink, PayloadError, Receivers
from fl.compression.compressor import State
from fl.errors import ConfigError, NoStep
from fl.flower.grid_view import Control, Peers
from fl.flower.identity import client_of
from fl.randomness import generator
from fl.strategies.drivers.exchange import Exchange
from fl.strategies.drivers.liars import Liars, Rule
from fl.strategies.drivers.outer.apportioning import Apportioning
from fl.strategies.drivers.outer.reduction import Reduction
from fl.strategies.outer_optimizers import Vector
from fl.strategies.outer_rule import Combine, OuterGradients


def adds(uplink: Channel | None, aggregator: Aggregator) -> bool:
    """Returns whether payloads can be added on their way to what workers make of them."""
    return isinstance(aggregator, Mean) and (uplink is None or uplink.adds)


class AllReduce:
    """The all-reduces of a run.

    Payloads of which a worker can add up two on their way, and send the sum in the same form, as
    float32's, go by a collective: around a ring, 2 (M - 1) / M of a payload from every worker. All
    others, and all if an aggregator has to see every vector by itself, are gathered: every worker
    gets all payloads, M - 1 from every worker, and does the same with them. So what a compressor
    keeps at the receiver is the same at all of them, and is kept here once for each sender.

    Where the mean is compressed instead of each vector, there are several all-reduces, one after
    the other, of the sums that it is made of, see `fl.compression.CompressesMean`.

    Args:
        exchange: the workers' uplink, and who forges what.
        cut: the fragments.
        aggregator: F.
        seed: of aggregators that draw.
        collective: by which payloads are added.
        failure: what happens if a worker goes offline in the middle; None leaves it without effect.
        buckets: in which gradients travel during the backward pass; None sends them after it.
        compress_mean: the uplink compresses the mean.
    """

    def __init__(
        self,
        exchange: Exchange,
        cut: Fragments,
        aggregator: Aggregator,
        seed: int,
        *,
        collective: Collective,
        failure: Failure | None = None,
        buckets: Buckets | None = None,
        compress_mean: bool = False,
    ) -> None:
        self._exchange = exchange
        self._collective = collective
        self._failure = failure
        self._buckets = buckets
        self._shapes = cut.shapes
        self._aggregator = aggregator
        self._seed = seed
        uplink, attack = exchange.uplink, exchange.attack
        self._means: list[MeanLink] = []
        if compress_mean and uplink is not None:
            self._means = [MeanLink(uplink, shapes) for shapes in cut.shapes]
            uplink = None  # vectors come as they are
        clients, most = exchange.num_clients, exchange.max_bytes
        self._receivers: list[Receivers] = []
        if uplink is not None:
            each = most // len(cut)
            self._receivers = [Receivers(uplink, shapes, clients, each) for shapes in cut.shapes]
        self._liars: list[Liars] = []
        if attack is not None:
            self._liars = [
                Liars(attack, exchange.seed, uplink, shapes, clients, most // len(cut))
                for shapes in cut.shapes
            ]
        self.avoided: set[tuple[int, int]] = set()  # edges that a ring goes around, by Flower ids
        self._numbers: dict[int, int] = {}  # of senders, by Flower id
        self._senders: dict[tuple[int, int], State] = {}  # of `passed`, by fragment and number
        self._results: dict[tuple[int, int | None], Vector] = {}  # F's last, by fragment and worker
        self._latest: dict[tuple[int, int | None], Vector] = {}  # those of steps not taken yet

    @property
    def adds(self) -> bool:
        """Whether payloads are added on their way."""
        return bool(self._means) or adds(self._exchange.uplink, self._aggregator)

    @property
    def memory_bytes(self) -> int:
        """What a worker that enters needs beside the model, to read what the others send."""
        kept = sum(link.nbytes for link in self._means)
        return kept + sum(receivers.nbytes for receivers in self._receivers)

    def is_liar(self, node: int) -> bool:
        """Returns whether a worker forges what it sends."""
        return bool(self._liars) and client_of(node) in self._exchange.byzantine

    def read(self, p: int, node: int, payload: bytes) -> Vector:
        """Returns a worker's outer gradient of fragment p as the others decode it, float64.

        Raises:
            PayloadError: no encoder can have made it.
        """
        return self._receivers[p].receive(self._number(node), payload).astype(np.float64)

    def passed(self, p: int, node: int, x: Vector, step: int) -> tuple[Vector, int]:
        """Encodes a vector for a worker that has sent it as it is.

        Args:
            p: the fragment.
            node: the worker.
            x: shape (n,), finite.
            step: inner steps after which it takes part; names what the encoder draws.

        Returns:
            The vector as the others decode it, float64, and the bytes of the payload.

        Raises:
            PayloadError, ConfigError: no payload can hold it.
        """
        uplink = self._exchange.uplink
        if uplink is None:
            return x, 4 * len(x)
        number = self._number(node)
        state = self._senders.get((p, number)) or uplink.init(self._shapes[p])
        rng = generator(self._exchange.seed, "compression", client_of(node), p, step)
        vector = np.ascontiguousarray(x, np.float32)
        payload, state = uplink.encode(vector, self._shapes[p], state, rng)
        self._senders[p, number] = state
        return self.read(p, node, payload), len(payload)

    def forget(self, node: int, p: int) -> None:
        """Drops what is known of a worker's compressor, which starts over."""
        number = self._number(node)
        self._senders.pop((p, number), None)
        if self._receivers:
            self._receivers[p].forget(number)
        if self._liars:
            self._liars[p].forget(number)
        if self._means:
            self._means[p].forget(node)

    def begin(
        self,
        reduction: Reduction,
        peers: Peers,
        control: Control,
        ends: Sequence[tuple[float, float]] = (),
        helpers: Sequence[int] = (),
        apportioned: Apportioning | None = None,
    ) -> float:
        """Begins an all-reduce: liars forge their part; returns when it is finished, s.

        Args:
            reduction: in which everybody's outer gradient is; is told what the others get of it,
                and who is gone before its end.
            peers: the workers' links.
            control: is told what is forged, and what of that nobody can use.
            ends: when each worker's last step ended, and how long it took, s; read with buckets,
                and where the state is apportioned.
            helpers: clients that take part without a vector of their own.
            apportioned: who holds which share of the state; None if all hold all of it.

        Raises:
            ConfigError: the compressor needs every client, and some are missing.
        """
        own = reduction.own
        reduction.sent = {node: own[node] for node in sorted(own)}
        if self._receivers:
            numbers = [self._number(node) for node in own]
            self._receivers[reduction.fragment].check_participants(numbers)
        if self._liars:
            self._forge(reduction, control)
        if self._means:
            return self._compress_mean(reduction, peers)
        sent = reduction.sent
        by = self._collective if self.adds else Gather()
        sizes = [one.size for one in sent.values()]
        if apportioned is not None:
            return apportioned.finish_s(peers, list(sent), sizes, ends) if sent else 0.0
        if self._buckets is not None:
            finish_s = 0.0
            for bucket in self._buckets.of(self._shapes[reduction.fragment].sizes):
                parts = [math.ceil(bucket.share * size) for size in sizes]
                since = self._buckets.ready_s(bucket, ends)
                finish_s = peers.collect(list(sent), parts, by, since=since).finish_s
            return finish_s
        nodes = [*sent, *helpers] if by.helpers else list(sent)
        sizes += [0] * (len(nodes) - len(sizes))
        got = peers.collect(nodes, sizes, by, self._failure, avoided=frozenset(self.avoided))
        reduction.gone = set(got.gone)
        if isinstance(by, Requantising) and got.nodes:
            reduction.mean = _requantised(by, [sent[node].delta for node in got.nodes])
        there = set(got.nodes)
        reduction.sent = {node: one for node, one in sent.items() if node in there}
        reduction.order = list(got.nodes)
        return got.finish_s

    def gradients(self, reduction: Reduction, worker: int | None = None) -> OuterGradients:
        """Returns what an all-reduce brings.

        Args:
            reduction: has begun.
            worker: who combines it for itself; None if all do the same.
        """
        sent = reduction.sent
        return OuterGradients(
            {node: one.delta for node, one in sent.items()},
            {node: one.weight for node, one in sent.items()},
            self.combining(reduction, worker),
            reduction.step,
        )

    def combining(self, reduction: Reduction, worker: int | None = None) -> Combine:
        """Returns F, with what it is given in an all-reduce beside the outer gradients."""
        p, refused = reduction.fragment, reduction.refused

        def combine(x: NDArray[np.float64], weights: NDArray[np.float64]) -> Vector:
            if isinstance(reduction.mean, NoStep):
                raise reduction.mean
            if reduction.mean is not None:
                return reduction.mean
            before = [Dropped(len(x) + i, why) for i, why in enumerate(refused)]
            f = self._aggregator.tolerates(len(x) + len(before))
            said: Sequence[object] = weights.tolist()
            admitted = Guard(f)(x, x.shape[1], said, np.float64, before=before)
            rule = self._aggregator.tolerating(admitted.f)
            rng, reference = self._rng(reduction), self._reference(p, worker, x.shape[1])
            try:
                result = rule(admitted.x, admitted.weights, rng, reference)
            except NoStep:
                raise
            except ConfigError as error:  # enough workers were there at the beginning
                raise NoStep(f"of {len(x)} outer gradients: {error}") from error
            self._latest[p, worker] = result
            return result

        return combine

    def ended(self, *, stepped: bool) -> None:
        """Notes whether a step was taken: aggregators go on from their result of the last one."""
        if stepped and self._aggregator.reference == "last-result":
            self._results.update(self._latest)
        self._latest.clear()

    def _compress_mean(self, reduction: Reduction, peers: Peers) -> float:
        """Makes the mean of what was sent; returns when the last of its all-reduces is finished."""
        p, nodes = reduction.fragment, list(reduction.sent)

        def reduced(size: int) -> float:
            return peers.collect(nodes, [size] * len(nodes), self._collective).finish_s

        if not nodes:
            return reduced(0)
        x = np.stack([sent.delta for sent in reduction.sent.values()]).astype(np.float32)
        name = ("compressed mean", p, reduction.step)
        rngs = [generator(self._exchange.seed, *name, client_of(node)) for node in nodes]
        try:
            mean, sizes = self._means[p].mean(x, nodes, rngs)
        except ConfigError as error:
            reduction.mean = NoStep(f"of {len(nodes)} outer gradients: {error}")
            return reduced(4 * x.shape[1])
        reduction.mean = mean.astype(np.float64)
        return [reduced(size) for size in sizes][-1]  # each after the one before

    def _forge(self, reduction: Reduction, control: Control) -> None:
        """Replaces what liars send; what nobody could read is refused."""
        sent, p = reduction.sent, reduction.fragment
        own = [node for node in sent if self.is_liar(node)]
        honest = [node for node in sent if node not in own]
        if not own:
            return
        rows = self._liars[p].forged(
            [sent[node].delta for node in honest],
            [sent[node].delta for node in own],
            generator(self._exchange.seed, "attack", p, reduction.step),
            lambda m, n: self._known(reduction, m, n),
        )
        if rows is None:
            return
        for node, row in zip(own, rows, strict=True):
            message_id = sent[node].message_id
            control.forged(message_id)
            why = "is not finite"
            if np.isfinite(row).all():
                try:
                    delta = self._liars[p].received(self._number(node), row, message_id, p)
                except (PayloadError, ConfigError) as error:
                    why = str(error)
                else:
                    sent[node] = sent[node]._replace(delta=delta.astype(np.float64))
                    continue
            del sent[node]
            control.rejected(message_id)
            reduction.refused.append(why)

    def _known(self, reduction: Reduction, m: int, n: int) -> Rule | None:
        """Returns F, its rng and its reference; None if M vectors are too few for it."""
        try:
            self._aggregator.check(m)
        except ConfigError:
            return None
        reference = self._reference(reduction.fragment, None, n)
        return self._aggregator, self._rng(reduction), reference

    def _rng(self, reduction: Reduction) -> np.random.Generator:
        return generator(self._seed, "aggregation", reduction.fragment, reduction.step)

    def _reference(self, p: int, worker: int | None, n: int) -> Vector | None:
        if self._aggregator.reference != "last-result":
            return None
        return self._results.get((p, worker), np.zeros(n))

    def _number(self, node: int) -> int:
        return self._numbers.setdefault(node, len(self._numbers))


def _requantised(by: Requantising, deltas: Sequence[Vector]) -> Vector | NoStep:
    """Returns what a collective makes of vectors on its way, in the order of its ranks."""
    with np.errstate(over="ignore"):  # seen by the collective
        x = np.stack(deltas).astype(np.float32)
    try:
        return by.reduced(x).astype(np.float64)
    except ConfigError as error:
        return NoStep(f"of {len(x)} outer gradients: {error}")
