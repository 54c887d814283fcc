"""What training a model costs: operations per example, and bytes of memory.

Both are measured on a small copy of the real work, one or two examples, so any torch module can be
costed. Neither depends on the model's values, the device, or the speed of the host.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from fl.models.objective import per_example_loss
from fl.models.without_compiler import Counting


class Flops(NamedTuple):
    """Floating-point operations of one example, a multiplication and an addition being two.

    Attributes:
        forward: of computing the logits.
        backward: of the gradients of all parameters that have one, given those of the logits.
    """

    forward: int
    backward: int

    @property
    def training(self) -> int:
        """Operations of one step on one example."""
        return self.forward + self.backward


def flops_per_example(
    model: nn.Module,
    input_shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    *,
    inputs: bool = False,
) -> Flops:
    """Counts the floating-point operations that one more example adds to a batch.

    Counted are matrix products, convolutions and attention, by torch's own counter, in a real
    forward and backward pass over two examples and over one; the difference is the result. Not
    counted are operations element by element (activations, normalisation, pooling, softmax, the
    optimiser) and look-ups in embeddings.

    Args:
        model: any module that maps a batch to logits; not changed.
        input_shape: shape of one input.
        dtype: of the inputs; an integer type means tokens.
        inputs: the backward pass has the gradients of the inputs too, as that of a model's later
            layers.

    Returns:
        Operations per example. The caller keeps them: counting takes as long as two small steps.
    """
    model = copy.deepcopy(model).cpu().eval()
    one, two = (
        _count(model, _inputs(n, input_shape, dtype).requires_grad_(inputs)) for n in (1, 2)
    )
    return Flops(two.forward - one.forward, two.backward - one.backward)


def _count(model: nn.Module, x: torch.Tensor) -> Flops:
    parameters = [p for p in (*model.parameters(), x) if p.requires_grad]
    with _without_onednn():
        with Counting(forward := FlopCounterMode(display=False)):
            logits = model(x)
        with Counting(backward := FlopCounterMode(display=False)):
            torch.autograd.grad(logits.sum(), parameters, allow_unused=True)
    return Flops(forward.get_total_flops(), backward.get_total_flops())


@contextmanager
def _without_onednn() -> Iterator[None]:
    # oneDNN runs a whole LSTM as one operation that the counter does not know.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "TF32 acceleration")  # of restoring the flags
        with torch.backends.mkldnn.flags(enabled=False):
            yield


def memory_bytes(
    model: nn.Module,
    input_shape: tuple[int, ...],
    batch_size: int,
    optimizer_slots: int = 0,
    dtype: torch.dtype = torch.float32,
    *,
    forwards: int = 0,
) -> int:
    """Estimates the memory that a training step needs, in bytes.

    Counted are:
        parameters and buffers;
        one gradient for each trainable parameter;
        `optimizer_slots` more vectors of that size;
        `batch_size` times the activations of one example: every distinct tensor that autograd keeps
        between the forward and the backward pass of model and loss, other than parameters. The
        batch itself is among them where a layer needs it.
    By forward passes alone, a step needs neither gradients nor what autograd keeps, but, at most,
    what goes into and comes out of one operation; a residual that lies beside it is not counted.

    Not counted are the temporary memory of single operations, the data set, and the framework.

    Args:
        model: any module that maps a batch to logits; not changed.
        input_shape: shape of one input.
        batch_size: examples of one step.
        optimizer_slots: vectors kept beside the gradient: 0 for SGD, 1 with momentum or for a
            proximal term's anchor, 2 for Adam.
        dtype: of the inputs; an integer type means tokens.
        forwards: how often the activations of a forward pass are held at once, if there is no
            backward pass; 0 is one.
    """
    model = copy.deepcopy(model).cpu().train()
    fixed = [*model.parameters(), *model.buffers()]
    trainable = [p for p in model.parameters() if p.requires_grad]
    if forwards:
        one, two = (_passing_bytes(model, _inputs(n, input_shape, dtype), fixed) for n in (2, 3))
        activations = forwards * (one + (batch_size - 2) * (two - one))
        return _bytes(fixed) + optimizer_slots * _bytes(trainable) + max(activations, 0)
    one, two = (_saved_bytes(model, _inputs(n, input_shape, dtype), fixed) for n in (2, 3))
    activations = one + (batch_size - 2) * (two - one)
    return _bytes(fixed) + (1 + optimizer_slots) * _bytes(trainable) + max(activations, 0)


def _saved_bytes(model: nn.Module, x: torch.Tensor, fixed: Sequence[torch.Tensor]) -> int:
    # Storages are kept until all are counted: a freed one would give its address to the next.
    saved: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage
        # Detached: a saved tensor with a history would keep its own graph alive for ever.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(x)
        y = torch.zeros(logits.shape[:-1], dtype=torch.int64)
        loss = per_example_loss(logits, y).mean()
    for tensor in fixed:
        saved.pop(tensor.untyped_storage().data_ptr(), None)
    del loss
    return sum(storage.nbytes() for storage in saved.values())


class _LargestOperation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes how many bytes the inputs and outputs of an operation have, at most.

    Args:
        fixed: tensors that do not count.
    """

    def __init__(self, fixed: Sequence[torch.Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: int = 0
        self._fixed = {tensor.untyped_storage().data_ptr() for tensor in fixed}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # else the compiler is imported, which takes seconds

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Does an operation."""
        done = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, done)) if isinstance(t, torch.Tensor)]
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors}
        sizes = [s.nbytes() for place, s in storages.items() if place not in self._fixed]
        self.bytes = max(self.bytes, sum(sizes))
        return done


def _passing_bytes(model: nn.Module, x: torch.Tensor, fixed: Sequence[torch.Tensor]) -> int:
    with torch.no_grad(), (largest := _LargestOperation(fixed)):
        logits = model(x)
        y = torch.zeros(logits.shape[:-1], dtype=torch.int64)
        per_example_loss(logits, y).mean()
    return largest.bytes


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def _inputs(n: int, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.zeros((n, *shape), dtype=dtype)
