"""1-bit Adam: Adam for a while, then signs of the momentum under a frozen variance.

Tang, Gan, Awan, Rajbhandari, Li, Lian, Liu, Zhang, He, 1-bit Adam: Communication Efficient Large-
Scale Training with Adam's Convergence Speed, ICML 2021, arXiv:2102.02888; microsoft/DeepSpeed.

All workers are replicas: they hold the same x, m and v, and apply the same message from the server
(`Replicated`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from fl.aggregation import Aggregator, Mean
from fl.compression.compressor import (
    Channel,
    Compressor,
    Length,
    Shapes,
    State,
    Vector,
    checked,
    extent,
    prefixed,
    unprefixed,
)
from fl.compression.receivers import require_all
from fl.compression.replicated import Replicated
from fl.compression.sign import Sign
from fl.compression.wire import HEADER, Buffer, Reader, floats, header, joined, u8, u32
from fl.errors import ConfigError

WARMUP, COMPRESSED = 0, 1
_OVERHEAD = HEADER.size + 1 + 4
_MOST = 1e18  # of a gradient or momentum: its square, and a step with v = 0, stay within float32


@dataclass(frozen=True)
class OneBitAdam(Replicated):
    """Adam with dense gradients for T_w rounds, then with compressed momenta.

    Warm-up, t < T_w, with g the mean gradient:

        m <- b1 m + (1 - b1) g;   v <- b2 v + (1 - b2) g^2

    Compression, v frozen; C has one scale per tensor at the workers, and one for each of the n
    chunks that the original spreads the server over:

        worker i:  a = b1 m + (1 - b1) g_i + e_i;   sends C(a);   e_i <- a - C(a)
        server:    c = mean_i C(a_i) + E;           sends C(c);   E <- c - C(c)
        everyone:  m <- C(c)

    Both phases: x <- x - lr (m / (sqrt v + eps) + weight_decay x). There is no bias correction, as
    in the code, where the flag is read but never applied.

    In the warm-up g_i may come through a compressor of its own, as fp16 training sends half the
    bytes in DeepSpeed: g is then the mean of what is decoded, and what that compressor keeps is
    dropped when the warm-up ends.

    Every worker's e_i enters the mean, so all must take part in every round. Checkpoints need the
    e_i of all workers and E.

    States: worker: `m`, `v`, `e`, float32, (d,), and `step`, int64, (1,); server: `error`, float32,
    (d,), and `step`; those of C, prefixed by `inner.`; in the warm-up those of the compressor of
    gradients, prefixed by `gradients.`, at the server `gradients.i.` for worker i.

    Wire, both ways:

    | bytes | content |
    |---|---|
    | 6 | header |
    | 1 | 0 in the warm-up, 1 after it |
    | 4 | step, u32 |
    | 4 d, or as C | gradient in float32 or as a payload, or the momentum as a payload of C |

    Length: `11 + 4 d`, then with signs `17 + 4 L + ceil(d / 8)` up and `17 + 4 n + ceil(d / 8)`
    down. Against dense fp16 a share w of warm-up saves a factor 1 / (w + (1 - w) / 16): 4.9 at 15%.

    Departures: no padding of the vector to a multiple of n lcm(n, 8), so the padded zeros do not
    enter the scale; chunks differ by one entry if n does not divide d; no mask for entries whose
    gradient is always zero. Where v is 0 when it is frozen, as everywhere with T_w = 0, a step has
    the size lr m / eps.

    Attributes:
        workers: n, at least 1.
        warmup: T_w, rounds; a rule of thumb is 15 to 20% of all.
        lr: above 0.
        beta_1: in [0, 1).
        beta_2: in [0, 1).
        eps: above 0.
        weight_decay: at least 0.
        compressor: C; the original's is the sign with the scale |x|_2 / sqrt d, which is not a
            contraction for all vectors. It must not keep a state.
        aggregator: takes the place of the mean over workers, in both phases. One that continues
            from its last result keeps that in the server's state.
        gradients: carries the workers' gradients in the warm-up; None sends them in float32.

    Raises:
        ConfigError: a parameter is out of range.
    """

    FORMAT: ClassVar[int] = 26

    workers: int
    warmup: int
    lr: float
    beta_1: float = 0.9
    beta_2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    compressor: Compressor = field(default_factory=lambda: Sign("l2"))
    aggregator: Aggregator = field(default_factory=Mean)
    gradients: Channel | None = None

    def __post_init__(self) -> None:
        if self.workers < 1 or self.warmup < 0:
            raise ConfigError(
                f"workers is {self.workers} and warmup is {self.warmup}; they must be at least 1 "
                "and 0"
            )
        if not (self.lr > 0 and self.eps > 0 and self.weight_decay >= 0):
            raise ConfigError(
                f"lr is {self.lr}, eps is {self.eps}, weight_decay is {self.weight_decay}; the "
                "first two must be above 0, the last at least 0"
            )
        if not (0 <= self.beta_1 < 1 and 0 <= self.beta_2 < 1):
            raise ConfigError(f"betas are {self.beta_1}, {self.beta_2}; each must be in [0, 1)")
        self.aggregator.check(self.workers)
        if self.aggregator.reference in ("trusted-update", "own-vector"):
            raise ConfigError(
                f"aggregator is {self.aggregator.name}, which compares vectors with the server's "
                "own, and here the server has no data: use another aggregator"
            )

    @property
    def sends_gradients(self) -> bool:
        """Whether there is a warm-up."""
        return self.warmup > 0

    def through(self, channel: Channel) -> Self:
        """Returns the same with a compressor of the gradients of the warm-up."""
        return replace(self, gradients=channel) if self.warmup else super().through(channel)

    def init_worker(self, shapes: Shapes) -> State:
        """Returns m = v = e = 0 and step 0, and the states of both compressors."""
        zeros = np.zeros(shapes.size, dtype=np.float32)
        inner = prefixed("inner", self.compressor.init(shapes))
        step = np.zeros(1, dtype=np.int64)
        if self.gradients is not None:
            inner |= prefixed("gradients", self.gradients.init(shapes))
        return {"m": zeros, "v": zeros, "e": zeros, "step": step, **inner}

    def init_server(self, shapes: Shapes) -> State:
        """Returns E = 0 and step 0, the state of C, and what is known of workers' gradients."""
        inner = prefixed("inner", self.compressor.init(self.chunks(shapes)))
        error = np.zeros(shapes.size, dtype=np.float32)
        state: State = {"error": error, "step": np.zeros(1, dtype=np.int64), **inner}
        if self.aggregator.reference == "last-result":
            state["result"] = np.zeros(shapes.size)
        if self.gradients is not None:
            for i in range(self.workers):
                state |= prefixed(_received(i), self.gradients.init_receiver(shapes))
        return state

    def chunks(self, shapes: Shapes) -> Shapes:
        """Returns the vector as the server's chunks, at most n, of nearly equal size."""
        n = min(self.workers, shapes.size)
        small, rest = divmod(shapes.size, n)
        return Shapes(tuple((small + (i < rest),) for i in range(n)))

    def message_of(self, g: Vector, state: State) -> Vector:
        """Returns g in the warm-up, then b1 m + (1 - b1) g."""
        if int(state["step"][0]) < self.warmup:
            return g
        with np.errstate(over="ignore"):  # refused when it is encoded
            return np.float32(self.beta_1) * state["m"] + np.float32(1 - self.beta_1) * g

    def encode(
        self, u: Vector, shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Returns a worker's message, and its state; see `Replicated.encode`."""
        largest = extent(checked(u, shapes))
        if largest > _MOST:
            raise ConfigError(f"an entry of magnitude {largest:.3g}; at most {_MOST:.0e}: clip")
        step = int(state["step"][0])
        if step < self.warmup:
            if self.gradients is None:
                return self._message(WARMUP, step, floats(u), shapes), state
            kept = unprefixed("gradients", state)
            body, kept = self.gradients.encode(u, shapes, kept, rng)
            state = {**state, **prefixed("gradients", kept)}
            return self._message(WARMUP, step, body, shapes), state
        a = u + state["e"]
        body, inner = self.compressor.encode(a, shapes, unprefixed("inner", state), rng)
        a -= self.compressor.decode(body, shapes)
        return (
            self._message(COMPRESSED, step, body, shapes),
            {**state, "e": a, **prefixed("inner", inner)},
        )

    def combine(
        self, payloads: Sequence[bytes], shapes: Shapes, state: State, rng: np.random.Generator
    ) -> tuple[bytes, State]:
        """Returns the server's message to all workers, and its state after it.

        Args:
            payloads: one from each of the n workers, in the order of workers.
            shapes: of the tensors.
            state: the server's.
            rng: for compressors that draw.

        Raises:
            ConfigError: not n payloads.
            PayloadError: one is malformed, or of another step.
        """
        require_all(self.participation, "OneBitAdam", range(len(payloads)), self.workers)
        step = int(state["step"][0])
        after = self._next(state)
        heard = []
        for i, payload in enumerate(payloads):
            received, kept = self._heard(payload, step, shapes, state, i)
            heard.append(received)
            if step + 1 < self.warmup:
                after |= prefixed(_received(i), kept)
        rows = np.stack(heard, dtype=np.float64)
        if isinstance(self.aggregator, Mean):
            result = rows.mean(axis=0)  # 0 where gradients cancel: a step divides by their size
        else:
            result = self.aggregator(rows, None, rng, state.get("result"))
        mean = result.astype(np.float32)
        if "result" in state:
            after["result"] = result
        if step < self.warmup:
            return self._message(WARMUP, step, floats(mean), shapes), after
        c = mean + state["error"]
        chunks = self.chunks(shapes)
        body, inner = self.compressor.encode(c, chunks, unprefixed("inner", state), rng)
        c -= self.compressor.decode(body, chunks)
        after.update({"error": c, **prefixed("inner", inner)})
        return self._message(COMPRESSED, step, body, shapes), after

    def decode(self, payload: bytes, shapes: Shapes, state: State, worker: int) -> Vector:
        """Returns a worker's gradient or momentum; see `Replicated.decode`."""
        return self._heard(payload, int(state["step"][0]), shapes, state, worker)[0]

    def apply(
        self, x: Vector, payload: bytes, shapes: Shapes, state: State
    ) -> tuple[Vector, State]:
        """Returns a worker's x after the step, shape (d,), and its state.

        Raises:
            PayloadError: the server's message is malformed, or of another step.
        """
        step = int(state["step"][0])
        received = self._read(payload, step, shapes, self.chunks(shapes))
        m: NDArray[Any] = received
        v: NDArray[Any] = state["v"]
        if step < self.warmup:
            b1, b2 = self.beta_1, self.beta_2
            m = np.float32(b1) * state["m"] + np.float32(1 - b1) * received
            v = np.float32(b2) * v + np.float32(1 - b2) * np.square(received)
        direction = m / (np.sqrt(v) + np.float32(self.eps))
        if self.weight_decay:
            direction = direction + np.float32(self.weight_decay) * x
        x = x - np.float32(self.lr) * direction
        return x, {**self._next(state), "m": m, "v": v}

    def length(self, shapes: Shapes) -> Length:
        """Returns the least and the most bytes of a message, either way."""
        inner = [self.compressor.length(at) for at in (shapes, self.chunks(shapes))]
        if self.gradients is not None:
            inner.append(self.gradients.length(shapes))
        sizes = [4 * shapes.size, *(low for low, _ in inner), *(high for _, high in inner)]
        return Length(_OVERHEAD + min(sizes), _OVERHEAD + max(sizes))

    def _next(self, state: State) -> State:
        """Returns a state with the next step, without what only the warm-up needs after that."""
        step = state["step"] + 1
        if step[0] == self.warmup:
            state = {n: value for n, value in state.items() if not n.startswith("gradients.")}
        return {**state, "step": step}

    def _message(self, phase: int, step: int, body: Buffer, shapes: Shapes) -> bytes:
        return joined(header(self.FORMAT, shapes.size), u8(phase), u32(step), body)

    def _heard(
        self, payload: bytes, step: int, shapes: Shapes, state: State, worker: int
    ) -> tuple[Vector, State]:
        """Returns a worker's gradient or momentum, and what is known of its gradients after it."""
        kept = unprefixed(_received(worker), state)
        if self.gradients is None or step >= self.warmup:
            return self._read(payload, step, shapes, shapes), kept
        reader = self._opened(payload, step, shapes)
        received, kept = self.gradients.receive(bytes(reader.rest()), shapes, kept)
        return _bounded(received, reader), kept

    def _read(self, payload: bytes, step: int, shapes: Shapes, inner: Shapes) -> Vector:
        """Returns a vector in float32 or as a payload of C, by the phase."""
        reader = self._opened(payload, step, shapes)
        if step >= self.warmup:
            return _bounded(self.compressor.decode(bytes(reader.rest()), inner), reader)
        received = reader.floats(shapes.size)
        reader.end()
        return _bounded(received, reader)

    def _opened(self, payload: bytes, step: int, shapes: Shapes) -> Reader:
        """Returns what follows phase and step."""
        reader = Reader.open(payload, "OneBitAdam", self.FORMAT, shapes.size, self.length(shapes))
        phase, got = reader.u8(), reader.u32()
        expected = WARMUP if step < self.warmup else COMPRESSED
        if (phase, got) != (expected, step):
            raise reader.fail(f"phase {phase} of step {got}, expected {expected} of {step}")
        return reader


def _received(worker: int) -> str:
    return f"gradients.{worker}"


def _bounded(received: Vector, reader: Reader) -> Vector:
    largest = extent(received)
    if largest > _MOST:
        raise reader.fail(f"an entry of magnitude {largest:.3g}; at most {_MOST:.0e} is possible")
    return received
