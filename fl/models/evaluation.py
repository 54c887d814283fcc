"""How good a model is on held-out examples."""

from __future__ import annotations

import copy
import pickle
import random
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from operator import add
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fl.errors import ConfigError
from fl.models.channels_last import gains_from_channels_last, with_channels_last
from fl.models.objective import absolute_error, correct, per_example_loss
from fl.randomness import global_generators
from fl.vectors.threads import limit_threads

T = TypeVar("T")


class Evaluation(NamedTuple):
    """Means over examples.

    Attributes:
        loss: cross-entropy in nats; of regression the squared error.
        score: share of correct predictions, 0 to 1; of regression the absolute error.
    """

    loss: float
    score: float


def evaluate(
    model: nn.Module, examples: tuple[Tensor, Tensor], batch_size: int = 250
) -> Evaluation:
    """Computes mean loss and score of a model; the model's mode and gradients stay as they are.

    On a CPU, a model with convolutions is given images whose channels lie last in memory, unless
    its code depends on how they lie.

    Args:
        model: maps inputs to logits.
        examples: inputs and targets, as `FederatedData.test_set` gives them, on the model's device.
        batch_size: examples at a time; changes memory and speed, the result only by rounding. The
            activations of 250 images fit the caches of most CPUs, those of 1000 do not.

    Raises:
        ConfigError: no examples, or a batch size below 1.
    """
    n = len(examples[1])
    if n == 0 or batch_size < 1:
        raise ConfigError(
            f"{n} examples in batches of {batch_size}: need at least 1 of both to evaluate"
        )
    y = examples[1]
    score_of = absolute_error if y.is_floating_point() and y.ndim == 1 else correct

    def sums(logits: Tensor, targets: Tensor) -> tuple[float, float]:
        # In float64: the mean must not depend on how many batches it came from.
        loss = per_example_loss(logits, targets).double().sum().item()
        return loss, score_of(logits, targets).double().sum().item()

    losses, scores = zip(*_of_batches(model, examples, batch_size, sums), strict=True)
    # `sum` of Python 3.12 and later rounds otherwise than that of 3.11.
    return Evaluation(reduce(add, losses) / n, reduce(add, scores) / n)


def predictions(model: nn.Module, examples: tuple[Tensor, Tensor], batch_size: int = 250) -> Tensor:
    """Returns what a model makes of all inputs, shape (n, C), on the CPU; arguments as above."""
    return torch.cat(_of_batches(model, examples, batch_size, lambda logits, _: logits.cpu()))


def losses_of(
    model: nn.Module, examples: tuple[Tensor, Tensor], batch_size: int = 250
) -> NDArray[np.float64]:
    """Computes the loss of each example, shape (n,), in nats; arguments as of `evaluate`."""

    def of(logits: Tensor, targets: Tensor) -> Tensor:
        return per_example_loss(logits, targets).double().cpu()

    return np.asarray(torch.cat(_of_batches(model, examples, batch_size, of)).numpy())


def draws(model: nn.Module, x: Tensor) -> bool:
    """Returns whether a model draws random numbers in evaluation mode, by a trial on one input.

    Args:
        model: its mode stays as it is.
        x: inputs, at least one.
    """
    training = model.training
    model.eval()
    try:
        with global_generators(0, "structure"), torch.inference_mode():
            before = _generators()
            model(x[:1])
            return _generators() != before
    finally:
        model.train(training)


def _of_batches(
    model: nn.Module,
    examples: tuple[Tensor, Tensor],
    batch_size: int,
    of: Callable[[Tensor, Tensor], T],
) -> list[T]:
    """Returns what `of` makes of logits and targets of each batch, in order, in evaluation mode.

    On a CPU the batches are spread over as many threads as PyTorch has, and each is computed by one
    of them: so what comes does not depend on how many there are, and threads that have to wait for
    a busy core keep no others waiting, as they would within an operation. A model that draws random
    numbers sees its batches one after the other.
    """
    x, y = examples
    training, cores = model.training, torch.get_num_threads() if x.device.type == "cpu" else 1
    batches = [slice(start, start + batch_size) for start in range(0, len(y), batch_size)]
    model.eval()
    try:
        with limit_threads(1), torch.inference_mode():
            turned = gains_from_channels_last(model, x.shape[1:], x.device)
            turned = turned and _takes_channels_last(model, x[:1])

            def run(model: nn.Module, batch: slice) -> T:
                inputs = with_channels_last(x[batch]) if turned else x[batch]
                return of(model(inputs), y[batch])

            cores = min(cores, len(batches) - 1)
            before = _generators() if cores > 1 else None
            found = [run(model, batches[0])]
            if cores > 1 and _generators() == before:
                return found + _spread(run, model, batches[1:], cores)
            return found + [run(model, batch) for batch in batches[1:]]
    finally:
        model.train(training)


def _spread(
    run: Callable[[nn.Module, slice], T], model: nn.Module, batches: Sequence[slice], cores: int
) -> list[T]:
    """Returns what `run` makes of each batch, in order, on so many threads."""
    # A model may keep things between its layers: each thread has its own, of the same tensors.
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    free = deque(copy.deepcopy(model, dict(tensors)) for _ in range(cores))

    def one(batch: slice) -> T:
        own = free.pop()
        with torch.inference_mode():
            made = run(own, batch)
        free.append(own)
        return made

    pool = ThreadPoolExecutor(cores, "batch", torch.set_num_threads, (1,))
    try:
        return list(pool.map(one, batches))
    finally:
        pool.shutdown(cancel_futures=True)


def _generators() -> tuple[bytes, ...]:
    """Returns the states of what a model may draw from."""
    return (
        torch.get_rng_state().numpy().tobytes(),
        pickle.dumps(np.random.get_state()),  # noqa: NPY002
        pickle.dumps(random.getstate()),
    )


def _takes_channels_last(model: nn.Module, x: Tensor) -> bool:
    try:
        model(with_channels_last(x))
    except RuntimeError:
        return False
    return True
