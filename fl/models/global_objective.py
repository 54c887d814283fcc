"""The objective that federated learning minimises, and how much clients disagree about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import nn

from fl.checks import at_least
from fl.errors import ConfigError
from fl.models.objective import per_example_loss


class GlobalObjective(NamedTuple):
    """What all clients' training data say about one model.

    Attributes:
        loss: f(w) = sum_k n_k F_k(w) / sum_k n_k, in nats; F_k is the mean loss of client k's n_k
            examples.
        dissimilarity: (1/N) sum_k |grad F_k(w) - grad f(w)|^2 over the N clients with examples:
            the variance of gradients of FedProx (arXiv:1812.06127, section 5.3.3). Unweighted, as
            in the authors' code.
    """

    loss: float
    dissimilarity: float


def global_objective(
    model: nn.Module,
    clients: Iterable[tuple[torch.Tensor, torch.Tensor]],
    batch_size: int = 1000,
) -> GlobalObjective:
    """Computes the global objective and the clients' dissimilarity at a model.

    The model is put in evaluation mode and back; its gradients stay as they are. One forward and
    one backward pass over all examples; memory for four gradients, however many clients there are.

    Args:
        model: maps inputs to logits.
        clients: inputs and targets of each client, as `FederatedData.client` gives them. A client
            without examples has no F_k and is left out.
        batch_size: examples at a time; changes memory and speed, the result only by rounding.

    Raises:
        ConfigError: no client has examples, or a batch size below 1.
    """
    at_least("batch_size", batch_size, 1)
    parameters = [p for p in model.parameters() if p.requires_grad]
    d = sum(p.numel() for p in parameters)
    examples = members = 0
    loss = squares = 0.0
    # float64: the variance below is a difference of sums.
    weighted = torch.zeros(d, dtype=torch.float64)  # sum_k n_k grad F_k
    plain = torch.zeros(d, dtype=torch.float64)  # sum_k grad F_k
    training = model.training
    model.eval()
    try:
        for x, y in clients:
            n = len(y)
            if n == 0:
                continue
            total = torch.zeros(d, dtype=torch.float64)  # n_k grad F_k
            for start in range(0, n, batch_size):
                losses = per_example_loss(
                    model(x[start : start + batch_size]), y[start : start + batch_size]
                )
                loss += losses.detach().double().sum().item()
                gradients = torch.autograd.grad(losses.sum(), parameters)
                total += torch.cat([g.flatten() for g in gradients])
            examples += n
            members += 1
            g = total / n
            weighted += total
            plain += g
            squares += g.dot(g).item()
    finally:
        model.train(training)
    if not members:
        raise ConfigError("no client has training examples; the global objective needs at least 1")
    mean = weighted / examples  # grad f
    # (1/N) sum |g_k - g|^2 = (1/N) sum |g_k|^2 - 2 <g, (1/N) sum g_k> + |g|^2
    dissimilarity = squares / members - 2 * mean.dot(plain).item() / members + mean.dot(mean).item()
    return GlobalObjective(loss / examples, max(dissimilarity, 0.0))
