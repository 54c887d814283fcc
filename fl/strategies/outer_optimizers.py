"""What makes new outer parameters of an outer gradient.

Reddi, Charles, Zaheer, Garrett, Rush, Konecny, Kumar, McMahan: Adaptive Federated Optimization,
ICLR 2021, arXiv:2003.00295 (FedOpt); with momentum as DiLoCo has it, arXiv:2311.08105. An outer
gradient points uphill: Delta = theta before the inner steps minus theta after them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fl.checks import not_negative, positive, share
from fl.clients.schedule import Schedule, check_schedule
from fl.errors import ConfigError
from fl.vectors.rows import Row

Vector = NDArray[np.float64]
State = dict[str, Vector]


class OuterOptimizer(ABC):
    """A rule on vectors of shape (n,), which may be fragments.

    Computed in float64 and rounded once, so that theta - (theta - theta_m) is theta_m.
    """

    by_tensor: ClassVar[bool] = False
    """Whether it has to know where tensors end, see `shaped`."""

    def shaped(self, sizes: Sequence[int]) -> OuterOptimizer:
        """Returns one whose `init` is for tensors of these sizes, one after the other."""
        return self

    @abstractmethod
    def init(self, n: int) -> State:
        """Returns the state before the first step."""

    @abstractmethod
    def step(self, theta: Row, delta: Vector, state: State, t: int) -> tuple[Row, State]:
        """Returns parameters and state after a step.

        Args:
            theta: shape (n,), float32; not changed.
            delta: outer gradient, shape (n,), float64; not changed.
            state: after the step before; not changed.
            t: steps before this one.

        Returns:
            The parameters, float32, read-only, and the state.
        """


@dataclass(frozen=True)
class OuterSgd(OuterOptimizer):
    """SGD, with momentum and Nesterov's look-ahead as in `torch.optim.SGD`.

        b <- mu b + Delta                          (b is 0 before the first step)
        theta <- theta - lr (Delta + mu b)         (without nesterov: theta - lr b)

    The first step moves by lr (1 + mu) Delta, and a constant Delta in the end by
    lr Delta / (1 - mu) per step: 1.33 Delta and 7 Delta for DiLoCo's (0.7, 0.9). With lr 1 and mu 0
    the parameters become the mean of the workers'.

    Attributes:
        lr: above 0.
        momentum: mu, in [0, 1).
        nesterov: look ahead; needs momentum.
        schedule: factor on lr by t; None is 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    lr: float = 0.7
    momentum: float = 0.9
    nesterov: bool = True
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        share("momentum", self.momentum)
        if self.nesterov and self.momentum == 0:
            raise ConfigError(
                "nesterov needs momentum above 0, got 0: set it, or set nesterov to false"
            )
        check_schedule("schedule", self.schedule)

    def init(self, n: int) -> State:
        """Returns b = 0, or nothing without momentum."""
        return {"b": np.zeros(n)} if self.momentum else {}

    def step(self, theta: Row, delta: Vector, state: State, t: int) -> tuple[Row, State]:
        """Returns parameters and b; see `OuterOptimizer.step`."""
        lr = self.lr * (1.0 if self.schedule is None else self.schedule(t))
        if not self.momentum:
            return rounded(theta - lr * delta), state
        b = self.momentum * state["b"] + delta
        ahead = delta + self.momentum * b if self.nesterov else b
        return rounded(theta - lr * ahead), {"b": b}


