"""Gradients that clients estimate, most of them by forward passes alone.

Zeroth-order optimization as the benchmark of Zhang et al., Revisiting Zeroth-Order Optimization for
Memory-Efficient LLM Fine-Tuning, ICML 2024, arXiv:2402.11592 (ZO-Bench/ZO-LLM) has it: an ordinary
optimizer is given an estimate in the place of the gradient. With SGD, momentum or AdamW behind it
that is ZO-SGD, ZO-SGD-MMT or ZO-Adam; ZO-SGD-Cons is `fl.clients.Conservative`. MeZO,
arXiv:2305.17333, is ZO-SGD with one direction.

An estimate along one Gaussian direction of p numbers has E g = grad f and E |g|^2 = (p + 2)
|grad f|^2, so that its learning rate is about 1 / p of the gradient's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import accumulate, groupby, pairwise
from statistics import NormalDist
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl.checks import at_least, boolean, fraction, positive
from fl.clients.rule import Batch, Scalar
from fl.models.flops import Flops
from fl.vectors.layout import Layout


class Estimator(ABC):
    """What a client's rule gets in the place of a batch's gradient.

    A frozen dataclass of hyperparameters whose methods are pure functions of tensors, within the
    limits of `fl.clients.rule`. All gradients of a step are along the directions that the step
    draws, from the stream (seed, "directions", client, message), at more than one point as well.
    """

    def for_model(self, model: nn.Module, layout: Layout) -> Self:
        """Returns the estimator for a model, of those that tell its p numbers apart.

        Args:
            model: whose structure counts; its numbers are gone.
            layout: of the model.
        """
        return self

    @property
    def draws(self) -> int:
        """Vectors of p numbers of N(0, 1) that a step takes."""
        return 0

    @property
    def activations(self) -> int:
        """How often a device holds the largest of a forward pass's activations."""
        return 1

    @abstractmethod
    def flops(self, model: Flops) -> float:
        """Returns the operations of an estimate for one example, of a model with these."""

    @abstractmethod
    def grad(self, batch: Batch, w: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the estimate at `w`, shape (p,), and the loss there or nearby, shape ().

        Args:
            batch: the mini-batch.
            w: weights, shape (p,).
            z: what was drawn, shape (draws, p).
        """


@dataclass(frozen=True)
class AlongDirections(Estimator):
    """An estimate that is the mean over `samples` directions, of some numbers each.

    Attributes:
        samples: directions q, at least 1.
        density: share of a direction's numbers that are not set to 0, drawn anew for every one, in
            (0, 1].

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    samples: int = 1
    density: float = 1.0

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 1)
        fraction("density", self.density)

    @property
    def draws(self) -> int:
        """A vector for each direction, and one for what is set to 0."""
        return self.samples if self.density == 1 else 2 * self.samples

    def directions(self, z: Tensor) -> Iterator[Tensor]:
        """Yields directions, shape (p,), of which each number is 0 but with probability `density`.

        Args:
            z: numbers of N(0, 1), shape (draws, p).
        """
        if self.density == 1:
            yield from z
            return
        bound = NormalDist().inv_cdf(self.density)
        for row, chance in zip(z[: self.samples], z[self.samples :], strict=True):
            yield torch.where(chance < bound, row, 0.0)


@dataclass(frozen=True)
class TwoPoint(AlongDirections):
    """The mean over `samples` directions z of the difference quotient along them, times z.

        rho = (L(w + eps z) - L(w - eps z)) / (2 eps);    g = mean of rho z

    Each takes two forward passes and holds neither activations nor a gradient: a device makes z
    again from its seed, and adds rho z where it goes. Both passes drop out the same units; MeZO
    switches dropout off. The loss is the mean of those of the passes.

    Attributes:
        samples, density: as of `AlongDirections`.
        eps: length of a step along z, above 0; float32 loses digits of the quotient below 1e-4.
        sign: take rho's sign instead, as the benchmark's code for ZO-SGD-Sign does; the sign of
            every number of the estimate, which others mean by the name, is another method.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    eps: float = 1e-3
    sign: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("eps", self.eps)
        boolean("sign", self.sign)

    def flops(self, model: Flops) -> float:
        """Returns those of two forward passes for each direction."""
        return 2.0 * self.samples * model.forward

    def grad(self, batch: Batch, w: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean of rho z, and the mean loss of all passes."""
        found = [
            self._along(u, batch, w)
            for direction in self.directions(z)
            for u in self.parts(direction)
        ]
        g = torch.stack([estimate for estimate, _ in found]).sum(0) / self.samples
        return g, torch.stack([loss for _, loss in found]).mean()

    def parts(self, z: Tensor) -> Iterator[Tensor]:
        """Yields the directions, shape (p,), into which z is cut, which sum to it: z itself."""
        yield z

    def _along(self, z: Tensor, batch: Batch, w: Tensor) -> tuple[Tensor, Tensor]:
        """Returns rho z, and the mean of the two losses."""
        above, below = batch.losses(w + self.eps * z, w - self.eps * z)
        rho = (above - below) / (2 * self.eps)
        return (torch.sign(rho) if self.sign else rho) * z, (above + below) / 2


