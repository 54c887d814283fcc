"""What is minimised and what is counted, per example; both work under vmap and grad."""

from __future__ import annotations

import torch


def per_example_loss(
    logits: torch.Tensor, y: torch.Tensor, classes: torch.Tensor | None = None
) -> torch.Tensor:
    """Computes the loss of each example: a cross-entropy, or of regression the squared error.

    Of one class it is -log softmax(logits)[y], of C labels the mean over them of
    -y log s(z) - (1 - y) log(1 - s(z)) with s the logistic function of a logit z; both in nats.

    Args:
        logits: (B, C), or (B, T, V) for the next token at each position; of regression predictions
            (B, 1). Those of shape (B,) are losses already, as a `fl.models.Game` returns them.
        y: int64, (B,) or (B, T); of regression float32, (B,); of labels float32, (B, C), 0 or 1.
        classes: which there are, bool, (C,): the logits of others count as 0, HeteroFL's masked
            cross-entropy (arXiv:2010.01264); None is all.

    Returns:
        Shape (B,); for sequences the mean over the T positions.
    """
    if logits.ndim == 1:
        return logits
    if y.is_floating_point() and y.ndim == 2:
        return (logits.clamp(min=0) - logits * y + (-logits.abs()).exp().log1p()).mean(dim=1)
    if y.is_floating_point():
        return (logits.squeeze(-1) - y).square()
    if classes is not None:
        logits = torch.where(classes, logits, 0.0)
    # `cross_entropy` has no kernel under vmap, where it is Python that imports sympy: half a second
    # at the start, and a fifth of a step of logistic regression.
    loss = -logits.log_softmax(dim=-1).gather(-1, y.unsqueeze(-1)).squeeze(-1)
    return loss if y.ndim == 1 else loss.mean(dim=1)


def absolute_error(predicted: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Computes |prediction - y| of each example of regression, shape (B,).

    Args:
        predicted: (B, 1).
        y: float32, (B,).
    """
    return (predicted.squeeze(-1) - y).abs()


def correct(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Computes which examples are predicted correctly: by the largest logit, labels by its sign.

    Args:
        logits: (B, C), or (B, T, V) for the next token at each position; (B,) are losses.
        y: int64, (B,) or (B, T); of labels float32, (B, C), 0 or 1.

    Returns:
        float32, shape (B,): 0 or 1; for sequences the share of the T positions, for labels that of
        the C; 0 for losses, which predict nothing.
    """
    if logits.ndim == 1:
        return torch.zeros_like(logits)
    if y.is_floating_point():
        return ((logits > 0) == (y > 0)).float().mean(dim=1)
    hits = (logits.argmax(dim=-1) == y).float()
    return hits if y.ndim == 1 else hits.mean(dim=1)
