"""A small decoder-only transformer over characters: GPT-2's block at 0.1 to 10 million parameters.

Radford, Wu, Child, Luan, Amodei, Sutskever, Language Models are Unsupervised Multitask Learners,
2019; the character models of karpathy/nanoGPT.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fl.errors import ConfigError
from fl.models.pieces import Piece

_WRITE = ("attention_norm", "attended", "norm", "down")  # layers of a block, into the stream
_READ = ("asked", "up")


class CharGPT(nn.Module):
    """Predicts the next token at every position of a window.

    Embeddings of tokens and positions, `layers` blocks

        x <- x + attention(norm(x));   x <- x + W_2 gelu(W_1 norm(x))

    with causal attention of `heads` heads, a norm, and logits by the token embedding itself, which
    is one tensor with two uses. No biases, and no dropout: local training in the simulator is
    short. Parameters: 12 layers width^2 + (V + T + 2 layers + 1) width.

    | width | layers | heads | parameters with V = 65, T = 64 |
    |---|---|---|---|
    | 64 | 2 | 4 | 0.11 million |
    | 128 | 4 | 4 | 0.80 million |
    | 256 | 4 | 4 | 3.2 million |
    | 384 | 6 | 6 | 10.7 million, nanoGPT's model of tiny Shakespeare |

    Values are drawn from N(0, 0.02^2), those of projections into the residual stream from
    N(0, 0.02^2 / (2 layers)).

    Args:
        input_shape: (T,), tokens of one window, T >= 1.
        num_classes: size V of the vocabulary.
        width: of the residual stream; a multiple of `heads`.
        layers: blocks, at least 1.
        heads: of attention, at least 1.

    Raises:
        ConfigError: inputs that are not sequences of tokens, or sizes that do not fit.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ConfigError(
                f"input_shape={input_shape}: CharGPT needs (T,), the tokens of a window; "
                "use data=shakespeare or data=stdlib"
            )
        if layers < 1 or heads < 1 or width < 1 or width % heads:
            raise ConfigError(
                f"width is {width}, layers is {layers}, heads is {heads}; each must be at least 1, "
                "and width a multiple of heads"
            )
        self.heads = heads
        self.tokens = nn.Embedding(num_classes, width)
        self.positions = nn.Embedding(input_shape[0], width)
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                into = name.endswith(("attended.weight", "down.weight"))
                deviation = 0.02 / math.sqrt(2 * layers) if into else 0.02
                nn.init.normal_(parameter, std=deviation)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits, shape (B, T, V), of tokens, int64, shape (B, T)."""
        hidden = self._embedded(x)
        for block in self.blocks:
            hidden = block(hidden)
        return self._logits(hidden)

    def _embedded(self, x: Tensor) -> Tensor:
        embedded: Tensor = self.tokens(x) + self.positions.weight[: x.shape[-1]]  # (B, T, width)
        return embedded

    def _logits(self, hidden: Tensor) -> Tensor:
        return F.linear(self.norm(hidden), self.tokens.weight)

    def pieces(self) -> list[Piece]:
        """Returns embeddings, blocks and logits, for `fl.stages`."""
        blocks = [Piece((f"blocks.{i}",), block) for i, block in enumerate(self.blocks)]
        first = Piece(("tokens", "positions"), self._embedded)
        return [first, *blocks, Piece(("norm", "tokens"), self._logits)]

    def units(self) -> dict[str, tuple[int, list[tuple[str, int, int]]]]:
        """Returns which dimensions shrink together, for `fl.submodels`.

        They are those of the residual stream; in each block those of a head, the same ones of all
        heads and of queries, keys and values; and the hidden ones of the second half.
        """
        width, heads = self.tokens.weight.shape[1], self.heads
        stream = [("tokens.weight", 1, 1), ("positions.weight", 1, 1), ("norm.weight", 0, 1)]
        groups = {"stream": (width, stream)}
        for i in range(len(self.blocks)):
            at = f"blocks.{i}"
            stream += [(f"{at}.{name}.weight", 0, 1) for name in _WRITE]
            stream += [(f"{at}.{name}.weight", 1, 1) for name in _READ]
            within = [(f"{at}.asked.weight", 0, 3 * heads), (f"{at}.attended.weight", 1, heads)]
            hidden = [(f"{at}.up.weight", 0, 1), (f"{at}.down.weight", 1, 1)]
            groups[f"{at}.asked"] = (width // heads, within)
            groups[f"{at}.up"] = (4 * width, hidden)
        return groups


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width, bias=False)
        self.asked = nn.Linear(width, 3 * width, bias=False)  # queries, keys and values
        self.attended = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(width, bias=False)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        asked = self.asked(self.attention_norm(x)).view(batch, length, 3, self.heads, -1)
        queries, keys, values = asked.permute(2, 0, 3, 1, 4)  # (B, heads, T, width / heads) each
        # Written out: torch's fused attention cannot be batched over clients by vmap.
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(queries.shape[-1])
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        mixed = scores.masked_fill(future, -math.inf).softmax(dim=-1) @ values
        x = x + self.attended(mixed.transpose(1, 2).reshape(batch, length, -1))
        changed: Tensor = x + self.down(F.gelu(self.up(self.norm(x))))
        return changed
