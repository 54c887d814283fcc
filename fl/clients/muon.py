"""Local Muon: steps of matrices are orthogonal, those of all else are AdamW's.

Jordan, Jin, Boza, You, Cesista, Newhouse, Bernstein, "Muon: An optimizer for hidden layers in
neural networks", 2024. As the inner optimizer of DiLoCo it is MuLoCo: Therien, Huang, Rish,
Belilovsky, "MuLoCo: Muon is a practical inner optimizer for DiLoCo", 2025, arXiv:2505.23725;
facebookresearch/MuLoCo, after microsoft/dion.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from fl.checks import positive, share
from fl.clients.adamw import AdamW, Moments
from fl.clients.local_optimizer import goes_on
from fl.clients.rule import Received, Scalar, State
from fl.errors import ConfigError
from fl.vectors.layout import Layout

_STEPS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)
"""(a, b, c) of the five Newton-Schulz steps."""


class Stretch(NamedTuple):
    """Consecutive numbers among the p: one matrix, or what AdamW trains.

    Attributes:
        size: how many.
        shape: of the matrix, (fan_out, fan_in); None if AdamW trains them.
    """

    size: int
    shape: tuple[int, int] | None = None


@dataclass(frozen=True)
class Muon(AdamW):
    """Muon for matrices, AdamW for vectors, embeddings and the last layer.

        g <- clip(gradient of the batch at w)
        M <- mu M + G
        W <- (1 - lr weight_decay) W - lr sqrt(fan_out / fan_in) orthogonalised(M)

    of each matrix, with an orthogonal matrix near M, see `orthogonalised`. Kernels of a convolution
    are a matrix of fan_in = in k k columns (the authors' code takes `in` for the root alone). All
    else is trained by `AdamW` at the rate lr adamw_factor.

    The last layer is the last one with parameters, if it is linear, and not the only one with a
    matrix. Departures: float32, where the
    authors' code orthogonalises in bfloat16; the products of Newton-Schulz steps, which take under
    1% of a step of usual batches, are not charged.

    Attributes:
        lr, beta1, beta2, eps, weight_decay, clip_norm, keep_moments, round_schedule, step_schedule:
            as of `AdamW`; keep_moments keeps M too.
        mu: momentum of matrices, in [0, 1).
        adamw_factor: rate of what AdamW trains, in units of lr, above 0.
        parts: of the model, in order.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    lr: float = 0.044
    beta2: float = 0.99
    weight_decay: float = 0.00125
    mu: float = 0.9
    adamw_factor: float = 1.0
    parts: tuple[Stretch, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        share("mu", self.mu)
        positive("adamw_factor", self.adamw_factor)

    def for_model(self, model: nn.Module, layout: Layout) -> Self:
        """Returns the rule that knows which numbers are matrices.

        Raises:
            ConfigError: none are.
        """
        made = copy.copy(self)
        object.__setattr__(made, "parts", parts_of(model, layout))
        return made

    def first_memory(self, w: Tensor, scalars: Mapping[str, Scalar]) -> dict[str, Tensor]:
        """Returns zero moments after zero steps, if they are kept at all."""
        memory = super().first_memory(w, scalars)
        return {**memory, "v": self._zero_v(w)} if memory else {}

    def init(self, received: Received) -> State:
        """Returns the moments to start from: M and m, shape (p,), and v of what AdamW trains."""
        if goes_on(self.keep_moments, received.scalars):
            return super().init(received)
        return Moments(torch.zeros_like(received.w), self._zero_v(received.w))

    def update(
        self, w: Tensor, g: Tensor, state: State, received: Received, t: int
    ) -> tuple[Tensor, State]:
        """Returns (w, moments) after one step."""
        lr = self.step_lr(received, t)
        scalars = {**received.scalars, "lr": received.scalars["lr"] * self.adamw_factor}
        slower = received._replace(scalars=scalars)
        sizes = [part.size for part in self.parts]
        all_v = iter(state.v.split_with_sizes(self._sizes_of_v))
        ws, ms, vs = [], [], []
        pieces = zip(*(x.split_with_sizes(sizes) for x in (w, g, state.m)), strict=True)
        for part, (w_i, g_i, m_i) in zip(self.parts, pieces, strict=True):
            if part.shape is None:
                w_i, (m_i, v_i) = super().update(w_i, g_i, Moments(m_i, next(all_v)), slower, t)
                vs.append(v_i)
            else:
                m_i = self.mu * m_i + g_i
                fan_out, fan_in = part.shape
                u = orthogonalised(m_i.view(part.shape)).reshape(-1)
                w_i = w_i * (1 - lr * self.weight_decay) - lr * math.sqrt(fan_out / fan_in) * u
            ws.append(w_i)
            ms.append(m_i)
        return torch.cat(ws), Moments(torch.cat(ms), torch.cat(vs) if vs else state.v)

    @property
    def _sizes_of_v(self) -> list[int]:
        return [part.size for part in self.parts if part.shape is None]

    def _zero_v(self, w: Tensor) -> Tensor:
        return torch.zeros(sum(self._sizes_of_v), dtype=w.dtype, device=w.device)


def parts_of(model: nn.Module, layout: Layout) -> tuple[Stretch, ...]:
    """Returns the parts of a model's p trained numbers, in order.

    Args:
        model: whose parameters they are.
        layout: of the model.

    Raises:
        ConfigError: there is no matrix.
    """
    owners = [module for module in model.modules() if list(module.parameters(recurse=False))]
    embeddings = {id(p) for m in owners if isinstance(m, nn.Embedding) for p in m.parameters()}
    last = list(owners[-1].parameters()) if isinstance(owners[-1], nn.Linear) else []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    matrices = {
        entry.name
        for entry in layout.trainable
        if len(entry.shape) > 1 and id(parameters[entry.name]) not in embeddings
    }
    hidden = {name for name in matrices if all(parameters[name] is not p for p in last)}
    if not matrices:
        raise ConfigError(
            f"model is {type(model).__name__}, which has no matrix beside embeddings, so that Muon "
            "would be AdamW: use client=adamw"
        )
    found = [
        Stretch(entry.size, (entry.shape[0], entry.size // entry.shape[0]))
        if entry.name in (hidden or matrices)
        else Stretch(entry.size)
        for entry in layout.trainable
    ]
    parts: list[Stretch] = []
    for shape, members in groupby(found, key=lambda part: part.shape):
        if shape is None:
            parts.append(Stretch(sum(part.size for part in members)))
        else:
            parts += members
    return tuple(parts)


def orthogonalised(m: Tensor, eps: float = 1e-7) -> Tensor:
    """Returns U V^T of m = U S V^T, roughly: singular values become 0.7 to 1.2, and 0 stays 0.

        X <- m / (|m|_F + eps);    five times  X <- a X + (b A + c A^2) X,  A = X X^T

    Args:
        m: shape (rows, columns), any dtype.
        eps: keeps a zero matrix zero.
    """
    x = m.mT if m.shape[-2] > m.shape[-1] else m
    x = x / (torch.linalg.matrix_norm(x) + eps)
    for a, b, c in _STEPS:
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    u: Tensor = x.mT if m.shape[-2] > m.shape[-1] else x
    return u
