"""Training that keeps only the largest activations for the backward pass.

Scaled activation pruning of FedMef: Huang, Zhuang, Chen, Lyu, "FedMef: Towards Memory-efficient
Federated Dynamic Pruning", arXiv:2403.14737 (CVPR 2024); rules by the authors' library,
FedPruning/FedPruning. There the positions of what is kept are 32-bit numbers, here bits, and what
is largest is decided over a batch, here in each example by itself, so that an example's gradient
does not depend on who is beside it.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

Saved = tuple[Tensor, ...]


class _Linear(Function):
    """x W^T + b, whose gradient of W is that of the largest numbers of each x."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, gamma: float) -> tuple[Tensor, ...]:
        return F.linear(x, weight, bias), *_kept(x, gamma)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, _ = inputs
        _, values, bits = output
        ctx.mark_non_differentiable(values, bits)
        ctx.save_for_backward(values, bits, weight)
        ctx.shape, ctx.has_bias = tuple(x.shape), bias is not None

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        values, bits, weight = ctx.saved_tensors
        x = _filled(values, bits, ctx.shape)
        rows = g.reshape(-1, g.shape[-1])
        of_bias = rows.sum(dim=0) if ctx.has_bias else None
        of_x = g @ weight if ctx.needs_input_grad[0] else None
        return of_x, rows.T @ x.reshape(-1, x.shape[-1]), of_bias, None


class _Conv2d(Function):
    """A convolution, whose gradient of the filters is that of the largest numbers of each image."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any, gamma: float
    ) -> tuple[Tensor, ...]:
        return F.conv2d(x, weight, bias, *geometry), *_kept(x, gamma)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, bias, geometry, _ = inputs
        _, values, bits = output
        ctx.mark_non_differentiable(values, bits)
        ctx.save_for_backward(values, bits, weight)
        ctx.shape, ctx.geometry, ctx.has_bias = tuple(x.shape), geometry, bias is not None

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        values, bits, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        x = _filled(values, bits, ctx.shape)
        of_x, of_weight, of_bias = torch.ops.aten.convolution_backward(
            g,
            x,
            weight,
            [weight.shape[0]],
            stride,
            padding,
            dilation,
            False,  # not transposed
            [0, 0],
            groups,
            [ctx.needs_input_grad[0], True, ctx.has_bias],
        )
        return of_x, of_weight, of_bias, None, None


class _ReLU(Function):
    """max(x, 0), which keeps a bit for each number: where it is above 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> tuple[Tensor, Tensor]:
        return F.relu(x), _packed(x.reshape(1, -1) > 0)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> Tensor:
        (bits,) = ctx.saved_tensors
        return g * _unpacked(bits, g.numel()).reshape(g.shape)


class _MaxPool2d(Function):
    """Pooling that keeps where the maxima were, and not among what."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
        out, where = F.max_pool2d_with_indices(x, *geometry)
        return out, where.to(torch.int32)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])
        ctx.shape = tuple(inputs[0].shape)

    @staticmethod
    def backward(ctx: Any, g: Tensor, *_: Any) -> tuple[Tensor, None]:
        (where,) = ctx.saved_tensors
        flat = g.new_zeros((*ctx.shape[:-2], ctx.shape[-2] * ctx.shape[-1]))
        flat = flat.scatter_add(-1, where.long().flatten(-2), g.flatten(-2))
        return flat.reshape(ctx.shape), None


def _kept(x: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Returns the n - floor(gamma n) largest of the n numbers of each example, and where they are.

    Returns:
        Values in the order of their places, shape (b, k); a bit for each number, (b, ceil(n / 8)).
    """
    rows = x.reshape(len(x), -1)
    k = rows.shape[1] - math.floor(gamma * rows.shape[1])
    places = rows.abs().topk(k, dim=1, sorted=False).indices.sort(dim=1).values
    mask = torch.zeros_like(rows).scatter(1, places, 1.0) > 0
    return rows.gather(1, places), _packed(mask)


def _filled(values: Tensor, bits: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Returns what `_kept` was given, with zeros for what it did not keep."""
    mask = _unpacked(bits, math.prod(shape[1:]))
    rank = (mask.cumsum(dim=1) - 1).clamp(min=0).long()
    return (values.gather(1, rank) * mask).reshape(shape)


def _packed(mask: Tensor) -> Tensor:
    """Returns the bits of booleans, (b, n), as bytes, (b, ceil(n / 8)); the first bit lowest."""
    padded = F.pad(mask.to(torch.uint8), (0, -mask.shape[1] % 8))
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (padded.reshape(len(mask), -1, 8) * powers).sum(dim=-1, dtype=torch.uint8)


def _unpacked(bits: Tensor, n: int) -> Tensor:
    """Returns what `_packed` was given, as zeros and ones, float32."""
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=bits.device)
    mask = (bits[..., None] & powers) > 0
    return mask.reshape(len(bits), -1)[:, :n].to(torch.float32)


# ---- layers --------------------------------------------------------------------------------------


class SparseLinear(nn.Linear):
    """A linear layer that keeps the largest of what it takes."""

    gamma: float

    def forward(self, x: Tensor) -> Tensor:
        """Returns what `nn.Linear` does."""
        return _Linear.apply(x, self.weight, self.bias, self.gamma)[0]  # type: ignore[no-any-return,no-untyped-call]


class SparseConv2d(nn.Conv2d):
    """A convolution that keeps the largest of what it takes."""

    gamma: float

    def forward(self, x: Tensor) -> Tensor:
        """Returns what `nn.Conv2d` does."""
        geometry = (self.stride, self.padding, self.dilation, self.groups)
        return _Conv2d.apply(x, self.weight, self.bias, geometry, self.gamma)[0]  # type: ignore[no-any-return,no-untyped-call]


class BitReLU(nn.ReLU):
    """A ReLU that keeps a bit for each number."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns what `nn.ReLU` does."""
        return _ReLU.apply(x)[0]  # type: ignore[no-any-return,no-untyped-call]


class IndexedMaxPool2d(nn.MaxPool2d):
    """Pooling that keeps where the maxima were."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns what `nn.MaxPool2d` does."""
        geometry = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return _MaxPool2d.apply(x, geometry)[0]  # type: ignore[no-any-return,no-untyped-call]


def with_sparse_activations(model: nn.Module, gamma: float) -> nn.Module:
    """Returns a copy of a model that keeps less for its backward pass.

    What it computes is the same, and so are the gradients of what layers take; those of the weights
    of linear layers and 2-d convolutions are of their inputs without the floor(gamma n) smallest of
    the n numbers of each example. A ReLU and a max-pooling beside them would keep the whole tensor
    all the same: they keep what they need of it, bits and places, which changes nothing.

    Other modules, and functions that a model calls by itself, keep what they keep.

    Args:
        model: not changed.
        gamma: in [0, 1).
    """
    model = copy.deepcopy(model)
    for module in model.modules():
        kind = type(module)
        if kind is nn.Linear:
            module.__class__, module.gamma = SparseLinear, gamma  # type: ignore[assignment]
        elif kind is nn.Conv2d and module.padding_mode == "zeros":
            if not isinstance(module.padding, str):
                module.__class__, module.gamma = SparseConv2d, gamma  # type: ignore[assignment]
        elif kind is nn.ReLU and not module.inplace:
            module.__class__ = BitReLU
        elif kind is nn.MaxPool2d and not module.return_indices:
            module.__class__ = IndexedMaxPool2d
    return model
