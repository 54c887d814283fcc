"""Character model of LEAF's Shakespeare task (arXiv:1812.01097) and FedAvg's (arXiv:1602.05629)."""

from __future__ import annotations

import torch
from torch import nn

from fl.errors import ConfigError
from fl.models.pieces import Piece


class CharLSTM(nn.Module):
    """Embedding, stacked LSTM, and a linear layer that predicts the next token at every position.

    Departure from LEAF: it predicts only the token after a window, this model that after each
    position.

    Args:
        input_shape: (T,), tokens of one window. The parameters do not depend on T.
        num_classes: size V of the vocabulary.
        embedding: width of a token's embedding.
        hidden: units of each LSTM layer.
        layers: LSTM layers.

    Raises:
        ConfigError: inputs that are not sequences of tokens.
    """

    def __init__(
        self,
        input_shape: tuple[int, ...],
        num_classes: int,
        embedding: int = 8,
        hidden: int = 256,
        layers: int = 2,
    ) -> None:
        super().__init__()
        if len(input_shape) != 1:
            raise ConfigError(
                f"input_shape={input_shape}: CharLSTM needs (T,), the tokens of a window; "
                "use data=shakespeare or data=stdlib"
            )
        self.embedding = nn.Embedding(num_classes, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns logits, shape (B, T, V), of tokens, int64, shape (B, T)."""
        logits: torch.Tensor = self.classifier(self._states(self.embedding(x)))
        return logits

    def _states(self, embedded: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.lstm(embedded)[0]
        return states

    def pieces(self) -> list[Piece]:
        """Returns embedding, LSTM and classifier, for `fl.stages`."""
        return [
            Piece(("embedding",), self.embedding),
            Piece(("lstm",), self._states),
            Piece(("classifier",), self.classifier),
        ]
