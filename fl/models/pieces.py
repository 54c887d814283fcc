"""A model as a sequence: the pieces that it is computed by, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fl.errors import ConfigError


class Piece(NamedTuple):
    """One step of a model's forward pass.

    Attributes:
        reads: names of the modules whose entries it reads, with all inside them.
        run: maps what the piece before returned, or the inputs, to what the next one takes.
    """

    reads: tuple[str, ...]
    run: Callable[[Tensor], Tensor]


def pieces_of(model: nn.Module) -> Sequence[Piece]:
    """Returns the pieces of a model, whose composition is its `forward`.

    They are what its method `pieces` returns, or the children of an `nn.Sequential`.

    Raises:
        ConfigError: it has neither, or an entry that no piece reads.
    """
    name = type(model).__name__
    declared = getattr(model, "pieces", None)
    if declared is not None:
        pieces: Sequence[Piece] = declared()
    elif isinstance(model, nn.Sequential):
        pieces = [Piece((child,), module) for child, module in model.named_children()]
    else:
        raise ConfigError(
            f"model is {name}, and nothing says of which steps its forward pass consists: use "
            "model=char_gpt, char_lstm, mlp, leaf_cnn or resnet8, an nn.Sequential, or give the "
            "model a method `pieces`"
        )
    read = tuple(f"{module}." for piece in pieces for module in piece.reads)
    for entry in model.state_dict():
        if not entry.startswith(read):
            raise ConfigError(
                f"model is {name}, and none of its pieces reads {entry!r}: name its module in the "
                "`reads` of the piece that does"
            )
    return pieces