@dataclass(frozen=True)
class OuterAdam(OuterOptimizer):
    """Adam with decoupled weight decay, as `torch.optim.AdamW` computes it.

        theta <- theta - lr weight_decay theta
        m <- beta1 m + (1 - beta1) Delta;    v <- beta2 v + (1 - beta2) Delta^2
        theta <- theta - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)    t = 1, 2, ...

    FedAdam of arXiv:2003.00295 is this without the two corrections of the bias.

    Attributes:
        lr: above 0.
        beta1, beta2: decay of the moments, in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: decoupled, at least 0.
        schedule: factor on lr by t; None is 1.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        not_negative("eps", self.eps)
        not_negative("weight_decay", self.weight_decay)
        for name, beta in (("beta1", self.beta1), ("beta2", self.beta2)):
            if not 0 <= beta < 1:
                raise ConfigError(f"{name} is {beta}; it must be in [0, 1)")
        check_schedule("schedule", self.schedule)

    def init(self, n: int) -> State:
        """Returns m = v = 0."""
        return {"m": np.zeros(n), "v": np.zeros(n)}

    def step(self, theta: Row, delta: Vector, state: State, t: int) -> tuple[Row, State]:
        """Returns parameters and moments; see `OuterOptimizer.step`."""
        lr = self.lr * (1.0 if self.schedule is None else self.schedule(t))
        m, v, move = _moments(self, state, delta, t)
        decayed = theta.astype(np.float64) * (1 - lr * self.weight_decay)
        return rounded(decayed - lr / (1 - self.beta1 ** (t + 1)) * move), {"m": m, "v": v}


@dataclass(frozen=True)
class OuterLamb(OuterOptimizer):
    """LAMB: Adam's direction, whose length in every tensor is that of the tensor.

        m <- beta1 m + (1 - beta1) Delta;    v <- beta2 v + (1 - beta2) Delta^2
        r = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay theta
        theta <- theta - lr |theta| / |r| r,    tensor by tensor

    Where |theta| or |r| is 0, the ratio is 1. You et al., "Large Batch Optimization for Deep
    Learning: Training BERT in 76 minutes", ICLR 2020, arXiv:1904.00962, Algorithm 2 with the
    identity as phi. The defaults are those of ALBERT in yandex-research/DeDLOC.

    Attributes:
        lr: above 0.
        beta1, beta2: decay of the moments, in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: in the direction, at least 0.
        clip_norm: bound on |Delta|, of all tensors together; None does not clip.
        schedule: factor on lr by t; None is 1.
        sizes: of the tensors; said by `shaped`.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    lr: float = 1.76e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    clip_norm: float | None = 1.0
    schedule: Schedule | None = None
    sizes: tuple[int, ...] = field(default=(), init=False)

    by_tensor: ClassVar[bool] = True

    def __post_init__(self) -> None:
        positive("lr", self.lr)
        share("beta1", self.beta1)
        share("beta2", self.beta2)
        not_negative("eps", self.eps)
        not_negative("weight_decay", self.weight_decay)
        if self.clip_norm is not None:
            positive("clip_norm", self.clip_norm)
        check_schedule("schedule", self.schedule)

    def shaped(self, sizes: Sequence[int]) -> OuterLamb:
        """Returns one whose `init` knows where tensors end."""
        made = replace(self)
        object.__setattr__(made, "sizes", tuple(sizes))
        return made

    def init(self, n: int) -> State:
        """Returns m = v = 0, and where tensors end; a vector that is not known is one tensor."""
        ends = np.cumsum(self.sizes or (n,), dtype=np.float64)[:-1]
        return {"m": np.zeros(n), "v": np.zeros(n), "ends": ends}

    def step(self, theta: Row, delta: Vector, state: State, t: int) -> tuple[Row, State]:
        """Returns parameters and moments; see `OuterOptimizer.step`."""
        lr = self.lr * (1.0 if self.schedule is None else self.schedule(t))
        norm = np.linalg.norm(delta)
        if self.clip_norm is not None and norm > self.clip_norm:
            delta = delta * (self.clip_norm / norm)
        m, v, r = _moments(self, state, delta, t)
        w = theta.astype(np.float64)
        r = r / (1 - self.beta1 ** (t + 1)) + self.weight_decay * w
        ends = state["ends"].astype(np.int64)
        for own, move in zip(np.split(w, ends), np.split(r, ends), strict=True):
            length, of_move = np.linalg.norm(own), np.linalg.norm(move)
            own -= lr * (length / of_move if length > 0 and of_move > 0 else 1.0) * move
        return rounded(w), {**state, "m": m, "v": v}


def _moments(
    rule: OuterAdam | OuterLamb, state: State, delta: Vector, t: int
) -> tuple[Vector, Vector, Vector]:
    """Returns m, v, and m / (sqrt(v / (1 - beta2^t)) + eps), of which Adam and LAMB are made."""
    m = rule.beta1 * state["m"] + (1 - rule.beta1) * delta
    v = rule.beta2 * state["v"] + (1 - rule.beta2) * delta**2
    deviation = np.sqrt(v / (1 - rule.beta2 ** (t + 1))) + rule.eps
    # What never had a gradient does not move, even with eps = 0.
    return m, v, np.divide(m, deviation, out=np.zeros_like(m), where=deviation > 0)


def rounded(theta: Vector) -> Row:
    """Returns parameters as they are kept, float32, read-only."""
    row = theta.astype(np.float32)
    row.flags.writeable = False
    return row
