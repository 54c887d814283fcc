"""Local MicroAdam: Adam whose memory is a window of sparse gradients and a 4-bit residual.

Modoranu, Safaryan, Malinovsky, Kurtic, Robert, Richtarik, Alistarh, MicroAdam: Accurate Adaptive
Optimization with Low Space Overhead and Provable Convergence, NeurIPS 2024, arXiv:2405.15593;
IST-DASLab/MicroAdam.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fl.checks import at_least, fraction, not_negative
from fl.clients.local_optimizer import LocalOptimizer, goes_on
from fl.clients.rule import Finished, Received, Scalar, State
from fl.clients.schedule import Schedule
from fl.errors import ConfigError

_CODES = 15  # 4 bits
_LONGEST = 32767  # of a block, so that an index fits into int16


class Memory(NamedTuple):
    """Window and residual.

    Attributes:
        indices: of the kept entries within their blocks, int16, shape (m, blocks, k).
        values: of the kept entries, bfloat16, shape (m, blocks, k).
        codes: of the residual, two entries a byte, uint8, shape (buckets q / 2,).
        low, high: least and greatest residual of each bucket, bfloat16, shape (buckets,).
    """

    indices: Tensor
    values: Tensor
    codes: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class MicroAdam(LocalOptimizer):
    """Adam on the window's sparse gradients, with error feedback in 4 bits.

    At step t = 1, 2, ..., with g the gradient at w, D the decoder and m the window's length:

        a <- g + D(e)
        (I, V) <- the k entries of each block of a of largest magnitude;   a[I] <- 0
        window[(t - 1) mod m] <- (I, V);                                   e <- Q(a)
        w <- w - lr weight_decay w
        mhat = (1 - beta1) / (1 - beta1^t) sum_j beta1^age_j V_j,  at I_j
        vhat = (1 - beta2) / (1 - beta2^t) sum_j beta2^age_j V_j^2,  at I_j
        w <- w - lr mhat / (sqrt(vhat) + eps)

    Q rounds each bucket of q entries to 16 levels between its least and its greatest. Entries in no
    slot of the window are not moved. Memory: 4 m k + d / 2 + 4 d / q bytes, 0.96 a parameter with
    the defaults, where Adam has 8.

    After more than m steps the sums leave out what is older than the window, and the correction
    does not know: with beta2 = 0.999 and m = 10, vhat tends to 1% of Adam's, so steps are up to 10
    (1 - 0.9^10) = 6.5 times as long. That is so in the authors' code.

    Departures: blocks are cut from the whole vector, not tensor by tensor, and are of equal length
    but for rounding; the variants that also apply the residual (alpha) are not here.

    Attributes:
        lr: learning rate, above 0.
        beta1, beta2: decay of the moments, in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: decoupled, at least 0.
        window: m, at least 1.
        density: share of a block's entries kept, in (0, 1]; k = ceil(density * length).
        block: most entries of a block, 1 to 32767.
        bucket: q, even, at least 2. A large one loses its resolution to one outlier.
        clip_norm: bound on the gradient's 2-norm; None does not clip.
        keep_state: a client keeps window, residual and t from task to task; False starts every task
            from zero. None is as the strategy needs it: workers of outer steps, who go on from
            where they were, keep theirs, clients of rounds do not.
        round_schedule: factor on `lr` by the message's "server-round" minus 1; None is 1.
        step_schedule: factor on `lr` by the step within the task; None is 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    rescales: ClassVar[bool] = True

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    window: int = 10
    density: float = 0.01
    block: int = 4096
    bucket: int = 64
    clip_norm: float | None = None
    keep_state: bool | None = None
    round_schedule: Schedule | None = None
    step_schedule: Schedule | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative("eps", self.eps)
        not_negative("weight_decay", self.weight_decay)
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise ConfigError(f"{name} is {beta}; it must be in [0, 1)")
        fraction("density", self.density)
        at_least("window", self.window, 1)
        if not 1 <= self.block <= _LONGEST:
            raise ConfigError(f"block is {self.block}; it must be between 1 and {_LONGEST}")
        if self.bucket < 2 or self.bucket % 2:
            raise ConfigError(f"bucket is {self.bucket}; it must be even, at least 2")

    @property
    def vectors(self) -> int:
        """Window and residual, rounded up from a quarter of a vector."""
        return math.ceil(self.window * self.density + 1 / 8 + 1 / self.bucket)

    @property
    def keeps(self) -> bool | None:
        """Whether window and residual do."""
        return self.keep_state

    def first_memory(self, w: Tensor, scalars: Mapping[str, Scalar]) -> dict[str, Tensor]:
        """Returns an empty memory after zero steps, if it is kept at all."""
        if not goes_on(self.keep_state, scalars):
            return {}
        # NumPy, which carries what clients keep, has no bfloat16: its bits go as int16.
        empty = {name: _bits(tensor) for name, tensor in self._empty(w)._asdict().items()}
        return {**empty, "steps": torch.zeros((), dtype=torch.float64)}

    def init(self, received: Received) -> State:
        """Returns the memory to start from."""
        if not goes_on(self.keep_state, received.scalars):
            return self._empty(received.w)
        kept = {name: received.memory[name] for name in Memory._fields}
        for name in ("values", "low", "high"):
            kept[name] = kept[name].view(torch.bfloat16)
        return Memory(**kept)

    def update(
        self, w: Tensor, g: Tensor, state: State, received: Received, t: int
    ) -> tuple[Tensor, State]:
        """Returns (w, memory) after one step."""
        lr = self.step_lr(received, t)
        steps: Scalar = t + 1.0
        if goes_on(self.keep_state, received.scalars):
            steps = received.memory["steps"] + steps
        memory = self._remember(g, state, steps)
        mhat, vhat = self._moments(memory, steps, w)
        update = mhat / (torch.sqrt(vhat) + self.eps)
        return w * (1 - lr * self.weight_decay) - lr * update, memory

    def finish(self, w: Tensor, state: State, received: Received, steps: Scalar) -> Finished:
        """Returns the model, and the memory if it is kept."""
        if not goes_on(self.keep_state, received.scalars):
            return Finished(w, {}, {})
        kept = {name: _bits(tensor) for name, tensor in state._asdict().items()}
        return Finished(w, {}, {**kept, "steps": received.memory["steps"] + steps})

    # ---- the window ------------------------------------------------------------------------------

    def _blocks(self, size: int) -> tuple[int, int, int]:
        """Returns the number of blocks, their length and k."""
        blocks = -(-size // self.block)
        length = -(-size // blocks)
        return blocks, length, math.ceil(self.density * length)

    def _empty(self, w: Tensor) -> Memory:
        blocks, _, k = self._blocks(w.shape[0])
        buckets = -(-w.shape[0] // self.bucket)
        shape = (self.window, blocks, k)
        return Memory(
            indices=torch.zeros(shape, dtype=torch.int16, device=w.device),
            values=torch.zeros(shape, dtype=torch.bfloat16, device=w.device),
            codes=torch.zeros(buckets * self.bucket // 2, dtype=torch.uint8, device=w.device),
            low=torch.zeros(buckets, dtype=torch.bfloat16, device=w.device),
            high=torch.zeros(buckets, dtype=torch.bfloat16, device=w.device),
        )

    def _remember(self, g: Tensor, memory: Memory, steps: Scalar) -> Memory:
        """Returns the memory after a gradient, shape (p,)."""
        size = g.shape[0]
        blocks, length, k = self._blocks(size)
        a = torch.nn.functional.pad(g + self.residual(memory, g), (0, blocks * length - size))
        a = a.view(blocks, length)
        indices = a.abs().topk(k, dim=1).indices
        values = a.gather(1, indices).to(torch.bfloat16)
        # What bfloat16 rounds off is a part of the residual: nothing gets lost.
        a = a.scatter_add(1, indices, -values.to(a.dtype)).view(-1)[:size]
        codes, low, high = self._quantised(a)
        now = (self._ages(steps, g.device) == 0)[:, None, None]
        return Memory(
            torch.where(now, indices.to(torch.int16), memory.indices),
            torch.where(now, values, memory.values),
            codes,
            low,
            high,
        )

    def _ages(self, steps: Scalar, device: torch.device) -> Tensor:
        """Returns how many steps ago each slot is written, shape (m,), float64."""
        slots = torch.arange(self.window, dtype=torch.float64, device=device)
        return torch.remainder(steps - 1 - slots, self.window)

    def _moments(self, memory: Memory, steps: Scalar, w: Tensor) -> tuple[Tensor, Tensor]:
        """Returns mhat and vhat, shape (p,) each."""
        blocks, length, _ = self._blocks(w.shape[0])
        age = self._ages(steps, w.device)  # of slots without content it does not matter
        start = (torch.arange(blocks, device=w.device) * length)[:, None]
        places = (memory.indices.to(torch.int64) + start).reshape(-1)
        values = memory.values.to(w.dtype)
        moments = []
        for beta, powers in ((self.beta1, values), (self.beta2, values * values)):
            factor = (1 - beta) / (1 - beta**steps)
            weights = (factor * torch.pow(beta, age)).to(w.dtype)
            sums = torch.zeros(blocks * length, dtype=w.dtype, device=w.device)
            sums = sums.scatter_add(0, places, (weights[:, None, None] * powers).reshape(-1))
            moments.append(sums[: w.shape[0]])
        return moments[0], moments[1]

    # ---- the residual ----------------------------------------------------------------------------

    def residual(self, memory: Memory, like: Tensor) -> Tensor:
        """Returns D(e), shape and type of `like`: low + code (high - low) / 15 in each bucket."""
        codes = torch.stack((memory.codes & 15, memory.codes >> 4), dim=-1)
        codes = codes.view(-1, self.bucket).to(like.dtype)
        low, high = memory.low.to(like.dtype)[:, None], memory.high.to(like.dtype)[:, None]
        return (low + codes * ((high - low) / _CODES)).view(-1)[: like.shape[0]]

    def _quantised(self, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns codes, least and greatest of each bucket."""
        buckets = -(-a.shape[0] // self.bucket)
        rows = torch.nn.functional.pad(a, (0, buckets * self.bucket - a.shape[0]))
        rows = rows.view(buckets, self.bucket)
        low, high = rows.amin(1).to(torch.bfloat16), rows.amax(1).to(torch.bfloat16)
        base = low.to(a.dtype)[:, None]
        width = (high.to(a.dtype)[:, None] - base) / _CODES
        # A bucket of equal entries has no width; its codes do not matter.
        codes = (rows - base) / torch.where(width > 0, width, torch.ones_like(width))
        codes = torch.floor(codes + 0.5).clamp(0, _CODES).to(torch.uint8).view(-1, 2)
        return codes[:, 0] | (codes[:, 1] << 4), low, high


def _bits(tensor: Tensor) -> Tensor:
    return tensor.view(torch.int16) if tensor.dtype == torch.bfloat16 else tensor