@dataclass(frozen=True)
class BlockWise(TwoPoint):
    """`TwoPoint` block by block, all at the same w: rho_b of block b by its own two passes.

        g_b = mean of rho_b z_b,    rho_b = (L(w + eps z_b) - L(w - eps z_b)) / (2 eps)

    with z_b zero outside the block, whose size takes the place of p in the variance. Blocks are the
    model's modules at `depth` of their names: "blocks.0" at 2, "blocks" at 1. The passes are
    charged as whole ones, though what comes before a block need not be computed again. The
    benchmark's code also has a form that steps after each block, and neither moves embeddings.

    Attributes:
        samples, density, eps, sign: as of `TwoPoint`.
        depth: parts of a module's name that name its block, at least 1.
        sizes: of the blocks, in the order of the p numbers.

    Raises:
        ConfigError: a hyperparameter is out of range.
    """

    depth: int = 2
    sizes: tuple[int, ...] = field(default=(), init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("depth", self.depth, 1)

    def for_model(self, model: nn.Module, layout: Layout) -> Self:
        """Returns the estimator that knows the blocks."""
        names = [
            (tuple(entry.name.split(".")[:-1][: self.depth]), entry.size)
            for entry in layout.trainable
        ]
        sizes = [
            sum(size for _, size in block) for _, block in groupby(names, key=lambda item: item[0])
        ]
        made = replace(self)
        object.__setattr__(made, "sizes", tuple(sizes))
        return made

    def flops(self, model: Flops) -> float:
        """Returns those of two forward passes for each direction and block."""
        return super().flops(model) * len(self.sizes)

    def parts(self, z: Tensor) -> Iterator[Tensor]:
        """Yields z within each block, and 0 elsewhere."""
        ends = list(accumulate(self.sizes, initial=0))
        for begin, end in pairwise(ends):
            yield F.pad(z[begin:end], (begin, ends[-1] - end))


@dataclass(frozen=True)
class ForwardGradient(AlongDirections):
    """The mean over `samples` directions z of the exact derivative along them, times z.

        g = mean of <grad L(w), z> z

    which is `TwoPoint` in the limit of small eps. Baydin, Pearlmutter, Syme, Wood, Torr, Gradients
    without Backpropagation, 2022, arXiv:2202.08587. A device finds the derivative by forward-mode
    differentiation: of a product of matrices the tangent is two, so a direction is charged two
    forward passes beside the one that all share, and activations are held twice, with their
    tangents. The number itself is taken here from a gradient, which is the same but for rounding.

    Attributes:
        samples, density: as of `AlongDirections`.
    """

    @property
    def activations(self) -> int:
        """Twice: with their tangents."""
        return 2

    def flops(self, model: Flops) -> float:
        """Returns those of the values, and twice as much for each direction."""
        return (1.0 + 2.0 * self.samples) * model.forward

    def grad(self, batch: Batch, w: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the mean of <grad L, z> z, and the loss."""
        exact, loss = batch.grad(w)
        found = [(exact @ u) * u for u in self.directions(z)]
        return torch.stack(found).mean(0), loss


@dataclass(frozen=True)
class Projected(Estimator):
    """The gradient of a client that sends nothing of it but products with `samples` directions.

    Of Just One Byte, whose workers find each product by two forward passes: that is what it is
    charged and held in memory for, whereas the products, which the compressor takes, are exact, the
    limit of the quotients for small eps.

    Attributes:
        samples: directions, at least 1, as many as the compressor's.

    Raises:
        ConfigError: there is none.
    """

    samples: int = 8

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 1)

    def flops(self, model: Flops) -> float:
        """Returns those of two forward passes for each direction."""
        return 2.0 * self.samples * model.forward

    def grad(self, batch: Batch, w: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the batch's own."""
        return batch.grad(w)


@dataclass(frozen=True)
class EstimatedBatch:
    """A mini-batch whose gradient is an estimate.

    Attributes:
        batch: the examples.
        estimator: of the gradient.
        z: what the step has drawn, shape (draws, p).
    """

    batch: Batch
    estimator: Estimator
    z: Tensor

    @property
    def examples(self) -> Scalar:
        """Number of examples in the batch."""
        return self.batch.examples

    @property
    def own(self) -> Batch:
        """The same examples for a second model, along the same directions."""
        return EstimatedBatch(self.batch.own, self.estimator, self.z)

    def grad(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the estimate at `w`, and the loss there or nearby."""
        return self.estimator.grad(self.batch, w, self.z)

    def loss(self, w: Tensor) -> Tensor:
        """Returns the loss at `w`."""
        return self.batch.loss(w)

    def losses(self, *points: Tensor) -> tuple[Tensor, ...]:
        """Returns the losses at several weights."""
        return self.batch.losses(*points)

    def features(self, w: Tensor) -> Tensor:
        """Returns the examples' features at `w`."""
        return self.batch.features(w)

    # Of rules that take these (`Rule.differentiates`) there is no estimate.

    def hessian_product(self, w: Tensor, v: Tensor) -> Tensor:
        """Raises NotImplementedError."""
        raise NotImplementedError

    def features_grad(self, loss: Callable[[Tensor], Tensor], w: Tensor) -> Tensor:
        """Raises NotImplementedError."""
        raise NotImplementedError
